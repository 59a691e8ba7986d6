#include "tests/host/test.h"
#include "tests/host/port_host.h"
#include "tests/host/wires.h"
#include "guestdev/hpet.h"
#include "kernel/hw/hpet.h"

static struct vmclock vmc;
static struct hpet *h;
static struct wire irq0, irq8, gsi;

static uint64_t rd(unsigned off) { return io_read(hpet_io, h, off, 8); }
static void wr(unsigned off, uint64_t v) { io_write(hpet_io, h, off, 8, v); }
static void ticks(uint64_t n) { host_clock_advance(n * HPET_TICK_NS); }

static int setup(void **state)
{
    host_clock_manual(true);
    vmclock_init(&vmc);
    vmclock_start(&vmc);
    irq0 = irq8 = gsi = (struct wire){ 0 };
    struct hpet_wires w = { wire_line(&irq0, 0), wire_line(&irq8, 8), wire_line(&gsi, 0), 0x00f00000 };
    h = hpet_create(&vmc, &w);
    return 0;
}
static int teardown(void **state)
{
    hpet_ops.destroy(h);
    assert_true(list_empty(&vmc.timers));
    return 0;
}

static void capabilities_and_counter(void **state)
{
    uint64_t id = rd(HPET_ID);
    assert_int_equal(id >> 32, 10000000);
    assert_int_equal((uint32_t)id, HPET_BLOCK_ID_VALUE);
    assert_true(id >> 32 <= HPET_MAX_PERIOD);
    assert_int_equal((id & HPET_ID_TIMERS) >> 8, HPET_TIMERS - 1);
    ticks(100);
    assert_int_equal(rd(HPET_COUNTER), 0);
    wr(HPET_COUNTER, 0x1fffffff0);
    wr(HPET_CONFIG, HPET_CFG_ENABLE);
    ticks(32);
    assert_int_equal(rd(HPET_COUNTER), 0x200000010);
    assert_int_equal(io_read(hpet_io, h, HPET_COUNTER, 4), 0x10);
    assert_int_equal(io_read(hpet_io, h, HPET_COUNTER + 4, 4), 2);
    wr(HPET_COUNTER, 0);                        /* running: no effect */
    assert_int_equal(rd(HPET_COUNTER), 0x200000010);
    wr(HPET_CONFIG, 0);
    ticks(1000);
    assert_int_equal(rd(HPET_COUNTER), 0x200000010);
    wr(HPET_CONFIG, HPET_CFG_ENABLE);
    ticks(1);
    assert_int_equal(rd(HPET_COUNTER), 0x200000011);
    assert_int_equal(rd(HPET_TIMER(2)) >> 32, 0x00f00000);
    assert_int_equal(rd(HPET_TIMER(3)), 0);
}

static void one_shot_edge(void **state)
{
    wr(HPET_CONFIG, HPET_CFG_ENABLE);
    wr(HPET_TIMER(1), HPET_TN_ENABLE | 21 << HPET_TN_ROUTE_SHIFT);
    wr(HPET_TIMER_CMP(1), 1000);
    ticks(999);
    assert_int_equal(gsi.rises, 0);
    ticks(1);
    assert_int_equal(gsi.rises, 1);
    assert_int_equal(gsi.pin, 21);
    assert_int_equal(gsi.falls, 1);
    assert_int_equal(rd(HPET_STATUS), 0);
    ticks(100000);
    assert_int_equal(gsi.rises, 1);
    wr(HPET_TIMER(1), HPET_TN_ENABLE | 3 << HPET_TN_ROUTE_SHIFT);       /* not offered: the route stays */
    assert_int_equal(rd(HPET_TIMER(1)) & HPET_TN_ROUTE, 21 << HPET_TN_ROUTE_SHIFT);
    wr(HPET_TIMER_CMP(1), rd(HPET_COUNTER) - 5);                        /* just passed */
    ticks(2);
    assert_int_equal(gsi.rises, 2);
    wr(HPET_TIMER_CMP(1), rd(HPET_COUNTER) + 5);
    wr(HPET_TIMER(1), 21 << HPET_TN_ROUTE_SHIFT);                       /* disabled */
    ticks(100);
    assert_int_equal(gsi.rises, 2);
}

static void level(void **state)
{
    wr(HPET_CONFIG, HPET_CFG_ENABLE);
    wr(HPET_TIMER(0), HPET_TN_ENABLE | HPET_TN_LEVEL | 20 << HPET_TN_ROUTE_SHIFT);
    wr(HPET_TIMER_CMP(0), 10);
    ticks(10);
    assert_true(gsi.level);
    assert_int_equal(rd(HPET_STATUS), 1);
    wr(HPET_STATUS, 6);
    assert_true(gsi.level);
    wr(HPET_STATUS, 1);
    assert_false(gsi.level);
    wr(HPET_TIMER_CMP(0), 20);
    ticks(10);
    assert_true(gsi.level);
    wr(HPET_TIMER(0), HPET_TN_LEVEL | 20 << HPET_TN_ROUTE_SHIFT);
    assert_false(gsi.level);
}

/* A busy host: while the interrupt is on its way several periods go by. */
static unsigned slow;
static void slow_wire(void *arg, unsigned pin, bool level)
{
    wire_set(arg, pin, level);
    if (level && slow) {
        slow--;
        host_clock_slip(35000 * HPET_TICK_NS);
    }
}

static void late(void **state)
{
    struct hpet_wires w = { wire_line(&irq0, 0), wire_line(&irq8, 8), { slow_wire, &gsi, 0 }, 0x00f00000 };
    hpet_ops.destroy(h);
    h = hpet_create(&vmc, &w);
    wr(HPET_CONFIG, HPET_CFG_ENABLE);
    wr(HPET_TIMER(0), HPET_TN_ENABLE | HPET_TN_PERIODIC | HPET_TN_VAL_SET | HPET_TN_32BIT | 22 << HPET_TN_ROUTE_SHIFT);
    wr(HPET_TIMER_CMP(0), 10000);
    wr(HPET_TIMER_CMP(0), 10000);
    slow = 3;
    for (unsigned n = 0; n < 100; n++)
        ticks(10000);
    assert_int_equal(slow, 0);
    assert_true(gsi.rises >= 90);               /* it goes on, with the missed ones merged */
}

/* HPET 1.0a, "Periodic Mode": as an operating system programs it. */
static void periodic(void **state)
{
    wr(HPET_CONFIG, HPET_CFG_ENABLE);
    wr(HPET_TIMER(0), HPET_TN_ENABLE | HPET_TN_PERIODIC | HPET_TN_VAL_SET | 22 << HPET_TN_ROUTE_SHIFT);
    wr(HPET_TIMER_CMP(0), 5000);                /* first match */
    wr(HPET_TIMER_CMP(0), 10007);               /* period */
    assert_int_equal(rd(HPET_TIMER_CMP(0)), 5000);
    ticks(5000);
    assert_int_equal(gsi.rises, 1);
    assert_int_equal(rd(HPET_TIMER_CMP(0)), 15007);
    for (unsigned i = 0; i < 1000; i++) {
        ticks(10006);
        assert_int_equal(gsi.rises, 1 + i);
        ticks(1);
        assert_int_equal(gsi.rises, 2 + i);
    }
    wr(HPET_TIMER(0), HPET_TN_ENABLE | HPET_TN_PERIODIC | HPET_TN_VAL_SET | 22 << HPET_TN_ROUTE_SHIFT);
    wr(HPET_TIMER_CMP(0), 1), wr(HPET_TIMER_CMP(0), 1);         /* 100 MHz: merged */
    gsi.rises = 0;
    ticks(100000);
    assert_in_range(gsi.rises, 5, 60);
}

/* A host so busy that the next match is past before it is armed. */
static void periodic_held_up(void **state)
{
    enum { PERIOD = 100000 };
    wr(HPET_CONFIG, HPET_CFG_ENABLE);
    wr(HPET_TIMER(0), HPET_TN_ENABLE | HPET_TN_PERIODIC | HPET_TN_VAL_SET | 22 << HPET_TN_ROUTE_SHIFT);
    wr(HPET_TIMER_CMP(0), 5 * PERIOD), wr(HPET_TIMER_CMP(0), PERIOD);
    for (unsigned held = 0; held < 3 * PERIOD; held += PERIOD / 3) {
        ticks(5 * PERIOD);
        host_clock_drift(held * HPET_TICK_NS);
        ticks(PERIOD);
        host_clock_drift(0);
        ticks(5 * PERIOD);
        unsigned rises = gsi.rises;
        ticks(5 * PERIOD);
        assert_int_equal(gsi.rises - rises, 5);
    }
}

static void timer_in_32_bits(void **state)
{
    wr(HPET_COUNTER, 0xfffffff0);
    wr(HPET_CONFIG, HPET_CFG_ENABLE);
    wr(HPET_TIMER(2), HPET_TN_ENABLE | HPET_TN_32BIT | 20 << HPET_TN_ROUTE_SHIFT);
    io_write(hpet_io, h, HPET_TIMER_CMP(2), 4, 0x10);
    ticks(0x1f);
    assert_int_equal(gsi.rises, 0);
    ticks(1);
    assert_int_equal(gsi.rises, 1);
    ticks(0xffffffff);
    assert_int_equal(gsi.rises, 1);
    ticks(1);                                   /* one-shot comes again when the low half wraps */
    assert_int_equal(gsi.rises, 2);
}

static void legacy_replacement(void **state)
{
    hpet_isa_in(h, 0, true);
    hpet_isa_in(h, 8, true), hpet_isa_in(h, 8, false);
    assert_true(irq0.level);
    assert_int_equal(irq8.rises, 1);
    wr(HPET_CONFIG, HPET_CFG_ENABLE | HPET_CFG_LEGACY);
    assert_false(irq0.level);
    hpet_isa_in(h, 0, false), hpet_isa_in(h, 0, true);
    assert_int_equal(irq0.rises, 1);
    wr(HPET_TIMER(0), HPET_TN_ENABLE);
    wr(HPET_TIMER(1), HPET_TN_ENABLE);
    wr(HPET_TIMER_CMP(0), 100), wr(HPET_TIMER_CMP(1), 200);
    ticks(300);
    assert_int_equal(irq0.rises, 2);
    assert_int_equal(irq8.rises, 2);
    assert_int_equal(gsi.calls, 0);
    wr(HPET_CONFIG, HPET_CFG_ENABLE);
    assert_true(irq0.level);
}

static void snapshot(void **state)
{
    uint8_t a[2048], b[2048];
    struct snap s, r;
    wr(HPET_CONFIG, HPET_CFG_ENABLE);
    wr(HPET_TIMER(0), HPET_TN_ENABLE | HPET_TN_PERIODIC | HPET_TN_VAL_SET | 22 << HPET_TN_ROUTE_SHIFT);
    wr(HPET_TIMER_CMP(0), 5000), wr(HPET_TIMER_CMP(0), 10000);
    ticks(7000);
    snap_init_save(&s, a, sizeof a);
    assert_int_equal(hpet_ops.snap(h, &s), 0);
    hpet_ops.reset(h, GDEV_RESET);
    assert_int_equal(rd(HPET_COUNTER), 0);
    snap_init_load(&r, a, s.pos);
    assert_int_equal(hpet_ops.snap(h, &r), 0);
    snap_init_save(&r, b, sizeof b);
    assert_int_equal(hpet_ops.snap(h, &r), 0);
    assert_memory_equal(a, b, s.pos);
    gsi.rises = 0;
    ticks(7999);
    assert_int_equal(gsi.rises, 0);
    ticks(1);
    assert_int_equal(gsi.rises, 1);
}

static void thousand(void **state)
{
    unsigned long before = port_alloc_count();
    struct hpet_wires w = { .routes = 1 };
    for (unsigned i = 0; i < 1000; i++)
        hpet_ops.destroy(hpet_create(&vmc, &w));
    assert_int_equal(port_alloc_count(), before);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(capabilities_and_counter), T(one_shot_edge), T(level), T(periodic), T(late), T(periodic_held_up), T(timer_in_32_bits), T(legacy_replacement), T(snapshot), T(thousand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
