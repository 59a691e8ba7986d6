#include "guestdev/pcihost.h"

#include <errno.h>

#include "kernel/lib/port.h"

struct pcihost {
    struct pci_bus *bus;
    struct bus *ports, *mem;
    struct pci_func bridge, lpc;
    uint32_t address;                   /* CF8h; word-sized, racing CPUs get what they deserve */
    io_fn *reset_port;                  /* CF9h */
    void *reset_dev;
};

/* ---- CF8h/CFCh ---- */

/* Splits what crosses a dword of configuration space into bytes, as the bus does with a naturally aligned register file. */
static void cfg_access(struct pcihost *h, uint32_t bdf, unsigned off, struct io *io)
{
    unsigned step = io->size > 4 ? 4 : io->size;
    if (off % step)
        step = 1;
    uint64_t val = 0;
    for (unsigned i = 0; i < io->size; i += step) {
        if (io->write)
            pci_cfg_write(h->bus, bdf, off + i, step, (uint32_t)(io->data >> (8 * i)));
        else
            val |= (uint64_t)(pci_cfg_read(h->bus, bdf, off + i, step) & BITS(8 * step - 1, 0)) << (8 * i);
    }
    if (!io->write)
        io->data = val;
}

static int config_ports_io(void *dev, struct io *io)
{
    struct pcihost *h = dev;
    if (io->off == 0 && io->size == 4) {
        if (io->write)
            WRITE_ONCE(h->address, (uint32_t)io->data & ~3u);
        else
            io->data = READ_ONCE(h->address);
        return 0;
    }
    if (io->off == 1 && io->size == 1 && h->reset_port) {
        io->off = 0;
        return h->reset_port(h->reset_dev, io);
    }
    uint32_t a = READ_ONCE(h->address);
    if (io->off < 4 || !(a & PCI_CFA_ENABLE))
        return -ENODEV;
    cfg_access(h, a >> 8 & 0xffff, (a & 0xfc) + (unsigned)io->off - 4, io);
    return 0;
}

static int ecam_io(void *dev, struct io *io)
{
    unsigned off = (unsigned)io->off & 0xfff;
    if (off + io->size > 0x1000)
        return -EINVAL;
    cfg_access(dev, (uint32_t)(io->off >> PCI_ECAM_DEVFN_SHIFT), off, io);
    return 0;
}

/* ---- Bridges ---- */

static void lpc_written(void *dev, unsigned off, unsigned size)
{
    struct pcihost *h = dev;
    uint8_t irq[8];
    for (unsigned i = 0; i < 8; i++) {
        uint8_t r = h->lpc.cfg[i < 4 ? ICH9_PIRQ_A + i : ICH9_PIRQ_E + i - 4];
        /* IRQ 0, 1, 2, 8 and 13 are reserved encodings. */
        unsigned n = r & ICH9_PIRQ_IRQ_MASK;
        irq[i] = r & ICH9_PIRQ_OFF || !(0xdef8u >> n & 1) ? 0 : (uint8_t)n;
    }
    pci_route_pirq(h->bus, irq);
}

static void init_bridge(struct pcihost *h)
{
    static const struct pci_ids ids = { .vendor = Q35_VENDOR, .device = Q35_MCH_DEVICE, .class_code = PCI_CLASS_HOST_BRIDGE };
    pci_func_init(&h->bridge, "host bridge", h, &ids);
    pci_put32(h->bridge.cfg + Q35_PCIEXBAR, (uint32_t)PCIHOST_ECAM_BASE | Q35_PCIEXBAR_256M | Q35_PCIEXBAR_ENABLE);
}

static void init_lpc(struct pcihost *h, uint16_t pm_base)
{
    static const struct pci_ids ids = { .vendor = Q35_VENDOR, .device = ICH9_LPC_DEVICE, .revision = 2, .class_code = PCI_CLASS_ISA_BRIDGE };
    pci_func_init(&h->lpc, "LPC bridge", h, &ids);
    h->lpc.cfg[PCI_HEADER_TYPE] = PCI_HDR_MULTI;
    pci_put16(h->lpc.cfg + PCI_COMMAND, PCI_CMD_IO | PCI_CMD_MEMORY | PCI_CMD_MASTER);
    pci_put32(h->lpc.cfg + ICH9_PMBASE, pm_base | ICH9_PMBASE_IO);
    h->lpc.cfg[ICH9_ACPI_CTRL] = ICH9_ACPI_EN;
    for (unsigned i = 0; i < 4; i++) {
        h->lpc.cfg[ICH9_PIRQ_A + i] = h->lpc.cfg[ICH9_PIRQ_E + i] = ICH9_PIRQ_OFF;
        h->lpc.wmask[ICH9_PIRQ_A + i] = h->lpc.wmask[ICH9_PIRQ_E + i] = ICH9_PIRQ_OFF | ICH9_PIRQ_IRQ_MASK;
    }
    h->lpc.written = lpc_written;
}

/* ---- Life ---- */

int pcihost_create(const struct pci_wires *wires, const struct pci_windows *win, uint16_t pm_base, struct pcihost **out)
{
    struct pcihost *h = kzalloc(sizeof *h);
    if (!h)
        return -ENOMEM;
    h->ports = wires->io;
    h->mem = wires->mem;
    int err = -ENOMEM;
    h->bus = pci_bus_create(wires, win);
    if (!h->bus)
        goto fail;
    init_bridge(h);
    init_lpc(h, pm_base);
    err = bus_add(h->ports, PCI_CONFIG_ADDRESS, 8, config_ports_io, h, "PCI configuration", 0);
    if (!err)
        err = bus_add(h->mem, PCIHOST_ECAM_BASE, PCIHOST_ECAM_LEN, ecam_io, h, "PCI ECAM", 0);
    if (!err)
        err = pci_plug(h->bus, &h->bridge, 0, 0);
    if (!err)
        err = pci_plug(h->bus, &h->lpc, 31, 0);
    if (err)
        goto fail;
    *out = h;
    return 0;
fail:
    pcihost_destroy(h);
    return err;
}

void pcihost_destroy(struct pcihost *h)
{
    if (!h)
        return;
    pci_unplug(&h->lpc);
    pci_unplug(&h->bridge);
    bus_remove(h->mem, PCIHOST_ECAM_BASE, h);
    bus_remove(h->ports, PCI_CONFIG_ADDRESS, h);
    pci_bus_destroy(h->bus);
    kfree(h);
}

void pcihost_set_reset_port(struct pcihost *h, io_fn *fn, void *dev)
{
    h->reset_port = fn;
    h->reset_dev = dev;
}

struct pci_bus *pcihost_bus(struct pcihost *h)
{
    return h->bus;
}

void pcihost_firmware(struct pcihost *h)
{
    static const uint8_t irqs[4] = { 10, 10, 11, 11 };
    uint32_t lpc = PCI_DEVFN(31, 0);
    for (unsigned i = 0; i < 4; i++) {
        pci_cfg_write(h->bus, lpc, ICH9_PIRQ_A + i, 1, irqs[i]);
        pci_cfg_write(h->bus, lpc, ICH9_PIRQ_E + i, 1, irqs[i]);
    }
    pci_assign(h->bus);
}

static void pcihost_reset(void *dev, enum gdev_reset kind)
{
    struct pcihost *h = dev;
    h->address = 0;
    pci_func_reset(&h->bridge);
    pci_func_reset(&h->lpc);
    lpc_written(h, 0, 0);
}

static int pcihost_snap(void *dev, struct snap *s)
{
    struct pcihost *h = dev;
    snap_begin(s, "pcihost", 1);
    SNAP(s, h->address);
    pci_func_snap(&h->bridge, s);
    pci_func_snap(&h->lpc, s);
    int err = snap_end(s);
    if (!err && snap_loading(s))
        lpc_written(h, 0, 0);
    return err;
}

static void pcihost_ops_destroy(void *dev)
{
    pcihost_destroy(dev);
}

const struct gdev_ops pcihost_ops = { .name = "pcihost", .reset = pcihost_reset, .snap = pcihost_snap, .destroy = pcihost_ops_destroy };
