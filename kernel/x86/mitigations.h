/*
 * Side channels of the CPU: what this machine needs, decided once at boot from vendor, family, model, CPUID and ARCH_CAPABILITIES.  The back-ends read the flags
 * on their exit and switch paths.  `mitigations=off` on the kernel's command line clears them all.
 */
#pragma once
#include <stddef.h>

#include "kernel/lib/base.h"

struct mitigations {
    bool ibpb_on_vm_switch;     /* PRED_CMD.IBPB when a CPU goes from one VM's vCPU to another VM's */
    bool rsb_fill;              /* 32 calls after every VM exit: return predictions of the guest are overwritten */
    bool spec_ctrl_switch;      /* SPEC_CTRL is written around every entry: guest's value in, spec_ctrl_host out */
    uint64_t spec_ctrl_host;    /* SPEC_CTRL while the host runs; also right when spec_ctrl_switch is off (then set once per CPU) */
    uint64_t spec_ctrl_guest;   /* bits of SPEC_CTRL a guest may be offered; 0: hide SPEC_CTRL and PRED_CMD */
    bool verw;                  /* VERW with a data selector before VM entry: clears fill, store and load buffers */
    bool l1d_flush;             /* FLUSH_CMD.L1D before VM entry (after which no host secret may be touched) */
    bool no_smt_sharing;        /* two VMs must not run on SMT siblings of one core at once */
};
extern struct mitigations mitigations;

_Static_assert(offsetof(struct mitigations, rsb_fill) == 1 && offsetof(struct mitigations, spec_ctrl_host) == 8, "entry stubs");

/* The thread that is about to run a vCPU of VM number `vm` (never reused) on this CPU, preemption off: a barrier if another VM ran here last. */
void mitigations_vm_switch(uint64_t vm);

void mitigations_init(bool off);        /* boot CPU, after cpu_detect() */
void mitigations_init_cpu(void);        /* each CPU: MSRs that stay */
/* What is on, what not, and why: `host cpu`. */
void mitigations_each(void (*fn)(void *arg, const char *name, const char *state), void *arg);
