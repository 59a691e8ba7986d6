#include "guestdev/virtq.h"

#include <errno.h>
#include <string.h>

/* ---- The rings in host memory ---- */

static void *area_at(const struct virtq_area *a, unsigned off)
{
    off += a->off;
    return a->page[off / PAGE_SIZE] + off % PAGE_SIZE;
}

/* Words of the rings are naturally aligned (the transport checked the bases), so none crosses a page. */
static uint16_t *word16(const struct virtq_area *a, unsigned off)
{
    return area_at(a, off);
}

static void area_unmap(struct virtq *q, struct virtq_area *a, bool written)
{
    gmem_unpin(q->gmem, a->iov, a->niov, written);
    a->niov = 0;
}

static int area_map(struct virtq *q, struct virtq_area *a, gpa_t gpa, size_t len, enum gmem_prot prot)
{
    int n = gmem_pin(q->gmem, gpa, len, prot, a->iov, VIRTQ_AREA_PAGES);
    if (n < 0)
        return n;
    a->niov = n;
    a->off = (unsigned)(gpa & (PAGE_SIZE - 1));
    unsigned page = 0;
    for (int i = 0; i < n; i++) {
        char *at = a->iov[i].base, *end = at + a->iov[i].len;
        if (i == 0)
            at -= a->off;
        for (; at < end; at += PAGE_SIZE)
            a->page[page++] = at;
    }
    return 0;
}

static int virtq_map(struct virtq *q)
{
    if (!q->enabled || !q->size)
        return -EPROTO;
    if (area_map(q, &q->a_desc, q->desc, q->size * sizeof(struct vring_desc), GMEM_READ))
        return -EPROTO;
    if (area_map(q, &q->a_driver, q->driver, VRING_AVAIL_BYTES(q->size), GMEM_READ))
        goto no_driver;
    if (area_map(q, &q->a_device, q->device, VRING_USED_BYTES(q->size), GMEM_WRITE))
        goto no_device;
    q->mapped = true;
    return 0;
no_device:
    area_unmap(q, &q->a_driver, false);
no_driver:
    area_unmap(q, &q->a_desc, false);
    return -EPROTO;
}

void virtq_unmap(struct virtq *q)
{
    if (!q->mapped)
        return;
    q->mapped = false;
    area_unmap(q, &q->a_desc, false);
    area_unmap(q, &q->a_driver, false);
    area_unmap(q, &q->a_device, true);
}

void virtq_reset(struct virtq *q)
{
    virtq_unmap(q);
    q->size = q->max;
    q->enabled = q->event_idx = q->indirect = false;
    q->desc = q->driver = q->device = 0;
    q->last_avail = q->used = q->signalled = 0;
}

/* ---- Walking ---- */

/* One segment into the chain.  Lengths stay below 4 GiB in total, the width of the used ring's length. */
static int add_segment(struct vchain *c, const struct vring_desc *d)
{
    bool writable = d->flags & VRING_DESC_WRITE;
    if (!writable && c->nwrite)         /* 2.7.4.2: readable before writable */
        return -EPROTO;
    uint32_t *len = writable ? &c->write_len : &c->read_len;
    if (c->nread + c->nwrite == c->max || d->len > UINT32_MAX - *len)
        return -EPROTO;
    if (!d->len)
        return 0;
    c->seg[c->nread + c->nwrite] = (struct vseg){ d->addr, d->len };
    *len += d->len;
    if (writable)
        c->nwrite++;
    else
        c->nread++;
    return 0;
}

/* An indirect table is read through a window, so that the usual short and sequential one costs a single copy. */
enum { WINDOW = 16 };

static int walk_indirect(struct virtq *q, struct vchain *c, const struct vring_desc *table)
{
    struct vring_desc win[WINDOW];
    uint32_t n = table->len / sizeof win[0], first = 0, have = 0, i = 0;
    if (!q->indirect || !n || n > UINT16_MAX + 1u || table->len % sizeof win[0])
        return -EPROTO;
    for (uint32_t left = n; left; left--) {
        if (i - first >= have) {
            first = i;
            have = MIN(n - first, (uint32_t)WINDOW);
            if (gmem_read(q->gmem, table->addr + first * sizeof win[0], win, have * sizeof win[0]))
                return -EPROTO;
        }
        const struct vring_desc *d = &win[i - first];
        if (d->flags & VRING_DESC_INDIRECT || add_segment(c, d))
            return -EPROTO;
        if (!(d->flags & VRING_DESC_NEXT))
            return 1;
        i = d->next;
        if (i >= n)
            return -EPROTO;
    }
    return -EPROTO;                     /* a loop */
}

static int walk(struct virtq *q, uint16_t head, struct vchain *c)
{
    c->head = head;
    c->nread = c->nwrite = 0;
    c->read_len = c->write_len = 0;
    uint16_t i = head;
    for (uint32_t left = q->size; left; left--) {
        if (i >= q->size)
            return -EPROTO;
        struct vring_desc d;
        const volatile struct vring_desc *src = area_at(&q->a_desc, i * (unsigned)sizeof d);
        d.addr = src->addr, d.len = src->len, d.flags = src->flags, d.next = src->next;
        if (d.flags & VRING_DESC_INDIRECT)
            return d.flags & VRING_DESC_NEXT ? -EPROTO : walk_indirect(q, c, &d);   /* 2.7.5.3.1: never both */
        if (add_segment(c, &d))
            return -EPROTO;
        if (!(d.flags & VRING_DESC_NEXT))
            return 1;
        i = d.next;
    }
    return -EPROTO;                     /* a loop */
}

int virtq_pop_head(struct virtq *q, uint16_t head, struct vchain *c)
{
    if (!q->mapped && virtq_map(q))
        return -EPROTO;
    return walk(q, head, c);
}

int virtq_pop(struct virtq *q, struct vchain *c)
{
    if (!q->mapped && virtq_map(q))
        return -EPROTO;
    uint16_t ready = (uint16_t)(atomic_load(word16(&q->a_driver, VRING_AVAIL_IDX)) - q->last_avail);
    if (!ready)
        return 0;
    if (ready > q->size)
        return -EPROTO;
    uint16_t head = READ_ONCE(*word16(&q->a_driver, VRING_AVAIL_RING(q->last_avail & (q->size - 1u))));
    q->last_avail++;
    return walk(q, head, c);
}

void virtq_suppress(struct virtq *q)
{
    /* With event_idx the stale avail_event already does it. */
    if (q->mapped && !q->event_idx)
        atomic_store_relaxed(word16(&q->a_device, VRING_USED_FLAGS), VRING_USED_NO_NOTIFY);
}

bool virtq_rearm(struct virtq *q)
{
    if (!q->mapped)
        return false;
    if (q->event_idx)
        atomic_store_relaxed(word16(&q->a_device, VRING_USED_AVAIL_EVENT(q->size)), q->last_avail);
    else
        atomic_store_relaxed(word16(&q->a_device, VRING_USED_FLAGS), 0);
    atomic_fence();                     /* pairs with the driver's barrier between its index and its look at our wish (2.7.7.1) */
    return atomic_load(word16(&q->a_driver, VRING_AVAIL_IDX)) != q->last_avail;
}

/* ---- Giving back ---- */

void virtq_push(struct virtq *q, uint16_t head, uint32_t written)
{
    if (!q->mapped)
        return;
    unsigned at = VRING_USED_RING(q->used & (q->size - 1u));    /* 4-aligned only: its two words may lie on two pages */
    atomic_store_relaxed((uint32_t *)area_at(&q->a_device, at), head);
    atomic_store_relaxed((uint32_t *)area_at(&q->a_device, at + 4), written);
    q->used++;
    atomic_store(word16(&q->a_device, VRING_USED_IDX), q->used);
}

bool virtq_signal(struct virtq *q)
{
    if (!q->mapped)
        return false;
    uint16_t old = q->signalled;
    q->signalled = q->used;
    atomic_fence();                     /* our index before our look at the driver's wish (2.7.10.1) */
    if (!q->event_idx)
        return !(READ_ONCE(*word16(&q->a_driver, VRING_AVAIL_FLAGS)) & VRING_AVAIL_NO_INTERRUPT);
    return vring_need_event(READ_ONCE(*word16(&q->a_driver, VRING_AVAIL_USED_EVENT(q->size))), q->used, old);
}

/* ---- Streams ---- */

/* First segment of a stream and how many there are. */
static const struct vseg *stream(const struct vchain *c, bool writable, unsigned *n)
{
    *n = writable ? c->nwrite : c->nread;
    return writable ? c->seg + c->nread : c->seg;
}

static long copy(const struct virtq *q, const struct vchain *c, bool writable, size_t off, void *buf, size_t len)
{
    unsigned n;
    const struct vseg *s = stream(c, writable, &n);
    size_t done = 0;
    for (; n && done < len; n--, s++) {
        if (off >= s->len) {
            off -= s->len;
            continue;
        }
        size_t k = MIN(s->len - off, len - done);
        char *at = (char *)buf + done;
        if (writable ? gmem_write(q->gmem, s->gpa + off, at, k) : gmem_read(q->gmem, s->gpa + off, at, k))
            return -EFAULT;
        done += k;
        off = 0;
    }
    return (long)done;
}

long vchain_read(const struct virtq *q, const struct vchain *c, size_t off, void *buf, size_t len)
{
    return copy(q, c, false, off, buf, len);
}

long vchain_write(const struct virtq *q, const struct vchain *c, size_t off, const void *buf, size_t len)
{
    return copy(q, c, true, off, (void *)(uintptr_t)buf, len);
}

/* Bytes from gpa that certainly fit into `room` entries: each page needs at most one. */
static size_t fits(gpa_t gpa, size_t len, int room)
{
    return MIN(len, (size_t)room * PAGE_SIZE - (gpa & (PAGE_SIZE - 1)));
}

long vchain_pin(const struct virtq *q, const struct vchain *c, bool writable, size_t off, size_t len, struct iov *iov, int max, int *niov)
{
    unsigned n;
    const struct vseg *s = stream(c, writable, &n);
    enum gmem_prot prot = writable ? GMEM_WRITE : GMEM_READ;
    size_t done = 0;
    int used = 0;
    for (; n && done < len && used < max; n--, s++) {
        if (off >= s->len) {
            off -= s->len;
            continue;
        }
        gpa_t gpa = s->gpa + off;
        size_t want = MIN(s->len - off, len - done);
        int k = gmem_pin(q->gmem, gpa, want, prot, iov + used, max - used);
        bool cut = k == -E2BIG;
        if (cut) {
            want = fits(gpa, want, max - used);
            k = gmem_pin(q->gmem, gpa, want, prot, iov + used, max - used);
        }
        if (k < 0) {
            gmem_unpin(q->gmem, iov, used, false);
            return -EFAULT;
        }
        used += k;
        done += want;
        off = 0;
        if (cut)
            break;
    }
    *niov = used;
    return (long)done;
}

int vchain_pin_last(const struct virtq *q, const struct vchain *c, struct iov *iov)
{
    if (!c->nwrite)
        return -EFAULT;
    const struct vseg *s = &c->seg[c->nread + c->nwrite - 1];
    return gmem_pin(q->gmem, s->gpa + s->len - 1, 1, GMEM_WRITE, iov, 1) == 1 ? 0 : -EFAULT;
}

/* ---- Snapshot ---- */

void virtq_snap(struct virtq *q, struct snap *s)
{
    snap_bytes(s, "vq.size", &q->size, sizeof q->size);
    snap_bytes(s, "vq.enabled", &q->enabled, sizeof q->enabled);
    snap_bytes(s, "vq.event_idx", &q->event_idx, sizeof q->event_idx);
    snap_bytes(s, "vq.indirect", &q->indirect, sizeof q->indirect);
    snap_bytes(s, "vq.desc", &q->desc, sizeof q->desc);
    snap_bytes(s, "vq.driver", &q->driver, sizeof q->driver);
    snap_bytes(s, "vq.device", &q->device, sizeof q->device);
    snap_bytes(s, "vq.last_avail", &q->last_avail, sizeof q->last_avail);
    snap_bytes(s, "vq.used", &q->used, sizeof q->used);
    snap_bytes(s, "vq.signalled", &q->signalled, sizeof q->signalled);
    if (!snap_loading(s))
        return;
    bool aligned = !(q->desc & 15) && !(q->driver & 1) && !(q->device & 3);
    bool sane = q->size && q->size <= q->max && !(q->size & (q->size - 1)) && (aligned || !q->enabled);
    if (!sane && !s->err)
        s->err = -EINVAL;
    if (!sane)
        virtq_reset(q);
}
