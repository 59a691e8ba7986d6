#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "kernel/vmm/vmclock.h"
#include "tests/host/port_host.h"

struct bell { struct vtimer t; unsigned rings; uint64_t at, again; };

static void ring(void *arg)
{
    struct bell *b = arg;
    b->rings++;
    b->at = vmclock_now(b->t.clock);
    if (b->again)
        vtimer_arm(&b->t, b->at + b->again);
}

static int manual(void **state)
{
    host_clock_manual(true);
    return 0;
}

static void stands_still_until_started(void **state)
{
    struct vmclock c;
    vmclock_init(&c);
    host_clock_advance(500);
    assert_int_equal(vmclock_now(&c), 0);
    vmclock_start(&c);
    vmclock_start(&c);
    host_clock_advance(500);
    assert_int_equal(vmclock_now(&c), 500);
    vmclock_stop(&c);
    host_clock_advance(500);
    vmclock_stop(&c);
    assert_int_equal(vmclock_now(&c), 500);
    vmclock_set(&c, 9000);
    vmclock_start(&c);
    host_clock_advance(1);
    assert_int_equal(vmclock_now(&c), 9001);
}

static void timers_stop_and_start_with_it(void **state)
{
    struct vmclock c;
    struct bell b = { .rings = 0 };
    vmclock_init(&c);
    vtimer_init(&b.t, &c, ring, &b);
    vtimer_arm(&b.t, 1000);
    host_clock_advance(5000);
    assert_int_equal(b.rings, 0);
    vmclock_start(&c);
    host_clock_advance(999);
    vmclock_stop(&c);
    host_clock_advance(5000);
    assert_int_equal(b.rings, 0);
    vmclock_start(&c);
    host_clock_advance(1);
    assert_int_equal(b.rings, 1);
    assert_int_equal(b.at, 1000);
    host_clock_advance(5000);
    assert_int_equal(b.rings, 1);
    vtimer_destroy(&b.t);
    assert_true(list_empty(&c.timers));
}

static void rearm_cancel_past_and_never(void **state)
{
    struct vmclock c;
    struct bell b = { .again = 10 }, never = { .again = 0 };
    vmclock_init(&c);
    vmclock_set(&c, 1ull << 40);
    vtimer_init(&b.t, &c, ring, &b);
    vtimer_init(&never.t, &c, ring, &never);
    vtimer_arm(&never.t, UINT64_MAX);
    vmclock_start(&c);
    vtimer_arm(&b.t, 5);                /* long past */
    host_clock_advance(0);
    assert_int_equal(b.rings, 1);
    host_clock_advance(100);
    assert_int_equal(b.rings, 11);
    assert_true(vtimer_cancel(&b.t));
    assert_false(vtimer_cancel(&b.t));
    host_clock_advance(100);
    assert_int_equal(b.rings, 11);
    host_clock_advance(1ull << 50);
    assert_int_equal(never.rings, 0);
    assert_true(never.t.armed);
    vtimer_destroy(&never.t);
    vtimer_destroy(&b.t);
}

/* A clock set forward (snapshot loaded) makes deadlines come sooner, in VM time exactly. */
static void set_moves_deadlines(void **state)
{
    struct vmclock c;
    struct bell b = { .rings = 0 };
    vmclock_init(&c);
    vtimer_init(&b.t, &c, ring, &b);
    vtimer_arm(&b.t, 100000);
    vmclock_set(&c, 99990);
    vmclock_start(&c);
    host_clock_advance(9);
    assert_int_equal(b.rings, 0);
    host_clock_advance(1);
    assert_int_equal(b.rings, 1);
    vtimer_destroy(&b.t);
}

static struct vmclock shared;
static void pause_often(void *arg)
{
    for (int i = 0; i < 2000; i++) {
        vmclock_stop(&shared);
        uint64_t t = vmclock_now(&shared);
        if (vmclock_now(&shared) != t)
            panic("a stopped clock moved");
        vmclock_start(&shared);
        thread_yield();
    }
}

/* Real clock: pauses against arms.  Time never goes back and every expiry comes at its time. */
static void concurrent_pause(void **state)
{
    host_clock_manual(false);
    static struct bell b;
    vmclock_init(&shared);
    vtimer_init(&b.t, &shared, ring, &b);
    vmclock_start(&shared);
    struct thread *t = thread_start("pause", pause_often, NULL);
    uint64_t last = 0;
    for (int i = 0; i < 20000; i++) {
        uint64_t now = vmclock_now(&shared);
        assert_true(now >= last);
        last = now;
        vtimer_arm(&b.t, now + i % 3000);
    }
    thread_join(t);
    uint64_t deadline = vmclock_now(&shared) + 1000, limit = clock_ns() + 5000000000ull;
    vtimer_arm(&b.t, deadline);
    while (atomic_load(&b.at) < deadline && clock_ns() < limit)
        thread_yield();
    assert_true(b.at >= deadline);
    vtimer_destroy(&b.t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(stands_still_until_started, manual),
        cmocka_unit_test_setup(timers_stop_and_start_with_it, manual),
        cmocka_unit_test_setup(rearm_cancel_past_and_never, manual),
        cmocka_unit_test_setup(set_moves_deadlines, manual),
        cmocka_unit_test(concurrent_pause),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
