#include "guestdev/pci.h"

#include <errno.h>
#include <string.h>

#include "kernel/lib/log.h"
#include "kernel/lib/port.h"

struct pci_bus {
    struct mutex lock;
    struct pci_func *func[256];         /* by devfn */
    struct pci_wires wires;
    struct pci_windows win;
    struct ratelimit rl;

    struct spinlock intx_lock;          /* guards the rest */
    unsigned asserted[8];               /* functions that hold each PIRQ high */
    uint8_t pirq_irq[8];
};

/* ---- Describing a function ---- */

void pci_func_init(struct pci_func *f, const char *name, void *dev, const struct pci_ids *ids)
{
    memset(f, 0, sizeof *f);
    f->name = name;
    f->dev = dev;
    f->next_cap = 0x40;
    pci_put16(f->cfg + PCI_VENDOR_ID, ids->vendor);
    pci_put16(f->cfg + PCI_DEVICE_ID, ids->device);
    pci_put16(f->cfg + PCI_SUBSYS_VENDOR, ids->subsys_vendor);
    pci_put16(f->cfg + PCI_SUBSYS_ID, ids->subsys);
    pci_put32(f->cfg + PCI_REVISION, ids->class_code << 8 | ids->revision);
    pci_put16(f->wmask + PCI_COMMAND, PCI_CMD_MASTER | PCI_CMD_PARITY | PCI_CMD_SERR | PCI_CMD_INTX_DISABLE);
    pci_put16(f->w1c + PCI_STATUS, PCI_STS_ERRORS);
    f->wmask[PCI_CACHE_LINE] = 0xff;
    f->wmask[PCI_INT_LINE] = 0xff;
    for (unsigned i = 0; i < 6; i++)
        f->bar[i].at = PCI_UNMAPPED;
}

void pci_set_bar(struct pci_func *f, unsigned n, uint64_t size, unsigned flags, const struct pci_region *regions, unsigned nregions)
{
    ASSERT(n < 6 && size >= 4 && (size & (size - 1)) == 0 && (!(flags & PCI_BAR_64) || n < 5));
    f->bar[n] = (struct pci_bar){ .size = size, .flags = (uint8_t)flags, .regions = regions, .nregions = nregions, .at = PCI_UNMAPPED };
    pci_put32(f->cfg + PCI_BAR(n), flags);
    uint64_t mask = ~(size - 1);
    pci_put32(f->wmask + PCI_BAR(n), (uint32_t)mask & (flags & PCI_BAR_IO ? PCI_BAR_IO_MASK : PCI_BAR_MEM_MASK));
    if (flags & PCI_BAR_64)
        pci_put32(f->wmask + PCI_BAR(n + 1), (uint32_t)(mask >> 32));
    f->wmask[PCI_COMMAND] |= flags & PCI_BAR_IO ? PCI_CMD_IO : PCI_CMD_MEMORY;
}

unsigned pci_add_cap(struct pci_func *f, uint8_t id, unsigned len)
{
    unsigned at = f->next_cap;
    ASSERT(len >= 2 && at + len <= PCI_CFG_BYTES);
    f->cfg[at] = id;
    f->cfg[f->last_cap ? f->last_cap + 1u : PCI_CAP_PTR] = (uint8_t)at;
    f->cfg[PCI_STATUS] |= PCI_STS_CAPS;
    f->last_cap = (uint8_t)at;
    f->next_cap = (uint8_t)MIN(ALIGN_UP(at + len, 4), 0xfcu);
    return at;
}

void pci_use_intx(struct pci_func *f, unsigned pin)
{
    f->cfg[PCI_INT_PIN] = (uint8_t)pin;
}

/* ---- INTx ---- */

/* The swizzle that dsdt.asl's _PRT tells the guest: device d, pin p (INTA = 0) is PIRQ (d + p) mod 8. */
static unsigned intx_pirq(const struct pci_func *f)
{
    return (PCI_DEV(f->devfn) + f->cfg[PCI_INT_PIN] - 1u) & 7;
}

static bool pic_input(const struct pci_bus *b, unsigned irq)
{
    for (unsigned i = 0; i < 8; i++)
        if (b->pirq_irq[i] == irq && b->asserted[i])
            return true;
    return false;
}

static void pic_update(struct pci_bus *b, unsigned irq)
{
    if (irq)
        irqline_set(&b->wires.pic[irq], pic_input(b, irq));
}

/* Recomputes a function's wire from what the device wants and the command register. */
static void intx_update(struct pci_func *f)
{
    struct pci_bus *b = f->bus;
    bool out = f->intx && !(pci_command(f) & PCI_CMD_INTX_DISABLE) && f->cfg[PCI_INT_PIN];
    if (out == f->intx_out)
        return;
    f->intx_out = out;
    unsigned pirq = intx_pirq(f);
    unsigned before = b->asserted[pirq];
    b->asserted[pirq] = out ? before + 1 : before - 1;
    if (!before == !b->asserted[pirq])
        return;
    irqline_set(&b->wires.gsi[pirq], out);
    pic_update(b, b->pirq_irq[pirq]);
}

void pci_set_intx(struct pci_func *f, bool level)
{
    if (!f->bus)
        return;
    spin_lock(&f->bus->intx_lock);
    f->intx = level;
    intx_update(f);
    spin_unlock(&f->bus->intx_lock);
}

void pci_route_pirq(struct pci_bus *b, const uint8_t irq[8])
{
    spin_lock(&b->intx_lock);
    uint8_t old[8];
    memcpy(old, b->pirq_irq, 8);
    for (unsigned i = 0; i < 8; i++)
        b->pirq_irq[i] = irq[i] & 15;
    for (unsigned i = 0; i < 8; i++) {
        pic_update(b, old[i]);
        pic_update(b, b->pirq_irq[i]);
    }
    spin_unlock(&b->intx_lock);
}

/* ---- Mappings ---- */

/* Where the guest wants BAR n, or PCI_UNMAPPED when it does not decode or points outside the windows. */
static uint64_t bar_wanted(const struct pci_func *f, unsigned n)
{
    const struct pci_bar *bar = &f->bar[n];
    const struct pci_windows *w = &f->bus->win;
    uint32_t lo = pci_get32(f->cfg + PCI_BAR(n));
    if (bar->flags & PCI_BAR_IO) {
        uint64_t at = lo & PCI_BAR_IO_MASK;
        bool in = at >= w->io && at < w->io_end && bar->size <= w->io_end - at;
        return in && pci_command(f) & PCI_CMD_IO ? at : PCI_UNMAPPED;
    }
    uint64_t at = lo & PCI_BAR_MEM_MASK;
    if (bar->flags & PCI_BAR_64)
        at |= (uint64_t)pci_get32(f->cfg + PCI_BAR(n + 1)) << 32;
    bool in32 = at >= w->mem32 && at < w->mem32_end && bar->size <= w->mem32_end - at;
    bool in64 = at >= w->mem64 && at < w->mem64_end && bar->size <= w->mem64_end - at;
    return (in32 || in64) && pci_command(f) & PCI_CMD_MEMORY ? at : PCI_UNMAPPED;
}

static struct bus *bar_bus(const struct pci_func *f, const struct pci_bar *bar)
{
    return bar->flags & PCI_BAR_IO ? f->bus->wires.io : f->bus->wires.mem;
}

static void bar_unmap(struct pci_func *f, struct pci_bar *bar)
{
    for (unsigned i = 0; i < bar->nregions; i++)
        bus_remove_later(bar_bus(f, bar), bar->at + bar->regions[i].off, bar->regions[i].dev);
    bar->at = PCI_UNMAPPED;
}

static void bar_map(struct pci_func *f, struct pci_bar *bar, uint64_t at)
{
    for (unsigned i = 0; i < bar->nregions; i++) {
        const struct pci_region *r = &bar->regions[i];
        int err = bus_add(bar_bus(f, bar), at + r->off, r->len, r->fn, r->dev, r->name, BUS_LATER);
        if (!err)
            continue;
        /* Something else is there: this BAR stays out until one of the two moves. */
        log_limited(&f->bus->rl, LOG_WARN, "pci", "%s: BAR at %llx not mapped: error %d", f->name, (unsigned long long)at, -err);
        while (i--)
            bus_remove_later(bar_bus(f, bar), at + bar->regions[i].off, bar->regions[i].dev);
        return;
    }
    bar->at = at;
}

static bool bar_is_stale(const struct pci_func *f, unsigned n)
{
    return f->bar[n].size && f->bar[n].at != bar_wanted(f, n);
}

/* One new map for all that has changed; without memory for it the next change shows it. */
static void publish(struct pci_bus *b)
{
    int mem = bus_publish(b->wires.mem), io = bus_publish(b->wires.io);
    if (mem || io)
        log_limited(&b->rl, LOG_WARN, "pci", "no memory to move BARs");
}

/* Everything that must leave its place first, then everything that wants one: a guest may swap two BARs, or free a place that another waits for. */
static void remap(struct pci_bus *b)
{
    for (unsigned i = 0; i < 256; i++)
        for (unsigned n = 0; b->func[i] && n < 6; n++)
            if (bar_is_stale(b->func[i], n) && b->func[i]->bar[n].at != PCI_UNMAPPED)
                bar_unmap(b->func[i], &b->func[i]->bar[n]);
    for (unsigned i = 0; i < 256; i++)
        for (unsigned n = 0; b->func[i] && n < 6; n++)
            if (bar_is_stale(b->func[i], n) && b->func[i]->bar[n].at == PCI_UNMAPPED && bar_wanted(b->func[i], n) != PCI_UNMAPPED)
                bar_map(b->func[i], &b->func[i]->bar[n], bar_wanted(b->func[i], n));
    publish(b);
}

/* ---- Configuration space ---- */

static struct pci_func *find(struct pci_bus *b, uint32_t bdf)
{
    return bdf < 256 ? b->func[bdf] : NULL;
}

uint32_t pci_cfg_read(struct pci_bus *b, uint32_t bdf, unsigned off, unsigned size)
{
    uint32_t v = ~0u;
    mutex_lock(&b->lock);
    struct pci_func *f = find(b, bdf);
    if (f && off + size <= PCI_CFG_BYTES) {
        if (f->before_read)
            f->before_read(f->dev, off, size);
        v = 0;
        for (unsigned i = 0; i < size; i++)
            v |= (uint32_t)f->cfg[off + i] << (8 * i);
        if (off <= PCI_STATUS && PCI_STATUS < off + size && READ_ONCE(f->intx))
            v |= PCI_STS_INTX << (8 * (PCI_STATUS - off));
    } else if (f) {
        v = 0;                          /* no extended capabilities */
    }
    mutex_unlock(&b->lock);
    return v;
}

static void store(struct pci_func *f, unsigned off, unsigned size, uint32_t val)
{
    uint8_t new[4];
    for (unsigned i = 0; i < size; i++) {
        uint8_t v = (uint8_t)(val >> (8 * i)), at = (uint8_t)(off + i);
        new[i] = (uint8_t)((f->cfg[at] & ~f->wmask[at]) | (v & f->wmask[at]));
        new[i] &= (uint8_t)~(v & f->w1c[at]);
    }
    /* The command register is read without the lock: no torn value, please. */
    if (off == PCI_COMMAND && size >= 2) {
        atomic_store((uint16_t *)(void *)&f->cfg[off], pci_get16(new));
        memcpy(f->cfg + off + 2, new + 2, size - 2);
    } else {
        memcpy(f->cfg + off, new, size);
    }
}

void pci_cfg_write(struct pci_bus *b, uint32_t bdf, unsigned off, unsigned size, uint32_t val)
{
    mutex_lock(&b->lock);
    struct pci_func *f = find(b, bdf);
    if (f && off + size <= PCI_CFG_BYTES) {
        store(f, off, size, val);
        if (pci_touches(off, size, PCI_COMMAND, 2)) {
            spin_lock(&b->intx_lock);
            intx_update(f);
            spin_unlock(&b->intx_lock);
            remap(b);
        } else if (pci_touches(off, size, PCI_BAR(0), 24)) {
            remap(b);
        }
        if (f->written)
            f->written(f->dev, off, size);
    }
    mutex_unlock(&b->lock);
}

/* ---- Life ---- */

struct pci_bus *pci_bus_create(const struct pci_wires *wires, const struct pci_windows *win)
{
    struct pci_bus *b = kzalloc(sizeof *b);
    if (!b)
        return NULL;
    mutex_init(&b->lock);
    b->wires = *wires;
    b->win = *win;
    return b;
}

void pci_bus_destroy(struct pci_bus *b)
{
    if (!b)
        return;
    for (unsigned i = 0; i < 256; i++)
        ASSERT(!b->func[i]);
    kfree(b);
}

const struct pci_wires *pci_wires(const struct pci_bus *b)
{
    return &b->wires;
}

int pci_plug(struct pci_bus *b, struct pci_func *f, unsigned slot, unsigned fn)
{
    uint8_t devfn = PCI_DEVFN(slot, fn);
    mutex_lock(&b->lock);
    int err = b->func[devfn] ? -EBUSY : 0;
    if (!err) {
        f->bus = b;
        f->devfn = devfn;
        memcpy(f->initial, f->cfg, sizeof f->initial);
        b->func[devfn] = f;
    }
    mutex_unlock(&b->lock);
    return err;
}

static void unmap_all(struct pci_func *f)
{
    for (unsigned n = 0; n < 6; n++)
        if (f->bar[n].size && f->bar[n].at != PCI_UNMAPPED)
            bar_unmap(f, &f->bar[n]);
    publish(f->bus);
}

void pci_unplug(struct pci_func *f)
{
    struct pci_bus *b = f->bus;
    if (!b)
        return;
    pci_set_intx(f, false);
    mutex_lock(&b->lock);
    unmap_all(f);
    b->func[f->devfn] = NULL;
    f->bus = NULL;
    mutex_unlock(&b->lock);
}

void pci_func_reset(struct pci_func *f)
{
    pci_set_intx(f, false);
    mutex_lock(&f->bus->lock);
    unmap_all(f);
    memcpy(f->cfg, f->initial, sizeof f->cfg);
    mutex_unlock(&f->bus->lock);
}

void pci_func_snap(struct pci_func *f, struct snap *s)
{
    uint8_t cfg[PCI_CFG_BYTES];
    bool intx = f->intx;
    memcpy(cfg, f->cfg, sizeof cfg);
    snap_bytes(s, "pci.cfg", cfg, sizeof cfg);
    snap_bytes(s, "pci.intx", &intx, sizeof intx);
    if (!snap_loading(s) || s->err)
        return;
    mutex_lock(&f->bus->lock);
    for (unsigned i = 0; i < PCI_CFG_BYTES; i++)
        f->cfg[i] = (uint8_t)((f->cfg[i] & ~f->wmask[i]) | (cfg[i] & f->wmask[i]));
    remap(f->bus);
    mutex_unlock(&f->bus->lock);
    pci_set_intx(f, intx);
}

/* ---- Firmware's part ---- */

static void assign_bar(struct pci_func *f, unsigned n, uint64_t *next, uint64_t end)
{
    struct pci_bar *bar = &f->bar[n];
    uint64_t size = bar->flags & PCI_BAR_IO ? bar->size : MAX(bar->size, PAGE_SIZE);
    uint64_t at = ALIGN_UP(*next, size);
    if (at < *next || at > end || size > end - at)
        return;
    *next = at + size;
    pci_put32(f->cfg + PCI_BAR(n), (uint32_t)at | bar->flags);
    if (bar->flags & PCI_BAR_64)
        pci_put32(f->cfg + PCI_BAR(n + 1), (uint32_t)(at >> 32));
}

static void assign_func(struct pci_func *f, struct pci_windows *w)
{
    for (unsigned n = 0; n < 6; n++) {
        const struct pci_bar *bar = &f->bar[n];
        bool high = bar->flags & PCI_BAR_64 && bar->size > (256u << 20) && w->mem64 < w->mem64_end;
        if (!bar->size)
            continue;
        if (bar->flags & PCI_BAR_IO)
            assign_bar(f, n, &w->io, w->io_end);
        else if (high)
            assign_bar(f, n, &w->mem64, w->mem64_end);
        else
            assign_bar(f, n, &w->mem32, w->mem32_end);
    }
    f->cfg[PCI_COMMAND] |= f->wmask[PCI_COMMAND] & (PCI_CMD_IO | PCI_CMD_MEMORY);
}

void pci_assign(struct pci_bus *b)
{
    mutex_lock(&b->lock);
    struct pci_windows next = b->win;
    next.mem32 = MAX(next.mem32, next.mem32_first);
    next.io = MAX(next.io, next.io_first);
    for (unsigned i = 0; i < 256; i++) {
        struct pci_func *f = b->func[i];
        if (!f)
            continue;
        assign_func(f, &next);
        if (f->cfg[PCI_INT_PIN])
            f->cfg[PCI_INT_LINE] = b->pirq_irq[intx_pirq(f)];
    }
    remap(b);
    mutex_unlock(&b->lock);
}
