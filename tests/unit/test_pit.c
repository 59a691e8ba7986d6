#include "tests/host/test.h"
#include "tests/host/port_host.h"
#include "tests/host/wires.h"
#include "guestdev/pit.h"
#include "kernel/hw/i8254.h"

static struct vmclock vmc;
static struct pit *pit;
static struct wire irq;
static uint64_t at;             /* ticks since setup, exact */

static void wr(unsigned reg, uint8_t v) { io_write(pit_io, pit, reg, 1, v); }
static uint8_t rd(unsigned reg) { return io_read(pit_io, pit, reg, 1); }
static uint8_t portb(void) { return io_read(pit_port61_io, pit, 0, 1); }
static void gate2(bool on) { io_write(pit_port61_io, pit, 0, 1, on); }
static bool out2(void) { return portb() & PORT61_OUT2; }

static uint64_t tick_ns(uint64_t t) { return (t * 1000000000 + I8254_HZ - 1) / I8254_HZ; }
static void ticks(uint64_t n)
{
    at += n;
    host_clock_advance(tick_ns(at) - vmclock_now(&vmc));
}

static void set(unsigned c, unsigned mode, uint16_t count)
{
    wr(3, c << 6 | 0x30 | mode << 1);
    wr(c, count), wr(c, count >> 8);
}
static uint16_t latched(unsigned c)
{
    wr(3, c << 6);
    uint8_t lsb = rd(c);
    return lsb | rd(c) << 8;
}
static uint8_t status(unsigned c)
{
    wr(3, 0xe0 | 2 << c);
    return rd(c);
}

static int setup(void **state)
{
    host_clock_manual(true);
    vmclock_init(&vmc);
    vmclock_start(&vmc);
    irq = (struct wire){ 0 };
    at = 0;
    pit = pit_create(&vmc, wire_line(&irq, 0));
    irq.rises = irq.falls = 0;
    return 0;
}
static int teardown(void **state)
{
    pit_ops.destroy(pit);
    assert_true(list_empty(&vmc.timers));
    return 0;
}

static void mode0_interrupt_on_terminal_count(void **state)
{
    set(0, 0, 4);
    assert_false(irq.level);
    assert_int_equal(status(0), 0x70);          /* out low, null count until the load */
    ticks(1);
    assert_int_equal(latched(0), 4);
    assert_int_equal(status(0), 0x30);
    ticks(3);
    assert_int_equal(latched(0), 1);
    assert_int_equal(irq.rises, 0);
    ticks(1);                                   /* N + 1 ticks after the write */
    assert_int_equal(irq.rises, 1);
    assert_int_equal(latched(0), 0);
    assert_int_equal(status(0), 0xb0);
    ticks(2);
    assert_int_equal(latched(0), 0xfffe);       /* counts on */
    assert_true(irq.level);
    wr(0, 3);                                   /* first byte of a new count pulls OUT low at once */
    assert_int_equal(status(0) & 0x80, 0);
    wr(0, 0);
    ticks(4);
    assert_int_equal(irq.rises, 2);
}

static void mode0_gate(void **state)
{
    gate2(true);
    set(2, 0, 10);
    ticks(5);
    assert_int_equal(latched(2), 6);
    gate2(false);
    ticks(100);
    assert_int_equal(latched(2), 6);
    assert_false(out2());
    gate2(true);
    ticks(5);
    assert_false(out2());
    ticks(1);
    assert_true(out2());
}

static void mode1_one_shot(void **state)
{
    set(2, 1, 5);
    assert_true(out2());
    ticks(20);
    assert_true(out2());
    gate2(true);
    assert_true(out2());
    ticks(1);
    assert_false(out2());
    ticks(3);
    wr(2, 2), wr(2, 0);                         /* a new count does not disturb the running pulse */
    ticks(1);
    assert_false(out2());
    ticks(1);
    assert_true(out2());
    gate2(false), gate2(true);
    ticks(2);
    assert_false(out2());
    ticks(1);
    assert_true(out2());
    gate2(false), gate2(true);
    ticks(2);
    gate2(false), gate2(true);                  /* retriggered: the pulse gets longer */
    ticks(2);
    assert_false(out2());
    ticks(1);
    assert_true(out2());
}

static void mode2_rate_generator(void **state)
{
    set(0, 2, 1000);
    unsigned rises = irq.rises;
    ticks(1);
    assert_int_equal(latched(0), 1000);
    ticks(999);
    assert_int_equal(latched(0), 1);
    assert_int_equal(status(0) & 0x80, 0);      /* low for the last tick */
    assert_int_equal(irq.rises, rises);
    ticks(1);
    assert_int_equal(latched(0), 1000);
    assert_int_equal(irq.rises, rises + 1);
    /* 18.2 Hz for an hour: not one tick off. */
    set(0, 2, 0);
    rises = irq.rises;
    ticks(1);
    for (unsigned i = 0; i < 65543; i++)
        ticks(65536);
    assert_int_equal(irq.rises - rises, 65543);
    assert_int_equal(latched(0), 0);            /* 65536 */
    /* New count: from the next period. */
    set(0, 2, 1000);
    ticks(501);
    wr(0, 2000 & 255), wr(0, 2000 >> 8);
    assert_int_equal(status(0) & I8254_STATUS_NULL, I8254_STATUS_NULL);
    assert_int_equal(latched(0), 500);
    ticks(500);
    assert_int_equal(latched(0), 2000);
    assert_int_equal(status(0) & I8254_STATUS_NULL, 0);
}

static void mode2_gate(void **state)
{
    gate2(true);
    set(2, 2, 100);
    ticks(51);
    gate2(false);
    assert_true(out2());
    ticks(1000);
    assert_int_equal(latched(2), 50);
    gate2(true);
    ticks(1);
    assert_int_equal(latched(2), 100);          /* starts over */
}

static void mode3_square_wave(void **state)
{
    gate2(true);
    set(2, 3, 6);
    ticks(1);
    static const struct { bool out; uint16_t count; } even[] = { { 1, 6 }, { 1, 4 }, { 1, 2 }, { 0, 6 }, { 0, 4 }, { 0, 2 }, { 1, 6 } };
    for (unsigned i = 0; i < ARRAY_SIZE(even); i++, ticks(1)) {
        assert_int_equal(out2(), even[i].out);
        assert_int_equal(latched(2), even[i].count);
    }
    gate2(false), gate2(true);
    set(2, 3, 5);
    ticks(1);
    static const bool odd[] = { 1, 1, 1, 0, 0, 1, 1, 1, 0, 0 };
    for (unsigned i = 0; i < ARRAY_SIZE(odd); i++, ticks(1))
        assert_int_equal(out2(), odd[i]);
    /* Interrupts at the full rate, once a period. */
    set(0, 3, 11932);
    ticks(1);
    unsigned rises = irq.rises;
    ticks(11932 * 50);
    assert_int_equal(irq.rises - rises, 50);
}

static void mode4_and_5_strobe(void **state)
{
    gate2(true);
    set(2, 4, 3);
    ticks(3);
    assert_true(out2());
    ticks(1);                                   /* N + 1 after the write, for one tick */
    assert_false(out2());
    ticks(1);
    assert_true(out2());
    gate2(false);
    set(2, 5, 3);
    ticks(10);
    assert_true(out2());
    gate2(true);
    ticks(4);
    assert_false(out2());
    ticks(1);
    assert_true(out2());
    set(0, 4, 100);
    unsigned rises = irq.rises;
    ticks(1000);
    assert_int_equal(irq.rises - rises, 1);
    for (unsigned i = 1; i < 2000; i++) {       /* an event timer: new counts without a new control word, in time and too late */
        rises = irq.rises;
        wr(0, i), wr(0, i >> 8);
        ticks(i);
        assert_int_equal(irq.rises - rises, 0);
        ticks(2 + i % 5);
        assert_int_equal(irq.rises - rises, 1);
    }
    for (unsigned i = 15; i < 2000; i++) {      /* set anew while it counts */
        rises = irq.rises;
        wr(0, i), wr(0, i >> 8);
        ticks(i % 15);
    }
    ticks(5000);
    assert_int_equal(irq.rises - rises, 1);
}

static void bcd(void **state)
{
    wr(3, 0x31);
    wr(0, 0x34), wr(0, 0x12);
    ticks(1);
    assert_int_equal(latched(0), 0x1234);
    ticks(235);
    assert_int_equal(latched(0), 0x0999);
    ticks(1000);
    assert_int_equal(latched(0), 0x9999);
    wr(3, 0x35);
    wr(0, 0), wr(0, 0);
    ticks(1);
    assert_int_equal(latched(0), 0);
    ticks(1);
    assert_int_equal(latched(0), 0x9999);
}

static void latch_and_read_back(void **state)
{
    set(0, 2, 0x1234);
    ticks(1);
    wr(3, 0);
    ticks(0x100);
    wr(3, 0);                                   /* a second latch before the read is ignored */
    assert_int_equal(rd(0), 0x34);
    assert_int_equal(rd(0), 0x12);
    assert_int_equal(rd(0), 0x34);              /* live again: 1134h */
    assert_int_equal(rd(0), 0x11);
    wr(3, 0xc0 | 2);                            /* status and count: status comes first */
    assert_int_equal(rd(0), 0xb4);
    assert_int_equal(rd(0), 0x34);
    assert_int_equal(rd(0), 0x11);
    wr(3, 0x14), wr(0, 0x80);                   /* LSB only */
    ticks(1);
    assert_int_equal(rd(0), 0x80);
    assert_int_equal(rd(0), 0x80);
    wr(3, 0x24), wr(0, 0x02);                   /* MSB only */
    ticks(1);
    assert_int_equal(rd(0), 0x02);
    assert_int_equal(rd(3), 0xff);
}

static void port61(void **state)
{
    io_write(pit_port61_io, pit, 0, 1, 0xff);
    assert_int_equal(portb() & 0xcf, 0x0f);
    unsigned toggles = 0, last = portb() & PORT61_REFRESH;
    for (unsigned i = 0; i < 180; i++) {
        ticks(1);
        unsigned now = portb() & PORT61_REFRESH;
        toggles += now != last;
        last = now;
    }
    assert_int_equal(toggles, 10);              /* every 15.1 us */
}

static void too_fast_is_merged(void **state)
{
    set(0, 2, 2);
    unsigned rises = irq.rises;
    host_clock_advance(1000000);
    assert_in_range(irq.rises - rises, 10, 60);
}

static size_t save(uint8_t *buf, size_t cap)
{
    struct snap s;
    snap_init_save(&s, buf, cap);
    assert_int_equal(pit_ops.snap(pit, &s), 0);
    return s.pos;
}

static void snapshot(void **state)
{
    uint8_t a[4096], b[4096];
    struct snap s;
    set(0, 2, 10000), gate2(true), set(2, 3, 77);
    ticks(5001);
    wr(3, 0x80);
    size_t len = save(a, sizeof a);
    unsigned rises = irq.rises;
    pit_ops.reset(pit, GDEV_RESET);
    snap_init_load(&s, a, len);
    assert_int_equal(pit_ops.snap(pit, &s), 0);
    save(b, sizeof b);
    assert_memory_equal(a, b, len);
    assert_int_equal(latched(0), 5000);
    ticks(4999);
    assert_int_equal(irq.rises, rises);
    ticks(1);
    assert_int_equal(irq.rises, rises + 1);
    a[len / 3] ^= 0x40;
    snap_init_load(&s, a, len);
    pit_ops.snap(pit, &s);
}

static void thousand(void **state)
{
    unsigned long before = port_alloc_count();
    for (unsigned i = 0; i < 1000; i++)
        pit_ops.destroy(pit_create(&vmc, (struct irqline){ 0 }));
    assert_int_equal(port_alloc_count(), before);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(mode0_interrupt_on_terminal_count), T(mode0_gate), T(mode1_one_shot), T(mode2_rate_generator), T(mode2_gate), T(mode3_square_wave),
        T(mode4_and_5_strobe), T(bcd), T(latch_and_read_back), T(port61), T(too_fast_is_merged), T(snapshot), T(thousand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
