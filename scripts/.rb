#!/bin/sh
# run-bochs [options]: Joist in Bochs, whose software CPU has VT-x with EPT (and, as model ryzen, a fuller AMD-V than QEMU).
#   --iso FILE            boot image (default build/joist.iso)
#   --model MODEL         corei7_skylake_x (default), corei7_haswell_4770, ... , ryzen
#   --secs N              end after N seconds (default 120)
#   --mem MiB (1024)  --smp N (1)  --uefi  --disk FILE (raw, ATA)
#   --serial stdio|file:PATH|tcp:PORT                 COM1; stdio: live on a terminal, else printed at the end; tcp: waits for a client
#   --net HOSTPORT:GUESTPORT                          e1000 with user network, forwards 127.0.0.1:HOSTPORT to 10.0.2.15
#   --dir DIR             where bochsrc, serial.out and bochs.log go (default: a temporary directory, removed)
# JOIST_WRAP in the environment is put before the emulator: nice, taskset, ...
# Exit: 0 the machine switched itself off, 3 triple fault, 124 time is up, 1 anything else (Bochs ends every run with a panic line).
set -eu
: "${JOIST_WRAP:=}"
top=$(dirname "$(dirname "$(realpath "$0")")")
iso=$top/build/joist.iso model=corei7_skylake_x secs=120 mem=1024 smp=1 uefi= disk= serial=stdio net= dir=
usage() { sed -n '2,/^# Exit/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in --uefi) uefi=1; shift; continue;; --*) [ $# -ge 2 ] || usage;; *) usage;; esac
    case $1 in
    --iso) iso=$2;; --model) model=$2;; --secs) secs=$2;; --mem) mem=$2;; --smp) smp=$2;; --disk) disk=$2;;
    --serial) serial=$2;; --net) net=$2;; --dir) dir=$2;; *) usage;;
    esac
    shift 2
done
iso=$(realpath "$iso"); [ -z "$disk" ] || disk=$(realpath "$disk")
case $serial in file:*) out=$(realpath "${serial#file:}");; *) out=serial.out;; esac
show=
if [ -z "$dir" ]; then dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; fi
mkdir -p "$dir"; cd "$dir"; rm -f serial.out bochs.log ./*.lock
case $serial in
stdio) if [ -t 0 ]; then com1="mode=term, dev=$(tty)"; else com1="mode=file, dev=serial.out" show=1; fi;;
file:*) rm -f "$out"; com1="mode=file, dev=$out";;
tcp:*) com1="mode=socket-server, dev=localhost:${serial#tcp:}";;
*) usage;;
esac
rom="/usr/share/bochs/BIOS-bochs-latest, options=fastboot"
[ -z "$uefi" ] || rom=/usr/share/ovmf/OVMF.fd
pci="pci: enabled=1, chipset=i440fx"
if [ -n "$net" ]; then
    echo "hostfwd = tcp::${net%:*}-10.0.2.15:${net#*:}" > slirp.conf
    pci="$pci, slot1=e1000
e1000: enabled=1, mac=52:54:00:12:34:56, ethmod=slirp, script=slirp.conf"
fi
if [ -n "$disk" ]; then
    rm -f "$disk.lock"      # left behind by a Bochs that was killed
    pci="$pci
ata0-master: type=disk, path=\"$disk\", mode=flat"
fi
# guest= must equal host= (else it hangs); sync=none makes the TSC an instruction count; the sound line keeps ALSA out.
cat > bochsrc <<X
config_interface: textconfig
display_library: rfb, options="timeout=0, hideIPS"
cpu: model=$model, count=$smp, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest=$mem, host=$mem
romimage: file=$rom
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
boot: cdrom
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata1-master: type=cdrom, path="$iso", status=inserted
clock: sync=none, time0=1767225600
log: bochs.log
panic: action=fatal
error: action=report
info: action=report
debug: action=ignore
sound: driver=dummy, waveoutdrv=dummy
com1: enabled=1, $com1
$pci
X
echo c > cont.rc        # this build has the debugger, which stops at the first instruction
rc=0
$JOIST_WRAP timeout "$secs" bochs -q -f bochsrc -rc cont.rc < /dev/null > bochs.out 2>&1 & pid=$!
trap 'kill $pid' INT TERM
wait $pid || rc=$?
[ -z "$show" ] || cat serial.out
if grep -qa -e 'soft power off' -e 'shutdown requested' bochs.log; then exit 0; fi
grep -m1 -a '>>PANIC<<' bochs.log >&2 || true
if grep -qa '3rd (' bochs.log; then exit 3; fi
[ $rc = 0 ] && rc=1
exit $rc
