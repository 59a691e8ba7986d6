/*
 * struct blk: a disk as every layer sees it (drivers, partitions, files, image formats, guest disks, network block clients).
 *
 * Requests are owned by the caller and live until `done`.  Layers stack (nvme -> partition -> file -> qcow2): a layer that
 * needs memory per request takes it from the request's context area, reserved when the stack was opened, so submit never allocates.
 *
 * Contract
 *   layers    fill struct blk and end their open with blk_ready().  They end requests with blk_complete, holding no lock that a done
 *             or their own submit may want.
 *   submit    thread or atomic context.  Never blocks, never allocates, never fails synchronously: every outcome arrives by done.
 *   done      runs with interrupts on, may submit further requests, may not sleep, and may run before submit returns.
 *             Depth is bounded by the layers of a stack: what ends inside a done is trampolined (blk_complete); only a layer's own
 *             done may end the request it was made for in place (blk_forward), so no one's done is ever called inside itself.
 *   memory    iov memory must stay valid and, for writes, unchanged until done.  A layer that sums or compresses data copies first.
 *   overlap   requests in flight that overlap have no order among each other; each write lands whole per `phys_block`, or not at all,
 *             in each of its blocks.  A caller that needs an order waits for done.
 *   FLUSH     covers every write whose done ran before the flush was submitted.  FUA: this write is on stable media before done.
 *             Both keep that meaning through every layer.
 *   errors    negative errno in req->err: -EIO medium, -ENOSPC, -EROFS, -EINVAL (limits broken), -ENODEV gone, -ENOTSUP op,
 *             -EILSEQ damaged metadata or checksum.
 */
#pragma once
#include "kernel/lib/base.h"
#include "kernel/lib/iov.h"
#include "kernel/lib/list.h"

enum blk_op {
    BLK_READ, BLK_WRITE,
    BLK_FLUSH,          /* off = len = 0, no iov */
    BLK_DISCARD,        /* contents become undefined (usually zeroes); no iov */
    BLK_WRITE_ZEROES,   /* contents read as zeroes; no iov */
};

enum { BLK_FUA = 1 << 0, BLK_UNMAP_OK = 1 << 1 /* write-zeroes may deallocate */ };

struct blk;

struct blk_req {
    enum blk_op op;
    unsigned flags;
    uint64_t off;               /* bytes; multiple of limits.block */
    size_t len;                 /* bytes; multiple of limits.block; iov must hold at least so much */
    const struct iov *iov;
    int niov;
    int err;                    /* set before done: 0 or -errno */
    void (*done)(struct blk_req *);
    void *arg;                  /* the caller's */
    struct list link;           /* owned by the layer the request was submitted to */
    void *ctx;                  /* blk->limits.ctx_size bytes, 16-byte aligned, set by the caller before submit; NULL if ctx_size is 0 */
};

struct blk_limits {
    uint32_t block;             /* logical block: 512 or 4096; unit of off and len */
    uint32_t phys_block;        /* unit of atomic, efficient writes; power of two >= block */
    uint32_t mem_align;         /* alignment of every iov base and inner length; 1 = any */
    uint32_t max_segs;          /* iov entries per request */
    uint64_t max_len;           /* bytes per request */
    uint32_t ctx_size;          /* bytes of req->ctx that this stack needs, all layers below included */
    bool read_only, discard, write_zeroes, volatile_cache;
    bool fua;                   /* does BLK_FUA itself; otherwise, with a volatile cache, the shared layer flushes after the write */
};

struct blk_ops {
    void (*submit)(struct blk *, struct blk_req *);
    int  (*resize)(struct blk *, uint64_t size);        /* thread context; NULL: -ENOTSUP */
    void (*close)(struct blk *);                        /* no request in flight; frees blk; closes what is below if it owns it */
};

struct blk {
    const struct blk_ops *ops;
    const char *kind;           /* "nvme", "partition", "qcow2", … */
    char name[64];              /* as the operator names it */
    uint64_t size;              /* bytes */
    struct blk_limits limits;
    int writers, readers;       /* claims, see blk_claim; under the claim lock */
    struct blk *below;          /* what it sits on; NULL at the bottom.  Claims propagate along it. */
    uint64_t below_off, below_len;      /* part of `below` it covers (partitions); len 0 = all */
    struct blk_split *split;    /* reserved by blk_ready */
};

/* The only door to ops->submit: checks range, alignment and op against the limits (-EINVAL, -EROFS, -ENOTSUP), splits and bounces what
 * exceeds max_len, max_segs or mem_align (kernel/block/split.c), writes zeroes for layers that cannot, flushes after FUA writes for
 * layers that cannot, then submits.  A request that is split is not atomic as a whole. */
void blk_submit(struct blk *, struct blk_req *);
/* Layers end a request with this; runs req->done through the trampoline: never inside another done, preemption off.  Thread or
 * atomic context. */
void blk_complete(struct blk_req *, int err);
/* The same as the last act of a done: ends the request that the done's own request was a part of, without the trampoline. */
static inline void blk_forward(struct blk_req *r, int err)
{
    r->err = err;
    r->done(r);
}

/* Whether a read or write without flags that fits `own` fits `below` too, whatever its place and memory; read_only is not looked at. */
bool blk_limits_imply(const struct blk_limits *own, const struct blk_limits *below);
/* Hands such a request down, all of it and its memory as they were: the door of the layer above has checked all but the range, which
 * comes from a map. */
static inline void blk_pass(struct blk *b, struct blk_req *r)
{
    uint64_t size = __atomic_load_n(&b->size, __ATOMIC_RELAXED);
    if (likely(r->len <= size && r->off <= size - r->len))
        b->ops->submit(b, r);
    else
        blk_submit(b, r);       /* which refuses it */
}

/* A layer's last step of opening, limits filled in: reserves what the shared layer needs.  0 or -ENOMEM, -EINVAL (limits make no sense). */
int blk_ready(struct blk *);
/* Limits that any layer can keep: 512-byte blocks, no alignment, no bound on segments or length.  The base to narrow. */
struct blk_limits blk_limits_any(void);

/* Synchronous helpers for thread context (metadata, probes, tools): submit and wait.  Return 0 or -errno. */
int blk_read(struct blk *, uint64_t off, void *buf, size_t len);
int blk_write(struct blk *, uint64_t off, const void *buf, size_t len, unsigned flags);
int blk_flush(struct blk *);
int blk_discard(struct blk *, uint64_t off, uint64_t len);
int blk_write_zeroes(struct blk *, uint64_t off, uint64_t len, unsigned flags);
/* As blk_read/blk_write without alignment: reads and rewrites the blocks at the edges (the caller keeps others away from them). */
int blk_pread(struct blk *, uint64_t off, void *buf, size_t len);
int blk_pwrite(struct blk *, uint64_t off, const void *buf, size_t len);
/* Thread context.  -ENOTSUP when the layer cannot. */
int blk_resize(struct blk *, uint64_t size);

/* One-writer rule: claim for writing fails with -EBUSY while anybody holds an overlapping part (the disk below a partition included);
 * claim for reading fails while somebody writes one.  Thread context; -ENOMEM. */
int  blk_claim(struct blk *, bool write);
void blk_release(struct blk *, bool write);
/* Closes.  NULL is allowed. */
void blk_close(struct blk *);

/* RAM disk over caller-owned memory (image store entries).  Writes go to the memory. */
struct blk *blk_ram_create(const char *name, void *base, uint64_t size, bool read_only);
/* Copy-on-write RAM overlay: reads what was never written from `base`, keeps writes in RAM (up to `limit` bytes, then -ENOSPC).
 * Submit takes the memory from a reserve of 256 KiB; a request that needs more waits while deferred work refills it.
 * base is not owned; several overlays may share one. */
struct blk *blk_overlay_create(const char *name, struct blk *base, uint64_t limit);
