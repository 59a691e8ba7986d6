/* #VMEXIT codes → struct exit.  Nothing is decided here. */
#include "kernel/svm/svm.h"

#include "kernel/x86/cpu.h"
#include "kernel/x86/mce.h"

static void nested_fault(const struct vmcb *b, struct exit *e)
{
    uint64_t i = b->exitinfo1;
    e->kind = EXIT_MMIO;
    e->u.mmio.gpa = b->exitinfo2;
    e->u.mmio.gva_valid = false;
    e->u.mmio.access = (uint8_t)((i & PF_I) ? MMIO_EXEC : (i & PF_W) ? MMIO_WRITE : MMIO_READ);
    e->u.mmio.final = !(i & NPF_TABLE);
    e->u.mmio.present = i & PF_P;
}

static enum exit_kind control(const struct vmcb *b, struct exit *e)
{
    e->u.cr.cr = b->exitcode & 15;
    e->u.cr.write = b->exitcode >= SVM_EXIT_CR_WRITE, e->u.cr.lmsw = e->u.cr.clts = false;
    e->u.cr.gpr = 0xff;                 /* decode assists would tell; no emulator has them, and the decoder knows it, too */
    return EXIT_CR;
}

static enum exit_kind exception(const struct vmcb *b, struct exit *e)
{
    e->u.exc.vector = (uint8_t)(b->exitcode - SVM_EXIT_EXC);
    e->u.exc.has_error = e->u.exc.vector == EXC_AC;
    e->u.exc.error = (uint32_t)b->exitinfo1;
    if (e->u.exc.vector == EXC_MC && mce_in_guest())
        return EXIT_INTERNAL;
    return EXIT_EXCEPTION;
}

/* NMIs are blocked until the handler's IRET has run; the CPU tells of the IRET before it runs. */
static enum exit_kind iret(struct svm_vcpu *s, struct exit *e)
{
    s->vmcb->intercept[ICPT_MISC1] &= ~(uint32_t)ICPT_IRET;
    svm_dirty(s, CLEAN_I);
    s->nmi = NMI_AT_IRET, s->iret_rip = s->vmcb->rip;
    s->after |= AFTER_IRET;
    return EXIT_NMI_WINDOW;
}

static enum exit_kind debug_registers(struct vcpu *v)
{
    svm_load_debug(v);
    return EXIT_INTERNAL;
}

static enum exit_kind fatal(const struct vmcb *b, struct exit *e)
{
    e->u.raw.reason = b->exitcode, e->u.raw.info1 = b->exitinfo1, e->u.raw.info2 = b->exitinfo2;
    e->u.raw.why = b->exitcode == SVM_EXIT_INVALID ? svm_vmcb_flaw(b, cpu_info.phys_bits) : NULL;
    return EXIT_FATAL;
}

/* Exits that need no more than their name. */
static const uint8_t plain[] = {
    [SVM_EXIT_INTR - 0x60] = EXIT_HOST_INTR, [SVM_EXIT_NMI - 0x60] = EXIT_HOST_INTR, [SVM_EXIT_SMI - 0x60] = EXIT_HOST_INTR,
    [SVM_EXIT_INIT - 0x60] = EXIT_HOST_INTR, [SVM_EXIT_VINTR - 0x60] = EXIT_IRQ_WINDOW, [SVM_EXIT_RDPMC - 0x60] = EXIT_RDPMC,
    [SVM_EXIT_CPUID - 0x60] = EXIT_CPUID, [SVM_EXIT_INVD - 0x60] = EXIT_INVD, [SVM_EXIT_PAUSE - 0x60] = EXIT_PAUSE, [SVM_EXIT_HLT - 0x60] = EXIT_HLT,
    [SVM_EXIT_INVLPG - 0x60] = EXIT_INVLPG, [SVM_EXIT_INVLPGA - 0x60] = EXIT_UD, [SVM_EXIT_FREEZE - 0x60] = EXIT_INTERNAL,
    [SVM_EXIT_SHUTDOWN - 0x60] = EXIT_TRIPLE_FAULT, [SVM_EXIT_VMRUN - 0x60] = EXIT_UD, [SVM_EXIT_VMMCALL - 0x60] = EXIT_HYPERCALL,
    [SVM_EXIT_VMLOAD - 0x60] = EXIT_UD, [SVM_EXIT_VMSAVE - 0x60] = EXIT_UD, [SVM_EXIT_STGI - 0x60] = EXIT_UD, [SVM_EXIT_CLGI - 0x60] = EXIT_UD,
    [SVM_EXIT_SKINIT - 0x60] = EXIT_UD, [SVM_EXIT_RDTSCP - 0x60] = EXIT_RDTSCP, [SVM_EXIT_WBINVD - 0x60] = EXIT_WBINVD,
    [SVM_EXIT_MONITOR - 0x60] = EXIT_MONITOR, [SVM_EXIT_MWAIT - 0x60] = EXIT_MWAIT, [SVM_EXIT_MWAIT_ARMED - 0x60] = EXIT_MWAIT,
    [SVM_EXIT_XSETBV - 0x60] = EXIT_XSETBV, [SVM_EXIT_RDPRU - 0x60] = EXIT_UD,
};
enum { PLAIN_OTHER = EXIT_HOST_INTR };

static enum exit_kind other(struct vcpu *v, const struct vmcb *b, struct exit *e)
{
    switch (b->exitcode) {
    case SVM_EXIT_IRET: return iret(svm_of(v), e);
    case SVM_EXIT_CR_READ ... SVM_EXIT_CR_WRITE + 15: return control(b, e);
    case SVM_EXIT_DR_READ ... SVM_EXIT_DR_WRITE + 15: return debug_registers(v);
    case SVM_EXIT_EXC ... SVM_EXIT_EXC + 31: return exception(b, e);
    case SVM_EXIT_INTR ... SVM_EXIT_INIT: return EXIT_HOST_INTR;
    }
    return fatal(b, e);
}

static __attribute__((noinline)) void rare(struct vcpu *v)
{
    struct exit *e = &v->exit;
    e->kind = other(v, svm_of(v)->vmcb, e);
}

void svm_translate(struct vcpu *v)
{
    const struct vmcb *b = svm_of(v)->vmcb;
    struct exit *e = &v->exit;
    uint64_t code = b->exitcode, n = code - 0x60;
    e->next_rip = b->nrip;              /* stays 0 on a CPU that does not save it; e->insn_len always does */
    if (code == SVM_EXIT_IOIO) {
        e->kind = EXIT_PIO;
        e->u.pio.word = (uint32_t)b->exitinfo1;
        e->next_rip = b->exitinfo2;
    } else if (code == SVM_EXIT_NPF) {
        nested_fault(b, e);
    } else if (code == SVM_EXIT_MSR) {
        e->kind = b->exitinfo1 ? EXIT_WRMSR : EXIT_RDMSR;
    } else if (likely(n < ARRAY_SIZE(plain) && plain[n] != PLAIN_OTHER)) {
        e->kind = plain[n];
    } else {
        rare(v);
    }
}
