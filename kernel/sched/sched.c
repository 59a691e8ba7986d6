/* The scheduler's core: switching, blocking, waking, placement and balancing.  State rules: kernel/sched/thread.h; arithmetic: rq.c. */
#include "kernel/mm/page.h"
#include "kernel/sched/thread.h"
#include "kernel/sched/torture.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/irq.h"
#include "kernel/x86/smp.h"
#include "kernel/x86/time.h"

#define BALANCE_NS      10000000ull     /* an overloaded CPU looks for a better place for its oldest waiter */
#define ROTATE_NS       50000000ull     /* and moves one even if that only shifts the excess, so that everybody gets his share of it */
#define HOT_NS          200000ull       /* an idle CPU leaves threads that wait for less to the CPU whose caches they warmed */
#define OVERRUN_NS      1000000ull      /* looks again this often at an exhausted thread that holds a mutex */

_Static_assert(offsetof(struct percpu, preempt_count) == 8 && offsetof(struct percpu, softwork) == 12, "port_inline.h");
_Static_assert(offsetof(struct percpu, cpu) == 24, "port_inline.h");

struct rq *sched_rqs[MAX_CPUS];
static uint64_t idle_cpus[MAX_CPUS / 64];       /* CPUs that run their idle thread; a waker that picks one takes its bit */

static struct thread *thread_of(struct sched_ent *e) { return e ? container_of(e, struct thread, ent) : NULL; }
static bool allowed(const struct thread *t, unsigned cpu) { return cpuset_has(&t->cpus, cpu); }
static bool is_running(const struct thread *t) { return t->state == THREAD_RUNNING || t->state == THREAD_BLOCKING; }

struct thread *thread_self(void) { return cpu_current(); }
bool sched_need_resched(void) { return cpu_softwork() != 0; }

void sched_may_sleep(const char *what)
{
    if (unlikely(preempt_count() || !irqs_enabled() || cpu_current() == this_rq()->idle))
        panic("%s where sleeping is not allowed (preempt_count %x, thread %s)", what, preempt_count(), cpu_current()->name);
}

/* ---- Which CPU ---- */

static bool take_idle(unsigned cpu)
{
    uint64_t bit = BIT(cpu % 64);
    return (atomic_load_relaxed(&idle_cpus[cpu / 64]) & bit) && (atomic_and(&idle_cpus[cpu / 64], ~bit) & bit);
}

static void set_idle(unsigned cpu, bool idle)
{
    uint64_t bit = BIT(cpu % 64);
    bool is = atomic_load_relaxed(&idle_cpus[cpu / 64]) & bit;
    if (idle && !is)
        atomic_or(&idle_cpus[cpu / 64], bit);
    else if (!idle && is)
        atomic_and(&idle_cpus[cpu / 64], ~bit);
}

static int take_any_idle(const struct thread *t, unsigned near)
{
    unsigned words = (percpu_count + 63) / 64;
    for (unsigned i = 0; i < words; i++) {
        unsigned w = (near / 64 + i) % words;
        uint64_t m = atomic_load_relaxed(&idle_cpus[w]) & t->cpus.bits[w];
        for (; m; m &= m - 1) {
            unsigned cpu = w * 64 + __builtin_ctzll(m);
            if (take_idle(cpu))
                return cpu;
        }
    }
    return -1;
}

static unsigned least_loaded(const struct thread *t)
{
    unsigned best = t->cpu;
    uint64_t load = ~0ull;
    for (unsigned c = 0; c < percpu_count; c++) {
        struct rq *rq = atomic_load(&sched_rqs[c]);
        if (rq && allowed(t, c) && atomic_load_relaxed(&rq->load) < load)
            best = c, load = atomic_load_relaxed(&rq->load);
    }
    return best;
}

/* Where a woken thread goes: where its caches are warm if that CPU is idle, else any idle one, else back home to wait its turn. */
static unsigned choose_cpu(const struct thread *t)
{
    unsigned home = t->cpu;
    if (!allowed(t, home)) {
        int cpu = take_any_idle(t, home);
        return cpu >= 0 ? (unsigned)cpu : least_loaded(t);
    }
    if (take_idle(home))
        return home;
    int cpu = take_any_idle(t, home);
    return cpu >= 0 ? (unsigned)cpu : home;
}

/* ---- Queues.  The lock of rq is held and interrupts are off in all of these. ---- */

static struct rq *lock_rq_of(struct thread *t)
{
    for (;;) {
        unsigned cpu = atomic_load(&t->cpu);
        struct rq *rq = rq_of(cpu);
        raw_lock(&rq->lock);
        if (t->cpu == cpu)
            return rq;
        raw_unlock(&rq->lock);
    }
}

static void publish_load(struct rq *rq)
{
    atomic_store_relaxed(&rq->load, rq->core.load + (rq->curr != rq->idle ? rq->curr->ent.weight : 0));
}

static void account(struct rq *rq, uint64_t now)
{
    struct thread *t = rq->curr;
    uint64_t ran = now - rq->curr_since;
    rq->curr_since = now;
    if (t != rq->idle) {
        atomic_store_relaxed(&t->run_ns, t->run_ns + ran);
        ent_ran(&t->ent, ran, now);
    }
    rq_advance(&rq->core, t != rq->idle ? &t->ent : NULL);
}

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
    if (t != rq->idle && t->ent.cap_budget) {
        uint64_t left = ent_budget_left(&t->ent);
        look = MIN(look, now + (left ? left : OVERRUN_NS));
    }
    timer_set_slice(look);
}

static void kick(struct rq *rq)
{
    if (rq->cpu == cpu_index())
        softwork_set(SOFT_RESCHED);
    else
        smp_resched(rq->cpu);
}

/* Puts a RUNNING thread that is on no queue and no CPU on this one. */
static void requeue(struct rq *rq, struct thread *t, uint64_t now)
{
    rq_add(&rq->core, &t->ent, now, !t->mutexes);
    publish_load(rq);
}

static void kick_for(struct rq *rq, const struct thread *t)
{
    if (t->ent.place == ENT_THROTTLED || rq->curr == rq->idle || rq->slice_end == ~0ull || rq_preempts(&t->ent, &rq->curr->ent))
        kick(rq);
}

static void enqueue(struct rq *rq, struct thread *t, uint64_t now)
{
    requeue(rq, t, now);
    kick_for(rq, t);
}

static void waited(struct thread *t, uint64_t now)
{
    atomic_store_relaxed(&t->steal_ns, t->steal_ns + (now - t->ent.wait_start));
}

static void dequeue(struct rq *rq, struct thread *t)
{
    rq_del(&rq->core, &t->ent);
    publish_load(rq);
}

/* Moves a waiting thread from one locked queue to another locked one. */
static void migrate(struct rq *from, struct rq *to, struct thread *t, uint64_t now)
{
    uint64_t since = t->ent.wait_start;
    dequeue(from, t);
    rq_leave(&from->core, &t->ent);
    atomic_store(&t->cpu, to->cpu);
    t->moved = true;
    rq_join(&to->core, &t->ent);
    requeue(to, t, now);
    t->ent.wait_start = since;
}

/*
 * Moving a thread that is on no queue and no CPU needs no two locks: under the lock of its old CPU it becomes WAKING and belongs to the new CPU,
 * so that nobody else touches it, and its virtual time carries the difference only.  Then arrive() without the old lock.
 */
static void depart(struct rq *from, struct thread *t, unsigned to)
{
    rq_leave(&from->core, &t->ent);
    t->state = THREAD_WAKING;
    t->moved |= to != from->cpu;
    atomic_store(&t->cpu, to);
}

static void arrive(struct thread *t, bool woken)
{
    struct rq *rq = rq_of(t->cpu);
    raw_lock(&rq->lock);
    rq_join(&rq->core, &t->ent);
    if (woken)
        rq_place_woken(&rq->core, &t->ent);
    t->state = THREAD_RUNNING;
    enqueue(rq, t, clock_ns());
    raw_unlock(&rq->lock);
}

/* ---- Balancing ---- */

/* An idle CPU takes the oldest cold waiter of the CPU that has most of them. */
static void steal(struct rq *rq, uint64_t now)
{
    struct rq *busiest = NULL;
    unsigned most = 0;
    for (unsigned c = 0; c < percpu_count; c++) {
        struct rq *other = atomic_load(&sched_rqs[c]);
        if (other && other != rq && READ_ONCE(other->core.nready) > most)
            busiest = other, most = READ_ONCE(other->core.nready);
    }
    if (!busiest || !raw_trylock(&busiest->lock))
        return;
    struct sched_ent *e;
    struct thread *found = NULL;
    list_for_each(e, &busiest->core.waiting, wait) {
        struct thread *t = thread_of(e);
        if (now - e->wait_start < HOT_NS)
            break;
        if (allowed(t, rq->cpu)) {
            found = t;
            break;
        }
    }
    if (found) {
        migrate(busiest, rq, found, now);
        rq->steals++;
    }
    raw_unlock(&busiest->lock);
}

static struct rq *push_target(struct rq *rq, const struct thread *t, uint64_t now)
{
    struct rq *best = NULL;
    uint64_t load = ~0ull;
    for (unsigned c = 0; c < percpu_count; c++) {
        struct rq *other = atomic_load(&sched_rqs[c]);
        if (other && other != rq && allowed(t, c) && atomic_load_relaxed(&other->load) < load)
            best = other, load = atomic_load_relaxed(&other->load);
    }
    if (!best || rq->load < load + t->ent.weight)
        return NULL;
    if (rq->load > load + t->ent.weight)
        return best;
    return now >= rq->rotate_at ? best : NULL;
}

static void push(struct rq *rq, uint64_t now)
{
    struct sched_ent *e, *tmp;
    unsigned tries = 4;
    rq->balance_at = now + BALANCE_NS;
    list_for_each_safe(e, tmp, &rq->core.waiting, wait) {
        struct thread *t = thread_of(e);
        struct rq *to = push_target(rq, t, now);
        if (to && raw_trylock(&to->lock)) {
            migrate(rq, to, t, now);
            kick_for(to, t);
            rq->pushes++;
            rq->rotate_at = to->rotate_at = now + ROTATE_NS;
            raw_unlock(&to->lock);
            return;
        }
        if (!--tries)
            return;
    }
}

/* ---- Switching ---- */

static bool may_go_on(struct rq *rq, struct thread *t, uint64_t now)
{
    return t != rq->idle && is_running(t) && allowed(t, rq->cpu) && (!ent_exhausted(&t->ent, now) || t->mutexes);
}

static struct thread *pick(struct rq *rq, struct thread *prev, uint64_t now)
{
    struct thread *first = thread_of(rq_first(&rq->core));
    bool yield = rq->yield;
    rq->yield = false;
    if (may_go_on(rq, prev, now)) {
        if (!first || (!yield && now < rq->slice_end && !rq_preempts(&first->ent, &prev->ent)))
            return prev;
        if (!yield && (int64_t)(prev->ent.vtime - first->ent.vtime) <= 0)
            return prev;
        return first;
    }
    if (!first) {
        steal(rq, now);
        first = thread_of(rq_first(&rq->core));
    }
    return first ? first : rq->idle;
}

static void take_cpu(struct rq *rq, struct thread *next, uint64_t now)
{
    if (next != rq->idle) {
        dequeue(rq, next);
        waited(next, now);
    }
    next->on_cpu = true;
    rq->curr = next;
    rq->switches++;
    publish_load(rq);
    set_idle(rq->cpu, next == rq->idle);
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
        away = !allowed(prev, rq->cpu);
        if (away)
            depart(rq, prev, choose_cpu(prev));
        else
            requeue(rq, prev, now);
    }
    set_slice(rq, now, true);
    raw_unlock(&rq->lock);
    if (dead)
        event_post(&prev->done);        /* its joiner may free it at once */
    if (away)
        arrive(prev, false);
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
    account(rq, now);
    if (voluntary && prev->state == THREAD_BLOCKING)
        prev->state = THREAD_BLOCKED;
    rq_unthrottle(&rq->core, now);
    if (rq->core.nready && (now >= rq->balance_at || now >= rq->slice_end))
        push(rq, now);
    struct thread *next = pick(rq, prev, now);
    if (next == prev) {
        set_slice(rq, now, false);
        publish_load(rq);
        set_idle(rq->cpu, next == rq->idle);
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
    struct rq *rq = lock_rq_of(t);
    if (t->state == THREAD_BLOCKING) {
        t->state = THREAD_RUNNING;
    } else if (t->state == THREAD_BLOCKED && t->on_cpu) {
        t->state = THREAD_RUNNING;      /* finish_switch() puts it back on its queue; then choose again */
        kick(rq);
    } else if (t->state == THREAD_BLOCKED) {
        unsigned cpu = choose_cpu(t);
        if (cpu == t->cpu) {
            t->state = THREAD_RUNNING;
            rq_place_woken(&rq->core, &t->ent);
            enqueue(rq, t, clock_ns());
        } else {
            depart(rq, t, cpu);
            raw_unlock(&rq->lock);
            arrive(t, true);
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

/* ---- Attributes and figures ---- */

int thread_set_share(struct thread *t, unsigned weight, unsigned cap)
{
    if (weight > SHARE_MAX)
        return -22;
    preempt_disable();
    unsigned long flags = irq_save();
    struct rq *rq = lock_rq_of(t);
    enum ent_place place = t->ent.place;
    rq_del(&rq->core, &t->ent);
    ent_share(&t->ent, weight, cap);
    if (place != ENT_OFF)
        requeue(rq, t, clock_ns());
    publish_load(rq);
    kick(rq);
    raw_unlock(&rq->lock);
    irq_restore(flags);
    preempt_enable();
    return 0;
}

bool sched_any_online(const struct cpuset *s)
{
    for (unsigned c = 0; c < percpu_count; c++)
        if (atomic_load(&sched_rqs[c]) && cpuset_has(s, c))
            return true;
    return false;
}

int thread_set_cpus(struct thread *t, const struct cpuset *cpus)
{
    if (!sched_any_online(cpus))
        return -22;
    preempt_disable();
    unsigned long flags = irq_save();
    struct rq *rq;
    while (rq = lock_rq_of(t), t->state == THREAD_WAKING) {     /* between two queues for a moment */
        raw_unlock(&rq->lock);
        cpu_relax();
    }
    t->cpus = *cpus;
    if (!allowed(t, t->cpu) && t->on_cpu) {
        kick(rq);
    } else if (!allowed(t, t->cpu) && t->ent.place != ENT_OFF) {
        dequeue(rq, t);
        depart(rq, t, choose_cpu(t));
        raw_unlock(&rq->lock);
        arrive(t, false);
        rq = NULL;
    }
    if (rq)
        raw_unlock(&rq->lock);
    irq_restore(flags);
    preempt_enable();
    return 0;
}

uint64_t thread_run_ns(const struct thread *t)
{
    struct thread *w = (struct thread *)t;
    unsigned long flags = irq_save();
    struct rq *rq = lock_rq_of(w);
    uint64_t ns = t->run_ns;
    if (rq->curr == t)
        ns += clock_ns() - rq->curr_since;
    raw_unlock(&rq->lock);
    irq_restore(flags);
    return ns;
}

uint64_t thread_steal_ns(const struct thread *t)
{
    struct thread *w = (struct thread *)t;
    unsigned long flags = irq_save();
    struct rq *rq = lock_rq_of(w);
    uint64_t ns = t->steal_ns;
    if (t->ent.place != ENT_OFF)
        ns += clock_ns() - t->ent.wait_start;
    raw_unlock(&rq->lock);
    irq_restore(flags);
    return ns;
}

unsigned thread_cpu(const struct thread *t) { return atomic_load_relaxed(&t->cpu); }
const char *thread_name(const struct thread *t) { return t->name; }

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

void sched_add_new(struct thread *t)
{
    preempt_disable();
    unsigned long flags = irq_save();
    int cpu = take_any_idle(t, t->cpu);
    atomic_store(&t->cpu, cpu >= 0 ? (unsigned)cpu : least_loaded(t));
    arrive(t, false);
    irq_restore(flags);
    preempt_enable();
}

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
        else if (!more)
            irq_enable_halt();
        irq_enable();
    }
}
