/*
 * gmem as its owner (kernel/vmm) sees it: making, populating and freeing guest RAM.  Devices use gmem.h.
 *
 * RAM is a set of ranges; each has one word per 2 MiB: nothing yet, one 2 MiB page, or a table of 4 KiB pages.  Words only ever go from nothing to something
 * while the VM lives, so lookups take no lock.  The nested page table is a cache of this.
 */
#pragma once
#include "kernel/lib/port.h"
#include "kernel/mm/page.h"
#include "kernel/vmm/gmem.h"

enum { GMEM_MAX_RANGES = 8, GMEM_CLEARING = 8 };

/*
 * Where a range covers an aligned GiB, the first touch in it takes a host block of 1 GiB, if there is one, of which each 2 MiB is zeroed and handed out when it is
 * touched.  When all are, the block is described as one leaf.
 */
struct gmem_giant { hpa_t base; uint32_t handed_out; bool tried; };
#define PAGE_1G (1ull << 30)

struct gmem_range {
    gpa_t base;                 /* 4 KiB aligned */
    uint64_t len;
    bool rom;
    uint64_t first;             /* number of its first chunk: base / 2 MiB */
    uint64_t *chunk;            /* one word per 2 MiB region touched by the range */
    struct gmem_giant *giant;   /* one per GiB touched by the range; under lock, but for handed_out */
};

/* A chunk word: 0, a 2 MiB page | CHUNK_LARGE, or the address of a table of 512 page addresses. */
#define CHUNK_LARGE 1ull

struct gmem {
    struct gmem_range range[GMEM_MAX_RANGES];   /* sorted; fixed before the first run */
    int nranges;
    struct gmem_range *main;    /* the largest: looked at first */
    uint64_t ram;               /* bytes in all ranges */
    uint64_t promised;          /* bytes reserved and not yet drawn; under lock */
    uint64_t tables;            /* bytes of 4 KiB-page tables */
    struct spinlock lock;       /* population */
    uint64_t *clearing[GMEM_CLEARING];          /* words of 2 MiB pages that are being zeroed, without the lock; NULL: free */
    int64_t pins;
};

/* Reserves `ram` + `tables` bytes of host memory for this VM.  -ENOMEM. */
int  gmem_init(struct gmem *, uint64_t ram, uint64_t table_bytes);
void gmem_fini(struct gmem *);          /* nothing pinned, nothing mapped by hardware any more */
/* Before the first run.  0, -EINVAL (alignment, overlap, more than reserved), -ENOMEM, -ENOSPC (too many ranges). */
int  gmem_add_range(struct gmem *, gpa_t base, uint64_t len, bool rom);

struct gmem_leaf { hpa_t pa; unsigned order; bool writable; };
/* Populate and describe the page under gpa.  The leaf is the largest that backs all of its naturally aligned region.  -EFAULT: not RAM;
 * -ENOMEM cannot happen while the promise holds. */
int  gmem_leaf(struct gmem *, gpa_t, struct gmem_leaf *);
/* Whether the host page at `pa` (4 KiB) is this guest's, and where it sees it; then it will never be given to anyone again.  A search through everything. */
bool gmem_lose(struct gmem *, hpa_t pa, gpa_t *gpa);
/* A zeroed 4 KiB page from the VM's promise (nested page tables). */
hpa_t gmem_table_page(struct gmem *);
/* Loader's door: writes ROM too. */
int  gmem_write_rom(struct gmem *, gpa_t, const void *buf, size_t len);

static inline bool gmem_covers(const struct gmem *g, gpa_t gpa)
{
    for (int i = 0; i < g->nranges; i++)
        if (gpa - g->range[i].base < g->range[i].len)
            return true;
    return false;
}

/* Host address of the RAM byte at gpa, good to the end of its 4 KiB page, for reading on the spot; NULL: not RAM.  The door for the walker and the fetcher. */
const void *gmem_peek_slow(struct gmem *, gpa_t);
static inline const void *gmem_peek(struct gmem *g, gpa_t gpa)
{
    const struct gmem_range *r = g->main;
    if (likely(r && gpa - r->base < r->len)) {
        uint64_t word = atomic_load(&r->chunk[(gpa >> 21) - r->first]);
        if (likely(word & CHUNK_LARGE))
            return (const char *)pa_to_va(word & ~CHUNK_LARGE) + (gpa & (PAGE_2M - 1));
        const uint64_t *table = (const uint64_t *)(uintptr_t)word;
        uint64_t pa = table ? atomic_load(&table[gpa >> 12 & 511]) : 0;
        if (pa)
            return (const char *)pa_to_va(pa) + (gpa & (PAGE_SIZE - 1));
    }
    return gmem_peek_slow(g, gpa);
}
