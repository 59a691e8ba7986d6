#include "kernel/vmm/bus.h"

#include <errno.h>
#include <string.h>

#include "kernel/lib/list.h"
#include "kernel/lib/port.h"

struct region { struct list link; uint64_t base, len; io_fn *fn; void *dev; const char *name; unsigned flags; };

/* What dispatch reads: pieces in address order that cover the whole space; overlays are cut out, gaps are pieces without fn. */
struct piece { uint64_t start, size, base; io_fn *fn; void *dev; };
/* Where a reader found its last addresses, by their hash; never NULL. */
enum { HINTS = 16 };
struct hints { const struct piece *at[HINTS]; };

/* A reader is inside dispatch while seq is odd.  A retired map remembers every reader's seq and goes once each odd one has moved on. */
enum { RETIRED_MAX = 256 };
struct reader { uint64_t seq; } __aligned_to(64);
struct map {
    struct map *next_retired;
    struct hints *hints;        /* one per reader */
    uint64_t *seen;             /* likewise, once retired */
    unsigned n, cap;
    struct piece piece[];
};

struct bus {
    struct map *map;
    const char *name;
    uint64_t limit, unclaimed;
    struct spinlock lock;       /* writers: regions, retired maps */
    struct list regions;        /* in order of claiming */
    struct list unused;         /* regions that were removed: the next ones */
    struct map *retired;
    struct map *spare;          /* the next map, so that changes at run time need no memory; NULL while a retired one is still read */
    unsigned nretired, nreaders;
    bool stale;                 /* the map is behind the regions */
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
    list_for_each_safe(r, tmp, &b->unused, link)
        kfree(r);
    free_maps(b->retired);
    kfree(b->spare);
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
        uint64_t p_end = p->start + p->size;
        if (p_end <= start || p->start >= end)
            continue;
        struct piece tail = *p;
        bool has_tail = p_end > end;
        if (p->start < start) {
            p->size = start - p->start;
        } else {
            memmove(p, p + 1, (--m->n - i) * sizeof *p);
            i--;
        }
        if (has_tail) {
            tail.start = end, tail.size = p_end - end;
            insert_piece(m, tail);
        }
    }
}

static void add_region(struct map *m, const struct region *r)
{
    carve(m, r->base, r->base + r->len);
    insert_piece(m, (struct piece){ r->base, r->len, r->base, r->fn, r->dev });
}

static void fill_gaps(struct map *m)
{
    uint64_t at = 0;
    for (unsigned i = 0; i < m->n; i++) {
        uint64_t start = m->piece[i].start;
        if (start > at)
            insert_piece(m, (struct piece){ .start = at, .size = start - at }), i++;
        at = start + m->piece[i].size;
    }
    insert_piece(m, (struct piece){ .start = at, .size = at ? -at : ~0ull });   /* to the end of all addresses */
}

/* A region adds at most two pieces and a gap beside each. */
static unsigned pieces_needed(const struct bus *b)
{
    const struct region *r;
    unsigned n = 1;
    list_for_each(r, &b->regions, link)
        n += 4;
    return ALIGN_UP(n, 32u);
}

static struct map *map_alloc(const struct bus *b, unsigned cap)
{
    struct map *m = kmalloc(sizeof *m + cap * sizeof m->piece[0] + b->nreaders * (sizeof m->seen[0] + sizeof m->hints[0]));
    if (!m)
        return NULL;
    *m = (struct map){ .cap = cap, .seen = (uint64_t *)&m->piece[cap] };
    m->hints = (struct hints *)&m->seen[b->nreaders];
    return m;
}

/* The larger of two maps that nobody reads stays. */
static void keep_spare(struct bus *b, struct map *m)
{
    bool better = m && (!b->spare || b->spare->cap < m->cap);
    kfree(better ? b->spare : m);
    if (better)
        b->spare = m;
}

static struct map *build(struct bus *b)
{
    struct region *r;
    unsigned need = pieces_needed(b);
    struct map *m = b->spare;
    if (m && m->cap >= need)
        b->spare = NULL;
    else
        m = map_alloc(b, need);
    if (!m)
        return NULL;
    m->n = 0;
    list_for_each(r, &b->regions, link)
        if (!(r->flags & BUS_OVERLAY))
            add_region(m, r);
    list_for_each(r, &b->regions, link)
        if (r->flags & BUS_OVERLAY)
            add_region(m, r);
    fill_gaps(m);
    for (unsigned i = 0; i < b->nreaders * HINTS; i++)
        m->hints[i / HINTS].at[i % HINTS] = m->piece;
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
    list_init(&b->unused);
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
            b->nretired--;
            keep_spare(b, m);
        } else {
            at = &m->next_retired;
        }
    }
}

/*
 * The writer may itself be a reader (a BAR move), so it never waits: a retired map that somebody may still read is freed by a later change or with the bus.
 * While one vCPU stays inside a long dispatch another could retire maps without end: beyond RETIRED_MAX changes fail.
 */
static int publish(struct bus *b)
{
    b->stale = true;
    reclaim(b);
    struct map *m = b->nretired < RETIRED_MAX ? build(b) : NULL, *old = b->map;
    if (!m)
        return -ENOMEM;
    atomic_store(&b->map, m);
    atomic_fence();             /* whoever enters dispatch from here on reads the new map */
    for (unsigned i = 0; i < b->nreaders; i++)
        old->seen[i] = atomic_load(&b->reader[i].seq);
    old->next_retired = b->retired;
    b->retired = old;
    b->nretired++;
    b->stale = false;
    reclaim(b);
    if (!b->retired && (!b->spare || b->spare->cap < m->cap))
        keep_spare(b, map_alloc(b, m->cap));
    return 0;
}

int bus_publish(struct bus *b)
{
    spin_lock(&b->lock);
    int err = b->stale ? publish(b) : 0;
    spin_unlock(&b->lock);
    return err;
}

static struct region *overlapping(struct bus *b, uint64_t base, uint64_t len)
{
    struct region *r;
    list_for_each(r, &b->regions, link)
        if (!(r->flags & BUS_OVERLAY) && base < r->base + r->len && r->base < base + len)
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

static int changed(struct bus *b, unsigned flags)
{
    b->stale = true;
    return flags & BUS_LATER ? 0 : publish(b);
}

static struct region *new_region(struct bus *b)
{
    struct list *l = list_pop(&b->unused);
    return l ? list_entry(l, struct region, link) : kmalloc(sizeof(struct region));
}

static void drop_region(struct bus *b, struct region *r)
{
    list_del(&r->link);
    list_append(&b->unused, &r->link);
}

int bus_add(struct bus *b, uint64_t base, uint64_t len, io_fn *fn, void *dev, const char *name, unsigned flags)
{
    if (!inside(b, base, len))
        return -EINVAL;
    spin_lock(&b->lock);
    int err = !(flags & BUS_OVERLAY) && overlapping(b, base, len) ? -EEXIST : 0;
    struct region *r = err ? NULL : new_region(b);
    if (!err && !r)
        err = -ENOMEM;
    if (!err) {
        *r = (struct region){ .base = base, .len = len, .fn = fn, .dev = dev, .name = name, .flags = flags };
        list_append(&b->regions, &r->link);
        err = changed(b, flags);
        if (err)
            drop_region(b, r);
    }
    spin_unlock(&b->lock);
    return err;
}

static int remove_region(struct bus *b, uint64_t base, const void *dev, unsigned flags)
{
    spin_lock(&b->lock);
    struct region *r = find(b, base, dev);
    int err = r ? 0 : -ENOENT;
    if (r) {
        struct list *prev = r->link.prev;
        list_del(&r->link);
        err = changed(b, flags);
        list_push(err ? prev : &b->unused, &r->link);
    }
    spin_unlock(&b->lock);
    return err;
}

int bus_remove(struct bus *b, uint64_t base, void *dev) { return remove_region(b, base, dev, 0); }
int bus_remove_later(struct bus *b, uint64_t base, void *dev) { return remove_region(b, base, dev, BUS_LATER); }

/* Every address lies in a piece. */
static const struct piece *piece_at(const struct map *m, uint64_t addr)
{
    const struct piece *p = m->piece;
    for (unsigned n = m->n; n > 1;) {
        unsigned half = n / 2;
        if (addr >= p[half].start)
            p += half, n -= half;
        else
            n = half;
    }
    return p;
}

static __attribute__((noinline)) void unclaimed(struct bus *b, uint64_t addr, struct io *io)
{
    atomic_store_relaxed(&b->unclaimed, atomic_load_relaxed(&b->unclaimed) + 1);      /* a statistic: a lost count does no harm */
    if (!io->write)
        io->data = ~0ull;
}

static void access(struct bus *b, const struct map *m, unsigned reader, uint64_t addr, struct io *io);

static __attribute__((noinline)) void straddle(struct bus *b, const struct map *m, unsigned reader, uint64_t addr, struct io *io)
{
    struct io byte = { .size = 1, .write = io->write, .cpu = io->cpu };
    uint64_t val = 0;
    for (unsigned i = 0; i < io->size; i++) {
        byte.data = io->data >> 8 * i & 0xff;
        access(b, m, reader, addr + i, &byte);
        val |= (byte.data & 0xff) << 8 * i;
    }
    if (!io->write)
        io->data = val;
}

static inline void access(struct bus *b, const struct map *m, unsigned reader, uint64_t addr, struct io *io)
{
    const struct piece **hint = &m->hints[reader].at[(addr ^ addr >> 4) % HINTS], *p = *hint;
    if (unlikely(addr - p->start >= p->size))
        *hint = p = piece_at(m, addr);
    if (unlikely(addr - p->start + io->size > p->size)) {
        straddle(b, m, reader, addr, io);
        return;
    }
    io->off = addr - p->base;
    if (unlikely(!p->fn || p->fn(p->dev, io)))
        unclaimed(b, addr, io);
}

/* From within a handler. */
static __attribute__((noinline)) void nested(struct bus *b, unsigned reader, uint64_t addr, struct io *io)
{
    access(b, atomic_load(&b->map), reader, addr, io);
}

void bus_access(struct bus *b, unsigned reader, uint64_t addr, struct io *io)
{
    uint64_t *at = &b->reader[reader].seq, seq = *at;
    if (unlikely(seq & 1)) {
        nested(b, reader, addr, io);
        return;
    }
    atomic_xchg(at, seq + 1);           /* a full barrier: the map is read after the writer can see us */
    access(b, atomic_load(&b->map), reader, addr, io);
    atomic_store(at, seq + 2);
}

bool bus_claimed(struct bus *b, uint64_t addr)
{
    spin_lock(&b->lock);
    bool yes = piece_at(b->map, addr)->fn != NULL;
    spin_unlock(&b->lock);
    return yes;
}

uint64_t bus_unclaimed(const struct bus *b) { return atomic_load_relaxed(&b->unclaimed); }

void bus_each(struct bus *b, void (*fn)(void *, uint64_t, uint64_t, const char *), void *arg)
{
    spin_lock(&b->lock);
    const struct map *m = b->map;
    for (unsigned i = 0; i < m->n; i++) {
        const struct piece *p = &m->piece[i];
        struct region *r = p->fn ? find(b, p->base, p->dev) : NULL;
        if (r)
            fn(arg, p->start, p->size, r->name);
    }
    spin_unlock(&b->lock);
}
