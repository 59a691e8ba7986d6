/* Clocks and timers: do they agree, do they fire, once or again, and not when masked.  Tolerances are wide: the machine may be a busy emulator. */
#include "lib/guest.h"

enum { VEC_PIT = 0x20, VEC_LAPIC = 0x52, VEC_HPET = 0x53, VEC_IOPIT = 0x54 };

static void eoi_both(struct frame *f)
{
    irq_count[f->vector]++;
    outb(0x20, 0x20);
}

/* got within a factor of about 1.6 of want */
static void about(const char *name, uint64_t got, uint64_t want)
{
    report(name, got * 8 >= want * 5 && got * 5 <= want * 8, "%llu instead of about %llu", (unsigned long long)got, (unsigned long long)want);
}

static uint32_t pci_read(unsigned dev, unsigned fn, unsigned reg)
{
    outl(0xcf8, 0x80000000 | dev << 11 | fn << 8 | reg);
    return inl(0xcfc);
}

static void clocks_agree(void)
{
    uint64_t hz = tsc_hz(), t0, femto;
    uint32_t h0, h1, pm = pci_read(31, 0, 0x40) & 0xff80;

    report("tsc", hz > 10000000, "%llu Hz", (unsigned long long)hz);
    print("TSC %llu Hz\n", (unsigned long long)hz);
    bool forward = true;
    for (unsigned n = 0; n < 1000; n++) {
        t0 = rdtsc();
        cpuid_reg(0, 0, 0);
        forward = forward && rdtsc() > t0;
    }
    CHECK("tsc-forward", forward);
    femto = mmio_read(HPET + 4);
    CHECK("hpet-period", femto > 0 && femto <= 100000000);
    mmio_write(HPET + 0x10, 1);
    h0 = mmio_read(HPET + 0xf0);
    delay_us(20000);
    h1 = mmio_read(HPET + 0xf0);
    about("hpet-rate", mul_div((uint64_t)(h1 - h0) * femto, 1, 1000000000), 20000);
    if (pm && pm != 0xff80) {
        h0 = inl(pm + 8) & 0xffffff;
        delay_us(20000);
        h1 = inl(pm + 8) & 0xffffff;
        about("pm-timer-rate", mul_div(h1 - h0, 1000000, 3579545), 20000);
    }
    uint8_t low, high;
    outb(0x43, 0x34), outb(0x40, 0), outb(0x40, 0);             /* mode 2, 65536 */
    outb(0x43, 0x00), low = inb(0x40), high = inb(0x40);
    h0 = low | high << 8;
    delay_us(5000);
    outb(0x43, 0x00), low = inb(0x40), high = inb(0x40);
    h1 = low | high << 8;
    about("pit-rate", (h0 - h1) & 0xffff, 5966);
}

static void pit_interrupts(void)
{
    set_handler(VEC_PIT, eoi_both);
    set_handler(VEC_IOPIT, count_irq);
    apic_write(APIC_LVT0, 0x700);                               /* ExtINT */
    outb(0x43, 0x34), outb(0x40, 1193 & 0xff), outb(0x40, 1193 >> 8);   /* 1 kHz */
    outb(0x21, 0xfe);
    sti();
    bool came = wait_for(&irq_count[VEC_PIT], 50, 500);
    report("pit-pic", came, "%u interrupts", irq_count[VEC_PIT]);
    outb(0x21, 0xff);
    delay_us(5000);
    unsigned before = irq_count[VEC_PIT];
    delay_us(10000);
    EQUAL("pit-pic-masked", irq_count[VEC_PIT], before);
    apic_write(APIC_LVT0, 0x10000);
    /* Through the IOAPIC, pin 2 by the usual override. */
    ioapic_route(2, VEC_IOPIT, apic_id());
    came = wait_for(&irq_count[VEC_IOPIT], 20, 500);
    report("pit-ioapic", came, "%u interrupts", irq_count[VEC_IOPIT]);
    ioapic_write(0x14, 0x10000);
    delay_us(3000);
    before = irq_count[VEC_IOPIT];
    delay_us(10000);
    EQUAL("pit-ioapic-masked", irq_count[VEC_IOPIT], before);
    /* One shot: mode 0. */
    ioapic_route(2, VEC_IOPIT, apic_id());
    outb(0x43, 0x30), outb(0x40, 1193 & 0xff), outb(0x40, 1193 >> 8);
    irq_count[VEC_IOPIT] = 0;
    delay_us(20000);
    EQUAL("pit-mode-0-once", irq_count[VEC_IOPIT], 1);
    ioapic_write(0x14, 0x10000);
    cli();
}

static void lapic_timer(const char *mode)
{
    uint32_t per_10ms, c0, c1;
    char name[40];
#define NAME(s) (memcpy(name, s, sizeof s), memcpy(name + sizeof s - 1, mode, 6), name)

    set_handler(VEC_LAPIC, count_irq);
    irq_count[VEC_LAPIC] = 0;
    apic_write(APIC_TDCR, 0xb);
    apic_write(APIC_LVTT, 0x10000 | VEC_LAPIC);
    apic_write(APIC_TICR, 0xffffffff);
    c0 = apic_read(APIC_TCCR);
    delay_us(10000);
    c1 = apic_read(APIC_TCCR);
    per_10ms = c0 - c1;
    report(NAME("lapic-counts"), per_10ms > 1000, "%u in 10 ms", per_10ms);
    print("LAPIC timer %u0000 Hz\n", per_10ms / 100);
    apic_write(APIC_TDCR, 0x3);                                 /* by 16 */
    apic_write(APIC_TICR, 0xffffffff);
    c0 = apic_read(APIC_TCCR);
    delay_us(10000);
    about(NAME("lapic-divider"), c0 - apic_read(APIC_TCCR), per_10ms / 16);
    apic_write(APIC_TDCR, 0xb);
    sti();
    apic_write(APIC_TICR, per_10ms / 10);                       /* still masked */
    delay_us(5000);
    EQUAL(NAME("lapic-masked"), irq_count[VEC_LAPIC], 0);
    EQUAL(NAME("lapic-expired"), apic_read(APIC_TCCR), 0);
    apic_write(APIC_LVTT, VEC_LAPIC);
    apic_write(APIC_TICR, per_10ms / 10);
    CHECK(NAME("lapic-one-shot"), wait_for(&irq_count[VEC_LAPIC], 1, 500));
    delay_us(5000);
    EQUAL(NAME("lapic-one-shot-once"), irq_count[VEC_LAPIC], 1);
    apic_write(APIC_LVTT, 0x20000 | VEC_LAPIC);
    apic_write(APIC_TICR, per_10ms / 10);                       /* 1 kHz */
    bool came = wait_for(&irq_count[VEC_LAPIC], 31, 500);
    report(NAME("lapic-periodic"), came, "%u", irq_count[VEC_LAPIC]);
    apic_write(APIC_TICR, 0);
    delay_us(2000);
    unsigned before = irq_count[VEC_LAPIC];
    delay_us(5000);
    EQUAL(NAME("lapic-stopped"), irq_count[VEC_LAPIC], before);
    if (cpuid_reg(1, 0, 2) >> 24 & 1) {
        apic_write(APIC_LVTT, 0x40000 | VEC_LAPIC);
        irq_count[VEC_LAPIC] = 0;
        uint64_t due = rdtsc() + mul_div(tsc_hz(), 1, 200);
        wrmsr(0x6e0, due);
        EQUAL(NAME("deadline-armed"), rdmsr(0x6e0), due);
        CHECK(NAME("deadline-fires"), wait_for(&irq_count[VEC_LAPIC], 1, 500));
        CHECK(NAME("deadline-not-early"), rdtsc() >= due);
        EQUAL(NAME("deadline-disarmed"), rdmsr(0x6e0), 0);
        wrmsr(0x6e0, rdtsc() - 1);                              /* past: at once */
        CHECK(NAME("deadline-past"), wait_for(&irq_count[VEC_LAPIC], 2, 500));
        wrmsr(0x6e0, rdtsc() + mul_div(tsc_hz(), 1, 200));
        wrmsr(0x6e0, 0);
        delay_us(10000);
        EQUAL(NAME("deadline-withdrawn"), irq_count[VEC_LAPIC], 2);
    }
    apic_write(APIC_LVTT, 0x10000);
    cli();
}

static void hpet_interrupts(void)
{
    uint32_t routes = mmio_read(HPET + 0x104), femto = mmio_read(HPET + 4);
    unsigned pin = 0, one_ms = (unsigned)mul_div(1000000000000, 1, femto);

    while (pin < 24 && !(routes >> pin & 1))
        pin++;
    if (pin == 24) {
        report("hpet-route", false, "no pin in %x", routes);
        return;
    }
    set_handler(VEC_HPET, count_irq);
    ioapic_route(pin, VEC_HPET, apic_id());
    mmio_write(HPET + 0x10, 1);
    sti();
    mmio_write(HPET + 0x100, pin << 9 | 4 | 0x100);             /* edge, enabled, 32-bit */
    mmio_write(HPET + 0x108, mmio_read(HPET + 0xf0) + 5 * one_ms);
    CHECK("hpet-one-shot", wait_for(&irq_count[VEC_HPET], 1, 500));
    delay_us(12000);
    EQUAL("hpet-once", irq_count[VEC_HPET], 1);
    if (mmio_read(HPET + 0x100) & 0x10) {
        mmio_write(HPET + 0x100, pin << 9 | 4 | 0x100 | 8 | 0x40);      /* periodic, set the accumulator */
        mmio_write(HPET + 0x108, mmio_read(HPET + 0xf0) + one_ms);
        mmio_write(HPET + 0x108, one_ms);
        bool came = wait_for(&irq_count[VEC_HPET], 21, 500);
        report("hpet-periodic", came, "%u", irq_count[VEC_HPET]);
    }
    mmio_write(HPET + 0x100, 0);
    ioapic_write(0x10 + 2 * pin, 0x10000);
    cli();
}

int main(void)
{
    pic_init();
    apic_enable();
    clocks_agree();
    pit_interrupts();
    lapic_timer("-mmio");
    hpet_interrupts();
    if (cpuid_reg(1, 0, 2) >> 21 & 1) {
        apic_enable_x2();
        lapic_timer("-msr ");
    }
    return 0;
}
