/* Clock: TSC where it can be trusted, else HPET, else the ACPI PM timer.  Clock event: TSC deadline, else the local APIC's one-shot count. */
#include "kernel/x86/time.h"
#include <string.h>
#include "kernel/hw/hpet.h"
#include "kernel/hw/i8254.h"
#include "kernel/lib/log.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/irq.h"
#include "kernel/x86/lapic.h"
#include "kernel/x86/panic.h"
#include "kernel/x86/power.h"
#include "kernel/x86/time_internal.h"
#include "kernel/x86/vmap.h"

enum { CALIBRATE_TRIES = 3, CALIBRATE_MAX_TRIES = 8, CALIBRATE_US = 10000 };
#define NSEC 1000000000ull

/*
 * Ticks to ns and back as fixed point with FRACTION bits: fits clocks from MIN_HZ to 1000 GHz, and the error of a year there and back stays below a tick, so that
 * a deadline turned into ticks is not early when it is compared in ns.
 */
enum { FRACTION = 54 };
#define MIN_HZ BIT(20)
struct rate { uint64_t hz, to_ns, from_ns; };

/* a * b / c for results of at most 64 bits: the instruction pair the compiler has no operator for. */
static uint64_t mul_div(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t lo, hi;
    __asm__("mulq %3\n divq %4" : "=&a"(lo), "=&d"(hi) : "0"(a), "r"(b), "r"(c) : "cc");
    return lo;
}

static struct rate make_rate(uint64_t hz)
{
    hz = MAX(hz, MIN_HZ);
    return (struct rate){ hz, mul_div(NSEC, BIT(FRACTION), hz), mul_div(hz, BIT(FRACTION), NSEC) };
}
static uint64_t scale(uint64_t v, uint64_t mult) { return (uint64_t)((unsigned __int128)v * mult >> FRACTION); }

/* A free-running counter that is narrower than 64 bits or slow to read.  Extended in software: must be read at least once per wrap, the watchdog does. */
struct counter { const char *name; uint64_t (*read)(void); uint64_t mask; struct rate rate; };

static struct {
    struct rate tsc;
    uint64_t tsc_base;          /* TSC at clock_ns() == 0 */
    bool tsc_good;              /* invariant or virtual, and in step on all CPUs */
    const struct counter *slow; /* the clock when the TSC is not good */
    struct spinlock slow_lock;
    uint64_t slow_last, slow_ns, slow_rest;
    uint64_t utc_base;          /* UTC ns at clock_ns() == 0 */
    struct rate lapic;
    void (*event)(void);
    volatile uint8_t *hpet;
} tm;

/* ---- Counters to measure against ---- */
static uint64_t hpet_read32(void) { return mmio_read32(tm.hpet + HPET_COUNTER); }
static uint64_t pm_read(void) { return acpi_reg_read(&acpi.pm_timer); }
static struct counter hpet = { .name = "HPET", .read = hpet_read32, .mask = 0xffffffff };
static struct counter pm_timer = { .name = "ACPI PM timer", .read = pm_read, .mask = 0xffffff };

static bool hpet_init(void)
{
    if (!acpi.hpet || !(tm.hpet = mmio_map(acpi.hpet, HPET_SIZE, PT_UC)))
        return false;
    uint64_t period = mmio_read32(tm.hpet + HPET_ID + 4);
    if (!period || period > HPET_MAX_PERIOD || mmio_read32(tm.hpet + HPET_ID) == 0xffffffff)
        return false;
    /* Legacy routing would take over IRQ 0 and 8; comparators may still be armed by the firmware. */
    unsigned timers = (mmio_read32(tm.hpet + HPET_ID) & HPET_ID_TIMERS) >> 8;
    for (unsigned i = 0; i <= timers; i++)
        mmio_write32(tm.hpet + HPET_TIMER(i), mmio_read32(tm.hpet + HPET_TIMER(i)) & (uint32_t)~(HPET_TN_ENABLE | HPET_TN_FSB));
    mmio_write32(tm.hpet + HPET_CONFIG, (uint32_t)((mmio_read32(tm.hpet + HPET_CONFIG) & ~HPET_CFG_LEGACY) | HPET_CFG_ENABLE));
    hpet.rate = make_rate(1000000000000000ull / period);        /* period in fs */
    uint64_t a = hpet_read32();
    for (unsigned i = 0; i < 100000 && hpet_read32() == a; i++)
        cpu_relax();
    return hpet_read32() != a;
}

static bool pm_init(void)
{
    if (!acpi.pm_timer.address)
        return false;
    if (acpi.pm_timer_32)
        pm_timer.mask = 0xffffffff;
    pm_timer.rate = make_rate(PM_TIMER_HZ);
    uint64_t a = pm_read();
    for (unsigned i = 0; i < 100000 && pm_read() == a; i++)
        cpu_relax();
    return pm_read() != a && a != 0xffffffff;
}

/* ---- Calibration ---- */

/* Reference and TSC at one moment: of several attempts the one with the least time around the read, so that an SMI in it does not count. */
static uint64_t read_pair(const struct counter *c, uint64_t (*fast)(void), uint64_t *fast_out)
{
    uint64_t best = ~0ull, ref = 0;
    for (unsigned i = 0; i < 5; i++) {
        uint64_t before = rdtsc_ordered(), f = fast(), r = c->read(), after = rdtsc_ordered();
        if (after - before < best)
            best = after - before, ref = r, *fast_out = f;
    }
    return ref;
}

static uint64_t measure_by_counter(const struct counter *c, uint64_t (*fast)(void))
{
    uint64_t f0, f1, r0 = read_pair(c, fast, &f0), want = c->rate.hz * CALIBRATE_US / 1000000, r1;
    while (((c->read() - r0) & c->mask) < want)
        for (unsigned i = 0; i < 256; i++)      /* reading is slow, on emulators very slow; the pair after the wait gives the precision */
            __asm__ volatile("");
    r1 = read_pair(c, fast, &f1);
    return mul_div(f1 - f0, c->rate.hz, (r1 - r0) & c->mask);
}

/* PIT counter 2, polled on port 61h: one count-down of CALIBRATE_US.  0: this machine has no PIT. */
static uint64_t measure_by_pit(const struct counter *c, uint64_t (*fast)(void))
{
    uint32_t count = (uint32_t)((uint64_t)I8254_HZ * CALIBRATE_US / 1000000);
    uint8_t port = inb(PORT61);
    outb(PORT61, (uint8_t)((port & ~PORT61_SPEAKER) | PORT61_GATE2));
    outb(I8254_CONTROL, 2 << I8254_SEL_SHIFT | I8254_RW_BOTH << I8254_RW_SHIFT);
    outb(I8254_COUNTER0 + 2, (uint8_t)count);
    outb(I8254_COUNTER0 + 2, (uint8_t)(count >> 8));
    uint64_t f0 = fast(), polls = 0;
    while (!(inb(PORT61) & PORT61_OUT2) && ++polls < 200000)
        ;
    uint64_t f1 = fast();
    outb(PORT61, port);
    return polls < 100 || polls == 200000 ? 0 : (f1 - f0) * I8254_HZ / count;
}

/* The least of at least three: an SMI only ever adds ticks.  Two must agree within 1000 ppm. */
static uint64_t calibrate(const struct counter *ref, uint64_t (*fast)(void))
{
    uint64_t best = ~0ull;
    for (unsigned i = 0, close = 0; i < CALIBRATE_MAX_TRIES && (i < CALIBRATE_TRIES || close < 2); i++) {
        uint64_t hz = (ref ? measure_by_counter : measure_by_pit)(ref, fast);
        if (!hz)
            return 0;
        if (hz < best)
            close = best - hz < hz / 1000 ? close + 1 : 1, best = hz;
        else if (hz - best < best / 1000)
            close++;
    }
    return best;
}

/* SDM vol. 3 "Invariant Time-Keeping": leaf 15h gives the ratio, and on newer parts the crystal itself; 0 there means: not told. */
static uint64_t tsc_from_cpuid(void)
{
    if (cpu_info.vendor != CPU_INTEL || cpu_info.max_leaf < 0x15)
        return 0;
    struct cpuid_regs r = cpuid(0x15, 0);
    return r.eax && r.ebx && r.ecx ? (uint64_t)r.ecx * r.ebx / r.eax : 0;
}

static uint64_t lapic_ticks(void) { return 0xffffffffull - lapic_timer_current(); }

static void calibrate_lapic(const struct counter *ref)
{
    lapic_timer_mode(LVT_TIMER_ONESHOT | LVT_MASKED);
    lapic_timer_count(0xffffffff);
    uint64_t hz = calibrate(ref, lapic_ticks);
    lapic_timer_count(0);
    if (!hz)
        panic("the local APIC's timer does not run");
    tm.lapic = make_rate(hz);
}

void time_init(void)
{
    const struct counter *ref = hpet_init() ? &hpet : pm_init() ? &pm_timer : NULL;
    tm.slow = ref;
    uint64_t told = tsc_from_cpuid(), hz = calibrate(ref, rdtsc_ordered);
    if (!hz && !told)
        panic("no clock: neither HPET, ACPI PM timer, PIT nor CPUID tells the time");
    /* What CPUID tells is exact if it is true at all. */
    bool believe = told && (!hz || (told > hz - hz / 200 && told < hz + hz / 200));
    if (told && !believe)
        log_warn("time", "CPUID says the TSC runs at %llu kHz, measured %llu kHz", (unsigned long long)(told / 1000), (unsigned long long)(hz / 1000));
    tm.tsc = make_rate(believe ? told : hz);
    calibrate_lapic(ref);
    uint64_t elapsed = scale(rdtsc_ordered() - tm.tsc_base, tm.tsc.to_ns);
    if (tm.slow)
        tm.slow_last = tm.slow->read(), tm.slow_ns = elapsed;
    tm.utc_base = rtc_read_utc_ns() - elapsed;
    /* Only C1 is used and frequency is left to the hardware; still a TSC that is neither invariant nor virtual may change its rate. */
    atomic_store(&tm.tsc_good, cpu_has(FEAT_INVTSC) || cpu_has(FEAT_HYPERVISOR) || !tm.slow);
    log_info("time", "TSC %llu.%03llu MHz (%s), clock by %s", (unsigned long long)(tm.tsc.hz / 1000000), (unsigned long long)(tm.tsc.hz / 1000 % 1000),
             believe ? "told by CPUID" : ref ? ref->name : "PIT", clock_source_name());
}

void time_set_base(void) { tm.tsc_base = rdtsc_ordered(); }

/* ---- Reading the clock ---- */
static uint64_t slow_ns(void)
{
    bool alone = panic_in_progress();           /* this CPU may have been stopped inside the lock */
    unsigned long f = alone ? irq_save() : spin_lock_irqsave(&tm.slow_lock);
    uint64_t now = tm.slow->read(), ticks = (now - tm.slow_last) & tm.slow->mask;
    unsigned __int128 sub = (unsigned __int128)ticks * tm.slow->rate.to_ns + tm.slow_rest;
    tm.slow_last = now;
    tm.slow_ns += (uint64_t)(sub >> FRACTION);
    tm.slow_rest = (uint64_t)sub & (BIT(FRACTION) - 1);
    uint64_t ns = tm.slow_ns;
    if (alone)
        irq_restore(f);
    else
        spin_unlock_irqrestore(&tm.slow_lock, f);
    return ns;
}

uint64_t clock_ns(void)
{
    if (likely(tm.tsc_good))
        return scale(rdtsc_ordered() - tm.tsc_base, tm.tsc.to_ns);
    return tm.slow && tm.tsc.hz ? slow_ns() : 0;
}

uint64_t clock_utc_ns(void) { return tm.utc_base + clock_ns(); }
uint64_t tsc_hz(void) { return tm.tsc.hz; }
bool tsc_usable(void) { return tm.tsc_good; }
uint64_t tsc_from_ns(uint64_t ns) { return tm.tsc_base + scale(ns, tm.tsc.from_ns); }
uint64_t ns_from_tsc(uint64_t tsc) { return scale(tsc - tm.tsc_base, tm.tsc.to_ns); }
uint64_t ns_from_tsc_delta(uint64_t ticks) { return scale(ticks, tm.tsc.to_ns); }
const char *clock_source_name(void) { return tm.tsc_good ? "TSC" : tm.slow ? tm.slow->name : "none"; }

/* The slow clock goes on where the TSC's left off. */
void time_distrust_tsc(const char *why)
{
    if (!tm.slow) {
        log_warn("time", "%s, and there is no other clock", why);
        return;
    }
    if (!tm.tsc_good)
        return;
    tm.slow_ns = clock_ns();
    tm.slow_last = tm.slow->read();
    atomic_store(&tm.tsc_good, false);
    log_warn("time", "%s; the clock is the %s now", why, tm.slow->name);
}

/* ---- TSC in step?  The boot CPU answers the other's questions; half the shortest round trip bounds the error. ---- */
enum { SYNC_ROUNDS = 32 };
/* One CPU at a time, in the order of their indexes: `turn` is the one that the boot CPU serves, `over` the last it has finished with or given up. */
static struct { uint32_t turn, over, ask, answer, done; uint64_t tsc; int64_t offset; uint64_t trip; } sync __aligned_to(64);

void time_sync_ap(unsigned cpu)
{
    sync.ask = sync.answer = sync.done = 0;
    atomic_store(&sync.turn, cpu);
    for (uint64_t start = rdtsc_ordered(); !atomic_load(&sync.done) && rdtsc_ordered() - start < tm.tsc.hz;) {
        uint32_t ask = atomic_load(&sync.ask);
        if (ask == sync.answer) {
            cpu_relax();
            continue;
        }
        sync.tsc = rdtsc_ordered();
        atomic_store(&sync.answer, ask);
    }
    if (!atomic_load(&sync.done)) {
        time_distrust_tsc("a CPU did not answer the TSC check");
    } else if (sync.offset > (int64_t)sync.trip || sync.offset < -(int64_t)sync.trip) {
        log_warn("time", "TSC of CPU %u is %lld ticks off", cpu, (long long)sync.offset);
        time_distrust_tsc("the TSCs of the CPUs differ");
    }
    atomic_store(&sync.over, cpu);
}

/* false: the boot CPU did not wait any longer. */
static bool measure_offset(int64_t *offset, uint64_t *trip, uint32_t *asked)
{
    unsigned me = cpu_index();
    *trip = ~0ull >> 1;
    for (unsigned i = 0; i < SYNC_ROUNDS; i++) {
        uint64_t t0 = rdtsc_ordered();
        atomic_store(&sync.ask, ++*asked);
        while (atomic_load(&sync.answer) != *asked) {
            if (atomic_load(&sync.over) >= me)
                return false;
            cpu_relax();
        }
        uint64_t t1 = rdtsc_ordered(), mid = t0 + (t1 - t0) / 2;
        if (t1 - t0 < *trip)
            *trip = t1 - t0, *offset = (int64_t)(sync.tsc - mid);
    }
    return true;
}

void time_sync_self(void)
{
    int64_t offset = 0;
    uint64_t trip, adjust;
    uint32_t asked = 0;
    while (atomic_load(&sync.turn) != cpu_index())
        if (atomic_load(&sync.over) >= cpu_index())
            return;
    if (!measure_offset(&offset, &trip, &asked))
        return;
    bool off = offset > (int64_t)trip || offset < -(int64_t)trip;
    if (off && cpu_has(FEAT_TSC_ADJUST) && rdmsr_safe(MSR_TSC_ADJUST, &adjust)) {
        wrmsr(MSR_TSC_ADJUST, adjust + (uint64_t)offset);
        if (!measure_offset(&offset, &trip, &asked))
            return;
    }
    sync.offset = offset, sync.trip = trip;
    atomic_store(&sync.done, 1u);
}

/* ---- Clock event ---- */
void time_init_cpu(void)
{
    struct percpu *p = this_cpu();
    uint64_t adjust = 0;
    /* Several Intel CPUs miss TSC deadlines once TSC_ADJUST is not zero and their microcode is old. */
    bool adjusted = cpu_info.vendor == CPU_INTEL && cpu_has(FEAT_TSC_ADJUST) && (!rdmsr_safe(MSR_TSC_ADJUST, &adjust) || adjust);
    p->tsc_deadline = cpu_has(FEAT_TSC_DEADLINE) && tm.tsc_good && !adjusted;
    lapic_timer_mode(p->tsc_deadline ? LVT_TIMER_DEADLINE : LVT_TIMER_ONESHOT);
    if (p->cpu == 0)
        log_info("time", "timer: %s, APIC timer %llu.%03llu MHz", p->tsc_deadline ? "TSC deadline" : "APIC one-shot",
                 (unsigned long long)(tm.lapic.hz / 1000000), (unsigned long long)(tm.lapic.hz / 1000 % 1000));
}

/* Interrupts off. */
static bool program(struct percpu *p, uint64_t deadline)
{
    if (deadline == ~0ull) {
        if (p->tsc_deadline)
            wrmsr(MSR_TSC_DEADLINE, 0);
        else
            lapic_timer_count(0);
    } else if (p->tsc_deadline) {
        uint64_t tsc = tsc_from_ns(deadline < BIT(61) ? deadline : BIT(61));
        wrmsr(MSR_TSC_DEADLINE, tsc + 2);               /* rounded up: not early in ns; 0 would disarm */
    } else {
        uint64_t now = clock_ns(), delta = deadline - now;
        if (deadline <= now)
            return false;
        uint64_t ticks = delta > NSEC * 3600 ? 0xffffffff : scale(delta, tm.lapic.from_ns) + 1;
        lapic_timer_count((uint32_t)MIN(ticks, 0xffffffffull));        /* a long wait comes in pieces: clockevent_interrupt() */
    }
    p->armed_ns = deadline;
    return true;
}

bool clockevent_arm(uint64_t deadline_ns)
{
    unsigned long f = irq_save();
    bool ahead = program(this_cpu(), deadline_ns);
    irq_restore(f);
    return ahead;
}

void clockevent_set_handler(void (*fn)(void)) { tm.event = fn; }

/*
 * QEMU's software SVM (7.2) may lose an interrupt that arrives during VMRUN or #VMEXIT: it stays in the LAPIC's IRR until another one comes, and a sleeping
 * CPU has no other than its clock's.
 */
bool clockevent_overdue(void)
{
    struct percpu *p = this_cpu();
    if (p->armed_ns == ~0ull || clock_ns() < p->armed_ns)
        return false;
    p->armed_ns = ~0ull;
    if (tm.event)
        tm.event();
    return true;
}

void clockevent_interrupt(void)
{
    struct percpu *p = this_cpu();
    uint64_t deadline = p->armed_ns;
    if (deadline == ~0ull)
        return;
    if (clock_ns() < deadline && program(p, deadline))      /* too early: a piece of a long wait, or the two clocks differ by a little */
        return;
    p->armed_ns = ~0ull;
    if (tm.event)
        tm.event();
}

void delay_us(unsigned us)
{
    if (!tm.tsc.hz) {
        for (unsigned i = 0; i < us; i++)
            inb(0x80);          /* about 1 us on the ISA or LPC bus, never much less */
        return;
    }
    uint64_t start = rdtsc_ordered(), ticks = scale((uint64_t)us * 1000, tm.tsc.from_ns);
    while (rdtsc_ordered() - start < ticks)
        cpu_relax();
}
