/* VM exits → struct exit.  Nothing is decided here. */
#include "kernel/vmx/vmx.h"

#include "kernel/x86/mce.h"

static enum exit_kind pio(struct exit *e, uint64_t q)
{
    e->u.pio.port = (uint16_t)(q >> IOQ_PORT_SHIFT);
    e->u.pio.what = (uint16_t)((q & IOQ_IN ? PIO_IN : 0) | (q & IOQ_STRING ? PIO_STRING : 0) | (q & IOQ_REP ? PIO_REP : 0) |
                               ((q & IOQ_SIZE) + 1) << PIO_SIZE_SHIFT);
    return EXIT_PIO;
}

/* IRET ends NMI blocking before it faults: what it unblocked is to be blocked again, for it will be executed again.  SDM "Information for VM Exits Due to
 * Vectored Events". */
static void block_nmi_again(struct vmx_vcpu *x)
{
    if (x->last.idt_event & VEC_VALID)
        return;
    x->interruptibility |= BLOCK_NMI;
    vmwrite(VMCS_INTERRUPTIBILITY, x->interruptibility);
}

static enum exit_kind nested_fault(struct vmx_vcpu *x, struct exit *e, uint64_t q)
{
    if (unlikely(q & EPTQ_NMI_UNBLOCKED))
        block_nmi_again(x);
    e->u.mmio.gpa = vmread_sure(VMCS_GUEST_PHYSICAL);
    e->u.mmio.gva_valid = false;        /* nobody asks */
    e->u.mmio.access = (uint8_t)((q & EPTQ_EXEC) ? MMIO_EXEC : (q & EPTQ_WRITE) ? MMIO_WRITE : MMIO_READ);
    e->u.mmio.final = (q & (EPTQ_LINEAR_VALID | EPTQ_FINAL)) == (EPTQ_LINEAR_VALID | EPTQ_FINAL);
    e->u.mmio.present = q & EPTQ_ALLOWED;
    return EXIT_MMIO;
}

static enum exit_kind control(struct exit *e, uint64_t q)
{
    unsigned type = q >> CRQ_TYPE_SHIFT & 3;
    e->u.cr.cr = (uint8_t)(q & CRQ_NUMBER);
    e->u.cr.write = type != CRQ_MOV_FROM, e->u.cr.clts = type == CRQ_CLTS, e->u.cr.lmsw = type == CRQ_LMSW;
    e->u.cr.gpr = q >> CRQ_GPR_SHIFT & 15;
    e->u.cr.lmsw_src = (uint16_t)(q >> CRQ_LMSW_SHIFT);
    return EXIT_CR;
}

/* Through a task gate in the IDT the switch is the delivery of the event: nothing is left to be delivered again. */
static void gate_took(struct vcpu *v, struct vmx_vcpu *x, struct exit *e)
{
    enum vmx_event_type type = (enum vmx_event_type)((x->last.idt_event & VEC_TYPE) >> VEC_TYPE_SHIFT);
    if (type == VEC_EXT_INTR && !v->reinject.valid)
        v->irq_taken = true, x->offer.valid = false;
    if (type == VEC_NMI) {
        x->interruptibility |= BLOCK_NMI;
        vmwrite(VMCS_INTERRUPTIBILITY, x->interruptibility);
    }
    if (type == VEC_EXT_INTR || type == VEC_NMI || type == VEC_HW_EXC)
        e->insn_len = 0, e->next_rip = 0;
    v->reinject.valid = false;
    e->u.task.has_error = x->last.idt_event & VEC_ERROR;
    e->u.task.error = e->u.task.has_error ? (uint32_t)vmread(VMCS_IDT_ERROR) : 0;
}

static enum exit_kind task_switch(struct vcpu *v, struct exit *e, uint64_t q)
{
    struct vmx_vcpu *x = vmx_of(v);
    e->u.task.selector = (uint16_t)(q & TASKQ_SELECTOR);
    e->u.task.source = q >> TASKQ_SOURCE_SHIFT & 3;
    e->u.task.has_error = false;
    if (x->last.idt_event & VEC_VALID)
        gate_took(v, x, e);
    return EXIT_TASK_SWITCH;
}

/* An intercepted #DB has not changed DR6 yet: SDM "Basic VM-Exit Information", exit qualification for debug exceptions. */
static void debug_exception(struct vcpu *v, uint64_t q)
{
    struct cpu_state st;
    vmx_get_state(v, &st, ST_DRS);
    st.dr6 = (st.dr6 & ~BITS(3, 0)) | (q & DB_DR6_BITS) | DR6_INIT;
    vmx_set_state(v, &st, ST_DRS);
}

static enum exit_kind machine_check(struct exit *e)
{
    e->u.exc.vector = EXC_MC, e->u.exc.has_error = false;
    return mce_in_guest() ? EXIT_INTERNAL : EXIT_EXCEPTION;
}

static enum exit_kind exception(struct vcpu *v, struct exit *e, uint64_t q)
{
    uint32_t info = (uint32_t)vmread(VMCS_EXIT_EVENT);
    uint8_t vector = (uint8_t)(info & VEC_VECTOR);
    if ((info & VEC_TYPE) >> VEC_TYPE_SHIFT == VEC_NMI) {       /* the exit has acknowledged it, the host's handler has not run */
        __asm__ volatile("int $2" ::: "memory");
        return EXIT_HOST_INTR;
    }
    if (unlikely((info & VEC_NMI_UNBLOCKED) && vector != EXC_DF))
        block_nmi_again(vmx_of(v));
    if (vector == EXC_MC)
        return machine_check(e);
    if (vector == EXC_DB)
        debug_exception(v, q);
    if (unlikely((info & VEC_TYPE) >> VEC_TYPE_SHIFT == VEC_PRIV_SOFT_EXC))
        vcpu_advance(v, (unsigned)vmread(VMCS_EXIT_INSN_LEN));      /* INT1 is a trap: it returns behind itself */
    e->u.exc.vector = vector;
    e->u.exc.has_error = info & VEC_ERROR;
    e->u.exc.error = e->u.exc.has_error ? (uint32_t)vmread(VMCS_EXIT_ERROR) : 0;
    e->u.exc.dr6 = q;
    return EXIT_EXCEPTION;
}

static enum exit_kind debug_registers(struct vcpu *v)
{
    vmx_load_debug(v);
    return EXIT_INTERNAL;
}

static enum exit_kind fatal(struct vcpu *v, struct exit *e, uint32_t reason, uint64_t q)
{
    e->u.raw.reason = reason, e->u.raw.info1 = q, e->u.raw.info2 = vmread(VMCS_GUEST_PHYSICAL);
    e->u.raw.why = vmx_explain(v, reason);
    return EXIT_FATAL;
}

/*
 * What an exit is, and what more is to be asked.  INSN: caused by an instruction, whose length the CPU tells; MORE: there is a qualification to look at.
 * An entry of 0 is an exit that is not to be.
 */
enum { KIND = 0x3f, MORE = 0x40, INSN = 0x80 };
_Static_assert((int)EXIT_KINDS <= MORE && (int)EXIT_HOST_INTR == 0, "table below");
static const uint8_t plain[VMX_EXIT_REASONS] = {
    [VMX_EXIT_EXCEPTION] = MORE, [VMX_EXIT_EXT_INTR] = MORE, [VMX_EXIT_TRIPLE_FAULT] = EXIT_TRIPLE_FAULT, [VMX_EXIT_INTR_WINDOW] = EXIT_IRQ_WINDOW,
    [VMX_EXIT_NMI_WINDOW] = EXIT_NMI_WINDOW, [VMX_EXIT_TASK_SWITCH] = MORE | INSN,
    [VMX_EXIT_CPUID] = INSN | EXIT_CPUID, [VMX_EXIT_GETSEC] = INSN | EXIT_UD, [VMX_EXIT_HLT] = INSN | EXIT_HLT, [VMX_EXIT_INVD] = INSN | EXIT_INVD,
    [VMX_EXIT_INVLPG] = INSN | EXIT_INVLPG, [VMX_EXIT_RDPMC] = INSN | EXIT_RDPMC, [VMX_EXIT_RDTSC] = INSN | EXIT_RDTSC, [VMX_EXIT_RSM] = INSN | EXIT_UD,
    [VMX_EXIT_VMCALL] = INSN | EXIT_HYPERCALL, [VMX_EXIT_VMCLEAR] = INSN | EXIT_UD, [VMX_EXIT_VMLAUNCH] = INSN | EXIT_UD,
    [VMX_EXIT_VMPTRLD] = INSN | EXIT_UD, [VMX_EXIT_VMPTRST] = INSN | EXIT_UD, [VMX_EXIT_VMREAD] = INSN | EXIT_UD, [VMX_EXIT_VMRESUME] = INSN | EXIT_UD,
    [VMX_EXIT_VMWRITE] = INSN | EXIT_UD, [VMX_EXIT_VMXOFF] = INSN | EXIT_UD, [VMX_EXIT_VMXON] = INSN | EXIT_UD, [VMX_EXIT_CR] = MORE | INSN,
    [VMX_EXIT_DR] = MORE, [VMX_EXIT_IO] = MORE | INSN, [VMX_EXIT_RDMSR] = INSN | EXIT_RDMSR, [VMX_EXIT_WRMSR] = INSN | EXIT_WRMSR,
    [VMX_EXIT_MWAIT] = INSN | EXIT_MWAIT, [VMX_EXIT_MONITOR] = INSN | EXIT_MONITOR, [VMX_EXIT_PAUSE] = INSN | EXIT_PAUSE, [VMX_EXIT_MACHINE_CHECK] = MORE,
    [VMX_EXIT_TPR_BELOW] = EXIT_TPR_BELOW, [VMX_EXIT_APIC_ACCESS] = MORE, [VMX_EXIT_EOI] = MORE, [VMX_EXIT_GDTR_IDTR] = INSN | EXIT_UD,
    [VMX_EXIT_LDTR_TR] = INSN | EXIT_UD, [VMX_EXIT_EPT_VIOLATION] = MORE, [VMX_EXIT_INVEPT] = INSN | EXIT_UD, [VMX_EXIT_RDTSCP] = INSN | EXIT_RDTSCP,
    [VMX_EXIT_PREEMPT_TIMER] = EXIT_TIMER, [VMX_EXIT_INVVPID] = INSN | EXIT_UD, [VMX_EXIT_WBINVD] = INSN | EXIT_WBINVD, [VMX_EXIT_XSETBV] = INSN | EXIT_XSETBV,
    [VMX_EXIT_APIC_WRITE] = MORE, [VMX_EXIT_RDRAND] = INSN | EXIT_UD, [VMX_EXIT_INVPCID] = INSN | EXIT_UD,
    [VMX_EXIT_VMFUNC] = INSN | EXIT_UD, [VMX_EXIT_ENCLS] = INSN | EXIT_UD, [VMX_EXIT_RDSEED] = INSN | EXIT_UD, [VMX_EXIT_XSAVES] = INSN | EXIT_UD,
    [VMX_EXIT_XRSTORS] = INSN | EXIT_UD, [VMX_EXIT_PCONFIG] = INSN | EXIT_UD, [VMX_EXIT_UMWAIT] = INSN | EXIT_UD, [VMX_EXIT_TPAUSE] = INSN | EXIT_UD,
};

static enum exit_kind rare(struct vcpu *v, struct exit *e, uint32_t reason, uint64_t q)
{
    switch (reason) {           /* all of it: a failed entry has bit 31 set */
    case VMX_EXIT_EXT_INTR: case VMX_EXIT_SMI: case VMX_EXIT_IO_SMI: case VMX_EXIT_INIT: return EXIT_HOST_INTR;
    case VMX_EXIT_EXCEPTION: return exception(v, e, q);
    case VMX_EXIT_CR: return control(e, q);
    case VMX_EXIT_DR: return debug_registers(v);
    case VMX_EXIT_TASK_SWITCH: return task_switch(v, e, q);
    case VMX_EXIT_APIC_ACCESS: return vmx_apic_access(v, e, q);
    case VMX_EXIT_APIC_WRITE: e->u.mmio.gpa = q & APICQ_OFFSET; return EXIT_APIC_WRITE;
    case VMX_EXIT_EOI: e->u.exc.vector = (uint8_t)q; return EXIT_EOI_INDUCED;
    case VMX_EXIT_MACHINE_CHECK: case VMX_REASON_ENTRY_FAILED | VMX_EXIT_MACHINE_CHECK: return machine_check(e);
    }
    return fatal(v, e, reason, q);
}

static __attribute__((noinline)) void translate_more(struct vcpu *v, uint32_t reason)
{
    struct vmx_vcpu *x = vmx_of(v);
    struct exit *e = &v->exit;
    uint64_t q = x->last.qualification = vmread_sure(VMCS_QUALIFICATION);
    if (likely(reason == VMX_EXIT_EPT_VIOLATION))
        e->kind = nested_fault(x, e, q);
    else if (likely(reason == VMX_EXIT_IO))
        e->kind = pio(e, q);
    else
        e->kind = rare(v, e, reason, q);
}

void vmx_translate(struct vcpu *v, uint32_t reason)
{
    struct exit *e = &v->exit;
    unsigned p = reason < ARRAY_SIZE(plain) ? plain[reason] : 0;
    e->insn_len = 0;
    e->next_rip = 0;
    if (p & INSN) {
        uint64_t len = vmread_sure(VMCS_EXIT_INSN_LEN);
        e->insn_len = (uint8_t)len;
        e->next_rip = v->rip + len;
    }
    if (unlikely(!p || (p & MORE)))
        translate_more(v, reason);
    else
        e->kind = p & KIND;
}
