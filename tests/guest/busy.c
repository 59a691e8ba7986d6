/*
 * Busy for ever: each CPU counts, and notes the holes in its time: moments longer than HOLE_US between two looks at the TSC.  CPU 0 tells both about fifty times a
 * second, by its own clock:  BUSY ms-since-start counts-of-all-CPUs longest-hole-us ms-in-holes-of-CPU-0
 */
#include "lib/guest.h"

enum { HOLE_US = 500, BATCH = 200 };

static volatile struct { uint64_t count, holes, longest; } __attribute__((aligned(64))) cpu[MAX_CPUS];
static uint64_t hole;

/* Until `end` on the TSC. */
static void work(unsigned me, uint64_t end)
{
    uint64_t last = rdtsc();

    while (last < end) {
        for (unsigned n = 0; n < BATCH; n++)
            asm volatile("" ::: "memory");
        uint64_t now = rdtsc();
        if (now - last > hole) {
            cpu[me].holes += now - last;
            if (now - last > cpu[me].longest)
                cpu[me].longest = now - last;
        }
        cpu[me].count++;
        last = now;
    }
}

static void for_ever(void *arg) { work(cpu_number(), ~0ull); }

int main(void)
{
    uint64_t hz = tsc_hz(), start = rdtsc();

    apic_enable();
    hole = mul_div(hz, HOLE_US, 1000000);
    unsigned ncpus = start_cpus();
    for (unsigned n = 1; n < ncpus; n++)
        run_on(n, for_ever, NULL);
    for (;;) {
        uint64_t sum = 0, longest = 0;
        work(0, rdtsc() + hz / 50);
        for (unsigned n = 0; n < ncpus; n++) {
            sum += cpu[n].count;
            longest = cpu[n].longest > longest ? cpu[n].longest : longest;
        }
        print("BUSY %u %llu %u %u\n", (unsigned)mul_div(rdtsc() - start, 1000, hz), (unsigned long long)sum, (unsigned)mul_div(longest, 1000000, hz),
              (unsigned)mul_div(cpu[0].holes, 1000, hz));
    }
}
