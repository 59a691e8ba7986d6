/* PCI bus, host bridge and the virtio transport through a guest's doors, and the two small devices: console and entropy. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "guestdev/virtio_console.h"
#include "guestdev/virtio_rng.h"
#include "tests/host/port_host.h"
#include "tests/host/vguest.h"

enum { SLOT = 5 };
#define COMMON(d, field) ((d)->common + offsetof(struct virtio_pci_common, field))

struct bed { struct vguest *g; struct virtio_rng *rng; struct vdrv d; gpa_t buf; };

static struct bed make(void)
{
    struct bed b = { .g = vguest_create(8 << 20, 1) };
    assert_int_equal(virtio_rng_create(&b.g->gmem, pcihost_bus(b.g->host), SLOT, &b.rng), 0);
    vdrv_probe(&b.d, b.g, SLOT);
    b.buf = vguest_alloc(b.g, 8192, 4096);
    return b;
}

static void end(struct bed *b)
{
    virtio_rng_ops.destroy(b->rng);
    vguest_destroy(b->g);
}

static uint32_t cf8_read(struct vguest *g, unsigned slot, unsigned reg, unsigned size)
{
    vg_out(g, 0xcf8, 4, 0x80000000u | slot << 11 | (reg & 0xfc));
    return (uint32_t)vg_in(g, 0xcfc + (reg & 3), size);
}

static void config_space(void **state)
{
    struct bed b = make();
    struct vguest *g = b.g;
    assert_int_equal(cf8_read(g, 0, 0, 4), 0x29c08086);
    assert_int_equal(cf8_read(g, 31, 0, 2), 0x8086);
    assert_int_equal(cf8_read(g, SLOT, 0, 4), 0x10441af4);
    assert_int_equal(cf8_read(g, SLOT, 2, 2), 0x1044);
    assert_int_equal(cf8_read(g, SLOT, 0x0b, 1), 0xff);                 /* class */
    assert_int_equal(cf8_read(g, 7, 0, 4), 0xffffffff);                 /* nobody */
    assert_int_equal(vg_cfg_read(g, SLOT, 0, 4), 0x10441af4);
    assert_int_equal(vg_cfg_read(g, SLOT, 0x100, 4), 0);                /* no extended capabilities */
    assert_int_equal(vg_cfg_read(g, SLOT, 1, 2), 0x441a);               /* byte lanes */
    assert_int_equal(vg_read(g, PCIHOST_ECAM_BASE + (1 << 20), 4), 0xffffffff);         /* bus 1 */
    vg_out(g, 0xcf8, 4, SLOT << 11);                                    /* not enabled */
    assert_int_equal(vg_in(g, 0xcfc, 4), 0xffffffff);
    vg_cfg_write(g, SLOT, 0, 4, 0);                                     /* read-only */
    vg_cfg_write(g, SLOT, PCI_CAP_PTR, 1, 0);
    vg_cfg_write(g, SLOT, PCI_INT_PIN, 1, 4);
    assert_int_equal(vg_cfg_read(g, SLOT, 0, 4), 0x10441af4);
    assert_int_equal(vg_cfg_read(g, SLOT, PCI_CAP_PTR, 1), 0x40);
    assert_int_equal(vg_cfg_read(g, SLOT, PCI_INT_PIN, 1), 1);
    end(&b);
}

static void bars(void **state)
{
    struct bed b = make();
    struct vguest *g = b.g;
    uint32_t lo = vg_cfg_read(g, SLOT, PCI_BAR(0), 4);
    assert_int_equal(lo & 15, PCI_BAR_64);
    uint64_t at = lo & PCI_BAR_MEM_MASK;
    assert_true(bus_claimed(g->mem, at));
    vg_cfg_write(g, SLOT, PCI_BAR(0), 4, ~0u);                          /* sizing, with decoding on */
    vg_cfg_write(g, SLOT, PCI_BAR(1), 4, ~0u);
    uint64_t mask = (uint64_t)vg_cfg_read(g, SLOT, PCI_BAR(1), 4) << 32 | (vg_cfg_read(g, SLOT, PCI_BAR(0), 4) & PCI_BAR_MEM_MASK);
    assert_int_equal(~mask + 1, 0x8000);
    assert_false(bus_claimed(g->mem, at));
    vg_cfg_write(g, SLOT, PCI_BAR(0), 4, 0x40000000);                   /* above 4 GiB */
    vg_cfg_write(g, SLOT, PCI_BAR(1), 4, 3);
    assert_true(bus_claimed(g->mem, 0x340000000));
    assert_int_equal(vg_read(g, 0x340000000 + 0x12, 2), 1);             /* num_queues */
    vg_cfg_write(g, SLOT, PCI_COMMAND, 2, 0);
    assert_false(bus_claimed(g->mem, 0x340000000));
    vg_cfg_write(g, SLOT, PCI_COMMAND, 2, PCI_CMD_MEMORY);
    static const uint64_t outside[] = { 0, 0x100000, 0xb0000000, 0xfec00000, 0xfee00000, 0xffff8000, 0x1fffff8000, 0xffffffffffff8000 };
    for (unsigned i = 0; i < ARRAY_SIZE(outside); i++) {                /* over RAM, ECAM, APICs: it just does not decode */
        vg_cfg_write(g, SLOT, PCI_BAR(0), 4, (uint32_t)outside[i]);
        vg_cfg_write(g, SLOT, PCI_BAR(1), 4, (uint32_t)(outside[i] >> 32));
        assert_false(bus_claimed(g->mem, 0x340000000));
        assert_int_equal(vg_cfg_read(g, 0, 0, 4), 0x29c08086);
    }
    end(&b);
}

/* Two devices at one address: the first stays, the second comes when the first goes; they may swap. */
static void bar_conflict(void **state)
{
    struct bed b = make();
    struct virtio_rng *other;
    assert_int_equal(virtio_rng_create(&b.g->gmem, pcihost_bus(b.g->host), 6, &other), 0);
    vg_cfg_write(b.g, 6, PCI_COMMAND, 2, PCI_CMD_MEMORY);
    vg_cfg_write(b.g, SLOT, PCI_BAR(0), 4, 0xd0000000);
    vg_cfg_write(b.g, 6, PCI_BAR(0), 4, 0xd0000000);
    vg_write(b.g, 0xd0000016, 2, 0x1234);                               /* queue_select of whoever is there */
    vg_cfg_write(b.g, SLOT, PCI_BAR(0), 4, 0xd0008000);
    assert_int_equal(vg_read(b.g, 0xd0008016, 2), 0x1234);
    assert_int_equal(vg_read(b.g, 0xd0000016, 2), 0);
    virtio_rng_ops.destroy(other);
    assert_false(bus_claimed(b.g->mem, 0xd0000000));
    assert_int_equal(vg_cfg_read(b.g, 6, 0, 4), 0xffffffff);
    end(&b);
}

static void negotiation(void **state)
{
    struct bed b = make();
    assert_false(vdrv_negotiate(&b.d, ~(uint64_t)VIRTIO_F_VERSION_1));              /* a legacy driver */
    assert_true(vdrv_negotiate(&b.d, ~0ull));
    vg_write(b.g, COMMON(&b.d, driver_feature), 4, 0);                  /* too late */
    vg_write(b.g, COMMON(&b.d, driver_feature_select), 4, 1);
    assert_int_equal(vg_read(b.g, COMMON(&b.d, driver_feature), 4), VIRTIO_F_VERSION_1 >> 32);
    vdrv_reset(&b.d);
    vg_write(b.g, COMMON(&b.d, driver_feature_select), 4, 0);
    vg_write(b.g, COMMON(&b.d, driver_feature), 4, ~0u);                /* features that nobody offered */
    vg_write(b.g, COMMON(&b.d, driver_feature_select), 4, 1);
    vg_write(b.g, COMMON(&b.d, driver_feature), 4, 1);
    vg_write(b.g, COMMON(&b.d, device_status), 1, 1 | 2 | VIRTIO_S_FEATURES_OK);
    assert_int_equal(vdrv_status(&b.d), 3);
    assert_int_equal(vg_read(b.g, COMMON(&b.d, num_queues), 2), 1);
    vg_write(b.g, COMMON(&b.d, queue_select), 2, 9);
    assert_int_equal(vg_read(b.g, COMMON(&b.d, queue_size), 2), 0);
    /* Queue sizes: only powers of two that fit. */
    static const unsigned bad[] = { 0, 3, 15, 32, 0x8000 };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_true(vdrv_negotiate(&b.d, ~0ull));
        vg_write(b.g, COMMON(&b.d, queue_select), 2, 0);
        vg_write(b.g, COMMON(&b.d, queue_size), 2, bad[i]);
        assert_true(vdrv_status(&b.d) & VIRTIO_S_NEEDS_RESET);
    }
    assert_true(vdrv_negotiate(&b.d, ~0ull));
    vg_write(b.g, COMMON(&b.d, queue_desc), 4, 8);                      /* not aligned */
    vg_write(b.g, COMMON(&b.d, queue_enable), 2, 1);
    assert_true(vdrv_status(&b.d) & VIRTIO_S_NEEDS_RESET);
    end(&b);
}

static void one_read(struct bed *b, uint32_t len, uint32_t want)
{
    uint32_t id, got;
    struct vbuf v = { b->buf, len, true };
    uint16_t head = vdrv_add(&b->d, 0, &v, 1, false);
    vdrv_kick(&b->d, 0);
    assert_true(vdrv_used(&b->d, 0, &id, &got));
    assert_int_equal(id, head);
    assert_int_equal(got, want);
}

static void entropy(void **state)
{
    struct bed b = make();
    uint8_t one[32] = { 0 }, two[32];
    assert_true(vdrv_negotiate(&b.d, ~(uint64_t)VIRTIO_F_EVENT_IDX));
    vdrv_setup_queue(&b.d, 0, 16);
    vdrv_ok(&b.d);
    one_read(&b, 32, 32);
    gmem_read(&b.g->gmem, b.buf, two, 32);
    assert_memory_not_equal(one, two, 32);
    one_read(&b, 8192, VRNG_MAX);
    end(&b);
}

/* INTx: level until the ISR is read, masked by the command register, routed to PIRQ (slot + pin) mod 8 and to the 8259 by the LPC bridge. */
static void intx(void **state)
{
    struct bed b = make();
    struct vguest *g = b.g;
    assert_true(vdrv_negotiate(&b.d, ~(uint64_t)VIRTIO_F_EVENT_IDX));
    vdrv_setup_queue(&b.d, 0, 16);
    vdrv_ok(&b.d);
    one_read(&b, 8, 8);
    assert_true(g->gsi[SLOT]);
    assert_true(g->pic[10]);                    /* firmware routed PIRQF there */
    assert_true(vg_cfg_read(g, SLOT, PCI_STATUS, 2) & PCI_STS_INTX);
    vg_cfg_write(g, 31, ICH9_PIRQ_E + 1, 1, 5);
    assert_false(g->pic[10]);
    assert_true(g->pic[5]);
    vg_cfg_write(g, 31, ICH9_PIRQ_E + 1, 1, ICH9_PIRQ_OFF);
    assert_false(g->pic[5]);
    vg_cfg_write(g, SLOT, PCI_COMMAND, 2, PCI_CMD_MEMORY | PCI_CMD_MASTER | PCI_CMD_INTX_DISABLE);
    assert_false(g->gsi[SLOT]);
    vg_cfg_write(g, SLOT, PCI_COMMAND, 2, PCI_CMD_MEMORY | PCI_CMD_MASTER);
    assert_true(g->gsi[SLOT]);
    assert_int_equal(vg_read(g, b.d.isr, 1), VIRTIO_ISR_QUEUE);
    assert_int_equal(vg_read(g, b.d.isr, 1), 0);
    assert_false(g->gsi[SLOT]);
    assert_int_equal(g->nmsi, 0);
    one_read(&b, 8, 8);
    vdrv_reset(&b.d);                           /* a reset lowers the line */
    assert_false(g->gsi[SLOT]);
    end(&b);
}

static void msix(void **state)
{
    struct bed b = make();
    struct vguest *g = b.g;
    assert_true(vdrv_negotiate(&b.d, ~(uint64_t)VIRTIO_F_EVENT_IDX));
    vdrv_setup_queue(&b.d, 0, 16);
    vdrv_enable_msix(&b.d);
    vdrv_ok(&b.d);
    one_read(&b, 8, 8);
    assert_int_equal(g->nmsi, 1);
    assert_int_equal(g->msi[0].addr, 0xfee00000);
    assert_int_equal(g->msi[0].data, 0x41);
    assert_false(g->gsi[SLOT]);
    uint64_t pba = b.d.msix_table + 0x1000;
    vg_write(g, b.d.msix_table + 16 + 12, 4, 1);                        /* vector masked: pending, and sent once when it may */
    one_read(&b, 8, 8);
    one_read(&b, 8, 8);
    assert_int_equal(g->nmsi, 1);
    assert_int_equal(vg_read(g, pba, 4), 2);
    vg_write(g, b.d.msix_table + 16 + 12, 4, 0);
    assert_int_equal(g->nmsi, 2);
    assert_int_equal(vg_read(g, pba, 4), 0);
    vg_cfg_write(g, SLOT, b.d.msix_cap + PCI_MSIX_CTRL, 2, PCI_MSIX_ENABLE | PCI_MSIX_MASK_ALL);
    one_read(&b, 8, 8);
    assert_int_equal(g->nmsi, 2);
    vg_cfg_write(g, SLOT, b.d.msix_cap + PCI_MSIX_CTRL, 2, PCI_MSIX_ENABLE);
    assert_int_equal(g->nmsi, 3);
    vg_write(g, COMMON(&b.d, queue_msix_vector), 2, 7);                 /* no such vector */
    assert_int_equal(vg_read(g, COMMON(&b.d, queue_msix_vector), 2), VIRTIO_NO_VECTOR);
    one_read(&b, 8, 8);
    assert_int_equal(g->nmsi, 3);
    assert_int_equal(vg_read(g, b.d.msix_table + 1, 2), 0xffff);        /* neither a dword nor a qword */
    end(&b);
}

/* The device driven through configuration space alone (4.1.4.9). */
static uint32_t window(struct bed *b, uint64_t at, unsigned size, bool write, uint32_t val)
{
    uint64_t base = vg_cfg_read(b->g, SLOT, PCI_BAR(0), 4) & PCI_BAR_MEM_MASK;
    vg_cfg_write(b->g, SLOT, b->d.cfg_cap + 4, 1, 0);
    vg_cfg_write(b->g, SLOT, b->d.cfg_cap + 8, 4, (uint32_t)(at - base));
    vg_cfg_write(b->g, SLOT, b->d.cfg_cap + 12, 4, size);
    if (write)
        vg_cfg_write(b->g, SLOT, b->d.cfg_cap + 16, size, val);
    return write ? 0 : vg_cfg_read(b->g, SLOT, b->d.cfg_cap + 16, size);
}

static void cfg_window(void **state)
{
    struct bed b = make();
    assert_true(vdrv_negotiate(&b.d, ~0ull));
    vdrv_setup_queue(&b.d, 0, 16);
    vdrv_ok(&b.d);
    assert_int_equal(window(&b, COMMON(&b.d, device_status), 1, false, 0), 15);
    assert_int_equal(window(&b, COMMON(&b.d, queue_size), 2, false, 0), 16);
    struct vbuf v = { b.buf, 8, true };
    uint32_t id, len;
    vdrv_add(&b.d, 0, &v, 1, false);
    window(&b, b.d.q[0].notify, 2, true, 0);
    assert_true(vdrv_used(&b.d, 0, &id, &len));
    window(&b, COMMON(&b.d, device_status), 1, true, 0);
    assert_int_equal(vdrv_status(&b.d), 0);
    window(&b, 0, 3, true, 0);                                          /* nonsense of all kinds */
    window(&b, b.d.common + 0x7fff0, 4, true, 0);
    assert_int_equal(window(&b, b.d.common + 1, 4, false, 0) | 1, window(&b, b.d.common + 1, 4, false, 0) | 1);
    end(&b);
}

/* Plain MSI on a function made for it: vectors granted, masks, pending, bus mastering. */
static struct msi the_msi;
static void msi_hook(void *dev, unsigned off, unsigned size) { msi_written(dev, off, size); }

static void msi(void **state)
{
    static struct pci_func f;
    struct vguest *g = vguest_create(8 << 20, 1);
    const struct pci_ids ids = { .vendor = 0x8086, .device = 1 };
    pci_func_init(&f, "msi test", &the_msi, &ids);
    f.written = msi_hook;
    msi_init(&the_msi, &f, 2);
    assert_int_equal(pci_plug(pcihost_bus(g->host), &f, 9, 0), 0);
    unsigned cap = vg_cfg_read(g, 9, PCI_CAP_PTR, 1);
    assert_int_equal(vg_cfg_read(g, 9, cap, 1), PCI_CAP_ID_MSI);
    vg_cfg_write(g, 9, PCI_COMMAND, 2, PCI_CMD_MASTER);
    msi_send(&the_msi, 0);                                              /* off: gone */
    vg_cfg_write(g, 9, cap + PCI_MSI_ADDR_LO, 4, 0xfee01003);
    vg_cfg_write(g, 9, cap + PCI_MSI_DATA_64, 2, 0x4053);
    vg_cfg_write(g, 9, cap + PCI_MSI_CTRL, 2, PCI_MSI_ENABLE);          /* one vector granted: all share it */
    assert_int_equal(g->nmsi, 0);
    msi_send(&the_msi, 3);
    assert_int_equal(g->nmsi, 1);
    assert_int_equal(g->msi[0].addr, 0xfee01000);
    assert_int_equal(g->msi[0].data, 0x4053);
    vg_cfg_write(g, 9, cap + PCI_MSI_CTRL, 2, PCI_MSI_ENABLE | 7 << PCI_MSI_MME_SHIFT);        /* more than it has */
    msi_send(&the_msi, 2);
    assert_int_equal(g->msi[1].data, 0x4052);
    vg_cfg_write(g, 9, cap + PCI_MSI_MASK_64, 4, ~0u);
    assert_int_equal(vg_cfg_read(g, 9, cap + PCI_MSI_MASK_64, 4), 0xf);
    msi_send(&the_msi, 1);
    assert_int_equal(g->nmsi, 2);
    assert_int_equal(vg_cfg_read(g, 9, cap + PCI_MSI_PENDING_64, 4), 2);
    vg_cfg_write(g, 9, PCI_COMMAND, 2, 0);
    vg_cfg_write(g, 9, cap + PCI_MSI_MASK_64, 4, 0);
    assert_int_equal(g->nmsi, 2);
    vg_cfg_write(g, 9, PCI_COMMAND, 2, PCI_CMD_MASTER);
    assert_int_equal(g->nmsi, 3);
    assert_int_equal(g->msi[2].data, 0x4051);
    assert_int_equal(vg_cfg_read(g, 9, cap + PCI_MSI_PENDING_64, 4), 0);
    pci_unplug(&f);
    vguest_destroy(g);
}

static void reset(void **state)
{
    struct bed b = make();
    assert_true(vdrv_negotiate(&b.d, ~0ull));
    vdrv_setup_queue(&b.d, 0, 16);
    vdrv_ok(&b.d);
    uint64_t bar = vg_cfg_read(b.g, SLOT, PCI_BAR(0), 4) & PCI_BAR_MEM_MASK;
    virtio_rng_ops.reset(b.rng, GDEV_RESET);
    assert_int_equal(vg_cfg_read(b.g, SLOT, PCI_COMMAND, 2), 0);
    assert_int_equal(vg_cfg_read(b.g, SLOT, PCI_BAR(0), 4), PCI_BAR_64);
    assert_false(bus_claimed(b.g->mem, bar));
    vdrv_probe(&b.d, b.g, SLOT);
    assert_int_equal(vdrv_status(&b.d), 0);
    end(&b);
}

/* ---- Console ---- */

struct con { struct vguest *g; struct virtio_console *dev; struct chan *chan; struct vmclock clock; struct vdrv d; gpa_t buf; };

static void con_make(struct con *c)
{
    host_clock_manual(true);
    c->g = vguest_create(8 << 20, 1);
    c->chan = chan_create(64);
    vmclock_init(&c->clock);
    vmclock_start(&c->clock);
    struct virtio_console_args a = { .gmem = &c->g->gmem, .bus = pcihost_bus(c->g->host), .slot = SLOT, .chan = c->chan, .clock = &c->clock };
    assert_int_equal(virtio_console_create(&a, &c->dev), 0);
    vdrv_probe(&c->d, c->g, SLOT);
    c->buf = vguest_alloc(c->g, 65536, 4096);
    assert_true(vdrv_negotiate(&c->d, ~0ull));
    vdrv_setup_queue(&c->d, 0, 16);
    vdrv_setup_queue(&c->d, 1, 16);
    vdrv_ok(&c->d);
}

static void con_end(struct con *c)
{
    virtio_console_ops.destroy(c->dev);
    chan_destroy(c->chan);
    vguest_destroy(c->g);
    host_clock_manual(false);
}

static void wait_used(struct con *c, unsigned q, uint32_t *len)
{
    uint32_t id;
    while (!vdrv_used(&c->d, q, &id, len))
        thread_yield();
}

static void console_io(void **state)
{
    struct con c;
    uint32_t len;
    char text[16] = "";
    con_make(&c);
    gmem_write(&c.g->gmem, c.buf, "hello", 5);
    struct vbuf out[2] = { { c.buf, 2, false }, { c.buf + 2, 3, false } };
    vdrv_add(&c.d, 1, out, 2, false);
    vdrv_kick(&c.d, 1);
    wait_used(&c, 1, &len);
    assert_int_equal(chan_read(c.chan, CHAN_USER, text, sizeof text), 5);
    assert_string_equal(text, "hello");
    /* Input before there are buffers, and buffers before there is input. */
    struct vbuf in = { c.buf + 4096, 16, true };
    assert_int_equal(chan_write(c.chan, CHAN_USER, "abc", 3), 3);
    vdrv_add(&c.d, 0, &in, 1, false);
    vdrv_kick(&c.d, 0);
    wait_used(&c, 0, &len);
    assert_int_equal(len, 3);
    vdrv_add(&c.d, 0, &in, 1, false);
    vdrv_kick(&c.d, 0);
    assert_int_equal(chan_write(c.chan, CHAN_USER, "xy", 2), 2);
    wait_used(&c, 0, &len);
    assert_int_equal(len, 2);
    gmem_read(&c.g->gmem, c.buf + 4096, text, 2);
    assert_memory_equal(text, "xy", 2);
    con_end(&c);
}

/* More output than the channel holds: it waits for the reader, all of it comes, in order. */
static void console_backpressure(void **state)
{
    struct con c;
    uint8_t data[300], got[300];
    size_t n = 0;
    uint32_t len;
    con_make(&c);
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)i;
    gmem_write(&c.g->gmem, c.buf, data, sizeof data);
    struct vbuf out = { c.buf, sizeof data, false };
    vdrv_add(&c.d, 1, &out, 1, true);
    vdrv_kick(&c.d, 1);
    assert_false(vdrv_used(&c.d, 1, &len, &len));
    while (n < sizeof got) {
        n += chan_read(c.chan, CHAN_USER, got + n, sizeof got - n);
        thread_yield();
    }
    assert_memory_equal(data, got, sizeof data);
    wait_used(&c, 1, &len);
    /* Nobody reads: after the stall time the guest gets its buffer back. */
    vdrv_add(&c.d, 1, &out, 1, true);
    vdrv_kick(&c.d, 1);
    assert_false(vdrv_used(&c.d, 1, &len, &len));
    uint32_t id;
    while (!vdrv_used(&c.d, 1, &id, &len)) {    /* the timer may be armed only now, by the thread that serves the queue */
        host_clock_advance(VCON_STALL_NS);
        thread_yield();
    }
    con_end(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(config_space), cmocka_unit_test(bars), cmocka_unit_test(bar_conflict), cmocka_unit_test(negotiation), cmocka_unit_test(entropy),
        cmocka_unit_test(intx), cmocka_unit_test(msix), cmocka_unit_test(msi), cmocka_unit_test(cfg_window), cmocka_unit_test(reset), cmocka_unit_test(console_io),
        cmocka_unit_test(console_backpressure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
