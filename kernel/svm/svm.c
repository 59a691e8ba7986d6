/* AMD-V behind struct hv_ops. */
#include "kernel/svm/svm.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kernel/lib/log.h"
#include "kernel/sched/torture.h"
#include "kernel/svm/probe.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/mitigations.h"
#include "kernel/x86/percpu.h"
#include "kernel/x86/smp.h"

enum { IOPM_ORDER = 2 /* 12 KiB needed */ };

struct svm_features svm_features;
static hpa_t iopm;              /* all ports intercepted; shared by all VMs, never written after probe */

hpa_t svm_io_bitmap(void) { return iopm; }

static struct svm_cpu *this_svm(void) { return this_cpu()->hv; }

/* ---- CPU ---- */

static bool on_qemu(void)
{
    struct cpuid_regs r = cpu_has(FEAT_HYPERVISOR) ? cpuid(0x40000000, 0) : (struct cpuid_regs){ 0 };
    return r.ebx == 0x54474354 && r.ecx == 0x43544743 && r.edx == 0x47435447;         /* "TCGTCGTCGTCG" */
}

static void read_features(void)
{
    struct cpuid_regs r = cpuid(0x8000000a, 0);
    svm_features = (struct svm_features){
        .edx = r.edx, .nasids = r.ebx, .nrips = r.edx & SVM_FEAT_NRIPS, .flush_asid = r.edx & SVM_FEAT_FLUSH_ASID,
        .pause_filter = r.edx & SVM_FEAT_PAUSE_FILTER, .clean_mask = (r.edx & SVM_FEAT_VMCB_CLEAN) || vmm_host.check_entries ? CLEAN_ALL : 0,
        .qemu = on_qemu(),
    };
}

static int make_cpu(unsigned cpu);

/*
 * QEMU (7.2) clears a bit of CPU 0's hidden flags without a lock whenever any CPU executes FXRSTOR or XRSTOR, and brings back what CPU 0 changes there at that
 * moment: nested paging after #VMEXIT, GIF after STGI.  With two more CPUs or more CPU 0 is left to the host, which changes nothing there.
 */
static void spare_cpu0(void)
{
    static struct cpuset others;
    if (!svm_features.qemu || percpu_count < 3)
        return;
    memset(&others, 0xff, sizeof others);
    others.bits[0] &= ~BIT(0);
    vmm_host.cpus = &others;
    log_info("svm", "guests keep off CPU 0, whose state this QEMU may lose");
}

static int svm_probe(char *err, size_t errlen)
{
    struct svm_facts f = { .brand = cpu_info.brand, .max_ext_leaf = cpu_info.max_ext_leaf, .svm = cpu_has(FEAT_SVM), .nx = cpu_has(FEAT_NX) };
    rdmsr_safe(MSR_VM_CR, &f.vm_cr);
    if (f.svm && f.max_ext_leaf >= 0x8000000a)
        read_features();
    f.features = svm_features.edx, f.nasids = svm_features.nasids;
    int unfit = svm_judge(&f, err, errlen);
    if (unfit)
        return unfit;
    iopm = page_alloc(IOPM_ORDER, 0);
    int failed = !iopm;
    for (unsigned cpu = 0; !failed && cpu < percpu_count; cpu++)
        failed = make_cpu(cpu);
    if (failed) {
        snprintf(err, errlen, "no memory for AMD-V on %u CPUs", percpu_count);
        return -ENOMEM;
    }
    memset(pa_to_va(iopm), 0xff, PAGE_SIZE << IOPM_ORDER);
    spare_cpu0();
    vmm_host.nested = &pt_npt;
    vmm_host.spec_ctrl = mitigations.spec_ctrl_guest;
    vmm_host.max_leaf = cpu_has(FEAT_PDPE1GB) ? ORDER_1G : ORDER_2M;
    log_info("svm", "nested paging, %u ASIDs%s%s%s%s", svm_features.nasids, svm_features.nrips ? ", next RIP" : "",
             svm_features.flush_asid ? ", flush by ASID" : "",
             svm_features.pause_filter ? ", PAUSE filter" : "", svm_features.clean_mask ? ", clean bits" : "");
    return 0;
}

/* cpu_on runs in interrupt context: what each CPU needs is made here. */
static int make_cpu(unsigned cpu)
{
    struct svm_cpu *c = kzalloc(sizeof *c);
    hpa_t hsave = page_alloc(ORDER_4K, PAGE_ZERO), host = page_alloc(ORDER_4K, PAGE_ZERO);
    if (!c || !hsave || !host)
        return -ENOMEM;
    *c = (struct svm_cpu){ .hsave = hsave, .host_vmcb = host, .asid_gen = 1, .asid_next = 1, .asid_max = svm_features.nasids - 1 };
    percpu_of(cpu)->hv = c;
    return 0;
}

static int svm_cpu_on(unsigned cpu, char *err, size_t errlen)
{
    struct svm_cpu *c = this_svm();
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);
    wrmsr(MSR_VM_HSAVE_PA, c->hsave);
    __asm__ volatile("vmsave %%rax" :: "a"(c->host_vmcb) : "memory");
    c->on = true;
    return 0;
}

static void svm_cpu_off(unsigned cpu)
{
    struct svm_cpu *c = this_svm();
    if (!c || !c->on)
        return;
    c->on = false;
    __asm__ volatile("stgi");
    wrmsr(MSR_VM_HSAVE_PA, 0);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_SVME);
}

/* ---- VM and vCPU ---- */

static int svm_vcpu_init(struct vcpu *v)
{
    struct svm_vcpu *s = kzalloc(sizeof *s);
    hpa_t pa = s ? page_alloc(ORDER_4K, PAGE_ZERO) : 0;
    if (!pa) {
        kfree(s);
        return -ENOMEM;
    }
    s->pa = pa, s->vmcb = pa_to_va(pa);
    v->hv = s;
    svm_vmcb_init(v);
    return 0;
}

static void svm_vcpu_fini(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    page_free(s->pa, ORDER_4K);
    kfree(s);
    v->hv = NULL;
}

/* Debug registers: DR0-3 are switched only for guests that use them; until then every access exits. */
static void debug_in_cpu(struct svm_vcpu *s)
{
    write_dr0(s->dr[0]), write_dr1(s->dr[1]), write_dr2(s->dr[2]), write_dr3(s->dr[3]);
    s->vmcb->intercept[ICPT_DR] = 0;
    s->dr_loaded = true;
    svm_dirty(s, CLEAN_I);
}

void svm_load_debug(struct vcpu *v)
{
    preempt_disable();
    debug_in_cpu(svm_of(v));
    preempt_enable();
}

static void debug_out_of_cpu(struct svm_vcpu *s)
{
    s->dr[0] = read_dr0(), s->dr[1] = read_dr1(), s->dr[2] = read_dr2(), s->dr[3] = read_dr3();
    s->vmcb->intercept[ICPT_DR] = (uint32_t)ICPT_DR_ALL;
    s->dr_loaded = false;
    svm_dirty(s, CLEAN_I);
}

static void load_xcr0(struct svm_vcpu *s, uint64_t xcr0)
{
    if (cpu_has(FEAT_XSAVE) && s->xcr0_loaded != xcr0)
        xsetbv(0, xcr0);
    s->xcr0_loaded = xcr0;
}

/*
 * QEMU's software SVM (to 7.2 at least) has no XSETBV intercept: the guest's value is found in the CPU.  Where the intercept works this changes nothing.
 */
void svm_notice_xcr0(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    preempt_disable();
    if (s->loaded && cpu_has(FEAT_XSAVE) && xgetbv(0) != s->xcr0_loaded)
        v->xcr0 = s->xcr0_loaded = xgetbv(0);
    preempt_enable();
}

/* CR2 is written because Bochs (to 2.7 at least) does not load it at VMRUN: a guest would find the last one that its CPU knew.  See svm_inject() too. */
static void svm_load(struct vcpu *v, bool migrated)
{
    struct svm_vcpu *s = svm_of(v);
    struct svm_cpu *c = this_svm();
    if (migrated)
        s->vmcb->clean = 0, s->asid_gen = 0;    /* another CPU's ASID and VMCB cache mean nothing here */
    if (s->asid_gen != c->asid_gen)
        s->before |= BEFORE_ASID;
    s->host_vmcb = c->host_vmcb;
    mitigations_vm_switch(v->vm->serial);
    s->loaded = true;
    s->xcr0_loaded = cpu_info.xcr0;
    load_xcr0(s, v->xcr0);
    if (cpu_has(FEAT_RDTSCP))
        wrmsr(MSR_TSC_AUX, s->tsc_aux);
    if (s->vmcb->dr7 & 0xff)
        debug_in_cpu(s);
    write_cr2(s->vmcb->cr2);
}

static void svm_put(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    svm_notice_xcr0(v);
    s->loaded = false;
    load_xcr0(s, cpu_info.xcr0);                /* the scheduler saves vector state under the host's XCR0 */
    if (s->dr_loaded)
        debug_out_of_cpu(s);
}

/* ---- Entry ---- */

static void watch_cr8(struct svm_vcpu *s, bool on)
{
    uint32_t bit = (uint32_t)ICPT_CR_WRITE(8);
    if (likely(!(s->vmcb->intercept[ICPT_CR] & bit) == !on))
        return;
    s->vmcb->intercept[ICPT_CR] ^= bit;
    svm_dirty(s, CLEAN_I);
}

/*
 * The CPU takes a virtual interrupt when its priority is above the TPR; QEMU's software SVM (to 7.2 at least) takes an equal one, too.  So an interrupt that
 * the TPR holds back has priority 0, which no TPR that holds anything back lets through, and while one is pending that cannot be taken at once the guest's
 * writes to CR8 exit, for it to be weighed again.
 */
static void weigh(struct vcpu *v, struct svm_vcpu *s)
{
    struct vmcb *b = s->vmcb;
    uint64_t class = (b->vintr & V_INTR_VECTOR) >> (V_INTR_VECTOR_SHIFT + 4);
    bool above = (b->vintr & V_IGN_TPR) || class > *s->tpr >> 4;
    b->vintr = (b->vintr & ~V_INTR_PRIO) | (above ? class << V_INTR_PRIO_SHIFT : 0);
    watch_cr8(s, (b->vintr & V_IRQ) && !(above && (v->rflags & RFLAGS_IF) && !v->shadow));
    svm_dirty(s, CLEAN_TPR);
}

/*
 * What can be taken at once is injected where the CPU is more than QEMU's (which delivers an external interrupt from EVENTINJ twice and has no next-RIP save):
 * Bochs (to 2.7 at least) sees V_IRQ only when the guest sets IF.
 */
static void inject_offered(struct vcpu *v, struct svm_vcpu *s)
{
    struct vmcb *b = s->vmcb;
    bool above = (b->vintr & V_IGN_TPR) || (b->vintr & V_INTR_PRIO);
    if (!(b->vintr & V_IRQ) || !above || !(v->rflags & RFLAGS_IF) || v->shadow || (b->eventinj & EVT_VALID))
        return;
    b->eventinj = EVT_VALID | (uint64_t)EVENT_INTR << EVT_TYPE_SHIFT | (b->vintr & V_INTR_VECTOR) >> V_INTR_VECTOR_SHIFT;
    b->vintr &= ~V_IRQ;
    s->after |= AFTER_ONCE;
    svm_dirty(s, CLEAN_TPR);
}

static inline void put_registers(const struct vcpu *v, struct vmcb *b)
{
    b->rax = v->gpr[RAX], b->rsp = v->gpr[RSP], b->rip = v->rip, b->rflags = v->rflags;
}

/*
 * QEMU's software SVM (to 7.2 at least) does not put the interrupt shadow back at VMRUN: a pending interrupt would be taken right behind STI or MOV SS.  There the
 * offer is held back for one instruction, by a single step.  If that faults the fault is not delivered, for its frame would show TF: the instruction starts anew,
 * behind the interrupt.  (A PUSHF does show TF.)
 */
#define NOWHERE BIT(63)
static void begin_step(struct svm_vcpu *s)
{
    struct vmcb *b = s->vmcb;
    if (!svm_features.qemu || !(b->vintr & V_IRQ) || (b->rflags & (RFLAGS_IF | RFLAGS_TF)) != RFLAGS_IF || (b->eventinj & EVT_VALID))
        return;
    s->step.exceptions = b->intercept[ICPT_EXC], s->step.dr6 = b->dr6;
    b->intercept[ICPT_EXC] = ~0u;
    b->vintr &= ~V_IRQ;
    b->rflags |= RFLAGS_TF;
    svm_dirty(s, CLEAN_I | CLEAN_TPR);
    s->after |= AFTER_STEP;
}

/* The exit that ends the step tells nobody anything. */
static void end_step(struct vcpu *v, struct svm_vcpu *s)
{
    struct vmcb *b = s->vmcb;
    uint64_t vector = b->exitcode - SVM_EXIT_EXC;
    b->intercept[ICPT_EXC] = s->step.exceptions;
    b->vintr |= V_IRQ;
    v->rflags &= ~(uint64_t)RFLAGS_TF;
    svm_dirty(s, CLEAN_I | CLEAN_TPR);
    if (vector > 31 || vector == EXC_MC)
        return;
    b->exitcode = SVM_EXIT_INTR;
    b->dr6 = s->step.dr6;
    svm_dirty(s, CLEAN_DRX);
    s->shadow_rip = NOWHERE;
}

/* Rare; interrupts are off. */
static __attribute__((noinline)) void prepare(struct vcpu *v, struct svm_vcpu *s)
{
    if (s->before & BEFORE_ASID) {
        svm_new_asid(this_svm(), s);
        s->after |= AFTER_ONCE;
    }
    if (s->before & BEFORE_OFFER)
        inject_offered(v, s);
    if (s->before & BEFORE_SPEC_CTRL)
        mitigations_spec_to_guest(s->spec_ctrl_run);
    put_registers(v, s->vmcb);
    if ((s->before & BEFORE_SHADOW) && v->shadow) {         /* else our emulation of an instruction has ended it */
        s->shadow_rip = v->rip;
        begin_step(s);
    }
    s->before &= BEFORE_SPEC_CTRL;
}

static __attribute__((noinline)) void run_prepared(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    prepare(v, s);
    svm_enter(s->pa, v, s->host_vmcb);
}

/* svm_run(), svm_enter(), svm_exited() and svm_translate() are one path: each jumps to the next. */
static void svm_run(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    if (unlikely(s->before)) {
        run_prepared(v);
        return;
    }
    put_registers(v, s->vmcb);
    svm_enter(s->pa, v, s->host_vmcb);
}

/*
 * An exit came in the middle of delivering an event.  Software interrupts are executed again.  An external interrupt goes back into V_IRQ, as
 * if it had not been taken: EVENTINJ of external interrupts is delivered twice by QEMU's software SVM.
 */
static void cut_short(struct vcpu *v, struct svm_vcpu *s, uint64_t info)
{
    enum event_type type = (enum event_type)((info & EVT_TYPE) >> EVT_TYPE_SHIFT);
    uint8_t vector = (uint8_t)(info & EVT_VECTOR);
    if (type == EVENT_SOFT_INTR || (type == EVENT_EXCEPTION && (vector == EXC_BP || vector == EXC_OF)))
        return;
    bool vintr = type == EVENT_INTR || ((s->vmcb->vintr & V_IRQ) && vector == (uint8_t)v->irq_offered);    /* QEMU calls it an exception, and keeps V_IRQ */
    if (vintr && v->irq_offered != IRQ_NONE) {
        s->vmcb->vintr |= V_IRQ;
        svm_dirty(s, CLEAN_TPR);
        return;
    }
    v->reinject = (struct event_info){
        .type = type, .vector = vector, .valid = true, .has_error = type == EVENT_EXCEPTION && (info & EVT_ERROR_VALID) && svm_pushes_error(vector),
        .error = (uint32_t)(info >> EVT_ERROR_SHIFT),
    };
    atomic_or(&v->requests, REQ_EVENT);
}

static __attribute__((noinline)) void take_stock(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    struct vmcb *b = s->vmcb;
    if (s->after & AFTER_ONCE)
        b->eventinj = 0, b->tlb_control = TLB_FLUSH_NONE;
    if (s->after & AFTER_STEP)
        end_step(v, s);
    /* QEMU forgot the shadow at VMRUN; if no instruction ran, it is still in force. */
    v->shadow = (b->int_shadow & INT_SHADOW) || (v->shadow && s->shadow_rip == b->rip);
    if (v->shadow)
        s->before |= BEFORE_SHADOW;
    if (b->exitintinfo & EVT_VALID)
        cut_short(v, s, b->exitintinfo);
    if ((uint8_t)b->vintr != s->v_tpr)                  /* the guest wrote CR8 */
        s->v_tpr = (uint8_t)b->vintr, *s->tpr = (uint8_t)(s->v_tpr << 4);
    if (v->irq_offered != IRQ_NONE && !(b->vintr & V_IRQ))
        v->irq_taken = true;
    if (s->nmi == NMI_AT_IRET && b->rip != s->iret_rip) {
        s->nmi = NMI_OPEN;
        atomic_or(&v->requests, REQ_EVENT);
    }
    s->after = (v->shadow ? AFTER_SHADOW : 0) | (v->irq_offered != IRQ_NONE && !v->irq_taken ? AFTER_OFFER : 0) | (s->nmi == NMI_AT_IRET ? AFTER_IRET : 0);
    if ((s->after & AFTER_OFFER) && svm_features.nrips)
        s->before |= BEFORE_OFFER;
    svm_translate(v);
}

void svm_exited(struct vcpu *v)
{
    const struct svm_vcpu *s = svm_of(v);
    struct vmcb *b = s->vmcb;
    v->gpr[RAX] = b->rax, v->gpr[RSP] = b->rsp, v->rip = b->rip, v->rflags = b->rflags;
    b->clean = svm_features.clean_mask;
    if (unlikely(s->after | (b->int_shadow & INT_SHADOW) | (b->exitintinfo & EVT_VALID) | ((uint8_t)b->vintr ^ s->v_tpr)))
        take_stock(v);
    else
        svm_translate(v);
}

/* check=vmcb.  A broken clean bit is a bug of ours; a VMCB that silicon refuses may be the guest's doing and is answered as the CPU would. */
static __attribute__((noinline)) bool entry_is_sound(const struct svm_cpu *c, struct svm_vcpu *s)
{
    struct vmcb *b = s->vmcb;
    uint64_t broken = s->hash_cpu == c ? svm_broken_groups(b, b->clean, s->hash) : b->clean;
    if (broken)
        panic("svm: VMCB clean-bit groups %llx are marked clean and are not", (unsigned long long)broken);
    if (!svm_vmcb_flaw(b, cpu_info.phys_bits))
        return true;
    b->exitcode = SVM_EXIT_INVALID;
    b->exitinfo1 = b->exitinfo2 = b->exitintinfo = 0;
    return false;
}

static __attribute__((noinline)) void remember_groups(const struct svm_cpu *c, struct svm_vcpu *s)
{
    svm_hash_groups(s->vmcb, s->hash);
    s->hash_cpu = c;
}

/* check=vmcb torture=N: one in N entries ends before the guest's first instruction.  Interrupts off. */
static __attribute__((noinline)) void torture_entry(void)
{
    if (torture_rate && rdtsc() * 0x9e3779b97f4a7c15ull >> 32 < (1ull << 32) / torture_rate)
        smp_kick(cpu_index());
}

static void svm_run_checked(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    const struct svm_cpu *c = this_svm();
    prepare(v, s);
    torture_entry();
    if (entry_is_sound(c, s))
        svm_enter(s->pa, v, s->host_vmcb);
    else
        svm_exited(v);
    remember_groups(c, s);
}

/* ---- Events ---- */

static void offer(struct vcpu *v, struct svm_vcpu *s, const struct event_info *ev)
{
    struct vmcb *b = s->vmcb;
    b->vintr &= ~(V_IRQ | V_INTR_PRIO | V_IGN_TPR | V_INTR_VECTOR);
    if (ev->valid)
        b->vintr |= V_IRQ | (uint64_t)ev->vector << V_INTR_VECTOR_SHIFT | ((v->irq_offered & IRQ_EXTINT) ? V_IGN_TPR : 0);
    weigh(v, s);
    s->after |= ev->valid ? AFTER_OFFER : 0;
    s->before |= ev->valid && svm_features.nrips ? BEFORE_OFFER : 0;
}

static void svm_inject(struct vcpu *v, const struct event_info *ev)
{
    struct svm_vcpu *s = svm_of(v);
    if (ev->type == EVENT_INTR) {
        offer(v, s, ev);
        return;
    }
    bool error = ev->has_error && (s->vmcb->cr0 & CR0_PE);      /* real mode knows none */
    s->vmcb->eventinj = EVT_VALID | ev->vector | (uint64_t)ev->type << EVT_TYPE_SHIFT | (error ? EVT_ERROR_VALID | (uint64_t)ev->error << EVT_ERROR_SHIFT : 0);
    if (ev->vector == EXC_PF && ev->type == EVENT_EXCEPTION)
        write_cr2(s->vmcb->cr2);
    s->after |= AFTER_ONCE;
    if (ev->type == EVENT_NMI) {
        s->nmi = NMI_IN_HANDLER;
        s->vmcb->intercept[ICPT_MISC1] |= (uint32_t)ICPT_IRET;
        svm_dirty(s, CLEAN_I);
    }
}

static bool svm_can_inject(struct vcpu *v, enum event_type type)
{
    const struct svm_vcpu *s = svm_of(v);
    if (s->vmcb->eventinj & EVT_VALID)
        return false;
    if (type == EVENT_NMI)              /* the one shadow bit is most often STI's, which does not hold an NMI back */
        return s->nmi == NMI_OPEN;
    return (v->rflags & RFLAGS_IF) && !v->shadow;
}

/* Interrupts need no window: V_IRQ waits by itself.  An NMI waits for the handler's IRET, which exits already (take_stock() asks again). */
static void svm_want_window(struct vcpu *v, unsigned windows) {}

static void svm_flush(struct vcpu *v, enum hv_flush what)
{
    struct svm_vcpu *s = svm_of(v);
    svm_flush_asid(s, svm_features.flush_asid);
    s->before |= s->asid_gen ? 0 : BEFORE_ASID;
    s->after |= AFTER_ONCE;
}

static void svm_set_tsc(struct vcpu *v, int64_t offset)
{
    svm_of(v)->vmcb->tsc_offset = (uint64_t)offset;
    svm_dirty(svm_of(v), CLEAN_I);
}

/* take_stock() carries it the other way. */
static void svm_tpr_written(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    s->v_tpr = *s->tpr >> 4;
    s->vmcb->vintr = (s->vmcb->vintr & ~V_TPR) | s->v_tpr;
    weigh(v, s);
}


const struct hv_ops svm_ops = {
    .name = "AMD-V", .probe = svm_probe, .cpu_on = svm_cpu_on, .cpu_off = svm_cpu_off,
    .vm_init = svm_msr_init, .vm_fini = svm_msr_fini, .vcpu_init = svm_vcpu_init, .vcpu_fini = svm_vcpu_fini, .vcpu_reset = svm_vmcb_init,
    .load = svm_load, .put = svm_put, .run = svm_run, .run_checked = svm_run_checked, .get_state = svm_get_state, .set_state = svm_set_state, .get_code = svm_get_code, .get_seg = svm_get_seg,
    .inject = svm_inject, .can_inject = svm_can_inject, .want_window = svm_want_window, .flush = svm_flush, .set_tsc = svm_set_tsc,
    .set_pass = svm_set_pass, .tpr_written = svm_tpr_written, .dump = svm_dump,
};
