/* Life of a thread: create, join, list; its attributes and figures. */
#include <string.h>
#include "kernel/sched/fpu.h"
#include "kernel/sched/thread.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/vmap.h"

static struct spinlock list_lock;
static struct list threads = LIST_INIT(threads);

static bool alloc_parts(struct thread *t, const struct thread_attr *a)
{
    t->kstack = kstack_alloc();
    if (!t->kstack)
        return false;
    t->fpu = a->fpu;
    if (!t->fpu && a->cls != THREAD_KERNEL) {
        t->fpu = t->own_fpu = kmalloc_aligned(sched_fpu_size(), 64);
        if (!t->fpu)
            return false;
        fpu_area_init(t->fpu);
    }
    return true;
}

static void free_thread(struct thread *t)
{
    if (t->kstack)
        kstack_free(t->kstack);
    kfree(t->own_fpu);
    kfree(t);
}

/* The first switch to it pops six zero registers and returns to thread_entry_stub. */
static void first_frame(struct thread *t)
{
    t->kstack_top = (uint64_t)t->kstack + KSTACK_SIZE;
    uint64_t *sp = (uint64_t *)t->kstack_top;
    *--sp = 0;                          /* end of backtraces */
    *--sp = 0;                          /* keeps thread_entry_stub's stack 16-byte aligned */
    *--sp = (uint64_t)thread_entry_stub;
    for (int i = 0; i < 6; i++)
        *--sp = 0;
    t->rsp = (uint64_t)sp;
}

struct thread *thread_create(const struct thread_attr *a, void (*fn)(void *), void *arg)
{
    struct thread *t = a->cpus && !sched_any_online(a->cpus) ? NULL : kmalloc_aligned(sizeof *t, 64);
    if (!t)
        return NULL;
    *t = (struct thread){
        .state = THREAD_WAKING, .cpu = port_cpu(), .cls = a->cls, .hooks = a->hooks, .fpu_cpu = FPU_NOWHERE, .moved = true, .fn = fn, .arg = arg,
    };
    if (!alloc_parts(t, a)) {
        free_thread(t);
        return NULL;
    }
    strncpy(t->name, a->name ? a->name : "?", sizeof t->name - 1);
    if (a->cpus)
        t->cpus = *a->cpus;
    else
        memset(&t->cpus, 0xff, sizeof t->cpus);
    ent_init(&t->ent, a->weight, a->cap, a->cls != THREAD_VCPU);
    if (a->shared_cap)
        ent_share_cap(&t->ent, a->shared_cap);
    event_init(&t->done);
    first_frame(t);
    spin_lock(&list_lock);
    list_append(&threads, &t->all);
    spin_unlock(&list_lock);
    sched_add_new(t);
    return t;
}

struct thread *thread_start(const char *name, void (*fn)(void *), void *arg)
{
    return thread_create(&(struct thread_attr){ .name = name, .cls = THREAD_KERNEL }, fn, arg);
}

void thread_join(struct thread *t)
{
    event_wait(&t->done);
    spin_lock(&list_lock);
    list_del(&t->all);
    spin_unlock(&list_lock);
    free_thread(t);
}

static char state_letter(const struct thread *t)
{
    if (t->on_cpu)
        return 'R';
    if (t->state == THREAD_DEAD)
        return 'Z';
    if (t->state == THREAD_BLOCKED)
        return 'S';
    return t->ent.place == ENT_THROTTLED ? 'T' : 'W';
}

void thread_each(void (*fn)(void *arg, const struct thread_info *), void *arg)
{
    struct thread *t;
    spin_lock(&list_lock);
    list_for_each(t, &threads, all) {
        struct thread_info info = {
            .name = t->name, .cls = t->cls, .cpu = thread_cpu(t), .state = state_letter(t),
            .run_ns = thread_run_ns(t), .steal_ns = thread_steal_ns(t),
        };
        fn(arg, &info);
    }
    spin_unlock(&list_lock);
}

/* ---- Attributes and figures ---- */

int thread_set_share(struct thread *t, unsigned weight, unsigned cap)
{
    if (weight > SHARE_MAX)
        return -22;
    preempt_disable();
    unsigned long flags = irq_save();
    struct rq *rq = runq_lock_of(t);
    enum ent_place place = t->ent.place;
    rq_del(&rq->core, &t->ent);
    ent_share(&t->ent, weight, cap);
    if (place != ENT_OFF)
        runq_put(rq, t, clock_ns());
    runq_publish_load(rq);
    runq_kick(rq);
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
    while (rq = runq_lock_of(t), t->state == THREAD_WAKING) {     /* between two queues for a moment */
        raw_unlock(&rq->lock);
        cpu_relax();
    }
    t->cpus = *cpus;
    if (!may_run_on(t, t->cpu) && t->on_cpu) {
        runq_kick(rq);
    } else if (!may_run_on(t, t->cpu) && t->ent.place != ENT_OFF) {
        runq_account(rq, clock_ns());
        runq_take(rq, t);
        runq_depart(rq, t, runq_choose_cpu(t));
        raw_unlock(&rq->lock);
        runq_arrive(t, false);
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
    struct rq *rq = runq_lock_of(w);
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
    struct rq *rq = runq_lock_of(w);
    uint64_t ns = t->steal_ns;
    uint64_t now = clock_ns();
    if (t->ent.place != ENT_OFF && now > t->ent.wait_start)
        ns += now - t->ent.wait_start;
    raw_unlock(&rq->lock);
    irq_restore(flags);
    return ns;
}

uint64_t thread_own_steal_ns(void) { return atomic_load_relaxed(&cpu_current()->steal_ns); }

unsigned thread_cpu(const struct thread *t) { return atomic_load_relaxed(&t->cpu); }
const char *thread_name(const struct thread *t) { return t->name; }
