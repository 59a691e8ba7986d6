#include "kernel/mm/heap.h"

#include "kernel/lib/list.h"
#include "kernel/lib/port.h"
#include "kernel/mm/page.h"

/*
 * A slab is 2^SLAB_ORDER pages, naturally aligned, with its header first: an object finds its slab by masking.  Objects of slabs are never page aligned and
 * large blocks always are, so that the address alone tells them apart; page counts of large blocks are kept in a hash table.
 */
enum { SLAB_ORDER = 3, SLAB_BYTES = (int)(PAGE_SIZE << SLAB_ORDER), CLASSES = 14 };
static const uint16_t class_size[CLASSES] = { 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048 };

struct object { struct object *next; };
struct slab {
    struct list link;           /* in class->partial while it has a free object */
    struct object *free;
    uint32_t used, cls;
    uint64_t magic;
} __aligned_to(64);
#define SLAB_MAGIC 0x6a6f697374736c62ull

struct size_class { struct spinlock lock; struct list partial; bool ready; } __aligned_to(64);
static struct size_class classes[CLASSES];

/* Whole-page blocks: hashed by address to their page count. */
struct run { struct run *next; void *at; uint64_t pages; };
enum { RUN_BUCKETS = 256 };
static struct { struct spinlock lock; struct run *bucket[RUN_BUCKETS]; } runs;
static uint64_t held;

static unsigned class_of(size_t size)
{
    unsigned c = 0;
    while (class_size[c] < size)
        c++;
    return c;
}

static struct slab *slab_new(unsigned cls)
{
    hpa_t pa = page_alloc(SLAB_ORDER, 0);
    if (!pa)
        return NULL;
    struct slab *s = pa_to_va(pa);
    *s = (struct slab){ .cls = cls, .magic = SLAB_MAGIC };
    char *at = (char *)s + sizeof *s, *end = (char *)s + SLAB_BYTES;
    for (; at + class_size[cls] <= end; at += class_size[cls]) {
        if (IS_ALIGNED((uintptr_t)at, PAGE_SIZE))
            continue;           /* page-aligned addresses are runs */
        struct object *o = (void *)at;
        o->next = s->free, s->free = o;
    }
    atomic_add(&held, SLAB_BYTES);
    return s;
}

static void *slab_alloc(unsigned cls)
{
    struct size_class *k = &classes[cls];
    spin_lock(&k->lock);
    if (!k->ready)
        list_init(&k->partial), k->ready = true;
    struct slab *s = list_first(&k->partial, struct slab, link);
    if (!s) {
        s = slab_new(cls);
        if (!s) {
            spin_unlock(&k->lock);
            return NULL;
        }
        list_push(&k->partial, &s->link);
    }
    struct object *o = s->free;
    s->free = o->next;
    s->used++;
    if (!s->free)
        list_del(&s->link);
    spin_unlock(&k->lock);
    return o;
}

static void slab_free(void *p)
{
    struct slab *s = (void *)ALIGN_DOWN((uintptr_t)p, (uintptr_t)SLAB_BYTES);
    ASSERT(s->magic == SLAB_MAGIC);
    struct size_class *k = &classes[s->cls];
    struct object *o = p;
    bool release = false;
    spin_lock(&k->lock);
    if (!s->free)
        list_push(&k->partial, &s->link);
    o->next = s->free, s->free = o;
    /* The last empty slab of a class stays: a class that breathes around zero does not hammer the page allocator. */
    if (--s->used == 0 && (s->link.next != &k->partial || s->link.prev != &k->partial)) {
        list_del(&s->link);
        release = true;
    }
    spin_unlock(&k->lock);
    if (release) {
        s->magic = 0;
        page_free(va_to_pa(s), SLAB_ORDER);
        atomic_sub(&held, SLAB_BYTES);
    }
}

/* Free [pa, pa + pages) that is part of a block, in naturally aligned powers of two. */
static void free_pages(hpa_t pa, uint64_t pages)
{
    while (pages) {
        unsigned order = (unsigned)__builtin_ctzll(pa >> PAGE_SHIFT);
        while ((1ull << order) > pages || order > ORDER_1G)
            order--;
        page_free(pa, order);
        pa += PAGE_SIZE << order, pages -= 1ull << order;
    }
}

static unsigned run_hash(const void *p) { return (unsigned)((uintptr_t)p >> PAGE_SHIFT) % RUN_BUCKETS; }

static void *run_alloc(size_t size)
{
    uint64_t pages = (size + PAGE_SIZE - 1) / PAGE_SIZE;
    unsigned order = 0;
    while (order < ORDER_1G && (1ull << order) < pages)
        order++;
    if ((1ull << order) < pages)
        return NULL;
    struct run *r = slab_alloc(class_of(sizeof *r));
    hpa_t pa = r ? page_alloc(order, 0) : 0;
    if (!pa) {
        if (r)
            slab_free(r);
        return NULL;
    }
    free_pages(pa + pages * PAGE_SIZE, (1ull << order) - pages);
    spin_lock(&runs.lock);
    unsigned h = run_hash(pa_to_va(pa));
    *r = (struct run){ runs.bucket[h], pa_to_va(pa), pages };
    runs.bucket[h] = r;
    spin_unlock(&runs.lock);
    atomic_add(&held, pages * PAGE_SIZE);
    return r->at;
}

static void run_free(void *p)
{
    spin_lock(&runs.lock);
    struct run **at = &runs.bucket[run_hash(p)];
    while (*at && (*at)->at != p)
        at = &(*at)->next;
    struct run *r = *at;
    ASSERT(r != NULL);
    *at = r->next;
    spin_unlock(&runs.lock);
    free_pages(va_to_pa(p), r->pages);
    atomic_sub(&held, r->pages * PAGE_SIZE);
    slab_free(r);
}

void *heap_alloc(size_t size, size_t align)
{
    size = MAX(size, (size_t)1);
    if (size > SIZE_MAX / 2)
        return NULL;
    /* Slab objects start 64 bytes into an aligned block: classes that are multiples of the alignment keep it, up to 64. */
    if (align > 16)
        size = ALIGN_UP(size, MIN(align, (size_t)64));
    if (size <= class_size[CLASSES - 1] && align <= 64) {
        unsigned c = class_of(size);
        while (align > 16 && c < CLASSES && class_size[c] % align)
            c++;
        if (c < CLASSES)
            return slab_alloc(c);
    }
    return run_alloc(size);
}

void heap_free(void *p)
{
    if (!p)
        return;
    if (IS_ALIGNED((uintptr_t)p, PAGE_SIZE))
        run_free(p);
    else
        slab_free(p);
}

uint64_t heap_bytes(void) { return atomic_load(&held); }
