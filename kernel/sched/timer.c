/*
 * Timers of kernel/lib/port.h: per CPU a pairing heap by deadline under a lock of its own, and one clock event programmed for the earliest of the
 * heap's first deadline and the scheduler's slice.  The event's interrupt only raises soft work: callbacks run in timer_run() on the CPU that armed,
 * with interrupts on, never inside a spinlock holder.
 *
 * A timer belongs to the queue of its `cpu` while it is armed or its callback runs; re-arming it from elsewhere while the callback runs leaves it
 * there, so that a callback never runs twice at once.  Moves go through MOVING under the old queue's lock.
 */
#include "kernel/sched/thread.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/smp.h"
#include "kernel/x86/time.h"

#define BATCH           64              /* callbacks in a row before threads get some time */
#define BATCH_PAUSE_NS  50000ull
#define STREAK_NS       1000000ull      /* as long may timers have most of the CPU; then threads have it as long */
#define LONG_AGO_NS     (10 * STREAK_NS)
enum { MOVING = ~0u };

struct timer_base {
    struct spinlock lock;
    uint32_t cpu;
    struct pheap queue;
    struct timer *running;
    uint64_t not_before;                /* pause after a full batch or a streak */
    uint64_t streak_ns, owed_ns;        /* see rest() */
    uint64_t first_ns, slice_ns;        /* what timers and scheduler want; ~0: nothing; this CPU only, interrupts off */
    uint64_t due_ns;                    /* reached when SOFT_TIMER was raised */
    uint64_t armed_ns;                  /* what the clock event is set to */
};

struct timer_state { struct pheap_node node; uint32_t cpu, armed; };
_Static_assert(sizeof(struct timer_state) <= sizeof(((struct timer *)0)->opaque), "opaque size");
static struct timer_state *state(struct timer *t) { return (struct timer_state *)t->opaque; }
static struct timer *timer_of(struct pheap_node *n) { return container_of((uint64_t *)n, struct timer, opaque[0]); }

static struct timer_base *bases[MAX_CPUS];
static struct timer_base *this_base(void) { return this_cpu()->timers; }

/* ---- Clock event; interrupts off, on the base's CPU.  An event that comes too early costs less than taking it back. ---- */

static void reached(struct timer_base *b, uint64_t now)
{
    if (b->first_ns <= now) {
        b->first_ns = ~0ull;            /* timer_run() looks again */
        b->due_ns = now;
        softwork_set(SOFT_TIMER);
    }
    if (b->slice_ns <= now) {
        b->slice_ns = ~0ull;
        softwork_set(SOFT_RESCHED);
    }
}

/* What is due by now needs no event. */
static void program(struct timer_base *b)
{
    uint64_t want;
    while ((want = MIN(b->first_ns, b->slice_ns)) < b->armed_ns) {
        if (likely(clockevent_arm(want)))
            b->armed_ns = want;
        else
            reached(b, want);
    }
}

static void clock_interrupt(void)
{
    struct timer_base *b = this_base();
    uint64_t now = likely(b->armed_ns != ~0ull) ? b->armed_ns : clock_ns();     /* it has been reached, and knowing more costs more */
    b->armed_ns = ~0ull;
    reached(b, now);
    program(b);
}

void timer_set_slice(uint64_t ns)
{
    struct timer_base *b = this_base();
    b->slice_ns = ns;
    program(b);
}

static void set_first(struct timer_base *b, uint64_t ns)
{
    unsigned long flags = irq_save();
    b->first_ns = ns;
    program(b);
    irq_restore(flags);
}

/* ---- Queue ---- */

void timer_init(struct timer *t, void (*fn)(struct timer *))
{
    *t = (struct timer){ .fn = fn };
    state(t)->cpu = port_cpu();
}

static struct timer_base *lock_base_of(struct timer *t)
{
    for (;;) {
        uint32_t cpu = atomic_load(&state(t)->cpu);
        if (cpu != MOVING) {
            struct timer_base *b = bases[cpu];
            spin_lock(&b->lock);
            if (state(t)->cpu == cpu)
                return b;
            spin_unlock(&b->lock);
        }
        cpu_relax();
    }
}

static bool take_off(struct timer_base *b, struct timer *t)
{
    if (!state(t)->armed)
        return false;
    state(t)->armed = 0;
    pheap_remove(&b->queue, &state(t)->node);
    return true;
}

/* The new deadline is the base's earliest: its CPU must know. */
static void first_changed(struct timer_base *b, uint64_t deadline)
{
    if (b->cpu == cpu_index()) {
        set_first(b, MAX(deadline, b->not_before));
    } else {
        atomic_store_relaxed(&b->due_ns, clock_ns());
        atomic_or(&percpu_of(b->cpu)->softwork, SOFT_TIMER);
        smp_resched(b->cpu);
    }
}

/* Locks the queue on which `t` shall be armed, here if possible, with `t` taken off any other.  Preemption is off. */
static struct timer_base *lock_for_arm(struct timer *t, struct timer_base *here)
{
    if (likely(atomic_load(&state(t)->cpu) == here->cpu)) {
        raw_lock(&here->lock);
        if (likely(state(t)->cpu == here->cpu))
            return here;
        raw_unlock(&here->lock);
    }
    struct timer_base *b = lock_base_of(t);
    preempt_count_sub(1);               /* as raw_lock() above; the caller's own keeps it from zero */
    if (b == here || b->running == t)
        return b;
    take_off(b, t);
    atomic_store(&state(t)->cpu, (uint32_t)MOVING);
    raw_unlock(&b->lock);
    raw_lock(&here->lock);
    atomic_store(&state(t)->cpu, here->cpu);
    return here;
}

void timer_arm(struct timer *t, uint64_t deadline_ns)
{
    preempt_disable();
    struct timer_base *b = lock_for_arm(t, this_base());
    take_off(b, t);
    t->deadline = deadline_ns;
    state(t)->node.key = MIN(deadline_ns, (uint64_t)INT64_MAX);
    state(t)->armed = 1;
    pheap_insert(&b->queue, &state(t)->node);
    if (pheap_first(&b->queue) == &state(t)->node)
        first_changed(b, state(t)->node.key);
    raw_unlock(&b->lock);
    preempt_enable();
}

bool timer_cancel(struct timer *t)
{
    struct timer_base *b = lock_base_of(t);
    bool was = take_off(b, t);
    spin_unlock(&b->lock);
    return was;
}

void timer_cancel_sync(struct timer *t)
{
    sched_may_sleep("timer_cancel_sync");
    for (;;) {
        struct timer_base *b = lock_base_of(t);
        take_off(b, t);
        bool running = b->running == t;
        spin_unlock(&b->lock);
        if (!running)
            return;
        while (atomic_load(&b->running) == t)   /* short: callbacks do not sleep, nor are they preempted */
            cpu_relax();
    }
}

static struct timer *take_due(struct timer_base *b, uint64_t now)
{
    struct pheap_node *first = pheap_first(&b->queue);
    if (!first || first->key > now)
        return NULL;
    pheap_pop(&b->queue);
    struct timer *t = timer_of(first);
    state(t)->armed = 0;
    b->running = t;
    return t;
}

/*
 * Callbacks come before all threads, and guests decide how often: together, or on a slow CPU, their timers could take all of it.  A run that comes due before
 * threads have had as much time as the run before took belongs to the same streak, and a long streak ends in a pause, as a full batch does.  `end` is the
 * time now, if there are timers left.  A run that came due long ago tells nothing: somebody armed a past time, or this CPU stood still.
 */
static uint64_t rest(struct timer_base *b, uint64_t end, bool full)
{
    uint64_t took = MAX(end, b->due_ns) - b->due_ns, spent = MIN(took, STREAK_NS), pause = full ? MAX(spent, BATCH_PAUSE_NS) : 0;
    if (likely(b->due_ns >= b->owed_ns) || took > LONG_AGO_NS)
        b->streak_ns = end - spent;
    else if (end >= b->streak_ns + STREAK_NS)
        pause = STREAK_NS;
    b->owed_ns = end + MAX(spent, pause);
    return pause ? end + pause : 0;
}

/* The clock is read only if there are more timers than the one whose time is known to have come. */
void timer_run(void)
{
    struct timer_base *b = this_base();
    uint64_t now = b->due_ns;
    unsigned n = 0;
    raw_lock(&b->lock);
    for (struct timer *t; n < BATCH && (t = take_due(b, now)); n++) {
        raw_unlock(&b->lock);
        t->fn(t);
        atomic_store(&b->running, (struct timer *)NULL);        /* t may be gone */
        raw_lock(&b->lock);
        if (b->queue.root && !n)
            now = clock_ns();
    }
    struct pheap_node *first = pheap_first(&b->queue);
    b->not_before = rest(b, n > 1 ? clock_ns() : now, n == BATCH);
    set_first(b, first ? MAX(first->key, b->not_before) : ~0ull);
    raw_unlock(&b->lock);
}

void timer_init_cpu(void)
{
    struct timer_base *b = kmalloc_aligned(sizeof *b, 64);
    if (!b)
        panic("no memory for the timers of CPU %u", port_cpu());
    *b = (struct timer_base){ .cpu = port_cpu(), .first_ns = ~0ull, .slice_ns = ~0ull, .armed_ns = ~0ull };
    this_cpu()->timers = b;
    bases[b->cpu] = b;
    clockevent_set_handler(clock_interrupt);
}
