/* Touches all memory from 1 GiB up, 2 MiB by 2 MiB, finds all of it again, twice, and stays. */
#include "lib/guest.h"

enum { STEP = 2 << 20 };

static unsigned wrong(uint64_t top, unsigned salt)
{
    unsigned bad = 0;
    for (uint64_t a = 1 << 30; a < top; a += STEP)
        bad += *(volatile uint32_t *)(ulong)(a + 0x123450) != (uint32_t)(a >> 20) + salt;
    return bad;
}

int main(void)
{
    uint64_t top = ram_top() & ~(uint64_t)(STEP - 1);
    CHECK("more-than-two-gib", top > 2ull << 30);
    for (unsigned salt = 1; salt <= 2; salt++) {
        for (uint64_t a = 1 << 30; a < top; a += STEP)
            *(volatile uint32_t *)(ulong)(a + 0x123450) = (uint32_t)(a >> 20) + salt;
        EQUAL("found-again", wrong(top, salt), 0);
    }
    print("swept\n");
    for (;;)
        asm volatile("cli; hlt");
}
