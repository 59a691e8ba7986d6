#include "kernel/block/linear.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "kernel/block/mapped.h"
#include "kernel/lib/port.h"

#define PART_IOV 16

struct seg { uint64_t start; struct linear_seg s; };
struct linear { struct blk blk; unsigned n; struct seg seg[]; };

struct linear_ctx {
    struct blk_req part;
    struct linear *l;
    struct blk_req *whole;
    size_t done;
    unsigned next;              /* flush: segment to flush next */
    struct iov iov[PART_IOV];
    uint8_t below[] __aligned_to(16);
};

static void advance(struct linear_ctx *c);

static void part_done(struct blk_req *p)
{
    struct linear_ctx *c = p->arg;
    c->done += p->len;
    if (p->err)
        blk_complete(c->whole, p->err);
    else
        advance(c);
}

static const struct seg *seg_at(const struct linear *l, uint64_t off)
{
    unsigned lo = 0, hi = l->n - 1;
    while (lo < hi) {
        unsigned mid = (lo + hi + 1) / 2;
        if (l->seg[mid].start <= off)
            lo = mid;
        else
            hi = mid - 1;
    }
    return &l->seg[lo];
}

/* Flush each disk once: segments of one disk may be many, so a disk is flushed at its first segment. */
static struct blk *next_disk(struct linear_ctx *c)
{
    for (; c->next < c->l->n; c->next++) {
        bool seen = false;
        for (unsigned i = 0; i < c->next && !seen; i++)
            seen = c->l->seg[i].s.to == c->l->seg[c->next].s.to;
        if (!seen)
            return c->l->seg[c->next++].s.to;
    }
    return NULL;
}

static void advance(struct linear_ctx *c)
{
    struct blk_req *r = c->whole;
    if (r->op == BLK_FLUSH) {
        struct blk *b = next_disk(c);
        if (b)
            blk_submit(b, &c->part);
        else
            blk_complete(r, 0);
        return;
    }
    if (c->done == r->len) {
        blk_complete(r, 0);
        return;
    }
    const struct seg *s = seg_at(c->l, r->off + c->done);
    uint64_t in = r->off + c->done - s->start;
    c->part.len = MIN(r->len - c->done, s->s.len - in);
    c->part.off = s->s.off + in;
    if (r->op == BLK_READ || r->op == BLK_WRITE)
        c->part.len = blk_slice(&c->part, c->iov, PART_IOV, r, c->done, c->part.len, c->l->blk.limits.block);
    if (c->part.len)
        blk_submit(s->s.to, &c->part);
    else
        blk_complete(r, -EINVAL);        /* cannot be: limits() bounds the entries */
}

static void linear_submit(struct blk *b, struct blk_req *r)
{
    struct linear_ctx *c = r->ctx;
    c->l = container_of(b, struct linear, blk), c->whole = r, c->done = 0, c->next = 0;
    c->part = (struct blk_req){ .op = r->op, .flags = r->flags, .done = part_done, .arg = c, .ctx = c->below };
    advance(c);
}

static void linear_close(struct blk *b) { kfree(container_of(b, struct linear, blk)); }

static const struct blk_ops linear_ops = { .submit = linear_submit, .close = linear_close };

/* What all disks below can keep. */
static void limits(struct linear *l, bool read_only)
{
    struct blk_limits *to = &l->blk.limits;
    *to = l->seg[0].s.to->limits;
    for (unsigned i = 1; i < l->n; i++) {
        const struct blk_limits *b = &l->seg[i].s.to->limits;
        to->block = MAX(to->block, b->block), to->phys_block = MAX(to->phys_block, b->phys_block);
        to->mem_align = MAX(to->mem_align, b->mem_align), to->max_segs = MIN(to->max_segs, b->max_segs);
        to->max_len = MIN(to->max_len, b->max_len), to->ctx_size = MAX(to->ctx_size, b->ctx_size);
        to->read_only |= b->read_only, to->discard &= b->discard, to->write_zeroes &= b->write_zeroes;
        to->volatile_cache |= b->volatile_cache, to->fua &= b->fua;
    }
    if (l->n > 1)
        to->max_segs = MIN(to->max_segs, (uint32_t)PART_IOV);
    to->read_only |= read_only;
    to->ctx_size = sizeof(struct linear_ctx) + ALIGN_UP(to->ctx_size, 16u);
}

int linear_open(const char *kind, const char *name, const struct linear_seg *segs, unsigned n, bool read_only, struct blk **out)
{
    struct linear *l = n ? kzalloc(sizeof *l + n * sizeof l->seg[0]) : NULL;
    uint64_t size = 0;
    if (!l)
        return n ? -ENOMEM : -EINVAL;
    l->n = n;
    for (unsigned i = 0; i < n; i++) {
        l->seg[i] = (struct seg){ size, segs[i] };
        size += segs[i].len;
        if (!segs[i].len || segs[i].off > segs[i].to->size || segs[i].len > segs[i].to->size - segs[i].off) {
            kfree(l);
            return -EINVAL;
        }
    }
    limits(l, read_only);
    l->blk.ops = &linear_ops, l->blk.kind = kind;
    snprintf(l->blk.name, sizeof l->blk.name, "%s", name);
    l->blk.size = ALIGN_DOWN(size, (uint64_t)l->blk.limits.block);
    if (n == 1)
        l->blk.below = segs[0].to, l->blk.below_off = segs[0].off, l->blk.below_len = segs[0].len;
    int err = blk_ready(&l->blk);
    if (err)
        kfree(l);
    else
        *out = &l->blk;
    return err;
}
