#include "tests/host/test.h"
#include "tests/host/port_host.h"
#include "tests/host/wires.h"
#include "guestdev/i8042.h"
#include "guestdev/legacy.h"
#include "guestdev/pm.h"
#include "guestdev/sysport.h"
#include "kernel/hw/acpi.h"
#include "kernel/hw/i8042.h"

static struct vmclock vmc;
static struct pm *pm;
static struct wire sci;
static struct signals power;

static uint32_t rd(unsigned off, unsigned size) { return io_read(pm_io, pm, off, size); }
static void wr(unsigned off, unsigned size, uint32_t v) { io_write(pm_io, pm, off, size, v); }

static int setup(void **state)
{
    host_clock_manual(true);
    vmclock_init(&vmc);
    vmclock_start(&vmc);
    sci = (struct wire){ 0 };
    power = (struct signals){ 0 };
    struct pm_config c = { .clock = &vmc, .sci = wire_line(&sci, 9), .power = signals_wire(&power), .timer_32bit = false };
    pm = pm_create(&c);
    return 0;
}
static int teardown(void **state)
{
    pm_ops.destroy(pm);
    assert_true(list_empty(&vmc.timers));
    return 0;
}

static void timer(void **state)
{
    assert_int_equal(rd(PM_TIMER, 4), 0);
    host_clock_advance(1000000000);
    assert_int_equal(rd(PM_TIMER, 4), PM_TIMER_HZ);
    assert_int_equal(rd(PM_TIMER + 1, 1), (PM_TIMER_HZ >> 8) & 0xff);
    wr(PM_TIMER, 4, 0);
    assert_int_equal(rd(PM_TIMER, 4), PM_TIMER_HZ);
    host_clock_advance(9000000000);
    assert_int_equal(rd(PM_TIMER, 4), 10 * PM_TIMER_HZ & 0xffffff);
}

static void timer_status(void **state)
{
    wr(PM_PM1_EN, 2, PM1_STS_TMR);
    io_write(pm_smi_io, pm, 0, 1, PM_ACPI_ENABLE);
    uint64_t half = (BIT(23) * 1000000000 + PM_TIMER_HZ - 1) / PM_TIMER_HZ;
    host_clock_advance(half - 1);
    assert_false(sci.level);
    host_clock_advance(1);
    assert_true(sci.level);
    wr(PM_PM1_STS, 2, PM1_STS_TMR);
    assert_false(sci.level);
    wr(PM_PM1_EN, 2, 0);
    host_clock_advance(half);
    assert_int_equal(rd(PM_PM1_STS, 2), PM1_STS_TMR);   /* the status sets without the enable */
}

static void power_button_and_modes(void **state)
{
    pm_power_button(pm);
    assert_int_equal(rd(PM_PM1_STS, 2), PM1_STS_PWRBTN);
    wr(PM_PM1_EN, 2, 0xffff);
    assert_int_equal(rd(PM_PM1_EN, 2), 0x521);
    assert_false(sci.level);                            /* legacy mode */
    io_write(pm_smi_io, pm, 0, 1, PM_ACPI_ENABLE);
    assert_int_equal(rd(PM_PM1_CNT, 2), PM1_CNT_SCI_EN);
    assert_true(sci.level);
    io_write(pm_smi_io, pm, 0, 1, PM_ACPI_DISABLE);
    assert_false(sci.level);
    io_write(pm_smi_io, pm, 0, 1, PM_ACPI_ENABLE);
    wr(PM_PM1_CNT, 2, 0);                               /* software cannot clear SCI_EN here */
    assert_true(sci.level);
    wr(PM_PM1_STS, 1, 0xff);
    assert_true(sci.level);
    wr(PM_PM1_STS + 1, 1, 0x01);
    assert_false(sci.level);
}

static void soft_off(void **state)
{
    wr(PM_PM1_CNT, 2, 5 << PM1_CNT_SLP_TYP_SHIFT | PM1_CNT_SLP_EN);
    assert_int_equal(power.n, 0);
    wr(PM_PM1_CNT, 2, PM_SLP_TYP_S5 << PM1_CNT_SLP_TYP_SHIFT);
    assert_int_equal(power.n, 0);
    wr(PM_PM1_CNT, 2, PM_SLP_TYP_S5 << PM1_CNT_SLP_TYP_SHIFT | PM1_CNT_SLP_EN);
    assert_int_equal(power.n, 1);
    assert_int_equal(power.last, SIGNAL_POWEROFF);
    assert_int_equal(rd(PM_PM1_CNT, 4) & PM1_CNT_SLP_EN, 0);
}

static void general_purpose_events(void **state)
{
    io_write(pm_smi_io, pm, 0, 1, PM_ACPI_ENABLE);
    wr(PM_GPE0_EN, 4, 0xa);
    pm_gpe(pm, 3, true);
    assert_true(sci.level);
    wr(PM_GPE0_STS, 1, 0x08);
    assert_true(sci.level);                             /* the input is still there */
    pm_gpe(pm, 3, false);
    wr(PM_GPE0_STS, 1, 0x08);
    assert_false(sci.level);
    pm_gpe(pm, 40, true), pm_gpe(pm, 40, false);
    assert_int_equal(rd(PM_GPE0_STS + 4, 4), 1u << 8);
}

static void snapshot(void **state)
{
    uint8_t a[512], b[512];
    struct snap s, r;
    io_write(pm_smi_io, pm, 0, 1, PM_ACPI_ENABLE);
    wr(PM_PM1_EN, 2, 0x101);
    pm_power_button(pm);
    snap_init_save(&s, a, sizeof a);
    assert_int_equal(pm_ops.snap(pm, &s), 0);
    pm_ops.reset(pm, GDEV_RESET);
    assert_false(sci.level);
    snap_init_load(&r, a, s.pos);
    assert_int_equal(pm_ops.snap(pm, &r), 0);
    snap_init_save(&r, b, sizeof b);
    assert_int_equal(pm_ops.snap(pm, &r), 0);
    assert_memory_equal(a, b, s.pos);
}

static void thousand(void **state)
{
    unsigned long before = port_alloc_count();
    struct pm_config c = { .clock = &vmc };
    for (unsigned i = 0; i < 1000; i++) {
        pm_ops.destroy(pm_create(&c));
        sysport_ops.destroy(sysport_create((struct signal_wire){ 0 }, "vm"));
        i8042_ops.destroy(i8042_create((struct irqline){ 0 }, (struct irqline){ 0 }, (struct signal_wire){ 0 }));
    }
    assert_int_equal(port_alloc_count(), before);
}

static void reset_ports(void **state)
{
    struct signals ev = { 0 };
    struct sysport *p = sysport_create(signals_wire(&ev), "vm");
    io_write(sysport_cf9_io, p, 0, 1, 0x02);
    assert_int_equal(ev.n, 0);
    io_write(sysport_cf9_io, p, 0, 1, 0x06);
    assert_int_equal(ev.n, 1);
    assert_int_equal(ev.last, SIGNAL_RESET);
    assert_int_equal(io_read(sysport_92_io, p, 0, 1), 2);
    io_write(sysport_92_io, p, 0, 1, 0x00);
    assert_int_equal(ev.n, 1);
    io_write(sysport_92_io, p, 0, 1, 0x03);
    io_write(sysport_92_io, p, 0, 1, 0x03);             /* only the rise counts */
    assert_int_equal(ev.n, 2);
    io_write(sysport_debug_exit_io, p, 0, 1, 0x21);
    assert_int_equal(ev.last, SIGNAL_DEBUG_EXIT | 0x43 << 8);
    assert_int_equal(io_read(sysport_debug_io, p, 0, 1), 0xe9);
    for (unsigned i = 0; i < 1000; i++)
        io_write(sysport_debug_io, p, 0, 1, "hello\n\xff\0"[i % 8]);
    sysport_ops.destroy(p);
}

static void keyboard_controller(void **state)
{
    struct signals ev = { 0 };
    struct wire irq1 = { 0 }, irq12 = { 0 };
    struct i8042 *k = i8042_create(wire_line(&irq1, 1), wire_line(&irq12, 12), signals_wire(&ev));
#define CMD(v) io_write(i8042_command_io, k, 0, 1, v)
#define DATA(v) io_write(i8042_data_io, k, 0, 1, v)
#define STS() io_read(i8042_command_io, k, 0, 1)
#define GET() io_read(i8042_data_io, k, 0, 1)
    CMD(I8042_SELF_TEST);
    assert_int_equal(STS() & (I8042_STS_OBF | I8042_STS_SYS), I8042_STS_OBF | I8042_STS_SYS);
    assert_int_equal(GET(), I8042_SELF_TEST_OK);
    assert_int_equal(STS() & I8042_STS_OBF, 0);
    CMD(I8042_WRITE_RAM), DATA(I8042_CTR_KBD_IRQ | I8042_CTR_AUX_IRQ | I8042_CTR_SYS);
    CMD(I8042_READ_RAM);
    assert_true(irq1.level);
    assert_int_equal(GET(), 7);
    assert_false(irq1.level);
    DATA(PS2_RESET);                                    /* nobody answers */
    assert_int_equal(STS() & (I8042_STS_OBF | I8042_STS_TIMEOUT), I8042_STS_OBF | I8042_STS_TIMEOUT);
    assert_int_equal(GET(), PS2_RESEND);
    CMD(I8042_WRITE_AUX), DATA(PS2_ID);
    assert_true(irq12.level);
    assert_int_equal(STS() & I8042_STS_AUX, I8042_STS_AUX);
    assert_int_equal(GET(), PS2_RESEND);
    CMD(I8042_READ_OUTPUT);
    assert_int_equal(GET() & 3, 3);
    CMD(0xff);                                          /* pulses nothing */
    assert_int_equal(ev.n, 0);
    CMD(0xfe);
    assert_int_equal(ev.n, 1);
    CMD(I8042_WRITE_OUTPUT), DATA(0x02);
    assert_int_equal(ev.n, 2);
    i8042_ops.destroy(k);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(timer), T(timer_status), T(power_button_and_modes), T(soft_off), T(general_purpose_events), T(snapshot), T(thousand),
        cmocka_unit_test(reset_ports), cmocka_unit_test(keyboard_controller),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
