#include "kernel/x86/random.h"
#include <stdio.h>
#include <string.h>
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/csprng.h"

enum { HW_WORDS = 16, HW_RETRIES = 100, JITTER_SAMPLES = 1024, JITTER_NEEDED = 128, FIRMWARE_NEEDED = 32 /* bytes */ };

static struct spinlock lock;
static struct csprng pool;
static char sources[64];

#define HW_RANDOM(name) \
    static bool name(uint64_t *v) { bool ok; __asm__ volatile(#name " %0" : "=r"(*v), "=@ccc"(ok) :: "cc"); return ok; }
HW_RANDOM(rdseed)
HW_RANDOM(rdrand)

/* A broken generator repeats itself (some AMD CPUs answer all ones after resume): such words do not count. */
static unsigned from_hardware(bool (*word)(uint64_t *))
{
    unsigned good = 0;
    uint64_t last = 0, v;
    for (unsigned i = 0; i < HW_WORDS; i++) {
        bool ok = false;
        for (unsigned k = 0; k < HW_RETRIES && !(ok = word(&v)); k++)
            cpu_relax();
        if (!ok)
            continue;
        csprng_add(&pool, &v, sizeof(v));
        good += v != last && v != 0 && v != ~0ull;
        last = v;
    }
    return good;
}

/* Low bits of the time that cache misses and port reads take; a sample counts when it differs from the two before it. */
static unsigned from_jitter(void)
{
    static uint8_t walk[65536];
    unsigned good = 0;
    uint64_t d1 = 0, d2 = 0, at = 1;
    for (unsigned i = 0; i < JITTER_SAMPLES; i++) {
        uint64_t t = rdtsc();
        for (unsigned k = 0; k < 16; k++) {
            at = at * 6364136223846793005ull + t + 1;
            walk[at >> 48]++;
        }
        if (i % 16 == 0)
            inb(0x80);
        uint64_t d = rdtsc() - t;
        csprng_add(&pool, &t, sizeof(t));
        good += d != d1 && d != d2 && d - d1 != d1 - d2;
        d2 = d1, d1 = d;
    }
    return good;
}

void random_init(const void *firmware, size_t len)
{
    uint64_t start[2] = { rdtsc(), clock_utc_ns() };
    unsigned seed = cpu_has(FEAT_RDSEED) ? from_hardware(rdseed) : 0;
    unsigned rand = cpu_has(FEAT_RDRAND) ? from_hardware(rdrand) : 0;
    unsigned jitter = from_jitter();
    csprng_add(&pool, start, sizeof(start));
    csprng_add(&pool, firmware, len);
    csprng_add(&pool, &cpu_info, sizeof(cpu_info));
    pool.seeded = seed >= HW_WORDS / 2 || rand >= HW_WORDS / 2 || jitter >= JITTER_NEEDED || len >= FIRMWARE_NEEDED;
    snprintf(sources, sizeof(sources), "%s%s%s%s", seed ? "RDSEED " : "", rand ? "RDRAND " : "", len >= FIRMWARE_NEEDED ? "EFI-RNG " : "",
             jitter >= JITTER_NEEDED ? "jitter" : "");
    if (pool.seeded)
        log_info("random", "seeded from %s", sources);
    else
        log_err("random", "no source of randomness on this machine: neither RDSEED, RDRAND, an EFI RNG nor timing jitter");
}

const char *random_sources(void) { return sources; }

void random_add(const void *bytes, size_t len)
{
    unsigned long f = spin_lock_irqsave(&lock);
    csprng_add(&pool, bytes, len);
    spin_unlock_irqrestore(&lock, f);
}

void random_bytes(void *buf, size_t len)
{
    if (!pool.seeded)
        panic("random bytes asked for before the generator was seeded");
    for (uint8_t *p = buf; len; ) {
        size_t n = MIN(len, (size_t)1024);              /* bounded time with interrupts off */
        unsigned long f = spin_lock_irqsave(&lock);
        csprng_bytes(&pool, p, n);
        spin_unlock_irqrestore(&lock, f);
        p += n, len -= n;
    }
}
