/*
 * What an operation costs: RDTSC around loops, prints "BENCH name ticks-per-operation".  On a machine that counts one tick per executed instruction these are
 * instructions, the host's included.  The loop itself (printed as "loop") is not subtracted.
 */
#include "lib/guest.h"

enum { LOOPS = 200, ROUNDS = 5, TOUCH_BASE = 32 << 20, TOUCH_LEN = 32 << 20, VECTOR = 0x60, UNCLAIMED = 0xfea00000 };
extern void bench_irq(void);
extern volatile uint32_t bench_irq_count;

/* The best of some rounds: in the others a host thread may have had the CPU.  Once unmeasured: the first access builds translations. */
#define BENCH(name, ...) do { \
    uint64_t best_ = ~0ull; \
    { __VA_ARGS__; } \
    for (unsigned round_ = 0; round_ < ROUNDS; round_++) { \
        uint64_t t0_ = rdtsc(), t_; \
        for (unsigned n_ = 0; n_ < LOOPS; n_++) { __VA_ARGS__; asm volatile("" ::: "memory"); } \
        t_ = rdtsc() - t0_; \
        best_ = t_ < best_ ? t_ : best_; \
    } \
    result(name, best_, LOOPS); \
} while (0)

static void result(const char *name, uint64_t ticks, unsigned ops)
{
    unsigned long long tenths = mul_div(ticks, 10, ops);
    unsigned rest = (unsigned)(tenths - mul_div(tenths, 1, 10) * 10);

    print("BENCH %s %llu.%u\n", name, (unsigned long long)mul_div(tenths, 1, 10), rest);
}

static void self_ipi(void)
{
    uint32_t before = bench_irq_count;

    mmio_write(LAPIC + APIC_ICR, 0x40000 | VECTOR);
    while (bench_irq_count == before)
        ;
}

static void one_shot(void)
{
    uint32_t before = bench_irq_count;

    mmio_write(LAPIC + APIC_TICR, 1);
    while (bench_irq_count == before)
        ;
}

/*
 * Memory that was never touched: first a stretch as small as what a host keeps ready; then, when there is that much, one after 144 MiB more have been
 * taken without a pause.
 */
static void touch(const char *name, ulong from, ulong len)
{
    uint64_t t0 = rdtsc();

    for (ulong a = from; a < from + len; a += 4096)
        *(volatile uint32_t *)a = 1;
    if (name)
        result(name, rdtsc() - t0, len / 4096);
}

static void first_touch(void)
{
    ulong at = TOUCH_BASE, drain = 144 << 20;
    uint64_t top = ram_top() - (1 << 20);       /* loaders leave tables at the end */

    if (top < at + TOUCH_LEN + 4096)
        return;
    touch("first-touch-4k", at, TOUCH_LEN);
    at += TOUCH_LEN;
    EQUAL("fresh memory is zero", *(volatile uint32_t *)at, 0);
    if (top < at + drain + TOUCH_LEN)
        return;
    touch(NULL, at, drain);
    touch("first-touch-4k-empty", at + drain, TOUCH_LEN);
}

/* The figures are worth nothing when the operations do not do what they should. */
static void check_answers(void)
{
    uint32_t vendor = cpuid_reg(0, 0, 1);

    CHECK("cpuid", vendor == 0x68747541 || vendor == 0x756e6547);       /* "Auth", "Genu" */
    EQUAL("apic base", rdmsr(0x1b) & ~0x400ull, LAPIC | 0x900);
    EQUAL("pic mask", inb(0x21), 0xff);
    EQUAL("uart status", inb(0x3fd) & 0x60, 0x60);
    EQUAL("lapic id", mmio_read(LAPIC + APIC_ID), 0);
    mmio_write(LAPIC + APIC_TPR, 0x20);
    EQUAL("tpr", mmio_read(LAPIC + APIC_TPR), 0x20);
    mmio_write(LAPIC + APIC_TPR, 0);
    EQUAL("hpet", mmio_read(HPET) & 0xff, 1);
    CHECK("unclaimed mmio", mmio_read(UNCLAIMED) + 1 <= 1);     /* all ones; QEMU's devices say 0 */
}

int main(void)
{
    static volatile uint32_t ram;
    uint32_t handled;

    pic_init();
    apic_enable();
    set_gate(VECTOR, bench_irq, 0, 0);
    check_answers();
    BENCH("loop", );
    BENCH("rdtsc", rdtsc());
    BENCH("cpuid", uint32_t a = 0, b, c = 0, d; asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)));
    BENCH("cpuid-1", uint32_t a = 1, b, c = 0, d; asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)));
    BENCH("rdmsr-apic-base", rdmsr(0x1b));
    BENCH("rdmsr-tsc", rdmsr(0x10));
    BENCH("wrmsr-efer", wrmsr(0xc0000080, GUEST_BITS == 64 ? 0x500 : 0));
    BENCH("in-pic", inb(0x21));
    BENCH("out-unused", outb(0x2f0, 0));
    BENCH("in-uart-status", inb(0x3fd));
    BENCH("out-80", outb(0x80, 0));
    BENCH("lapic-read", mmio_read(LAPIC + APIC_ID));
    BENCH("tpr-write", mmio_write(LAPIC + APIC_TPR, 0));
    BENCH("hpet-read", mmio_read(HPET + 0xf0));
    BENCH("ioapic-read", mmio_read(IOAPIC + 0x10));
    BENCH("unclaimed-mmio", mmio_read(UNCLAIMED));
    BENCH("ram-read", (void)ram);
    handled = bench_irq_count;
    sti();
    BENCH("self-ipi", self_ipi());
    EQUAL("self-ipis handled", bench_irq_count - handled, ROUNDS * LOOPS + 1);
    mmio_write(LAPIC + APIC_TDCR, 0xb);
    mmio_write(LAPIC + APIC_LVTT, VECTOR);
    BENCH("one-shot", one_shot());
    EQUAL("timer interrupts handled", bench_irq_count - handled, 2 * (ROUNDS * LOOPS + 1));
    cli();
    first_touch();
    return 0;
}
