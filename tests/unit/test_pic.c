#include "tests/host/test.h"
#include "tests/host/port_host.h"
#include "tests/host/wires.h"
#include "guestdev/pic.h"

static struct pic *pic;
static struct wire out;

static void cmd(unsigned chip, uint8_t v) { io_write(chip ? pic_slave_io : pic_master_io, pic, 0, 1, v); }
static void data(unsigned chip, uint8_t v) { io_write(chip ? pic_slave_io : pic_master_io, pic, 1, 1, v); }
static uint8_t reg(unsigned chip, uint8_t ocw3)
{
    cmd(chip, ocw3);
    return io_read(chip ? pic_slave_io : pic_master_io, pic, 0, 1);
}
static uint8_t irr(unsigned chip) { return reg(chip, 0x0a); }
static uint8_t isr(unsigned chip) { return reg(chip, 0x0b); }
static void up(unsigned irq) { pic_irq(pic, irq, true); }
static void down(unsigned irq) { pic_irq(pic, irq, false); }
static void take(int vector)
{
    assert_int_equal(pic_pending(pic), vector);
    pic_intack(pic, vector);
}

/* As every PC does it: vectors 20h and 28h. */
static void init(uint8_t icw4_master, uint8_t icw4_slave)
{
    cmd(0, 0x11), data(0, 0x20), data(0, 0x04), data(0, icw4_master);
    cmd(1, 0x11), data(1, 0x28), data(1, 0x02), data(1, icw4_slave);
    data(0, 0), data(1, 0);
}

static int setup(void **state)
{
    out = (struct wire){ 0 };
    pic = pic_create(wire_line(&out, 0));
    init(1, 1);
    return 0;
}

static int teardown(void **state)
{
    pic_ops.destroy(pic);
    return 0;
}

static void edge(void **state)
{
    up(1);
    assert_true(out.level);
    assert_int_equal(irr(0), 2);
    take(0x21);
    assert_int_equal(irr(0), 0);
    assert_int_equal(isr(0), 2);
    assert_false(out.level);
    cmd(0, 0x20);
    assert_int_equal(pic_pending(pic), -1);     /* the line is still high: no new edge */
    down(1), up(1), down(1);                    /* a short pulse is latched */
    take(0x21);
}

static void masked_edge_is_latched(void **state)
{
    data(0, 0xff);
    up(3);
    assert_false(out.level);
    assert_int_equal(irr(0), 8);
    data(0, 0xf7);
    assert_true(out.level);
    take(0x23);
}

static void fully_nested(void **state)
{
    up(4);
    take(0x24);
    up(5);
    assert_int_equal(pic_pending(pic), -1);
    up(3);
    take(0x23);
    cmd(0, 0x20);                               /* non-specific EOI: the highest, 3 */
    assert_int_equal(isr(0), 0x10);
    cmd(0, 0x64);                               /* specific: 4 */
    take(0x25);
}

static void cascade(void **state)
{
    up(12);
    up(9);
    take(0x29);
    assert_int_equal(isr(0), 4);
    assert_int_equal(isr(1), 2);
    assert_int_equal(pic_pending(pic), -1);
    cmd(1, 0x20);
    assert_int_equal(pic_pending(pic), -1);     /* the master's EOI is missing */
    cmd(0, 0x20);
    take(0x2c);
    up(8);                                      /* higher in the slave, same level in the master: held */
    assert_int_equal(pic_pending(pic), -1);
    up(1);
    take(0x21);
    cmd(0, 0x61);
    cmd(1, 0x20), cmd(0, 0x20);
    take(0x28);
}

static void special_fully_nested(void **state)
{
    init(0x11, 1);
    up(12);
    take(0x2c);
    up(8);
    take(0x28);                                 /* now it comes through */
    cmd(1, 0x20);
    assert_int_equal(isr(1), 0x10);
    cmd(1, 0x20), cmd(0, 0x20);
    assert_int_equal(isr(0) | isr(1), 0);
}

static void special_mask(void **state)
{
    up(2 + 1);
    take(0x23);
    data(0, 0x08);
    cmd(0, 0x68);
    up(6);
    take(0x26);                                 /* lower than the masked one in service */
    cmd(0, 0x20);                               /* does not touch the masked one */
    assert_int_equal(isr(0), 0x08);
    cmd(0, 0x48);
    cmd(0, 0x20);
    assert_int_equal(isr(0), 0);
}

static void rotation(void **state)
{
    cmd(0, 0xc0 | 4);                           /* 4 lowest: 5 highest */
    up(1), up(5);
    take(0x25);
    cmd(0, 0xa0);                               /* rotate on non-specific EOI: 5 lowest */
    up(6);
    take(0x26);
    cmd(0, 0xe0 | 6);                           /* rotate on specific EOI: 6 lowest, 7 highest */
    up(7);
    take(0x27);
    cmd(0, 0x20);
    take(0x21);
}

static void automatic_eoi(void **state)
{
    init(3, 3);
    up(0), up(1), up(14), up(15);
    take(0x20);
    assert_int_equal(isr(0), 0);
    take(0x21);
    take(0x2e);
    take(0x2f);
    assert_int_equal(pic_pending(pic), -1);
    cmd(0, 0x80);                               /* rotate in AEOI mode */
    down(0), up(0), down(1), up(1);
    take(0x20);                                 /* 0 lowest now */
    down(0), up(0);
    take(0x21);
    cmd(0, 0x00);
}

static void poll(void **state)
{
    assert_int_equal(reg(0, 0x0c), 0);
    up(6);
    assert_int_equal(reg(0, 0x0c), 0x86);
    assert_int_equal(isr(0), 0x40);
    assert_int_equal(pic_pending(pic), -1);
    cmd(0, 0x20);
    up(10);
    assert_int_equal(reg(0, 0x0c), 0x82);
    assert_int_equal(reg(1, 0x0c), 0x82);
    assert_int_equal(isr(1), 4);
}

static void level_by_elcr(void **state)
{
    io_write(pic_elcr_io, pic, 0, 2, 0xffff);
    assert_int_equal(io_read(pic_elcr_io, pic, 0, 2), 0xdef8);
    up(5);
    take(0x25);
    assert_int_equal(pic_pending(pic), -1);
    cmd(0, 0x20);
    take(0x25);                                 /* still asserted: again */
    down(5);
    cmd(0, 0x20);
    assert_int_equal(pic_pending(pic), -1);
    up(5), down(5);                             /* withdrawn before INTA: nothing left */
    assert_false(out.level);
}

static void spurious_15(void **state)
{
    io_write(pic_elcr_io, pic, 1, 1, 0x04);
    up(10);
    down(10);
    take(0x2f);                                 /* the master had it latched */
    assert_int_equal(isr(1), 0);
    assert_int_equal(isr(0), 4);
    cmd(0, 0x20);
    assert_int_equal(pic_pending(pic), -1);
    up(10);
    take(0x2a);
}

static void the_output_tells_of_a_better_request(void **state)
{
    up(5);
    unsigned calls = out.calls;
    up(6);
    assert_int_equal(out.calls, calls);
    up(1);
    assert_int_equal(out.calls, calls + 1);
    assert_true(out.level);
}

static void init_clears(void **state)
{
    up(1), up(4);
    take(0x21);
    cmd(0, 0x0b);
    cmd(0, 0x11);
    assert_false(out.level);
    data(0, 0x40), data(0, 4), data(0, 1);
    assert_int_equal(io_read(pic_master_io, pic, 1, 1), 0);     /* mask */
    assert_int_equal(io_read(pic_master_io, pic, 0, 1), 0);     /* IRR again, and the edges are gone */
    assert_int_equal(isr(0), 0);
    down(4), up(4);
    take(0x44);
    cmd(0, 0x13), data(0, 0x50), data(0, 1);    /* single: no ICW3 */
    data(0, 0xaa);
    assert_int_equal(io_read(pic_master_io, pic, 1, 1), 0xaa);
}

static void snapshot(void **state)
{
    uint8_t a[2048], b[2048];
    struct snap s, r;
    up(9), up(4);
    take(0x29);
    up(1);
    data(1, 0x55);
    snap_init_save(&s, a, sizeof a);
    assert_int_equal(pic_ops.snap(pic, &s), 0);
    struct wire out2 = { 0 };
    struct pic *other = pic_create(wire_line(&out2, 0));
    snap_init_load(&r, a, s.pos);
    assert_int_equal(pic_ops.snap(other, &r), 0);
    assert_true(out2.level);
    assert_int_equal(pic_pending(other), pic_pending(pic));
    snap_init_save(&r, b, sizeof b);
    assert_int_equal(pic_ops.snap(other, &r), 0);
    assert_int_equal(r.pos, s.pos);
    assert_memory_equal(a, b, s.pos);
    pic_ops.destroy(other);
}

static void thousand(void **state)
{
    unsigned long before = port_alloc_count();
    for (unsigned i = 0; i < 1000; i++)
        pic_ops.destroy(pic_create((struct irqline){ 0 }));
    assert_int_equal(port_alloc_count(), before);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(edge), T(masked_edge_is_latched), T(fully_nested), T(cascade), T(special_fully_nested), T(special_mask), T(rotation), T(automatic_eoi), T(poll),
        T(level_by_elcr), T(spurious_15), T(the_output_tells_of_a_better_request), T(init_clears), T(snapshot), T(thousand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
