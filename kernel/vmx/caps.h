/* Capabilities of this CPU's VT-x, read once.  H. */
#pragma once
#include "kernel/hw/vmx.h"

/* A word of controls: what the CPU demands (low half of cap) and allows (high half), and what a new VMCS gets. */
struct vmx_control { uint64_t cap; uint32_t val; };

extern struct vmx_features {
    uint32_t revision;
    struct vmx_control pin, primary, secondary, exit, entry;
    uint64_t cr0_must, cr0_may, cr4_must, cr4_may;
    uint64_t ept_vpid;
    bool vpid, pause_loop, ept_ad, rdtscp, apic_virt;
    bool virq_ignores_if;       /* an erratum: see vmx_read_features() */
    uint8_t timer_shift;            /* of the preemption timer: it counts 2^n ticks of the TSC */
} vmx_features;

typedef uint64_t vmx_msr_fn(void *arg, uint32_t msr);
/* Fills *f (all but rdtscp, which CPUID tells).  NULL, or the first thing that is missing, as a noun.  Reads no MSR whose existence the ones before do not promise. */
const char *vmx_read_features(struct vmx_features *f, vmx_msr_fn *rdmsr, void *arg);

/* IA32_FEATURE_CONTROL: VMX is on; the register is still open, so it is ours to switch on; off and locked, which only the firmware's set-up can change. */
enum vmx_firmware { VMX_FW_ON, VMX_FW_OPEN, VMX_FW_OFF };
enum vmx_firmware vmx_firmware_allows(uint64_t feature_control);
extern const char vmx_firmware_sentence[];      /* what to do about VMX_FW_OFF */
