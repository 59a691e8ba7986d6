#include "guestdev/virtio_blk.h"

#include <errno.h>
#include <string.h>

#include "guestdev/virtio_pci.h"

enum { QUEUE_MAX = 256, CHAIN_SEGS = VIRTIO_BLK_SEGS + 2 /* header, status */, REQ_IOVS = 64, SECTOR = 512, DISCARD_SECTORS = 1u << 22 };

struct vblk_req {
    struct blk_req blk;                 /* what is at the disk now: all of the request, or the piece that fitted into iov */
    struct virtio_blk *dev;
    uint8_t queue, slot;
    bool reads;                         /* the disk writes guest memory */
    struct vchain chain;
    struct list more_link;
    uint8_t *status;                    /* pinned last byte of the chain */
    struct iov status_pin;
    uint64_t start;                     /* byte on the disk */
    uint32_t stream_off;                /* where the data starts in its stream */
    uint32_t pos, len;                  /* bytes done (pieces), bytes in all */
    struct iov iov[REQ_IOVS];
    struct vseg seg[CHAIN_SEGS];
};

struct virtio_blk {
    struct virtio v;
    struct blk *blk;
    bool read_only;
    char serial[VIRTIO_BLK_ID_BYTES + 1];
    struct virtio_blk_config cfg;
    uint64_t free;                      /* bit per context; atomic */
    uint32_t stalled;                   /* bit per queue that found no free context; atomic */
    struct work work;                   /* what a completion, which may not sleep, leaves to a thread */
    struct spinlock more_lock;
    struct list more;                   /* requests with pieces left, by more_link */
    uint16_t nreissue;                  /* heads that were in flight when the VM was saved */
    struct { uint16_t queue, head; } reissue[VIRTIO_BLK_REQS];
    char *ctx;                          /* layers' contexts, blk->limits.ctx_size each */
    struct vblk_req req[VIRTIO_BLK_REQS];
};
_Static_assert(VIRTIO_BLK_REQS == 64, "virtio_blk.free is one word");

/* ---- Contexts ---- */

static struct vblk_req *req_get(struct virtio_blk *d)
{
    uint64_t m = atomic_load(&d->free);
    do {
        if (!m)
            return NULL;
    } while (!atomic_cas(&d->free, &m, m & (m - 1)));
    return &d->req[__builtin_ctzll(m)];
}

static void req_put(struct vblk_req *r)
{
    atomic_or(&r->dev->free, BIT(r->slot));
}

/* Contexts came free: once it is worth a thread, go on with the queues that ran dry. */
static void unstall(struct virtio_blk *d)
{
    if (unlikely(atomic_load(&d->stalled)) && __builtin_popcountll(atomic_load(&d->free)) >= VIRTIO_BLK_REQS / 2)
        work_queue(&d->work);
}

/* ---- Completion ---- */

static void req_end(struct vblk_req *r, uint8_t status)
{
    struct virtio_blk *d = r->dev;
    unsigned q = r->queue;
    uint16_t head = r->chain.head;
    uint32_t written = (r->reads && status == VIRTIO_BLK_S_OK ? r->len : 0) + 1;
    *r->status = status;
    gmem_unpin(d->v.gmem, &r->status_pin, 1, true);
    req_put(r);
    virtio_push(&d->v, q, head, written);
    unstall(d);
    virtio_release(&d->v);
}

/* The chain cannot even take a status: the device is broken, the chain is never given back. */
static void req_drop(struct vblk_req *r, const char *why)
{
    struct virtio_blk *d = r->dev;
    virtio_break(&d->v, why);
    req_put(r);
    virtio_release(&d->v);
}

static uint8_t status_of(int err)
{
    return !err ? VIRTIO_BLK_S_OK : err == -ENOTSUP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
}

static void continue_later(struct vblk_req *r)
{
    struct virtio_blk *d = r->dev;
    spin_lock(&d->more_lock);
    list_append(&d->more, &r->more_link);
    spin_unlock(&d->more_lock);
    work_queue(&d->work);
}

static void rw_done(struct blk_req *b)
{
    struct vblk_req *r = container_of(b, struct vblk_req, blk);
    gmem_unpin(r->dev->v.gmem, r->iov, b->niov, r->reads);
    if (likely(!b->err)) {
        r->pos += (uint32_t)b->len;
        if (unlikely(r->pos < r->len)) {
            continue_later(r);
            return;
        }
    }
    req_end(r, status_of(b->err));
}

static void other_done(struct blk_req *b)
{
    req_end(container_of(b, struct vblk_req, blk), status_of(b->err));
}

/* ---- Requests ---- */

/* Pins and submits as much as the iov holds: all of it, but for a guest whose memory is in small pieces on the host. */
static void submit_piece(struct vblk_req *r)
{
    struct virtio_blk *d = r->dev;
    struct virtq *vq = &d->v.queue[r->queue].vq;
    uint32_t left = r->len - r->pos;
    long n = vchain_pin(vq, &r->chain, r->reads, r->stream_off + r->pos, left, r->iov, REQ_IOVS, &r->blk.niov);
    if (n < 0) {
        virtio_break(&d->v, "data outside RAM");
        req_end(r, VIRTIO_BLK_S_IOERR);
        return;
    }
    r->blk.off = r->start + r->pos;
    r->blk.len = likely(n == left) ? left : ALIGN_DOWN((size_t)n, d->blk->limits.block);
    if (!r->blk.len) {                  /* a block in more pieces than we take */
        gmem_unpin(d->v.gmem, r->iov, r->blk.niov, false);
        req_end(r, VIRTIO_BLK_S_IOERR);
        return;
    }
    blk_submit(d->blk, &r->blk);
}

static void start_rw(struct vblk_req *r, bool write, const struct virtio_blk_hdr *h)
{
    struct virtio_blk *d = r->dev;
    r->reads = !write;
    r->stream_off = write ? sizeof *h : 0;
    r->len = write ? r->chain.read_len - (uint32_t)sizeof *h : r->chain.write_len - 1;
    r->start = h->sector * SECTOR;
    bool inside = h->sector <= d->cfg.capacity && r->len / SECTOR <= d->cfg.capacity - h->sector;
    bool aligned = !((r->start | r->len) & (d->blk->limits.block - 1));
    if (!inside || !aligned || (write && d->read_only)) {
        r->len = 0;
        req_end(r, VIRTIO_BLK_S_IOERR);
        return;
    }
    if (!r->len) {
        req_end(r, VIRTIO_BLK_S_OK);
        return;
    }
    r->blk.op = write ? BLK_WRITE : BLK_READ;
    /* Without FLUSH the driver takes every finished write as stable (5.2.6.2). */
    r->blk.flags = write && !virtio_has(&d->v, VIRTIO_BLK_F_FLUSH) && d->blk->limits.volatile_cache ? BLK_FUA : 0;
    r->blk.iov = r->iov;
    r->blk.done = rw_done;
    submit_piece(r);
}

static void submit_plain(struct vblk_req *r, enum blk_op op, uint64_t off, size_t len, unsigned flags)
{
    r->blk.op = op;
    r->blk.flags = flags;
    r->blk.off = off;
    r->blk.len = len;
    r->blk.iov = NULL;
    r->blk.niov = 0;
    r->blk.done = other_done;
    blk_submit(r->dev->blk, &r->blk);
}

static void start_range(struct vblk_req *r, bool discard)
{
    struct virtio_blk *d = r->dev;
    struct virtio_blk_range range;
    bool offered = d->v.offered & (discard ? VIRTIO_BLK_F_DISCARD : VIRTIO_BLK_F_WRITE_ZEROES);
    uint8_t status = VIRTIO_BLK_S_OK;
    if (!offered || r->chain.read_len != sizeof(struct virtio_blk_hdr) + sizeof range)
        status = VIRTIO_BLK_S_UNSUPP;
    else if (vchain_read(&d->v.queue[r->queue].vq, &r->chain, sizeof(struct virtio_blk_hdr), &range, sizeof range) != sizeof range)
        status = VIRTIO_BLK_S_IOERR;
    else if (range.flags & ~(discard ? 0u : VIRTIO_BLK_RANGE_UNMAP))
        status = VIRTIO_BLK_S_UNSUPP;
    else if (d->read_only || range.num_sectors > DISCARD_SECTORS || range.sector > d->cfg.capacity ||
             range.num_sectors > d->cfg.capacity - range.sector)
        status = VIRTIO_BLK_S_IOERR;
    else if (((range.sector | range.num_sectors) * SECTOR) & (d->blk->limits.block - 1))
        status = VIRTIO_BLK_S_IOERR;
    if (status != VIRTIO_BLK_S_OK || !range.num_sectors) {
        req_end(r, status);
        return;
    }
    submit_plain(r, discard ? BLK_DISCARD : BLK_WRITE_ZEROES, range.sector * SECTOR, (size_t)range.num_sectors * SECTOR,
                 range.flags & VIRTIO_BLK_RANGE_UNMAP ? BLK_UNMAP_OK : 0);
}

static void start_get_id(struct vblk_req *r)
{
    struct virtio_blk *d = r->dev;
    uint32_t len = MIN(r->chain.write_len - 1, (uint32_t)VIRTIO_BLK_ID_BYTES);
    if (vchain_write(&d->v.queue[r->queue].vq, &r->chain, 0, d->serial, len) != (long)len) {
        req_end(r, VIRTIO_BLK_S_IOERR);
        return;
    }
    r->reads = true;
    r->len = len;
    req_end(r, VIRTIO_BLK_S_OK);
}

/* Everything about the chain is decided on copies; from here on each way ends in req_end or req_drop. */
static void start(struct vblk_req *r)
{
    struct virtio_blk *d = r->dev;
    const struct virtq *vq = &d->v.queue[r->queue].vq;
    struct virtio_blk_hdr h;
    r->reads = false;
    r->pos = r->len = 0;
    if (vchain_read(vq, &r->chain, 0, &h, sizeof h) != sizeof h) {
        req_drop(r, "no request header");
        return;
    }
    if (vchain_pin_last(vq, &r->chain, &r->status_pin)) {
        req_drop(r, "no place for the status");
        return;
    }
    r->status = r->status_pin.base;
    switch (h.type) {
    case VIRTIO_BLK_T_IN:           start_rw(r, false, &h); break;
    case VIRTIO_BLK_T_OUT:          start_rw(r, true, &h); break;
    case VIRTIO_BLK_T_FLUSH:        submit_plain(r, BLK_FLUSH, 0, 0, 0); break;
    case VIRTIO_BLK_T_DISCARD:      start_range(r, true); break;
    case VIRTIO_BLK_T_WRITE_ZEROES: start_range(r, false); break;
    case VIRTIO_BLK_T_GET_ID:       start_get_id(r); break;
    default:                        req_end(r, VIRTIO_BLK_S_UNSUPP); break;
    }
}

/* Requests that were in flight when the VM was saved come first; they are still in the ring by their heads. */
static int next_chain(struct virtio_blk *d, unsigned q, struct vchain *c)
{
    for (unsigned i = 0; unlikely(i < d->nreissue); i++)
        if (d->reissue[i].queue == q) {
            uint16_t head = d->reissue[i].head;
            d->reissue[i] = d->reissue[--d->nreissue];
            return virtq_pop_head(&d->v.queue[q].vq, head, c);
        }
    return virtq_pop(&d->v.queue[q].vq, c);
}

/* Takes one chain; false: nothing more to take now. */
static bool take(struct virtio_blk *d, unsigned q)
{
    struct vblk_req *r = req_get(d);
    if (unlikely(!r)) {
        atomic_or(&d->stalled, 1u << q);
        r = req_get(d);                 /* one may have come back before the flag was up */
        if (!r)
            return false;
        atomic_and(&d->stalled, ~(1u << q));
    }
    r->queue = (uint8_t)q;
    int got = next_chain(d, q, &r->chain);
    if (got <= 0) {
        req_put(r);
        if (got < 0)
            virtio_break(&d->v, "bad descriptor chain");
        return false;
    }
    virtio_hold(&d->v);
    start(r);
    return true;
}

static void vblk_run(struct virtio *v, unsigned q)
{
    struct virtio_blk *d = container_of(v, struct virtio_blk, v);
    struct virtq *vq = &v->queue[q].vq;
    do {
        virtq_suppress(vq);
        while (virtio_is_live(v) && take(d, q))
            ;
        if (atomic_load(&d->stalled) & 1u << q)
            return;                     /* a completion kicks again */
    } while (virtio_is_live(v) && virtq_rearm(vq));
}

/* Thread context: the rest of large requests, and queues that had run out of contexts. */
static void vblk_work(struct work *w)
{
    struct virtio_blk *d = container_of(w, struct virtio_blk, work);
    struct list more, *n;
    list_init(&more);
    spin_lock(&d->more_lock);
    list_splice(&more, &d->more);
    spin_unlock(&d->more_lock);
    while ((n = list_pop(&more)))
        submit_piece(list_entry(n, struct vblk_req, more_link));
    for (uint32_t m = atomic_xchg(&d->stalled, 0); m; m &= m - 1)
        virtio_kick(&d->v, (unsigned)__builtin_ctz(m));
}

/* ---- Life ---- */

static void vblk_reset(struct virtio *v)
{
    struct virtio_blk *d = container_of(v, struct virtio_blk, v);
    atomic_store(&d->stalled, 0);
    d->nreissue = 0;
}

static void vblk_snap(struct virtio *v, struct snap *s)
{
    struct virtio_blk *d = container_of(v, struct virtio_blk, v);
    uint64_t busy = snap_loading(s) ? 0 : ~atomic_load(&d->free);
    uint16_t n = d->nreissue;
    if (!snap_loading(s))
        for (; busy && n < VIRTIO_BLK_REQS; busy &= busy - 1, n++) {
            const struct vblk_req *r = &d->req[__builtin_ctzll(busy)];
            d->reissue[n].queue = r->queue;
            d->reissue[n].head = r->chain.head;
        }
    snap_bytes(s, "blk.inflight", &n, sizeof n);
    snap_bytes(s, "blk.heads", d->reissue, sizeof d->reissue);
    if (!snap_loading(s))
        return;
    d->nreissue = MIN(n, (uint16_t)VIRTIO_BLK_REQS);
    for (unsigned i = 0; i < d->nreissue; i++)
        if (d->reissue[i].queue >= v->nqueues && !s->err)
            s->err = -EINVAL;
    if (s->err)
        d->nreissue = 0;
}

static const struct virtio_class vblk_class = {
    .name = "virtio-blk", .id = VIRTIO_ID_BLOCK, .pci_class = PCI_CLASS_SCSI_OTHER,
    .run = vblk_run, .reset = vblk_reset, .snap = vblk_snap,
};

static uint64_t describe(struct virtio_blk *d, unsigned nqueues)
{
    const struct blk_limits *l = &d->blk->limits;
    uint32_t per_block = l->block / SECTOR;
    uint64_t features = VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_BLK_SIZE | VIRTIO_BLK_F_TOPOLOGY;
    d->cfg.capacity = ALIGN_DOWN(d->blk->size, (uint64_t)l->block) / SECTOR;
    d->cfg.seg_max = VIRTIO_BLK_SEGS;
    d->cfg.blk_size = l->block;
    d->cfg.physical_block_exp = (uint8_t)(l->phys_block > l->block ? __builtin_ctz(l->phys_block / l->block) : 0);
    d->cfg.min_io_size = (uint16_t)(1u << d->cfg.physical_block_exp);
    d->cfg.writeback = l->volatile_cache;
    d->cfg.num_queues = (uint16_t)nqueues;
    if (nqueues > 1)
        features |= VIRTIO_BLK_F_MQ;
    if (d->read_only)
        return features | VIRTIO_BLK_F_RO;
    if (l->volatile_cache)
        features |= VIRTIO_BLK_F_FLUSH;
    if (l->discard) {
        features |= VIRTIO_BLK_F_DISCARD;
        d->cfg.max_discard_sectors = DISCARD_SECTORS;
        d->cfg.max_discard_seg = 1;
        d->cfg.discard_sector_alignment = MAX(l->phys_block / SECTOR, per_block);
    }
    if (l->write_zeroes) {
        features |= VIRTIO_BLK_F_WRITE_ZEROES;
        d->cfg.max_write_zeroes_sectors = DISCARD_SECTORS;
        d->cfg.max_write_zeroes_seg = 1;
        d->cfg.write_zeroes_may_unmap = l->discard;
    }
    return features;
}

static void init_requests(struct virtio_blk *d)
{
    size_t ctx = ALIGN_UP((size_t)d->blk->limits.ctx_size, 16);
    d->free = ~0ull;
    for (unsigned i = 0; i < VIRTIO_BLK_REQS; i++) {
        struct vblk_req *r = &d->req[i];
        r->dev = d;
        r->slot = (uint8_t)i;
        r->chain.seg = r->seg;
        r->chain.max = CHAIN_SEGS;
        r->blk.ctx = ctx ? d->ctx + i * ctx : NULL;
        list_init(&r->blk.link);
        list_init(&r->more_link);
    }
}

int virtio_blk_create(const struct virtio_blk_config_args *a, struct virtio_blk **out)
{
    struct virtio_blk *d = kzalloc(sizeof *d);
    if (!d)
        return -ENOMEM;
    d->blk = a->blk;
    work_init(&d->work, vblk_work);
    list_init(&d->more);
    d->read_only = a->read_only || a->blk->limits.read_only;
    memcpy(d->serial, a->serial, strnlen(a->serial, VIRTIO_BLK_ID_BYTES));
    size_t ctx = ALIGN_UP((size_t)a->blk->limits.ctx_size, 16);
    int err = -ENOMEM;
    if (ctx && !(d->ctx = kmalloc(VIRTIO_BLK_REQS * ctx)))
        goto fail;
    init_requests(d);
    const struct virtio_setup setup = {
        .cls = &vblk_class, .gmem = a->gmem, .bus = a->bus, .slot = a->slot, .nqueues = a->nqueues, .queue_max = QUEUE_MAX,
        .features = describe(d, a->nqueues), .config = &d->cfg, .config_len = sizeof d->cfg,
    };
    err = virtio_init(&d->v, &setup);
    if (err)
        goto fail;
    *out = d;
    return 0;
fail:
    kfree(d->ctx);
    kfree(d);
    return err;
}

static void ops_reset(void *dev, enum gdev_reset kind) { virtio_reset(&((struct virtio_blk *)dev)->v); }
static int  ops_snap(void *dev, struct snap *s) { return virtio_snap(&((struct virtio_blk *)dev)->v, s); }
static void ops_drain(void *dev, uint64_t deadline_ns) { virtio_drain(&((struct virtio_blk *)dev)->v, deadline_ns); }
static void ops_resume(void *dev) { virtio_resume(&((struct virtio_blk *)dev)->v); }
static void ops_destroy(void *dev)
{
    struct virtio_blk *d = dev;
    virtio_fini(&d->v);
    work_flush(&d->work);
    kfree(d->ctx);
    kfree(d);
}
const struct gdev_ops virtio_blk_ops = {
    .name = "virtio-blk", .reset = ops_reset, .snap = ops_snap, .destroy = ops_destroy, .drain = ops_drain, .resume = ops_resume,
};
