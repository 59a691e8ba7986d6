/* Several CPUs: start-up, every kind of IPI, in xAPIC and x2APIC mode, memory shared between them, and wake-ups from HLT by the thousand. */
#include "lib/guest.h"

enum { VEC = 0x70, VEC_WAKE = 0x71, ROUNDS = 1000, SINGLES = 500 };

static unsigned ncpus;
static volatile unsigned hits[MAX_CPUS], nmi_hits[MAX_CPUS];

static void on_ipi(struct frame *f)
{
    __atomic_add_fetch(&hits[cpu_number()], 1, __ATOMIC_SEQ_CST);
    apic_write(APIC_EOI, 0);
}
static void on_nmi(struct frame *f) { __atomic_add_fetch(&nmi_hits[cpu_number()], 1, __ATOMIC_SEQ_CST); }

static void clear(void)
{
    for (unsigned n = 0; n < MAX_CPUS; n++)
        hits[n] = nmi_hits[n] = 0;
}

/* What the part that ends here took. */
static void took(const char *what)
{
    static uint64_t last;
    uint64_t now = rdtsc();

    if (last)
        print("# %s: %u ms\n", what, (unsigned)mul_div(now - last, 1000, tsc_hz()));
    last = now;
}

static volatile unsigned accepting, stop;
static void accept(void *arg)
{
    sti();
    __atomic_add_fetch(&accepting, 1, __ATOMIC_SEQ_CST);
    while (!stop)
        cpu_relax();
    cli();
}

static unsigned ids[MAX_CPUS];
static void tell_id(void *arg) { ids[cpu_number()] = apic_id(); }

static bool all_hit(unsigned self, unsigned others)
{
    bool ok = true;

    for (unsigned n = 0; n < ncpus; n++)
        ok = wait_for(&hits[n], n ? others : self, 500) && hits[n] == (n ? others : self) && ok;
    return ok;
}

static void kinds(const char *mode)
{
    print("-- %s\n", mode);
    stop = accepting = 0;
    for (unsigned n = 1; n < ncpus; n++)
        run_on(n, accept, NULL);
    wait_for(&accepting, ncpus - 1, 1000);
    sti();
    clear();
    for (unsigned n = 0; n < ncpus; n++)
        apic_ipi(ids[n], 0x4000 | VEC);
    CHECK("fixed-to-each", all_hit(1, 1));
    clear();
    apic_ipi(0, 0x84000 | VEC);
    CHECK("all-with-self", all_hit(1, 1));
    clear();
    apic_ipi(0, 0xc4000 | VEC);
    CHECK("all-but-self", all_hit(0, 1));
    clear();
    apic_ipi(0, 0x44000 | VEC);
    CHECK("self", all_hit(1, 0));
    clear();
    for (unsigned n = 1; n < ncpus; n++)
        apic_ipi(ids[n], 0x4400);
    bool ok = true;
    for (unsigned n = 1; n < ncpus; n++)
        ok = wait_for(&nmi_hits[n], 1, 500) && ok;
    CHECK("nmi-to-each", ok);
    took("kinds");
    clear();
    unsigned each = SINGLES / (ncpus - 1 + (ncpus == 1));        /* the more CPUs, the longer until each has its turn */
    for (unsigned k = 0; k < each; k++)
        for (unsigned n = 1; n < ncpus; n++) {
            apic_ipi(ids[n], 0x4000 | VEC);
            if (!wait_for(&hits[n], k + 1, 1000)) {
                report("fixed-one-by-one", false, "cpu %u stuck at %u", n, hits[n]);
                k = each;
                break;
            }
        }
    CHECK("fixed-one-by-one-counted", all_hit(0, each));
    took("one by one");
    cli();
    stop = 1;
    for (unsigned n = 1; n < ncpus; n++)
        wait_cpu(n);
}

/* Logical destinations, flat model: a bit per CPU. */
static void logical(void)
{
    stop = accepting = 0;
    for (unsigned n = 1; n < ncpus; n++)
        run_on(n, accept, NULL);
    wait_for(&accepting, ncpus - 1, 1000);
    apic_write(APIC_DFR, 0xffffffff);
    apic_write(APIC_LDR, 1 << 24);
    sti();
    clear();
    apic_ipi(1, 0x4800 | VEC);
    CHECK("logical-flat-self", wait_for(&hits[0], 1, 500));
    clear();
    apic_ipi(1, 0x4900 | VEC);          /* lowest priority among one */
    CHECK("lowest-priority-self", wait_for(&hits[0], 1, 500));
    took("logical");
    cli();
    stop = 1;
    for (unsigned n = 1; n < ncpus; n++)
        wait_cpu(n);
}

/* An interrupt whose frame goes to memory that was never touched: the host must fill it in the middle of the delivery, and it comes once. */
static void fresh_stacks(void)
{
    cli();
    clear();
    for (ulong top = 0x3000000; top < 0x3800000; top += 0x200000) {     /* each in a large page of its own */
        apic_ipi(0, 0x44000 | VEC);
        asm volatile("xchg %0, " PTR_SP "\n\tsti\n\tnop\n\tnop\n\tcli\n\txchg %0, " PTR_SP : "+r"(top) :: "memory", "cc");
    }
    EQUAL("interrupts-on-fresh-stacks", hits[0], 4);
}

/* Two CPUs send each other to sleep and wake each other up. */
static volatile unsigned turn;
static void on_wake(struct frame *f) { apic_write(APIC_EOI, 0); }

static void pong(void *arg)
{
    for (unsigned n = 0; n < ROUNDS; n++) {
        cli();
        while (turn != 2 * n + 1) {
            sti_hlt();
            cli();
        }
        turn = 2 * n + 2;
        apic_ipi(ids[0], 0x4000 | VEC_WAKE);
    }
}

static void ping(void)
{
    uint64_t t0 = rdtsc(), last = t0, slowest = 0;

    set_handler(VEC_WAKE, on_wake);
    turn = 0;
    run_on(1, pong, NULL);
    for (unsigned n = 0; n < ROUNDS; n++) {
        turn = 2 * n + 1;
        apic_ipi(ids[1], 0x4000 | VEC_WAKE);
        cli();
        while (turn != 2 * n + 2) {
            sti_hlt();
            cli();
        }
        uint64_t now = rdtsc();
        if (now - last > slowest)
            slowest = now - last;
        last = now;
    }
    wait_cpu(1);
    report("ping-pong-through-hlt", turn == 2 * ROUNDS, "%u", turn);
    took("ping-pong");
    print("ping-pong %u us each, slowest %u us\n", (unsigned)mul_div(rdtsc() - t0, 1000000 / ROUNDS, tsc_hz()), (unsigned)mul_div(slowest, 1000000, tsc_hz()));
}

/*
 * Two CPUs pass a word to and fro, each spinning with PAUSE until it is its turn.  Where they share a real CPU, whoever spins must give way; whoever runs
 * this test knows what they share and judges the figure.
 */
enum { HANDOFFS = 300 };
static volatile unsigned baton;
static void hand_back(void *arg)
{
    for (unsigned n = 0; n < HANDOFFS; n++) {
        while (baton != 2 * n + 1)
            cpu_relax();
        baton = 2 * n + 2;
    }
}

static void handoffs(void)
{
    uint64_t t0 = rdtsc();

    baton = 0;
    run_on(1, hand_back, NULL);
    for (unsigned n = 0; n < HANDOFFS; n++) {
        baton = 2 * n + 1;
        while (baton != 2 * n + 2)
            cpu_relax();
    }
    wait_cpu(1);
    print("there and back by spinning: %u us\n", (unsigned)mul_div(rdtsc() - t0, 1000000 / HANDOFFS, tsc_hz()));
    took("handoffs");
}

/* Atomic operations on RAM and ordering between CPUs. */
static volatile unsigned total, plain_a, plain_b, disorder;
static void add(void *arg)
{
    for (unsigned n = 0; n < 20000; n++)
        asm volatile("lock incl %0" : "+m"(total));
}

static void shared_memory(void)
{
    total = 0;
    for (unsigned n = 1; n < ncpus; n++)
        run_on(n, add, NULL);
    add(NULL);
    for (unsigned n = 1; n < ncpus; n++)
        wait_cpu(n);
    EQUAL("locked-adds", total, 20000 * ncpus);
    took("locked adds");
}

/* All CPUs at one device at once. */
static void hammer_ioapic(void *arg)
{
    for (unsigned n = 0; n < 3000; n++) {
        (void)mmio_read(IOAPIC + 0x10);
        (void)mmio_read(HPET + 0xf0);
        (void)inb(0x21);
        (void)apic_read(APIC_ID);
    }
}

static void devices_shared(void)
{
    for (unsigned n = 1; n < ncpus; n++)
        run_on(n, hammer_ioapic, NULL);
    hammer_ioapic(NULL);
    for (unsigned n = 1; n < ncpus; n++)
        wait_cpu(n);
    CHECK("devices-from-all-cpus", true);
    took("devices");
}

static void tsc_now(void *arg) { *(volatile uint64_t *)arg = rdtsc(); }

static void clocks_together(void)
{
    bool ok = true;

    for (unsigned n = 1; n < ncpus; n++)
        for (unsigned k = 0; k < 20; k++) {
            uint64_t before = rdtsc(), there, after;
            run_on(n, tsc_now, &there);
            wait_cpu(n);
            after = rdtsc();
            if ((int64_t)(there - before) < 0 || (int64_t)(after - there) < 0)
                ok = false;
        }
    CHECK("tsc-same-everywhere", ok);
    took("TSC");
}

/* A CPU that gets INIT and SIPI again starts anew. */
static void restart(void)
{
    unsigned before = cpus_online;

    apic_ipi(ids[1], 0x4500);
    delay_us(10000);
    extern uint32_t ap_next;
    ap_next = before;                   /* a fresh number and stack */
    apic_ipi(ids[1], 0x4608);
    delay_us(300);
    CHECK("init-restarts", wait_for(&cpus_online, before + 1, 1000));
}

static void enter_x2(void *arg) { wrmsr(0x1b, rdmsr(0x1b) | 0xc00); }

int main(void)
{
    pic_mask_all();
    apic_enable();
    set_handler(VEC, on_ipi);
    set_handler(2, on_nmi);
    ncpus = start_cpus();
    print("%u CPUs\n", ncpus);
    took("start");
    if (cpuid_reg(1, 0, 3) >> 28 & 1)
        CHECK("several", ncpus > 1);
    for (unsigned n = 1; n < ncpus; n++) {
        run_on(n, tell_id, NULL);
        wait_cpu(n);
    }
    ids[0] = apic_id();
    bool distinct = true;
    for (unsigned a = 0; a < ncpus; a++)
        for (unsigned b = 0; b < a; b++)
            distinct = distinct && ids[a] != ids[b];
    CHECK("apic-ids-distinct", distinct);
    fresh_stacks();
    kinds("xAPIC");
    logical();
    shared_memory();
    devices_shared();
    clocks_together();
    if (ncpus > 1)
        handoffs();
    if (ncpus > 1)
        ping();
    if (cpuid_reg(1, 0, 2) >> 21 & 1) {
        for (unsigned n = 1; n < ncpus; n++) {
            run_on(n, enter_x2, NULL);
            wait_cpu(n);
        }
        apic_enable_x2();
        kinds("x2APIC");
        if (ncpus > 1)
            ping();
    }
    if (ncpus > 1)
        restart();
    return 0;
}
