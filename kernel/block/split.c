/*
 * Requests that a layer cannot take as they are.  A request is cut into pieces, several in flight at once; each piece uses a slot
 * of a pool reserved when the layer was opened, with a bounce buffer for memory that the layer cannot reach.  No slot free: it waits.
 */
#include "kernel/block/split.h"

#include <errno.h>
#include <string.h>
#include "kernel/lib/port.h"

#define SLOTS 8
#define MAX_PARALLEL 4          /* pieces of one request */
#define MAX_IOV 256             /* entries per piece; more are not worth their memory */
#define BOUNCE_LEN 32768u
#define ZERO_LEN 16384u

static const uint8_t zeroes[ZERO_LEN] __aligned_to(4096);

/* A slot carries one piece.  A request's first slot also holds its progress (the fields from `parent`) until its end. */
struct slot {
    struct list link;
    struct blk_split *sp;
    struct slot *leader;
    struct blk_req req;
    struct iov *iov;
    uint8_t *bounce;
    void *ctx;
    bool bounced, busy;         /* busy: its piece is in flight */
    struct blk_req *parent;
    size_t next;                /* bytes of the parent given to pieces */
    int inflight, err;
    bool flushing;
};

struct blk_split {
    struct spinlock lock;
    struct blk *blk;
    struct list free, waiting;
    uint32_t max_iov;
    size_t bounce_len;
    struct slot slot[SLOTS];
};

/* ---- What fits ---- */

static bool aligned(const struct blk_limits *l, const struct iov *v, int n)
{
    uintptr_t bits = 0;
    for (int i = 0; i < n; i++)
        bits |= (uintptr_t)v[i].base | (i + 1 < n ? v[i].len : 0);
    return !(bits & (l->mem_align - 1));
}

bool blk_fits(const struct blk *b, const struct blk_req *r)
{
    const struct blk_limits *l = &b->limits;
    if (r->op == BLK_FLUSH)
        return true;
    if (r->len > l->max_len || (r->flags & BLK_FUA && !l->fua && l->volatile_cache))
        return false;
    if (r->op == BLK_WRITE_ZEROES)
        return l->write_zeroes;
    if (r->op == BLK_DISCARD)
        return true;
    return (uint32_t)r->niov <= l->max_segs && (l->mem_align == 1 || aligned(l, r->iov, r->niov));
}

/* ---- Cutting ---- */

static size_t piece_limit(struct blk_split *sp, const struct slot *lead)
{
    return MIN((uint64_t)(lead->parent->len - lead->next), ALIGN_DOWN(sp->blk->limits.max_len, (uint64_t)sp->blk->limits.block));
}

static void cut_zeroes(struct slot *s, size_t len)
{
    int n = 0;
    size_t sum = 0;
    for (; sum < len && n < (int)s->sp->max_iov; n++) {
        s->iov[n] = (struct iov){ (void *)(uintptr_t)zeroes, MIN(len - sum, (size_t)ZERO_LEN) };
        sum += s->iov[n].len;
    }
    s->req.op = BLK_WRITE, s->req.iov = s->iov, s->req.niov = n, s->req.len = sum;
}

/* As much of the parent's memory as fits in one piece without copying; 0: the next block needs the bounce buffer. */
static size_t cut_direct(struct slot *s, const struct blk_req *p, size_t off, size_t len)
{
    const struct blk_limits *l = &s->sp->blk->limits;
    size_t sum = 0, whole = 0;
    int n = 0, whole_n = 0;
    for (int i = 0; i < p->niov && sum < len && n < (int)s->sp->max_iov; i++) {
        if (off >= p->iov[i].len) {
            off -= p->iov[i].len;
            continue;
        }
        char *base = (char *)p->iov[i].base + off;
        size_t k = MIN(p->iov[i].len - off, len - sum);
        if (((uintptr_t)base | sum) & (l->mem_align - 1))
            break;
        s->iov[n++] = (struct iov){ base, k };
        sum += k, off = 0;
        if (sum >= l->block) {
            size_t keep = ALIGN_DOWN(sum, (size_t)l->block);
            if (sum - keep < k)
                whole = keep, whole_n = n;
        }
    }
    if (whole)
        s->iov[whole_n - 1].len -= iov_len(s->iov, whole_n) - whole;
    s->req.iov = s->iov, s->req.niov = whole_n;
    return whole;
}

static void cut_data(struct slot *s, const struct slot *lead, size_t len)
{
    const struct blk_req *p = lead->parent;
    s->req.len = cut_direct(s, p, lead->next, len);
    s->bounced = !s->req.len;
    if (!s->bounced)
        return;
    s->req.len = MIN(len, s->sp->bounce_len);
    s->iov[0] = (struct iov){ s->bounce, s->req.len };
    s->req.iov = s->iov, s->req.niov = 1;
    if (p->op == BLK_WRITE)
        iov_to(p->iov, p->niov, lead->next, s->bounce, s->req.len);
}

static void cut(struct slot *s, struct slot *lead)
{
    const struct blk_req *p = lead->parent;
    const struct blk_limits *l = &s->sp->blk->limits;
    size_t len = piece_limit(s->sp, lead);
    s->leader = lead, s->bounced = false, s->busy = true;
    s->req.op = p->op, s->req.off = p->off + lead->next, s->req.len = len, s->req.iov = NULL, s->req.niov = 0;
    s->req.flags = p->flags & ~(l->fua || !l->volatile_cache ? 0 : BLK_FUA);
    if (p->op == BLK_READ || p->op == BLK_WRITE)
        cut_data(s, lead, len);
    else if (p->op == BLK_WRITE_ZEROES && !l->write_zeroes)
        cut_zeroes(s, len);
    lead->next += s->req.len;
    lead->inflight++;
}

/* ---- Running ---- */

static struct slot *idle_slot(struct blk_split *sp, struct slot *lead)
{
    if (!lead->busy)
        return lead;
    if (lead->inflight >= MAX_PARALLEL)
        return NULL;
    return list_first(&sp->free, struct slot, link);
}

/* Gives out pieces while there are slots.  Called with the lock; drops it around submit. */
static void pump(struct blk_split *sp, struct slot *lead)
{
    struct slot *s;
    while (!lead->err && lead->next < lead->parent->len && (s = idle_slot(sp, lead))) {
        list_del(&s->link);
        cut(s, lead);
        lead->inflight++;               /* our own hold: the leader must not end while the lock is away */
        spin_unlock(&sp->lock);
        sp->blk->ops->submit(sp->blk, &s->req);
        spin_lock(&sp->lock);
        lead->inflight--;
    }
}

static void lead(struct blk_split *sp, struct slot *s, struct blk_req *parent)
{
    list_del(&s->link);
    s->parent = parent, s->next = 0, s->inflight = 0, s->err = 0, s->flushing = false;
}

static void flush_after(struct blk_split *sp, struct slot *s)
{
    s->flushing = true, s->leader = s, s->bounced = false, s->busy = true, s->inflight = 2;
    s->req.op = BLK_FLUSH, s->req.flags = 0, s->req.off = 0, s->req.len = 0, s->req.iov = NULL, s->req.niov = 0;
    spin_unlock(&sp->lock);
    sp->blk->ops->submit(sp->blk, &s->req);
    spin_lock(&sp->lock);
    s->inflight--;
}

static bool wants_flush(const struct blk_split *sp, const struct slot *s)
{
    const struct blk_limits *l = &sp->blk->limits;
    return !s->err && !s->flushing && s->parent->flags & BLK_FUA && !l->fua && l->volatile_cache && s->parent->op != BLK_READ;
}

/* With the lock: go on with a request; when its last piece has ended, its slot is free and it is on `ended`. */
static void settle(struct blk_split *sp, struct slot *s, struct list *ended)
{
    pump(sp, s);
    if (!s->inflight && wants_flush(sp, s))
        flush_after(sp, s);
    if (s->inflight)
        return;
    s->parent->err = s->err;
    list_append(ended, &s->parent->link);
    s->parent = NULL;
    list_push(&sp->free, &s->link);
}

static void serve_waiting(struct blk_split *sp, struct list *ended)
{
    while (!list_empty(&sp->waiting) && !list_empty(&sp->free)) {
        struct slot *s = list_first(&sp->free, struct slot, link);
        lead(sp, s, list_entry(list_pop(&sp->waiting), struct blk_req, link));
        settle(sp, s, ended);
    }
}

/* The very last act of whoever took the lock: the done of the last request may let another thread close the layer. */
static void end_all(struct list *ended)
{
    struct list *n;
    while ((n = list_pop(ended))) {
        struct blk_req *r = list_entry(n, struct blk_req, link);
        blk_complete(r, r->err);
    }
}

static void piece_done(struct blk_req *r)
{
    struct slot *s = r->arg, *lead_slot = s->leader;
    struct blk_split *sp = s->sp;
    const struct blk_req *p = lead_slot->parent;
    struct list ended = LIST_INIT(ended);
    if (s->bounced && r->op == BLK_READ && !r->err)
        iov_from(p->iov, p->niov, r->off - p->off, s->bounce, r->len);
    spin_lock(&sp->lock);
    s->busy = false;
    if (r->err && !lead_slot->err)
        lead_slot->err = r->err;
    if (s != lead_slot)
        list_push(&sp->free, &s->link);
    lead_slot->inflight--;
    settle(sp, lead_slot, &ended);
    serve_waiting(sp, &ended);
    spin_unlock(&sp->lock);
    end_all(&ended);
}

void blk_split_submit(struct blk *b, struct blk_req *r)
{
    struct blk_split *sp = b->split;
    struct list ended = LIST_INIT(ended);
    if (!sp) {
        blk_complete(r, -EINVAL);
        return;
    }
    spin_lock(&sp->lock);
    list_append(&sp->waiting, &r->link);
    serve_waiting(sp, &ended);
    spin_unlock(&sp->lock);
    end_all(&ended);
}

/* ---- The pool ---- */

static int slot_open(struct blk_split *sp, struct slot *s)
{
    const struct blk_limits *l = &sp->blk->limits;
    s->sp = sp;
    s->iov = kmalloc(sp->max_iov * sizeof *s->iov);
    s->bounce = kmalloc_aligned(sp->bounce_len, MAX(l->mem_align, 16u));
    s->ctx = l->ctx_size ? kmalloc(l->ctx_size) : NULL;
    if (!s->iov || !s->bounce || (l->ctx_size && !s->ctx))
        return -ENOMEM;
    s->req.done = piece_done, s->req.arg = s, s->req.ctx = s->ctx;
    list_append(&sp->free, &s->link);
    return 0;
}

int blk_split_open(struct blk *b)
{
    const struct blk_limits *l = &b->limits;
    struct blk_split *sp = kzalloc(sizeof *sp);
    if (!sp)
        return -ENOMEM;
    sp->blk = b;
    list_init(&sp->free);
    list_init(&sp->waiting);
    sp->max_iov = MIN(l->max_segs, (uint32_t)MAX_IOV);
    sp->bounce_len = l->mem_align > 1 ? MIN(BOUNCE_LEN, ALIGN_DOWN(l->max_len, l->block)) : l->block;
    b->split = sp;
    for (int i = 0; i < SLOTS; i++)
        if (slot_open(sp, &sp->slot[i])) {
            blk_split_close(b);
            return -ENOMEM;
        }
    return 0;
}

void blk_split_close(struct blk *b)
{
    struct blk_split *sp = b->split;
    for (int i = 0; sp && i < SLOTS; i++) {
        kfree(sp->slot[i].iov);
        kfree(sp->slot[i].bounce);
        kfree(sp->slot[i].ctx);
    }
    kfree(sp);
    b->split = NULL;
}
