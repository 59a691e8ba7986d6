/* Executes random bytes, over and over, whatever they do to the machine.  Any end is right as long as the host and the neighbours do not notice. */
#include "lib/guest.h"

static uint64_t state;

static uint32_t rnd(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state >> 16;
}

static uint8_t *area;
static bool no_evex;

/* Bochs 2.7, which is where this runs on an Intel CPU, ends with an assertion of its own on some malformed instructions that begin with 62h (EVEX). */
static uint32_t random_code(void)
{
    uint32_t v = rnd();
    for (unsigned i = 0; no_evex && i < 32; i += 8)
        if ((v >> i & 0xff) == 0x62)
            v ^= 1u << i;
    return v;
}

static void again(struct frame *f)
{
    for (unsigned n = 0; n < 4096; n += 4)
        *(volatile uint32_t *)(area + n) = random_code();
    f->ip = (ulong)area + rnd() % 2048;
    f->flags = 2;
}

int main(void)
{
    state = rdtsc() | 1;
    no_evex = cpuid_reg(0, 0, 1) == 0x756e6547;         /* "Genu" */
    print("GARBAGE seed %llx\n", (unsigned long long)state);
    area = alloc_pages(4);
    for (unsigned v = 0; v < 256; v++)
        set_handler(v, again);
    asm volatile("ud2");
    return 0;
}
