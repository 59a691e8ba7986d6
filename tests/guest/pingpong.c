/*
 * A token goes round between all CPUs, each spinning with PAUSE until it has it.  Where there are fewer host CPUs than these, a round takes as long as the
 * spinning ones keep the one they wait for from running.
 */
#include "lib/guest.h"

enum { ROUNDS = 500 };

static unsigned ncpus;
static volatile unsigned token, arrived;

static void play(void *arg)
{
    unsigned me = cpu_number();
    __atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
    for (unsigned n = 0; n < ROUNDS; n++) {
        while (token != n * ncpus + me)
            cpu_relax();
        token++;
    }
}

int main(void)
{
    ncpus = start_cpus();
    CHECK("cpus", ncpus > 1);
    uint64_t hz = tsc_hz(), start = rdtsc();
    for (unsigned c = 1; c < ncpus; c++)
        run_on(c, play, NULL);
    play(NULL);
    for (unsigned c = 1; c < ncpus; c++)
        wait_cpu(c);
    uint64_t us = mul_div(rdtsc() - start, 1000000, hz);
    print("%u handovers in %u us\n", ROUNDS * ncpus, (unsigned)us);
    EQUAL("handovers", token, ROUNDS * ncpus);
    report("spinning-yields", us < ROUNDS * ncpus * 1000ull, "%u us for %u handovers", (unsigned)us, ROUNDS * ncpus);
    return 0;
}
