/*
 * A token goes round between all CPUs, each spinning with PAUSE until it has it.  Where there are fewer host CPUs than these, a round takes as long as the
 * spinning ones keep the one they wait for from running.  Then once more with a first CPU that has work to do while it has the token.
 */
#include "lib/guest.h"

enum { ROUNDS = 500, WORK_ROUNDS = 20 };

static unsigned ncpus, rounds;
static volatile unsigned token, spins;
static unsigned work;           /* of the first CPU */

static void busy(unsigned n)
{
    while (n--)
        spins++;
}

static void play(void *arg)
{
    unsigned me = cpu_number();
    for (unsigned n = 0; n < rounds; n++) {
        while (token != n * ncpus + me)
            cpu_relax();
        busy(me ? 0 : work);
        token++;
    }
}

/* How long that many rounds take. */
static unsigned ring(unsigned n)
{
    uint64_t start = rdtsc();
    rounds = n, token = 0;
    for (unsigned c = 1; c < ncpus; c++)
        run_on(c, play, NULL);
    play(NULL);
    for (unsigned c = 1; c < ncpus; c++)
        wait_cpu(c);
    EQUAL("handovers", token, n * ncpus);
    return (unsigned)mul_div(rdtsc() - start, 1000000, tsc_hz());
}

static unsigned alone(unsigned n)
{
    uint64_t start = rdtsc();
    busy(n);
    return (unsigned)mul_div(rdtsc() - start, 1000000, tsc_hz());
}

int main(void)
{
    for (work = 1000; alone(work) < 10000; work *= 2)
        ;
    unsigned each = work, least = alone(WORK_ROUNDS * each);
    ncpus = start_cpus();           /* which spin from now on whatever they do */
    CHECK("cpus", ncpus > 1);
    work = 0;
    unsigned us = ring(ROUNDS);
    print("%u handovers in %u us\n", ROUNDS * ncpus, us);
    report("spinning-yields", us < ROUNDS * ncpus * 1000, "%u us for %u handovers", us, ROUNDS * ncpus);
    work = each;
    us = ring(WORK_ROUNDS);
    print("%u us of work done in %u us\n", least, us);
    report("spinning-lets-work", us < 4 * least, "%u us for what takes %u us", us, least);
    return 0;
}
