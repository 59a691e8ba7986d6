/*
 * What an operation costs: RDTSC around loops, prints "BENCH name ticks-per-operation".  On a machine that counts one tick per executed instruction these are
 * instructions, the host's included.  The loop itself (printed as "loop") is not subtracted.
 */
#include "lib/guest.h"

enum { LOOPS = 200, TOUCH_BASE = 32 << 20, TOUCH_LEN = 32 << 20, VECTOR = 0x60 };
extern void bench_irq(void);
extern volatile uint32_t bench_irq_count;

/* Time of one operation, x10 for a decimal.  Once unmeasured: the first access builds translations. */
#define BENCH(name, ...) do { \
    { __VA_ARGS__; } \
    uint64_t t0_ = rdtsc(); \
    for (unsigned n_ = 0; n_ < LOOPS; n_++) { __VA_ARGS__; asm volatile("" ::: "memory"); } \
    result(name, rdtsc() - t0_, LOOPS); \
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

int main(void)
{
    static volatile uint32_t ram;

    pic_init();
    apic_enable();
    set_gate(VECTOR, bench_irq, 0, 0);
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
    BENCH("unclaimed-mmio", mmio_read(0xfea00000));
    BENCH("ram-read", (void)ram);
    sti();
    BENCH("self-ipi", self_ipi());
    mmio_write(LAPIC + APIC_TDCR, 0xb);
    mmio_write(LAPIC + APIC_LVTT, VECTOR);
    BENCH("one-shot", one_shot());
    cli();
    if (ram_top() >= TOUCH_BASE + TOUCH_LEN) {
        uint64_t t0 = rdtsc();
        for (ulong a = TOUCH_BASE; a < TOUCH_BASE + TOUCH_LEN; a += 4096)
            *(volatile uint32_t *)a = 1;
        result("first-touch-4k", rdtsc() - t0, TOUCH_LEN / 4096);
    }
    CHECK("bench", true);
    return 0;
}
