/*
 * Wake-ups from HLT by the thousand: every CPU arms its one-shot timer and halts, long naps and some so short that the interrupt comes between STI and HLT;
 * in between it wakes its neighbour, which may be halted or not.  A lost wake-up ends as a nap without an end, a doubled one as a wrong count.
 */
#include "lib/guest.h"

enum { VEC_NAP = 0x51, VEC_POKE = 0x52, NAPS = 4000, POKE_EACH = 16 };

static unsigned ncpus, ids[MAX_CPUS];
static volatile unsigned naps[MAX_CPUS], pokes[MAX_CPUS], arrived;

static void on_nap(struct frame *f)
{
    naps[cpu_number()]++;
    apic_write(APIC_EOI, 0);
}

static void on_poke(struct frame *f)
{
    pokes[cpu_number()]++;
    apic_write(APIC_EOI, 0);
}

static void sleep_until(volatile unsigned *counter, unsigned at_least)
{
    cli();
    while (*counter < at_least) {
        sti_hlt();
        cli();
    }
    sti();
}

static void nap(void *arg)
{
    unsigned me = cpu_number();
    uint32_t x = 12345 + me * 7919;

    ids[me] = apic_id();
    apic_write(APIC_TDCR, 0xb);
    apic_write(APIC_LVTT, VEC_NAP);
    __atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
    while (arrived < ncpus)
        cpu_relax();
    for (unsigned n = 1; n <= NAPS; n++) {
        x = x * 1664525 + 1013904223;
        if (n % POKE_EACH == 0) {
            unsigned next = (me + 1) % ncpus;
            while (pokes[next] + 1 < n / POKE_EACH)     /* two of one vector that nobody has taken yet are one */
                cpu_relax();
            apic_ipi(ids[next], 0x4000 | VEC_POKE);
            sleep_until(&pokes[me], n / POKE_EACH);
        }
        apic_write(APIC_TICR, 1 + (x >> 8 & (n & 3 ? 0x3fff : 0x3f)));
        sleep_until(&naps[me], n);
        if (naps[me] != n)
            report("naps", false, "CPU %u woke %u times in %u naps", me, naps[me], n);
    }
    apic_write(APIC_LVTT, 0x10000);
    cli();
}

int main(void)
{
    set_handler(VEC_NAP, on_nap);
    set_handler(VEC_POKE, on_poke);
    pic_init();
    apic_enable();
    ncpus = start_cpus();
    print("%u CPUs\n", ncpus);
    for (unsigned n = 1; n < ncpus; n++)
        run_on(n, nap, NULL);
    nap(NULL);
    for (unsigned n = 1; n < ncpus; n++)
        wait_cpu(n);
    for (unsigned n = 0; n < ncpus; n++) {
        EQUAL("naps", naps[n], NAPS);
        EQUAL("pokes", pokes[n], NAPS / POKE_EACH);
    }
    return 0;
}
