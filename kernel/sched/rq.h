/*
 * Arithmetic of the scheduler: who runs next on one CPU.  Pure (H): no clock, no CPU, no lock but that of a shared cap; the caller holds the run queue's lock and says what time it is.
 *
 * Every entity has a virtual time that advances while it runs, the slower the larger its weight; the smallest runs next.  One that slept comes
 * back at most a credit before the queue's virtual time: that is its wake-up preference, and it bounds how long it can keep others waiting.
 * One that yields loses its place for one turn; its virtual time stays, unless it falls further behind than a sleeper may.
 * A cap is a budget of CPU time per RQ_CAP_PERIOD; overdraft is carried over, so that the average is exact.
 */
#pragma once
#include "kernel/lib/list.h"
#include "kernel/lib/pheap.h"
#include "kernel/sched/sched.h"

enum { SHARE_DEFAULT = 100, SHARE_MAX = 10000 };
#define RQ_SLICE_NS         4000000ull          /* between peers */
#define RQ_CREDIT_NS        3000000ull          /* of a vCPU that slept */
#define RQ_CREDIT_PREFER_NS 8000000ull          /* of a management thread that slept */
#define RQ_WAKE_GRAN_NS     1000000ull          /* a waking peer preempts only when it is this far behind */
#define RQ_CAP_PERIOD       100000000ull

enum ent_place { ENT_OFF, ENT_READY, ENT_THROTTLED };

struct sched_ent {
    struct pheap_node node;             /* READY: by virtual time and setback; THROTTLED: by the time its budget returns */
    struct list wait;                   /* READY: in order of arrival, for balancing */
    uint64_t vtime;                     /* ns at weight 100; absolute on a queue, see rq_leave/rq_join */
    uint64_t setback;                   /* its next place is so far behind its virtual time: rq_yield() */
    uint64_t wait_start;                /* READY, THROTTLED: since when */
    struct sched_cap *cap;              /* its own or a shared one; NULL: no cap.  ns per period; used since the period that began at `period` */
    struct sched_cap own_cap, *shared_cap;
    uint32_t weight, inverse;           /* inverse: 2^20 * 100 / weight */
    uint8_t place;
    bool prefer;                        /* management: wakes before spinning vCPUs */
};

struct rq_core {
    struct pheap ready, throttled;
    struct list waiting;                /* READY entities, oldest first */
    uint64_t min_vtime;                 /* never goes back */
    uint64_t load;                      /* sum of weights of READY entities */
    unsigned nready;
};

void ent_init(struct sched_ent *, unsigned weight, unsigned cap, bool prefer);
void ent_share(struct sched_ent *, unsigned weight, unsigned cap);     /* not READY */
void ent_share_cap(struct sched_ent *, struct sched_cap *);             /* not READY */
void ent_ran(struct sched_ent *, uint64_t ns, uint64_t now);
bool ent_exhausted(struct sched_ent *, uint64_t now);           /* the budget is used up */
uint64_t ent_budget_left(const struct sched_ent *);             /* ns, after ent_exhausted() of the same moment; ~0: no cap */

void rq_init(struct rq_core *);
/* To READY, or, if it may be throttled and its budget is used up, to THROTTLED. */
void rq_add(struct rq_core *, struct sched_ent *, uint64_t now, bool may_throttle);
void rq_del(struct rq_core *, struct sched_ent *);
/* Throttled entities whose budget has returned become READY. */
void rq_unthrottle(struct rq_core *, uint64_t now);
/* The first READY one waits while others used up the budget it shares: to THROTTLED with it.  False: it may run. */
bool rq_throttle_first(struct rq_core *, uint64_t now);
struct sched_ent *rq_first(const struct rq_core *);             /* READY, whose turn it is */
uint64_t rq_next_unthrottle(const struct rq_core *);            /* ~0: none */
/* Virtual time of the queue, given what runs (NULL: idle). */
void rq_advance(struct rq_core *, const struct sched_ent *curr);
/* Before rq_add() of one that slept. */
void rq_place_woken(const struct rq_core *, struct sched_ent *);
/* What runs gives way: its next rq_add() puts it behind all READY ones of its weight, and others near. */
void rq_yield(const struct rq_core *, struct sched_ent *curr);
/* Must `curr` make room for `e`, which is READY, before its slice ends? */
bool rq_preempts(const struct sched_ent *e, const struct sched_ent *curr);
/* Virtual times of different queues do not compare: between these two an OFF entity carries the difference only. */
static inline void rq_leave(const struct rq_core *rq, struct sched_ent *e) { e->vtime -= rq->min_vtime; }
static inline void rq_join(const struct rq_core *rq, struct sched_ent *e) { e->vtime += rq->min_vtime; }
