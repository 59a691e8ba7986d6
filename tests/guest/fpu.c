/*
 * Vector and x87 registers keep their values over every kind of exit and over the work of others: patterns that differ by run are checked for seconds, between
 * exits, HLT and long waits.  Run two of these machines on one CPU.
 */
#include "lib/guest.h"

enum { SECONDS = 3, VECTOR = 0x55 };
#ifdef __x86_64__
#define NREGS 16
#else
#define NREGS 8
#endif

static uint8_t want[NREGS][32] __attribute__((aligned(32))), got[NREGS][32] __attribute__((aligned(32)));
static double want_st[8], got_st[8];
static bool avx;
static uint8_t want512[32][64] __attribute__((aligned(64)));
static uint64_t want_k[8];
static bool avx512;

#define EACH8(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define EACH16(X) EACH8(X) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#ifdef __x86_64__
#define EACH EACH16
#else
#define EACH EACH8
#endif
#define LOAD_XMM(n) asm volatile("movups %0, %%xmm" #n :: "m"(want[n]));
#define STORE_XMM(n) asm volatile("movups %%xmm" #n ", %0" : "=m"(got[n]));
#define LOAD_YMM(n) asm volatile("vmovups %0, %%ymm" #n :: "m"(want[n]));
#define STORE_YMM(n) asm volatile("vmovups %%ymm" #n ", %0" : "=m"(got[n]));

#ifdef __x86_64__
#define EACH_HIGH(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31)
#define LOAD_ZMM(n) asm volatile("vmovdqu64 %0, %%zmm" #n :: "m"(want512[n]));
#define STORE_ZMM(n) asm volatile("vmovdqu64 %%zmm" #n ", %0" : "=m"(got512[n]));
#define LOAD_K(n) asm volatile("kmovq %0, %%k" #n :: "m"(want_k[n]));
#define STORE_K(n) asm volatile("kmovq %%k" #n ", %0" : "=m"(got_k[n]));

static uint8_t got512[32][64] __attribute__((aligned(64)));
static uint64_t got_k[8];

static void load_512(void)
{
    EACH16(LOAD_ZMM)
    EACH_HIGH(LOAD_ZMM)
    EACH8(LOAD_K)
}

static unsigned check_512(void)
{
    unsigned wrong = 0;

    EACH16(STORE_ZMM)
    EACH_HIGH(STORE_ZMM)
    EACH8(STORE_K)
    for (unsigned n = 0; n < 32; n++)
        wrong += memcmp(want512[n], got512[n], 64) != 0;
    return wrong + (memcmp(want_k, got_k, sizeof want_k) != 0);
}
#else
static void load_512(void) {}
static unsigned check_512(void) { return 0; }
#endif

static void load_all(void)
{
    if (avx512) {
        load_512();
    } else if (avx) {
        EACH(LOAD_YMM)
    } else {
        EACH(LOAD_XMM)
    }
    asm volatile("fninit");
    for (unsigned n = 0; n < 8; n++)
        asm volatile("fldl %0" :: "m"(want_st[n]));
}

static unsigned check_all(void)
{
    static uint8_t image[112];
    unsigned wrong = 0;

    if (avx512) {
        wrong = check_512();
    } else if (avx) {
        EACH(STORE_YMM)
    } else {
        EACH(STORE_XMM)
    }
    for (unsigned n = 0; n < NREGS && !avx512; n++)
        wrong += memcmp(want[n], got[n], avx ? 32 : 16) != 0;
    asm volatile("fnsave %0; frstor %0" : "+m"(image));
    for (int n = 7; n >= 0; n--)
        asm volatile("fstpl %0" : "=m"(got_st[n]));
    wrong += memcmp(want_st, got_st, sizeof want_st) != 0;
    for (unsigned n = 0; n < 8; n++)
        asm volatile("fldl %0" :: "m"(want_st[n]));
    return wrong;
}

/* Every kind of exit that the machine offers, and sleep. */
static void exits(unsigned k)
{
    uint32_t r[4];

    switch (k & 7) {
    case 0: cpuid(0, 0, r); break;
    case 1: (void)inb(0x21); break;
    case 2: (void)mmio_read(HPET + 0xf0); break;
    case 3: (void)rdmsr(0x1b); break;
    case 4:
        cli();
        apic_write(APIC_TICR, 1000 + k % 100000);
        sti_hlt();
        cli();
        break;
    case 5: cpu_relax(); break;
    case 6: *(volatile uint32_t *)(end + 0x1000000 + (k % 4096) * 4096) = k; break;
    default:
        for (volatile unsigned n = 0; n < 20000; n++)
            ;
    }
}

int main(void)
{
    uint64_t seed = rdtsc() | 1, end_tsc;
    unsigned rounds = 0, wrong = 0;

    pic_mask_all();
    apic_enable();
    set_handler(VECTOR, count_irq);
    apic_write(APIC_TDCR, 0xb);
    apic_write(APIC_LVTT, VECTOR);
    if (cpuid_reg(1, 0, 2) >> 28 & 1) {
        write_cr4(read_cr4() | 1 << 18);
        asm volatile("xsetbv" :: "a"(7), "d"(0), "c"(0));
        avx = true;
    }
    if (avx && GUEST_BITS == 64 && (cpuid_reg(7, 0, 1) & (BIT(16) | BIT(30))) == (BIT(16) | BIT(30))) {         /* F, BW */
        asm volatile("xsetbv" :: "a"(0xe7), "d"(0), "c"(0));
        avx512 = true;
    }
    for (unsigned n = 0; n < sizeof want512; n++) {
        seed = seed * 6364136223846793005 + 1442695040888963407;
        ((uint8_t *)want512)[n] = seed >> 56;
    }
    memcpy(want, want512, sizeof want);
    memcpy(want_k, (uint8_t *)want512 + 77, sizeof want_k);
    for (unsigned n = 0; n < 8; n++) {          /* small odd integers as doubles, built by hand */
        uint64_t bits = 0x3ff0000000000000ull | (seed >> 12 ^ (uint64_t)n << 40);
        memcpy(&want_st[n], &bits, 8);
    }
    load_all();
    end_tsc = rdtsc() + tsc_hz() * SECONDS;
    while (rdtsc() < end_tsc && wrong < 10) {
        exits(rounds++);
        unsigned bad = check_all();
        if (bad) {
            print("  round %u: %u registers changed\n", rounds, bad);
            load_all();
        }
        wrong += bad != 0;
    }
    print("%u rounds, %s\n", rounds, avx512 ? "zmm" : avx ? "ymm" : "xmm");
    report("registers-kept", !wrong && rounds > 100, "%u of %u rounds", wrong, rounds);
    uint32_t mxcsr = 0x1f80 | 0x6000, read_back;
    asm volatile("ldmxcsr %0" :: "m"(mxcsr));
    for (unsigned n = 0; n < 64; n++)
        exits(n);
    asm volatile("stmxcsr %0" : "=m"(read_back));
    EQUAL("mxcsr-kept", read_back, mxcsr);
    return 0;
}
