/* Order, fairness, wake-up preference and caps of the scheduler's arithmetic, by simulating one CPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>
#include "kernel/sched/rq.h"

/* ---- Heap ---- */

struct item { struct pheap_node node; bool in; };

static uint64_t next_random(uint64_t *s)
{
    *s = *s * 6364136223846793005ull + 1442695040888963407ull;
    return *s >> 33;
}

static void heap_keeps_order(void **state)
{
    enum { N = 300, STEPS = 20000 };
    static struct item items[N];
    struct pheap h = { 0 };
    uint64_t seed = 7, base = ~0ull - 500;      /* keys wrap */
    for (int step = 0; step < STEPS; step++) {
        struct item *it = &items[next_random(&seed) % N];
        if (it->in)
            pheap_remove(&h, &it->node);
        else
            it->node.key = base + next_random(&seed) % 1000, pheap_insert(&h, &it->node);
        it->in = !it->in;
        if (step % 64)
            continue;
        struct pheap_node *first = pheap_first(&h);
        for (int i = 0; i < N; i++)
            assert_false(items[i].in && pheap_before(&items[i].node, first));
    }
    uint64_t last = 0;
    unsigned left = 0, popped = 0;
    for (int i = 0; i < N; i++)
        left += items[i].in;
    for (struct pheap_node *n; (n = pheap_pop(&h)); popped++) {
        assert_true(!popped || (int64_t)(n->key - last) >= 0);
        last = n->key;
    }
    assert_int_equal(popped, left);
}

/* ---- One simulated CPU: as sched.c does it, in steps of at most a slice ---- */

struct sim { struct rq_core rq; uint64_t now; };
struct task { struct sched_ent e; uint64_t ran; uint64_t burst, sleep; uint64_t left, wake_at, worst_wait; uint64_t spin /* gives way so soon; 0: never */; };

static void task_init(struct task *t, unsigned weight, unsigned cap, bool prefer)
{
    *t = (struct task){ .left = ~0ull };
    ent_init(&t->e, weight, cap, prefer);
}

static void wake_due(struct sim *s, struct task *t, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (!t[i].wake_at || t[i].wake_at > s->now)
            continue;
        t[i].wake_at = 0;
        t[i].left = t[i].burst;
        rq_place_woken(&s->rq, &t[i].e);
        rq_add(&s->rq, &t[i].e, s->now, true);
    }
}

static uint64_t next_wake(struct task *t, unsigned n)
{
    uint64_t next = ~0ull;
    for (unsigned i = 0; i < n; i++)
        if (t[i].wake_at)
            next = MIN(next, t[i].wake_at);
    return next;
}

static bool preempted(struct sim *s, struct task *curr)
{
    struct sched_ent *first = rq_first(&s->rq);
    return first && rq_preempts(first, &curr->e);
}

static uint64_t earliest(uint64_t a, uint64_t b) { return MIN(a, b); }

static void run(struct sim *s, struct task *t, unsigned n, uint64_t until)
{
    struct sched_ent *turn = NULL;      /* it was given way to, and nothing makes the CPU look again before its slice ends */
    while (s->now < until) {
        wake_due(s, t, n);
        rq_unthrottle(&s->rq, s->now);
        while (rq_throttle_first(&s->rq, s->now))
            ;
        struct sched_ent *e = turn ? turn : rq_first(&s->rq);
        if (!e) {
            s->now = earliest(until, earliest(next_wake(t, n), rq_next_unthrottle(&s->rq)));
            continue;
        }
        struct task *c = container_of(e, struct task, e);
        rq_del(&s->rq, e);
        c->worst_wait = MAX(c->worst_wait, s->now - e->wait_start);
        uint64_t slice = s->now + (c->spin ? c->spin : RQ_SLICE_NS);
        while (s->now < slice && c->left && !ent_exhausted(e, s->now) && (turn || !preempted(s, c))) {
            uint64_t to = earliest(slice, earliest(next_wake(t, n), rq_next_unthrottle(&s->rq)));
            uint64_t d = earliest(to > s->now ? to - s->now : 1, earliest(c->left, ent_budget_left(e)));
            s->now += d, c->ran += d, c->left -= MIN(d, c->left);
            ent_ran(e, d, s->now);
            rq_advance(&s->rq, e);
            rq_unthrottle(&s->rq, s->now);
            wake_due(s, t, n);
        }
        turn = c->spin && s->now >= slice ? rq_first(&s->rq) : NULL;
        if (turn)
            rq_yield(&s->rq, e);
        if (c->left)
            rq_add(&s->rq, e, s->now, true);
        else
            c->wake_at = s->now + c->sleep;
    }
}

static void start(struct sim *s, struct task *t, unsigned n)
{
    *s = (struct sim){ .now = 1000 };
    rq_init(&s->rq);
    for (unsigned i = 0; i < n; i++)
        rq_add(&s->rq, &t[i].e, s->now, true);
}

static void near(uint64_t got, double want, double percent)
{
    if (got < want * (1 - percent / 100) || got > want * (1 + percent / 100))
        fail_msg("got %llu, want %.0f within %.1f %%", (unsigned long long)got, want, percent);
}

#define SECOND 1000000000ull

static void weights_share_the_cpu(void **state)
{
    struct sim s;
    struct task t[4];
    unsigned weight[] = { 100, 300, 1, 10000 }, sum = 10401;
    for (int i = 0; i < 4; i++)
        task_init(&t[i], weight[i], 0, i == 0);
    start(&s, t, 4);
    run(&s, t, 4, 100 * SECOND);
    for (int i = 0; i < 4; i++)
        near(t[i].ran, 1e11 * weight[i] / sum, i == 2 ? 30 : 1);       /* weight 1 gets two slices and a half */
}

static void weight_change_takes_effect(void **state)
{
    struct sim s;
    struct task t[2];
    task_init(&t[0], 0, 0, false), task_init(&t[1], 0, 0, false);
    start(&s, t, 2);
    run(&s, t, 2, 5 * SECOND);
    near(t[0].ran, 2.5e9, 1);
    rq_del(&s.rq, &t[1].e);
    ent_share(&t[1].e, 300, 0);
    rq_add(&s.rq, &t[1].e, s.now, true);
    t[0].ran = t[1].ran = 0;
    run(&s, t, 2, 15 * SECOND);
    near(t[1].ran, 7.5e9, 1);
}

static void caps_hold(void **state)
{
    struct sim s;
    struct task t[3];
    task_init(&t[0], 100, 25, false), task_init(&t[1], 10000, 1, false), task_init(&t[2], 100, 100, false);
    start(&s, t, 2);
    run(&s, t, 2, 50 * SECOND);         /* the CPU is idle otherwise */
    near(t[0].ran, 12.5e9, 1);
    near(t[1].ran, 0.5e9, 1);
    rq_place_woken(&s.rq, &t[2].e);
    rq_add(&s.rq, &t[2].e, s.now, true);
    t[0].ran = t[1].ran = 0;
    run(&s, t, 3, 100 * SECOND);        /* the rest goes to the third, which is not limited */
    near(t[0].ran, 12.5e9, 1);
    near(t[2].ran, 37e9, 1);
}

/* Three share a budget: half a CPU for all of them, whichever run; a fourth has the rest.  More than one CPU's worth does not limit them here. */
static void a_shared_cap_holds_for_all(void **state)
{
    struct sim s;
    struct task t[4];
    struct sched_cap cap;
    sched_cap_init(&cap, 50);
    for (unsigned i = 0; i < 4; i++) {
        task_init(&t[i], 100, 0, false);
        if (i < 3)
            ent_share_cap(&t[i].e, &cap);
    }
    start(&s, t, 1);
    run(&s, t, 1, 10 * SECOND);
    near(t[0].ran, 5e9, 1);                     /* alone it has all of the budget */
    for (unsigned i = 1; i < 4; i++) {
        rq_place_woken(&s.rq, &t[i].e);
        rq_add(&s.rq, &t[i].e, s.now, true);
    }
    t[0].ran = 0;
    run(&s, t, 4, 30 * SECOND);
    near(t[0].ran + t[1].ran + t[2].ran, 10e9, 1);
    near(t[3].ran, 10e9, 1);
    sched_cap_init(&cap, 150);
    for (unsigned i = 0; i < 4; i++)
        t[i].ran = 0;
    run(&s, t, 4, 50 * SECOND);
    near(t[0].ran, 5e9, 3);
    near(t[3].ran, 5e9, 3);
}

static void cap_is_not_saved_up(void **state)
{
    struct sim s;
    struct task t[1];
    task_init(&t[0], 100, 10, false);
    t[0].left = t[0].burst = 1000000, t[0].sleep = 10 * SECOND;
    start(&s, t, 1);
    run(&s, t, 1, 60 * SECOND);
    t[0].sleep = 0, t[0].burst = ~0ull;
    if (t[0].wake_at)
        t[0].wake_at = s.now;
    t[0].ran = 0;
    run(&s, t, 1, 60 * SECOND + 4 * RQ_CAP_PERIOD);
    assert_true(t[0].ran <= 5 * RQ_CAP_PERIOD / 10);
}

/* A management thread among spinning vCPUs: answers at once, yet cannot take more than its share when it spins itself. */
static void sleepers_wake_first_but_bounded(void **state)
{
    struct sim s;
    struct task t[9];
    for (int i = 0; i < 8; i++)
        task_init(&t[i], 100, 0, false);
    task_init(&t[8], 100, 0, true);
    t[8].left = t[8].burst = 200000, t[8].sleep = 20000000;
    start(&s, t, 9);
    run(&s, t, 9, SECOND);
    t[8].worst_wait = 0;
    run(&s, t, 9, 20 * SECOND);
    assert_true(t[8].worst_wait < 10000);
    t[8].burst = ~0ull;
    run(&s, t, 9, 21 * SECOND);
    t[8].ran = 0;
    run(&s, t, 9, 30 * SECOND);
    near(t[8].ran, 1e9, 3);
    for (int i = 0; i < 8; i++)
        assert_in_range(t[i].worst_wait, 7 * RQ_SLICE_NS, 20 * RQ_SLICE_NS);
}

/* vCPUs that sleep and wake all the time must not starve the ones that spin. */
static void wakers_do_not_starve_spinners(void **state)
{
    struct sim s;
    struct task t[5];
    for (int i = 0; i < 5; i++)
        task_init(&t[i], 100, 0, i == 3);
    for (int i = 0; i < 4; i++)
        t[i].left = t[i].burst = 900000, t[i].sleep = 100000;
    start(&s, t, 5);
    run(&s, t, 5, 20 * SECOND);
    near(t[4].ran, 4e9, 10);
}

enum { SPIN = 20000 };

/* Four that spin on one CPU, set apart by a slice and a credit: each has its turn before any has its next. */
static void spinners_take_turns(void **state)
{
    struct sim s;
    struct task t[4];
    for (unsigned i = 0; i < 4; i++) {
        task_init(&t[i], 100, 0, false);
        t[i].spin = SPIN, t[i].e.vtime = (i == 3) * RQ_SLICE_NS + (i == 2) * RQ_CREDIT_NS;
    }
    start(&s, t, 4);
    run(&s, t, 4, SECOND);
    for (unsigned i = 0; i < 4; i++) {
        near(t[i].ran, 0.25e9, 1);
        assert_in_range(t[i].worst_wait, 1, 3 * SPIN);
    }
}

/* One works while three wait for it by spinning: nearly all of the CPU is its. */
static void spinners_let_one_work(void **state)
{
    struct sim s;
    struct task t[4];
    for (unsigned i = 0; i < 4; i++) {
        task_init(&t[i], 100, 0, false);
        t[i].spin = i ? SPIN : 0;
    }
    start(&s, t, 4);
    run(&s, t, 4, SECOND);
    near(t[0].ran, 0.99e9, 4);
}

/* What it did not want while it spun it does not get later at once; then it has its share. */
static void spinning_saves_nothing_up(void **state)
{
    struct sim s;
    struct task t[2];
    task_init(&t[0], 100, 0, false), task_init(&t[1], 100, 0, false);
    t[0].spin = SPIN;
    start(&s, t, 2);
    run(&s, t, 2, 10 * SECOND);
    t[0].spin = t[0].ran = t[1].ran = t[1].worst_wait = 0;
    run(&s, t, 2, 12 * SECOND);
    assert_true(t[1].worst_wait < 4 * RQ_SLICE_NS);
    near(t[0].ran, 1e9, 1);
}

/* Some spin and some do not, and weights differ: who spins now and then still has his share. */
static void shares_hold_among_spinners(void **state)
{
    struct sim s;
    struct task t[4];
    for (unsigned i = 0; i < 4; i++) {
        task_init(&t[i], i < 2 ? 300 : 100, 0, false);
        t[i].spin = SPIN;
    }
    start(&s, t, 4);
    run(&s, t, 4, 20 * SECOND);
    near(t[0].ran + t[1].ran, 15e9, 5);
}

static void moving_keeps_the_difference(void **state)
{
    struct rq_core a, b;
    struct sched_ent e;
    rq_init(&a), rq_init(&b);
    a.min_vtime = 1000000, b.min_vtime = ~0ull - 5;
    ent_init(&e, 100, 0, false);
    e.vtime = 1000042;
    rq_leave(&a, &e);
    rq_join(&b, &e);
    assert_int_equal(e.vtime - b.min_vtime, 42);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heap_keeps_order), cmocka_unit_test(weights_share_the_cpu), cmocka_unit_test(weight_change_takes_effect),
        cmocka_unit_test(caps_hold), cmocka_unit_test(a_shared_cap_holds_for_all), cmocka_unit_test(cap_is_not_saved_up), cmocka_unit_test(sleepers_wake_first_but_bounded),
        cmocka_unit_test(wakers_do_not_starve_spinners), cmocka_unit_test(spinners_take_turns),
        cmocka_unit_test(spinners_let_one_work), cmocka_unit_test(spinning_saves_nothing_up), cmocka_unit_test(shares_hold_among_spinners),
        cmocka_unit_test(moving_keeps_the_difference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
