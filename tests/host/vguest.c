#include "tests/host/vguest.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernel/mm/page.h"

static struct { void *map; size_t len; } arena;

static void on_msi(void *arg, uint64_t addr, uint32_t data)
{
    struct vguest *g = arg;
    spin_lock(&g->lock);
    g->msi[g->nmsi % VG_MSIS].addr = addr;
    g->msi[g->nmsi % VG_MSIS].data = data;
    atomic_store(&g->nmsi, g->nmsi + 1);
    spin_unlock(&g->lock);
}

static void on_gsi(void *arg, unsigned pin, bool level) { ((struct vguest *)arg)->gsi[pin] = level; }
static void on_pic(void *arg, unsigned pin, bool level) { ((struct vguest *)arg)->pic[pin] = level; }

/* One arena per process, at a fixed 2 MiB: pages are numbered from physmap_base. */
static void arena_make(size_t ram)
{
    arena.len = ram + 32 * PAGE_2M;
    arena.map = mmap(NULL, arena.len + PAGE_2M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT(arena.map != MAP_FAILED);
    physmap_base = ALIGN_UP((uintptr_t)arena.map, PAGE_2M) - PAGE_2M;
    page_init();
    page_add_range(PAGE_2M, arena.len - PAGE_2M);
}

struct vguest *vguest_create(uint64_t ram, unsigned nreaders)
{
    struct vguest *g = calloc(1, sizeof *g);
    ASSERT(g);
    arena_make(ram);
    ASSERT(!gmem_init(&g->gmem, ram, 1 << 20) && !gmem_add_range(&g->gmem, 0, ram, false));
    g->mem = bus_create("mmio", 1ull << 40, nreaders);
    g->io = bus_create("port", 0x10000, nreaders);
    struct pci_wires w = { .mem = g->mem, .io = g->io, .msi = { on_msi, g } };
    for (unsigned i = 0; i < 8; i++)
        w.gsi[i] = (struct irqline){ on_gsi, g, i };
    for (unsigned i = 0; i < 16; i++)
        w.pic[i] = (struct irqline){ on_pic, g, i };
    const struct pci_windows win = { .mem32 = 0xc0000000, .mem32_end = 0xfec00000, .mem64 = 0x200000000, .mem64_end = 0x1000000000, .io = 0x1000, .io_end = 0x10000 };
    ASSERT(!pcihost_create(&w, &win, 0x600, &g->host));
    g->heap = 0x10000;
    return g;
}

void vguest_destroy(struct vguest *g)
{
    pcihost_destroy(g->host);
    bus_destroy(g->mem);
    bus_destroy(g->io);
    gmem_fini(&g->gmem);
    munmap(arena.map, arena.len + PAGE_2M);
    free(g);
}

gpa_t vguest_alloc(struct vguest *g, size_t len, size_t align)
{
    gpa_t at = ALIGN_UP(g->heap, (gpa_t)align);
    g->heap = at + len;
    ASSERT(gmem_is_ram(&g->gmem, at, len));
    return at;
}

static uint64_t access(struct bus *b, uint64_t addr, unsigned size, bool write, uint64_t val)
{
    struct io io = { .size = (uint8_t)size, .write = write, .data = val };
    bus_access(b, 0, addr, &io);
    return io_value(&io);
}

uint64_t vg_in(struct vguest *g, unsigned port, unsigned size) { return access(g->io, port, size, false, 0); }
void vg_out(struct vguest *g, unsigned port, unsigned size, uint64_t val) { access(g->io, port, size, true, val); }
uint64_t vg_read(struct vguest *g, uint64_t addr, unsigned size) { return access(g->mem, addr, size, false, 0); }
void vg_write(struct vguest *g, uint64_t addr, unsigned size, uint64_t val) { access(g->mem, addr, size, true, val); }

uint32_t vg_cfg_read(struct vguest *g, unsigned slot, unsigned off, unsigned size)
{
    return (uint32_t)vg_read(g, PCIHOST_ECAM_BASE + (slot << 15) + off, size);
}

void vg_cfg_write(struct vguest *g, unsigned slot, unsigned off, unsigned size, uint32_t val)
{
    vg_write(g, PCIHOST_ECAM_BASE + (slot << 15) + off, size, val);
}

/* ---- Driver ---- */

static uint64_t bar_base(struct vdrv *d, unsigned bar)
{
    uint64_t lo = vg_cfg_read(d->g, d->slot, PCI_BAR(bar), 4);
    uint64_t hi = lo & PCI_BAR_64 ? vg_cfg_read(d->g, d->slot, PCI_BAR(bar + 1), 4) : 0;
    return hi << 32 | (lo & PCI_BAR_MEM_MASK);
}

static void probe_virtio_cap(struct vdrv *d, unsigned at)
{
    unsigned type = vg_cfg_read(d->g, d->slot, at + 3, 1);
    uint64_t where = bar_base(d, vg_cfg_read(d->g, d->slot, at + 4, 1)) + vg_cfg_read(d->g, d->slot, at + 8, 4);
    switch (type) {
    case VIRTIO_PCI_CAP_COMMON: d->common = where; break;
    case VIRTIO_PCI_CAP_ISR:    d->isr = where; break;
    case VIRTIO_PCI_CAP_DEVICE: d->device = where; break;
    case VIRTIO_PCI_CAP_PCI:    d->cfg_cap = at; break;
    case VIRTIO_PCI_CAP_NOTIFY:
        d->notify = where;
        d->notify_mult = vg_cfg_read(d->g, d->slot, at + 16, 4);
        break;
    }
}

void vdrv_probe(struct vdrv *d, struct vguest *g, unsigned slot)
{
    *d = (struct vdrv){ .g = g, .slot = slot };
    pcihost_firmware(g->host);
    vg_cfg_write(g, slot, PCI_COMMAND, 2, PCI_CMD_MEMORY | PCI_CMD_MASTER);
    for (unsigned at = vg_cfg_read(g, slot, PCI_CAP_PTR, 1); at; at = vg_cfg_read(g, slot, at + 1, 1)) {
        unsigned id = vg_cfg_read(g, slot, at, 1);
        if (id == PCI_CAP_ID_VENDOR)
            probe_virtio_cap(d, at);
        if (id == PCI_CAP_ID_MSIX) {
            uint32_t table = vg_cfg_read(g, slot, at + PCI_MSIX_TABLE, 4);
            d->msix_cap = at;
            d->msix_table = bar_base(d, table & 7) + (table & ~7u);
        }
    }
}

#define COMMON(d, field) ((d)->common + offsetof(struct virtio_pci_common, field))

uint8_t vdrv_status(struct vdrv *d) { return (uint8_t)vg_read(d->g, COMMON(d, device_status), 1); }
void vdrv_reset(struct vdrv *d)
{
    vg_write(d->g, COMMON(d, device_status), 1, 0);
    memset(d->q, 0, sizeof d->q);
}

bool vdrv_negotiate(struct vdrv *d, uint64_t wanted)
{
    uint64_t offered = 0;
    vdrv_reset(d);
    vg_write(d->g, COMMON(d, device_status), 1, VIRTIO_S_ACKNOWLEDGE);
    vg_write(d->g, COMMON(d, device_status), 1, VIRTIO_S_ACKNOWLEDGE | VIRTIO_S_DRIVER);
    for (unsigned i = 0; i < 2; i++) {
        vg_write(d->g, COMMON(d, device_feature_select), 4, i);
        offered |= vg_read(d->g, COMMON(d, device_feature), 4) << (32 * i);
    }
    d->features = offered & wanted;
    for (unsigned i = 0; i < 2; i++) {
        vg_write(d->g, COMMON(d, driver_feature_select), 4, i);
        vg_write(d->g, COMMON(d, driver_feature), 4, d->features >> (32 * i));
    }
    vg_write(d->g, COMMON(d, device_status), 1, VIRTIO_S_ACKNOWLEDGE | VIRTIO_S_DRIVER | VIRTIO_S_FEATURES_OK);
    return vdrv_status(d) & VIRTIO_S_FEATURES_OK;
}

void vdrv_setup_queue(struct vdrv *d, unsigned n, unsigned size)
{
    struct vdrv_queue *q = &d->q[n];
    vg_write(d->g, COMMON(d, queue_select), 2, n);
    *q = (struct vdrv_queue){ .size = size };
    q->desc = vguest_alloc(d->g, 16 * size, 16);
    q->avail = vguest_alloc(d->g, VRING_AVAIL_BYTES(size), 2);
    q->used = vguest_alloc(d->g, VRING_USED_BYTES(size), 4);
    gmem_zero(&d->g->gmem, q->avail, VRING_AVAIL_BYTES(size));
    gmem_zero(&d->g->gmem, q->used, VRING_USED_BYTES(size));
    q->notify = d->notify + vg_read(d->g, COMMON(d, queue_notify_off), 2) * d->notify_mult;
    vg_write(d->g, COMMON(d, queue_size), 2, size);
    vg_write(d->g, COMMON(d, queue_desc), 4, (uint32_t)q->desc);
    vg_write(d->g, COMMON(d, queue_desc) + 4, 4, q->desc >> 32);
    vg_write(d->g, COMMON(d, queue_driver), 8, q->avail);
    vg_write(d->g, COMMON(d, queue_device), 8, q->used);
    vg_write(d->g, COMMON(d, queue_enable), 2, 1);
}

void vdrv_enable_msix(struct vdrv *d)
{
    unsigned n = (vg_cfg_read(d->g, d->slot, d->msix_cap + PCI_MSIX_CTRL, 2) & PCI_MSIX_SIZE_MASK) + 1;
    vg_cfg_write(d->g, d->slot, d->msix_cap + PCI_MSIX_CTRL, 2, PCI_MSIX_ENABLE);
    for (unsigned i = 0; i < n; i++) {
        vg_write(d->g, d->msix_table + 16 * i, 8, 0xfee00000);
        vg_write(d->g, d->msix_table + 16 * i + 8, 4, 0x40 + i);
        vg_write(d->g, d->msix_table + 16 * i + 12, 4, 0);
    }
    vg_write(d->g, COMMON(d, config_msix_vector), 2, 0);
    for (unsigned i = 0; i + 1 < n; i++) {
        vg_write(d->g, COMMON(d, queue_select), 2, i);
        vg_write(d->g, COMMON(d, queue_msix_vector), 2, i + 1);
    }
}

void vdrv_ok(struct vdrv *d)
{
    vg_write(d->g, COMMON(d, device_status), 1, vdrv_status(d) | VIRTIO_S_DRIVER_OK);
}

uint16_t vdrv_add(struct vdrv *d, unsigned n, const struct vbuf *b, unsigned count, bool indirect)
{
    struct vdrv_queue *q = &d->q[n];
    struct gmem *m = &d->g->gmem;
    uint16_t head = q->next_desc;
    gpa_t table = indirect ? vguest_alloc(d->g, 16 * count, 16) : 0;
    for (unsigned i = 0; i < count; i++) {
        unsigned at = indirect ? i : (head + i) % q->size, next = indirect ? i + 1 : (at + 1) % q->size;
        struct vring_desc desc = { b[i].gpa, b[i].len, (uint16_t)((b[i].writable ? VRING_DESC_WRITE : 0) | (i + 1 < count ? VRING_DESC_NEXT : 0)), (uint16_t)next };
        gmem_write(m, (indirect ? table : q->desc) + 16 * at, &desc, sizeof desc);
    }
    if (indirect) {
        struct vring_desc desc = { table, 16 * count, VRING_DESC_INDIRECT, 0 };
        gmem_write(m, q->desc + 16 * head, &desc, sizeof desc);
    }
    q->next_desc = (uint16_t)((head + (indirect ? 1 : count)) % q->size);
    gmem_store(m, q->avail + VRING_AVAIL_RING(q->avail_idx % q->size), 2, head);
    gmem_store(m, q->avail + VRING_AVAIL_IDX, 2, ++q->avail_idx);
    return head;
}

void vdrv_kick(struct vdrv *d, unsigned n)
{
    vg_write(d->g, d->q[n].notify, 2, n);
}

bool vdrv_used(struct vdrv *d, unsigned n, uint32_t *id, uint32_t *len)
{
    struct vdrv_queue *q = &d->q[n];
    uint64_t idx = 0, v = 0;
    gmem_load(&d->g->gmem, q->used + VRING_USED_IDX, 2, &idx);
    if ((uint16_t)idx == q->used_seen)
        return false;
    gmem_load(&d->g->gmem, q->used + VRING_USED_RING(q->used_seen % q->size), 4, &v);
    *id = (uint32_t)v;
    gmem_load(&d->g->gmem, q->used + VRING_USED_RING(q->used_seen % q->size) + 4, 4, &v);
    *len = (uint32_t)v;
    q->used_seen++;
    return true;
}
