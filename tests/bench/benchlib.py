"""What the benches share: Joist on an emulator that counts instructions, the plugin that tells guest from host."""
import json
import os
import re
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, "tests/e2e"))
from joist import BUILD, Failure, Machine, mkimage  # noqa: E402

PROMPT = r"^joist> "
problems = []


def problem(what):
    problems.append(what)
    print("WRONG: " + what, flush=True)


class Joist(Machine):
    """Joist on the deterministic bed with an image store; commands by its shell.  With a Bochs CPU model: there, which counts as exactly."""

    def __init__(self, store, cmdline, qemu=(), model=None):
        self.tmp = tempfile.TemporaryDirectory(prefix="joist.")
        images = os.path.join(self.tmp.name, "images")
        os.mkdir(images)
        for path in store:
            os.symlink(os.path.abspath(os.path.join(BUILD, path)), os.path.join(images, os.path.basename(path)))
        iso = mkimage("iso", os.path.join(self.tmp.name, "joist.iso"), "--images", images, "--cmdline", cmdline)
        if model:
            super().__init__("--iso", iso, "--model", model, emulator="bochs", echo=False)
        else:
            super().__init__("--iso", iso, "--icount", "--smp", "1", *(["--", *qemu] if qemu else []), echo=False)

    def close(self):
        if self.process.poll() is None:
            self.send("\x03host poweroff --now\r")
            try:
                self.wait_end(20)
            except Failure:
                pass
        super().close()
        self.tmp.cleanup()

    def command(self, line, seconds=60):
        at = len(self.log)
        self.send(line + "\r")
        self.expect(PROMPT, seconds)
        return self.log[at:].split("\n", 1)[-1].rsplit("joist> ", 1)[0]

    def json(self, line, seconds=60):
        text = self.command(line + " --json", seconds)
        try:
            return json.loads(text.strip().splitlines()[-1])
        except (ValueError, IndexError):
            raise Failure("%s --json says %r" % (line, text))

    def define(self, name, kernel, *flags):
        self.command("vm create %s --kernel %s --debug-exit --on-crash stop --mem %s" % (name, kernel, " ".join(flags)))

    def idle(self):
        """Long enough, in guest-visible time, for the pool of zeroed pages to be full."""
        self.command("vm create idle --kernel first.elf --mem 32M")
        self.command("vm wait idle --for running --timeout 2s")
        self.command("vm rm idle -y")

    def run(self, name, seconds=120):
        """Starts a VM, waits for its end, returns what it printed on its serial line."""
        self.command("vm start " + name)
        self.command("vm wait %s --for stopped --timeout %ds" % (name, seconds), seconds * 4)
        return self.command("vm console " + name)


def counts(path):
    """{point: {all, guest, vmrun}} from count.c; the first line of each name."""
    found = {}
    with open(path) as f:
        for line in f:
            name, *words = line.split()
            found.setdefault(name, {k: int(v) for k, v in (w.split("=") for w in words)})
    return found


def plugin(path, *more):
    return ["-plugin", ",".join([os.path.join(BUILD, "bench/count.so"), "out=" + path, *more])]
