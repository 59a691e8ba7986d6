#include "kernel/sched/rq.h"

void sched_cap_init(struct sched_cap *c, unsigned percent)
{
    *c = (struct sched_cap){ .budget = RQ_CAP_PERIOD / 100 * percent };
}

void sched_cap_set(struct sched_cap *c, unsigned percent)
{
    unsigned long flags = spin_lock_irqsave(&c->lock);
    c->budget = RQ_CAP_PERIOD / 100 * percent;
    c->used = 0;
    spin_unlock_irqrestore(&c->lock, flags);
}

void ent_share(struct sched_ent *e, unsigned weight, unsigned cap)
{
    e->weight = weight ? MIN(weight, (unsigned)SHARE_MAX) : SHARE_DEFAULT;
    e->inverse = ((uint32_t)SHARE_DEFAULT << 20) / e->weight;
    sched_cap_init(&e->own_cap, cap);
    if (e->shared_cap)
        e->cap = e->shared_cap->budget ? e->shared_cap : NULL;
    else
        e->cap = cap && cap < 100 ? &e->own_cap : NULL;
}

void ent_share_cap(struct sched_ent *e, struct sched_cap *cap)
{
    e->shared_cap = cap;
    ent_share(e, e->weight, 0);
}

void ent_init(struct sched_ent *e, unsigned weight, unsigned cap, bool prefer)
{
    *e = (struct sched_ent){ .prefer = prefer };
    list_init(&e->wait);
    ent_share(e, weight, cap);
}

/* The cap's lock is held. */
static void refill(struct sched_cap *c, uint64_t now)
{
    if (now < c->period + RQ_CAP_PERIOD)                /* another CPU may have looked at the clock later and come here earlier */
        return;
    uint64_t periods = (now - c->period) / RQ_CAP_PERIOD, returned = periods * c->budget;
    c->used = c->used > returned ? c->used - returned : 0;
    c->period += periods * RQ_CAP_PERIOD;
}

static void cap_ran(struct sched_cap *c, uint64_t ns, uint64_t now)
{
    spin_lock(&c->lock);
    c->used += ns;
    refill(c, now);
    spin_unlock(&c->lock);
}

void ent_ran(struct sched_ent *e, uint64_t ns, uint64_t now)
{
    e->vtime += (uint64_t)((unsigned __int128)ns * e->inverse >> 20);
    if (unlikely(e->cap))
        cap_ran(e->cap, ns, now);
}

/* Is the budget used up, and if so, when does it return? */
static bool exhausted(struct sched_cap *c, uint64_t now, uint64_t *until)
{
    if (likely(!c))
        return false;
    spin_lock(&c->lock);
    refill(c, now);
    bool yes = c->budget && c->used >= c->budget;       /* 0: the cap was taken away, and the thread has not been told yet */
    *until = yes ? c->period + c->used / c->budget * RQ_CAP_PERIOD : 0;
    spin_unlock(&c->lock);
    return yes;
}

bool ent_exhausted(struct sched_ent *e, uint64_t now)
{
    uint64_t until;
    return exhausted(e->cap, now, &until);
}

uint64_t ent_budget_left(const struct sched_ent *e)
{
    uint64_t budget = e->cap ? READ_ONCE(e->cap->budget) : 0, used = budget ? READ_ONCE(e->cap->used) : 0;
    return !budget ? ~0ull : used < budget ? budget - used : 0;
}

void rq_init(struct rq_core *rq)
{
    *rq = (struct rq_core){ 0 };
    list_init(&rq->waiting);
}

static void add_ready(struct rq_core *rq, struct sched_ent *e)
{
    e->place = ENT_READY;
    e->node.key = e->vtime + e->setback;
    e->setback = 0;
    pheap_insert(&rq->ready, &e->node);
    list_append(&rq->waiting, &e->wait);
    rq->nready++;
    rq->load += e->weight;
}

static void add_throttled(struct rq_core *rq, struct sched_ent *e, uint64_t until)
{
    e->place = ENT_THROTTLED;
    e->node.key = until;
    pheap_insert(&rq->throttled, &e->node);
}

void rq_add(struct rq_core *rq, struct sched_ent *e, uint64_t now, bool may_throttle)
{
    uint64_t until;
    e->wait_start = now;
    if (may_throttle && exhausted(e->cap, now, &until))
        add_throttled(rq, e, until);
    else
        add_ready(rq, e);
}

void rq_del(struct rq_core *rq, struct sched_ent *e)
{
    if (e->place == ENT_READY) {
        pheap_remove(&rq->ready, &e->node);
        list_del(&e->wait);
        rq->nready--;
        rq->load -= e->weight;
    } else if (e->place == ENT_THROTTLED) {
        pheap_remove(&rq->throttled, &e->node);
    }
    e->place = ENT_OFF;
}

void rq_unthrottle(struct rq_core *rq, uint64_t now)
{
    struct pheap_node *n;
    while ((n = pheap_first(&rq->throttled)) && n->key <= now) {
        struct sched_ent *e = container_of(n, struct sched_ent, node);
        uint64_t until;
        pheap_pop(&rq->throttled);
        if (exhausted(e->cap, now, &until)) {           /* others who share it were faster; `until` is past now */
            add_throttled(rq, e, until);
            continue;
        }
        rq_place_woken(rq, e);
        add_ready(rq, e);
    }
}

bool rq_throttle_first(struct rq_core *rq, uint64_t now)
{
    struct sched_ent *e = rq_first(rq);
    uint64_t until;
    if (!e || !exhausted(e->cap, now, &until))
        return false;
    rq_del(rq, e);
    add_throttled(rq, e, until);
    return true;
}

struct sched_ent *rq_first(const struct rq_core *rq)
{
    struct pheap_node *n = pheap_first(&rq->ready);
    return n ? container_of(n, struct sched_ent, node) : NULL;
}

uint64_t rq_next_unthrottle(const struct rq_core *rq)
{
    return rq->throttled.root ? rq->throttled.root->key : ~0ull;
}

static bool before(uint64_t a, uint64_t b) { return (int64_t)(a - b) < 0; }

void rq_advance(struct rq_core *rq, const struct sched_ent *curr)
{
    const struct sched_ent *first = rq_first(rq);
    if (!curr || (first && before(first->vtime, curr->vtime)))
        curr = first;
    if (curr && before(rq->min_vtime, curr->vtime))
        rq->min_vtime = curr->vtime;
}

void rq_place_woken(const struct rq_core *rq, struct sched_ent *e)
{
    uint64_t floor = rq->min_vtime - (e->prefer ? RQ_CREDIT_PREFER_NS : RQ_CREDIT_NS);
    if (before(e->vtime, floor))
        e->vtime = floor;
}

/*
 * By virtual time alone the one that yields would soon be first again: of several that spin, the two that lag most gave way to each other until they had caught
 * up, while the one they wait for waited.  So it goes behind its peers, whose weights are equal, and behind the next in line, whatever that is; of the others
 * behind those only that are no further ahead than wake-ups and slices set threads apart: one of little weight may be a long way off.
 *
 * What it lags more than that it gives up, as one that sleeps does.  Else the one that works would have to wait for the share of those that wait for it, and who
 * spins for an hour beside another VM's thread could keep that waiting for as long.
 */
void rq_yield(const struct rq_core *rq, struct sched_ent *curr)
{
    const struct sched_ent *e, *first = rq_first(rq);
    uint64_t reach = RQ_CREDIT_NS + (RQ_SLICE_NS * curr->inverse >> 20), far = curr->vtime + reach, behind = curr->vtime;
    list_for_each(e, &rq->waiting, wait)
        if (!before(e->node.key, behind) && (e == first || e->weight == curr->weight || !before(far, e->node.key)))
            behind = e->node.key + 1;
    if (before(far, behind))
        curr->vtime = behind - reach;
    curr->setback = behind - curr->vtime;
}

bool rq_preempts(const struct sched_ent *e, const struct sched_ent *curr)
{
    uint64_t gran = e->prefer && !curr->prefer ? 0 : RQ_WAKE_GRAN_NS;
    return before(e->node.key + gran, curr->vtime);
}
