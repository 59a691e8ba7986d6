/* The scheduler's core: switching, blocking, waking; each CPU's start.  State rules: kernel/sched/thread.h; arithmetic: rq.c. */
#include "kernel/mm/page.h"
#include "kernel/sched/thread.h"
#include "kernel/sched/torture.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/irq.h"
#include "kernel/x86/smp.h"
#include "kernel/x86/time.h"

#define OVERRUN_NS      1000000ull      /* looks again this often at an exhausted thread that holds a mutex */

_Static_assert(offsetof(struct percpu, preempt_count) == 8 && offsetof(struct percpu, softwork) == 12, "port_inline.h");
_Static_assert(offsetof(struct percpu, cpu) == 24, "port_inline.h");

static bool is_running(const struct thread *t) { return t->state == THREAD_RUNNING || t->state == THREAD_BLOCKING; }

struct thread *thread_self(void) { return cpu_current(); }
bool sched_need_resched(void) { return cpu_softwork() != 0; }

void sched_may_sleep(const char *what)
{
    struct rq *rq = this_cpu()->sched;
    if (unlikely(preempt_count() || !irqs_enabled() || !rq || cpu_current() == rq->idle))
        panic("%s where sleeping is not allowed (preempt_count %x, thread %s)", what, preempt_count(), rq ? cpu_current()->name : "boot");
}

/* ---- Accounting; the lock of rq is held and interrupts are off ---- */

/* When must this CPU look again?  Only as often as peers or budgets need it. */
static void set_slice(struct rq *rq, uint64_t now, bool fresh)
{
    struct thread *t = rq->curr;
    uint64_t look = rq_next_unthrottle(&rq->core);
    if (t == rq->idle || !rq->core.nready)
        rq->slice_end = ~0ull;
    else if (fresh || rq->slice_end == ~0ull || rq->slice_end <= now)
        rq->slice_end = now + RQ_SLICE_NS;
    look = MIN(look, rq->slice_end);
    if (t != rq->idle && t->ent.cap) {
        uint64_t left = ent_budget_left(&t->ent);
        look = MIN(look, now + (left ? left : OVERRUN_NS));
    }
    timer_set_slice(look);
}

static void waited(struct thread *t, uint64_t now)
{
    if (now > t->ent.wait_start)        /* the clocks of two CPUs may differ a little, and the clock may be replaced during boot */
        atomic_store_relaxed(&t->steal_ns, t->steal_ns + (now - t->ent.wait_start));
}

/* ---- Switching ---- */

static bool may_go_on(struct rq *rq, struct thread *t, uint64_t now)
{
    return t != rq->idle && is_running(t) && may_run_on(t, rq->cpu) && (!ent_exhausted(&t->ent, now) || t->mutexes);
}

static struct thread *first_ready(struct rq *rq, uint64_t now)
{
    struct thread *t;
    while ((t = thread_of(rq_first(&rq->core))) && unlikely(t->ent.cap) && !t->mutexes && rq_throttle_first(&rq->core, now))
        ;
    return t;
}

static struct thread *pick(struct rq *rq, struct thread *prev, uint64_t now)
{
    struct thread *first = first_ready(rq, now);
    bool yield = rq->yield;
    rq->yield = false;
    if (may_go_on(rq, prev, now)) {
        if (!first || (!yield && now < rq->slice_end && !rq_preempts(&first->ent, &prev->ent)))
            return prev;
        if (!yield && (int64_t)(prev->ent.vtime - first->ent.node.key) <= 0)
            return prev;
        if (yield)
            rq_yield(&rq->core, &prev->ent);
        return first;
    }
    if (!first) {
        runq_steal(rq, now);
        first = first_ready(rq, now);
    }
    return first ? first : rq->idle;
}

static void take_cpu(struct rq *rq, struct thread *next, uint64_t now)
{
    if (next != rq->idle) {
        runq_take(rq, next);
        waited(next, now);
    }
    next->on_cpu = true;
    rq->curr = next;
    rq->switches++;
    runq_publish_load(rq);
    runq_set_idle(rq->cpu, next == rq->idle);
}

/* First thing after a switch, on the new thread's stack: let go of the one that was left.  The lock of this CPU's queue is held. */
static void finish_switch(struct thread *prev)
{
    struct rq *rq = this_rq();
    struct thread *self = cpu_current();
    uint64_t now = rq->curr_since;
    bool dead = prev->state == THREAD_DEAD, away = false;
    prev->on_cpu = false;
    if (prev != rq->idle && is_running(prev)) {
        away = !may_run_on(prev, rq->cpu);
        if (away)
            runq_depart(rq, prev, runq_choose_cpu(prev));
        else
            runq_put(rq, prev, now);
    }
    set_slice(rq, now, true);
    raw_unlock(&rq->lock);
    if (dead)
        event_post(&prev->done);        /* its joiner may free it at once */
    if (away)
        runq_arrive(prev, false);
    fpu_switch_in(self);
    if (self->hooks && self->hooks->load) {
        bool moved = self->moved;
        self->moved = false;
        irq_enable();
        self->hooks->load(self->hooks->arg, moved);
        irq_disable();
    }
}

/* The put hook runs with interrupts on and without the lock.  The choice of the next thread stands: it is off its queue and on_cpu. */
static void run_put_hook(struct rq *rq, struct thread *t)
{
    if (!t->hooks || !t->hooks->put)
        return;
    raw_unlock(&rq->lock);
    irq_enable();
    t->hooks->put(t->hooks->arg);
    irq_disable();
    raw_lock(&rq->lock);
}

/* One decision.  Interrupts off, preempt_count 1. */
static void switch_once(bool voluntary)
{
    struct rq *rq = this_rq();
    softwork_clear(SOFT_RESCHED);
    raw_lock(&rq->lock);
    struct thread *prev = rq->curr;
    uint64_t now = clock_ns();
    runq_account(rq, now);
    if (voluntary && prev->state == THREAD_BLOCKING)
        prev->state = THREAD_BLOCKED;
    rq_unthrottle(&rq->core, now);
    if (rq->core.nready && (now >= rq->balance_at || now >= rq->slice_end))
        runq_push(rq, now);
    struct thread *next = pick(rq, prev, now);
    if (next == prev) {
        set_slice(rq, now, false);
        runq_publish_load(rq);
        runq_set_idle(rq->cpu, next == rq->idle);
        raw_unlock(&rq->lock);
        return;
    }
    take_cpu(rq, next, now);
    run_put_hook(rq, prev);
    fpu_switch_out(prev);
    struct percpu *p = this_cpu();
    p->current = next;
    p->kstack = next->kstack_top;
    finish_switch(switch_context(&prev->rsp, next->rsp, prev));
}

/* Interrupts off, preempt_count 0; the same on return, perhaps on another CPU. */
static void schedule(bool voluntary)
{
    ASSERT(!preempt_count());
    preempt_count_add(1);
    do {
        switch_once(voluntary);
        voluntary = false;
    } while (cpu_softwork() & SOFT_RESCHED);
    preempt_count_sub(1);
}

static void schedule_voluntary(void)
{
    irq_disable();
    schedule(true);
    if (unlikely(cpu_softwork()))
        sched_irq_exit();
    irq_enable();
}

void sched_irq_exit(void)
{
    for (unsigned w; (w = cpu_softwork()); ) {
        if (w & SOFT_TIMER) {
            softwork_clear(SOFT_TIMER);
            preempt_count_add(1);
            irq_enable();
            timer_run();
            irq_disable();
            preempt_count_sub(1);
        } else if (w & SOFT_RESCHED) {
            struct rq *rq = this_rq();
            if (rq && rq->started)
                schedule(false);
            else
                softwork_clear(SOFT_RESCHED);
        } else {
            softwork_clear(~(SOFT_TIMER | SOFT_RESCHED));
        }
    }
}

void sched_preempt_point(void)
{
    if (!irqs_enabled() || preempt_count())
        return;
    irq_disable();
    sched_irq_exit();
    irq_enable();
}

void thread_begin(struct thread *prev)
{
    finish_switch(prev);
    struct thread *self = cpu_current();
    irq_enable();
    preempt_enable();
    self->fn(self->arg);
    thread_exit();
}

/* ---- Sleeping and waking ---- */

void sched_prepare_block(void)
{
    atomic_store_relaxed(&cpu_current()->state, (uint32_t)THREAD_BLOCKING);
    atomic_fence();                     /* before the caller looks at its condition; pairs with thread_wake() */
}

void sched_cancel_block(void) { atomic_store_relaxed(&cpu_current()->state, (uint32_t)THREAD_RUNNING); }

void sched_block(void)
{
    sched_may_sleep("sched_block");
    schedule_voluntary();
}

void thread_wake(struct thread *t)
{
    atomic_fence();                     /* after the caller made its condition true */
    uint32_t state = atomic_load_relaxed(&t->state);
    if (state == THREAD_RUNNING || state == THREAD_WAKING)
        return;
    preempt_disable();
    unsigned long flags = irq_save();
    struct rq *rq = runq_lock_of(t);
    if (t->state == THREAD_BLOCKING) {
        t->state = THREAD_RUNNING;
    } else if (t->state == THREAD_BLOCKED && t->on_cpu) {
        t->state = THREAD_RUNNING;      /* finish_switch() puts it back on its queue; then choose again */
        runq_kick(rq);
    } else if (t->state == THREAD_BLOCKED) {
        unsigned cpu = runq_choose_cpu(t);
        uint64_t now = clock_ns();
        runq_account(rq, now);
        if (cpu == t->cpu) {
            t->state = THREAD_RUNNING;
            rq_place_woken(&rq->core, &t->ent);
            runq_put_and_kick(rq, t, now);
        } else {
            runq_depart(rq, t, cpu);
            raw_unlock(&rq->lock);
            runq_arrive(t, true);
            rq = NULL;
        }
    }
    if (rq)
        raw_unlock(&rq->lock);
    irq_restore(flags);
    preempt_enable();
}

void thread_yield_hint(void)
{
    cpu_relax();                /* for a guest's PAUSE, whose interception took the hint from the CPU: a sibling thread, or an emulator's next CPU, may need it */
    if (!READ_ONCE(this_rq()->core.nready) || preempt_count())
        return;
    irq_disable();
    this_rq()->yield = true;
    schedule(false);
    if (unlikely(cpu_softwork()))
        sched_irq_exit();
    irq_enable();
}

void thread_yield(void)
{
    sched_may_sleep("thread_yield");
    thread_yield_hint();
}

void thread_exit(void)
{
    sched_may_sleep("thread_exit");
    ASSERT(!cpu_current()->mutexes);
    irq_disable();
    cpu_current()->state = THREAD_DEAD;
    schedule(false);
    __builtin_unreachable();
}

/* ---- Random preemption ---- */

unsigned torture_rate;

void torture_hit(void)
{
    struct rq *rq = this_rq();
    if (preempt_count() == 1 && rq && rq->started && rdtsc() * 0x9e3779b97f4a7c15ull >> 32 < (1ull << 32) / torture_rate) {
        rq->yield = true;
        softwork_set(SOFT_RESCHED);
    }
}

/* ---- Start ---- */

void sched_init_cpu(void)
{
    struct percpu *p = this_cpu();
    if (p->sched)
        return;
    struct rq *rq = kmalloc_aligned(sizeof *rq, 64);
    if (!rq)
        panic("no memory for the scheduler of CPU %u", p->cpu);
    *rq = (struct rq){ .cpu = p->cpu, .slice_end = ~0ull };
    rq_init(&rq->core);
    struct thread *t = &rq->idle_thread;
    snprintf(t->name, sizeof t->name, "idle/%u", p->cpu);
    t->cpu = p->cpu, t->on_cpu = true, t->kstack_top = p->kstack, t->fpu_cpu = FPU_NOWHERE;
    t->cpus.bits[p->cpu / 64] = BIT(p->cpu % 64);
    ent_init(&t->ent, 1, 0, false);
    rq->idle = rq->curr = t;
    p->current = t;
    p->sched = rq;
    timer_init_cpu();
    atomic_store(&sched_rqs[p->cpu], rq);
    work_init_cpu();
}

void sched_start_cpu(void)
{
    sched_init_cpu();
    struct rq *rq = this_rq();
    irq_disable();
    rq->curr_since = clock_ns();
    rq->started = true;
    softwork_set(SOFT_RESCHED);         /* what was queued before */
    sched_irq_exit();
    irq_enable();
    for (;;) {
        watchdog_touch();
        bool more = page_pool_refill_step();
        irq_disable();
        if (cpu_softwork())
            sched_irq_exit();
        else if (!more && !clockevent_overdue())
            irq_enable_halt();
        irq_enable();
    }
}
