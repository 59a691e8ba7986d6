/*
 * What CPUID tells a guest: the host's CPU, cut down by a table of masks to what this PC implements, with the VM's own topology.  Built once per VM,
 * read without locks by every vCPU.  Intel SDM vol 2 "CPUID"; AMD APM vol 3 appendix E "Obtaining Processor Information Via the CPUID Instruction".
 *
 * The signature at leaf 40000000h is KVM's ("KVMKVMKVM"): Linux and the BSDs look for a paravirtual clock and for timer calibration without a PIT only
 * under signatures they know, and what we offer below it (MSRs 4B564D00h/01h, pvclock page layout) is that interface, bit for bit.  No feature bit is set
 * that is not implemented; a guest that asks for the vendor of the hypervisor sees a machine it can drive, which is all the leaf is for.
 */
#pragma once
#include "kernel/lib/base.h"

struct cpuid_regs { uint32_t eax, ebx, ecx, edx; };

struct cpuid_policy {
    void (*raw)(void *arg, uint32_t leaf, uint32_t subleaf, struct cpuid_regs *);  /* the host's CPUID */
    void *arg;
    unsigned ncpus;             /* one package, one thread per core; APIC ID = vCPU index */
    uint64_t xcr0;              /* what guests may set in XCR0; 0: no XSAVE */
    uint8_t phys_bits;          /* 0: the host's, less memory encryption bits */
    bool tsc_stable;            /* host TSC invariant and checked across CPUs: invariant TSC and kvmclock's stable bit */
    bool spec_ctrl;             /* SPEC_CTRL and PRED_CMD are switched per vCPU: show IBRS, IBPB, STIBP, SSBD as the host has them */
    bool arch_caps;             /* show ARCH_CAPABILITIES (msr.h gives its value) */
    bool kvmclock;
    uint32_t tsc_khz;           /* 0: unknown; else leaf 40000010h gives it */
};

enum { CPUID_MAX_ENTRIES = 96, CPUID_BASIC = 0x20, CPUID_EXT = 0x22, CPUID_HYP = 0x11 };

struct cpuid_entry {
    struct cpuid_regs r;
    uint32_t subleaf;
    uint8_t fix;                /* parts that depend on the vCPU's state, see cpuid.c; 0: constant */
    bool last;                  /* no more subleaves in the table; a higher one gives zeros (topology: see cpuid.c) */
};

struct cpuid_table {
    uint8_t basic[CPUID_BASIC], ext[CPUID_EXT], hyp[CPUID_HYP];     /* index of the first entry of a leaf; entry 0 is all zeros */
    uint32_t max_basic, max_ext;
    bool intel;                 /* out-of-range leaves answer as the highest basic one */
    uint8_t phys_bits;
    uint64_t xcr0;
    unsigned count;
    struct cpuid_entry entry[CPUID_MAX_ENTRIES];
};

/* The vCPU's side; the callbacks are asked only for the leaves that need them. */
struct cpuid_env {
    void *vcpu;
    uint32_t apic_id;
    uint64_t (*cr4)(void *vcpu);
    uint64_t (*xcr0)(void *vcpu);
    bool (*apic_on)(void *vcpu);        /* APIC_BASE.EN */
};

void cpuid_build(struct cpuid_table *, const struct cpuid_policy *);
/* Any leaf and subleaf.  Own vCPU thread. */
struct cpuid_regs cpuid_get(const struct cpuid_table *, const struct cpuid_env *, uint32_t leaf, uint32_t subleaf);
/* Feature questions of other parts (CR4 and XCR0 checks, MSR policy): one bit of a register, reg 0..3 = EAX EBX ECX EDX. */
bool cpuid_has(const struct cpuid_table *, uint32_t leaf, unsigned reg, unsigned bit);
