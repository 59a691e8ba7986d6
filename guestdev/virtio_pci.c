#include "guestdev/virtio_pci.h"

#include <errno.h>
#include <string.h>

/* Layout of BAR 0, a page per structure. */
enum {
    OFF_COMMON = 0x0000, OFF_ISR = 0x1000, OFF_DEVICE = 0x2000, OFF_NOTIFY = 0x3000, OFF_MSIX = 0x4000, OFF_PBA = 0x5000, BAR_BYTES = 0x8000,
    NOTIFY_STRIDE = 4,
};

/* ---- Interrupts ---- */

static void isr_set(struct virtio *v, uint8_t bits)
{
    spin_lock(&v->lock);
    v->isr |= bits;
    pci_set_intx(&v->pci, true);
    spin_unlock(&v->lock);
}

static void interrupt(struct virtio *v, uint16_t vector, uint8_t isr)
{
    if (likely(msix_enabled(&v->msix)))
        msix_send(&v->msix, vector);
    else
        isr_set(v, isr);
}

static int isr_io(void *dev, struct io *io)
{
    struct virtio *v = dev;
    if (io->write)
        return 0;
    spin_lock(&v->lock);
    io->data = v->isr;
    v->isr = 0;
    pci_set_intx(&v->pci, false);
    spin_unlock(&v->lock);
    return 0;
}

void virtio_push(struct virtio *v, unsigned q, uint16_t head, uint32_t written)
{
    struct virtio_queue *vq = &v->queue[q];
    spin_lock(&vq->used_lock);
    virtq_push(&vq->vq, head, written);
    bool signal = virtq_signal(&vq->vq);
    spin_unlock(&vq->used_lock);
    if (signal)
        interrupt(v, vq->vector, VIRTIO_ISR_QUEUE);
}

void virtio_config_changed(struct virtio *v)
{
    spin_lock(&v->lock);
    v->generation++;
    bool tell = v->status & VIRTIO_S_DRIVER_OK;
    uint16_t vector = v->config_vector;
    spin_unlock(&v->lock);
    if (tell)
        interrupt(v, vector, VIRTIO_ISR_CONFIG);
}

/* ---- Life of a negotiation ---- */

/* lock held.  A full barrier goes with the store: see enter(). */
static void update_live(struct virtio *v)
{
    bool live = (v->status & (VIRTIO_S_DRIVER_OK | VIRTIO_S_FEATURES_OK | VIRTIO_S_NEEDS_RESET)) == (VIRTIO_S_DRIVER_OK | VIRTIO_S_FEATURES_OK);
    (void)atomic_xchg(&v->live, live && !v->resetting && !v->paused);
}

static void clear_registers(struct virtio *v)
{
    for (unsigned i = 0; i < v->nqueues; i++) {
        virtq_reset(&v->queue[i].vq);
        v->queue[i].vector = VIRTIO_NO_VECTOR;
    }
    v->features = 0;
    v->device_sel = v->driver_sel = 0;
    v->queue_sel = 0;
    v->config_vector = VIRTIO_NO_VECTOR;
    v->status = v->isr = 0;
    pci_set_intx(&v->pci, false);
}

/*
 * Waiting for the last holder.  While HELD_WATCHED is set the count goes down under the lock only, so a waiter that sees it at zero under the lock knows
 * that nobody will touch the device any more; while it is clear a release is one instruction and the last thing it does to the device.
 */
#define HELD_WATCHED 0x80000000u

/* lock held. */
static void watch(struct virtio *v)
{
    if (v->resetting || v->draining)
        atomic_or(&v->held, HELD_WATCHED);
    else
        atomic_and(&v->held, ~HELD_WATCHED);
}

/* lock held, HELD_WATCHED set: has the time come for what waits? */
static void if_idle(struct virtio *v)
{
    if (atomic_load(&v->held) != HELD_WATCHED)
        return;
    if (v->resetting) {
        v->resetting = false;
        if (v->cls->reset)
            v->cls->reset(v);
        clear_registers(v);
        update_live(v);
        watch(v);
    }
    if (v->draining)
        event_post(&v->drained);
}

static void start_reset(struct virtio *v)
{
    spin_lock(&v->lock);
    v->resetting = true;
    update_live(v);
    watch(v);
    if_idle(v);
    spin_unlock(&v->lock);
}

void virtio_release(struct virtio *v)
{
    uint32_t held = atomic_load(&v->held);
    while (!(held & HELD_WATCHED))
        if (atomic_cas(&v->held, &held, held - 1))
            return;
    spin_lock(&v->lock);
    if (atomic_sub(&v->held, 1) == HELD_WATCHED)
        if_idle(v);
    spin_unlock(&v->lock);
}

void virtio_break(struct virtio *v, const char *why)
{
    log_limited(&v->rl, LOG_WARN, v->cls->name, "needs reset: %s", why);
    spin_lock(&v->lock);
    bool first = !(v->status & VIRTIO_S_NEEDS_RESET) && !v->resetting;
    if (first)
        v->status |= VIRTIO_S_NEEDS_RESET;
    update_live(v);
    spin_unlock(&v->lock);
    if (first)
        virtio_config_changed(v);
}

/* Hold first, look second; the other side stores `live` first and looks at `held` second.  Both are full barriers, so one of the two sees the other. */
static bool enter(struct virtio *v)
{
    virtio_hold(v);
    if (likely(virtio_is_live(v)))
        return true;
    virtio_release(v);
    return false;
}

void virtio_kick(struct virtio *v, unsigned q)
{
    struct virtio_queue *vq = &v->queue[q];
    if (atomic_add(&vq->kicks, 1) != 1)
        return;                         /* somebody is at it and will look again */
    uint64_t seen = 1;
    while (seen) {
        if (enter(v)) {
            if (atomic_load(&vq->vq.enabled))
                v->cls->run(v, q);
            virtio_release(v);
        }
        uint64_t left = atomic_sub(&vq->kicks, seen);
        seen = left;
    }
}

static void kick_all(struct virtio *v)
{
    for (unsigned i = 0; i < v->nqueues; i++)
        virtio_kick(v, i);
}

/* ---- Common configuration ---- */

static struct virtio_queue *selected(struct virtio *v)
{
    return v->queue_sel < v->nqueues ? &v->queue[v->queue_sel] : NULL;
}

static uint32_t feature_word(uint64_t features, uint32_t sel)
{
    return sel < 2 ? (uint32_t)(features >> (32 * sel)) : 0;
}

static void common_image(struct virtio *v, struct virtio_pci_common *c)
{
    struct virtio_queue *vq = selected(v);
    *c = (struct virtio_pci_common){
        .device_feature_select = v->device_sel, .device_feature = feature_word(v->offered, v->device_sel),
        .driver_feature_select = v->driver_sel, .driver_feature = feature_word(v->features, v->driver_sel),
        .config_msix_vector = v->config_vector, .num_queues = (uint16_t)v->nqueues,
        .device_status = v->status, .config_generation = v->generation,
        .queue_select = v->queue_sel, .queue_msix_vector = VIRTIO_NO_VECTOR,
    };
    if (!vq)
        return;
    c->queue_size = vq->vq.size;
    c->queue_msix_vector = vq->vector;
    c->queue_enable = vq->vq.enabled;
    c->queue_notify_off = v->queue_sel;
    c->queue_desc = vq->vq.desc;
    c->queue_driver = vq->vq.driver;
    c->queue_device = vq->vq.device;
}

static void write_features(struct virtio *v, uint32_t val)
{
    if (v->driver_sel > 1 || v->status & VIRTIO_S_FEATURES_OK)
        return;
    unsigned shift = 32 * v->driver_sel;
    v->features = (v->features & ~(0xffffffffull << shift)) | (uint64_t)val << shift;
}

/* Bits are only ever added; 0 resets. */
static void write_status(struct virtio *v, uint8_t val)
{
    bool acceptable = !(v->features & ~v->offered) && v->features & VIRTIO_F_VERSION_1;
    val &= (uint8_t)~VIRTIO_S_NEEDS_RESET;
    if (!(v->status & VIRTIO_S_FEATURES_OK) && !acceptable)
        val &= (uint8_t)~VIRTIO_S_FEATURES_OK;
    v->status |= val;
    update_live(v);
}

static const char *enable_queue(struct virtio *v, struct virtio_queue *vq)
{
    struct virtq *q = &vq->vq;
    if (!(v->status & VIRTIO_S_FEATURES_OK))
        return "queue enabled before FEATURES_OK";
    if (q->desc & 15 || q->driver & 1 || q->device & 3)
        return "queue address not aligned";
    q->event_idx = v->features & VIRTIO_F_EVENT_IDX;
    q->indirect = v->features & VIRTIO_F_INDIRECT_DESC;
    atomic_store(&q->enabled, true);
    return NULL;
}

static void write_half(uint64_t *reg, unsigned half, uint64_t val, unsigned size)
{
    if (size == 8)
        *reg = val;
    else if (size == 4)
        *reg = (*reg & (0xffffffffull << (half ? 0 : 32))) | (val & 0xffffffffu) << (half ? 32 : 0);
}

static const char *write_queue(struct virtio *v, unsigned off, unsigned size, uint64_t val)
{
    struct virtio_queue *vq = selected(v);
    if (!vq)
        return NULL;
    if (off == offsetof(struct virtio_pci_common, queue_msix_vector)) {
        vq->vector = val < v->msix.n ? (uint16_t)val : VIRTIO_NO_VECTOR;
        return NULL;
    }
    if (vq->vq.enabled)                 /* what the rings are is fixed from here on */
        return NULL;
    switch (off) {
    case offsetof(struct virtio_pci_common, queue_size):
        if (!val || val > vq->vq.max || val & (val - 1))
            return "queue size";
        vq->vq.size = (uint16_t)val;
        break;
    case offsetof(struct virtio_pci_common, queue_enable):
        return val == 1 ? enable_queue(v, vq) : NULL;
    case offsetof(struct virtio_pci_common, queue_desc):
    case offsetof(struct virtio_pci_common, queue_desc) + 4:
        write_half(&vq->vq.desc, off & 4, val, size);
        break;
    case offsetof(struct virtio_pci_common, queue_driver):
    case offsetof(struct virtio_pci_common, queue_driver) + 4:
        write_half(&vq->vq.driver, off & 4, val, size);
        break;
    case offsetof(struct virtio_pci_common, queue_device):
    case offsetof(struct virtio_pci_common, queue_device) + 4:
        write_half(&vq->vq.device, off & 4, val, size);
        break;
    }
    return NULL;
}

/* lock held; a sentence when the driver broke a rule that only a reset mends. */
static const char *common_write(struct virtio *v, unsigned off, unsigned size, uint64_t val)
{
    if (v->resetting)                   /* the old driver is gone, the next has to wait for status 0 */
        return NULL;
    switch (off) {
    case offsetof(struct virtio_pci_common, device_feature_select): v->device_sel = (uint32_t)val; return NULL;
    case offsetof(struct virtio_pci_common, driver_feature_select): v->driver_sel = (uint32_t)val; return NULL;
    case offsetof(struct virtio_pci_common, driver_feature):        write_features(v, (uint32_t)val); return NULL;
    case offsetof(struct virtio_pci_common, config_msix_vector):
        v->config_vector = val < v->msix.n ? (uint16_t)val : VIRTIO_NO_VECTOR;
        return NULL;
    case offsetof(struct virtio_pci_common, device_status):         write_status(v, (uint8_t)val); return NULL;
    case offsetof(struct virtio_pci_common, queue_select):          v->queue_sel = (uint16_t)val; return NULL;
    default:                                                        return write_queue(v, off, size, val);
    }
}

static int common_io(void *dev, struct io *io)
{
    struct virtio *v = dev;
    if (io->off + io->size > sizeof(struct virtio_pci_common))
        return -EINVAL;
    if (io->write && io->off == offsetof(struct virtio_pci_common, device_status) && !(io->data & 0xff)) {
        start_reset(v);
        return 0;
    }
    const char *broken = NULL;
    spin_lock(&v->lock);
    if (io->write) {
        broken = common_write(v, (unsigned)io->off, io->size, io->data);
    } else {
        struct virtio_pci_common c;
        common_image(v, &c);
        memcpy(&io->data, (const char *)&c + io->off, io->size);
    }
    spin_unlock(&v->lock);
    if (broken)
        virtio_break(v, broken);
    return 0;
}

static int device_io(void *dev, struct io *io)
{
    struct virtio *v = dev;
    if (io->off + io->size > v->config_len)
        return -EINVAL;
    spin_lock(&v->lock);
    if (!io->write)
        memcpy(&io->data, (const char *)v->config + io->off, io->size);
    spin_unlock(&v->lock);
    if (io->write && v->cls->config_write)
        v->cls->config_write(v, (unsigned)io->off, io->size, io->data);
    return 0;
}

static int notify_io(void *dev, struct io *io)
{
    struct virtio *v = dev;
    unsigned q = (unsigned)io->off / NOTIFY_STRIDE;
    if (!io->write)
        io->data = 0;
    else if (q < v->nqueues)
        virtio_kick(v, q);
    return 0;
}

/* ---- PCI configuration space ---- */

/* The window that the PCI configuration access capability points at, or NULL; *io prepared for it (4.1.4.9). */
static const struct pci_region *cfg_window(struct virtio *v, struct io *io)
{
    const uint8_t *cap = v->pci.cfg + v->cfg_cap;
    uint32_t off = pci_get32(cap + offsetof(struct virtio_pci_cap, offset)), len = pci_get32(cap + offsetof(struct virtio_pci_cap, length));
    if (cap[offsetof(struct virtio_pci_cap, bar)] || (len != 1 && len != 2 && len != 4) || off % len)
        return NULL;
    for (unsigned i = 0; i < ARRAY_SIZE(v->region); i++) {
        const struct pci_region *r = &v->region[i];
        if (off >= r->off && off - r->off + len <= r->len) {
            *io = (struct io){ .off = off - r->off, .size = (uint8_t)len };
            return r;
        }
    }
    return NULL;
}

static void cfg_before_read(void *dev, unsigned off, unsigned size)
{
    struct virtio *v = dev;
    unsigned data = v->cfg_cap + sizeof(struct virtio_pci_cap);
    struct io io;
    const struct pci_region *r;
    if (!pci_touches(off, size, data, 4) || !(r = cfg_window(v, &io)))
        return;
    if (r->fn(r->dev, &io))
        io.data = ~0ull;
    memcpy(v->pci.cfg + data, &io.data, io.size);
}

static void cfg_written(void *dev, unsigned off, unsigned size)
{
    struct virtio *v = dev;
    unsigned data = v->cfg_cap + sizeof(struct virtio_pci_cap);
    struct io io;
    const struct pci_region *r;
    msix_written(&v->msix, off, size);
    if (pci_touches(off, size, PCI_COMMAND, 2) && virtio_is_live(v))
        kick_all(v);                    /* bus mastering may have just come on */
    if (!pci_touches(off, size, data, 4) || !(r = cfg_window(v, &io)))
        return;
    io.write = true;
    io.data = pci_get32(v->pci.cfg + data) & (BIT(8 * io.size) - 1);
    r->fn(r->dev, &io);
}

static unsigned add_cap(struct virtio *v, unsigned type, uint32_t off, uint32_t len, unsigned extra)
{
    unsigned bytes = (unsigned)sizeof(struct virtio_pci_cap) + extra;
    unsigned at = pci_add_cap(&v->pci, PCI_CAP_ID_VENDOR, bytes);
    uint8_t *cap = v->pci.cfg + at;
    cap[offsetof(struct virtio_pci_cap, cap_len)] = (uint8_t)bytes;
    cap[offsetof(struct virtio_pci_cap, cfg_type)] = (uint8_t)type;
    pci_put32(cap + offsetof(struct virtio_pci_cap, offset), off);
    pci_put32(cap + offsetof(struct virtio_pci_cap, length), len);
    return at;
}

static void add_caps(struct virtio *v)
{
    add_cap(v, VIRTIO_PCI_CAP_COMMON, OFF_COMMON, sizeof(struct virtio_pci_common), 0);
    unsigned notify = add_cap(v, VIRTIO_PCI_CAP_NOTIFY, OFF_NOTIFY, NOTIFY_STRIDE * v->nqueues, 4);
    pci_put32(v->pci.cfg + notify + sizeof(struct virtio_pci_cap), NOTIFY_STRIDE);
    add_cap(v, VIRTIO_PCI_CAP_ISR, OFF_ISR, 1, 0);
    if (v->config_len)
        add_cap(v, VIRTIO_PCI_CAP_DEVICE, OFF_DEVICE, (uint32_t)v->config_len, 0);
    v->cfg_cap = (uint8_t)add_cap(v, VIRTIO_PCI_CAP_PCI, 0, 0, 4);
    uint8_t *mask = v->pci.wmask + v->cfg_cap;
    mask[offsetof(struct virtio_pci_cap, bar)] = 0xff;
    pci_put32(mask + offsetof(struct virtio_pci_cap, offset), ~0u);
    pci_put32(mask + offsetof(struct virtio_pci_cap, length), ~0u);
    pci_put32(mask + sizeof(struct virtio_pci_cap), ~0u);
    msix_init(&v->msix, &v->pci, v->nqueues + 1, 0, OFF_MSIX, OFF_PBA);
}

/* ---- Life ---- */

int virtio_init(struct virtio *v, const struct virtio_setup *s)
{
    const struct pci_ids ids = {
        .vendor = VIRTIO_PCI_VENDOR, .device = (uint16_t)VIRTIO_PCI_DEVICE(s->cls->id), .revision = 1, .class_code = s->cls->pci_class,
        .subsys_vendor = VIRTIO_PCI_VENDOR, .subsys = (uint16_t)(0x40 + s->cls->id),
    };
    ASSERT(s->nqueues <= VIRTIO_MAX_QUEUES && s->queue_max <= VIRTQ_MAX);
    memset(v, 0, sizeof *v);
    v->cls = s->cls;
    v->gmem = s->gmem;
    v->nqueues = s->nqueues;
    v->offered = s->features | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
    v->config = s->config;
    v->config_len = s->config_len;
    event_init(&v->drained);
    pci_func_init(&v->pci, s->cls->name, v, &ids);
    v->pci.before_read = cfg_before_read;
    v->pci.written = cfg_written;
    pci_use_intx(&v->pci, 1);
    add_caps(v);
    const struct pci_region regions[] = {
        { OFF_COMMON, sizeof(struct virtio_pci_common), common_io, v, "virtio common" },
        { OFF_ISR, 4, isr_io, v, "virtio ISR" },
        { OFF_DEVICE, MAX(s->config_len, 1ul), device_io, v, "virtio device" },
        { OFF_NOTIFY, NOTIFY_STRIDE * s->nqueues, notify_io, v, "virtio notify" },
        { OFF_MSIX, v->msix.n * sizeof(struct pci_msix_entry), msix_table_io, &v->msix, "MSI-X table" },
        { OFF_PBA, 8, msix_pba_io, &v->msix, "MSI-X pending bits" },
    };
    memcpy(v->region, regions, sizeof regions);
    pci_set_bar(&v->pci, 0, BAR_BYTES, PCI_BAR_64, v->region, ARRAY_SIZE(v->region));
    for (unsigned i = 0; i < v->nqueues; i++) {
        v->queue[i].vq.gmem = s->gmem;
        v->queue[i].vq.max = s->queue_max;
    }
    clear_registers(v);
    return pci_plug(s->bus, &v->pci, s->slot, 0);
}

/* False: still held at the deadline. */
static bool drain_until(struct virtio *v, uint64_t deadline_ns)
{
    bool idle, in_time = true;
    spin_lock(&v->lock);
    v->paused = v->draining = true;
    update_live(v);
    watch(v);
    while (!(idle = atomic_load(&v->held) == HELD_WATCHED) && in_time) {
        spin_unlock(&v->lock);
        in_time = event_wait_until(&v->drained, deadline_ns);
        spin_lock(&v->lock);
    }
    v->draining = false;
    watch(v);
    for (unsigned i = 0; idle && i < v->nqueues; i++)
        virtq_unmap(&v->queue[i].vq);
    spin_unlock(&v->lock);
    return idle;
}

/* Where guest memory or the device itself is about to change hands there is no way but to wait. */
static void drain_fully(struct virtio *v)
{
    while (!drain_until(v, UINT64_MAX))
        ;
}

void virtio_drain(struct virtio *v, uint64_t deadline_ns)
{
    if (!drain_until(v, deadline_ns))
        log_limited(&v->rl, LOG_WARN, v->cls->name, "requests do not end; paused with them in flight");
}

void virtio_resume(struct virtio *v)
{
    spin_lock(&v->lock);
    v->paused = false;
    update_live(v);
    spin_unlock(&v->lock);
    if (v->cls->resume)
        v->cls->resume(v);
    kick_all(v);                        /* a doorbell may have rung while the drain had begun */
}

void virtio_reset(struct virtio *v)
{
    drain_fully(v);
    start_reset(v);
    msix_reset(&v->msix);
    pci_func_reset(&v->pci);
    spin_lock(&v->lock);
    v->paused = false;
    update_live(v);
    spin_unlock(&v->lock);
}

void virtio_fini(struct virtio *v)
{
    if (!v->cls)
        return;
    drain_fully(v);
    pci_unplug(&v->pci);
}

int virtio_snap(struct virtio *v, struct snap *s)
{
    snap_begin(s, v->cls->name, 1);
    pci_func_snap(&v->pci, s);
    msix_snap(&v->msix, s);
    SNAP(s, v->features);
    SNAP(s, v->device_sel);
    SNAP(s, v->driver_sel);
    SNAP(s, v->queue_sel);
    SNAP(s, v->config_vector);
    SNAP(s, v->status);
    SNAP(s, v->isr);
    SNAP(s, v->generation);
    SNAP(s, v->resetting);
    for (unsigned i = 0; i < v->nqueues; i++) {
        if (snap_loading(s))
            virtq_unmap(&v->queue[i].vq);
        virtq_snap(&v->queue[i].vq, s);
        snap_bytes(s, "vq.vector", &v->queue[i].vector, sizeof v->queue[i].vector);
    }
    if (v->cls->snap)
        v->cls->snap(v, s);
    int err = snap_end(s);
    if (!snap_loading(s))
        return err;
    if (!err && v->status & VIRTIO_S_FEATURES_OK && v->features & ~v->offered)
        err = s->err = -EINVAL;         /* saved by a device that had more to offer */
    if (err)
        v->status = VIRTIO_S_NEEDS_RESET;
    spin_lock(&v->lock);
    update_live(v);
    watch(v);
    if_idle(v);
    spin_unlock(&v->lock);
    return err;
}
