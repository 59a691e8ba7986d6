/* CPU instructions that C has no words for, and what this machine's CPUs can do.  Everything inline is callable from any context. */
#pragma once
#include "kernel/hw/msr.h"
#include "kernel/hw/x86.h"

/* ---- Exception table: a fault at `insn` goes on at `fixup` instead of panicking; trap.c walks the linker set `extable`. ---- */
struct extable_entry { uint64_t insn, fixup; };
#define EXTABLE(insn, fixup) ".pushsection extable,\"a\"\n.balign 8\n.quad " #insn "," #fixup "\n.popsection\n"

/* ---- MSRs ---- */
static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t lo, hi;
    __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
    return (uint64_t)hi << 32 | lo;
}
static inline void wrmsr(uint32_t msr, uint64_t v)
{
    __asm__ volatile("wrmsr" :: "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
/* For every MSR that is not architecturally promised: false when the CPU answers #GP. */
static inline bool rdmsr_safe(uint32_t msr, uint64_t *v)
{
    uint32_t lo = 0, hi = 0, bad = 1;
    __asm__ volatile("1: rdmsr\n xorl %2, %2\n 2:\n" EXTABLE(1b, 2b) : "+a"(lo), "+d"(hi), "+r"(bad) : "c"(msr) : "cc");
    *v = bad ? 0 : (uint64_t)hi << 32 | lo;
    return !bad;
}
static inline bool wrmsr_safe(uint32_t msr, uint64_t v)
{
    uint32_t bad = 1;
    __asm__ volatile("1: wrmsr\n xorl %0, %0\n 2:\n" EXTABLE(1b, 2b)
                     : "+r"(bad) : "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory", "cc");
    return !bad;
}

/* ---- Control registers ---- */
#define CR_ACCESSORS(n) \
    static inline uint64_t read_cr##n(void) { uint64_t v; __asm__ volatile("movq %%cr" #n ", %0" : "=r"(v) :: "memory"); return v; } \
    static inline void write_cr##n(uint64_t v) { __asm__ volatile("movq %0, %%cr" #n :: "r"(v) : "memory"); }
CR_ACCESSORS(0)
CR_ACCESSORS(2)
CR_ACCESSORS(3)
CR_ACCESSORS(4)
CR_ACCESSORS(8)

/* ---- Debug registers ---- */
#define DR_ACCESSORS(n) \
    static inline uint64_t read_dr##n(void) { uint64_t v; __asm__ volatile("movq %%db" #n ", %0" : "=r"(v)); return v; } \
    static inline void write_dr##n(uint64_t v) { __asm__ volatile("movq %0, %%db" #n :: "r"(v)); }
DR_ACCESSORS(0)
DR_ACCESSORS(1)
DR_ACCESSORS(2)
DR_ACCESSORS(3)
DR_ACCESSORS(6)
static inline uint64_t xgetbv(uint32_t n)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(n));
    return (uint64_t)hi << 32 | lo;
}
static inline void xsetbv(uint32_t n, uint64_t v)
{
    __asm__ volatile("xsetbv" :: "c"(n), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}

/* ---- TLB and caches ---- */
static inline void invlpg(const void *va) { __asm__ volatile("invlpg (%0)" :: "r"(va) : "memory"); }
static inline void tlb_flush_local(void)        /* this CPU, global pages too */
{
    uint64_t cr4 = read_cr4();
    if (cr4 & CR4_PGE) {
        write_cr4(cr4 & ~CR4_PGE);
        write_cr4(cr4);
    } else {
        write_cr3(read_cr3());
    }
}
static inline void wbinvd(void) { __asm__ volatile("wbinvd" ::: "memory"); }
static inline void clflush(const void *p) { __asm__ volatile("clflush (%0)" :: "r"(p) : "memory"); }

/* ---- CPUID, time stamp, pause ---- */
struct cpuid_regs { uint32_t eax, ebx, ecx, edx; };
static inline struct cpuid_regs cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_regs r;
    __asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
    return r;
}
static inline uint64_t rdtsc(void)
{
    uint32_t lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}
/* After all earlier loads; LFENCE is dispatch-serialising (mitigations.c sets DE_CFG on AMD CPUs that need it). */
static inline uint64_t rdtsc_ordered(void)
{
    uint32_t lo, hi;
    __asm__ volatile("lfence; rdtsc" : "=a"(lo), "=d"(hi) :: "memory");
    return (uint64_t)hi << 32 | lo;
}
static inline void cpu_relax(void) { __asm__ volatile("pause" ::: "memory"); }

/* ---- Ports ---- */
#define PORT_ACCESSORS(sfx, type) \
    static inline type in##sfx(uint16_t port) { type v; __asm__ volatile("in" #sfx " %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; } \
    static inline void out##sfx(uint16_t port, type v) { __asm__ volatile("out" #sfx " %0, %1" :: "a"(v), "Nd"(port) : "memory"); }
PORT_ACCESSORS(b, uint8_t)
PORT_ACCESSORS(w, uint16_t)
PORT_ACCESSORS(l, uint32_t)
static inline void ins_w(uint16_t port, void *buf, size_t n) { __asm__ volatile("rep insw" : "+D"(buf), "+c"(n) : "d"(port) : "memory"); }
static inline void outs_w(uint16_t port, const void *buf, size_t n) { __asm__ volatile("rep outsw" : "+S"(buf), "+c"(n) : "d"(port) : "memory"); }

/* ---- Memory-mapped registers: one access of exactly that width ---- */
#define MMIO_ACCESSORS(bits) \
    static inline uint##bits##_t mmio_read##bits(const volatile void *p) { return *(const volatile uint##bits##_t *)p; } \
    static inline void mmio_write##bits(volatile void *p, uint##bits##_t v) { *(volatile uint##bits##_t *)p = v; }
MMIO_ACCESSORS(8)
MMIO_ACCESSORS(16)
MMIO_ACCESSORS(32)
MMIO_ACCESSORS(64)

/* ---- Interrupt flag ---- */
static inline void irq_disable(void) { __asm__ volatile("cli" ::: "memory"); }
static inline void irq_enable(void) { __asm__ volatile("sti" ::: "memory"); }
/* Enable, sleep until an interrupt, in one: STI's shadow covers the HLT, so a wake-up cannot fall between. */
static inline void irq_enable_halt(void) { __asm__ volatile("sti; hlt" ::: "memory"); }
static inline uint64_t read_flags(void) { uint64_t f; __asm__ volatile("pushfq; popq %0" : "=r"(f) :: "memory"); return f; }
static inline bool irqs_enabled(void) { return read_flags() & RFLAGS_IF; }
static inline unsigned long irq_save(void) { unsigned long f = read_flags(); irq_disable(); return f; }
static inline void irq_restore(unsigned long f) { if (f & RFLAGS_IF) irq_enable(); }
static inline void cpu_halt_forever(void) { for (;;) __asm__ volatile("cli; hlt" ::: "memory"); }

/* ---- What the CPU offers.  Read once on the boot CPU; a CPU that lacks what the boot CPU has is reported and not started. ---- */
enum { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };
/* name, leaf, subleaf, register, bit, text as /proc/cpuinfo spells it */
#define CPU_FEATURES(X) \
    X(MTRR, 0x1, 0, EDX, 12, "mtrr") X(MCE, 0x1, 0, EDX, 7, "mce") X(MCA, 0x1, 0, EDX, 14, "mca") X(PGE, 0x1, 0, EDX, 13, "pge") \
    X(PAT, 0x1, 0, EDX, 16, "pat") X(CLFLUSH, 0x1, 0, EDX, 19, "clflush") X(FXSR, 0x1, 0, EDX, 24, "fxsr") X(SSE2, 0x1, 0, EDX, 26, "sse2") \
    X(HTT, 0x1, 0, EDX, 28, "ht") \
    X(MONITOR, 0x1, 0, ECX, 3, "monitor") X(VMX, 0x1, 0, ECX, 5, "vmx") X(CX16, 0x1, 0, ECX, 13, "cx16") X(PCID, 0x1, 0, ECX, 17, "pcid") \
    X(SSE42, 0x1, 0, ECX, 20, "sse4_2") X(X2APIC, 0x1, 0, ECX, 21, "x2apic") X(POPCNT, 0x1, 0, ECX, 23, "popcnt") \
    X(TSC_DEADLINE, 0x1, 0, ECX, 24, "tsc_deadline_timer") X(AES, 0x1, 0, ECX, 25, "aes") X(XSAVE, 0x1, 0, ECX, 26, "xsave") \
    X(AVX, 0x1, 0, ECX, 28, "avx") X(RDRAND, 0x1, 0, ECX, 30, "rdrand") X(HYPERVISOR, 0x1, 0, ECX, 31, "hypervisor") \
    X(ARAT, 0x6, 0, EAX, 2, "arat") \
    X(FSGSBASE, 0x7, 0, EBX, 0, "fsgsbase") X(TSC_ADJUST, 0x7, 0, EBX, 1, "tsc_adjust") X(SMEP, 0x7, 0, EBX, 7, "smep") \
    X(ERMS, 0x7, 0, EBX, 9, "erms") X(INVPCID, 0x7, 0, EBX, 10, "invpcid") X(AVX512F, 0x7, 0, EBX, 16, "avx512f") X(RDSEED, 0x7, 0, EBX, 18, "rdseed") \
    X(SMAP, 0x7, 0, EBX, 20, "smap") X(CLFLUSHOPT, 0x7, 0, EBX, 23, "clflushopt") X(UMIP, 0x7, 0, ECX, 2, "umip") X(PKU, 0x7, 0, ECX, 3, "pku") \
    X(LA57, 0x7, 0, ECX, 16, "la57") X(RDPID, 0x7, 0, ECX, 22, "rdpid") X(FSRM, 0x7, 0, EDX, 4, "fsrm") X(MD_CLEAR, 0x7, 0, EDX, 10, "md_clear") \
    X(HYBRID, 0x7, 0, EDX, 15, "hybrid_cpu") X(SPEC_CTRL, 0x7, 0, EDX, 26, "spec_ctrl") X(STIBP, 0x7, 0, EDX, 27, "intel_stibp") \
    X(FLUSH_L1D, 0x7, 0, EDX, 28, "flush_l1d") X(ARCH_CAPS, 0x7, 0, EDX, 29, "arch_capabilities") X(SSBD, 0x7, 0, EDX, 31, "ssbd") \
    X(XSAVEOPT, 0xd, 1, EAX, 0, "xsaveopt") X(XSAVEC, 0xd, 1, EAX, 1, "xsavec") X(XGETBV1, 0xd, 1, EAX, 2, "xgetbv1") X(XSAVES, 0xd, 1, EAX, 3, "xsaves") \
    X(SYSCALL, 0x80000001, 0, EDX, 11, "syscall") X(NX, 0x80000001, 0, EDX, 20, "nx") X(PDPE1GB, 0x80000001, 0, EDX, 26, "pdpe1gb") \
    X(RDTSCP, 0x80000001, 0, EDX, 27, "rdtscp") X(LM, 0x80000001, 0, EDX, 29, "lm") X(SVM, 0x80000001, 0, ECX, 2, "svm") \
    X(TOPOEXT, 0x80000001, 0, ECX, 22, "topoext") X(INVTSC, 0x80000007, 0, EDX, 8, "invariant_tsc") \
    X(AMD_LFENCE_RDTSC, 0x80000021, 0, EAX, 2, "lfence_rdtsc") \
    X(AMD_IBPB, 0x80000008, 0, EBX, 12, "amd_ibpb") X(AMD_IBRS, 0x80000008, 0, EBX, 14, "amd_ibrs") X(AMD_STIBP, 0x80000008, 0, EBX, 15, "amd_stibp") \
    X(AMD_IBRS_ALWAYS, 0x80000008, 0, EBX, 16, "amd_ibrs_always_on") X(AMD_SSBD, 0x80000008, 0, EBX, 24, "amd_ssbd") \
    X(AMD_SSB_NO, 0x80000008, 0, EBX, 26, "amd_ssb_no")
enum cpu_feature {
#define CPU_FEATURE_NAME(name, ...) FEAT_##name,
    CPU_FEATURES(CPU_FEATURE_NAME)
#undef CPU_FEATURE_NAME
    CPU_FEATURE_COUNT
};
enum cpu_vendor { CPU_OTHER, CPU_INTEL, CPU_AMD /* and Hygon */ };
struct cpu_info {
    enum cpu_vendor vendor;
    char vendor_id[13], brand[49];
    unsigned family, model, stepping;
    uint32_t max_leaf, max_ext_leaf, signature, microcode;
    unsigned phys_bits;                 /* width of a physical address, less memory-encryption bits */
    unsigned lin_bits;
    uint64_t xcr0;                      /* what the host enables; see cpu_init() */
    uint64_t arch_caps;                 /* ARCH_CAPABILITIES, 0 if absent */
    uint64_t feat[(CPU_FEATURE_COUNT + 63) / 64];
};
extern struct cpu_info cpu_info;
static inline bool cpu_has(enum cpu_feature f) { return cpu_info.feat[f / 64] >> (f % 64) & 1; }
const char *cpu_feature_text(enum cpu_feature);

void cpu_detect(void);                  /* boot CPU: fills cpu_info */
/* Every CPU: CR0/CR4/EFER/PAT/XCR0 to the host's settings.  False with a sentence: this CPU cannot be used beside the boot CPU. */
bool cpu_init(char *err, size_t errlen);
