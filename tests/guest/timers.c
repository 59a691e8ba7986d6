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

static uint16_t pm_port;
static uint32_t read_hpet(void) { return mmio_read(HPET + 0xf0); }
static uint32_t read_pm(void) { return inl(pm_port); }
static uint32_t read_pit(void)          /* counts down */
{
    uint8_t low, high;

    outb(0x43, 0x00), low = inb(0x40), high = inb(0x40);
    return -(low | high << 8);
}

/* The same stretch of time by a clock of `bits` bits with a period of femto seconds and by the TSC, which is read on both sides of each reading: the clock's
 * answer must lie between the shortest and the longest stretch, give or take 5 %, however long a busy host keeps us waiting in between. */
static void pace(const char *name, uint32_t (*read)(void), unsigned bits, uint32_t femto)
{
    uint64_t t0, t1, t2, t3, ns, low, high, wrap = mul_div(1ull << bits, femto, 1000000);
    uint32_t c0, c1;

    for (unsigned tries = 0; tries < 50; tries++) {
        t0 = rdtsc(), c0 = read(), t1 = rdtsc();
        delay_us(5000);
        t2 = rdtsc(), c1 = read(), t3 = rdtsc();
        low = mul_div(t2 - t1, 1000000000, tsc_hz()), high = mul_div(t3 - t0, 1000000000, tsc_hz());
        if (high < wrap)
            break;
    }
    ns = mul_div((c1 - c0) & (uint32_t)((1ull << bits) - 1), femto, 1000000);
    report(name, ns * 20 >= low * 19 && ns * 20 <= high * 21, "%llu ns, not between %llu and %llu", (unsigned long long)ns, (unsigned long long)low, (unsigned long long)high);
}

static void clocks_agree(void)
{
    uint64_t hz = tsc_hz(), t0, femto;
    uint32_t pm = pci_read(31, 0, 0x40) & 0xff80;

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
    pace("hpet-rate", read_hpet, 32, femto);
    if (pm && pm != 0xff80) {
        pm_port = pm + 8;
        pace("pm-timer-rate", read_pm, 24, 279365115);
    }
    outb(0x43, 0x34), outb(0x40, 0), outb(0x40, 0);             /* mode 2, 65536 */
    pace("pit-rate", read_pit, 16, 838095110);
}

static void pit_interrupts(void)
{
    set_handler(VEC_PIT, eoi_both);
    set_handler(VEC_IOPIT, count_irq);
    apic_write(APIC_LVT0, 0x700);                               /* ExtINT */
    outb(0x43, 0x34), outb(0x40, 1193 & 0xff), outb(0x40, 1193 >> 8);   /* 1 kHz */
    outb(0x21, 0xfe);
    sti();
    bool came = wait_for(&irq_count[VEC_PIT], 50, 5000);
    report("pit-pic", came, "%u interrupts", irq_count[VEC_PIT]);
    outb(0x21, 0xff);
    delay_us(5000);
    unsigned before = irq_count[VEC_PIT];
    delay_us(10000);
    EQUAL("pit-pic-masked", irq_count[VEC_PIT], before);
    apic_write(APIC_LVT0, 0x10000);
    /* Through the IOAPIC, pin 2 by the usual override. */
    ioapic_route(2, VEC_IOPIT, apic_id());
    came = wait_for(&irq_count[VEC_IOPIT], 20, 5000);
    report("pit-ioapic", came, "%u interrupts", irq_count[VEC_IOPIT]);
    ioapic_write(0x14, 0x10000);
    delay_us(3000);
    before = irq_count[VEC_IOPIT];
    delay_us(10000);
    EQUAL("pit-ioapic-masked", irq_count[VEC_IOPIT], before);
    /* One shot: mode 0. */
    ioapic_route(2, VEC_IOPIT, apic_id());
    outb(0x43, 0x30);
    irq_count[VEC_IOPIT] = 0;
    outb(0x40, 1193 & 0xff), outb(0x40, 1193 >> 8);
    wait_for(&irq_count[VEC_IOPIT], 1, 5000);
    delay_us(20000);
    EQUAL("pit-mode-0-once", irq_count[VEC_IOPIT], 1);
    ioapic_write(0x14, 0x10000);
    cli();
}

/* Counts of the LAPIC timer in 10 ms with divider `d`: of five tries the one least disturbed. */
static uint32_t lapic_rate(unsigned d)
{
    uint64_t t0, t1, t2, t3, least = ~0ull;
    uint32_t c0, c1, rate = 0;

    apic_write(APIC_TDCR, d);
    for (unsigned n = 0; n < 5; n++) {
        apic_write(APIC_TICR, 0xffffffff);
        t0 = rdtsc(), c0 = apic_read(APIC_TCCR), t1 = rdtsc();
        delay_us(5000);
        t2 = rdtsc(), c1 = apic_read(APIC_TCCR), t3 = rdtsc();
        if ((t3 - t2) + (t1 - t0) < least) {
            least = (t3 - t2) + (t1 - t0);
            rate = mul_div(tsc_hz(), c0 - c1, (t2 - t1) * 100);
        }
    }
    return rate;
}

static void lapic_timer(const char *mode)
{
    uint32_t per_10ms;
    char name[40];
#define NAME(s) (memcpy(name, s, sizeof s), memcpy(name + sizeof s - 1, mode, 6), name)

    set_handler(VEC_LAPIC, count_irq);
    irq_count[VEC_LAPIC] = 0;
    apic_write(APIC_LVTT, 0x10000 | VEC_LAPIC);
    per_10ms = lapic_rate(0xb);
    report(NAME("lapic-counts"), per_10ms > 1000, "%u in 10 ms", per_10ms);
    print("LAPIC timer %u0000 Hz\n", per_10ms / 100);
    about(NAME("lapic-divider"), lapic_rate(0x3), per_10ms / 16);
    apic_write(APIC_TDCR, 0xb);
    sti();
    apic_write(APIC_TICR, per_10ms / 10);                       /* still masked */
    delay_us(5000);
    EQUAL(NAME("lapic-masked"), irq_count[VEC_LAPIC], 0);
    EQUAL(NAME("lapic-expired"), apic_read(APIC_TCCR), 0);
    apic_write(APIC_LVTT, VEC_LAPIC);
    apic_write(APIC_TICR, per_10ms / 10);
    CHECK(NAME("lapic-one-shot"), wait_for(&irq_count[VEC_LAPIC], 1, 5000));
    delay_us(5000);
    EQUAL(NAME("lapic-one-shot-once"), irq_count[VEC_LAPIC], 1);
    apic_write(APIC_LVTT, 0x20000 | VEC_LAPIC);
    apic_write(APIC_TICR, per_10ms / 10);                       /* 1 kHz */
    bool came = wait_for(&irq_count[VEC_LAPIC], 31, 5000);
    report(NAME("lapic-periodic"), came, "%u", irq_count[VEC_LAPIC]);
    apic_write(APIC_TICR, 0);
    delay_us(2000);
    unsigned before = irq_count[VEC_LAPIC];
    delay_us(5000);
    EQUAL(NAME("lapic-stopped"), irq_count[VEC_LAPIC], before);
    if (cpuid_reg(1, 0, 2) >> 24 & 1) {
        apic_write(APIC_LVTT, 0x40000 | VEC_LAPIC);
        irq_count[VEC_LAPIC] = 0;
        uint64_t due = rdtsc() + tsc_hz() * 5;                  /* far enough to be read back on a busy host */
        wrmsr(0x6e0, due);
        EQUAL(NAME("deadline-armed"), rdmsr(0x6e0), due);
        due = rdtsc() + mul_div(tsc_hz(), 1, 200);
        wrmsr(0x6e0, due);
        CHECK(NAME("deadline-fires"), wait_for(&irq_count[VEC_LAPIC], 1, 5000));
        CHECK(NAME("deadline-not-early"), rdtsc() >= due);
        EQUAL(NAME("deadline-disarmed"), rdmsr(0x6e0), 0);
        wrmsr(0x6e0, rdtsc() - 1);                              /* past: at once */
        CHECK(NAME("deadline-past"), wait_for(&irq_count[VEC_LAPIC], 2, 5000));
        wrmsr(0x6e0, rdtsc() + mul_div(tsc_hz(), 1, 20));
        wrmsr(0x6e0, 0);
        delay_us(60000);
        EQUAL(NAME("deadline-withdrawn"), irq_count[VEC_LAPIC], 2);
    }
    apic_write(APIC_LVTT, 0x10000);
    cli();
}

static void hpet_interrupts(void)
{
    uint32_t routes = mmio_read(HPET + 0x104), femto = mmio_read(HPET + 4);
    unsigned pin = 0, one_ms = (unsigned)mul_div(1000000000000, 1, femto);

    while (pin < 24 && (pin == 2 || !(routes >> pin & 1)))     /* not the PIT's */
        pin++;
    if (pin == 24) {
        report("hpet-route", false, "no pin in %x", routes);
        return;
    }
    set_handler(VEC_HPET, count_irq);
    ioapic_route(pin, VEC_HPET, apic_id());
    mmio_write(HPET + 0x10, 1);
    sti();
    mmio_write(HPET + 0x100, pin << 9 | 0x100);                 /* edge, 32-bit; enabled once the comparator lies ahead */
    mmio_write(HPET + 0x108, mmio_read(HPET + 0xf0) + 50 * one_ms);
    mmio_write(HPET + 0x100, pin << 9 | 4 | 0x100);
    CHECK("hpet-one-shot", wait_for(&irq_count[VEC_HPET], 1, 5000));
    delay_us(60000);
    EQUAL("hpet-once", irq_count[VEC_HPET], 1);
    if (mmio_read(HPET + 0x100) & 0x10) {
        mmio_write(HPET + 0x100, pin << 9 | 4 | 0x100 | 8 | 0x40);      /* periodic, set the accumulator */
        mmio_write(HPET + 0x108, mmio_read(HPET + 0xf0) + 50 * one_ms);   /* the first must not be past already */
        mmio_write(HPET + 0x108, one_ms);
        bool came = wait_for(&irq_count[VEC_HPET], 21, 5000);
        report("hpet-periodic", came, "%u; config %x comparator %u counter %u, 1 ms %u", irq_count[VEC_HPET], mmio_read(HPET + 0x100), mmio_read(HPET + 0x108),
               mmio_read(HPET + 0xf0), one_ms);
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
