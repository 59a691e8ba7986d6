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

static void again(struct frame *f)
{
    for (unsigned n = 0; n < 4096; n += 4)
        *(volatile uint32_t *)(area + n) = rnd();
    f->ip = (ulong)area + rnd() % 2048;
    f->flags = 2;
}

int main(void)
{
    state = rdtsc() | 1;
    print("GARBAGE seed %llx\n", (unsigned long long)state);
    area = alloc_pages(4);
    for (unsigned v = 0; v < 256; v++)
        set_handler(v, again);
    asm volatile("ud2");
    return 0;
}
