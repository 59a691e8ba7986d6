/* A guest without manners: random ports, MSRs and addresses, odd sizes, strings over devices, absurd programming of every timer.  It must come through. */
#include "lib/guest.h"

enum { ROUNDS = 20000 };
static uint64_t state = 88172645463325252ull;
static unsigned pm_base;

static uint32_t rnd(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state >> 16;
}

/* Ports that would end the machine in an orderly way: that is not the point here. */
static bool ends_machine(uint16_t p)
{
    return (p >= 0xf1 && p <= 0xf7) || (p >= 0x5f && p <= 0x64) || (p >= 0x8f && p <= 0x92) || (p >= 0xaf && p <= 0xb3) || (p >= 0xcf5 && p <= 0xcff) || (p >= 0x3f5 && p <= 0x3ff) ||
        (p >= 0x500 && p <= 0x520) || (p >= 0x600 && p <= 0x680) || (p + 4u > pm_base && p < pm_base + 0x80u);
}

static void ports(void)
{
    for (unsigned n = 0; n < ROUNDS; n++) {
        uint16_t p = n & 1 ? rnd() : rnd() & 0x3ff;
        uint32_t v = rnd();
        if (!ends_machine(p))
            switch (n % 3) {
            case 0: outb(p, v); break;
            case 1: outw(p, v); break;
            case 2: outl(p, v); break;
            }
        switch (rnd() % 3) {
        case 0: (void)inb(p); break;
        case 1: (void)inw(p); break;
        default: (void)inl(p);
        }
    }
    static uint8_t buf[8192];
    for (unsigned n = 0; n < 200; n++) {
        ulong d = (ulong)buf + rnd() % 4096, c = rnd() % 1000;
        uint16_t p = rnd();
        asm volatile("rep insl" : "+D"(d), "+c"(c) : "d"(p) : "memory");
    }
    pic_init();
    CHECK("ports", true);
}

static void msrs(void)
{
    unsigned ok = 0;

    for (unsigned n = 0; n < ROUNDS; n++) {
        static const uint32_t bases[] = { 0, 0xc0000000, 0xc0010000, 0xc0011000, 0x40000000, 0x4b564d00, 0x800, 0x200, 0x400 };
        uint32_t msr = n & 1 ? rnd() : bases[rnd() % ARRAY_SIZE(bases)] + (rnd() & 0x3ff);
        TRY("rdmsr", :: "c"(msr) : "eax", "edx");
        ok += TRAP.vector == -1;
        /* Not what the guest itself stands on: APIC base, EFER, segment bases, and TSC for the clock. */
        if (msr == 0x1b || msr == 0x10 || msr == 0x3b || (msr & ~0x103u) == 0xc0000000 || msr == 0xc0000080)
            continue;
        TRY("wrmsr", :: "c"(msr), "a"(rnd()), "d"(rnd() & (n & 2 ? 0 : ~0u)) : "memory");
    }
    wrmsr(0x4b564d01, 0);
    CHECK("msrs", ok > 10);
}

static void addresses(void)
{
    for (unsigned n = 0; n < ROUNDS; n++) {
        static const uint32_t bases[] = { LAPIC, IOAPIC, HPET, 0xfea00000, 0xfed40000, 0xffc00000, 0xe0000000 };
        ulong a = n & 1 ? 0xf0000000 + (rnd() & 0x0ffffff8) : bases[rnd() % ARRAY_SIZE(bases)] + (rnd() & 0xff8);
        volatile uint8_t *p = (volatile uint8_t *)(a + (n & 2 ? rnd() & 7 : 0));
        uint32_t v = rnd();
        if ((a & 0xfffff000) == LAPIC && ((a & 0xff0) == APIC_ICR || ((a & 0xff0) >= APIC_LVTT && (a & 0xff0) <= APIC_LVTERR)))
            continue;                   /* an INIT at itself */
        if ((a & 0xffff0000) == IOAPIC)
            v |= 0x10000;               /* likewise, by a pin: only masked ones */
        switch (rnd() % 8) {
        case 0: (void)*p; break;
        case 1: *p = v; break;
        case 2: (void)*(volatile uint16_t *)p; break;
        case 3: *(volatile uint16_t *)p = v; break;
        case 4: (void)*(volatile uint32_t *)p; break;
        case 5: *(volatile uint32_t *)p = v; break;
        case 6: if ((a & 0xffff0000) != IOAPIC) asm volatile("lock xaddl %k0, %1" : "+r"(a), "+m"(*(volatile uint32_t *)p)); break;
        default: asm volatile("movups %0, %%xmm0; movups %%xmm0, %0" : "+m"(*p));
        }
    }
    for (unsigned pin = 0; pin < 24; pin++)
        ioapic_write(0x10 + 2 * pin, 0x10000);
    apic_enable();
    CHECK("addresses", true);
}

/* Strings from device to device, over megabytes. */
static void strings(void)
{
    ulong s = HPET, d = IOAPIC, c = 5000;

    asm volatile("rep movsb" : "+S"(s), "+D"(d), "+c"(c) :: "memory");
    d = 0xfeb00000, c = 100000;
    asm volatile("rep stosl" : "+D"(d), "+c"(c) : "a"(0) : "memory");
    CHECK("strings", true);
}

/* Timers as fast as they go, all at once, handled or not.  A slow CPU may do nothing but handle them: so the end is seen in the handler, too. */
static uint64_t storm_end;

static void quiet(void)
{
    apic_write(APIC_LVTT, 0x10000);
    mmio_write(HPET + 0x10, 0);
    mmio_write(HPET + 0x100, 0);
    for (unsigned pin = 0; pin < 24; pin++)
        ioapic_write(0x10 + 2 * pin, 0x10000);
}

static void storm_irq(struct frame *f)
{
    count_irq(f);
    if (rdtsc() >= storm_end) {
        quiet();
        storm_end += tsc_hz();
    }
}

static void timers(void)
{
    cli();
    for (unsigned v = 0x20; v < 0x100; v++)      /* and what random programming left pending below */
        set_handler(v, storm_irq);
    for (unsigned v = 0x12; v < 0x20; v++)
        set_handler(v, storm_irq);
    set_handler(2, count_only);
    uint64_t until = rdtsc() + tsc_hz() / 4;
    storm_end = until;
    apic_enable();
    apic_write(APIC_TDCR, 0xb);
    apic_write(APIC_LVTT, 0x20080);
    apic_write(APIC_TICR, 1);
    outb(0x43, 0x34), outb(0x40, 1), outb(0x40, 0);
    for (unsigned pin = 0; pin < 24; pin++)
        ioapic_route(pin, 0x90 + pin, apic_id());
    mmio_write(HPET + 0x10, 3);
    mmio_write(HPET + 0x108, 1);
    mmio_write(HPET + 0x100, 0x4c | 0x100);
    mmio_write(HPET + 0x108, 1);
    while (rdtsc() < until) {
        sti();
        apic_ipi(0, 0x400a0);
        cli();
    }
    quiet();
    CHECK("timer-storm", irq_count[0xa0] > 0);
}

/* Any leaf, known or not, answers twice the same. */
static void cpuids(void)
{
    unsigned differ = 0;

    for (unsigned n = 0; n < ROUNDS; n++) {
        uint32_t leaf = n & 1 ? rnd() : (rnd() & 3) << 30 | (rnd() & 0x3f), sub = rnd() & 0xff, r[4], again[4];
        cpuid(leaf, sub, r);
        cpuid(leaf, sub, again);
        if (memcmp(r, again, sizeof r) && !differ++)
            print("  leaf %x subleaf %x\n", leaf, sub);
    }
    EQUAL("cpuid-stable", differ, 0);
}

static int rdmsr_or_fault(uint32_t msr, uint64_t *val)
{
    uint32_t lo, hi;
    TRY("rdmsr", : "=a"(lo), "=d"(hi) : "c"(msr));
    *val = lo | (uint64_t)hi << 32;
    return TRAP.vector;
}

/* What one MSR answers does not depend on the hour: the verdicts on it stay, and a value that it took and gave back it gives back again.  Clocks excepted. */
static void msrs_stable(void)
{
    static const uint32_t bases[] = { 0, 0x100, 0x200, 0x400, 0xc0000000, 0xc0000080, 0xc0000100, 0xc0010000, 0xc0011000, 0x4b564d00 };
    unsigned differ = 0, known = 0;

    for (unsigned b = 0; b < ARRAY_SIZE(bases); b++)
        for (uint32_t msr = bases[b]; msr < bases[b] + 0x80; msr++) {
            uint64_t one, two;
            int first = rdmsr_or_fault(msr, &one), second = rdmsr_or_fault(msr, &two);
            bool clock = msr == 0x10 || msr == 0x3b;
            if (!clock && first == -1) {
                TRY("wrmsr", :: "c"(msr), "a"((uint32_t)one), "d"((uint32_t)(one >> 32)) : "memory");     /* what it said itself, or a fault */
                second = rdmsr_or_fault(msr, &two);
            }
            known += first == -1;
            if ((first != second || (first == -1 && !clock && one != two)) && !differ++)
                print("  MSR %x: %d %llx, then %d %llx\n", msr, first, (unsigned long long)one, second, (unsigned long long)two);
        }
    EQUAL("msr-stable", differ, 0);
    CHECK("msr-known", known > 30);
}

int main(void)
{
    outl(0xcf8, 0x80000000 | 31 << 11 | 0x40);
    pm_base = inl(0xcfc) & 0xff80;
    pic_init();
    apic_enable();
    cpuids();
    msrs_stable();
    msrs();
    ports();
    addresses();
    strings();
    timers();
    return 0;
}
