#include "tests/host/test.h"
#include "tests/host/port_host.h"
#include "tests/host/wires.h"
#include "guestdev/ioapic.h"

static struct ioapic *io;
static struct messages sent;

static uint32_t rd(unsigned index)
{
    io_write(ioapic_io, io, IOAPIC_INDEX, 4, index);
    return io_read(ioapic_io, io, IOAPIC_DATA, 4);
}
static void wr(unsigned index, uint32_t v)
{
    io_write(ioapic_io, io, IOAPIC_INDEX, 4, index);
    io_write(ioapic_io, io, IOAPIC_DATA, 4, v);
}
static void redir(unsigned pin, uint32_t low, uint32_t dest)
{
    wr(IOAPIC_REG_REDIR + 2 * pin + 1, dest << 24);
    wr(IOAPIC_REG_REDIR + 2 * pin, low);
}
static uint32_t low(unsigned pin) { return rd(IOAPIC_REG_REDIR + 2 * pin); }

static int setup(void **state)
{
    sent = (struct messages){ 0 };
    io = ioapic_create((struct apic_wire){ messages_send, &sent }, 0x00f00000);
    return 0;
}
static int teardown(void **state)
{
    ioapic_ops.destroy(io);
    return 0;
}

static void registers(void **state)
{
    assert_int_equal(rd(IOAPIC_REG_VERSION), 0x00170020);
    wr(IOAPIC_REG_ID, 0xffffffff);
    assert_int_equal(rd(IOAPIC_REG_ID), 0x0f000000);
    assert_int_equal(low(0), REDIR_MASKED);
    assert_int_equal(low(23), REDIR_MASKED);
    wr(IOAPIC_REG_REDIR + 5, 0xffffffff);
    wr(IOAPIC_REG_REDIR + 4, 0xffffffff);
    assert_int_equal(low(2), 0x1afff);
    assert_int_equal(rd(IOAPIC_REG_REDIR + 5), 0xff000000);
    assert_int_equal(rd(0x40), 0);              /* beyond the last pin */
    wr(0x40, 0x1234);
}

static void edge(void **state)
{
    redir(4, 0x31 | REDIR_LOGICAL | APIC_LOWEST, 0x0f);
    ioapic_pin(io, 4, true);
    assert_int_equal(sent.n, 1);
    assert_int_equal(sent.last.vector, 0x31);
    assert_int_equal(sent.last.dest, 0x0f);
    assert_int_equal(sent.last.delivery, APIC_LOWEST);
    assert_true(sent.last.logical);
    assert_false(sent.last.level);
    ioapic_pin(io, 4, true);
    ioapic_pin(io, 4, false);
    assert_int_equal(sent.n, 1);
    ioapic_pin(io, 4, true);
    assert_int_equal(sent.n, 2);
    redir(4, 0x31 | REDIR_MASKED, 0);
    ioapic_pin(io, 4, false), ioapic_pin(io, 4, true);
    redir(4, 0x31, 0);
    assert_int_equal(sent.n, 2);                /* an edge at a masked pin is lost (82093AA) */
}

static void level_eoi_retrigger(void **state)
{
    redir(10, 0x41 | REDIR_LEVEL, 1);
    ioapic_pin(io, 10, true);
    assert_int_equal(sent.n, 1);
    assert_true(sent.last.level);
    assert_int_equal(low(10) & REDIR_REMOTE_IRR, REDIR_REMOTE_IRR);
    ioapic_pin(io, 10, false), ioapic_pin(io, 10, true);
    assert_int_equal(sent.n, 1);                /* remote IRR holds it */
    ioapic_eoi(io, 0x40);
    assert_int_equal(sent.n, 1);
    ioapic_eoi(io, 0x41);
    assert_int_equal(sent.n, 2);                /* still asserted */
    ioapic_pin(io, 10, false);
    ioapic_eoi(io, 0x41);
    assert_int_equal(sent.n, 2);
    assert_int_equal(low(10) & REDIR_REMOTE_IRR, 0);
    ioapic_pin(io, 10, true);
    io_write(ioapic_io, io, IOAPIC_EOI, 4, 0x41);       /* the EOI register does the same */
    assert_int_equal(sent.n, 4);
    /* Masked while in service: the EOI clears, unmasking sends. */
    redir(10, 0x41 | REDIR_LEVEL | REDIR_MASKED, 1);
    ioapic_eoi(io, 0x41);
    assert_int_equal(sent.n, 4);
    redir(10, 0x41 | REDIR_LEVEL, 1);
    assert_int_equal(sent.n, 5);
    /* To edge and back clears remote IRR. */
    redir(10, 0x41, 1);
    redir(10, 0x41 | REDIR_LEVEL, 1);
    assert_int_equal(sent.n, 6);
}

static void two_pins_one_vector(void **state)
{
    redir(5, 0x51 | REDIR_LEVEL, 0);
    redir(6, 0x51 | REDIR_LEVEL, 0);
    ioapic_pin(io, 5, true), ioapic_pin(io, 6, true);
    assert_int_equal(sent.n, 2);
    ioapic_pin(io, 5, false);
    ioapic_eoi(io, 0x51);
    assert_int_equal(sent.n, 3);
}

static void polarity(void **state)
{
    redir(20, 0x61 | REDIR_LEVEL | REDIR_ACTIVE_LOW, 0);        /* a PCI line, programmed as PCI wants it */
    assert_int_equal(sent.n, 0);
    ioapic_pin(io, 20, true);
    assert_int_equal(sent.n, 1);
    redir(21, 0x62 | REDIR_LEVEL, 0);                           /* the wrong way: idle looks asserted */
    assert_int_equal(sent.n, 2);
    redir(3, 0x63 | REDIR_ACTIVE_LOW, 0);                       /* ISA line, falling edge */
    ioapic_pin(io, 3, true);
    assert_int_equal(sent.n, 2);
    ioapic_pin(io, 3, false);
    assert_int_equal(sent.n, 3);
}

static void other_delivery_modes_are_edges(void **state)
{
    redir(7, APIC_NMI | REDIR_LEVEL, 0);
    ioapic_pin(io, 7, true);
    assert_int_equal(sent.last.delivery, APIC_NMI);
    assert_false(sent.last.level);
    assert_int_equal(low(7) & REDIR_REMOTE_IRR, 0);
    redir(0, APIC_EXTINT, 0);
    ioapic_pin(io, 0, true);
    assert_int_equal(sent.n, 2);
    ioapic_pin(io, 24, true);                   /* no such pin */
}

static void snapshot(void **state)
{
    uint8_t a[2048], b[2048];
    struct snap s, r;
    redir(10, 0x41 | REDIR_LEVEL, 1);
    ioapic_pin(io, 10, true);
    io_write(ioapic_io, io, IOAPIC_INDEX, 1, 0x10);
    snap_init_save(&s, a, sizeof a);
    assert_int_equal(ioapic_ops.snap(io, &s), 0);
    struct messages sent2 = { 0 };
    struct ioapic *other = ioapic_create((struct apic_wire){ messages_send, &sent2 }, 0x00f00000);
    snap_init_load(&r, a, s.pos);
    assert_int_equal(ioapic_ops.snap(other, &r), 0);
    snap_init_save(&r, b, sizeof b);
    assert_int_equal(ioapic_ops.snap(other, &r), 0);
    assert_memory_equal(a, b, s.pos);
    ioapic_eoi(other, 0x41);
    assert_int_equal(sent2.n, 1);
    ioapic_ops.destroy(other);
}

static void thousand(void **state)
{
    unsigned long before = port_alloc_count();
    for (unsigned i = 0; i < 1000; i++)
        ioapic_ops.destroy(ioapic_create((struct apic_wire){ messages_send, &sent }, 0));
    assert_int_equal(port_alloc_count(), before);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(registers), T(edge), T(level_eoi_retrigger), T(two_pins_one_vector), T(polarity), T(other_delivery_modes_are_edges), T(snapshot), T(thousand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
