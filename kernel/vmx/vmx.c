/* VT-x behind struct hv_ops. */
#include "kernel/vmx/vmx.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kernel/lib/log.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/mitigations.h"
#include "kernel/x86/percpu.h"

enum { IO_BITMAP_ORDER = 1, APIC_TPR = 0x80, INVEPT_SINGLE = 1, INVEPT_ALL = 2, INVVPID_SINGLE = 1, INVVPID_ALL = 2, VPIDS = 4096 };

uint8_t vmx_scrub;
static hpa_t io_bitmaps;                /* all ports intercepted; shared by all VMs, never written after probe */
static uint64_t vpids[VPIDS / 64];      /* in use, atomics only; 0 is the host's */

hpa_t vmx_io_bitmap(unsigned half) { return io_bitmaps + half * PAGE_SIZE; }

static struct vmx_cpu *this_vmx(void) { return this_cpu()->hv; }

bool vmx_own(const struct vcpu *v) { return vmx_of(v)->thread == thread_self(); }

/* ---- Instructions.  A failure that only a host bug can cause ends the host. ---- */

void vmx_field_failed(enum vmcs_field f, bool write)
{
    panic("VT-x: %s of VMCS field %04x failed", write ? "VMWRITE" : "VMREAD", f);
}

static bool vmxon(hpa_t region)
{
    bool bad;
    __asm__ volatile("vmxon %1" : "=@ccbe"(bad) : "m"(region) : "memory");
    return !bad;
}

static void vmclear(hpa_t vmcs)
{
    bool bad;
    __asm__ volatile("vmclear %1" : "=@ccbe"(bad) : "m"(vmcs) : "memory");
    ASSERT(!bad);
}

static void vmptrld(hpa_t vmcs)
{
    bool bad;
    __asm__ volatile("vmptrld %1" : "=@ccbe"(bad) : "m"(vmcs) : "memory");
    ASSERT(!bad);
}

static void invept(uint64_t type, uint64_t eptp)
{
    struct { uint64_t eptp, zero; } d = { eptp, 0 };
    bool bad;
    __asm__ volatile("invept %1, %2" : "=@ccbe"(bad) : "m"(d), "r"(type) : "memory");
    ASSERT(!bad);
}

static void invvpid(uint64_t type, uint16_t vpid)
{
    struct { uint64_t vpid, linear; } d = { vpid, 0 };
    bool bad;
    __asm__ volatile("invvpid %1, %2" : "=@ccbe"(bad) : "m"(d), "r"(type) : "memory");
    ASSERT(!bad);
}

/* ---- CPU ---- */

static uint64_t read_msr(void *arg, uint32_t msr) { return rdmsr(msr); }

/* The first thing that is missing, as a noun. */
static const char *read_features(void)
{
    struct vmx_features *f = &vmx_features;
    const char *missing = vmx_read_features(f, read_msr, NULL);
    f->rdtscp = (f->secondary.val & SEC_RDTSCP) && cpu_has(FEAT_RDTSCP);
    f->apic_virt &= !(vmm_host.without & WITHOUT_APIC_VIRT);
    f->vpid &= !(vmm_host.without & WITHOUT_VPID);
    f->ept_ad &= !(vmm_host.without & WITHOUT_EPT_AD);
    return missing || cpu_has(FEAT_NX) ? missing : "NX";
}

/* cpu_on runs in interrupt context: what each CPU needs is made here. */
static int make_cpu(unsigned cpu)
{
    struct vmx_cpu *c = kzalloc(sizeof *c);
    hpa_t region = page_alloc(ORDER_4K, PAGE_ZERO);
    if (!c || !region)
        return -ENOMEM;
    *(uint32_t *)pa_to_va(region) = vmx_features.revision;
    c->vmxon = region;
    percpu_of(cpu)->hv = c;
    return 0;
}

/* Per CPU: firmware may have set it on some only.  MSR 3Ah may be hidden by a hypervisor below us: VMXON will tell. */
static bool firmware_allows(char *err, size_t errlen)
{
    uint64_t ctl;
    if (!rdmsr_safe(MSR_FEATURE_CONTROL, &ctl))
        return true;
    enum vmx_firmware fw = vmx_firmware_allows(ctl);
    if (fw == VMX_FW_ON || (fw == VMX_FW_OPEN && wrmsr_safe(MSR_FEATURE_CONTROL, ctl | FEATCTL_LOCKED | FEATCTL_VMX)))
        return true;
    snprintf(err, errlen, "%s", vmx_firmware_sentence);
    return false;
}

static int vmx_probe(char *err, size_t errlen)
{
    if (!cpu_has(FEAT_VMX)) {
        snprintf(err, errlen, "this CPU (%s) has no VT-x", cpu_info.brand);
        return -ENOTSUP;
    }
    if (!firmware_allows(err, errlen))
        return -ENOTSUP;
    const char *missing = read_features();
    if (missing) {
        snprintf(err, errlen, "this CPU's VT-x lacks %s, which Joist needs", missing);
        return -ENOTSUP;
    }
    io_bitmaps = page_alloc(IO_BITMAP_ORDER, 0);
    int failed = !io_bitmaps;
    for (unsigned cpu = 0; !failed && cpu < percpu_count; cpu++)
        failed = make_cpu(cpu);
    if (failed) {
        snprintf(err, errlen, "no memory for VT-x on %u CPUs", percpu_count);
        return -ENOMEM;
    }
    memset(pa_to_va(io_bitmaps), 0xff, PAGE_SIZE << IO_BITMAP_ORDER);
    vpids[0] = 1;
    vmx_scrub = (mitigations.verw ? SCRUB_BUFFERS : 0) | (mitigations.l1d_flush ? SCRUB_L1D : 0) | (mitigations.spec_ctrl_switch ? SCRUB_IBRS : 0);
    vmm_host.nested = &pt_ept;
    vmm_host.apic_virt = vmx_features.apic_virt;
    vmm_host.max_leaf = vmx_features.ept_vpid & EPT_CAP_1G ? ORDER_1G : ORDER_2M;
    log_info("vmx", "EPT%s%s, unrestricted guest%s%s%s", vmx_features.ept_vpid & EPT_CAP_1G ? " with 1 GiB pages" : "", vmx_features.ept_ad ? ", accessed and dirty" : "",
             vmx_features.vpid ? ", VPID" : "", vmx_features.pause_loop ? ", PAUSE-loop exits" : "", vmx_features.apic_virt ? ", APIC virtualization" : "");
    return 0;
}

static int vmx_cpu_on(unsigned cpu, char *err, size_t errlen)
{
    struct vmx_cpu *c = this_vmx();
    if (!firmware_allows(err, errlen))
        return -ENOTSUP;
    write_cr0(read_cr0() | (vmx_features.cr0_must & ~(CR0_PE | CR0_PG)));
    write_cr4(read_cr4() | CR4_VMXE);
    if (!vmxon(c->vmxon)) {
        write_cr4(read_cr4() & ~CR4_VMXE);
        snprintf(err, errlen, "CPU %u refuses VMXON; another hypervisor or the firmware may be using VT-x", cpu);
        return -ENOTSUP;
    }
    c->on = true;
    invept(INVEPT_ALL, 0);      /* what a hypervisor before us left behind */
    if (vmx_features.vpid)
        invvpid(INVVPID_ALL, 0);
    return 0;
}

/* INIT is blocked in VMX operation: a CPU that stays in it can be neither reset nor started again. */
static void vmx_cpu_off(unsigned cpu)
{
    struct vmx_cpu *c = this_vmx();
    if (!c || !c->on)
        return;
    c->on = false;
    __asm__ volatile("vmxoff" ::: "cc", "memory");
    write_cr4(read_cr4() & ~CR4_VMXE);
}

/* ---- VM and vCPU ---- */

static void vmx_vm_fini(struct vm *vm)
{
    struct vmx_vm *x = vmx_vm_of(vm);
    vmx_msr_fini(x);
    vmx_apic_fini(x);
    kfree(x);
    vm->hv = NULL;
}

static int vmx_vm_init(struct vm *vm)
{
    struct vmx_vm *x = kzalloc(sizeof *x);
    if (!x)
        return -ENOMEM;
    vm->hv = x;
    if (!vmx_msr_init(x) && !vmx_apic_init(x))
        return 0;
    vmx_vm_fini(vm);
    return -ENOMEM;
}

/* A VPID of its own for each vCPU.  When they run out (there is room for thousands) a vCPU goes without and its transitions flush. */
static uint16_t vpid_take(void)
{
    for (unsigned n = 0; vmx_features.vpid && n < VPIDS; n++)
        if (!(atomic_load_relaxed(&vpids[n / 64]) & BIT(n % 64)) && !(atomic_or(&vpids[n / 64], BIT(n % 64)) & BIT(n % 64)))
            return (uint16_t)n;
    return 0;
}

static void vmx_vcpu_reset(struct vcpu *v)
{
    struct vmx_vcpu *x = vmx_of(v);
    x->before |= BEFORE_INIT;
    x->event = 0, x->offer.valid = x->offer_injected = x->nmi_window = false, x->interruptibility = 0;
    x->dr_loaded = false;
    memset(x->dr, 0, sizeof x->dr);
}

static int vmx_vcpu_init(struct vcpu *v)
{
    struct vmx_vcpu *x = kzalloc(sizeof *x);
    hpa_t pa = x ? page_alloc(ORDER_4K, PAGE_ZERO) : 0;
    if (!pa) {
        kfree(x);
        return -ENOMEM;
    }
    *(uint32_t *)pa_to_va(pa) = vmx_features.revision;
    x->vmcs = pa, x->cpu = VMX_NOWHERE, x->vpid = vpid_take();
    x->eptp = v->vm->nested.root | EPTP_WB | EPTP_WALK4 | (vmx_features.ept_ad ? EPTP_AD : 0);
    v->hv = x;
    vmx_vcpu_reset(v);
    return 0;
}

static void vmx_vcpu_fini(struct vcpu *v)
{
    struct vmx_vcpu *x = vmx_of(v);
    ASSERT(x->cpu == VMX_NOWHERE);
    if (x->vpid)
        atomic_and(&vpids[x->vpid / 64], ~BIT(x->vpid % 64));
    page_free(x->vmcs, ORDER_4K);
    kfree(x);
    v->hv = NULL;
}

static void set_primary(struct vmx_vcpu *x, uint32_t bits, bool on)
{
    uint32_t want = on ? x->primary | bits : x->primary & ~bits;
    if (want != x->primary)
        vmwrite(VMCS_PRIMARY, x->primary = want);
}

/* Debug registers: DR0-3 and DR6 are switched only for guests that use them; until then every access exits. */
static void debug_in_cpu(struct vmx_vcpu *x)
{
    write_dr0(x->dr[0]), write_dr1(x->dr[1]), write_dr2(x->dr[2]), write_dr3(x->dr[3]), write_dr6(x->dr6);
    set_primary(x, (uint32_t)PRI_MOV_DR, false);
    x->dr_loaded = true;
}

void vmx_load_debug(struct vcpu *v)
{
    preempt_disable();
    debug_in_cpu(vmx_of(v));
    preempt_enable();
}

static void debug_out_of_cpu(struct vmx_vcpu *x)
{
    x->dr[0] = read_dr0(), x->dr[1] = read_dr1(), x->dr[2] = read_dr2(), x->dr[3] = read_dr3(), x->dr6 = read_dr6();
    set_primary(x, (uint32_t)PRI_MOV_DR, true);
    x->dr_loaded = false;
}

static void load_xcr0(struct vmx_vcpu *x, uint64_t xcr0)
{
    if (cpu_has(FEAT_XSAVE) && x->xcr0_loaded != xcr0)
        xsetbv(0, xcr0);
    x->xcr0_loaded = xcr0;
}

static void vmx_load(struct vcpu *v, bool migrated)
{
    struct vmx_vcpu *x = vmx_of(v);
    ASSERT(x->cpu == VMX_NOWHERE);
    x->thread = thread_self();
    x->cpu = cpu_index();
    mitigations_vm_switch(v->vm->serial);
    vmptrld(x->vmcs);
    x->launched = false;
    if (migrated)
        x->before |= BEFORE_FLUSH_LINEAR | BEFORE_FLUSH_NESTED;       /* what this CPU knows may be from an earlier stay */
    x->xcr0_loaded = cpu_info.xcr0;
    load_xcr0(x, v->xcr0);
    vmx_lazy_load(x);
    write_cr2(x->cr2);
    if (x->before & BEFORE_INIT)
        return;
    vmx_vmcs_host();
    if (vmread(VMCS_GUEST_DR7) & 0xff)
        debug_in_cpu(x);
}

static void vmx_put(struct vcpu *v)
{
    struct vmx_vcpu *x = vmx_of(v);
    ASSERT(x->cpu == cpu_index());
    vmx_lazy_put(x);
    x->cr2 = read_cr2();
    load_xcr0(x, cpu_info.xcr0);                /* the scheduler saves vector state under the host's XCR0 */
    if (x->dr_loaded)
        debug_out_of_cpu(x);
    vmclear(x->vmcs);
    x->cpu = VMX_NOWHERE;
}

/* ---- Entry ---- */

static bool above_tpr(const struct vcpu *v, const struct event_info *ev)
{
    return (v->irq_offered & IRQ_EXTINT) || !v->has_irqchip || (ev->vector & 0xf0) > (v->irqchip.page[APIC_TPR] & 0xf0);
}

/*
 * The one event of this entry.  An offered interrupt is injected when the guest can take it; else the exit that comes once it can is asked for: TPR threshold
 * or interrupt window.
 */
static void choose_event(struct vcpu *v, struct vmx_vcpu *x)
{
    uint32_t event = x->event, threshold = 0;
    bool window = false;
    x->offer_injected = false;
    /* Such a CPU must not have a virtual interrupt waiting for IF: interrupt-window exiting holds it back. */
    if (unlikely(x->virq_waits) && (event || !(v->rflags & RFLAGS_IF) || (x->interruptibility & (BLOCK_STI | BLOCK_MOV_SS))))
        window = true;
    else
        x->virq_waits = false;          /* taken at this entry */
    if (x->offer.valid) {
        if (!above_tpr(v, &x->offer))
            threshold = x->offer.vector >> 4;
        else if (event || !(v->rflags & RFLAGS_IF) || (x->interruptibility & (BLOCK_STI | BLOCK_MOV_SS)))
            window = true;
        else
            x->offer_injected = true, event = (uint32_t)VEC_VALID | x->offer.vector;
    }
    /* An NMI window is open while STI's shadow lasts, but not every CPU lets an NMI be injected then: the interrupt window opens behind it. */
    bool sti = x->interruptibility & BLOCK_STI;
    set_primary(x, (uint32_t)PRI_INTR_WINDOW, window || (x->nmi_window && sti));
    set_primary(x, (uint32_t)PRI_NMI_WINDOW, x->nmi_window && !sti);
    if (threshold != x->tpr_threshold)
        vmwrite(VMCS_TPR_THRESHOLD, x->tpr_threshold = threshold);
    x->after |= AFTER_EVENT;
    x->armed = threshold || (x->primary & (PRI_INTR_WINDOW | PRI_NMI_WINDOW));
    if (event == x->entry_event)
        return;
    vmwrite(VMCS_ENTRY_EVENT, x->entry_event = event);
    if (event & VEC_ERROR)
        vmwrite(VMCS_ENTRY_ERROR, x->event_error);
}

/* SDM "Checks on Guest Non-Register State": a shadow that ends with the next instruction keeps a single-step trap pending, unless steps are by branches. */
static void pend_step(void)
{
    uint64_t step = vmread(VMCS_GUEST_DEBUGCTL) & DEBUGCTL_BTF ? 0 : PENDING_DB_BS;
    vmwrite(VMCS_PENDING_DEBUG, (vmread(VMCS_PENDING_DEBUG) & ~(uint64_t)PENDING_DB_BS) | step);
}

/* Rare; interrupts are off. */
static __attribute__((noinline)) void prepare(struct vcpu *v, struct vmx_vcpu *x)
{
    if (x->before & BEFORE_INIT)
        vmx_vmcs_init(v);
    if (x->before & BEFORE_STATE) {
        vmx_write_state(v, &x->late, x->late_groups);
        x->late_groups = 0;
    }
    if (x->before & BEFORE_TSC)
        vmwrite(VMCS_TSC_OFFSET, (uint64_t)x->tsc_offset);
    if (x->before & BEFORE_APIC)
        vmx_apic_update(v);
    if (x->before & BEFORE_FLUSH_NESTED)
        invept(vmx_features.ept_vpid & EPT_CAP_INVEPT_SINGLE ? INVEPT_SINGLE : INVEPT_ALL, x->eptp);
    if ((x->before & BEFORE_FLUSH_LINEAR) && x->vpid)
        invvpid(vmx_features.ept_vpid & VPID_CAP_SINGLE ? INVVPID_SINGLE : INVVPID_ALL, x->vpid);
    if (x->before & BEFORE_EVENT)
        choose_event(v, x);
    if ((x->before & BEFORE_SHADOW) && (v->rflags & RFLAGS_TF) && (x->interruptibility & (BLOCK_STI | BLOCK_MOV_SS)))
        pend_step();
    x->after |= x->before & BEFORE_SHADOW ? AFTER_SHADOW : 0;
    x->before = 0;
}

static inline void put_registers(const struct vcpu *v, struct vmx_vcpu *x)
{
    vmwrite_sure(VMCS_GUEST_RIP, v->rip);
    if (unlikely(x->rsp != v->gpr[RSP]))
        vmwrite(VMCS_GUEST_RSP, x->rsp = v->gpr[RSP]);
    if (unlikely(x->rflags != v->rflags))
        vmwrite(VMCS_GUEST_RFLAGS, x->rflags = v->rflags);
}

static __attribute__((noinline)) void run_prepared(struct vcpu *v)
{
    struct vmx_vcpu *x = vmx_of(v);
    prepare(v, x);
    put_registers(v, x);
    vmx_enter(v, x->launched, &x->host_rsp);
}

/* vmx_run(), vmx_enter(), vmx_exited() and vmx_translate() are one path: each jumps to the next. */
static void vmx_run(struct vcpu *v)
{
    struct vmx_vcpu *x = vmx_of(v);
    if (unlikely(x->before)) {
        run_prepared(v);
        return;
    }
    put_registers(v, x);
    vmx_enter(v, x->launched, &x->host_rsp);
}

static void vmx_run_checked(struct vcpu *v)
{
    struct vmx_vcpu *x = vmx_of(v);
    ASSERT(x->cpu == cpu_index());
    prepare(v, x);
    put_registers(v, x);
    if (!vmx_check_entry(v))
        vmx_enter(v, x->launched, &x->host_rsp);
}

/*
 * An exit came in the middle of delivering an event.  Software interrupts and exceptions are executed again.  An offered interrupt stays on offer, as if it had
 * not been injected.  SDM "Information for VM Exits That Occur During Event Delivery".
 */
static void cut_short(struct vcpu *v, struct vmx_vcpu *x, uint32_t info)
{
    if (unlikely(vmx_features.virq_ignores_if && vmx_apic_virt(v)))
        info = vmx_apic_vectoring(v, info);
    enum vmx_event_type type = (enum vmx_event_type)((info & VEC_TYPE) >> VEC_TYPE_SHIFT);
    if (type == VEC_NMI) {      /* its delivery had blocked NMIs already */
        x->interruptibility &= ~(uint32_t)BLOCK_NMI;
        vmwrite(VMCS_INTERRUPTIBILITY, x->interruptibility);
    }
    if (type == VEC_EXT_INTR && x->offer_injected)
        x->offer_injected = false;
    else if (type == VEC_EXT_INTR || type == VEC_NMI || type == VEC_HW_EXC)
        v->reinject = (struct event_info){
            .type = (enum event_type)type, .vector = (uint8_t)(info & VEC_VECTOR), .valid = true, .has_error = info & VEC_ERROR,
            .error = info & VEC_ERROR ? (uint32_t)vmread(VMCS_IDT_ERROR) : 0,
        };
    atomic_or(&v->requests, REQ_EVENT);
}

/* What was to be delivered has been, or cut_short() has seen to it. */
static void delivered(struct vcpu *v, struct vmx_vcpu *x)
{
    x->event = x->entry_event = 0;
    if (x->offer_injected) {
        v->irq_taken = true;
        x->offer.valid = x->offer_injected = false;
    }
    x->before |= x->offer.valid || x->nmi_window || x->armed ? BEFORE_EVENT : 0;
}

/* Rare; interrupts are off. */
static __attribute__((noinline)) void take_stock(struct vcpu *v, uint32_t reason)
{
    struct vmx_vcpu *x = vmx_of(v);
    v->shadow = x->interruptibility & (BLOCK_STI | BLOCK_MOV_SS);
    x->before |= v->shadow ? BEFORE_SHADOW : 0;
    if (x->last.idt_event & VEC_VALID)
        cut_short(v, x, x->last.idt_event);
    if (x->after & AFTER_EVENT)
        delivered(v, x);
    x->after = 0;
    vmx_translate(v, reason);
}

void vmx_exited(struct vcpu *v)
{
    struct vmx_vcpu *x = vmx_of(v);
    uint32_t reason = x->last.reason = (uint32_t)vmread_sure(VMCS_EXIT_REASON);
    if (unlikely(reason & VMX_REASON_ENTRY_FAILED)) {
        vmx_translate(v, reason);
        return;
    }
    x->launched = true;
    v->rip = vmread_sure(VMCS_GUEST_RIP);
    x->rsp = v->gpr[RSP] = vmread_sure(VMCS_GUEST_RSP);
    x->rflags = v->rflags = vmread_sure(VMCS_GUEST_RFLAGS);
    x->interruptibility = (uint32_t)vmread_sure(VMCS_INTERRUPTIBILITY);
    x->last.idt_event = (uint32_t)vmread_sure(VMCS_IDT_EVENT);
    if (unlikely(x->after | x->interruptibility | (x->last.idt_event & VEC_VALID)))
        take_stock(v, reason);
    else
        vmx_translate(v, reason);
}

void vmx_refused(struct vcpu *v)
{
    vmx_translate(v, vmx_of(v)->last.reason = (uint32_t)VMX_REFUSED | (uint32_t)vmread(VMCS_INSN_ERROR));
}

/* ---- Events ---- */

static void vmx_inject(struct vcpu *v, const struct event_info *ev)
{
    struct vmx_vcpu *x = vmx_of(v);
    x->before |= BEFORE_EVENT;
    if (ev->type == EVENT_INTR && !v->reinject.valid) {
        x->offer = *ev;
        if (vmx_apic_virt(v)) {     /* only the PIC's are injected */
            x->offer.valid = ev->valid && (v->irq_offered & IRQ_EXTINT);
            x->before |= BEFORE_APIC;
        }
        return;
    }
    x->event = (uint32_t)VEC_VALID | ev->vector | (uint32_t)ev->type << VEC_TYPE_SHIFT;
    /* In real mode there are no error codes. */
    if (ev->has_error && (vcpu_state(v, ST_CRS)->cr0 & CR0_PE)) {
        x->event |= (uint32_t)VEC_ERROR;
        x->event_error = ev->error;
    }
}

static bool vmx_can_inject(struct vcpu *v, enum event_type type)
{
    const struct vmx_vcpu *x = vmx_of(v);
    if (x->event)
        return false;
    if (type == EVENT_NMI)      /* some CPUs hold an NMI back after STI, too */
        return !(x->interruptibility & (BLOCK_NMI | BLOCK_MOV_SS | BLOCK_STI));
    return (v->rflags & RFLAGS_IF) && !v->shadow;
}

/* Only NMIs need one: an offer finds its own (choose_event). */
static void vmx_want_window(struct vcpu *v, unsigned windows)
{
    struct vmx_vcpu *x = vmx_of(v);
    x->nmi_window = windows & WINDOW_NMI;
    x->before |= x->nmi_window ? BEFORE_EVENT : 0;
}

static void vmx_flush(struct vcpu *v, enum hv_flush what)
{
    vmx_of(v)->before |= what == FLUSH_NESTED ? BEFORE_FLUSH_NESTED : BEFORE_FLUSH_LINEAR;
}

static void vmx_set_tsc(struct vcpu *v, int64_t offset)
{
    struct vmx_vcpu *x = vmx_of(v);
    x->tsc_offset = offset;
    x->before |= BEFORE_TSC;
}

const struct hv_ops vmx_ops = {
    .name = "VT-x", .probe = vmx_probe, .cpu_on = vmx_cpu_on, .cpu_off = vmx_cpu_off,
    .vm_init = vmx_vm_init, .vm_fini = vmx_vm_fini, .vcpu_init = vmx_vcpu_init, .vcpu_fini = vmx_vcpu_fini, .vcpu_reset = vmx_vcpu_reset,
    .load = vmx_load, .put = vmx_put, .run = vmx_run, .run_checked = vmx_run_checked, .get_state = vmx_get_state, .set_state = vmx_set_state, .get_code = vmx_get_code, .get_seg = vmx_get_seg,
    .inject = vmx_inject, .can_inject = vmx_can_inject, .want_window = vmx_want_window, .flush = vmx_flush, .set_tsc = vmx_set_tsc,
    .set_pass = vmx_set_pass, .apic_page = vmx_apic_page, .dump = vmx_dump,
};
