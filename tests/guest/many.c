/*
 * Many CPUs: as many as CPUID tells come up, count, and pass a token round by IPIs, each asleep until it is its turn; then calls to all at once, by both
 * APIC modes.  Nobody spins, so that it also runs where there are far fewer real CPUs.
 */
#include "lib/guest.h"

enum { VEC_TOKEN = 0x61, VEC_ALL = 0x62, LAPS = 20, CALLS = 20, COUNT = 20000 };

static unsigned ncpus, ids[MAX_CPUS];
static volatile unsigned tokens[MAX_CPUS], calls[MAX_CPUS], answers, counted, over, in_x2;
static volatile unsigned sum;

/* How many logical CPUs this package has: leaf 0bh if there is one. */
static unsigned told(void)
{
    unsigned n = cpuid_reg(0, 0, 0) >= 0xb ? cpuid_reg(0xb, 1, 1) & 0xffff : 0;
    return n ? n : cpuid_reg(1, 0, 1) >> 16 & 0xff;
}

static void on_token(struct frame *f)
{
    unsigned me = cpu_number();

    tokens[me]++;
    apic_write(APIC_EOI, 0);
    if (me || tokens[0] < LAPS)
        apic_ipi(ids[(me + 1) % ncpus], 0x4000 | VEC_TOKEN);
}

static void on_call(struct frame *f)
{
    calls[cpu_number()]++;
    apic_write(APIC_EOI, 0);
    if (__atomic_add_fetch(&answers, 1, __ATOMIC_SEQ_CST) == ncpus - 1)
        apic_ipi(ids[0], 0x4000 | VEC_ALL);
}

static volatile unsigned woken;
static void on_answer(struct frame *f)
{
    if (cpu_number()) {
        on_call(f);
        return;
    }
    woken++;
    apic_write(APIC_EOI, 0);
}

static void sleeper(void *arg)
{
    unsigned me = cpu_number();
    uint32_t x = me;

    ids[me] = apic_id();
    for (unsigned n = 0; n < COUNT; n++)
        x = x * 1664525 + 1013904223;
    __atomic_add_fetch(&sum, x, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
    cli();
    while (!over) {
        sti_hlt();
        cli();
    }
}

static void sleep_until(volatile unsigned *counter, unsigned at_least)
{
    cli();
    while (*counter < at_least) {
        sti_hlt();
        cli();
    }
}

static void rounds(const char *mode)
{
    uint64_t t0 = rdtsc();

    for (unsigned n = 0; n < ncpus; n++)
        tokens[n] = calls[n] = 0;
    woken = 0;
    cli();
    apic_ipi(ids[1], 0x4000 | VEC_TOKEN);
    sleep_until(&tokens[0], LAPS);
    bool ok = true;
    for (unsigned n = 0; n < ncpus; n++)
        ok = ok && tokens[n] == LAPS;
    report("token-ring", ok, "%s: not every CPU had it %u times", mode, LAPS);
    for (unsigned n = 0; n < CALLS; n++) {
        answers = 0;
        apic_ipi(0, 0xc4000 | VEC_ALL);
        sleep_until(&woken, n + 1);
    }
    for (unsigned n = 1; n < ncpus; n++)
        ok = ok && calls[n] == CALLS;
    report("calls-to-all", ok, "%s: not every CPU heard %u", mode, CALLS);
    print("%s: %u ms\n", mode, (unsigned)mul_div(rdtsc() - t0, 1000, tsc_hz()));
}

static void on_enter_x2(struct frame *f)
{
    apic_write(APIC_EOI, 0);            /* in the mode it is in */
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    __atomic_add_fetch(&in_x2, 1, __ATOMIC_SEQ_CST);
}

int main(void)
{
    unsigned want = 0;

    pic_mask_all();
    apic_enable();
    set_handler(VEC_TOKEN, on_token);
    set_handler(VEC_ALL, on_answer);
    set_handler(0x63, on_enter_x2);
    ncpus = told();
    start_cpus();
    wait_for(&cpus_online, ncpus, 30000);
    EQUAL("all-cpus-come-up", cpus_online, ncpus);
    if (cpus_online != ncpus || ncpus < 2)
        return 0;
    ids[0] = apic_id();
    for (unsigned n = 1; n < ncpus; n++)
        run_on(n, sleeper, NULL);
    wait_for(&counted, ncpus - 1, 30000);
    for (unsigned n = 1; n < ncpus; n++) {
        uint32_t x = n;
        for (unsigned k = 0; k < COUNT; k++)
            x = x * 1664525 + 1013904223;
        want += x;
    }
    EQUAL("each-counted", sum, want);
    bool distinct = true;
    for (unsigned a = 0; a < ncpus; a++)
        for (unsigned b = 0; b < a; b++)
            distinct = distinct && ids[a] != ids[b];
    CHECK("apic-ids-distinct", distinct);
    rounds("xAPIC");
    if (cpuid_reg(1, 0, 2) >> 21 & 1) {
        apic_ipi(0, 0xc4063);
        wait_for(&in_x2, ncpus - 1, 30000);
        EQUAL("all-in-x2apic", in_x2, ncpus - 1);
        apic_enable_x2();
        rounds("x2APIC");
    }
    print("%u CPUs\n", ncpus);
    return 0;
}
