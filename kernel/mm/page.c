#include "kernel/mm/page.h"

#include <errno.h>
#include <string.h>

#include "kernel/lib/port.h"

/*
 * Buddy allocator.  Free blocks are linked through their own first bytes by physical address, so that the direct map may be rebuilt during boot.
 * Eight bytes of description per 4 KiB page live at the start of each range.
 */
enum { ORDERS = ORDER_1G + 1, MAX_RANGES = 128, CACHE_PAGES = 64, CACHE_BATCH = 32, POOL_MAX = 64 };
enum page_state { PS_BUSY, PS_FREE, PS_CACHED, PS_TAIL /* inside a block, or never handed out */ };

struct page { uint32_t refs; uint8_t order, state; uint16_t unused; };
_Static_assert(sizeof(struct page) == 8, "page description");

struct free_block { hpa_t next, prev; };        /* 0: end */

struct range { hpa_t base, end, meta; };

struct page_cache { unsigned n; hpa_t page[CACHE_PAGES]; } __aligned_to(64);

static struct {
    struct spinlock lock;               /* guards all but the per-CPU caches */
    struct range range[MAX_RANGES];
    unsigned nranges;
    hpa_t free_list[ORDERS];
    uint64_t total, free, reserved;
} mem;

/* Own CPU only, preemption off.  Its pages count as free. */
static struct page_cache caches[MAX_CPUS];

static struct {
    struct spinlock lock;
    hpa_t page[POOL_MAX];
    unsigned n, want;
    hpa_t filling;
    uint64_t filled;
} pool;

uintptr_t physmap_base;

static void clear(void *p, uint64_t len)
{
    uint64_t words = len / 8;
    __asm__ volatile("rep stosq" : "+D"(p), "+c"(words) : "a"(0ull) : "memory");
}

static struct range *range_of(hpa_t pa)
{
    unsigned lo = 0, hi = mem.nranges;
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (pa >= mem.range[mid].end)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < mem.nranges && pa >= mem.range[lo].base ? &mem.range[lo] : NULL;
}

static struct page *page_in(const struct range *r, hpa_t pa)
{
    return (struct page *)pa_to_va(r->meta) + (pa - r->base) / PAGE_SIZE;
}

static struct page *page_of(hpa_t pa)
{
    struct range *r = range_of(pa);
    ASSERT(r != NULL);
    return page_in(r, pa);
}

static struct free_block *block(hpa_t pa) { return pa_to_va(pa); }

static void list_add_block(hpa_t pa, unsigned order)
{
    hpa_t head = mem.free_list[order];
    *block(pa) = (struct free_block){ .next = head };
    if (head)
        block(head)->prev = pa;
    mem.free_list[order] = pa;
}

static void list_del_block(hpa_t pa, unsigned order)
{
    struct free_block *b = block(pa);
    if (b->prev)
        block(b->prev)->next = b->next;
    else
        mem.free_list[order] = b->next;
    if (b->next)
        block(b->next)->prev = b->prev;
}

static void buddy_free(hpa_t pa, unsigned order)
{
    struct range *r = range_of(pa);
    ASSERT(r != NULL && page_in(r, pa)->state != PS_FREE);
    mem.free += PAGE_SIZE << order;
    page_in(r, pa)->state = PS_TAIL;
    for (; order < ORDER_1G; order++) {
        hpa_t buddy = pa ^ (PAGE_SIZE << order);
        if (buddy < r->base || buddy >= r->end)
            break;
        struct page *b = page_in(r, buddy);
        if (b->state != PS_FREE || b->order != order)
            break;
        list_del_block(buddy, order);
        b->state = PS_TAIL;
        pa = MIN(pa, buddy);
    }
    *page_in(r, pa) = (struct page){ .order = (uint8_t)order, .state = PS_FREE };
    list_add_block(pa, order);
}

/* First block of the list that satisfies `flags`; the walk is only long for DMA32 on a machine short of low memory. */
static hpa_t find_block(unsigned order, unsigned flags)
{
    hpa_t pa = mem.free_list[order];
    while (pa && (flags & PAGE_DMA32) && pa + (PAGE_SIZE << order) > (1ull << 32))
        pa = block(pa)->next;
    return pa;
}

static hpa_t buddy_take(unsigned order, unsigned flags)
{
    for (unsigned o = order; o < ORDERS; o++) {
        hpa_t pa = find_block(o, flags);
        if (!pa)
            continue;
        list_del_block(pa, o);
        struct range *r = range_of(pa);
        page_in(r, pa)->state = PS_TAIL;
        while (o > order) {
            o--;
            hpa_t upper = pa + (PAGE_SIZE << o);
            *page_in(r, upper) = (struct page){ .order = (uint8_t)o, .state = PS_FREE };
            list_add_block(upper, o);
        }
        mem.free -= PAGE_SIZE << order;
        *page_in(r, pa) = (struct page){ .refs = 1, .order = (uint8_t)order, .state = PS_BUSY };
        return pa;
    }
    return 0;
}

static bool may_take(uint64_t bytes, unsigned flags)
{
    uint64_t keep = (flags & PAGE_RESERVED_OK) ? 0 : mem.reserved;
    return mem.free >= bytes && mem.free - bytes >= keep;
}

static void draw_promise(uint64_t bytes, unsigned flags)
{
    if (flags & PAGE_RESERVED_OK)
        mem.reserved -= MIN(bytes, mem.reserved);
}

static hpa_t alloc_locked(unsigned order, unsigned flags)
{
    hpa_t pa = may_take(PAGE_SIZE << order, flags) ? buddy_take(order, flags) : 0;
    if (pa)
        draw_promise(PAGE_SIZE << order, flags);
    return pa;
}

/* Memory that was set aside for speed comes back when an allocation would fail. */
static bool pool_drain(void)
{
    spin_lock(&pool.lock);
    bool any = pool.n > 0;
    while (pool.n)
        page_free(pool.page[--pool.n], ORDER_2M);
    spin_unlock(&pool.lock);
    return any;
}

static hpa_t cache_take(void)
{
    preempt_disable();
    struct page_cache *c = &caches[port_cpu()];
    if (!c->n) {
        spin_lock(&mem.lock);
        while (c->n < CACHE_BATCH && may_take(PAGE_SIZE, 0)) {
            hpa_t pa = buddy_take(ORDER_4K, 0);
            if (!pa)
                break;
            c->page[c->n++] = pa;
        }
        spin_unlock(&mem.lock);
    }
    hpa_t pa = c->n ? c->page[--c->n] : 0;
    preempt_enable();
    if (pa)
        *page_of(pa) = (struct page){ .refs = 1, .state = PS_BUSY };
    return pa;
}

static void cache_put(hpa_t pa)
{
    struct page *p = page_of(pa);
    ASSERT(p->state != PS_FREE && p->state != PS_CACHED);
    p->state = PS_CACHED;
    preempt_disable();
    struct page_cache *c = &caches[port_cpu()];
    if (c->n == CACHE_PAGES) {
        spin_lock(&mem.lock);
        while (c->n > CACHE_PAGES - CACHE_BATCH)
            buddy_free(c->page[--c->n], ORDER_4K);
        spin_unlock(&mem.lock);
    }
    c->page[c->n++] = pa;
    preempt_enable();
}

hpa_t page_alloc(unsigned order, unsigned flags)
{
    hpa_t pa = 0;
    if (order == ORDER_4K && !(flags & (PAGE_DMA32 | PAGE_RESERVED_OK)))
        pa = cache_take();
    if (!pa) {
        do {
            spin_lock(&mem.lock);
            pa = order < ORDERS ? alloc_locked(order, flags) : 0;
            spin_unlock(&mem.lock);
        } while (!pa && order < ORDERS && pool_drain());
    }
    if (pa && (flags & PAGE_ZERO))
        page_clear(pa, order);
    return pa;
}

void page_clear(hpa_t pa, unsigned order) { clear(pa_to_va(pa), PAGE_SIZE << order); }

void page_free(hpa_t pa, unsigned order)
{
    if (!pa)
        return;
    if (order == ORDER_4K) {
        cache_put(pa);
        return;
    }
    spin_lock(&mem.lock);
    buddy_free(pa, order);
    spin_unlock(&mem.lock);
}

void page_get(hpa_t pa)
{
    atomic_add(&page_of(pa)->refs, 1);
}

void page_put(hpa_t pa, unsigned order)
{
    if (atomic_sub(&page_of(pa)->refs, 1) == 0)
        page_free(pa, order);
}

void page_split(hpa_t pa, unsigned from, unsigned to)
{
    struct range *r = range_of(pa);
    spin_lock(&mem.lock);
    for (hpa_t at = pa; at < pa + (PAGE_SIZE << from); at += PAGE_SIZE << to)
        *page_in(r, at) = (struct page){ .refs = 1, .order = (uint8_t)to, .state = PS_BUSY };
    spin_unlock(&mem.lock);
}

int mem_reserve(uint64_t bytes)
{
    bool fits;
    do {
        spin_lock(&mem.lock);
        fits = mem.free >= bytes && mem.free - bytes >= mem.reserved;
        if (fits)
            mem.reserved += bytes;
        spin_unlock(&mem.lock);
    } while (!fits && pool_drain());
    return fits ? 0 : -ENOMEM;
}

void mem_unreserve(uint64_t bytes)
{
    spin_lock(&mem.lock);
    mem.reserved -= MIN(bytes, mem.reserved);
    spin_unlock(&mem.lock);
}

hpa_t page_take_zeroed_2m(unsigned flags)
{
    spin_lock(&pool.lock);
    hpa_t pa = pool.n ? pool.page[--pool.n] : 0;
    spin_unlock(&pool.lock);
    if (pa && (flags & PAGE_RESERVED_OK)) {
        spin_lock(&mem.lock);
        draw_promise(PAGE_2M, flags);
        spin_unlock(&mem.lock);
    }
    return pa;
}

/* Zeroing goes in small steps, so that a CPU that stops being idle is not held up; the lock is only tried, one filler is enough. */
bool page_pool_refill_step(void)
{
    enum { STEP = 64 << 10 };
    bool more = true;
    if (pool.n >= pool.want || !spin_trylock(&pool.lock))
        return false;
    if (!pool.filling && pool.n < pool.want) {
        spin_lock(&mem.lock);
        /* Idle zeroing takes memory only while at least a quarter of it is free beyond all promises. */
        if (mem.free > mem.reserved + mem.total / 4)
            pool.filling = alloc_locked(ORDER_2M, 0);
        spin_unlock(&mem.lock);
        pool.filled = 0;
    }
    if (pool.filling) {
        clear((char *)pa_to_va(pool.filling) + pool.filled, STEP);
        pool.filled += STEP;
        if (pool.filled == PAGE_2M) {
            pool.page[pool.n++] = pool.filling;
            pool.filling = 0;
        }
    } else {
        more = false;
    }
    more = more && (pool.filling || pool.n < pool.want);
    spin_unlock(&pool.lock);
    return more;
}

void page_init(void)
{
    memset(&mem, 0, sizeof mem);
    memset(&pool, 0, sizeof pool);
    memset(caches, 0, sizeof caches);
}

static void free_span(hpa_t at, hpa_t end)
{
    while (at < end) {
        unsigned order = at ? (unsigned)__builtin_ctzll(at >> PAGE_SHIFT) : ORDER_1G;
        order = MIN(order, (unsigned)ORDER_1G);
        while (at + (PAGE_SIZE << order) > end)
            order--;
        buddy_free(at, order);
        at += PAGE_SIZE << order;
    }
}

void page_add_range(hpa_t base, uint64_t len)
{
    hpa_t end = ALIGN_DOWN(base + len, PAGE_SIZE);
    base = MAX(ALIGN_UP(base, PAGE_SIZE), PAGE_SIZE);      /* page 0 is never handed out: 0 means none */
    uint64_t meta = end > base ? ALIGN_UP((end - base) / PAGE_SIZE * sizeof(struct page), PAGE_SIZE) : 0;
    if (end <= base || end - base <= meta + PAGE_SIZE || mem.nranges == MAX_RANGES)
        return;
    spin_lock(&mem.lock);
    unsigned i = mem.nranges++;
    for (; i > 0 && mem.range[i - 1].base > base; i--)
        mem.range[i] = mem.range[i - 1];
    mem.range[i] = (struct range){ base, end, base };
    struct page *p = pa_to_va(base);
    for (uint64_t k = 0; k < (end - base) / PAGE_SIZE; k++)
        p[k] = (struct page){ .state = PS_TAIL };
    for (uint64_t k = 0; k < meta / PAGE_SIZE; k++)
        p[k].state = PS_BUSY;
    free_span(base + meta, end);
    mem.total += end - base;
    pool.want = (unsigned)MIN((uint64_t)POOL_MAX, mem.total / 8 / PAGE_2M);
    spin_unlock(&mem.lock);
}

void mem_stats(struct mem_stats *s)
{
    uint64_t cached = 0;
    for (unsigned i = 0; i < MAX_CPUS; i++)
        cached += READ_ONCE(caches[i].n) * PAGE_SIZE;
    spin_lock(&mem.lock);
    *s = (struct mem_stats){ .total = mem.total, .free = mem.free + cached, .reserved = mem.reserved };
    spin_unlock(&mem.lock);
    s->zero_pool = (READ_ONCE(pool.n) + (READ_ONCE(pool.filling) != 0)) * PAGE_2M;
    s->free += s->zero_pool;
}
