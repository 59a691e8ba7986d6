/*
 * Copy-on-write overlay in RAM over a disk that is never written.  Memory comes in clusters of 4 KiB, each with a bit per 512-byte sector that it holds, so
 * a write never reads the base.  A read takes the base's data for the whole request and lays the overlay's sectors over it; what the overlay
 * holds entirely does not touch the base.
 *
 * Submit takes memory only from a reserve of blocks, made when the overlay is and refilled by deferred work, which is called when half of it is gone.
 * A request that finds it empty waits for that work.  What the host cannot or `limit` does not give is -ENOSPC: an overlay is a promise of
 * convenience, unlike a disk.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kernel/block/blk.h"
#include "kernel/lib/port.h"

enum { SECTOR = 512, CLUSTER = 4096, GROUP = 256 /* clusters per table */ };
enum { RESERVE = 64, LOW = RESERVE / 2, HIGH = 2 * RESERVE };           /* blocks */

struct cluster { uint8_t *data; uint8_t valid; bool zero; };            /* zero: all of it reads as zeroes, no data */
struct group { struct cluster cluster[GROUP]; };
_Static_assert(sizeof(struct group) == CLUSTER, "tables and clusters come from one reserve");

struct spare { struct spare *next; };   /* an unused block */

struct overlay {
    struct blk blk;
    struct blk *base;
    struct work refill;
    struct spinlock lock;               /* guards the rest */
    struct spare *spare;
    unsigned nspare;
    struct list waiting;                /* requests, for blocks */
    uint64_t used, limit;               /* bytes of clusters and tables */
    uint64_t ngroups;
    struct group *group[];
};

struct overlay_ctx { struct blk_req sub; struct blk_req *parent; size_t at; /* bytes written or zeroed so far */ };
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

/* ---- Memory, lock held ---- */

/* A block of the reserve, its contents undefined.  -ENOSPC: the limit; -EAGAIN: the reserve is empty. */
static int take(struct overlay *o, void *out)
{
    struct spare *s = o->spare;
    if (CLUSTER > o->limit - o->used)
        return -ENOSPC;
    if (!s)
        return -EAGAIN;
    o->spare = s->next;
    o->nspare--;
    o->used += CLUSTER;
    *(void **)out = s;
    return 0;
}

static void keep(struct overlay *o, void *block)
{
    struct spare *s = block;
    s->next = o->spare;
    o->spare = s;
    o->nspare++;
}

static int find_or_add(struct overlay *o, uint64_t cluster, struct cluster **out)
{
    struct group **g = &o->group[cluster / GROUP];
    if (!*g) {
        int err = take(o, g);
        if (err)
            return err;
        memset(*g, 0, sizeof **g);
    }
    *out = &(*g)->cluster[cluster % GROUP];
    return 0;
}

static int give_data(struct overlay *o, struct cluster *c)
{
    int err = c->data ? 0 : take(o, &c->data);
    if (!err && c->zero) {
        memset(c->data, 0, CLUSTER);
        c->valid = 0xff;
        c->zero = false;
    }
    return err;
}

/* ---- Operations on a span, lock held ---- */

static int write_span(struct overlay *o, const struct blk_req *r, const struct span *s)
{
    struct cluster *c;
    int err = find_or_add(o, s->cluster, &c);
    if (!err)
        err = give_data(o, c);
    if (err)
        return err;
    iov_to(r->iov, r->niov, s->off, c->data + s->first * SECTOR, s->n * SECTOR);
    c->valid |= mask_of(s);
    return 0;
}

static int zero_span(struct overlay *o, const struct blk_req *r, const struct span *s)
{
    struct cluster *c;
    int err = find_or_add(o, s->cluster, &c);
    if (err)
        return err;
    if (mask_of(s) == 0xff) {
        if (c->data)
            keep(o, c->data), o->used -= CLUSTER;
        *c = (struct cluster){ .zero = true, .valid = 0xff };
        return 0;
    }
    if (c->zero)
        return 0;
    err = give_data(o, c);
    if (err)
        return err;
    memset(c->data + s->first * SECTOR, 0, s->n * SECTOR);
    c->valid |= mask_of(s);
    return 0;
}

/* Lays what the overlay holds over the request's memory. */
static int read_span(struct overlay *o, const struct blk_req *r, const struct span *s)
{
    const struct cluster *c = find(o, s->cluster);
    if (!c)
        return 0;
    for (unsigned i = 0, run; i < s->n; i += MAX(run, 1u)) {
        unsigned sector = s->first + i;
        for (run = 0; i + run < s->n && c->valid >> (sector + run) & 1; run++)
            ;
        if (run && c->zero)
            iov_zero(r->iov, r->niov, s->off + i * SECTOR, run * SECTOR);
        else if (run)
            iov_from(r->iov, r->niov, s->off + i * SECTOR, c->data + sector * SECTOR, run * SECTOR);
    }
    return 0;
}

static int held_span(struct overlay *o, const struct blk_req *r, const struct span *s)
{
    const struct cluster *c = find(o, s->cluster);
    return c && (c->valid & mask_of(s)) == mask_of(s) ? 0 : -ENODATA;
}

typedef int span_fn(struct overlay *, const struct blk_req *, const struct span *);

/* From request byte *at on; stops at the first span for which fn does not say 0, with *at there. */
static int each_span(struct overlay *o, const struct blk_req *r, size_t *at, span_fn *fn)
{
    struct span s;
    int err = 0;
    for (; !err && next_span(r, *at, &s); *at += err ? 0 : s.n * SECTOR) {
        spin_lock(&o->lock);
        err = fn(o, r, &s);
        spin_unlock(&o->lock);
    }
    return err;
}

/* ---- Reading ---- */

static void base_done(struct blk_req *sub)
{
    struct overlay_ctx *c = container_of(sub, struct overlay_ctx, sub);
    size_t at = 0;
    if (!sub->err)
        each_span(sub->arg, c->parent, &at, read_span);
    blk_forward(c->parent, sub->err);
}

static void submit_read(struct overlay *o, struct blk_req *r)
{
    size_t at = 0;
    if (!each_span(o, r, &at, held_span)) {
        at = 0;
        blk_complete(r, each_span(o, r, &at, read_span));
        return;
    }
    struct overlay_ctx *c = r->ctx;
    c->parent = r;
    c->sub = (struct blk_req){ .op = BLK_READ, .off = r->off, .len = r->len, .iov = r->iov, .niov = r->niov, .done = base_done, .arg = o };
    c->sub.ctx = o->base->limits.ctx_size ? (char *)c + CTX_BYTES : NULL;
    list_init(&c->sub.link);
    blk_submit(o->base, &c->sub);
}

/* ---- Changing ---- */

static int go_on(struct overlay *o, struct blk_req *r)
{
    struct overlay_ctx *c = r->ctx;
    return each_span(o, r, &c->at, r->op == BLK_WRITE ? write_span : zero_span);
}

static void submit_change(struct overlay *o, struct blk_req *r)
{
    ((struct overlay_ctx *)r->ctx)->at = 0;
    int err = go_on(o, r);
    spin_lock(&o->lock);
    if (err == -EAGAIN)
        list_append(&o->waiting, &r->link);
    if (err == -EAGAIN || o->nspare < LOW || o->nspare > HIGH)
        work_queue(&o->refill);         /* under the lock: once this request has ended, the overlay may go */
    spin_unlock(&o->lock);
    if (err != -EAGAIN)
        blk_complete(r, err);
}

/* Brings the reserve to its size.  False: there is no memory. */
static bool fill(struct overlay *o)
{
    for (;;) {
        spin_lock(&o->lock);
        bool more = o->nspare < RESERVE, less = o->nspare > HIGH;
        struct spare *s = less ? o->spare : NULL;
        if (s)
            o->spare = s->next, o->nspare--;
        spin_unlock(&o->lock);
        if (!more && !less)
            return true;
        if (less) {
            kfree(s);
            continue;
        }
        s = kmalloc(CLUSTER);
        if (!s)
            return false;
        spin_lock(&o->lock);
        keep(o, s);
        spin_unlock(&o->lock);
    }
}

/* The request that waits longest; NULL: none. */
static struct blk_req *next_waiting(struct overlay *o)
{
    spin_lock(&o->lock);
    struct list *l = list_pop(&o->waiting);
    spin_unlock(&o->lock);
    return l ? list_entry(l, struct blk_req, link) : NULL;
}

static void refill(struct work *w)
{
    struct overlay *o = container_of(w, struct overlay, refill);
    struct blk_req *r;
    bool memory = fill(o);
    while ((r = next_waiting(o))) {
        int err;
        while ((err = go_on(o, r)) == -EAGAIN && memory)
            memory = fill(o);
        blk_complete(r, err == -EAGAIN ? -ENOSPC : err);
    }
    if (memory)
        fill(o);
}

static void overlay_submit(struct blk *b, struct blk_req *r)
{
    struct overlay *o = container_of(b, struct overlay, blk);
    switch (r->op) {
    case BLK_READ:
        submit_read(o, r);
        return;
    case BLK_WRITE:
    case BLK_DISCARD:
    case BLK_WRITE_ZEROES:
        submit_change(o, r);
        return;
    case BLK_FLUSH:
        blk_complete(r, 0);
        return;
    }
}

static void overlay_free(struct overlay *o)
{
    for (uint64_t g = 0; g < o->ngroups; g++) {
        for (unsigned i = 0; o->group[g] && i < GROUP; i++)
            kfree(o->group[g]->cluster[i].data);
        kfree(o->group[g]);
    }
    for (struct spare *s = o->spare, *next; s; s = next) {
        next = s->next;
        kfree(s);
    }
    kfree(o);
}

static void overlay_close(struct blk *b)
{
    struct overlay *o = container_of(b, struct overlay, blk);
    work_flush(&o->refill);
    overlay_free(o);
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
    work_init(&o->refill, refill);
    list_init(&o->waiting);
    if (!fill(o) || blk_ready(&o->blk)) {
        overlay_free(o);
        return NULL;
    }
    return &o->blk;
}
