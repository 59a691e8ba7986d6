/*
 * Address space IDs: each CPU hands out its own, one per vCPU, in generations.  When they run out the CPU flushes its whole TLB and begins anew; a vCPU whose
 * number is of an older generation, or of another CPU, takes a new one at its next entry.  APM vol 2 "TLB Control", "Address Space Identifier".
 */
#include "kernel/svm/svm.h"

/* Immediately before VMRUN, interrupts off: the flush that a new generation begins with must not be lost. */
void svm_new_asid(struct svm_cpu *c, struct svm_vcpu *s)
{
    s->vmcb->tlb_control = TLB_FLUSH_NONE;
    if (c->asid_next > c->asid_max) {
        c->asid_gen++, c->asid_next = 1;
        s->vmcb->tlb_control = TLB_FLUSH_ALL;
    }
    s->asid_gen = c->asid_gen;
    s->vmcb->asid = c->asid_next++;
    svm_dirty(s, CLEAN_ASID);
}

/* All translations of this vCPU are forgotten at its next entry: by the CPU where it can flush one ASID, else by a number that nobody used since the last flush. */
void svm_flush_asid(struct svm_vcpu *s, bool cpu_can)
{
    if (cpu_can)
        s->vmcb->tlb_control = TLB_FLUSH_ASID;
    else
        s->asid_gen = 0;
}
