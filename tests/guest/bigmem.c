/*
 * All of a big machine's RAM, on both sides of the hole below 4 GiB: each 64 bytes hold what was written there, so no two addresses share a page.
 * A 32-bit guest sees what is below 4 GiB.
 */
#include "lib/guest.h"

enum { STRIDE = 64, RAM = 1 };
struct mmap { uint32_t size; uint64_t base, length; uint32_t type; } __attribute__((packed));
extern uint32_t boot_magic, boot_info;

#ifdef __x86_64__
/* One to one, beyond the 4 GiB that the guest starts with. */
static void map_to(uint64_t end_of_ram)
{
    uint64_t *pdpt = (uint64_t *)(*(uint64_t *)(read_cr3() & ~0xffful) & ~0xffful);
    for (uint64_t gib = 4; gib << 30 < end_of_ram; gib++) {
        uint64_t *pd = alloc_pages(1);
        for (unsigned n = 0; n < 512; n++)
            pd[n] = gib << 30 | (uint64_t)n << 21 | 0x83;
        pdpt[gib] = (ulong)pd | 3;
    }
}
#else
static void map_to(uint64_t end_of_ram) {}
#endif

static uint64_t value(uint64_t at, unsigned round) { return (at * 0x9e3779b97f4a7c15ull) ^ (round ? ~0ull : 0); }

static void fill(uint64_t from, uint64_t to, unsigned round)
{
    for (uint64_t at = from; at < to; at += STRIDE)
        *(volatile uint64_t *)(ulong)at = value(at, round);
}

static unsigned wrong(uint64_t from, uint64_t to, unsigned round)
{
    unsigned n = 0;
    for (uint64_t at = from; at < to; at += STRIDE)
        if (*(volatile uint64_t *)(ulong)at != value(at, round) && n++ < 3)
            print("  %llx differs\n", (unsigned long long)at);
    return n;
}

static struct { uint64_t from, to; } range[8];
static unsigned ranges;

static uint64_t read_map(void)
{
    const uint32_t *info = (const uint32_t *)(ulong)boot_info;
    uint64_t all = 0, own = (ulong)alloc_pages(1) + 0x100000;        /* image and page tables are below */
    bool in_hole = false;
    for (uint32_t at = info[12]; at < info[12] + info[11];) {
        const struct mmap *e = (const struct mmap *)(ulong)at;
        at += e->size + 4;
        if (e->type != RAM)
            continue;
        all += e->length;
        in_hole |= e->base < 0x100000000ull && e->base + e->length > 0xb0000000ull;
        uint64_t from = e->base < 0x100000 ? e->base + e->length : e->base < own ? own : e->base, to = e->base + e->length;
        if (GUEST_BITS == 32 && from >= 0x100000000ull)
            continue;
        if (from < to && ranges < ARRAY_SIZE(range))
            range[ranges].from = from, range[ranges++].to = to;
    }
    CHECK("hole-below-4-gib", !in_hole);
    return all;
}

int main(void)
{
    pic_mask_all();
    uint64_t all = read_map(), tested = 0;
    unsigned bits = cpuid_reg(0x80000008, 0, 0) & 0xff, bad = 0;
    for (unsigned n = 0; n < ranges; n++) {
        print("%llx to %llx\n", (unsigned long long)range[n].from, (unsigned long long)range[n].to);
        CHECK("below-physical-width", range[n].to <= 1ull << bits);
        map_to(range[n].to);
        tested += range[n].to - range[n].from;
    }
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned n = 0; n < ranges; n++)
            fill(range[n].from, range[n].to, round);
        for (unsigned n = 0; n < ranges; n++)
            bad += wrong(range[n].from, range[n].to, round);
    }
    EQUAL("all-of-it", bad, 0);
    if (GUEST_BITS == 64)
        CHECK("nearly-all", all - tested < 64ull << 20);
    print("%u MiB\n", (unsigned)(tested >> 20));
    return 0;
}
