/*
 * Work queues: per CPU a list and up to WORKERS_MAX threads.  A worker about to run an item first makes sure that another one is there to take the next, so
 * that items which sleep do not hold up the rest until the bound is reached.  An item never runs twice at once: queued while it runs, its worker runs it
 * again.  Functions run without vector registers (THREAD_KERNEL).
 */
#include "kernel/sched/thread.h"

enum { WORKERS_MAX = 4 };

struct work_state { struct list link; uint32_t cpu, queued; };          /* cpu: whose pool has it or had it last */
_Static_assert(sizeof(struct work_state) <= sizeof(((struct work *)0)->opaque), "opaque size");
static struct work_state *state(struct work *w) { return (struct work_state *)w->opaque; }
static struct work *work_of(struct list *l) { return container_of((uint64_t *)l, struct work, opaque[0]); }

struct pool;
struct worker {
    struct pool *pool;
    struct work *current;               /* kept here: its function may free it */
    bool again;                         /* `current` was queued meanwhile */
    struct list idle;
    struct event go;
};

struct flusher { struct list link; struct event look; };

struct pool {
    struct spinlock lock;
    unsigned cpu, nworkers;
    struct list items, idle, flushers;
    struct work first_worker;           /* creates it, on the boot CPU's pool */
    struct worker workers[WORKERS_MAX];
};

static struct pool *pools[MAX_CPUS];
static void worker_main(void *);

static struct worker *runner_of(struct pool *p, const struct work *w)
{
    for (unsigned i = 0; i < p->nworkers; i++)
        if (p->workers[i].current == w)
            return &p->workers[i];
    return NULL;
}

static struct pool *lock_pool_of(struct work *w)
{
    for (;;) {
        uint32_t cpu = atomic_load(&state(w)->cpu);
        struct pool *p = pools[cpu];
        spin_lock(&p->lock);
        if (state(w)->cpu == cpu)
            return p;
        spin_unlock(&p->lock);
    }
}

void work_init(struct work *w, void (*fn)(struct work *))
{
    *w = (struct work){ .fn = fn };
    list_init(&state(w)->link);
    state(w)->cpu = port_cpu();
}

static void put_item(struct pool *p, struct work *w)
{
    spin_lock(&p->lock);
    list_append(&p->items, &state(w)->link);
    struct list *l = list_pop(&p->idle);
    if (l)
        event_post(&list_entry(l, struct worker, idle)->go);
    spin_unlock(&p->lock);
}

static bool queue_on(struct pool *to, struct work *w)
{
    struct pool *p = lock_pool_of(w);
    bool fresh = !state(w)->queued, moved = false;
    struct worker *runner = fresh ? runner_of(p, w) : NULL;
    if (fresh)
        state(w)->queued = 1;
    if (runner) {
        runner->again = true;
    } else if (fresh) {
        atomic_store(&state(w)->cpu, to->cpu);
        moved = true;
    }
    spin_unlock(&p->lock);
    if (moved)
        put_item(to, w);
    return fresh;
}

bool work_queue(struct work *w)
{
    preempt_disable();
    bool fresh = queue_on(this_cpu()->work, w);
    preempt_enable();
    return fresh;
}

void work_flush(struct work *w)
{
    struct flusher f;
    sched_may_sleep("work_flush");
    event_init(&f.look);
    for (;;) {
        struct pool *p = lock_pool_of(w);
        bool busy = state(w)->queued || runner_of(p, w);
        if (busy)
            list_append(&p->flushers, &f.link);
        spin_unlock(&p->lock);
        if (!busy)
            return;
        event_wait(&f.look);
    }
}

/* ---- Workers.  The pool's lock is held on entry and exit of these. ---- */

static void wake_flushers(struct pool *p)
{
    struct list *l;
    while ((l = list_pop(&p->flushers)))
        event_post(&list_entry(l, struct flusher, link)->look);
}

static bool add_worker(struct pool *p)
{
    struct worker *w = &p->workers[p->nworkers++];
    char name[24];
    w->pool = p;
    list_init(&w->idle);
    event_init(&w->go);
    snprintf(name, sizeof name, "work/%u.%u", p->cpu, p->nworkers - 1);
    spin_unlock(&p->lock);
    bool made = thread_start(name, worker_main, w);
    spin_lock(&p->lock);
    return made;
}

/* Without memory for a spare the item runs all the same; slots are given in order, so a failed one is not tried again. */
static void ensure_spare(struct pool *p)
{
    if (list_empty(&p->idle) && p->nworkers < WORKERS_MAX)
        add_worker(p);
}

static void run_item(struct worker *me, struct work *w)
{
    struct pool *p = me->pool;
    me->current = w;
    ensure_spare(p);                    /* drops the lock; until the item counts as queued no more, queueing it again is a no-op */
    do {
        me->again = false;
        state(w)->queued = 0;
        spin_unlock(&p->lock);
        w->fn(w);
        spin_lock(&p->lock);
    } while (me->again);
    me->current = NULL;
    wake_flushers(p);
}

static void worker_main(void *arg)
{
    struct worker *me = arg;
    struct pool *p = me->pool;
    spin_lock(&p->lock);
    for (;;) {
        struct list *l = list_pop(&p->items);
        if (l) {
            run_item(me, work_of(l));
            continue;
        }
        list_push(&p->idle, &me->idle);
        spin_unlock(&p->lock);
        event_wait(&me->go);
        spin_lock(&p->lock);
    }
}

static void start_pool(struct work *w)
{
    struct pool *p = container_of(w, struct pool, first_worker);
    spin_lock(&p->lock);
    if (!p->nworkers && !add_worker(p))
        panic("no memory for the workers of CPU %u", p->cpu);
    spin_unlock(&p->lock);
}

/* Another CPU's boot flow must not sleep, so a worker of the boot CPU makes its first one. */
void work_init_cpu(void)
{
    struct pool *p = kmalloc_aligned(sizeof *p, 64);
    if (!p)
        panic("no memory for the work queue of CPU %u", port_cpu());
    *p = (struct pool){ .cpu = port_cpu() };
    list_init(&p->items), list_init(&p->idle), list_init(&p->flushers);
    pools[p->cpu] = p;
    this_cpu()->work = p;
    work_init(&p->first_worker, start_pool);
    if (p->cpu == 0)
        start_pool(&p->first_worker);
    else
        queue_on(pools[0], &p->first_worker);
}
