/* VMCB contents: start values, and architectural state in and out. */
#include "kernel/svm/svm.h"

#include <stdio.h>
#include <string.h>

#include "kernel/x86/cpu.h"
#include "kernel/x86/mitigations.h"

enum { APIC_TPR = 0x80 };

static void intercepts(struct vcpu *v, struct vmcb *b)
{
    b->intercept[ICPT_CR] = (uint32_t)ICPT_CR_WRITE(4);
    b->intercept[ICPT_DR] = (uint32_t)ICPT_DR_ALL;
    b->intercept[ICPT_EXC] = (uint32_t)(BIT(EXC_DB) | BIT(EXC_AC) | BIT(EXC_MC));
    b->intercept[ICPT_MISC1] = (uint32_t)(ICPT_INTR | ICPT_NMI | ICPT_SMI | ICPT_INIT | ICPT_RDPMC | ICPT_CPUID | ICPT_INVD | ICPT_HLT | ICPT_INVLPGA |
                                          ICPT_IOIO | ICPT_MSR | ICPT_FREEZE | ICPT_SHUTDOWN);
    b->intercept[ICPT_MISC2] = (uint32_t)(ICPT_VMRUN | ICPT_VMMCALL | ICPT_VMLOAD | ICPT_VMSAVE | ICPT_STGI | ICPT_CLGI | ICPT_SKINIT | ICPT_WBINVD |
                                          ICPT_MONITOR | ICPT_MWAIT | ICPT_MWAIT_ARMED | ICPT_XSETBV | ICPT_RDPRU);
    /* A lone vCPU that spins waits for nobody.  With a filter the CPU counts: 3000 PAUSEs close together are a spin. */
    if (v->vm->p.ncpus > 1) {
        b->intercept[ICPT_MISC1] |= (uint32_t)ICPT_PAUSE;
        if (svm_features.pause_filter)
            b->pause_count = 3000, b->pause_threshold = svm_features.edx & SVM_FEAT_PAUSE_THRESH ? 128 : 0;
    }
}

void svm_vmcb_init(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    struct vmcb *b = s->vmcb;
    memset(b, 0, sizeof *b);
    intercepts(v, b);
    b->iopm_pa = svm_io_bitmap();
    b->msrpm_pa = svm_msr_bitmap(v->vm);
    b->vintr = V_INTR_MASKING;
    b->np_control = NP_ENABLE;
    b->n_cr3 = v->vm->nested.root;
    s->asid_gen = 0, s->before = BEFORE_ASID, s->after = 0, s->v_tpr = 0;
    s->tpr = v->has_irqchip ? &v->irqchip.page[APIC_TPR] : &s->no_tpr;
    s->nmi = NMI_OPEN;
    s->dr_loaded = false;
    memset(s->dr, 0, sizeof s->dr);
}

/*
 * A machine check must reach the host even if the guest does not care: CR4.MCE is the host's while the guest runs, and reads of CR4 exit until the guest has
 * set it, too, as nearly all do.
 */
static uint64_t get_cr4(const struct svm_vcpu *s) { return (s->vmcb->cr4 & ~(uint64_t)CR4_MCE) | s->cr4_mce; }

static void put_cr4(struct svm_vcpu *s, uint64_t cr4)
{
    uint64_t host = read_cr4() & CR4_MCE;
    uint32_t reads = (uint32_t)ICPT_CR_READ(4), old = s->vmcb->intercept[ICPT_CR];
    s->cr4_mce = cr4 & CR4_MCE;
    s->vmcb->cr4 = cr4 | host;
    s->vmcb->intercept[ICPT_CR] = s->cr4_mce == host ? old & ~reads : old | reads;
    if (s->vmcb->intercept[ICPT_CR] != old)
        svm_dirty(s, CLEAN_I);
}

static struct cpu_seg get_seg(const struct vmcb_seg *s)
{
    return (struct cpu_seg){ .base = s->base, .limit = s->limit, .sel = s->sel, .attr = s->attr };
}

static struct vmcb_seg put_seg(const struct cpu_seg *s)
{
    return (struct vmcb_seg){ .sel = s->sel, .attr = s->attr & 0xfff, .limit = s->limit, .base = s->base };
}

static struct vmcb_seg *vmcb_seg(struct vmcb *b, enum seg i)
{
    static const uint16_t at[SEG_COUNT] = {
        offsetof(struct vmcb, es), offsetof(struct vmcb, cs), offsetof(struct vmcb, ss), offsetof(struct vmcb, ds), offsetof(struct vmcb, fs),
        offsetof(struct vmcb, gs), offsetof(struct vmcb, ldtr), offsetof(struct vmcb, tr),
    };
    return (struct vmcb_seg *)((char *)b + at[i]);
}

void svm_get_state(struct vcpu *v, struct cpu_state *st, unsigned groups)
{
    struct svm_vcpu *s = svm_of(v);
    struct vmcb *b = s->vmcb;
    if (groups & ST_SEGS)
        for (unsigned i = 0; i < 8; i++)
            st->seg[i] = get_seg(vmcb_seg(b, i));
    if (groups & ST_DTABS) {
        st->gdt = (struct cpu_dtab){ b->gdtr.base, (uint16_t)b->gdtr.limit };
        st->idt = (struct cpu_dtab){ b->idtr.base, (uint16_t)b->idtr.limit };
    }
    if (groups & ST_CRS) {
        st->cr0 = b->cr0, st->cr2 = b->cr2, st->cr3 = b->cr3, st->cr4 = get_cr4(s);
        st->efer = b->efer & ~EFER_SVME;
        st->cpl = b->cpl;
        svm_notice_xcr0(v);
    }
    if (groups & ST_DRS)
        st->dr6 = b->dr6, st->dr7 = b->dr7;
    if (groups & ST_SYSCALL) {
        st->star = b->star, st->lstar = b->lstar, st->cstar = b->cstar, st->sfmask = b->sfmask, st->kernel_gs_base = b->kernel_gs_base;
        st->sysenter_cs = b->sysenter_cs, st->sysenter_esp = b->sysenter_esp, st->sysenter_eip = b->sysenter_eip;
    }
    if (groups & ST_MSRS)
        st->pat = b->g_pat, st->debugctl = b->debugctl, st->tsc_aux = s->tsc_aux, st->spec_ctrl = s->spec_ctrl;
    if (groups & ST_INTR) {
        st->shadow = b->int_shadow & INT_SHADOW;
        st->nmi_blocked = s->nmi != NMI_OPEN;
    }
}

void svm_get_code(struct vcpu *v, struct cpu_state *st)
{
    const struct svm_vcpu *s = svm_of(v);
    const struct vmcb *b = s->vmcb;
    st->cr4 = get_cr4(s);
    st->seg[SEG_CS].base = b->cs.base, st->seg[SEG_CS].attr = b->cs.attr;
    st->cr0 = b->cr0, st->cr3 = b->cr3, st->efer = b->efer & ~EFER_SVME;
    st->cpl = b->cpl;
}

void svm_get_seg(struct vcpu *v, enum seg i, struct cpu_seg *seg) { *seg = get_seg(vmcb_seg(svm_of(v)->vmcb, i)); }

void svm_set_state(struct vcpu *v, const struct cpu_state *st, unsigned groups)
{
    struct svm_vcpu *s = svm_of(v);
    struct vmcb *b = s->vmcb;
    if (groups & ST_SEGS)
        for (unsigned i = 0; i < 8; i++)
            *vmcb_seg(b, i) = put_seg(&st->seg[i]);
    if (groups & ST_DTABS) {
        b->gdtr = (struct vmcb_seg){ .limit = st->gdt.limit, .base = st->gdt.base };
        b->idtr = (struct vmcb_seg){ .limit = st->idt.limit, .base = st->idt.base };
    }
    if (groups & ST_CRS) {
        b->cr0 = st->cr0, b->cr2 = st->cr2, b->cr3 = st->cr3;
        put_cr4(s, st->cr4);
        b->efer = st->efer | EFER_SVME;         /* VMRUN refuses a guest without it */
        b->cpl = st->cpl;
    }
    if (groups & ST_DRS)
        b->dr6 = st->dr6, b->dr7 = st->dr7;
    if (groups & ST_SYSCALL) {
        b->star = st->star, b->lstar = st->lstar, b->cstar = st->cstar, b->sfmask = st->sfmask, b->kernel_gs_base = st->kernel_gs_base;
        b->sysenter_cs = st->sysenter_cs, b->sysenter_esp = st->sysenter_esp, b->sysenter_eip = st->sysenter_eip;
    }
    if (groups & ST_MSRS) {
        b->g_pat = st->pat, b->debugctl = st->debugctl, s->tsc_aux = st->tsc_aux;
        if (s->loaded && cpu_has(FEAT_RDTSCP))
            wrmsr(MSR_TSC_AUX, s->tsc_aux);
        s->spec_ctrl = st->spec_ctrl, s->spec_ctrl_run = mitigations_spec_ctrl(st->spec_ctrl);
        s->before = (s->before & ~(uint32_t)BEFORE_SPEC_CTRL) | (s->spec_ctrl_run != mitigations.spec_ctrl_host ? BEFORE_SPEC_CTRL : 0);
    }
    if (groups & ST_INTR) {
        b->int_shadow = st->shadow ? INT_SHADOW : 0;
        if (!st->nmi_blocked)
            s->nmi = NMI_OPEN;
    }
    static const uint64_t clean_of[] = { CLEAN_SEG, CLEAN_DT, CLEAN_CRX | CLEAN_CR2 | CLEAN_SEG, CLEAN_DRX, 0, CLEAN_NP | CLEAN_LBR, 0 };
    for (unsigned g = 0; g < ARRAY_SIZE(clean_of); g++)
        if (groups & BIT(g))
            svm_dirty(s, clean_of[g]);
}

void svm_dump(struct vcpu *v, void (*print)(void *, const char *), void *arg)
{
    const struct vmcb *b = svm_of(v)->vmcb;
    char text[160];
    snprintf(text, sizeof text, "  VMCB exit %llx info %llx %llx intinfo %llx inject %llx vintr %llx asid %u of generation %llu", (unsigned long long)b->exitcode,
             (unsigned long long)b->exitinfo1, (unsigned long long)b->exitinfo2, (unsigned long long)b->exitintinfo, (unsigned long long)b->eventinj,
             (unsigned long long)b->vintr, b->asid, (unsigned long long)svm_of(v)->asid_gen);
    print(arg, text);
}
