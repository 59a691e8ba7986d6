"""Linux from the kernel's entry to its init, with and without Joist, by count.c: how much more there is to execute, where it is, and which exits it takes."""
import bisect
import collections
import os
import re
import subprocess
import tempfile

from benchlib import BUILD, PROMPT, TOP, Failure, Joist, Machine, counts, plugin, problem

MEM = 128
COMMON = "console=ttyS0 quiet nokaslr"         # fixed addresses: where.FILE can be named
CASES = (
    # The bare machine waits for its timers to calibrate them; the VM's CPU and paravirtual clock tell their rates.
    ("own", "each with the clocks it offers", ""),
    # What only one of them has switched off: the rest is the same code, line by line.
    ("same", "the same clocks", " io_delay=none no-kvmclock nox2apic lapic=notscdeadline tsc=reliable tsc_early_khz=1000000"),
)
KERNEL, INITRD = os.path.join(BUILD, "guests/vmlinuz"), os.path.join(BUILD, "bench/initrd-bench")
KALLSYMS = os.path.join(BUILD, "bench/kallsyms")


def make_initrd():
    """A root file system of nothing but tests/bench/init.c."""
    with open(INITRD, "wb") as out:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"], cwd=os.path.join(BUILD, "bench"), input=b"init\n", stdout=out, check=True)


def tsc_at_init(text, where):
    m = re.search(r"INIT tsc=0x([0-9a-f]{16})", text)
    if not m:
        raise Failure("%s: Linux did not come to its init:\n%s" % (where, text[-2000:]))
    return int(m.group(1), 16)


# ---- Names of addresses ----

def nm(lines):
    table = []
    for line in lines:
        m = re.match(r"([0-9a-f]{16}) [tTwW] (\S+)$", line.strip())
        if m and m[1] != "0" * 16:
            table.append((int(m[1], 16), m[2]))
    return sorted(table)


def kernel_symbols():
    """Of the stock kernel, from itself: its package has no symbol table."""
    if not os.path.exists(KALLSYMS) or os.path.getmtime(KALLSYMS) < os.path.getmtime(KERNEL):
        with Machine("--kernel", KERNEL, "--initrd", os.path.join(BUILD, "guests/initrd"), "--append", COMMON + " joist=shell", "--smp", "1", "--mem", "256", echo=False) as m:
            m.expect(r"/root # ", 120)
            m.send("stty -echo; grep -i ' [tw] ' /proc/kallsyms; echo ALL''DONE\n")
            m.expect(r"ALLDONE", 600)
            with open(KALLSYMS, "w") as f:
                f.write(m.log)
    with open(KALLSYMS, errors="replace") as f:
        return nm(line for line in f if "[" not in line)


def by_function(path, side, table):
    """Instructions of one side ("guest", "host") by function; below 4 GiB is code from before the kernel has moved to its addresses."""
    found, addresses = collections.Counter(), [a for a, _ in table]
    with open(path) as f:
        for line in f:
            which, address, n = line.split()
            at = bisect.bisect(addresses, int(address, 16)) - 1
            if which == side:
                found[table[at][1] if at >= 0 and int(address, 16) >> 32 else "(early or user)"] += int(n)
    return found


# ---- The two machines ----

def bare(tmp, words, table):
    log, out, where = (os.path.join(tmp, n) for n in ("serial", "count", "where"))
    subprocess.run(["scripts/run-qemu", "--plain", "--kernel", KERNEL, "--initrd", INITRD, "--append", words, "--icount", "--smp", "1", "--mem", str(MEM),
                    "--machine", "q35,sata=off,smbus=off", "--timeout", "600", "--serial", "file:" + log, "--", *plugin(out, "entry=0x100000", "where=" + where)],
                   cwd=TOP, stdin=subprocess.DEVNULL)
    with open(log, errors="replace") as f:
        tsc_at_init(f.read(), "no hypervisor")
    at = counts(out)
    return {"instructions": at["mark20"]["all"] - at["entry"]["all"], "by": by_function(where, "host", table)}


def joist(tmp, words, table):
    out, where = os.path.join(tmp, "count"), os.path.join(tmp, "where")
    with Joist(["guests/vmlinuz", "bench/initrd-bench", "bench/first.elf"], "mitigations=off", qemu=plugin(out, "where=" + where)) as m:
        m.expect(PROMPT, 200)
        m.define("linux", "vmlinuz", "%dM" % MEM, "--initrd initrd-bench", '--cmdline "%s stay"' % words)
        m.idle()
        m.send("vm start linux; vm console linux\r")
        tsc = tsc_at_init(m.expect(r"INIT tsc=0x[0-9a-f]{16}", 300)[0], "Joist")
        m.send("\x1d")
        m.expect(PROMPT, 60)
        exits = {row["reason"]: row["total"] for row in m.json("vm stats linux")["exits"]}
    at = counts(out)
    total, guest = (at["mark20"][k] - at["vmrun"][k] for k in ("all", "guest"))
    host = by_function(where, "host", nm(subprocess.run(["nm", os.path.join(BUILD, "joist.elf")], capture_output=True, text=True, check=True).stdout.split("\n")))
    return {"instructions": total, "guest": guest, "host": total - guest, "exits": at["mark20"]["vmrun"] - at["vmrun"]["vmrun"], "ticks": tsc, "reasons": exits,
            "by": by_function(where, "guest", table), "host-by": host}


def linux(result):
    make_initrd()
    table = kernel_symbols()
    cases = result["linux"] = {}
    for key, _, more in CASES:
        with tempfile.TemporaryDirectory(prefix="joist.") as tmp:
            a, b = bare(tmp, COMMON + more, table), joist(tmp, COMMON + more, table)
        apart = {k: b["by"][k] - a["by"][k] for k in set(a["by"]) | set(b["by"])}
        cases[key] = {
            "none": a["instructions"], "joist": {k: b[k] for k in ("instructions", "guest", "host", "exits", "ticks", "reasons")},
            "overhead": b["instructions"] / a["instructions"] - 1, "share": b["host"] / b["guest"],
            "apart": sorted(((apart[k], a["by"][k], b["by"][k], k) for k in apart), key=lambda x: -abs(x[0]))[:10],
            "host-by": b["host-by"].most_common(12),
        }


def show_linux(result):
    print("\nLinux, %d MiB, 1 CPU, from kernel entry to init (mitigations=off); the bare machine is QEMU's q35 with what a VM has: no disk controller, USB, graphics" % MEM)
    for key, text, more in CASES:
        r = result["linux"][key]
        j = r["joist"]
        print("  %s%s" % (text, ":" + more if more else ""))
        print("    without a hypervisor %10.2f M instructions" % (r["none"] / 1e6))
        print("    under Joist          %10.2f M: guest %.2f M, Joist %.2f M = %.2f %% of the guest's, %d exits" %
              (j["instructions"] / 1e6, j["guest"] / 1e6, j["host"] / 1e6, 100 * r["share"], j["exits"]))
        print("    difference           %+10.2f %%   (target: at most 1 %%; KVM 2 %%)" % (100 * r["overhead"]))
        print("    exits by reason: " + ", ".join("%s %d" % x for x in sorted(j["reasons"].items(), key=lambda x: -x[1])[:8]))
        print("    Joist's instructions: " + ", ".join("%s %.2f M" % (k, v / 1e6) for k, v in r["host-by"]))
        print("    where the guest executes another number (guest − bare, M): " + ", ".join("%s %+.2f" % (k, d / 1e6) for d, _, _, k in r["apart"] if abs(d) > 200000))
