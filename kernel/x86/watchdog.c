#include "kernel/x86/watchdog.h"
#include "boot/symtab.h"
#include "kernel/lib/log.h"
#include "kernel/sched/sched.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/lapic.h"
#include "kernel/x86/smp.h"
#include "kernel/x86/time.h"

/*
 * Every PERIOD a timer on the boot CPU kicks CPUs that gave no sign of life since: an idle CPU answers, one with interrupts off does not.  Any CPU's timer
 * interrupt looks at its neighbour too, so that the boot CPU is watched as well.
 */
#define PERIOD_NS   2000000000ull
#define STUCK_NS    10000000000ull

static struct timer timer;

void watchdog_touch(void) { atomic_store_relaxed(&this_cpu()->watchdog_ns, clock_ns()); }

/* The NMI handler has noted RIP and the thread; printing there could meet the log's own lock. */
static void report(struct percpu *p, const char *what)
{
    uintptr_t off = 0;
    atomic_store(&p->nmi_where, 0ull);
    atomic_store(&p->nmi_expected, true);
    lapic_ipi(p->apic_id, APIC_NMI | (uint32_t)ICR_ASSERT);
    for (unsigned i = 0; i < 1000 && !atomic_load(&p->nmi_where); i++)
        delay_us(10);
    atomic_store(&p->nmi_expected, false);
    uint64_t rip = atomic_load(&p->nmi_where);
    const char *name = rip ? symtab_lookup(rip, &off) : NULL;
    log_err("watchdog", "CPU %u is stuck for 10 s (%s): thread %s at %#llx %s+%#llx", (unsigned)p->cpu, what, p->current ? thread_name(p->current) : "boot",
            (unsigned long long)rip, name ? name : "?", (unsigned long long)off);
}

static void check(struct percpu *p, uint64_t now)
{
    uint64_t seen = atomic_load_relaxed(&p->watchdog_ns), since = atomic_load_relaxed(&p->resched_since);
    if (!p->online || p == this_cpu() || atomic_load_relaxed(&p->stuck))
        return;
    if (seen + STUCK_NS < now || (since && since + STUCK_NS < now)) {
        if (!atomic_xchg(&p->stuck, true))
            report(p, seen + STUCK_NS < now ? "interrupts off" : "preemption off");
    } else if (seen + PERIOD_NS < now) {
        smp_kick(p->cpu);
    }
}

static void tick(struct timer *t)
{
    uint64_t now = clock_ns();
    watchdog_touch();
    for (unsigned i = 0; i < percpu_count; i++)
        check(percpu_of(i), now);
    timer_arm(t, now + PERIOD_NS);
}

/* Any interrupt but those that the stuck loop itself could cause counts as life; so does a switch. */
void watchdog_tick(void)
{
    struct percpu *p = this_cpu();
    uint64_t now = clock_ns();
    p->watchdog_ns = now;
    p->resched_since = !(p->softwork & SOFT_RESCHED) ? 0 : p->resched_since ? p->resched_since : now;
    p->stuck = p->stuck && p->resched_since;
    struct percpu *next = percpu_of((p->cpu + 1) % percpu_count);
    if (next != p && next->online && atomic_load_relaxed(&next->watchdog_ns) + PERIOD_NS < now)
        check(next, now);
}

void watchdog_start(void)
{
    for (unsigned i = 0; i < percpu_count; i++)
        percpu_of(i)->watchdog_ns = clock_ns();
    timer_init(&timer, tick);
    timer_arm(&timer, clock_ns() + PERIOD_NS);
}
