/* What the CPU looks like from inside: CPUID is consistent with itself and with what works, MSRs behave, the paravirtual clock runs. */
#include "lib/guest.h"

enum { EAX, EBX, ECX, EDX };

static bool rdmsr_faults(uint32_t msr)
{
    TRY("rdmsr", :: "c"(msr) : "eax", "edx");
    return TRAP.vector == 13;
}

static bool wrmsr_faults(uint32_t msr, uint64_t v)
{
    TRY("wrmsr", :: "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)));
    return TRAP.vector == 13;
}

static bool amd(void) { return cpuid_reg(0, 0, EBX) == 0x68747541; }

/* XCR0 takes what the architecture allows, and the sizes follow it. */
static void xsave(void)
{
    ulong cr4 = read_cr4();

    EQUAL("osxsave-off", cpuid_reg(1, 0, ECX) >> 27 & 1, 0);
    write_cr4(cr4 | 1 << 18);
    EQUAL("osxsave-on", cpuid_reg(1, 0, ECX) >> 27 & 1, 1);
    uint32_t lo, hi, all = cpuid_reg(0xd, 0, EAX);
    asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    EQUAL("xcr0-at-start", lo, 1);
    EQUAL("xsave-size-x87", cpuid_reg(0xd, 0, EBX), 576);
    asm volatile("xsetbv" :: "a"(all), "d"(0), "c"(0));
    EQUAL("xsave-size-all", cpuid_reg(0xd, 0, EBX), cpuid_reg(0xd, 0, ECX));
    TRY("xsetbv", :: "a"(all & ~1u), "d"(0), "c"(0));
    EQUAL("xcr0-without-x87", TRAP.vector, 13);
    TRY("xsetbv", :: "a"(all), "d"(0x40000000), "c"(0));
    EQUAL("xcr0-unknown-bit", TRAP.vector, 13);
    if (all & 4) {
        TRY("xsetbv", :: "a"(5), "d"(0), "c"(0));
        EQUAL("xcr0-avx-without-sse", TRAP.vector, 13);
    }
    asm volatile("xsetbv" :: "a"(1), "d"(0), "c"(0));
    write_cr4(cr4);
}

/* Instructions of features that this machine does not have, of either vendor.  Most of them exit whatever CPUID says. */
#define UNDEFINED(insn, ...) do { TRY(insn, :: __VA_ARGS__ : "memory"); EQUAL("undefined: " insn, TRAP.vector, 6); } while (0)

static void undefined(void)
{
    static uint64_t mem[4] __attribute__((aligned(4096)));

    UNDEFINED("vmxon (%0)", "r"(mem));
    UNDEFINED("vmxoff", "a"(0));
    UNDEFINED("vmclear (%0)", "r"(mem));
    UNDEFINED("vmptrld (%0)", "r"(mem));
    UNDEFINED("vmptrst (%0)", "r"(mem));
    UNDEFINED("vmread %0, %1", "r"(0ul), "r"(0ul));
    UNDEFINED("vmwrite %0, %1", "r"(0ul), "r"(0ul));
    UNDEFINED("vmlaunch", "a"(0));
    UNDEFINED("vmresume", "a"(0));
    UNDEFINED("vmfunc", "a"(0), "c"(0));
    UNDEFINED("invept (%0), %1", "r"(mem), "r"(1ul));
    UNDEFINED("invvpid (%0), %1", "r"(mem), "r"(1ul));
    UNDEFINED("getsec", "a"(0));
    UNDEFINED("encls", "a"(0));
    UNDEFINED("pconfig", "a"(0));
    UNDEFINED("rsm", "a"(0));
    UNDEFINED("vmrun", "a"(0));
    UNDEFINED("vmload", "a"(0));
    UNDEFINED("vmsave", "a"(0));
    UNDEFINED("stgi", "a"(0));
    UNDEFINED("clgi", "a"(0));
    UNDEFINED("skinit", "a"(0));
    UNDEFINED("invlpga", "a"(0), "c"(0));
}

static void features(void)
{
    uint32_t c1 = cpuid_reg(1, 0, ECX), d1 = cpuid_reg(1, 0, EDX), max = cpuid_reg(0, 0, EAX);

    CHECK("hypervisor-bit", c1 >> 31);
    CHECK("basics", (d1 & (1 << 0 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 12 | 1 << 16)) == (1 << 0 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 12 | 1 << 16));
    EQUAL("apic-id-leaf-1", cpuid_reg(1, 0, EBX) >> 24, apic_id());
    if (max >= 0xb) {
        EQUAL("apic-id-leaf-b", cpuid_reg(0xb, 0, EDX), apic_id());
        EQUAL("leaf-b-levels", cpuid_reg(0xb, 0, ECX) >> 8 & 0xff, 1);
        EQUAL("leaf-b-subleaf-echo", cpuid_reg(0xb, 5, ECX) & 0xff, 5);
    }
    EQUAL("leaf-1-again", cpuid_reg(1, 1234, ECX), c1);
    if (c1 >> 26 & 1)
        xsave();
    if (!on_joist())
        return;
    CHECK("no-vmx", !(c1 & 1 << 5));
    CHECK("no-monitor", !(c1 & 1 << 3));
    CHECK("x2apic-and-deadline", (c1 & (1 << 21 | 1 << 24)) == (1 << 21 | 1 << 24));
    CHECK("no-svm", !(cpuid_reg(0x80000001, 0, ECX) & 1 << 2));
    CHECK("no-pku-la57-cet", max < 7 || !(cpuid_reg(7, 0, ECX) & (1 << 3 | 1 << 16 | 1 << 7)));
    EQUAL("no-pmu", max >= 0xa ? cpuid_reg(0xa, 0, EAX) : 0, 0);
    EQUAL("arat", cpuid_reg(6, 0, EAX), 4);
    unsigned bits = cpuid_reg(0x80000008, 0, EAX) & 0xff;
    CHECK("physical-width", bits >= 36 && bits <= 52);
    TRY("vmcall", ::: "eax", "memory");
    CHECK("hypercall-defined", TRAP.vector == 6 || TRAP.vector == -1);
    TRY("monitor", :: "a"(&bits), "c"(0), "d"(0) : "memory");
    EQUAL("monitor-ud", TRAP.vector, 6);
    TRY("mwait", :: "a"(0), "c"(0) : "memory");
    EQUAL("mwait-ud", TRAP.vector, 6);
    TRY("rdpmc", :: "c"(0) : "eax", "edx");
    CHECK("rdpmc-defined", TRAP.vector == 13 || TRAP.vector == -1);
    TRY("wbinvd", ::: "memory");
    EQUAL("wbinvd", TRAP.vector, -1ull);
    TRY("invd", ::: "memory");
    EQUAL("invd", TRAP.vector, -1ull);
    undefined();
#ifdef __x86_64__
    if (amd())                          /* QEMU's software SVM does it, though CPUs do not */
        return;
    TRY("mov %0, %%cr0", :: "r"(read_cr0() & ~0x80000000ul) : "memory");
    EQUAL("paging-off-in-64-bit-mode", TRAP.vector, 13);
    TRY("mov %0, %%cr4", :: "r"(read_cr4() & ~0x20ul) : "memory");
    EQUAL("pae-off-in-64-bit-mode", TRAP.vector, 13);
#endif
}

static void msrs(void)
{
    uint64_t base = rdmsr(0x1b), pat = rdmsr(0x277), tsc;

    EQUAL("apic-base-address", base & 0xfffff000, LAPIC);
    CHECK("apic-base-boot-cpu", base & 0x100);
    EQUAL("pat-at-start", pat, 0x0007040600070406);
    wrmsr(0x277, 0x0007010600070406);
    EQUAL("pat-kept", rdmsr(0x277), 0x0007010600070406);
    wrmsr(0x277, pat);
    CHECK("mtrr-cap", (rdmsr(0xfe) & 0xff) >= 1);
    uint64_t def = rdmsr(0x2ff);
    wrmsr(0x2ff, 0xc06);
    EQUAL("mtrr-default-kept", rdmsr(0x2ff), 0xc06);
    wrmsr(0x2ff, def);
    wrmsr(0x26f, 0x0505050505050505);
    EQUAL("mtrr-fixed-kept", rdmsr(0x26f), 0x0505050505050505);
    wrmsr(0x202, 0xc0000000);
    wrmsr(0x203, 0xffc0000800);
    EQUAL("mtrr-variable-kept", rdmsr(0x203), 0xffc0000800);
    wrmsr(0x203, 0);
    wrmsr(0xc0000081, 0x1234567890abcdef);
    EQUAL("star-kept", rdmsr(0xc0000081), 0x1234567890abcdef);
    wrmsr(0x174, 0x10);
    EQUAL("sysenter-cs-kept", rdmsr(0x174), 0x10);
    if (cpuid_reg(0x80000001, 0, EDX) >> 27 & 1) {
        uint32_t aux;
        wrmsr(0xc0000103, 0x12345678);
        asm volatile("rdtscp" : "=c"(aux) :: "eax", "edx");
        EQUAL("tsc-aux-by-rdtscp", aux, 0x12345678);
        EQUAL("tsc-aux-kept", rdmsr(0xc0000103), 0x12345678);
    }
    if (!on_joist())
        return;
    tsc = rdtsc();
    CHECK("tsc-msr", rdmsr(0x10) >= tsc);
    wrmsr(0x10, 0);
    CHECK("tsc-written", rdtsc() < tsc || tsc < 1000000);
    CHECK("pat-bad-type", wrmsr_faults(0x277, 2));
    CHECK("mtrr-bad-type", wrmsr_faults(0x2ff, 0xc02));
    CHECK("mtrr-bad-fixed", wrmsr_faults(0x250, 7));
    CHECK("mtrr-beyond-width", wrmsr_faults(0x203, 1ull << 62));
    CHECK("efer-reserved", wrmsr_faults(0xc0000080, rdmsr(0xc0000080) | 1 << 17));
    CHECK("efer-svme", wrmsr_faults(0xc0000080, rdmsr(0xc0000080) | 1 << 12));
    CHECK("apic-base-reserved", wrmsr_faults(0x1b, base | 1));
    CHECK("apic-base-x2-without-enable", wrmsr_faults(0x1b, (base & ~0x800ull) | 0x400));
    CHECK("x2apic-msrs-off", rdmsr_faults(0x802));
    CHECK("unknown-read", rdmsr_faults(0x12345678));
    CHECK("unknown-write", wrmsr_faults(0x12345678, 0));
    CHECK("hsave-pa-hidden", rdmsr_faults(0xc0010117));
    CHECK("vmx-hidden", rdmsr_faults(0x480));
    CHECK("pred-cmd-write-only", rdmsr_faults(0x49));
    EQUAL("machine-check-banks", rdmsr(0x179) & 0xff, 0);
    wrmsr(0x3b, 5000);
    EQUAL("tsc-adjust-kept", rdmsr(0x3b), 5000);
    if (amd())
        CHECK("hwcr-tsc-freq-sel", rdmsr(0xc0010015) & 1 << 24);
    else
        EQUAL("feature-control-locked", rdmsr(0x3a) & 5, 1);
}

/* The pvclock page: even version, time that goes forward at the pace of the TSC. */
struct pvclock { volatile uint32_t version, pad; volatile uint64_t tsc, system; volatile uint32_t mul; volatile int8_t shift; volatile uint8_t flags; };

static uint64_t pvclock_ns(const struct pvclock *p)
{
    uint32_t v;
    uint64_t ns;

    do {
        v = p->version;
        uint64_t d = rdtsc() - p->tsc;
        d = p->shift >= 0 ? d << p->shift : d >> -p->shift;
        ns = p->system + (((d >> 32) * p->mul) + ((d & 0xffffffff) * p->mul >> 32));
        asm volatile("" ::: "memory");
    } while ((v & 1) || v != p->version);
    return ns;
}

static void clock(void)
{
    uint32_t features_bits;
    struct pvclock *p = alloc_pages(1);
    volatile uint32_t *wall = (volatile uint32_t *)((char *)p + 2048);

    if (!on_joist())
        return;
    features_bits = cpuid_reg(0x40000001, 0, EAX);
    CHECK("kvmclock-offered", features_bits & 8);
    wrmsr(0x4b564d01, (ulong)p | 1);
    /* Between TSC readings on both sides of each, however long a busy host holds us up. */
    uint64_t c0 = rdtsc(), t0 = pvclock_ns(p), c1 = rdtsc(), c2, c3, t1, low, high;
    delay_us(20000);
    c2 = rdtsc(), t1 = pvclock_ns(p), c3 = rdtsc();
    low = mul_div(c2 - c1, 1000000000, tsc_hz()), high = mul_div(c3 - c0, 1000000000, tsc_hz());
    report("kvmclock-pace", (t1 - t0) * 20 >= low * 19 && (t1 - t0) * 20 <= high * 21, "%llu ns, not between %llu and %llu", (unsigned long long)(t1 - t0), (unsigned long long)low, (unsigned long long)high);
    bool forward = true;
    for (unsigned n = 0; n < 10000; n++) {
        t0 = t1;
        t1 = pvclock_ns(p);
        forward = forward && t1 >= t0;
    }
    CHECK("kvmclock-forward", forward);
    wrmsr(0x4b564d00, (ulong)wall);
    CHECK("kvmclock-wall", !(wall[0] & 1) && wall[1] > 1700000000);
    wrmsr(0x4b564d01, 0);
}

int main(void)
{
    pic_mask_all();
    apic_enable();
    features();
    clock();
    msrs();
    return 0;
}
