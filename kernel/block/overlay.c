/*
 * Copy-on-write overlay in RAM over a disk that is never written.  Memory comes in clusters of 4 KiB, each with a bit per 512-byte sector that it holds, so
 * a write never reads the base.  A read takes the base's data for the whole request and lays the overlay's sectors over it; what the overlay
 * holds entirely does not touch the base.
 *
 * Memory is taken while requests run (up to `limit`, then -ENOSPC): an overlay is a promise of convenience, unlike a disk.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kernel/block/blk.h"
#include "kernel/lib/port.h"

enum { SECTOR = 512, CLUSTER = 4096, GROUP = 256 /* clusters per table */ };

struct cluster { uint8_t *data; uint8_t valid; bool zero; };            /* zero: all of it reads as zeroes, no data */
struct group { struct cluster cluster[GROUP]; };

struct overlay {
    struct blk blk;
    struct blk *base;
    struct spinlock lock;               /* guards the rest */
    uint64_t used, limit;               /* bytes of clusters and tables */
    uint64_t ngroups;
    struct group *group[];
};

struct overlay_ctx { struct blk_req sub; struct blk_req *parent; };
#define CTX_BYTES ALIGN_UP(sizeof(struct overlay_ctx), 16)

/* The part of a request that lies in one cluster. */
struct span { uint64_t cluster; unsigned first, n; size_t off; /* in the request's memory */ };

/* Next span from request byte `at`; false at the end. */
static bool next_span(const struct blk_req *r, size_t at, struct span *s)
{
    if (at >= r->len)
        return false;
    uint64_t pos = r->off + at;
    size_t len = MIN((size_t)(CLUSTER - pos % CLUSTER), r->len - at);
    *s = (struct span){ .cluster = pos / CLUSTER, .first = pos % CLUSTER / SECTOR, .n = (unsigned)len / SECTOR, .off = at };
    return true;
}

static uint8_t mask_of(const struct span *s)
{
    return (uint8_t)(((1u << s->n) - 1) << s->first);
}

static struct cluster *find(struct overlay *o, uint64_t cluster)
{
    struct group *g = o->group[cluster / GROUP];
    return g ? &g->cluster[cluster % GROUP] : NULL;
}

static bool charge(struct overlay *o, uint64_t bytes)
{
    if (bytes > o->limit - o->used)
        return false;
    o->used += bytes;
    return true;
}

static struct cluster *find_or_add(struct overlay *o, uint64_t cluster)
{
    struct group **g = &o->group[cluster / GROUP];
    if (!*g && charge(o, sizeof **g)) {
        *g = kzalloc(sizeof **g);
        if (!*g)
            o->used -= sizeof **g;
    }
    return *g ? &(*g)->cluster[cluster % GROUP] : NULL;
}

static bool give_data(struct overlay *o, struct cluster *c)
{
    if (c->data)
        return true;
    if (!charge(o, CLUSTER))
        return false;
    c->data = kmalloc(CLUSTER);
    if (!c->data) {
        o->used -= CLUSTER;
        return false;
    }
    if (c->zero) {
        memset(c->data, 0, CLUSTER);
        c->valid = 0xff;
        c->zero = false;
    }
    return true;
}

/* ---- Operations on a span, lock held ---- */

static bool write_span(struct overlay *o, const struct blk_req *r, const struct span *s)
{
    struct cluster *c = find_or_add(o, s->cluster);
    if (!c || !give_data(o, c))
        return false;
    iov_to(r->iov, r->niov, s->off, c->data + s->first * SECTOR, s->n * SECTOR);
    c->valid |= mask_of(s);
    return true;
}

static bool zero_span(struct overlay *o, const struct blk_req *r, const struct span *s)
{
    struct cluster *c = find_or_add(o, s->cluster);
    if (!c)
        return false;
    if (mask_of(s) == 0xff) {
        if (c->data)
            o->used -= CLUSTER;
        kfree(c->data);
        *c = (struct cluster){ .zero = true, .valid = 0xff };
        return true;
    }
    if (c->zero)
        return true;
    if (!give_data(o, c))
        return false;
    memset(c->data + s->first * SECTOR, 0, s->n * SECTOR);
    c->valid |= mask_of(s);
    return true;
}

/* Lays what the overlay holds over the request's memory. */
static bool read_span(struct overlay *o, const struct blk_req *r, const struct span *s)
{
    const struct cluster *c = find(o, s->cluster);
    if (!c)
        return true;
    for (unsigned i = 0, run; i < s->n; i += MAX(run, 1u)) {
        unsigned sector = s->first + i;
        for (run = 0; i + run < s->n && c->valid >> (sector + run) & 1; run++)
            ;
        if (run && c->zero)
            iov_zero(r->iov, r->niov, s->off + i * SECTOR, run * SECTOR);
        else if (run)
            iov_from(r->iov, r->niov, s->off + i * SECTOR, c->data + sector * SECTOR, run * SECTOR);
    }
    return true;
}

static bool held_span(struct overlay *o, const struct blk_req *r, const struct span *s)
{
    const struct cluster *c = find(o, s->cluster);
    return c && (c->valid & mask_of(s)) == mask_of(s);
}

typedef bool span_fn(struct overlay *, const struct blk_req *, const struct span *);

/* False: fn said so for some span, the rest was left alone. */
static bool each_span(struct overlay *o, const struct blk_req *r, span_fn *fn)
{
    struct span s;
    for (size_t at = 0; next_span(r, at, &s); at += s.n * SECTOR) {
        spin_lock(&o->lock);
        bool ok = fn(o, r, &s);
        spin_unlock(&o->lock);
        if (!ok)
            return false;
    }
    return true;
}

/* ---- Requests ---- */

static void base_done(struct blk_req *sub)
{
    struct overlay_ctx *c = container_of(sub, struct overlay_ctx, sub);
    if (!sub->err)
        each_span(sub->arg, c->parent, read_span);
    blk_complete(c->parent, sub->err);
}

static void submit_read(struct overlay *o, struct blk_req *r)
{
    if (each_span(o, r, held_span)) {
        each_span(o, r, read_span);
        blk_complete(r, 0);
        return;
    }
    struct overlay_ctx *c = r->ctx;
    c->parent = r;
    c->sub = (struct blk_req){ .op = BLK_READ, .off = r->off, .len = r->len, .iov = r->iov, .niov = r->niov, .done = base_done, .arg = o };
    c->sub.ctx = o->base->limits.ctx_size ? (char *)c + CTX_BYTES : NULL;
    list_init(&c->sub.link);
    blk_submit(o->base, &c->sub);
}

static void overlay_submit(struct blk *b, struct blk_req *r)
{
    struct overlay *o = container_of(b, struct overlay, blk);
    switch (r->op) {
    case BLK_READ:
        submit_read(o, r);
        return;
    case BLK_WRITE:
        blk_complete(r, each_span(o, r, write_span) ? 0 : -ENOSPC);
        return;
    case BLK_DISCARD:
    case BLK_WRITE_ZEROES:
        blk_complete(r, each_span(o, r, zero_span) ? 0 : -ENOSPC);
        return;
    case BLK_FLUSH:
        blk_complete(r, 0);
        return;
    }
}

static void overlay_close(struct blk *b)
{
    struct overlay *o = container_of(b, struct overlay, blk);
    for (uint64_t g = 0; g < o->ngroups; g++) {
        for (unsigned i = 0; o->group[g] && i < GROUP; i++)
            kfree(o->group[g]->cluster[i].data);
        kfree(o->group[g]);
    }
    kfree(o);
}

static const struct blk_ops overlay_ops = { .submit = overlay_submit, .close = overlay_close };

struct blk *blk_overlay_create(const char *name, struct blk *base, uint64_t limit)
{
    uint64_t ngroups = (base->size + CLUSTER * GROUP - 1) / (CLUSTER * GROUP);
    struct overlay *o = kzalloc(sizeof *o + ngroups * sizeof o->group[0]);
    if (!o)
        return NULL;
    o->base = base;
    o->limit = limit;
    o->ngroups = ngroups;
    o->blk = (struct blk){ .ops = &overlay_ops, .kind = "overlay", .size = base->size, .limits = blk_limits_any() };
    o->blk.limits.block = base->limits.block;
    o->blk.limits.phys_block = MAX(base->limits.block, (uint32_t)SECTOR);
    o->blk.limits.ctx_size = (uint32_t)(CTX_BYTES + base->limits.ctx_size);
    o->blk.limits.discard = o->blk.limits.write_zeroes = true;
    snprintf(o->blk.name, sizeof o->blk.name, "%s", name);
    if (blk_ready(&o->blk)) {
        kfree(o);
        return NULL;
    }
    return &o->blk;
}
