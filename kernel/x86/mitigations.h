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
    bool spec_ctrl_used;        /* guests may run with another SPEC_CTRL than the host: exits look at percpu.spec_ctrl_guest */
    bool spec_ctrl_switch;      /* the host's bits are the host's only: guests run without them, and without what they cost */
    uint64_t spec_ctrl_host;    /* SPEC_CTRL while the host runs, set once per CPU and again after an entry with another */
    uint64_t spec_ctrl_guest;   /* bits of SPEC_CTRL a guest may be offered; 0: hide SPEC_CTRL and PRED_CMD */
    bool verw;                  /* VERW with a data selector before VM entry: clears fill, store and load buffers */
    bool l1d_flush;             /* FLUSH_CMD.L1D before VM entry (after which no host secret may be touched) */
    bool no_smt_sharing;        /* two VMs must not run on SMT siblings of one core at once */
};
extern struct mitigations mitigations;

_Static_assert(offsetof(struct mitigations, rsb_fill) == 1 && offsetof(struct mitigations, spec_ctrl_used) == 2, "entry stubs test both at once");
_Static_assert(offsetof(struct mitigations, spec_ctrl_host) == 8, "entry stubs");

/* What SPEC_CTRL is to be while a guest runs that wants `guest` of it. */
static inline uint64_t mitigations_spec_ctrl(uint64_t guest)
{
    return guest | (mitigations.spec_ctrl_switch ? 0 : mitigations.spec_ctrl_host);
}
void mitigations_spec_to_guest(uint64_t spec_ctrl);     /* last thing before an entry with a value that is not the host's; the entry stub undoes it */
void mitigations_ibpb(void);            /* a guest asks for a barrier: PRED_CMD.IBPB */

/* The thread that is about to run a vCPU of VM number `vm` (never reused) on this CPU, preemption off: a barrier if another VM ran here last. */
void mitigations_vm_switch(uint64_t vm);

void mitigations_init(bool off);        /* boot CPU, after cpu_detect() */
void mitigations_init_cpu(void);        /* each CPU: MSRs that stay */
/* What is on, what not, and why: `host cpu`. */
void mitigations_each(void (*fn)(void *arg, const char *name, const char *state), void *arg);
