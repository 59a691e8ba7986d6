#include "kernel/vmm/gmem_core.h"

#include <errno.h>
#include <string.h>

static uint64_t chunks_of(const struct gmem_range *r) { return (r->base + r->len - 1) / PAGE_2M - r->first + 1; }

static uint64_t giants_of(const struct gmem_range *r) { return (r->base + r->len - 1) / PAGE_1G - r->base / PAGE_1G + 1; }
static struct gmem_giant *giant_of(const struct gmem_range *r, gpa_t gpa) { return &r->giant[gpa / PAGE_1G - r->base / PAGE_1G]; }

static bool in_range(const struct gmem_range *r, gpa_t gpa) { return gpa - r->base < r->len; }

static struct gmem_range *range_of(struct gmem *g, gpa_t gpa)
{
    if (likely(g->main && in_range(g->main, gpa)))
        return g->main;
    for (int i = 0; i < g->nranges; i++)
        if (in_range(&g->range[i], gpa))
            return &g->range[i];
    return NULL;
}

int gmem_init(struct gmem *g, uint64_t ram, uint64_t table_bytes)
{
    memset(g, 0, sizeof *g);
    if (mem_reserve(ram + table_bytes))
        return -ENOMEM;
    g->promised = ram + table_bytes;
    return 0;
}

int gmem_add_range(struct gmem *g, gpa_t base, uint64_t len, bool rom)
{
    if (!len || !IS_ALIGNED(base | len, PAGE_SIZE) || base + len < base)
        return -EINVAL;
    if (g->nranges == GMEM_MAX_RANGES)
        return -ENOSPC;
    for (int i = 0; i < g->nranges; i++)
        if (base < g->range[i].base + g->range[i].len && g->range[i].base < base + len)
            return -EINVAL;
    struct gmem_range r = { .base = base, .len = len, .rom = rom, .first = base / PAGE_2M };
    r.chunk = kzalloc(chunks_of(&r) * sizeof *r.chunk);
    r.giant = kzalloc(giants_of(&r) * sizeof *r.giant);
    if (!r.chunk || !r.giant) {
        kfree(r.chunk), kfree(r.giant);
        return -ENOMEM;
    }
    int i = g->nranges++;
    for (; i > 0 && g->range[i - 1].base > base; i--)
        g->range[i] = g->range[i - 1];
    g->range[i] = r;
    g->ram += len;
    g->main = &g->range[0];
    for (i = 1; i < g->nranges; i++)
        if (g->range[i].len > g->main->len)
            g->main = &g->range[i];
    return 0;
}

static void free_chunk(uint64_t word)
{
    if (word & CHUNK_LARGE) {
        page_put(word & ~CHUNK_LARGE, ORDER_2M);
        return;
    }
    uint64_t *table = (uint64_t *)word;
    for (unsigned i = 0; table && i < 512; i++)
        if (table[i])
            page_put(table[i], ORDER_4K);
    if (table)
        page_free(va_to_pa(table), ORDER_4K);
}

/* What nobody has touched of a block goes back; the rest goes with its chunks. */
static void free_untouched(struct gmem_range *r)
{
    for (uint64_t c = 0; c < chunks_of(r); c++) {
        gpa_t gpa = (r->first + c) * PAGE_2M;
        const struct gmem_giant *b = in_range(r, gpa) ? giant_of(r, gpa) : NULL;
        if (b && b->base && !r->chunk[c])
            page_free(b->base + gpa % PAGE_1G, ORDER_2M);
    }
}

void gmem_fini(struct gmem *g)
{
    ASSERT(atomic_load(&g->pins) == 0);
    for (int i = 0; i < g->nranges; i++) {
        struct gmem_range *r = &g->range[i];
        free_untouched(r);
        for (uint64_t c = 0; c < chunks_of(r); c++)
            free_chunk(r->chunk[c]);
        kfree(r->chunk);
        kfree(r->giant);
    }
    mem_unreserve(g->promised);
    memset(g, 0, sizeof *g);
}

/* Under g->lock: note that `bytes` of the promise are now real memory. */
static void drawn(struct gmem *g, uint64_t bytes) { g->promised -= MIN(bytes, g->promised); }

/* ROM and ranges that share their 2 MiB with something else are backed by 4 KiB pages. */
static bool wants_large(const struct gmem_range *r, gpa_t gpa)
{
    gpa_t start = ALIGN_DOWN(gpa, PAGE_2M);
    return !r->rom && start >= r->base && start + PAGE_2M <= r->base + r->len;
}

/* Tables come from the promise too: a running VM must not depend on what is left of the heap. */
static uint64_t *table_of(struct gmem *g, uint64_t *chunk)
{
    if (!*chunk) {
        hpa_t pa = page_alloc(ORDER_4K, PAGE_ZERO | PAGE_RESERVED_OK);
        if (!pa)
            return NULL;
        drawn(g, PAGE_SIZE);
        g->tables += PAGE_SIZE;
        atomic_store(chunk, (uint64_t)(uintptr_t)pa_to_va(pa));
    }
    return (uint64_t *)(uintptr_t)*chunk;
}

static int populate_small(struct gmem *g, uint64_t *chunk, gpa_t gpa)
{
    uint64_t *table = table_of(g, chunk);
    if (!table)
        return -ENOMEM;
    uint64_t *slot = &table[gpa / PAGE_SIZE % 512];
    if (*slot)
        return 0;
    hpa_t pa = page_alloc(ORDER_4K, PAGE_ZERO | PAGE_RESERVED_OK);
    if (!pa)
        return -ENOMEM;
    drawn(g, PAGE_SIZE);
    atomic_store(slot, pa);
    return 0;
}

/* Under g->lock: the GiB's block, of which gpa's 2 MiB is a piece; NULL: there is none. */
static struct gmem_giant *block_under(struct gmem *g, struct gmem_range *r, gpa_t gpa)
{
    gpa_t start = ALIGN_DOWN(gpa, PAGE_1G);
    struct gmem_giant *b = giant_of(r, gpa);
    if (start < r->base || start + PAGE_1G > r->base + r->len)
        return NULL;
    if (!b->tried) {
        b->tried = true;
        b->base = page_alloc(ORDER_1G, PAGE_RESERVED_OK);
        if (b->base) {
            page_split(b->base, ORDER_1G, ORDER_2M);
            drawn(g, PAGE_1G);
        }
    }
    return b->base ? b : NULL;
}

static uint64_t **clearing(struct gmem *g, const uint64_t *chunk)
{
    for (unsigned i = 0; i < GMEM_CLEARING; i++)
        if (g->clearing[i] == chunk)
            return &g->clearing[i];
    return NULL;
}

/* Takes a tenth of a millisecond, so g->lock is let go.  Preemption stays off: whoever touches this chunk meanwhile spins. */
static void clear_large(struct gmem *g, uint64_t *chunk, hpa_t pa)
{
    uint64_t **slot = clearing(g, NULL);
    if (slot) {
        *slot = chunk;
        preempt_disable();
        spin_unlock(&g->lock);
    }
    page_clear(pa, ORDER_2M);
    if (slot) {
        spin_lock(&g->lock);
        preempt_enable();
        *slot = NULL;
    }
}

/* Under g->lock, which is let go while memory is zeroed. */
static void populate_large(struct gmem *g, struct gmem_range *r, uint64_t *chunk, gpa_t gpa)
{
    struct gmem_giant *b = block_under(g, r, gpa);
    hpa_t ready = b ? 0 : page_take_zeroed_2m(PAGE_RESERVED_OK);
    hpa_t pa = b ? b->base + ALIGN_DOWN(gpa % PAGE_1G, PAGE_2M) : ready ? ready : page_alloc(ORDER_2M, PAGE_RESERVED_OK);
    if (!pa)
        return;
    if (!b)
        drawn(g, PAGE_2M);
    if (!ready)
        clear_large(g, chunk, pa);
    atomic_store(chunk, pa | CHUNK_LARGE);
    if (b)
        atomic_add(&b->handed_out, 1u);
}

static int populate(struct gmem *g, struct gmem_range *r, uint64_t *chunk, gpa_t gpa)
{
    spin_lock(&g->lock);
    while (clearing(g, chunk)) {
        spin_unlock(&g->lock);
        spin_lock(&g->lock);
    }
    int err = 0;
    if (!*chunk && wants_large(r, gpa))
        populate_large(g, r, chunk, gpa);
    if (!(*chunk & CHUNK_LARGE))        /* memory too fragmented for 2 MiB, or not wanted */
        err = populate_small(g, chunk, gpa);
    spin_unlock(&g->lock);
    return err;
}

/* Host address of the page under gpa, or 0 while it is not populated. */
static hpa_t lookup(uint64_t word, gpa_t gpa)
{
    if (word & CHUNK_LARGE)
        return (word & ~CHUNK_LARGE) + (gpa & (PAGE_2M - PAGE_SIZE));
    const uint64_t *table = (const uint64_t *)(uintptr_t)word;
    return table ? atomic_load(&table[gpa / PAGE_SIZE % 512]) : 0;
}

static hpa_t page_under(struct gmem *g, struct gmem_range *r, gpa_t gpa)
{
    uint64_t *chunk = &r->chunk[gpa / PAGE_2M - r->first];
    hpa_t pa = lookup(atomic_load(chunk), gpa);
    if (likely(pa))
        return pa;
    return populate(g, r, chunk, gpa) ? 0 : lookup(atomic_load(chunk), gpa);
}

int gmem_leaf(struct gmem *g, gpa_t gpa, struct gmem_leaf *leaf)
{
    struct gmem_range *r = range_of(g, gpa);
    if (!r)
        return -EFAULT;
    hpa_t pa = page_under(g, r, gpa);
    if (!pa)
        return -ENOMEM;
    bool large = atomic_load(&r->chunk[gpa / PAGE_2M - r->first]) & CHUNK_LARGE;
    if (large && atomic_load(&giant_of(r, gpa)->handed_out) == PAGE_1G / PAGE_2M) {
        *leaf = (struct gmem_leaf){ ALIGN_DOWN(pa, PAGE_1G), ORDER_1G, !r->rom };
        return 0;
    }
    *leaf = (struct gmem_leaf){ large ? ALIGN_DOWN(pa, PAGE_2M) : pa, large ? ORDER_2M : ORDER_4K, !r->rom };
    return 0;
}

static bool find_in_chunk(uint64_t word, hpa_t pa, uint64_t *off)
{
    if (word & CHUNK_LARGE) {
        *off = pa - (word & ~CHUNK_LARGE);
        return *off < PAGE_2M;
    }
    const uint64_t *table = (const uint64_t *)(uintptr_t)word;
    for (unsigned i = 0; table && i < 512; i++)
        if (atomic_load(&table[i]) == pa) {
            *off = i * PAGE_SIZE;
            return true;
        }
    return false;
}

bool gmem_lose(struct gmem *g, hpa_t pa, gpa_t *gpa)
{
    uint64_t off;
    for (int i = 0; i < g->nranges; i++) {
        for (uint64_t c = 0; c < chunks_of(&g->range[i]); c++) {
            uint64_t word = atomic_load(&g->range[i].chunk[c]);
            if (!find_in_chunk(word, pa, &off))
                continue;
            *gpa = (g->range[i].first + c) * PAGE_2M + off;
            page_get(word & CHUNK_LARGE ? word & ~CHUNK_LARGE : pa);
            return true;
        }
    }
    return false;
}

hpa_t gmem_table_page(struct gmem *g)
{
    spin_lock(&g->lock);
    hpa_t pa = page_alloc(ORDER_4K, PAGE_ZERO | (g->promised >= PAGE_SIZE ? PAGE_RESERVED_OK : 0));
    if (pa)
        drawn(g, PAGE_SIZE);
    spin_unlock(&g->lock);
    return pa;
}

enum access { ACCESS_READ, ACCESS_WRITE, ACCESS_ROM };

/* Host address of gpa and how many bytes follow it there: to the end of its 4 KiB or 2 MiB page.  NULL: not there, or ROM. */
static void *host_of(struct gmem *g, gpa_t gpa, enum access access, size_t *room)
{
    struct gmem_range *r = range_of(g, gpa);
    if (unlikely(!r || (access == ACCESS_WRITE && r->rom)))
        return NULL;
    uint64_t *chunk = &r->chunk[gpa / PAGE_2M - r->first], word = atomic_load(chunk);
    if (likely(word & CHUNK_LARGE)) {
        *room = PAGE_2M - (gpa & (PAGE_2M - 1));
        return (char *)pa_to_va(word & ~CHUNK_LARGE) + (gpa & (PAGE_2M - 1));
    }
    hpa_t pa = page_under(g, r, gpa);
    *room = PAGE_SIZE - (gpa & (PAGE_SIZE - 1));
    return likely(pa) ? (char *)pa_to_va(pa) + (gpa & (PAGE_SIZE - 1)) : NULL;
}

const void *gmem_peek_slow(struct gmem *g, gpa_t gpa)
{
    size_t room;
    return host_of(g, gpa, ACCESS_READ, &room);
}

static int copy(struct gmem *g, gpa_t gpa, void *buf, size_t len, enum access access)
{
    while (len) {
        size_t n;
        void *at = host_of(g, gpa, access, &n);
        if (!at)
            return -EFAULT;
        n = MIN(n, len);
        if (access == ACCESS_READ)
            memcpy(buf, at, n);
        else if (buf)
            memcpy(at, buf, n);
        else
            memset(at, 0, n);
        buf = buf ? (char *)buf + n : NULL;
        gpa += n, len -= n;
    }
    return 0;
}

int gmem_read(struct gmem *g, gpa_t gpa, void *buf, size_t len) { return copy(g, gpa, buf, len, ACCESS_READ); }
int gmem_write(struct gmem *g, gpa_t gpa, const void *buf, size_t len) { return copy(g, gpa, (void *)(uintptr_t)buf, len, ACCESS_WRITE); }
int gmem_write_rom(struct gmem *g, gpa_t gpa, const void *buf, size_t len) { return copy(g, gpa, (void *)(uintptr_t)buf, len, ACCESS_ROM); }
int gmem_zero(struct gmem *g, gpa_t gpa, size_t len) { return copy(g, gpa, NULL, len, ACCESS_WRITE); }

static bool aligned_word(gpa_t gpa, unsigned size)
{
    return size && size <= 8 && !(size & (size - 1)) && IS_ALIGNED(gpa, size);
}

int gmem_load(struct gmem *g, gpa_t gpa, unsigned size, uint64_t *val)
{
    size_t room;
    void *p = aligned_word(gpa, size) ? host_of(g, gpa, ACCESS_READ, &room) : NULL;
    if (!p)
        return -EFAULT;
    switch (size) {
    case 1: *val = atomic_load((uint8_t *)p); break;
    case 2: *val = atomic_load((uint16_t *)p); break;
    case 4: *val = atomic_load((uint32_t *)p); break;
    default: *val = atomic_load((uint64_t *)p); break;
    }
    return 0;
}

int gmem_store(struct gmem *g, gpa_t gpa, unsigned size, uint64_t val)
{
    size_t room;
    void *p = aligned_word(gpa, size) ? host_of(g, gpa, ACCESS_WRITE, &room) : NULL;
    if (!p)
        return -EFAULT;
    switch (size) {
    case 1: atomic_store((uint8_t *)p, (uint8_t)val); break;
    case 2: atomic_store((uint16_t *)p, (uint16_t)val); break;
    case 4: atomic_store((uint32_t *)p, (uint32_t)val); break;
    default: atomic_store((uint64_t *)p, val); break;
    }
    return 0;
}

#define CAS(type) ({ \
        type want = (type)*old; \
        bool same = atomic_cas((type *)p, &want, (type)val); \
        *old = want; \
        same ? 0 : -EAGAIN; \
    })

int gmem_cmpxchg(struct gmem *g, gpa_t gpa, unsigned size, uint64_t *old, uint64_t val)
{
    size_t room;
    void *p = aligned_word(gpa, size) ? host_of(g, gpa, ACCESS_WRITE, &room) : NULL;
    if (!p)
        return -EFAULT;
    switch (size) {
    case 1: return CAS(uint8_t);
    case 2: return CAS(uint16_t);
    case 4: return CAS(uint32_t);
    default: return CAS(uint64_t);
    }
}

int gmem_pin(struct gmem *g, gpa_t gpa, size_t len, enum gmem_prot prot, struct iov *iov, int max)
{
    int n = 0;
    while (len) {
        size_t k;
        char *at = host_of(g, gpa, (prot & GMEM_WRITE) ? ACCESS_WRITE : ACCESS_READ, &k);
        if (!at)
            return -EFAULT;
        k = MIN(k, len);
        if (n && (char *)iov[n - 1].base + iov[n - 1].len == at) {
            iov[n - 1].len += k;
        } else {
            if (n == max)
                return -E2BIG;
            iov[n++] = (struct iov){ at, k };
        }
        gpa += k, len -= k;
    }
    if (n)
        atomic_add(&g->pins, n);
    return n;
}

void gmem_unpin(struct gmem *g, const struct iov *iov, int n, bool dirty)
{
    atomic_sub(&g->pins, n);
}

bool gmem_is_ram(struct gmem *g, gpa_t gpa, size_t len)
{
    while (len) {
        struct gmem_range *r = range_of(g, gpa);
        if (!r)
            return false;
        size_t k = MIN(len, (size_t)(r->base + r->len - gpa));
        gpa += k, len -= k;
    }
    return true;
}

uint64_t gmem_ram_bytes(const struct gmem *g) { return g->ram; }

void gmem_each_range(struct gmem *g, void (*fn)(void *, gpa_t, uint64_t, bool), void *arg)
{
    for (int i = 0; i < g->nranges; i++)
        fn(arg, g->range[i].base, g->range[i].len, g->range[i].rom);
}
