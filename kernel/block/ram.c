/* RAM disk over the caller's memory. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kernel/block/blk.h"
#include "kernel/lib/port.h"

/* Overlapping writes must not mix within a block: copies go in chunks, each under the lock of its stripe. */
enum { CHUNK = 32768, STRIPES = 16 };
struct ram { struct blk blk; char *base; struct { struct spinlock lock; } __aligned_to(64) stripe[STRIPES]; };

static void copy_chunk(const struct blk_req *r, char *at, size_t off, size_t len)
{
    if (r->op == BLK_READ)
        iov_from(r->iov, r->niov, off, at, len);
    else if (r->op == BLK_WRITE)
        iov_to(r->iov, r->niov, off, at, len);
    else
        memset(at, 0, len);
}

static void ram_submit(struct blk *b, struct blk_req *r)
{
    struct ram *d = container_of(b, struct ram, blk);
    for (size_t off = 0, len; off < r->len; off += len) {       /* a flush has no length */
        uint64_t pos = r->off + off;
        struct spinlock *lock = &d->stripe[pos / CHUNK % STRIPES].lock;
        len = MIN((size_t)(CHUNK - pos % CHUNK), r->len - off);
        spin_lock(lock);
        copy_chunk(r, d->base + pos, off, len);
        spin_unlock(lock);
    }
    blk_complete(r, 0);
}

static void ram_close(struct blk *b)
{
    kfree(container_of(b, struct ram, blk));
}

static const struct blk_ops ram_ops = { .submit = ram_submit, .close = ram_close };

struct blk *blk_ram_create(const char *name, void *base, uint64_t size, bool read_only)
{
    struct ram *d = kmalloc_aligned(sizeof *d, 64);
    if (!d)
        return NULL;
    memset(d, 0, sizeof *d);
    d->base = base;
    d->blk = (struct blk){ .ops = &ram_ops, .kind = "ram", .size = ALIGN_DOWN(size, 512ull), .limits = blk_limits_any() };
    d->blk.limits.read_only = read_only;
    d->blk.limits.write_zeroes = !read_only;
    snprintf(d->blk.name, sizeof d->blk.name, "%s", name);
    if (blk_ready(&d->blk)) {
        kfree(d);
        return NULL;
    }
    return &d->blk;
}
