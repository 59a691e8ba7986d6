/* The hosted port keeps the contracts of kernel/lib/port.h.  The thread part is also meant for TSan. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>
#include "tests/host/port_host.h"

#define THREADS 4
#define ROUNDS 20000

static struct spinlock spin;
static struct mutex mutex;
static struct cond cond;
static unsigned long shared_spin, shared_mutex;

static void hammer(void *arg)
{
    for (int i = 0; i < ROUNDS; i++) {
        spin_lock(&spin);
        shared_spin++;
        spin_unlock(&spin);
        mutex_lock(&mutex);
        shared_mutex++;
        mutex_unlock(&mutex);
    }
}

static void locks_exclude(void **state)
{
    struct thread *t[THREADS];
    mutex_init(&mutex);
    shared_spin = shared_mutex = 0;
    for (int i = 0; i < THREADS; i++)
        assert_non_null(t[i] = thread_start("hammer", hammer, NULL));
    for (int i = 0; i < THREADS; i++)
        thread_join(t[i]);
    assert_int_equal(shared_spin, THREADS * ROUNDS);
    assert_int_equal(shared_mutex, THREADS * ROUNDS);
}

/* A bounded buffer through one mutex and two conditions. */
static struct cond space;
static unsigned buffered;
static unsigned long consumed;

static void producer(void *arg)
{
    for (int i = 0; i < ROUNDS; i++) {
        mutex_lock(&mutex);
        while (buffered == 3)
            cond_wait(&space, &mutex);
        buffered++;
        cond_signal(&cond);
        mutex_unlock(&mutex);
    }
}

static void consumer(void *arg)
{
    for (int i = 0; i < ROUNDS; i++) {
        mutex_lock(&mutex);
        while (!buffered)
            assert_true(cond_wait_until(&cond, &mutex, clock_ns() + 60000000000ull));
        buffered--, consumed++;
        cond_signal(&space);
        mutex_unlock(&mutex);
    }
}

static void cond_loses_no_signal(void **state)
{
    struct thread *t[4];
    mutex_init(&mutex), cond_init(&cond), cond_init(&space);
    consumed = 0;
    for (int i = 0; i < 4; i++)
        t[i] = thread_start("pc", i < 2 ? producer : consumer, NULL);
    for (int i = 0; i < 4; i++)
        thread_join(t[i]);
    assert_int_equal(consumed, 2 * ROUNDS);
    assert_int_equal(buffered, 0);
    mutex_lock(&mutex);
    assert_false(cond_wait_until(&cond, &mutex, clock_ns() + 1000000));
    mutex_unlock(&mutex);
}

static struct event ping, pong;

static void echo(void *arg)
{
    for (int i = 0; i < ROUNDS; i++) {
        event_wait(&ping);
        event_post(&pong);
    }
}

static void events_are_remembered(void **state)
{
    event_init(&ping), event_init(&pong);
    event_post(&ping);
    event_post(&ping);
    event_wait(&ping);
    assert_false(event_wait_until(&ping, clock_ns() + 1000000));
    struct thread *t = thread_start("echo", echo, NULL);
    for (int i = 0; i < ROUNDS; i++) {
        event_post(&ping);
        event_wait(&pong);
    }
    thread_join(t);
}

/* ---- Timers ---- */

struct probe { struct timer t; uint64_t at; unsigned fired; uint64_t again; struct event done; };

static void fire(struct timer *t)
{
    struct probe *p = container_of(t, struct probe, t);
    p->at = clock_ns();
    p->fired++;
    if (p->again)
        timer_arm(t, p->at + p->again);
    event_post(&p->done);
}

static void probe_init(struct probe *p)
{
    memset(p, 0, sizeof *p);
    timer_init(&p->t, fire);
    event_init(&p->done);
}

static void manual_clock_is_deterministic(void **state)
{
    struct probe a, b;
    host_clock_manual(true);
    uint64_t t0 = clock_ns();
    assert_int_equal(t0, HOST_CLOCK_START);
    probe_init(&a), probe_init(&b);
    timer_arm(&a.t, t0 + 100);
    timer_arm(&b.t, t0 + 50);
    assert_int_equal(host_clock_next(), t0 + 50);
    host_clock_advance(49);
    assert_int_equal(a.fired + b.fired, 0);
    host_clock_advance(1);
    assert_int_equal(b.fired, 1);
    assert_int_equal(b.at, t0 + 50);
    timer_arm(&b.t, 0);                         /* past: not inline, at the time of the call */
    assert_int_equal(b.fired, 1);
    host_clock_advance(0);
    assert_int_equal(b.fired, 2);
    assert_int_equal(b.at, t0 + 50);
    a.again = 10;
    host_clock_advance(1000);
    assert_int_equal(a.fired, 96);              /* 100, 110 .. 1050 */
    assert_int_equal(clock_ns(), t0 + 1050);
    assert_true(timer_cancel(&a.t));
    assert_false(timer_cancel(&a.t));
    assert_int_equal(host_clock_next(), UINT64_MAX);
    host_clock_manual(false);
}

static void real_timers_race_cancel(void **state)
{
    struct probe p;
    probe_init(&p);
    timer_arm(&p.t, clock_ns() + 2000000);
    event_wait(&p.done);
    assert_int_equal(p.fired, 1);
    for (int i = 0; i < 2000; i++) {
        timer_arm(&p.t, clock_ns() + i * 37 % 20000);
        if (i % 3 == 0)
            timer_cancel(&p.t);
        timer_cancel_sync(&p.t);
        unsigned n = p.fired;                   /* no race: TSan agrees */
        assert_int_equal(n, p.fired);
    }
}

/* ---- Work, memory, panic ---- */

struct job { struct work w; unsigned runs; struct event go; bool hold; };

static void job_run(struct work *w)
{
    struct job *j = container_of(w, struct job, w);
    if (j->hold)
        event_wait(&j->go);
    j->runs++;
}

static void work_runs_once_per_queueing(void **state)
{
    struct job j = { .hold = true };
    work_init(&j.w, job_run);
    event_init(&j.go);
    assert_true(work_queue(&j.w));
    event_post(&j.go);
    work_flush(&j.w);
    assert_int_equal(j.runs, 1);
    j.hold = false;
    for (int i = 0; i < 1000; i++)
        work_queue(&j.w);
    work_flush(&j.w);
    assert_true(j.runs >= 2 && j.runs <= 1001);
}

static void allocation_can_fail(void **state)
{
    port_fail_alloc_after(1);
    void *p = kzalloc(10), *q = kmalloc(10);
    assert_non_null(p);
    assert_null(q);
    assert_null(kmalloc_aligned(64, 64));
    port_fail_alloc_after(-1);
    q = kmalloc_aligned(100, 4096);
    assert_true(IS_ALIGNED((uintptr_t)q, 4096));
    kfree(p), kfree(q), kfree(NULL);
}

static jmp_buf caught;
static void catch_panic(const char *msg) { longjmp(caught, 1); }

static void sleeping_in_atomic_panics(void **state)
{
    struct spinlock l = SPINLOCK_INIT;
    host_on_panic(catch_panic);
    spin_lock(&l);
    if (!setjmp(caught)) {
        event_wait(&ping);
        fail_msg("slept under a spinlock");
    }
    spin_unlock(&l);
    host_on_panic(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(locks_exclude), cmocka_unit_test(cond_loses_no_signal), cmocka_unit_test(events_are_remembered),
        cmocka_unit_test(manual_clock_is_deterministic), cmocka_unit_test(real_timers_race_cancel),
        cmocka_unit_test(work_runs_once_per_queueing), cmocka_unit_test(allocation_can_fail),
        cmocka_unit_test(sleeping_in_atomic_panics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
