/*
 * One of many on the same host, all with the same addresses: a third of the pages from 2 MiB on hold words of this guest alone, made from the number on its command
 * line.  It looks at them each time it wakes, says so each 20 times, and sleeps most of the time, so that others run.  Runs for ever.
 */
#include "lib/guest.h"

enum { PAGES = 512, WORDS = 4096 / 8, VECTOR = 0x51, NAP = 50000000 /* ns */ };
#define FIRST 0x200000ul
#define MAGIC 0x9e3779b97f4a7c15ull     /* times the number: first word of every page, for who looks from outside */

extern uint32_t boot_info;
static unsigned seed;

static void read_seed(void)
{
    const char *s = (const char *)(ulong)((const uint32_t *)(ulong)boot_info)[4];
    for (; *s >= '0' && *s <= '9'; s++)
        seed = seed * 10 + (unsigned)(*s - '0');
}

static uint64_t *page(unsigned n) { return (uint64_t *)(FIRST + n * 3 * 4096ul); }
static uint64_t word(unsigned n, unsigned round) { return (n * 2654435761ull + round) * (MAGIC * seed); }

static void write_all(unsigned round)
{
    for (unsigned n = 0; n < PAGES; n++) {
        page(n)[0] = MAGIC * seed;
        page(n)[1 + (n + round) % (WORDS - 1)] = word(n, round);
    }
}

static bool all_there(unsigned round)
{
    for (unsigned n = 0; n < PAGES; n++)
        if (page(n)[0] != MAGIC * seed || page(n)[1 + (n + round) % (WORDS - 1)] != word(n, round))
            return false;
    return true;
}

static void nap(void)
{
    unsigned before = irq_count[VECTOR];
    apic_write(APIC_TICR, NAP);
    while (irq_count[VECTOR] == before)
        sti_hlt();
}

int main(void)
{
    unsigned bad = 0;
    read_seed();
    pic_mask_all();
    apic_enable();
    set_handler(VECTOR, count_irq);
    apic_write(APIC_TDCR, 0xb);
    apic_write(APIC_LVTT, VECTOR);
    CHECK("seed", seed != 0);
    for (unsigned n = 0;; n++) {
        if (n % 16 == 0)
            write_all(n);
        nap();
        bad += !all_there(n & ~15u);
        if (n % 20 == 19)
            print("alive %u, %u times wrong\n", n + 1, bad);
    }
}
