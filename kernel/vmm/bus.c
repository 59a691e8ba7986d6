#include "kernel/vmm/bus.h"

#include <errno.h>
#include <string.h>

#include "kernel/lib/list.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"

struct region { struct list link; uint64_t base, len; io_fn *fn; void *dev; const char *name; unsigned flags; };

/* What dispatch reads: disjoint pieces in address order; overlays are already cut out. */
struct piece { uint64_t start, end, base; io_fn *fn; void *dev; };
struct map { struct map *next_retired; uint64_t *seen; unsigned n; struct piece piece[]; };

/* A reader is inside dispatch while seq is odd.  A retired map remembers every reader's seq and goes once each odd one has moved on. */
struct reader { uint64_t seq; unsigned depth; } __aligned_to(64);

struct bus {
    struct map *map;
    const char *name;
    uint64_t limit, unclaimed;
    struct ratelimit log;
    struct spinlock lock;       /* writers: regions, retired maps */
    struct list regions;        /* in order of claiming */
    struct map *retired;
    unsigned nreaders;
    struct reader reader[];
};

static void free_maps(struct map *m)
{
    while (m) {
        struct map *next = m->next_retired;
        kfree(m);
        m = next;
    }
}

void bus_destroy(struct bus *b)
{
    struct region *r, *tmp;
    if (!b)
        return;
    list_for_each_safe(r, tmp, &b->regions, link)
        kfree(r);
    free_maps(b->retired);
    kfree(b->map);
    kfree(b);
}

static void insert_piece(struct map *m, struct piece p)
{
    unsigned i = m->n++;
    for (; i > 0 && m->piece[i - 1].start > p.start; i--)
        m->piece[i] = m->piece[i - 1];
    m->piece[i] = p;
}

/* Cut [start, end) out of what is there. */
static void carve(struct map *m, uint64_t start, uint64_t end)
{
    for (unsigned i = 0; i < m->n; i++) {
        struct piece *p = &m->piece[i];
        if (p->end <= start || p->start >= end)
            continue;
        struct piece tail = *p;
        bool has_tail = p->end > end;
        if (p->start < start) {
            p->end = start;
        } else {
            memmove(p, p + 1, (--m->n - i) * sizeof *p);
            i--;
        }
        if (has_tail) {
            tail.start = end;
            insert_piece(m, tail);
        }
    }
}

static void add_region(struct map *m, const struct region *r)
{
    carve(m, r->base, r->base + r->len);
    insert_piece(m, (struct piece){ r->base, r->base + r->len, r->base, r->fn, r->dev });
}

static struct map *build(struct bus *b)
{
    struct region *r;
    unsigned n = 0;
    list_for_each(r, &b->regions, link)
        n++;
    n *= 2;                                             /* an overlay adds at most two pieces */
    struct map *m = kzalloc(sizeof *m + n * sizeof m->piece[0] + b->nreaders * sizeof m->seen[0]);
    if (!m)
        return NULL;
    m->seen = (uint64_t *)&m->piece[n];
    list_for_each(r, &b->regions, link)
        if (!(r->flags & BUS_OVERLAY))
            add_region(m, r);
    list_for_each(r, &b->regions, link)
        if (r->flags & BUS_OVERLAY)
            add_region(m, r);
    return m;
}

struct bus *bus_create(const char *name, uint64_t limit, unsigned nreaders)
{
    struct bus *b = kmalloc_aligned(sizeof *b + nreaders * sizeof b->reader[0], 64);
    if (!b)
        return NULL;
    memset(b, 0, sizeof *b + nreaders * sizeof b->reader[0]);
    b->name = name, b->limit = limit, b->nreaders = nreaders;
    list_init(&b->regions);
    b->map = build(b);
    if (!b->map) {
        kfree(b);
        return NULL;
    }
    return b;
}

static bool left_by_all(const struct bus *b, const struct map *m)
{
    for (unsigned i = 0; i < b->nreaders; i++)
        if ((m->seen[i] & 1) && atomic_load(&b->reader[i].seq) == m->seen[i])
            return false;
    return true;
}

static void reclaim(struct bus *b)
{
    struct map **at = &b->retired;
    while (*at) {
        struct map *m = *at;
        if (left_by_all(b, m)) {
            *at = m->next_retired;
            kfree(m);
        } else {
            at = &m->next_retired;
        }
    }
}

/*
 * The writer may itself be a reader (a BAR move), so it never waits: a retired map that somebody may still read is freed by a later change or with the bus.
 * A guest cannot make the list grow: a map is kept only while a reader stays inside the one dispatch it was in when the map was retired.
 */
static int publish(struct bus *b)
{
    struct map *m = build(b), *old = b->map;
    if (!m)
        return -ENOMEM;
    atomic_store(&b->map, m);
    atomic_fence();             /* whoever enters dispatch from here on reads the new map */
    for (unsigned i = 0; i < b->nreaders; i++)
        old->seen[i] = atomic_load(&b->reader[i].seq);
    old->next_retired = b->retired;
    b->retired = old;
    reclaim(b);
    return 0;
}

static struct region *overlapping(struct bus *b, uint64_t base, uint64_t len, const void *except)
{
    struct region *r;
    list_for_each(r, &b->regions, link)
        if (r != except && !(r->flags & BUS_OVERLAY) && base < r->base + r->len && r->base < base + len)
            return r;
    return NULL;
}

static struct region *find(struct bus *b, uint64_t base, const void *dev)
{
    struct region *r;
    list_for_each(r, &b->regions, link)
        if (r->base == base && r->dev == dev)
            return r;
    return NULL;
}

static bool inside(const struct bus *b, uint64_t base, uint64_t len)
{
    return len && base < b->limit && len <= b->limit - base;
}

int bus_add(struct bus *b, uint64_t base, uint64_t len, io_fn *fn, void *dev, const char *name, unsigned flags)
{
    if (!inside(b, base, len))
        return -EINVAL;
    struct region *r = kmalloc(sizeof *r);
    if (!r)
        return -ENOMEM;
    *r = (struct region){ .base = base, .len = len, .fn = fn, .dev = dev, .name = name, .flags = flags };
    spin_lock(&b->lock);
    int err = !(flags & BUS_OVERLAY) && overlapping(b, base, len, NULL) ? -EEXIST : 0;
    if (!err) {
        list_append(&b->regions, &r->link);
        err = publish(b);
        if (err)
            list_del(&r->link);
    }
    spin_unlock(&b->lock);
    if (err)
        kfree(r);
    return err;
}

int bus_remove(struct bus *b, uint64_t base, void *dev)
{
    spin_lock(&b->lock);
    struct region *r = find(b, base, dev);
    int err = r ? 0 : -ENOENT;
    if (r) {
        struct list *prev = r->link.prev;
        list_del(&r->link);
        err = publish(b);
        if (err)
            list_push(prev, &r->link);
        else
            kfree(r);
    }
    spin_unlock(&b->lock);
    return err;
}

int bus_move(struct bus *b, uint64_t old_base, uint64_t new_base, void *dev)
{
    spin_lock(&b->lock);
    struct region *r = find(b, old_base, dev);
    int err = !r ? -ENOENT : !inside(b, new_base, r->len) ? -EINVAL : 0;
    if (!err && !(r->flags & BUS_OVERLAY) && overlapping(b, new_base, r->len, r))
        err = -EEXIST;
    if (!err) {
        r->base = new_base;
        err = publish(b);
        if (err)
            r->base = old_base;
    }
    spin_unlock(&b->lock);
    return err;
}

static const struct piece *piece_at(const struct map *m, uint64_t addr)
{
    const struct piece *p = m->piece;
    unsigned n = m->n;
    while (n) {
        unsigned half = n / 2;
        if (addr >= p[half].end)
            p += half + 1, n -= half + 1;
        else if (addr < p[half].start)
            n = half;
        else
            return &p[half];
    }
    return NULL;
}

static void unclaimed(struct bus *b, uint64_t addr, struct io *io)
{
    atomic_add(&b->unclaimed, 1);
    log_limited(&b->log, LOG_DEBUG, b->name, "nothing at %llx: %u-byte %s", (unsigned long long)addr, io->size, io->write ? "write dropped" : "read gives ones");
    if (!io->write)
        io->data = ~0ull;
}

static void dispatch(struct bus *b, const struct map *m, uint64_t addr, struct io *io)
{
    const struct piece *p = piece_at(m, addr);
    if (unlikely(!p)) {
        unclaimed(b, addr, io);
        return;
    }
    if (unlikely(addr + io->size > p->end)) {
        struct io byte = { .size = 1, .write = io->write, .cpu = io->cpu };
        uint64_t val = 0;
        for (unsigned i = 0; i < io->size; i++) {
            byte.data = io->data >> 8 * i & 0xff;
            dispatch(b, m, addr + i, &byte);
            val |= (byte.data & 0xff) << 8 * i;
        }
        if (!io->write)
            io->data = val;
        return;
    }
    io->off = addr - p->base;
    if (unlikely(p->fn(p->dev, io)))
        unclaimed(b, addr, io);
}

void bus_access(struct bus *b, unsigned reader, uint64_t addr, struct io *io)
{
    struct reader *rd = &b->reader[reader];
    if (rd->depth++ == 0)
        atomic_xchg(&rd->seq, rd->seq + 1);     /* a full barrier: the map is read after the writer can see us */
    dispatch(b, atomic_load(&b->map), addr, io);
    if (--rd->depth == 0)
        atomic_store(&rd->seq, rd->seq + 1);
    if (!io->write && io->size < 8)
        io->data &= BIT(8 * io->size) - 1;
}

bool bus_claimed(struct bus *b, uint64_t addr)
{
    spin_lock(&b->lock);
    bool yes = piece_at(b->map, addr) != NULL;
    spin_unlock(&b->lock);
    return yes;
}

uint64_t bus_unclaimed(const struct bus *b) { return atomic_load_relaxed(&b->unclaimed); }

void bus_each(struct bus *b, void (*fn)(void *, uint64_t, uint64_t, const char *), void *arg)
{
    spin_lock(&b->lock);
    const struct map *m = b->map;
    for (unsigned i = 0; i < m->n; i++) {
        struct region *r = find(b, m->piece[i].base, m->piece[i].dev);
        fn(arg, m->piece[i].start, m->piece[i].end - m->piece[i].start, r ? r->name : "?");
    }
    spin_unlock(&b->lock);
}
