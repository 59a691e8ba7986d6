/* What the middle layer decides for each kind of exit. */
#include <string.h>

#include "kernel/vmm/policy.h"
#include "kernel/vmm/vcpu.h"

/* Behind the instruction that exited: as far as the CPU told, or as the decoder finds. */
static inline bool skip(struct vcpu *v, struct exit *e)
{
    if (e->next_rip)
        vcpu_go_on(v, e->next_rip);
    else if (e->insn_len)
        vcpu_advance(v, e->insn_len);
    else
        return vcpu_skip(v);
    return true;
}

static void on_nothing(struct vcpu *v, struct exit *e) {}

static void on_gp(struct vcpu *v, struct exit *e) { vcpu_raise(v, EXC_GP, true, 0); }
static void on_ud(struct vcpu *v, struct exit *e) { vcpu_raise(v, EXC_UD, false, 0); }
static void on_skip(struct vcpu *v, struct exit *e) { skip(v, e); }

static const uint64_t pio_mask[] = { [1] = 0xff, [2] = 0xffff, [4] = 0xffffffff };

static void pio_in(struct vcpu *v, struct exit *e)
{
    struct io *io = &v->io;
    io->size = e->u.pio.what >> PIO_SIZE_SHIFT & PIO_SIZE, io->write = false;
    skip(v, e);
    bus_access(v->vm->ports, v->index, e->u.pio.port, io);
    uint64_t mask = pio_mask[io->size], merged = io->data & mask;
    if (io->size != 4)
        merged |= v->gpr[RAX] & ~mask;
    v->gpr[RAX] = merged;
}

static void on_pio(struct vcpu *v, struct exit *e)
{
    unsigned what = e->u.pio.what;
    struct io *io = &v->io;
    if (unlikely(what & PIO_STRING)) {
        vcpu_emulate(v, e);
    } else if (what & PIO_IN) {
        pio_in(v, e);
    } else {
        io->size = what >> PIO_SIZE_SHIFT & PIO_SIZE, io->write = true, io->data = v->gpr[RAX] & pio_mask[io->size];
        skip(v, e);
        bus_access(v->vm->ports, v->index, e->u.pio.port, io);
    }
}

static void on_cpuid(struct vcpu *v, struct exit *e)
{
    if (likely(skip(v, e)))
        policy_cpuid(v);
}

static void on_rdmsr(struct vcpu *v, struct exit *e)
{
    if (!policy_rdmsr(v, (uint32_t)v->gpr[RCX], &v->msr_val)) {
        on_gp(v, e);
        return;
    }
    v->gpr[RAX] = (uint32_t)v->msr_val;
    v->gpr[RDX] = v->msr_val >> 32;
    skip(v, e);
}

static void on_wrmsr(struct vcpu *v, struct exit *e)
{
    uint64_t val = v->gpr[RDX] << 32 | (uint32_t)v->gpr[RAX];
    if (policy_wrmsr(v, (uint32_t)v->gpr[RCX], val))
        skip(v, e);
    else
        on_gp(v, e);
}

static void on_hlt(struct vcpu *v, struct exit *e)
{
    skip(v, e);
    v->run = RUN_HALTED;
    atomic_or(&v->requests, REQ_EVENT | REQ_IDLE);      /* something deliverable may be pending already */
}

static void on_pause(struct vcpu *v, struct exit *e)
{
    skip(v, e);
    thread_yield_hint();
}

/* Bits of CR4 that this machine does not have: as its CPUID says. */
static bool cr4_valid(struct vcpu *v, uint64_t old, uint64_t val)
{
    const struct cpu_state *st = vcpu_state(v, ST_CRS);
    if (val & ~policy_cr4_mask(v))
        return false;
    if ((st->efer & EFER_LMA) && !(val & CR4_PAE))
        return false;
    bool pcide_on = (val & CR4_PCIDE) && !(old & CR4_PCIDE);
    return !pcide_on || ((st->efer & EFER_LMA) && !(st->cr3 & 0xfff));
}

static void write_cr4_exit(struct vcpu *v, struct exit *e, uint64_t val)
{
    struct cpu_state *st = vcpu_state(v, ST_CRS);
    uint64_t old = st->cr4;
    if (!cr4_valid(v, old, val)) {
        on_gp(v, e);
        return;
    }
    st->cr4 = val;
    vcpu_put_state(v, ST_CRS);
    if ((old ^ val) & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_PCIDE | CR4_SMEP | CR4_SMAP))
        hv->flush(v, FLUSH_LINEAR);
    skip(v, e);
}

static bool cr0_valid(struct vcpu *v, uint64_t val)
{
    const struct cpu_state *st = vcpu_state(v, ST_CRS | ST_SEGS);
    if ((val >> 32) || ((val & CR0_PG) && !(val & CR0_PE)) || ((val & CR0_NW) && !(val & CR0_CD)))
        return false;
    bool paging_on = (val & CR0_PG) && !(st->cr0 & CR0_PG);
    if (paging_on && (st->efer & EFER_LME) && (!(st->cr4 & CR4_PAE) || (st->seg[SEG_CS].attr & BIT(9))))
        return false;
    bool in_64bit = (st->efer & EFER_LMA) && (st->seg[SEG_CS].attr & BIT(9));
    return (val & CR0_PG) || !(in_64bit || (st->cr4 & CR4_PCIDE));
}

static void write_cr0_exit(struct vcpu *v, struct exit *e, uint64_t val)
{
    struct cpu_state *st = vcpu_state(v, ST_CRS);
    if (!cr0_valid(v, val)) {
        on_gp(v, e);
        return;
    }
    uint64_t old = st->cr0;
    st->cr0 = val | CR0_ET;
    if (st->efer & EFER_LME)
        st->efer = val & CR0_PG ? st->efer | EFER_LMA : st->efer & ~EFER_LMA;
    vcpu_put_state(v, ST_CRS);
    if ((old ^ val) & (CR0_PG | CR0_PE | CR0_WP))
        hv->flush(v, FLUSH_LINEAR);
    skip(v, e);
}

/* CR8 is bits 7:4 of the local APIC's TPR.  SDM vol 3 "Interaction of Task Priorities between CR8 and APIC". */
static void write_cr8_exit(struct vcpu *v, struct exit *e, uint64_t val)
{
    enum { APIC_TPR = 0x80 };
    if (val >> 4) {
        on_gp(v, e);
        return;
    }
    if (v->has_irqchip)
        v->irqchip.page[APIC_TPR] = (uint8_t)(val << 4);
    if (hv->tpr_written)
        hv->tpr_written(v);
    atomic_or(&v->requests, REQ_EVENT);
    skip(v, e);
}

static void on_cr(struct vcpu *v, struct exit *e)
{
    if (e->u.cr.gpr == 0xff) {  /* the CPU did not tell the operand */
        const struct insn *insn = vcpu_decode(v);
        if (!insn)
            return;
        e->u.cr.gpr = insn->rm;
    }
    if (!e->u.cr.write && e->u.cr.cr == 4) {    /* intercepted while one of its bits is not the guest's */
        v->gpr[e->u.cr.gpr] = vcpu_state(v, ST_CRS)->cr4;
        skip(v, e);
        return;
    }
    if (!e->u.cr.write) {
        on_ud(v, e);
        return;
    }
    uint64_t val = v->gpr[e->u.cr.gpr];
    if (e->u.cr.clts)
        val = vcpu_state(v, ST_CRS)->cr0 & ~CR0_TS;
    else if (e->u.cr.lmsw)      /* LMSW sets PE but cannot clear it */
        val = (vcpu_state(v, ST_CRS)->cr0 & ~0xeull) | (e->u.cr.lmsw_src & 0xf);
    vcpu_code(v);
    if (vcpu_cpu_mode(v) != MODE_64)
        val = (uint32_t)val;
    if (e->u.cr.cr == 4)
        write_cr4_exit(v, e, val);
    else if (e->u.cr.cr == 0)
        write_cr0_exit(v, e, val);
    else if (e->u.cr.cr == 8)
        write_cr8_exit(v, e, val);
    else
        on_ud(v, e);
}

/* XCR0: SDM vol 1 "Enabling the XSAVE Feature Set": x87 always, AVX needs SSE, the three AVX-512 parts come together and need AVX. */
static bool xcr0_valid(uint64_t val)
{
    enum { X87 = 1, SSE = 2, AVX = 4, AVX512 = 0xe0 };
    if (!(val & X87) || (val & ~policy_xcr0_mask()))
        return false;
    if ((val & AVX) && !(val & SSE))
        return false;
    return !(val & AVX512) || ((val & AVX512) == AVX512 && (val & AVX));
}

static void on_xsetbv(struct vcpu *v, struct exit *e)
{
    uint64_t val = v->gpr[RDX] << 32 | (uint32_t)v->gpr[RAX];
    const struct cpu_state *st = vcpu_state(v, ST_CRS);
    if (!(st->cr4 & CR4_OSXSAVE)) {
        on_ud(v, e);
    } else if (st->cpl || (uint32_t)v->gpr[RCX] || !xcr0_valid(val)) {
        on_gp(v, e);
    } else {
        v->xcr0 = val;
        vcpu_reload(v);
        skip(v, e);
    }
}

/*
 * Intercepted because their delivery can fault into themselves for ever without an exit (#DB, #AC) or because they are the host's business (#MC).
 */
static void on_exception(struct vcpu *v, struct exit *e)
{
    if (e->u.exc.vector == EXC_MC)
        vcpu_crash(v, "the host CPU reported a machine check while this guest ran");
    else
        vcpu_raise(v, e->u.exc.vector, e->u.exc.has_error, e->u.exc.error);
}

static void on_triple_fault(struct vcpu *v, struct exit *e)
{
    struct vm *vm = v->vm;
    uint64_t now = clock_ns();
    bool third = vm->crash_ns[0] && now - vm->crash_ns[0] < 10000000000ull;
    log_limited(&vm->log, LOG_WARN, vm->p.name, "vCPU %u: triple fault at rip %llx, cr2 %llx", v->index, (unsigned long long)v->rip,
                (unsigned long long)vcpu_state(v, ST_CRS)->cr2);
    if (!vm->p.crash_resets || third) {
        vcpu_crash(v, "triple fault%s, cr2 %llx", third ? ", the third within 10 s" : "", (unsigned long long)vcpu_state(v, ST_CRS)->cr2);
        return;
    }
    vm->crash_ns[0] = vm->crash_ns[1];
    vm->crash_ns[1] = now;
    vm_request_reset(vm);
}

/* The hypercalls that go with the paravirtual signature: none is offered, and the answer for an unknown one is -KVM_ENOSYS. */
static void on_hypercall(struct vcpu *v, struct exit *e)
{
    if (vcpu_state(v, ST_CRS)->cpl) {
        on_ud(v, e);
        return;
    }
    v->gpr[RAX] = (uint64_t)-1000;
    skip(v, e);
}

static void on_rdtsc(struct vcpu *v, struct exit *e)
{
    uint64_t t = vcpu_tsc(v);
    v->gpr[RAX] = (uint32_t)t;
    v->gpr[RDX] = t >> 32;
    if (e->kind == EXIT_RDTSCP)
        v->gpr[RCX] = vcpu_state(v, ST_MSRS)->tsc_aux;
    skip(v, e);
}

static void on_window(struct vcpu *v, struct exit *e) { atomic_or(&v->requests, REQ_EVENT); }

static void on_apic_write(struct vcpu *v, struct exit *e) { v->irqchip.wrote(v->irqchip.apic, (uint32_t)e->u.mmio.gpa); }
static void on_eoi(struct vcpu *v, struct exit *e) { v->irqchip.eoi(v->irqchip.apic, e->u.exc.vector); }

static void on_fatal(struct vcpu *v, struct exit *e)
{
    vcpu_crash(v, "%s cannot run the guest: %s%sreason %llx, info %llx %llx", hv->name, e->u.raw.why ? e->u.raw.why : "", e->u.raw.why ? "; " : "",
               (unsigned long long)e->u.raw.reason, (unsigned long long)e->u.raw.info1, (unsigned long long)e->u.raw.info2);
}

exit_fn *const exit_handler[EXIT_KINDS] = {
    [EXIT_HOST_INTR] = on_nothing, [EXIT_INTERNAL] = on_nothing, [EXIT_TIMER] = on_nothing,
    [EXIT_PIO] = on_pio, [EXIT_MMIO] = vcpu_nested_fault, [EXIT_CPUID] = on_cpuid, [EXIT_HLT] = on_hlt,
    [EXIT_RDMSR] = on_rdmsr, [EXIT_WRMSR] = on_wrmsr, [EXIT_CR] = on_cr, [EXIT_DR] = on_ud,
    [EXIT_IRQ_WINDOW] = on_window, [EXIT_NMI_WINDOW] = on_window, [EXIT_TPR_BELOW] = on_window, [EXIT_EOI_INDUCED] = on_eoi,
    [EXIT_PAUSE] = on_pause, [EXIT_EXCEPTION] = on_exception, [EXIT_TRIPLE_FAULT] = on_triple_fault,
    [EXIT_INVD] = on_skip, [EXIT_WBINVD] = on_skip, [EXIT_INVLPG] = on_skip, [EXIT_XSETBV] = on_xsetbv, [EXIT_RDPMC] = on_gp,
    [EXIT_RDTSC] = on_rdtsc, [EXIT_RDTSCP] = on_rdtsc, [EXIT_HYPERCALL] = on_hypercall,
    [EXIT_UD] = on_ud, [EXIT_MONITOR] = on_ud, [EXIT_MWAIT] = on_ud, [EXIT_TASK_SWITCH] = vcpu_task_switch,
    [EXIT_APIC_WRITE] = on_apic_write, [EXIT_FATAL] = on_fatal,
};

const char *exit_kind_name(enum exit_kind k)
{
    static const char *const name[EXIT_KINDS] = {
        "interrupt", "pio", "mmio", "cpuid", "hlt", "rdmsr", "wrmsr", "cr", "dr", "irq-window", "nmi-window", "pause", "exception", "triple-fault",
        "invd", "wbinvd", "xsetbv", "rdpmc", "rdtsc", "rdtscp", "invlpg", "hypercall", "ud", "monitor", "mwait", "task-switch", "apic-write",
        "eoi", "tpr", "timer", "internal", "fatal",
    };
    return k < EXIT_KINDS ? name[k] : "?";
}
