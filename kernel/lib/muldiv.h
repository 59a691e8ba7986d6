/* a * b / c with a 128-bit product; saturates at all ones.  libgcc's 128-bit division is not linked: it uses vector registers. */
#pragma once
#include "kernel/lib/base.h"

static inline uint64_t mul_div(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t lo, hi;
    __asm__("mulq %3" : "=a"(lo), "=d"(hi) : "a"(a), "rm"(b) : "cc");
    if (hi >= c)                /* the quotient would not fit, or c is 0 */
        return ~0ull;
    __asm__("divq %2" : "+a"(lo), "+d"(hi) : "rm"(c) : "cc");
    return lo;
}
