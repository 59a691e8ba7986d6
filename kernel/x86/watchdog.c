#include "kernel/x86/watchdog.h"
#include "boot/symtab.h"
#include "kernel/lib/log.h"
#include "kernel/sched/sched.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/lapic.h"
#include "kernel/x86/mce.h"
#include "kernel/x86/smp.h"
#include "kernel/x86/time.h"

/*
 * Every PERIOD a timer on each CPU looks at the next CPU and kicks it if it gave no sign of life meanwhile: an idle one answers, one with interrupts off does not.
 * PATIENCE kicks without an answer, or soft work (a switch, a timer) left undone for so long, and the watching CPU says so.  Counting its own kicks instead
 * of comparing times keeps a watcher that was stuck itself from blaming others.
 */
#define PERIOD_NS   2000000000ull
enum { PATIENCE = 5 };

void watchdog_touch(void)
{
    struct percpu *p = this_cpu();
    atomic_store_relaxed(&p->watchdog_unanswered, 0u);
}

/* The NMI handler notes where it was; printing there could meet the log's own lock. */
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
    struct thread *t = READ_ONCE(p->current);
    log_err("watchdog", "CPU %u is stuck for 10 s (%s): thread %s at %#llx %s+%#llx", (unsigned)p->cpu, what, t ? thread_name(t) : "boot",
            (unsigned long long)rip, name ? name : "?", (unsigned long long)off);
}

static void check(struct percpu *p)
{
    if (p == this_cpu() || !p->online)
        return;
    unsigned unanswered = atomic_add(&p->watchdog_unanswered, 1u) - 1, undone = atomic_load_relaxed(&p->watchdog_undone);
    if (unanswered == PATIENCE)
        report(p, "interrupts off");
    else if (unanswered < PATIENCE && undone >= PATIENCE && !atomic_xchg(&p->watchdog_said, true))
        report(p, "preemption off");
    if (p->softwork)
        atomic_add(&p->watchdog_undone, 1u);
    if (unanswered)
        smp_kick(p->cpu);
}

static void tick(struct timer *t)
{
    struct percpu *p = this_cpu();
    watchdog_touch();
    atomic_store_relaxed(&p->watchdog_undone, 0u);
    atomic_store_relaxed(&p->watchdog_said, false);
    check(percpu_of((p->cpu + 1) % percpu_count));
    mce_poll();
    timer_arm(t, clock_ns() + PERIOD_NS);
}

void watchdog_start(void)
{
    struct percpu *p = this_cpu();
    timer_init(&p->watchdog, tick);
    timer_arm(&p->watchdog, clock_ns() + PERIOD_NS);
}
