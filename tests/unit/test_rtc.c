#include "tests/host/test.h"
#include "tests/host/port_host.h"
#include "tests/host/wires.h"
#include "guestdev/rtc.h"
#include "kernel/hw/mc146818.h"

#define NS 1000000000ull
static struct vmclock vmc;
static struct rtc *rtc;
static struct wire irq;

static uint8_t rd(uint8_t i)
{
    io_write(rtc_io, rtc, 0, 1, i);
    return io_read(rtc_io, rtc, 1, 1);
}
static void wr(uint8_t i, uint8_t v)
{
    io_write(rtc_io, rtc, 0, 1, i);
    io_write(rtc_io, rtc, 1, 1, v);
}
static void set_utc(uint64_t s) { host_set_utc(s * NS - clock_ns()); }

/* "2026-03-01 13:05:09" in BCD, 24-hour form. */
static void expect(unsigned y, unsigned mo, unsigned d, unsigned h, unsigned mi, unsigned s)
{
    unsigned got[] = { rd(RTC_CENTURY) << 8 | rd(RTC_YEAR), rd(RTC_MONTH), rd(RTC_DAY), rd(RTC_HOURS), rd(RTC_MINUTES), rd(RTC_SECONDS) };
    unsigned want[] = { y, mo, d, h, mi, s };
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(got[i], want[i]);
}

static int setup(void **state)
{
    host_clock_manual(true);
    set_utc(1772370309);                /* 2026-03-01 13:05:09 UTC, a Sunday */
    vmclock_init(&vmc);
    vmclock_start(&vmc);
    irq = (struct wire){ 0 };
    rtc = rtc_create(&vmc, wire_line(&irq, 8));
    return 0;
}
static int teardown(void **state)
{
    rtc_ops.destroy(rtc);
    host_set_utc(0);
    assert_true(list_empty(&vmc.timers));
    return 0;
}

static void follows_utc(void **state)
{
    expect(0x2026, 0x03, 0x01, 0x13, 0x05, 0x09);
    assert_int_equal(rd(RTC_WEEKDAY), 1);
    assert_int_equal(rd(RTC_D), RTC_D_VRT);
    vmclock_stop(&vmc);                 /* a paused VM's clock goes on */
    host_clock_advance(3600 * NS);
    vmclock_start(&vmc);
    expect(0x2026, 0x03, 0x01, 0x14, 0x05, 0x09);
    static const struct { uint64_t s; unsigned y, mo, d; } days[] = {
        { 0, 0x1970, 1, 1 }, { 951782400, 0x2000, 2, 0x29 }, { 951868800, 0x2000, 3, 1 }, { 4107542400, 0x2100, 3, 1 }, { 1709164800, 0x2024, 2, 0x29 },
        { 1767225599, 0x2025, 0x12, 0x31 }, { 7258118400, 0x2200, 1, 1 },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(days); i++) {
        set_utc(days[i].s);
        assert_int_equal(rd(RTC_CENTURY) << 8 | rd(RTC_YEAR), days[i].y);
        assert_int_equal(rd(RTC_MONTH), days[i].mo);
        assert_int_equal(rd(RTC_DAY), days[i].d);
    }
}

static void register_forms(void **state)
{
    wr(RTC_B, RTC_B_24H | RTC_B_BINARY);
    assert_int_equal(rd(RTC_HOURS), 13);
    assert_int_equal(rd(RTC_YEAR), 26);
    wr(RTC_B, 0);
    assert_int_equal(rd(RTC_HOURS), 0x81);      /* 1 PM */
    host_clock_advance(11 * 3600 * NS);
    assert_int_equal(rd(RTC_HOURS), 0x12);      /* midnight is 12 AM */
    host_clock_advance(12 * 3600 * NS);
    assert_int_equal(rd(RTC_HOURS), 0x92);
    wr(RTC_B, RTC_B_BINARY);
    assert_int_equal(rd(RTC_HOURS), 0x8c);
}

static void set_the_clock(void **state)
{
    wr(RTC_B, RTC_B_24H | RTC_B_SET);
    host_clock_advance(100 * NS);
    expect(0x2026, 0x03, 0x01, 0x13, 0x05, 0x09);       /* stands still */
    wr(RTC_CENTURY, 0x20), wr(RTC_YEAR, 0x24), wr(RTC_MONTH, 0x02), wr(RTC_DAY, 0x28), wr(RTC_HOURS, 0x23), wr(RTC_MINUTES, 0x59), wr(RTC_SECONDS, 0x50);
    expect(0x2024, 0x02, 0x28, 0x23, 0x59, 0x50);
    wr(RTC_B, RTC_B_24H);
    host_clock_advance(9 * NS);
    expect(0x2024, 0x02, 0x28, 0x23, 0x59, 0x59);
    host_clock_advance(NS);
    expect(0x2024, 0x02, 0x29, 0x00, 0x00, 0x00);
    wr(RTC_MINUTES, 0x30);                              /* without SET: just that field */
    expect(0x2024, 0x02, 0x29, 0x00, 0x30, 0x00);
    rtc_ops.reset(rtc, GDEV_RESET);                     /* the battery keeps it */
    expect(0x2024, 0x02, 0x29, 0x00, 0x30, 0x00);
    wr(RTC_B, RTC_B_24H | RTC_B_SET);
    wr(RTC_MONTH, 0xff), wr(RTC_DAY, 0xee), wr(RTC_HOURS, 0x99), wr(RTC_SECONDS, 0xff), wr(RTC_CENTURY, 0);
    wr(RTC_B, RTC_B_24H);                               /* nonsense gives some valid time */
    assert_in_range(rd(RTC_SECONDS), 0, 0x59);
    assert_in_range(rd(RTC_MONTH), 1, 0x12);
}

static void update_in_progress(void **state)
{
    assert_int_equal(rd(RTC_A) & RTC_A_UIP, 0);
    host_clock_advance(NS - 244000);
    assert_int_equal(rd(RTC_A) & RTC_A_UIP, RTC_A_UIP);
    assert_int_equal(rd(RTC_SECONDS), 0x09);
    host_clock_advance(244000);
    assert_int_equal(rd(RTC_A) & RTC_A_UIP, 0);
    assert_int_equal(rd(RTC_SECONDS), 0x10);
}

static void periodic(void **state)
{
    wr(RTC_B, RTC_B_24H | RTC_B_PIE);                   /* rate 6: 1024 Hz */
    host_clock_advance(NS / 1024 + 1);
    assert_true(irq.level);
    assert_int_equal(rd(RTC_C), RTC_C_IRQF | RTC_C_PF);
    assert_false(irq.level);
    assert_int_equal(rd(RTC_C), 0);
    unsigned before = irq.rises;
    for (unsigned i = 0; i < 10240; i++) {
        host_clock_advance(NS / 1024 + (i % 16 < 9));   /* 976562.5 ns */
        rd(RTC_C);
    }
    assert_in_range(irq.rises - before, 10238, 10242);
    wr(RTC_A, 0x20);                                    /* rate 0: off */
    rd(RTC_C);
    host_clock_advance(NS / 2);
    assert_false(irq.level);
    wr(RTC_B, RTC_B_24H);                               /* the flag sets without the enable */
    wr(RTC_A, 0x2f);
    host_clock_advance(NS / 2);
    assert_int_equal(rd(RTC_C) & (RTC_C_PF | RTC_C_IRQF), RTC_C_PF);
}

static void update_ended(void **state)
{
    host_clock_advance(NS / 4);
    wr(RTC_B, RTC_B_24H | RTC_B_UIE);
    rd(RTC_C);
    host_clock_advance(NS * 3 / 4 - 1);
    assert_false(irq.level);
    host_clock_advance(1);
    assert_true(irq.level);
    assert_int_equal(rd(RTC_C) & ~RTC_C_PF, RTC_C_IRQF | RTC_C_UF);
    host_clock_advance(NS);
    assert_true(irq.level);
    wr(RTC_B, RTC_B_24H | RTC_B_UIE | RTC_B_SET);       /* SET clears UIE */
    assert_int_equal(rd(RTC_B), RTC_B_24H | RTC_B_SET);
    assert_false(irq.level);
}

static void alarm_at_time(void **state)
{
    wr(RTC_SECONDS_ALARM, 0x00), wr(RTC_MINUTES_ALARM, 0x06), wr(RTC_HOURS_ALARM, 0x13);
    wr(RTC_B, RTC_B_24H | RTC_B_AIE);
    rd(RTC_C);
    host_clock_advance(50 * NS);
    assert_false(irq.level);
    host_clock_advance(NS);
    assert_true(irq.level);
    assert_int_equal(rd(RTC_C) & (RTC_C_AF | RTC_C_IRQF), RTC_C_AF | RTC_C_IRQF);
    wr(RTC_SECONDS_ALARM, 0xff), wr(RTC_MINUTES_ALARM, 0xc0), wr(RTC_HOURS_ALARM, 0xc5);        /* every second */
    for (unsigned i = 0; i < 5; i++) {
        host_clock_advance(NS);
        assert_true(rd(RTC_C) & RTC_C_AF);
    }
    wr(RTC_SECONDS_ALARM, 0x30), wr(RTC_MINUTES_ALARM, 0x00), wr(RTC_HOURS_ALARM, 0x15);
    vmclock_stop(&vmc);                                 /* slept over it */
    host_clock_advance(5 * 3600 * NS);
    vmclock_start(&vmc);
    assert_true(rd(RTC_C) & RTC_C_AF);
}

static void cmos_memory(void **state)
{
    rtc_set_memory(rtc, 3ull << 30, 5ull << 30);
    assert_int_equal(rd(0x15) | rd(0x16) << 8, 640);
    assert_int_equal(rd(0x17) | rd(0x18) << 8, 0xffff);
    assert_int_equal(rd(0x34) | rd(0x35) << 8, ((3ull << 30) - (16 << 20)) >> 16);
    assert_int_equal(rd(0x5b) | rd(0x5c) << 8 | rd(0x5d) << 16, (5ull << 30) >> 16);
    rtc_set_memory(rtc, 8 << 20, 0);
    assert_int_equal(rd(0x30) | rd(0x31) << 8, 7168);
    assert_int_equal(rd(0x34) | rd(0x35) << 8, 0);
    wr(0x40, 0xab);
    io_write(rtc_io, rtc, 2, 1, 0x40);                  /* second bank */
    io_write(rtc_io, rtc, 3, 1, 0xcd);
    rtc_ops.reset(rtc, GDEV_RESET);
    assert_int_equal(rd(0x40), 0xab);
    io_write(rtc_io, rtc, 2, 1, 0x40);
    assert_int_equal(io_read(rtc_io, rtc, 3, 1), 0xcd);
    assert_int_equal(io_read(rtc_io, rtc, 0, 1), 0xff);
    wr(RTC_C, 0xff), wr(RTC_D, 0);
    assert_int_equal(rd(RTC_D), RTC_D_VRT);
    io_write(rtc_io, rtc, 0, 1, 0x80 | 0x40);           /* NMI mask bit is no part of the index */
    assert_int_equal(io_read(rtc_io, rtc, 1, 1), 0xab);
}

static void snapshot(void **state)
{
    uint8_t a[2048], b[2048];
    struct snap s, r;
    wr(RTC_B, RTC_B_24H | RTC_B_SET);
    wr(RTC_YEAR, 0x30);
    wr(RTC_B, RTC_B_24H | RTC_B_UIE | RTC_B_PIE);
    wr(0x50, 0x77);
    host_clock_advance(NS / 3);
    snap_init_save(&s, a, sizeof a);
    assert_int_equal(rtc_ops.snap(rtc, &s), 0);
    struct wire irq2 = { 0 };
    struct rtc *other = rtc_create(&vmc, wire_line(&irq2, 8)), *keep = rtc;
    snap_init_load(&r, a, s.pos);
    assert_int_equal(rtc_ops.snap(other, &r), 0);
    snap_init_save(&r, b, sizeof b);
    assert_int_equal(rtc_ops.snap(other, &r), 0);
    assert_memory_equal(a, b, s.pos);
    rtc = other;
    assert_int_equal(rd(RTC_YEAR), 0x30);
    assert_int_equal(rd(0x50), 0x77);
    assert_int_equal(rd(RTC_C) & RTC_C_IRQF, RTC_C_IRQF);
    rtc = keep;
    rtc_ops.destroy(other);
}

static void thousand(void **state)
{
    unsigned long before = port_alloc_count();
    for (unsigned i = 0; i < 1000; i++)
        rtc_ops.destroy(rtc_create(&vmc, (struct irqline){ 0 }));
    assert_int_equal(port_alloc_count(), before);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(follows_utc), T(register_forms), T(set_the_clock), T(update_in_progress), T(periodic), T(update_ended), T(alarm_at_time), T(cmos_memory), T(snapshot),
        T(thousand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
