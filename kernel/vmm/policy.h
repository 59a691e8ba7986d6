/* What this PC's CPU is: the CPUID and MSR tables (cpuid.h, msr.h) applied to a vCPU.  Own vCPU thread only. */
#pragma once
#include "kernel/vmm/vcpu.h"

int  policy_vm_init(struct vm *);               /* computes vm->cpuid; -ENOMEM */
void policy_vm_fini(struct vm *);
int  policy_vcpu_init(struct vcpu *);           /* v->msrs */
void policy_vcpu_reset(struct vcpu *);
void policy_cpuid(struct vcpu *);               /* EAX, ECX → EAX EBX ECX EDX */
bool policy_rdmsr(struct vcpu *, uint32_t msr, uint64_t *val);  /* false: #GP */
bool policy_wrmsr(struct vcpu *, uint32_t msr, uint64_t val);
uint64_t policy_cr4_mask(struct vcpu *);        /* CR4 bits that exist */
uint64_t policy_xcr0_mask(void);
struct snap;
int  policy_vcpu_snap(struct vcpu *, struct snap *);
