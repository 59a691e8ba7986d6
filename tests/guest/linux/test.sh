#!/bin/sh
# Checks inside the guest: one line "RESULT name ok|FAIL|SKIP detail" each, "RESULT end ok N checks" at the end.
# test.sh [:NAME,...]    Parameters from the kernel command line:
#   joist.cpus=N joist.mem=MiB          what the VM was given
#   joist.scratch=vdb                   a disk that may be overwritten (its first 9 MiB; joist.mib=N: the first N + 1)
#   joist.clocksource=NAME              what Linux must have chosen; auto: kvm-clock, or the TSC where it never stops
#   joist.steady=N                      steady: how many seconds
#   joist.seed=TEXT joist.rounds=N      sha: what to compute
#   joist.storm=vda,vdb                 storm, endure: disks that may be overwritten, 2 MiB each
#   joist.seconds=N                     endure: how long
param() { sed -n "s/.*\bjoist\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
ok() { echo "RESULT $check ok $*"; }
fail() { echo "RESULT $check FAIL $*"; }
skip() { echo "RESULT $check SKIP $*"; }
uptime_ms() { awk '{ printf "%d", $1 * 1000 }' /proc/uptime; }

check_cpus() {
    want=$(param cpus) have=$(grep -c ^processor /proc/cpuinfo)
    [ -z "$want" ] || [ "$have" = "$want" ] || { fail "$have CPUs, not $want"; return; }
    for cpu in $(seq 0 $((have - 1))); do
        got=$(taskset -c "$cpu" awk '{ print $39 }' /proc/self/stat)
        [ "$got" = "$cpu" ] || { fail "a process bound to CPU $cpu ran on '$got'"; return; }
        t=/sys/devices/system/cpu/cpu$cpu/topology
        got="package $(cat $t/physical_package_id) core $(cat $t/core_id) threads $(cat $t/thread_siblings_list)"
        [ "$got" = "package 0 core $cpu threads $cpu" ] || { fail "CPU $cpu: $got"; return; }
    done
    ok "$have"
}

check_mem() {
    want=$(param mem) have=$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
    [ -z "$want" ] || [ "$have" -gt $((want * 80 / 100 - 24)) ] || { fail "$have of $want MiB"; return; }
    dd if=/dev/urandom of=/tmp/a bs=1M count=8 2> /dev/null
    cp /tmp/a /tmp/b
    cmp /tmp/a /tmp/b && ok "$have MiB" || fail "a copy differs"
    rm -f /tmp/a /tmp/b
}

check_clock() {
    want=$(param clocksource) have=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
    [ "$want" != auto ] || { grep -q nonstop_tsc /proc/cpuinfo && want=tsc || want=kvm-clock; }
    [ -z "$want" ] || [ "$have" = "$want" ] || { fail "$have, not $want"; return; }
    bad=$(dmesg | grep -i -m1 -e 'marking clocksource' -e 'clocksource.*unstable' -e 'clocksource.*skew' -e 'time went backwards')
    [ -z "$bad" ] && ok "$have" || fail "$bad"
}

# A second by the timer interrupt must be a second by the battery clock, roughly.
check_timer() {
    a=$(uptime_ms); sleep 1; b=$(uptime_ms)
    d=$((b - a))
    [ $d -ge 990 ] && [ $d -lt 1500 ] || { fail "sleep 1 took $d ms"; return; }
    for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.01; done
    [ $(($(uptime_ms) - b)) -lt 1500 ] && ok "$d ms" || fail "ten naps of 10 ms took $(($(uptime_ms) - b)) ms"
}

# Second after second, over pauses that the guest must not see: none is long, and the time of day goes with the uptime.
check_steady() {
    n=$(param steady) i=0 last=$(uptime_ms) base=$(($(date +%s) * 1000 - last))
    while [ $i -lt "$n" ]; do
        sleep 1
        now=$(uptime_ms) drift=$(($(date +%s) * 1000 - now - base))
        [ $((now - last)) -ge 990 ] && [ $((now - last)) -lt 10000 ] || { fail "second $i took $((now - last)) ms"; return; }
        [ $drift -gt -1100 ] && [ $drift -lt 1100 ] || { fail "second $i: the time of day is off by $drift ms"; return; }
        i=$((i + 1)) last=$now
    done
    ok "uptime $now rtc $(cat /sys/class/rtc/rtc0/since_epoch)"
}

check_rtc() {
    [ -e /dev/rtc0 ] || { skip "no rtc0"; return; }
    a=$(cat /sys/class/rtc/rtc0/since_epoch); u=$(uptime_ms)
    sleep 2
    d=$(($(cat /sys/class/rtc/rtc0/since_epoch) - a)) t=$((($(uptime_ms) - u + 500) / 1000))
    [ $d -ge $((t - 1)) ] && [ $d -le $((t + 1)) ] && ok "$(date -u +%Y-%m-%dT%H:%M:%S)" || fail "$d s by the RTC, $t s by the kernel"
}

check_disk() {
    disks=
    for d in /sys/block/*; do
        [ -e "$d" ] || continue
        case ${d##*/} in loop*|ram*|sr*|fd*) continue;; esac
        disks="$disks ${d##*/}:$(cat "$d/size")"
        dd "if=/dev/${d##*/}" of=/dev/null bs=64k count=16 2> /dev/null || { fail "${d##*/} cannot be read"; return; }
    done
    scratch=$(param scratch)
    [ -n "$scratch" ] || { [ -n "$disks" ] && ok "read only:$disks" || skip "no disk"; return; }
    dev=/dev/$scratch
    [ -b "$dev" ] || { fail "no $scratch; there is:$disks"; return; }
    mib=$(param mib) mib=${mib:-8}
    dd if=/dev/urandom of=/tmp/w bs=1M count=$mib 2> /dev/null
    dd if=/tmp/w of="$dev" bs=64k seek=16 oflag=direct 2> /dev/null || { fail "write"; return; }
    dd if=/tmp/w of="$dev" bs=4096 seek=256 count=4 conv=fsync,notrunc 2> /dev/null || { fail "buffered write and flush"; return; }
    echo 3 > /proc/sys/vm/drop_caches
    want=$(md5sum < /tmp/w)
    [ "$(dd if="$dev" bs=64k skip=16 count=$((mib * 16)) iflag=direct 2> /dev/null | md5sum)" = "$want" ] || { fail "direct read differs"; return; }
    [ "$(dd if="$dev" bs=4096 skip=256 count=$((mib * 256)) 2> /dev/null | md5sum)" = "$want" ] || { fail "buffered read differs"; return; }
    # Two writers and two readers at once, apart from each other.
    for i in 0 1; do
        dd if=/tmp/w of="$dev" bs=4096 skip=$((i * mib * 128)) seek=$((256 + i * mib * 128)) count=$((mib * 128)) oflag=direct conv=notrunc 2> /dev/null &
        dd if="$dev" of=/dev/null bs=4096 skip=$((256 + i * mib * 128)) count=$((mib * 128)) iflag=direct 2> /dev/null &
    done
    wait
    [ "$(dd if="$dev" bs=64k skip=16 count=$((mib * 16)) iflag=direct 2> /dev/null | md5sum)" = "$want" ] || { fail "parallel writes differ"; return; }
    rm -f /tmp/w
    ok "$disks"
}

check_rng() {
    cat /sys/class/misc/hw_random/rng_available 2> /dev/null | grep -q virtio || { skip "no virtio-rng"; return; }
    a=$(dd if=/dev/hwrng bs=16 count=1 2> /dev/null | md5sum) b=$(dd if=/dev/hwrng bs=16 count=1 2> /dev/null | md5sum)
    [ "$a" != "$b" ] && ok || fail "twice the same 16 bytes"
}

check_console() {
    [ -c /dev/hvc0 ] || { skip "no virtio console"; return; }
    echo "hello from hvc0" > /dev/hvc0 && ok || fail "cannot write to hvc0"
}

check_interrupts() {
    err=$(awk '$1 == "ERR:" || $1 == "MIS:" { n += $2 } END { print n + 0 }' /proc/interrupts)
    [ "$err" = 0 ] || { fail "$err errors in /proc/interrupts"; return; }
    bad=$(dmesg | grep -i -m1 -e 'nobody cared' -e 'spurious.*interrupt' -e 'unexpected irq')
    [ -z "$bad" ] && ok || fail "$bad"
}

check_kernel_log() {
    bad=$(dmesg | grep -m1 -e 'BUG:' -e 'WARNING: CPU' -e 'Call Trace' -e 'general protection' -e 'soft lockup' -e 'rcu.*stall' -e 'Unhandled' -e 'I/O error' \
        -e 'hung_task' -e 'blocked for more than' -e 'ACPI.*Error' -e 'unchecked MSR')
    [ -z "$bad" ] && ok || fail "$bad"
}

# First boot: leave a mark on the scratch disk and reset.  Second boot: find it.
check_reboot() {
    dev=/dev/$(param scratch)
    [ -b "$dev" ] || { skip "needs joist.scratch"; return; }
    if [ "$(dd if="$dev" bs=512 count=1 2> /dev/null | head -c 14)" = "joist-rebooted" ]; then
        dd if=/dev/zero of="$dev" bs=512 count=1 conv=fsync,notrunc 2> /dev/null
        ok "second boot"
        return
    fi
    printf 'joist-rebooted' | dd of="$dev" bs=512 count=1 conv=fsync,notrunc,sync 2> /dev/null
    echo "rebooting"
    sync
    reboot -f
    sleep 30
    fail "reboot did not happen"
}

# A chain of SHA-256 sums on every CPU at once; whoever started the VM knows what must come out.
chain() {
    x=$1 i=0
    while [ $i -lt "$2" ]; do
        x=$(printf %s "$x" | sha256sum)
        x=${x%% *} i=$((i + 1))
    done
    echo "$x"
}

check_sha() {
    last=$(($(grep -c ^processor /proc/cpuinfo) - 1))
    for cpu in $(seq 0 $last); do
        taskset -c "$cpu" sh /test.sh -chain "$(param seed)-$cpu" "$(param rounds)" > "/tmp/sha.$cpu" &
    done
    wait
    ok $(for cpu in $(seq 0 $last); do cat "/tmp/sha.$cpu"; done)
}

# Single blocks in a scattered order by four writers per disk, all disks at once.
scatter() {
    b=0
    while [ $b -lt 512 ]; do
        at=$((b * 197 % 512))
        [ $((at % 4)) != "$3" ] || dd if="$1" of="$2" bs=4096 skip=$at seek=$at count=1 oflag=direct conv=notrunc 2> /dev/null || echo "write $at to $2" >> /tmp/bad
        b=$((b + 1))
    done
}

# Says what went wrong, if anything.
storm() {
    for d in $disks; do
        dd if=/dev/urandom of="/tmp/$d" bs=1M count=2 2> /dev/null
        writers=
        for w in 0 1 2 3; do scatter "/tmp/$d" "/dev/$d" $w & writers="$writers $!"; done
        all="$all $writers"
    done
    wait $all
    [ ! -e /tmp/bad ] || { head -n 1 /tmp/bad; return; }
    echo 3 > /proc/sys/vm/drop_caches
    for d in $disks; do
        [ "$(dd if="/dev/$d" bs=64k count=32 iflag=direct 2> /dev/null | md5sum)" = "$(md5sum < "/tmp/$d")" ] || echo "$d differs"
    done
}

check_storm() {
    disks=$(param storm | tr , ' ') all=
    bad=$(storm)
    [ -z "$bad" ] && ok "$disks" || fail "$bad"
}

# Naps on one CPU until it is over: how many, and the longest in ms.
naps() {
    n=0 longest=0
    while [ ! -e /tmp/over ]; do
        a=$(uptime_ms); sleep 0.02; d=$(($(uptime_ms) - a))
        [ $d -le $longest ] || longest=$d
        n=$((n + 1))
    done
    echo "$n $longest"
}

# Disks and timers of all CPUs at once, for a long time.  A wake-up that is lost shows as a nap without an end.
check_endure() {
    end=$(($(uptime_ms) + $(param seconds) * 1000)) rounds=0 disks=$(param storm | tr , ' ') bad= nappers=
    for cpu in $(seq 0 $(($(grep -c ^processor /proc/cpuinfo) - 1))); do
        taskset -c "$cpu" sh /test.sh -naps > "/tmp/naps.$cpu" &
        nappers="$nappers $!"
    done
    while [ "$(uptime_ms)" -lt $end ] && [ -z "$bad" ]; do
        all=
        bad=$(storm)
        rounds=$((rounds + 1))
    done
    : > /tmp/over
    wait $nappers
    longest=$(cat /tmp/naps.* | awk '$2 > m { m = $2 } END { print m + 0 }')
    [ -z "$bad" ] || { fail "round $rounds: $bad"; return; }
    [ "$longest" -lt 30000 ] && ok "$rounds rounds, $(cat /tmp/naps.* | awk '{ n += $1 } END { print n }') naps, longest $longest ms" || fail "a nap of 20 ms took $longest ms"
}

if [ "$1" = -chain ]; then
    chain "$2" "$3"
    exit
fi
[ "$1" != -naps ] || { naps; exit; }
names="${1#:}"
[ -n "$names" ] || names="cpus mem clock timer rtc disk rng console interrupts kernel_log"
n=0
for check in $(echo "$names" | tr , ' '); do
    if type "check_$check" > /dev/null 2>&1; then "check_$check"; else fail "there is no such check"; fi
    n=$((n + 1))
done
echo "RESULT end ok $n checks"
