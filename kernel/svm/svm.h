/* AMD-V back-end: what its files share.  AMD64 APM vol 2 (24593) chapter "Secure Virtual Machine". */
#pragma once
#include "kernel/hw/svm.h"
#include "kernel/vmm/vcpu.h"

enum { CLEAN_GROUPS = 12 };

/* One per host CPU, behind percpu.hv. */
struct svm_cpu {
    hpa_t hsave, host_vmcb;     /* VM_HSAVE_PA page; VMSAVE image of this CPU's own state */
    uint64_t asid_gen;          /* bumped when ASIDs run out; 0 is never valid */
    uint32_t asid_next, asid_max;
    bool on;
};

enum nmi_state { NMI_OPEN, NMI_IN_HANDLER /* IRET is intercepted */, NMI_AT_IRET /* unblocked once RIP has moved on */ };

/* What an entry or an exit has to see to beside the common path; each bit stands until that is done. */
enum { BEFORE_ASID = 1, BEFORE_SHADOW = 2, BEFORE_OFFER = 4, BEFORE_SPEC_CTRL = 8 /* stays */ };
enum { AFTER_ONCE = 1 /* EVENTINJ or TLB_CONTROL is set */, AFTER_OFFER = 2, AFTER_IRET = 4, AFTER_SHADOW = 8, AFTER_STEP = 16 /* of one instruction */ };

struct svm_vcpu {
    struct vmcb *vmcb;
    hpa_t pa;
    uint8_t *tpr;               /* the LAPIC page's TPR, or no_tpr */
    uint8_t no_tpr;
    uint8_t v_tpr;              /* V_TPR as the page says it */
    hpa_t host_vmcb;            /* of the CPU it is loaded on */
    uint64_t asid_gen;          /* of that CPU */
    uint32_t before, after;     /* BEFORE_, AFTER_ */
    uint64_t shadow_rip;        /* entered here with an interrupt shadow in force; NOWHERE: its instruction is done */
    struct { uint32_t exceptions; uint64_t dr6; } step;         /* as they were before it */
    bool loaded;
    uint64_t xcr0_loaded;
    uint64_t dr[4];             /* DR0-3 while not in the CPU */
    bool dr_loaded;
    enum nmi_state nmi;
    uint64_t iret_rip;
    uint64_t tsc_aux;
    uint64_t spec_ctrl, spec_ctrl_run;  /* as the guest has it; in the CPU while it runs */
    uint64_t cr4_mce;           /* CR4.MCE as the guest has it; the CPU has the host's */
    uint32_t hash[CLEAN_GROUPS];        /* check=vmcb: of each clean-bit group as the last exit left it … */
    const struct svm_cpu *hash_cpu;     /* … on this CPU */
};

extern struct svm_features { uint32_t edx, nasids; uint64_t clean_mask; bool nrips, flush_asid, pause_filter, qemu /* its software CPU */; } svm_features;

static inline struct svm_vcpu *svm_of(const struct vcpu *v) { return v->hv; }
static inline void svm_dirty(struct svm_vcpu *s, uint64_t groups) { s->vmcb->clean &= ~groups; }

/* enter.S: interrupts off; VMRUN with GPRs from and to the start of struct vcpu (rax, rsp excepted: they are in the VMCB), and on to svm_exited(). */
void svm_enter(hpa_t vmcb, struct vcpu *, hpa_t host_vmcb);
void svm_exited(struct vcpu *);

/* asid.c */
void svm_new_asid(struct svm_cpu *, struct svm_vcpu *);
void svm_flush_asid(struct svm_vcpu *, bool cpu_can);
/* check.c: what is wrong with this VMCB, as a sentence, or NULL; clean-bit groups that changed although `clean` says they did not */
const char *svm_vmcb_flaw(const struct vmcb *, unsigned phys_bits);
bool svm_pushes_error(uint8_t vector);
void svm_hash_groups(const struct vmcb *, uint32_t hash[CLEAN_GROUPS]);
uint64_t svm_broken_groups(const struct vmcb *, uint64_t clean, const uint32_t before[CLEAN_GROUPS]);

hpa_t svm_io_bitmap(void);              /* all ports intercepted */

/* vmcb.c */
void svm_vmcb_init(struct vcpu *);
void svm_get_state(struct vcpu *, struct cpu_state *, unsigned groups);
void svm_get_code(struct vcpu *, struct cpu_state *);
void svm_get_seg(struct vcpu *, enum seg, struct cpu_seg *);
void svm_set_state(struct vcpu *, const struct cpu_state *, unsigned groups);
void svm_dump(struct vcpu *, void (*print)(void *, const char *), void *arg);
/* exit.c */
void svm_translate(struct vcpu *);
/* msr.c: one permission bitmap per VM, 8 KiB, all intercepted at first */
int  svm_msr_init(struct vm *);
void svm_msr_fini(struct vm *);
hpa_t svm_msr_bitmap(const struct vm *);
void svm_set_pass(struct vm *, enum hv_pass, uint32_t what, bool pass);
/* svm.c */
void svm_notice_xcr0(struct vcpu *);
void svm_load_debug(struct vcpu *);
