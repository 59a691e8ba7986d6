/* Run queues: where threads wait, how they get from one to another, which CPU a woken one is given, how load is evened out. */
#include "kernel/sched/thread.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/smp.h"

#define BALANCE_NS      10000000ull     /* an overloaded CPU looks for a better place for its oldest waiter */
#define ROTATE_NS       50000000ull     /* and moves one even if that only shifts the excess, so that everybody gets his share of it */
#define HOT_NS          200000ull       /* an idle CPU leaves threads that wait for less to the CPU whose caches they warmed */

struct rq *sched_rqs[MAX_CPUS];
static uint64_t idle_cpus[MAX_CPUS / 64];       /* CPUs that run their idle thread; a waker that picks one takes its bit */

/* ---- Which CPU ---- */

static bool take_idle(unsigned cpu)
{
    uint64_t bit = BIT(cpu % 64);
    return (atomic_load_relaxed(&idle_cpus[cpu / 64]) & bit) && (atomic_and(&idle_cpus[cpu / 64], ~bit) & bit);
}

void runq_set_idle(unsigned cpu, bool idle)
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
        if (rq && may_run_on(t, c) && atomic_load_relaxed(&rq->load) < load)
            best = c, load = atomic_load_relaxed(&rq->load);
    }
    return best;
}

/* Where a woken thread goes: where its caches are warm if that CPU is idle, else any idle one, else back home to wait its turn. */
unsigned runq_choose_cpu(const struct thread *t)
{
    unsigned home = t->cpu;
    if (!may_run_on(t, home)) {
        int cpu = take_any_idle(t, home);
        return cpu >= 0 ? (unsigned)cpu : least_loaded(t);
    }
    if (take_idle(home))
        return home;
    int cpu = take_any_idle(t, home);
    return cpu >= 0 ? (unsigned)cpu : home;
}

/* ---- Queues.  The lock of rq is held and interrupts are off in all of these. ---- */

struct rq *runq_lock_of(struct thread *t)
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

void runq_publish_load(struct rq *rq)
{
    atomic_store_relaxed(&rq->load, rq->core.load + (rq->curr != rq->idle ? rq->curr->ent.weight : 0));
}

/* A CPU with one thread takes no tick, so its figures may be seconds old: this comes before anything that compares virtual times. */
void runq_account(struct rq *rq, uint64_t now)
{
    struct thread *t = rq->curr;
    uint64_t ran = now > rq->curr_since ? now - rq->curr_since : 0;     /* another CPU may have looked at the clock earlier and come here later */
    rq->curr_since += ran;
    if (t != rq->idle) {
        atomic_store_relaxed(&t->run_ns, t->run_ns + ran);
        ent_ran(&t->ent, ran, now);
    }
    rq_advance(&rq->core, t != rq->idle ? &t->ent : NULL);
}

void runq_kick(struct rq *rq)
{
    if (rq->cpu == cpu_index())
        softwork_set(SOFT_RESCHED);
    else
        smp_resched(rq->cpu);
}

void runq_put(struct rq *rq, struct thread *t, uint64_t now)
{
    rq_add(&rq->core, &t->ent, now, !t->mutexes);
    runq_publish_load(rq);
}

void runq_kick_for(struct rq *rq, const struct thread *t)
{
    if (t->ent.place == ENT_THROTTLED || rq->curr == rq->idle || rq->slice_end == ~0ull || rq_preempts(&t->ent, &rq->curr->ent))
        runq_kick(rq);
}

void runq_put_and_kick(struct rq *rq, struct thread *t, uint64_t now)
{
    runq_put(rq, t, now);
    runq_kick_for(rq, t);
}

void runq_take(struct rq *rq, struct thread *t)
{
    rq_del(&rq->core, &t->ent);
    runq_publish_load(rq);
}

void runq_depart(struct rq *from, struct thread *t, unsigned to)
{
    rq_leave(&from->core, &t->ent);
    t->state = THREAD_WAKING;
    t->moved |= to != from->cpu;
    atomic_store(&t->cpu, to);
}

void runq_arrive(struct thread *t, bool woken)
{
    struct rq *rq = rq_of(t->cpu);
    raw_lock(&rq->lock);
    uint64_t now = clock_ns();
    runq_account(rq, now);
    rq_join(&rq->core, &t->ent);
    if (woken)
        rq_place_woken(&rq->core, &t->ent);
    t->state = THREAD_RUNNING;
    runq_put_and_kick(rq, t, now);
    raw_unlock(&rq->lock);
}

void sched_add_new(struct thread *t)
{
    preempt_disable();
    unsigned long flags = irq_save();
    int cpu = take_any_idle(t, t->cpu);
    atomic_store(&t->cpu, cpu >= 0 ? (unsigned)cpu : least_loaded(t));
    t->ent.vtime = t->ent.prefer ? -2 * RQ_WAKE_GRAN_NS : 0;   /* relative: management starts at once, too */
    runq_arrive(t, false);
    irq_restore(flags);
    preempt_enable();
}

/* ---- Balancing ---- */

/* Moves a waiting thread from one locked queue to another locked one. */
static void migrate(struct rq *from, struct rq *to, struct thread *t, uint64_t now)
{
    uint64_t since = t->ent.wait_start;
    runq_account(from, now);
    runq_account(to, now);
    runq_take(from, t);
    rq_leave(&from->core, &t->ent);
    atomic_store(&t->cpu, to->cpu);
    t->moved = true;
    rq_join(&to->core, &t->ent);
    runq_put(to, t, now);
    t->ent.wait_start = since;
}

void runq_steal(struct rq *rq, uint64_t now)
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
        if (may_run_on(t, rq->cpu)) {
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

/* Among equals the next in line, so that an excess which cannot be placed goes round all CPUs. */
static struct rq *push_target(struct rq *rq, const struct thread *t, uint64_t now)
{
    struct rq *best = NULL;
    uint64_t load = ~0ull;
    for (unsigned i = 1; i < percpu_count; i++) {
        unsigned c = (rq->cpu + i) % percpu_count;
        struct rq *other = atomic_load(&sched_rqs[c]);
        if (other && may_run_on(t, c) && atomic_load_relaxed(&other->load) < load)
            best = other, load = atomic_load_relaxed(&other->load);
    }
    if (!best || rq->load < load + t->ent.weight)
        return NULL;
    if (rq->load > load + t->ent.weight)
        return best;
    return now >= rq->rotate_at ? best : NULL;
}

void runq_push(struct rq *rq, uint64_t now)
{
    struct sched_ent *e, *tmp;
    unsigned tries = 4;
    rq->balance_at = now + BALANCE_NS;
    list_for_each_safe(e, tmp, &rq->core.waiting, wait) {
        struct thread *t = thread_of(e);
        struct rq *to = push_target(rq, t, now);
        if (to && raw_trylock(&to->lock)) {
            migrate(rq, to, t, now);
            runq_kick_for(to, t);
            rq->pushes++;
            rq->rotate_at = to->rotate_at = now + ROTATE_NS;
            raw_unlock(&to->lock);
            return;
        }
        if (!--tries)
            return;
    }
}
