"""A machine that runs Joist, for end-to-end tests: QEMU or Bochs behind one serial line.

    with Machine("--iso", iso, "--smp", "2") as m:
        m.expect(r"joist> ", 30)
        m.send("host info\n")

MODEL in the environment picks the emulator's CPU.
"""
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("BUILD", os.path.join(TOP, "build"))


class Failure(Exception):
    pass


def result(name, error=None, detail=""):
    """One line for tests/run to count."""
    print("\nRESULT %s %s" % (name, "FAIL " + str(error).replace("\n", " ") if error else ("ok " + detail).strip()), flush=True)


def check(name, fn, *args):
    """Runs fn and reports it as one test; True when it passed."""
    try:
        fn(*args)
    except Failure as e:
        result(name, e)
        return False
    result(name)
    return True


def smp(guests):
    """CPUs for QEMU so that guests have that many: with three or more they keep off the first (docs/DEBUGGING.md, FXRSTOR)."""
    return str(guests if guests == 1 else guests + 1)


def mkimage(kind, out, *options):
    subprocess.run([os.path.join(TOP, "scripts/mkimage"), kind, out, "--kernel", os.path.join(BUILD, "joist.elf"), *options], check=True)
    return out


class Machine:
    """Everything the machine says on COM1 is kept in .log and echoed to stdout (the word .hide in lower case);
    expect() searches what came after the last match."""

    def __init__(self, *options, emulator="qemu", echo=True):
        self.dir = tempfile.TemporaryDirectory(prefix="joist.")
        self.log, self.at, self.echo, self.shown, self.hide = "", 0, echo, 0, None
        path = os.path.join(self.dir.name, "serial")
        if emulator == "qemu":
            argv = ["scripts/run-qemu", "--serial", "unix:" + path] + (["--cpu", os.environ["MODEL"]] if "MODEL" in os.environ else [])
        else:
            with socket.socket() as s:          # a port that is free now; Bochs waits for us there
                s.bind(("127.0.0.1", 0))
                port = s.getsockname()[1]
            argv = ["scripts/run-bochs", "--serial", "tcp:%d" % port, "--secs", "3000", "--dir", os.path.join(self.dir.name, "bochs"),
                    "--model", os.environ.get("MODEL", "corei7_skylake_x")]
        self.process = subprocess.Popen(argv + list(options), cwd=TOP, stdin=subprocess.DEVNULL)
        self.serial = self._connect(path if emulator == "qemu" else ("localhost", port))

    def _connect(self, address):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        deadline = time.monotonic() + 60
        while True:
            s = socket.socket(family, socket.SOCK_STREAM)
            try:
                s.connect(address)
                return s
            except OSError as e:                # the emulator has not opened it yet
                s.close()
                if self.process.poll() is not None:
                    raise Failure("the emulator ended at once with status %s" % self.process.returncode)
                if time.monotonic() > deadline:
                    raise Failure("no serial line: %s" % e)
                time.sleep(0.05)

    def _read(self, seconds):
        """Takes what comes within the time; False at end of file."""
        if not select.select([self.serial], [], [], max(seconds, 0))[0]:
            return True
        try:
            data = self.serial.recv(65536)
        except ConnectionResetError:
            data = b""
        text = data.decode(errors="replace").replace("\r", "")
        self.log += text
        self._show(self.log.rfind("\n") + 1 if data else len(self.log))
        return bool(data)

    def _show(self, end):
        """Echoes whole lines, so that ours never land inside one."""
        if self.echo and end > self.shown:
            text = self.log[self.shown:end]
            sys.stdout.write(text.replace(self.hide, self.hide.lower()) if self.hide else text)
            sys.stdout.flush()
            self.shown = end

    def expect(self, pattern, seconds=30):
        """Waits for a regular expression and returns the match."""
        deadline = time.monotonic() + seconds
        alive = True
        while True:
            m = re.compile(pattern, re.M).search(self.log, self.at)
            if m:
                self.at = m.end()
                return m
            if not alive:
                raise Failure("the machine stopped before it said %r" % pattern)
            if time.monotonic() > deadline:
                raise Failure("%r did not come in %d s" % (pattern, seconds))
            alive = self._read(deadline - time.monotonic())

    def send(self, text):
        self.serial.sendall(text.encode())

    def wait_end(self, seconds=30):
        """Waits until the machine has switched itself off; returns the emulator's exit status."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            if time.monotonic() > deadline:
                raise Failure("the machine still runs after %d s" % seconds)
        return self.process.wait(10)

    def close(self):
        self._show(len(self.log))
        self.serial.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.dir.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
