/*
 * Every instruction form that kernels use on devices, once on RAM and once on a device register with the same start values: what is read, what is written and
 * the flags must agree.  Registers that hold only some bits are learnt first.
 */
#include "lib/guest.h"
#include "lib/forms.h"

/* ---- Cells: a device register of 4 or 8 bytes; which bits it holds, and which access sizes it takes, is found out. ---- */
struct cell { const char *name; ulong addr; uint64_t mask; unsigned sizes /* bit per size */; };

static uint64_t load(ulong a, unsigned size)
{
    switch (size) {
    case 1: return *(volatile uint8_t *)a;
    case 2: return *(volatile uint16_t *)a;
    case 4: return *(volatile uint32_t *)a;
    }
    return *(volatile uint32_t *)a | (uint64_t)*(volatile uint32_t *)(a + 4) << 32;
}

static void store(ulong a, unsigned size, uint64_t v)
{
    switch (size) {
    case 1: *(volatile uint8_t *)a = v; break;
    case 2: *(volatile uint16_t *)a = v; break;
    case 4: *(volatile uint32_t *)a = v; break;
    default:
        *(volatile uint32_t *)a = v;
        *(volatile uint32_t *)(a + 4) = v >> 32;
    }
}

static unsigned run_cell(struct cell *c, unsigned *ran)
{
    static uint64_t ram[2] __attribute__((aligned(16)));
    static const uint64_t starts[] = { 0x8877665544332211, 0, ~0ull, 0x7fffffff80000000, 0x0102030480818283 };
    unsigned wrong = 0;

    for (const struct form *f = __start_forms; f < __stop_forms; f++) {
        if (!(c->sizes >> f->size & 1))
            continue;
        for (unsigned k = 0; k < ARRAY_SIZE(starts); k++) {
            uint64_t all = f->size == 8 ? ~0ull : (1ull << (8 * f->size)) - 1, start = starts[k], fixed, want;
            struct regs on_ram = { 0x11223344, 0xa5a5f00f + k, 0x01020304, 0x55667788, 2 | (k & 1 ? CF : 0) }, on_dev = on_ram;
            store(c->addr, f->size, start & c->mask);
            fixed = load(c->addr, f->size);             /* what it made of it is the start for RAM */
            ram[0] = fixed;
            ram[1] = 0;
            call_form(f->fn, &on_ram, ram);
            call_form(f->fn, &on_dev, (void *)c->addr);
            want = ((ram[0] & c->mask) | (fixed & ~c->mask)) & all;
            uint64_t got = load(c->addr, f->size) & all;
            ++*ran;
            if (got == want && on_ram.ax == on_dev.ax && on_ram.bx == on_dev.bx && on_ram.cx == on_dev.cx && on_ram.dx == on_dev.dx && !((on_ram.flags ^ on_dev.flags) & (f->flags | DF)))
                continue;
            if (wrong++ < 5)
                print("  %s: \"%s\" from %llx: got %llx want %llx; ax %lx/%lx bx %lx/%lx flags %lx/%lx\n", c->name, (const char *)(ulong)f->name, (unsigned long long)fixed,
                      (unsigned long long)got, (unsigned long long)want, on_dev.ax, on_ram.ax, on_dev.bx, on_ram.bx, on_dev.flags, on_ram.flags);
        }
    }
    return wrong;
}

static void test_cell(const char *name, ulong addr, unsigned sizes)
{
    struct cell c = { .name = name, .addr = addr, .sizes = sizes };
    unsigned widest = sizes & 0x100 ? 8 : sizes & 0x10 ? 4 : 1, ran = 0, wrong;
    uint64_t old = load(addr, widest), ones, zeros;

    store(addr, widest, ~0ull);
    ones = load(addr, widest);
    store(addr, widest, 0);
    zeros = load(addr, widest);
    c.mask = ones & ~zeros;
    wrong = run_cell(&c, &ran);
    store(addr, widest, old);
    report(name, c.mask && !wrong, "%u of %u wrong, bits held %llx", wrong, ran, (unsigned long long)c.mask);
}

/* PCI configuration space through ECAM: takes every access size. */
static uint32_t pci_read(unsigned dev, unsigned reg)
{
    outl(0xcf8, 0x80000000 | dev << 11 | reg);
    return inl(0xcfc);
}

static void ecam(void)
{
    ulong base = pci_read(0, 0x60) & 0xf0000000;
    uint32_t words[4], x[4];
    uint8_t bytes[64], header[64];

    if (pci_read(0, 0) != 0x29c08086 || !(pci_read(0, 0x60) & 1)) {
        print("  no ECAM here\n");
        return;
    }
    test_cell("ecam-interrupt-line", base + 0x3c, 1 << 1);
    for (unsigned n = 0; n < 4; n++)
        words[n] = mmio_read(base + 4 * n);
    EQUAL("ecam-id", words[0], 0x29c08086);
    asm volatile("movups (%0), %%xmm2; movups %%xmm2, (%1)" :: "r"(base), "r"(x) : "memory");
    CHECK("movups-from-device", !memcmp(x, words, 16));
    for (unsigned n = 0; n < 64; n++)
        header[n] = *(volatile uint8_t *)(base + n);
    CHECK("bytes-and-words-agree", !memcmp(header, words, 16));
    memcpy(bytes, (void *)base, 64);
    CHECK("rep-movsb-from-device", !memcmp(bytes, header, 64));
    memset(bytes, 0, 64);
    ulong s = base, d = (ulong)bytes, count = 16;
    asm volatile("rep movsl" : "+S"(s), "+D"(d), "+c"(count) :: "memory");
    CHECK("rep-movsl-from-device", !memcmp(bytes, header, 64) && s == base + 64 && d == (ulong)bytes + 64 && !count);
    s = base + 60, d = (ulong)bytes + 60, count = 16;
    memset(bytes, 0, 64);
    asm volatile("std; rep movsl; cld" : "+S"(s), "+D"(d), "+c"(count) :: "memory");
    CHECK("rep-movsl-downwards", !memcmp(bytes, header, 64));
    /* A word that straddles two registers, and a dword at an odd place. */
    CHECK("unaligned-word", *(volatile uint16_t *)(base + 3) == (header[3] | header[4] << 8));
    CHECK("unaligned-dword", *(volatile uint32_t *)(base + 1) == ((uint32_t)header[4] << 24 | header[3] << 16 | header[2] << 8 | header[1]));
    d = base, count = 64;
    s = (ulong)header;
    uint8_t below;
    asm volatile("repe cmpsb; setne %0" : "=r"(below), "+S"(s), "+D"(d), "+c"(count) :: "memory", "cc");
    CHECK("repe-cmpsb-with-device", !below && !count);
}

static void all(void)
{
    test_cell("hpet-comparator-0", HPET + 0x108, 1 << 4 | 1 << 8);
    test_cell("hpet-comparator-1", HPET + 0x128, 1 << 4 | 1 << 8);
    test_cell("lapic-lvt-error", LAPIC + APIC_LVTERR, 1 << 4);
    test_cell("lapic-spurious", LAPIC + APIC_SPIV, 1 << 4);
    test_cell("lapic-divide", LAPIC + APIC_TDCR, 1 << 4);
    test_cell("ioapic-index", IOAPIC, 1 << 4);
    ioapic_write(0x10 + 2 * 5, 0x10000);
    mmio_write(IOAPIC, 0x10 + 2 * 5);
    test_cell("ioapic-redirection", IOAPIC + 0x10, 1 << 4);
    ioapic_write(0x10 + 2 * 5, 0x10000);
    ecam();
    if (on_joist())
        EQUAL("unclaimed-reads-ones", mmio_read(0xfea00000), 0xffffffff);
    mmio_write(0xfea00000, 5);
}

int main(void)
{
    pic_mask_all();
    apic_enable();
    all();
    if (GUEST_BITS == 32) {             /* again through page tables */
        paging_on();
        all();
    }
    return 0;
}
