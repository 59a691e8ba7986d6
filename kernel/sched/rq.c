#include "kernel/sched/rq.h"

void ent_share(struct sched_ent *e, unsigned weight, unsigned cap)
{
    e->weight = weight ? MIN(weight, (unsigned)SHARE_MAX) : SHARE_DEFAULT;
    e->inverse = ((uint32_t)SHARE_DEFAULT << 20) / e->weight;
    e->cap_budget = cap && cap < 100 ? RQ_CAP_PERIOD / 100 * cap : 0;
}

void ent_init(struct sched_ent *e, unsigned weight, unsigned cap, bool prefer)
{
    *e = (struct sched_ent){ .prefer = prefer };
    list_init(&e->wait);
    ent_share(e, weight, cap);
}

static void refill(struct sched_ent *e, uint64_t now)
{
    if (now - e->cap_period < RQ_CAP_PERIOD)
        return;
    uint64_t periods = (now - e->cap_period) / RQ_CAP_PERIOD;
    uint64_t returned = periods * e->cap_budget;
    e->cap_used = e->cap_used > returned ? e->cap_used - returned : 0;
    e->cap_period += periods * RQ_CAP_PERIOD;
}

void ent_ran(struct sched_ent *e, uint64_t ns, uint64_t now)
{
    e->vtime += (uint64_t)((unsigned __int128)ns * e->inverse >> 20);
    if (e->cap_budget) {
        e->cap_used += ns;
        refill(e, now);
    }
}

bool ent_exhausted(struct sched_ent *e, uint64_t now)
{
    if (!e->cap_budget)
        return false;
    refill(e, now);
    return e->cap_used >= e->cap_budget;
}

uint64_t ent_budget_left(const struct sched_ent *e)
{
    if (!e->cap_budget)
        return ~0ull;
    return e->cap_used < e->cap_budget ? e->cap_budget - e->cap_used : 0;
}

void rq_init(struct rq_core *rq)
{
    *rq = (struct rq_core){ 0 };
    list_init(&rq->waiting);
}

static void add_ready(struct rq_core *rq, struct sched_ent *e)
{
    e->place = ENT_READY;
    e->node.key = e->vtime;
    pheap_insert(&rq->ready, &e->node);
    list_append(&rq->waiting, &e->wait);
    rq->nready++;
    rq->load += e->weight;
}

void rq_add(struct rq_core *rq, struct sched_ent *e, uint64_t now, bool may_throttle)
{
    e->wait_start = now;
    if (!ent_exhausted(e, now) || !may_throttle) {
        add_ready(rq, e);
        return;
    }
    e->place = ENT_THROTTLED;
    e->node.key = e->cap_period + e->cap_used / e->cap_budget * RQ_CAP_PERIOD;
    pheap_insert(&rq->throttled, &e->node);
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
        pheap_pop(&rq->throttled);
        refill(e, now);
        rq_place_woken(rq, e);
        add_ready(rq, e);
    }
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

bool rq_preempts(const struct sched_ent *e, const struct sched_ent *curr)
{
    uint64_t gran = e->prefer && !curr->prefer ? 0 : RQ_WAKE_GRAN_NS;
    return before(e->vtime + gran, curr->vtime);
}
