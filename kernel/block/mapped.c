#include "kernel/block/mapped.h"

#include <errno.h>
#include <string.h>

#define PART_IOV 16
#define COPY_LEN (256u << 10)
#define TURN 64                 /* requests; then other owners' have the thread */

/* Per request: where it is, and the part that is on its way down. */
struct mapped_ctx {
    struct blk_req part;
    struct mapped *m;
    struct blk_req *whole;
    size_t done;
    uint32_t block;
    struct iov iov[PART_IOV];
    uint8_t below[] __aligned_to(16);
};

uint32_t mapped_ctx_size(uint32_t below) { return sizeof(struct mapped_ctx) + ALIGN_UP(below, 16u); }

void mapped_init(struct mapped *m, const struct mapped_ops *ops, struct blk *below, const struct blk_limits *own)
{
    *m = (struct mapped){ .ops = ops, .below = below, .own = own };
    event_init(&m->drained);
    list_init(&m->queue);
}

void mapped_fini(struct mapped *m) { kfree(m->map); }

/* ---- The cache ---- */

/* First entry that ends after off. */
static unsigned entry_at(const struct mapped *m, uint64_t off)
{
    unsigned lo = 0, hi = m->n;
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (m->map[mid].off + m->map[mid].len <= off)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* What is left of an entry behind `end`. */
static struct map tail_of(const struct map *e, uint64_t end)
{
    uint64_t skip = end - e->off;
    struct map t = *e;
    t.off += skip, t.len -= skip, t.at += t.state == MAP_ZERO ? 0 : skip;
    return t;
}

/* Entries that reach over the range's edges are cut; where one would become two without room for it, the end goes too and is learnt again. */
static void forget(struct mapped *m, uint64_t off, uint64_t len)
{
    uint64_t end = off + len;
    unsigned from = entry_at(m, off), to = from;
    struct map *e = m->map + from;
    if (from < m->n && e->off < off) {
        struct map rest = e->off + e->len > end ? tail_of(e, end) : (struct map){ .len = 0 };
        e->len = off - e->off;
        to = ++from;
        if (rest.len && m->n < m->cap) {
            memmove(m->map + from + 1, m->map + from, (m->n - from) * sizeof *m->map);
            m->map[from] = rest;
            m->n++;
        }
        if (rest.len)
            return;
    }
    while (to < m->n && m->map[to].off + m->map[to].len <= end)
        to++;
    if (to < m->n && m->map[to].off < end)
        m->map[to] = tail_of(&m->map[to], end);
    if (to > from)
        memmove(m->map + from, m->map + to, (m->n - to) * sizeof *m->map);
    m->n -= to - from;
}

void mapped_forget(struct mapped *m, uint64_t off, uint64_t len)
{
    spin_lock(&m->spin);
    if (m->map)
        forget(m, off, len);
    spin_unlock(&m->spin);
}

/* Both say the same of the blocks at b, which a covers. */
static bool same(const struct map *a, const struct map *b)
{
    return a->state == b->state && a->pass == b->pass && (a->state == MAP_ZERO || (a->to == b->to && a->at + (b->off - a->off) == b->at));
}

static bool continues(const struct map *a, const struct map *b)
{
    return a->off + a->len == b->off && same(a, b);
}

/* Room is made outside of the spinlock; without memory the cache stays as it is. */
static void make_room(struct mapped *m)
{
    if (m->n < m->cap || m->cap >= MAP_CACHE)
        return;
    unsigned cap = m->cap ? 2 * m->cap : 64;
    struct map *bigger = kmalloc(cap * sizeof *bigger), *old = m->map;
    if (!bigger)
        return;
    spin_lock(&m->spin);
    if (m->n)
        memcpy(bigger, m->map, m->n * sizeof *bigger);
    m->map = bigger;
    m->cap = cap;
    spin_unlock(&m->spin);
    kfree(old);
}

/* Full: the half further away from entry i goes; returns where i is then. */
static unsigned halve(struct mapped *m, unsigned i)
{
    unsigned half = m->n / 2;
    if (i >= half) {
        memmove(m->map, m->map + half, (m->n - half) * sizeof *m->map);
        m->n -= half;
        return i - half;
    }
    m->n = half;
    return i;
}

static void insert(struct mapped *m, const struct map *e)
{
    unsigned i = entry_at(m, e->off);
    if (i && continues(&m->map[i - 1], e)) {
        m->map[--i].len += e->len;
    } else {
        if (m->n == m->cap)
            i = halve(m, i);
        memmove(m->map + i + 1, m->map + i, (m->n - i) * sizeof *e);
        m->map[i] = *e;
        m->n++;
    }
    if (i + 1 < m->n && continues(&m->map[i], &m->map[i + 1])) {
        m->map[i].len += m->map[i + 1].len;
        memmove(m->map + i + 1, m->map + i + 2, (m->n - i - 2) * sizeof *e);
        m->n--;
    }
}

void mapped_learn(struct mapped *m, uint64_t off, uint64_t len, struct blk *to, uint64_t at, unsigned state)
{
    struct map e = { off, len, at, to, state, false };
    if (!m->users || !len)
        return;
    e.pass = to && blk_limits_imply(m->own, &to->limits) && !((off | at) & (to->limits.block - 1)) &&
        (state != MAP_WRITE || !to->limits.read_only);
    make_room(m);
    spin_lock(&m->spin);
    unsigned i = entry_at(m, off);
    bool known = i < m->n && m->map[i].off <= off && m->map[i].off + m->map[i].len >= off + len && same(&m->map[i], &e);
    if (m->cap && !known) {
        forget(m, off, len);
        insert(m, &e);
    }
    spin_unlock(&m->spin);
}

void mapped_read_only(struct mapped *m)
{
    spin_lock(&m->spin);
    for (unsigned i = 0; i < m->n; i++)
        if (m->map[i].state == MAP_WRITE)
            m->map[i].state = MAP_READ;
    spin_unlock(&m->spin);
}

void mapped_use(struct mapped *m, int more)
{
    spin_lock(&m->spin);
    m->users += more;
    if (!m->users)
        m->n = 0;
    spin_unlock(&m->spin);
}

void mapped_gate(struct mapped *m)
{
    spin_lock(&m->spin);
    m->gate++;
    __atomic_store_n(&m->draining, true, __ATOMIC_SEQ_CST);     /* before inflight is read: leave() does it the other way round */
    bool wait = __atomic_load_n(&m->inflight, __ATOMIC_SEQ_CST) > 0;
    if (!wait)
        atomic_store_relaxed(&m->draining, false);
    spin_unlock(&m->spin);
    if (wait)
        event_wait(&m->drained);
}

void mapped_ungate(struct mapped *m)
{
    spin_lock(&m->spin);
    m->gate--;
    spin_unlock(&m->spin);
}

/* ---- The slow path ---- */

static void go_slow(struct mapped_ctx *c)
{
    struct mapped *m = c->m;
    spin_lock(&m->spin);
    list_append(&m->queue, &c->part.link);
    bool kick = !m->queued;
    m->queued = true;
    if (kick)
        m->ops->kick(m);        /* under the lock: once the request can end, the owner may go */
    spin_unlock(&m->spin);
}

/* NULL: the queue is empty, and the next request will kick again. */
static struct mapped_ctx *next_slow(struct mapped *m)
{
    spin_lock(&m->spin);
    struct list *l = list_pop(&m->queue);
    m->queued = l != NULL;
    spin_unlock(&m->spin);
    return l ? container_of(list_entry(l, struct blk_req, link), struct mapped_ctx, part) : NULL;
}

/* To the end of the line. */
static void kick_again(struct mapped *m)
{
    spin_lock(&m->spin);
    m->queued = !list_empty(&m->queue);
    if (m->queued)
        m->ops->kick(m);
    spin_unlock(&m->spin);
}

/* The last request is ended last of all: until then the owner cannot be closed. */
void mapped_serve(struct mapped *m)
{
    struct mapped_ctx *c;
    struct blk_req *last = NULL;
    m->ops->lock(m);
    int n = 0;
    for (; n < TURN && (c = next_slow(m)); n++) {
        if (last)
            blk_complete(last, last->err);
        last = c->whole;
        last->err = m->ops->slow(m, last, c->done);
    }
    if (n == TURN)
        kick_again(m);
    m->ops->unlock(m);
    if (last)
        blk_complete(last, last->err);
}

int mapped_copy(struct blk_req *r, size_t from, int (*read)(void *, uint64_t, void *, size_t),
                int (*write)(void *, uint64_t, const void *, size_t), void *arg)
{
    size_t left = r->len - from;
    uint8_t *copy = kmalloc_aligned(MIN(left, (size_t)COPY_LEN), 4096);
    int err = copy ? 0 : -ENOMEM;
    while (!err && left) {
        size_t k = MIN(left, (size_t)COPY_LEN);
        if (r->op == BLK_WRITE) {
            iov_to(r->iov, r->niov, from, copy, k);
            err = write(arg, r->off + from, copy, k);
        } else {
            err = read(arg, r->off + from, copy, k);
            if (!err)
                iov_from(r->iov, r->niov, from, copy, k);
        }
        from += k, left -= k;
    }
    kfree(copy);
    return err;
}

/* ---- The fast path ---- */

static void advance(struct mapped_ctx *c);

static __attribute__((noinline)) void drained(struct mapped *m)
{
    spin_lock(&m->spin);
    if (atomic_load(&m->draining) && !atomic_load(&m->inflight)) {
        atomic_store_relaxed(&m->draining, false);
        event_post(&m->drained);
    }
    spin_unlock(&m->spin);
}

/* The request whose part this was has not ended yet, so the owner is still there. */
static inline void leave(struct mapped *m)
{
    if (!atomic_sub(&m->inflight, 1) && unlikely(__atomic_load_n(&m->draining, __ATOMIC_SEQ_CST)))
        drained(m);
}

static void part_done(struct blk_req *p)
{
    struct mapped_ctx *c = container_of(p, struct mapped_ctx, part);
    struct blk_req *whole = c->whole;
    int err = p->err;
    c->done += p->len;
    leave(c->m);
    if (likely(err || c->done >= whole->len))
        blk_forward(whole, err);
    else
        advance(c);
}

size_t blk_slice(struct blk_req *to, struct iov *iov, int max, const struct blk_req *r, size_t done, size_t len, uint32_t block)
{
    if (!done && len == r->len) {
        to->iov = r->iov, to->niov = r->niov;
        return len;
    }
    size_t off = done, sum = 0;
    int n = 0;
    for (int i = 0; i < r->niov && n < max && sum < len; i++) {
        if (off >= r->iov[i].len) {
            off -= r->iov[i].len;
            continue;
        }
        iov[n] = (struct iov){ (char *)r->iov[i].base + off, MIN(r->iov[i].len - off, len - sum) };
        sum += iov[n++].len, off = 0;
    }
    to->iov = iov, to->niov = n;
    return ALIGN_DOWN(sum, (size_t)block);
}

enum look { LOOK_DOWN, LOOK_ZERO, LOOK_SLOW };

struct found { struct blk *to; uint64_t at; size_t len; bool pass; };

/* Finds the entry of the next byte; on LOOK_DOWN one more is in flight. */
static inline enum look look_up(struct mapped *m, const struct blk_req *r, size_t done, struct found *f)
{
    uint64_t off = r->off + done;
    enum look look = LOOK_SLOW;
    spin_lock(&m->spin);
    unsigned i = m->hit;
    if (unlikely(i >= m->n || off - m->map[i].off >= m->map[i].len))
        i = entry_at(m, off);
    if (likely(i < m->n && m->map[i].off <= off && !m->gate)) {
        const struct map *e = &m->map[i];
        uint64_t in = off - e->off;
        m->hit = i;
        *f = (struct found){ e->to, e->at + in, MIN(r->len - done, e->len - in), e->pass };
        if (e->state == MAP_WRITE || (e->state == MAP_READ && r->op == BLK_READ))
            look = LOOK_DOWN, atomic_add(&m->inflight, 1);
        else if (e->state == MAP_ZERO && r->op == BLK_READ)
            look = LOOK_ZERO;
    }
    spin_unlock(&m->spin);
    return look;
}

static void advance(struct mapped_ctx *c)
{
    struct blk_req *r = c->whole;
    for (;;) {
        struct found f;
        enum look look = look_up(c->m, r, c->done, &f);
        if (look == LOOK_ZERO) {
            iov_zero(r->iov, r->niov, c->done, f.len);
            c->done += f.len;
            if (c->done < r->len)
                continue;
            blk_complete(r, 0);
            return;
        }
        if (look == LOOK_DOWN) {
            size_t len = blk_slice(&c->part, c->iov, PART_IOV, r, c->done, f.len, c->block);
            if (len) {
                c->part.off = f.at, c->part.len = len;
                blk_submit(f.to, &c->part);
                return;
            }
            leave(c->m);
        }
        go_slow(c);
        return;
    }
}

static void prepare(struct mapped *m, struct blk_req *r, uint32_t block)
{
    struct mapped_ctx *c = r->ctx;
    c->m = m, c->whole = r, c->done = 0, c->block = block;
    c->part.op = r->op, c->part.flags = r->flags, c->part.done = part_done, c->part.ctx = c->below;
}

static __attribute__((noinline)) void submit_any(struct mapped *m, struct blk_req *r, uint32_t block)
{
    struct mapped_ctx *c = r->ctx;
    prepare(m, r, block);
    if (r->op == BLK_READ || (r->op == BLK_WRITE && (!(r->flags & BLK_FUA) || m->ops->settled(m)))) {
        advance(c);
    } else if (r->op == BLK_FLUSH && m->ops->settled(m)) {
        c->part.off = 0, c->part.len = 0, c->part.iov = NULL, c->part.niov = 0;
        atomic_add(&m->inflight, 1);    /* no gate stops a flush */
        blk_submit(m->below, &c->part);
    } else {
        go_slow(c);
    }
}

/* The common request lies in one entry and goes down as it is; everything else takes the long way. */
void mapped_submit(struct mapped *m, struct blk_req *r, uint32_t block)
{
    struct mapped_ctx *c = r->ctx;
    struct found f;
    enum look look = likely(r->op <= BLK_WRITE && !r->flags) ? look_up(m, r, 0, &f) : LOOK_SLOW;
    if (unlikely(look != LOOK_DOWN || f.len != r->len || !f.pass)) {
        if (look == LOOK_DOWN)
            leave(m);
        submit_any(m, r, block);
        return;
    }
    prepare(m, r, block);
    c->part.off = f.at, c->part.len = r->len, c->part.iov = r->iov, c->part.niov = r->niov;
    blk_pass(f.to, &c->part);
}
