#include "kernel/console/chan.h"
#include "kernel/lib/port.h"

/* One direction.  head and tail run freely; the writer owns head, the reader tail; the locks are for several writers or readers. */
struct ring {
    struct spinlock wlock, rlock;
    size_t head, tail;
    uint8_t *buf;
};

/* A side's callback.  `pending` makes a notification that arrives while one runs (on this or another CPU, or from inside the callback) run after it. */
struct notify {
    struct spinlock lock;
    uint32_t pending;
    void (*fn)(void *arg);
    void *arg;
};

struct chan {
    size_t size;                /* of each ring */
    struct ring to[2];          /* to[s]: what side s reads */
    struct notify notify[2];
    uint8_t mem[];
};

struct chan *chan_create(size_t size)
{
    if (!size || size & (size - 1))
        return NULL;
    struct chan *c = kzalloc(sizeof(*c) + 2 * size);
    if (!c)
        return NULL;
    c->size = size;
    c->to[0].buf = c->mem, c->to[1].buf = c->mem + size;
    return c;
}

void chan_destroy(struct chan *c) { kfree(c); }

static void notify_side(struct notify *n)
{
    atomic_xchg(&n->pending, 1u);      /* a full barrier: either the holder sees it, or we get the lock */
    do {
        if (!spin_trylock(&n->lock))
            return;             /* its holder looks at pending again after the unlock */
        while (atomic_xchg(&n->pending, 0u))
            if (n->fn)
                n->fn(n->arg);
        spin_unlock(&n->lock);
        atomic_fence();
    } while (atomic_load(&n->pending));
}

void chan_set_notify(struct chan *c, int side, void (*fn)(void *arg), void *arg)
{
    struct notify *n = &c->notify[side];
    spin_lock(&n->lock);
    n->fn = fn, n->arg = arg;
    spin_unlock(&n->lock);
    if (fn && atomic_load(&n->pending))
        notify_side(n);
}

static void copy(uint8_t *dst, const uint8_t *src, size_t n) { __builtin_memcpy(dst, src, n); }

size_t chan_write(struct chan *c, int side, const void *buf, size_t len)
{
    struct ring *r = &c->to[!side];
    spin_lock(&r->wlock);
    size_t head = r->head, n = MIN(len, c->size - (head - atomic_load(&r->tail)));
    size_t at = head & (c->size - 1), first = MIN(n, c->size - at);
    copy(r->buf + at, buf, first);
    copy(r->buf, (const uint8_t *)buf + first, n - first);
    atomic_store(&r->head, head + n);
    spin_unlock(&r->wlock);
    if (n)
        notify_side(&c->notify[!side]);
    return n;
}

size_t chan_read(struct chan *c, int side, void *buf, size_t len)
{
    struct ring *r = &c->to[side];
    spin_lock(&r->rlock);
    size_t tail = r->tail, n = MIN(len, atomic_load(&r->head) - tail);
    size_t at = tail & (c->size - 1), first = MIN(n, c->size - at);
    copy(buf, r->buf + at, first);
    copy((uint8_t *)buf + first, r->buf, n - first);
    atomic_store(&r->tail, tail + n);
    spin_unlock(&r->rlock);
    if (n)
        notify_side(&c->notify[!side]);
    return n;
}

size_t chan_readable(struct chan *c, int side)
{
    struct ring *r = &c->to[side];
    size_t tail = atomic_load(&r->tail);
    size_t n = atomic_load(&r->head) - tail;
    return MIN(n, c->size);     /* two loads: another reader may have moved on between them */
}

size_t chan_writable(struct chan *c, int side)
{
    struct ring *r = &c->to[!side];
    size_t tail = atomic_load(&r->tail);
    size_t used = atomic_load(&r->head) - tail;
    return used > c->size ? 0 : c->size - used;
}
