/*
 * What RDMSR and WRMSR do in a guest: a sorted table of ranges with a read and a write function each.  Intel SDM vol 4 "Model-Specific Registers";
 * AMD APM vol 2 appendix A "MSR Cross-Reference"; KVM's paravirtual MSRs by its own documentation.
 *
 * State that the hardware holds (EFER, STAR, PAT …) is reached through hw_read/hw_write and validated here first; all else lives in struct vcpu_msrs.
 * Everything that no table entry names is #GP and one rate-limited log line.  Own vCPU thread, or vCPU stopped.
 */
#pragma once
#include "kernel/lib/base.h"
#include "kernel/lib/log.h"
#include "kernel/vmm/event.h"

/* Per VM, immutable. */
struct msr_policy {
    bool intel;                 /* vendor of the CPU that the guest sees */
    uint8_t phys_bits;
    uint64_t efer_mask;         /* bits of EFER a guest may set: SCE LME NXE, FFXSR when CPUID shows it (LMA is always allowed as it stands) */
    uint64_t spec_ctrl_mask;    /* bits of SPEC_CTRL a guest may set; 0: MSRs 48h and 49h do not exist */
    uint64_t arch_caps;         /* value of ARCH_CAPABILITIES */
    bool has_arch_caps;
    bool tsc_aux;               /* RDTSCP or RDPID exists */
    bool kvmclock;
    uint32_t ucode_rev;         /* revision as the host's own; guests decide on errata by it */
    uint32_t bus_hz;            /* unused by guests with TSC deadline; for PLATFORM_INFO and FSB_FREQ */
};

struct msr_ops {
    /* EFER, STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE, FS_BASE, GS_BASE, SYSENTER_*, PAT, TSC_AUX, SPEC_CTRL, DEBUGCTL: values already checked. */
    uint64_t (*hw_read)(void *vcpu, uint32_t msr);
    void (*hw_write)(void *vcpu, uint32_t msr, uint64_t val);
    uint64_t (*cr0)(void *vcpu);
    uint64_t (*tsc)(void *vcpu);                        /* guest TSC now */
    void (*tsc_shift)(void *vcpu, int64_t delta);       /* guest TSC += delta from now on */
    void (*ibpb)(void *vcpu);                           /* PRED_CMD.IBPB */
    /* kvmclock: wall clock at gpa, now; time page at gpa (bit 0 of val: enabled). */
    void (*clock_wall)(void *vcpu, uint64_t gpa);
    void (*clock_page)(void *vcpu, uint64_t val);
};

enum { MTRR_VAR_COUNT = 8, MTRR_FIX_COUNT = 11 };

struct vcpu_msrs {
    const struct msr_ops *ops;
    void *vcpu;
    const struct msr_policy *policy;
    const struct vcpu_irqchip *irqchip;         /* NULL: APIC MSRs do not exist */
    struct ratelimit unknown;
    const char *vm_name;                        /* for the log */
    /* Architectural state; names in snapshots. */
    uint64_t tsc_adjust, misc_enable, mcg_status, hwcr, de_cfg, syscfg, energy_bias;
    uint64_t mtrr_def, mtrr_fix[MTRR_FIX_COUNT], mtrr_var[MTRR_VAR_COUNT * 2];      /* base, mask by turns */
    uint64_t clock_page, clock_wall;
    uint64_t reads, writes, faults;             /* counters, not saved */
};

/* Power-on and reset values (INIT leaves MSRs alone).  MTRRs come up disabled; firmware, or the loader in its place, programs them by msr_write. */
void msr_reset(struct vcpu_msrs *);
/* false: #GP(0). */
bool msr_read(struct vcpu_msrs *, uint32_t msr, uint64_t *val) __must_check;
bool msr_write(struct vcpu_msrs *, uint32_t msr, uint64_t val) __must_check;
struct snap;
int  msr_snap(struct vcpu_msrs *, struct snap *);       /* not what hw_read reaches */
/* Is `v` a value that PAT may hold? */
bool msr_pat_valid(uint64_t v);
