/* Configuration access, enumeration, BARs, claims. */
#include "drivers/pci.h"

#include <errno.h>
#include <string.h>

#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/x86/acpi.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/vmap.h"

enum { BUS_BYTES = 1 << 20, MAX_CAPS = 48, MAX_DEPTH = 32 };

static struct list devices = LIST_INIT(devices);
static struct spinlock cf8_lock;

/* ---- Configuration access ---- */

static uint32_t cf8_address(const struct pci_dev *d, unsigned reg)
{
    return (uint32_t)PCI_CFA_ENABLE | (uint32_t)d->bus << 16 | (uint32_t)d->devfn << 8 | (reg & 0xfc);
}

static uint32_t cf8_read(const struct pci_dev *d, unsigned reg, unsigned size)
{
    unsigned long f = spin_lock_irqsave(&cf8_lock);
    outl(PCI_CONFIG_ADDRESS, cf8_address(d, reg));
    uint32_t v = inl(PCI_CONFIG_DATA) >> (reg & 3) * 8;
    spin_unlock_irqrestore(&cf8_lock, f);
    return size == 4 ? v : v & ((1u << 8 * size) - 1);
}

/* By the width asked for: the neighbours may be write-1-to-clear. */
static void cf8_write(const struct pci_dev *d, unsigned reg, unsigned size, uint32_t val)
{
    unsigned long f = spin_lock_irqsave(&cf8_lock);
    outl(PCI_CONFIG_ADDRESS, cf8_address(d, reg));
    uint16_t port = (uint16_t)(PCI_CONFIG_DATA + (reg & 3));
    if (size == 1)
        outb(port, (uint8_t)val);
    else if (size == 2)
        outw(port, (uint16_t)val);
    else
        outl(port, val);
    spin_unlock_irqrestore(&cf8_lock, f);
}

uint32_t pci_read(const struct pci_dev *d, unsigned reg, unsigned size)
{
    volatile uint8_t *p = d->ecam + reg;
    if (!d->ecam)
        return reg > 0xff || d->seg ? ~0u >> (32 - 8 * size) : cf8_read(d, reg, size);
    return size == 1 ? mmio_read8(p) : size == 2 ? mmio_read16(p) : mmio_read32(p);
}

void pci_write(const struct pci_dev *d, unsigned reg, unsigned size, uint32_t val)
{
    volatile uint8_t *p = d->ecam + reg;
    if (!d->ecam) {
        if (reg <= 0xff && !d->seg)
            cf8_write(d, reg, size, val);
    } else if (size == 1) {
        mmio_write8(p, (uint8_t)val);
    } else if (size == 2) {
        mmio_write16(p, (uint16_t)val);
    } else {
        mmio_write32(p, val);
    }
}

unsigned pci_cap_next(const struct pci_dev *d, uint8_t id, unsigned after)
{
    if (!(pci_read16(d, PCI_STATUS) & PCI_STS_CAPS))
        return 0;
    unsigned at = pci_read8(d, after ? after + 1 : PCI_CAP_PTR) & ~3u;
    for (unsigned i = 0; i < MAX_CAPS && at >= 0x40 && at != 0xfc; i++) {      /* a broken list ends somewhere */
        if (pci_read8(d, at) == id)
            return at;
        at = pci_read8(d, at + 1) & ~3u;
    }
    return 0;
}

unsigned pci_cap(const struct pci_dev *d, uint8_t id) { return pci_cap_next(d, id, 0); }

/* ---- BARs ---- */

static uint32_t size_probe(const struct pci_dev *d, unsigned reg)
{
    uint32_t old = pci_read32(d, reg);
    pci_write32(d, reg, ~0u);
    uint32_t mask = pci_read32(d, reg);
    pci_write32(d, reg, old);
    return mask;
}

/* Returns how many registers the BAR takes. */
static unsigned read_bar(struct pci_dev *d, unsigned n)
{
    unsigned reg = PCI_BAR(n);
    uint32_t low = pci_read32(d, reg), mask = size_probe(d, reg);
    struct pci_bar *b = &d->bar[n];
    if (low & PCI_BAR_IO) {
        mask &= PCI_BAR_IO_MASK;
        *b = (struct pci_bar){ .base = low & PCI_BAR_IO_MASK & 0xffff, .len = mask ? (~mask & 0xffff) + 1 : 0, .io = true };
        return 1;
    }
    bool wide = low & PCI_BAR_64;
    uint64_t base = low & PCI_BAR_MEM_MASK, m = mask & PCI_BAR_MEM_MASK;
    if (wide && n + 1 < PCI_BARS) {
        base |= (uint64_t)pci_read32(d, reg + 4) << 32;
        m |= (uint64_t)size_probe(d, reg + 4) << 32;
    } else {
        m |= m ? ~0ull << 32 : 0;
    }
    *b = (struct pci_bar){ .base = base, .len = m ? ~m + 1 : 0, .prefetch = low & PCI_BAR_PREFETCH };
    return wide ? 2 : 1;
}

/* Sizing moves the BARs about: decoding is off meanwhile.  Host bridges are left alone, some stop answering for RAM. */
static void read_bars(struct pci_dev *d)
{
    unsigned n = (d->header & PCI_HDR_TYPE_MASK) == 0 ? PCI_BARS : (d->header & PCI_HDR_TYPE_MASK) == 1 ? 2 : 0;
    if (d->class_code >> 8 == PCI_CLASS_HOST_BRIDGE >> 8)
        return;
    uint16_t cmd = pci_read16(d, PCI_COMMAND);
    pci_write16(d, PCI_COMMAND, cmd & ~(PCI_CMD_IO | PCI_CMD_MEMORY));
    for (unsigned i = 0; i < n; )
        i += read_bar(d, i);
    pci_write16(d, PCI_COMMAND, cmd);
}

/* ---- Enumeration ---- */

static struct { uint64_t bits[4]; } visited[ACPI_MAX_MCFG + 1];

static bool visit(unsigned window, uint8_t bus)
{
    uint64_t bit = BIT(bus & 63), *word = &visited[window].bits[bus >> 6];
    bool first = !(*word & bit);
    *word |= bit;
    return first;
}

static void add_function(const struct pci_dev *probe)
{
    struct pci_dev *d = kzalloc(sizeof *d);
    if (!d) {
        log_err("pci", "no memory for the list of devices");
        return;
    }
    *d = *probe;
    uint32_t id = pci_read32(d, PCI_VENDOR_ID);
    d->vendor = (uint16_t)id, d->device = (uint16_t)(id >> 16);
    d->class_code = pci_read32(d, PCI_REVISION) >> 8;
    d->header = pci_read8(d, PCI_HEADER_TYPE);
    d->irq_line = pci_read8(d, PCI_INT_LINE);
    d->irq_pin = pci_read8(d, PCI_INT_PIN);
    d->dma_mask = 0xffffffff;
    bool endpoint = (d->header & PCI_HDR_TYPE_MASK) == 0;
    if (endpoint) {
        d->subvendor = pci_read16(d, PCI_SUBSYS_VENDOR), d->subdevice = pci_read16(d, PCI_SUBSYS_ID);
        /* Firmware may have left it running: its rings are our memory now. */
        if (d->class_code >> 8 != PCI_CLASS_HOST_BRIDGE >> 8)
            pci_write16(d, PCI_COMMAND, pci_read16(d, PCI_COMMAND) & ~PCI_CMD_MASTER);
    }
    read_bars(d);
    list_append(&devices, &d->link);
}

static void scan_bus(unsigned window, struct pci_dev *at, volatile uint8_t *ecam, uint8_t first, uint8_t last, unsigned depth);

/* The functions of one device; function 0 says whether there are more. */
static void scan_device(unsigned window, struct pci_dev *at, volatile uint8_t *ecam, uint8_t first, uint8_t last, unsigned dev, unsigned depth)
{
    for (unsigned fn = 0; fn < 8; fn++) {
        at->devfn = PCI_DEVFN(dev, fn);
        volatile uint8_t *bus_ecam = at->ecam;
        if (bus_ecam)
            at->ecam = bus_ecam + ((size_t)at->devfn << PCI_ECAM_DEVFN_SHIFT);
        bool there = pci_read16(at, PCI_VENDOR_ID) != 0xffff;
        uint8_t header = there ? pci_read8(at, PCI_HEADER_TYPE) : 0;
        if (there)
            add_function(at);
        if (there && (header & PCI_HDR_TYPE_MASK) == 1 && depth < MAX_DEPTH) {
            uint8_t secondary = pci_read8(at, PCI_BR_SECONDARY);
            struct pci_dev below = { .seg = at->seg, .bus = secondary };
            if (secondary > at->bus && secondary >= first && secondary <= last)
                scan_bus(window, &below, ecam, first, last, depth + 1);
        }
        at->ecam = bus_ecam;
        if (!there || (fn == 0 && !(header & PCI_HDR_MULTI))) {
            if (fn == 0)
                return;
        }
    }
}

static void scan_bus(unsigned window, struct pci_dev *at, volatile uint8_t *ecam, uint8_t first, uint8_t last, unsigned depth)
{
    if (!visit(window, at->bus))
        return;
    at->ecam = ecam ? ecam + (size_t)(at->bus - first) * BUS_BYTES : NULL;
    for (unsigned dev = 0; dev < 32; dev++)
        scan_device(window, at, ecam, first, last, dev, depth);
}

/* Buses behind bridges come with their bridge; what is left are further root buses, which only AML would name. */
static void scan_window(unsigned window, uint16_t seg, volatile uint8_t *ecam, uint8_t first, uint8_t last)
{
    for (unsigned bus = first; bus <= last; bus++) {
        struct pci_dev at = { .seg = seg, .bus = (uint8_t)bus };
        scan_bus(window, &at, ecam, first, last, 0);
    }
}

void pci_init(void)
{
    bool seg0 = false;
    for (unsigned i = 0; i < acpi.mcfgs; i++) {
        uint8_t first = acpi.mcfg[i].bus_first, last = acpi.mcfg[i].bus_last;
        volatile uint8_t *ecam = mmio_map(acpi.mcfg[i].base + (uint64_t)first * BUS_BYTES, (size_t)(last - first + 1) * BUS_BYTES, PT_UC);
        if (!ecam || last < first)
            continue;
        seg0 |= !acpi.mcfg[i].segment;
        scan_window(i, acpi.mcfg[i].segment, ecam, first, last);
    }
    if (!seg0)
        scan_window(ACPI_MAX_MCFG, 0, NULL, 0, 255);
    unsigned n = 0;
    for (struct pci_dev *d = NULL; (d = pci_next(d)) != NULL; n++)
        log_debug("pci", "%04x:%02x:%02x.%u %04x:%04x class %06x", d->seg, d->bus, PCI_DEV(d->devfn), PCI_FN(d->devfn), d->vendor, d->device,
                  (unsigned)d->class_code);
    log_info("pci", "%u functions, by %s", n, seg0 ? "ECAM" : "ports");
}

struct pci_dev *pci_next(const struct pci_dev *d)
{
    const struct list *l = d ? d->link.next : devices.next;
    return l == &devices ? NULL : list_entry(l, struct pci_dev, link);
}

/* ---- Drivers ---- */

int pci_claim(struct pci_dev *d, const char *driver)
{
    if (d->driver)
        return -EBUSY;
    d->driver = driver;
    uint16_t cmd = pci_read16(d, PCI_COMMAND) | PCI_CMD_MASTER;
    for (unsigned i = 0; i < PCI_BARS; i++)
        if (d->bar[i].len && d->bar[i].base)
            cmd |= d->bar[i].io ? PCI_CMD_IO : PCI_CMD_MEMORY;
    pci_write16(d, PCI_COMMAND, cmd);
    return 0;
}

void pci_release(struct pci_dev *d)
{
    pci_write16(d, PCI_COMMAND, pci_read16(d, PCI_COMMAND) & ~PCI_CMD_MASTER);
    pci_irq_disable(d);
    d->driver = NULL;
}

volatile void *pci_map_bar(const struct pci_dev *d, unsigned n, enum pt_memtype type)
{
    const struct pci_bar *b = &d->bar[n];
    return n < PCI_BARS && b->len && b->base && !b->io ? mmio_map(b->base, b->len, type) : NULL;
}

static bool id_matches(const struct pci_id *id, const struct pci_dev *d)
{
    return id->vendor ? id->vendor == d->vendor && id->device == d->device : id->class_code == d->class_code;
}

static bool driver_wants(const struct pci_driver *drv, const struct pci_dev *d)
{
    for (const struct pci_id *id = drv->ids; id->vendor || id->class_code; id++)
        if (id_matches(id, d))
            return true;
    return false;
}

void pci_probe_all(void)
{
    for (struct pci_dev *d = NULL; (d = pci_next(d)) != NULL; )
        for (unsigned i = 0; pci_drivers[i] && !d->driver; i++)
            if (driver_wants(pci_drivers[i], d) && pci_drivers[i]->probe(d) && d->driver)
                pci_release(d);
}
