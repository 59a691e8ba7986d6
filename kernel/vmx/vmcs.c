/* VMCS contents: start values, and architectural state in and out. */
#include "kernel/vmx/vmx.h"

#include <stdio.h>
#include <string.h>

#include "kernel/x86/cpu.h"
#include "kernel/x86/percpu.h"
#include "kernel/x86/trap.h"

/* Bits of CR0 and CR4 that a guest does not change by itself: it reads the shadow, and a write that differs from the shadow exits. */
#define CR0_OWNED       (CR0_NE | CR0_NW | CR0_CD)
#define CR4_FREE        (CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT)
#define CR4_OWNED       (~CR4_FREE)

enum { PLE_GAP = 128, PLE_WINDOW = 4096, PDPTES = 4, LONGEST_STAY_MS = 4 };

/* ---- Start values, in the order of the manual ---- */

static void write_controls(struct vcpu *v, struct vmx_vcpu *x)
{
    uint32_t secondary = vmx_features.secondary.val;
    x->primary = vmx_features.primary.val;
    if (!v->has_irqchip)
        x->primary = (x->primary & ~(uint32_t)PRI_TPR_SHADOW) | PRI_CR8_LOAD | PRI_CR8_STORE;
    if (!x->vpid)
        secondary &= ~(uint32_t)SEC_VPID;
    /* A lone vCPU that spins waits for nobody.  With PAUSE-loop exiting the CPU tells a spin from a PAUSE. */
    if (v->vm->p.ncpus == 1)
        secondary &= ~(uint32_t)SEC_PAUSE_LOOP;
    else if (!(secondary & SEC_PAUSE_LOOP))
        x->primary |= PRI_PAUSE;
    vmwrite(VMCS_PIN, vmx_features.pin.val);
    /* Every entry starts it anew: an interrupt of the host that does not end a guest which spins (Bochs: with IF=0 at the entry) waits so long. */
    if (vmx_features.pin.val & PIN_PREEMPT_TIMER)
        vmwrite(VMCS_PREEMPT_TIMER, MAX(1u, (uint32_t)(vmm_host.tsc_hz / 1000 * LONGEST_STAY_MS >> vmx_features.timer_shift)));
    vmwrite(VMCS_PRIMARY, x->primary);
    vmwrite(VMCS_SECONDARY, x->secondary = secondary);
    vmwrite(VMCS_EXIT_CTL, vmx_features.exit.val);
    vmwrite(VMCS_ENTRY_CTL, vmx_features.entry.val);
    vmwrite(VMCS_EXCEPTIONS, BIT(EXC_DB) | BIT(EXC_AC) | BIT(EXC_MC));
    vmwrite(VMCS_PF_MASK, 0);
    vmwrite(VMCS_PF_MATCH, 0);
    vmwrite(VMCS_CR3_TARGETS, 0);
    vmwrite(VMCS_CR0_MASK, CR0_OWNED);
    vmwrite(VMCS_CR4_MASK, CR4_OWNED);
    vmwrite(VMCS_IO_BITMAP_A, vmx_io_bitmap(0));
    vmwrite(VMCS_IO_BITMAP_B, vmx_io_bitmap(1));
    vmwrite(VMCS_MSR_BITMAP, vmx_vm_of(v->vm)->msr_bitmap);
    vmwrite(VMCS_EPTP, x->eptp);
    vmwrite(VMCS_TSC_OFFSET, (uint64_t)x->tsc_offset);
    if (x->vpid)
        vmwrite(VMCS_VPID, x->vpid);
    if (secondary & SEC_PAUSE_LOOP)
        vmwrite(VMCS_PLE_GAP, PLE_GAP), vmwrite(VMCS_PLE_WINDOW, PLE_WINDOW);
    if (v->has_irqchip)
        vmwrite(VMCS_VIRTUAL_APIC, va_to_pa(v->irqchip.page)), vmwrite(VMCS_TPR_THRESHOLD, 0);
    for (unsigned i = 0; vmx_apic_virt(v) && i < ARRAY_SIZE(x->eoi_exit); i++)
        vmwrite(vmcs_nth(VMCS_EOI_EXIT0, i), x->eoi_exit[i] = 0);
    if (vmx_apic_virt(v))
        vmwrite(VMCS_APIC_ACCESS, vmx_vm_of(v->vm)->apic_page);
    vmwrite(VMCS_EXIT_MSR_STORES, 0);
    vmwrite(VMCS_EXIT_MSR_LOADS, 0);
    vmwrite(VMCS_ENTRY_MSR_LOADS, 0);
    vmwrite(VMCS_ENTRY_EVENT, 0);
    vmwrite(VMCS_ENTRY_ERROR, 0);
    vmwrite(VMCS_ENTRY_INSN_LEN, 0);
}

static void write_host(void)
{
    vmwrite(VMCS_HOST_CR0, read_cr0());
    vmwrite(VMCS_HOST_CR3, read_cr3());         /* all threads share the kernel's address space */
    vmwrite(VMCS_HOST_CR4, read_cr4());
    vmwrite(VMCS_HOST_CS, KERNEL_CS);
    vmwrite(VMCS_HOST_SS, KERNEL_DS);
    vmwrite(VMCS_HOST_DS, KERNEL_DS);
    vmwrite(VMCS_HOST_ES, KERNEL_DS);
    vmwrite(VMCS_HOST_FS, 0);
    vmwrite(VMCS_HOST_GS, 0);
    vmwrite(VMCS_HOST_TR, KERNEL_TSS);
    vmwrite(VMCS_HOST_FS_BASE, 0);
    vmwrite(VMCS_HOST_SYSENTER_CS, 0);
    vmwrite(VMCS_HOST_SYSENTER_ESP, 0);
    vmwrite(VMCS_HOST_SYSENTER_EIP, 0);
    vmwrite(VMCS_HOST_PAT, rdmsr(MSR_PAT));
    vmwrite(VMCS_HOST_EFER, rdmsr(MSR_EFER));
    vmwrite(VMCS_HOST_RIP, (uint64_t)vmx_exit_point);
    vmx_vmcs_host();
}

void vmx_vmcs_host(void)
{
    struct percpu *p = this_cpu();
    struct x86_dtr idtr;
    __asm__ volatile("sidt %0" : "=m"(idtr));
    vmwrite(VMCS_HOST_GS_BASE, (uint64_t)p);
    vmwrite(VMCS_HOST_TR_BASE, (uint64_t)&p->tss);
    vmwrite(VMCS_HOST_GDTR_BASE, (uint64_t)p->gdt);
    vmwrite(VMCS_HOST_IDTR_BASE, idtr.base);
}

void vmx_vmcs_init(struct vcpu *v)
{
    struct vmx_vcpu *x = vmx_of(v);
    write_controls(v, x);
    write_host();
    vmwrite(VMCS_LINK, ~0ull);
    vmwrite(VMCS_ACTIVITY, 0);
    vmwrite(VMCS_PENDING_DEBUG, 0);
    vmwrite(VMCS_GUEST_RSP, x->rsp = v->gpr[RSP]);
    vmwrite(VMCS_GUEST_RFLAGS, x->rflags = v->rflags);
    x->host_rsp = 0, x->tpr_threshold = 0, x->entry_event = 0;
    x->offer_injected = x->armed = x->virq_waits = false;
    x->before |= BEFORE_EVENT | BEFORE_FLUSH_LINEAR | BEFORE_FLUSH_NESTED | (vmx_apic_virt(v) ? BEFORE_APIC : 0);
}

/* ---- Segments ---- */

/* Access rights are the attributes of struct cpu_seg with four reserved bits in between, and a bit for what the VMCB calls not present. */
static struct cpu_seg read_seg(unsigned i)
{
    uint32_t rights = (uint32_t)vmread(vmcs_nth(VMCS_GUEST_RIGHTS, i));
    uint16_t attr = (uint16_t)((rights & 0xff) | (rights >> 4 & 0xf00));
    if (rights & RIGHTS_UNUSABLE)
        attr &= (uint16_t)(i == SEG_SS ? 0x60 : 0);     /* the DPL of SS is the CPL */
    return (struct cpu_seg){
        .base = vmread(vmcs_nth(VMCS_GUEST_BASE, i)), .limit = (uint32_t)vmread(vmcs_nth(VMCS_GUEST_LIMIT, i)),
        .sel = (uint16_t)vmread(vmcs_nth(VMCS_GUEST_SEL, i)), .attr = attr,
    };
}

static void write_seg(unsigned i, const struct cpu_seg *s)
{
    enum { PRESENT = 0x80, ACCESSED = 1, BUSY = 2, TSS_BUSY = 0x8b };
    uint32_t rights = (s->attr & 0xffu) | (s->attr & 0xf00u) << 4;
    if (i == SEG_TR)            /* TR is always usable and busy */
        rights = s->attr & PRESENT ? rights | BUSY : TSS_BUSY;
    else if (!(s->attr & PRESENT))
        rights |= RIGHTS_UNUSABLE;
    else if (i < SEG_LDTR)      /* a loaded segment has been accessed */
        rights |= ACCESSED;
    vmwrite(vmcs_nth(VMCS_GUEST_SEL, i), s->sel);
    vmwrite(vmcs_nth(VMCS_GUEST_BASE, i), s->base);
    vmwrite(vmcs_nth(VMCS_GUEST_LIMIT, i), s->limit);
    vmwrite(vmcs_nth(VMCS_GUEST_RIGHTS, i), rights);
}

/* ---- Control registers ---- */

static bool pae_paging(const struct cpu_state *st) { return (st->cr0 & CR0_PG) && (st->cr4 & CR4_PAE) && !(st->efer & EFER_LMA); }

/* The CPU loads the PDPTEs when the guest moves to CR3; when we do it for the guest, so must we.  SDM "PDPTE Registers". */
static void fetch_pdptes(struct vcpu *v, const struct cpu_state *st)
{
    struct vmx_vcpu *x = vmx_of(v);
    uint64_t reserved = BITS(63, vmm_host.phys_bits) | BITS(8, 5) | BITS(2, 1);
    if (gmem_read(&v->vm->gmem, st->cr3 & BITS(31, 5), x->pdpte, sizeof x->pdpte))
        memset(x->pdpte, 0, sizeof x->pdpte);
    for (unsigned i = 0; i < PDPTES; i++)
        if ((x->pdpte[i] & PTE_P) && (x->pdpte[i] & reserved))
            x->pdpte[i] = 0;                    /* the CPU refuses an entry with them */
}

static void write_crs(struct vmx_vcpu *x, const struct cpu_state *st)
{
    uint64_t cr0_must = vmx_features.cr0_must & ~(CR0_PE | CR0_PG);
    vmwrite(VMCS_GUEST_CR0, ((st->cr0 & ~(CR0_NW | CR0_CD)) | cr0_must | CR0_ET) & vmx_features.cr0_may);
    vmwrite(VMCS_CR0_SHADOW, st->cr0);
    /* A machine check must reach the host even if the guest does not care. */
    vmwrite(VMCS_GUEST_CR4, st->cr4 | vmx_features.cr4_must | (read_cr4() & CR4_MCE));
    vmwrite(VMCS_CR4_SHADOW, st->cr4);
    vmwrite(VMCS_GUEST_CR3, st->cr3);
    vmwrite(VMCS_GUEST_EFER, st->efer);
    vmwrite(VMCS_ENTRY_CTL, vmx_features.entry.val | (st->efer & EFER_LMA ? ENC_IA32E : 0));
    write_cr2(st->cr2);
    for (unsigned i = 0; pae_paging(st) && i < PDPTES; i++)
        vmwrite(vmcs_nth(VMCS_GUEST_PDPTE0, i), x->pdpte[i]);
}

static void read_crs(struct cpu_state *st)
{
    st->cr0 = (vmread(VMCS_GUEST_CR0) & ~CR0_OWNED) | (vmread(VMCS_CR0_SHADOW) & CR0_OWNED);
    st->cr4 = (vmread(VMCS_GUEST_CR4) & ~CR4_OWNED) | (vmread(VMCS_CR4_SHADOW) & CR4_OWNED);
    st->cr2 = read_cr2(), st->cr3 = vmread(VMCS_GUEST_CR3);
    st->efer = vmread(VMCS_GUEST_EFER);
    st->cpl = vmread(vmcs_nth(VMCS_GUEST_RIGHTS, SEG_SS)) >> 5 & 3;
}

/* ---- The rest ---- */

static void read_syscall(struct vmx_vcpu *x, struct cpu_state *st)
{
    preempt_disable();
    vmx_lazy_put(x);
    preempt_enable();
    st->star = x->lazy[LAZY_STAR], st->lstar = x->lazy[LAZY_LSTAR], st->cstar = x->lazy[LAZY_CSTAR], st->sfmask = x->lazy[LAZY_SFMASK];
    st->kernel_gs_base = x->lazy[LAZY_KERNEL_GS];
    st->sysenter_cs = vmread(VMCS_GUEST_SYSENTER_CS);
    st->sysenter_esp = vmread(VMCS_GUEST_SYSENTER_ESP), st->sysenter_eip = vmread(VMCS_GUEST_SYSENTER_EIP);
}

static void write_syscall(struct vmx_vcpu *x, const struct cpu_state *st)
{
    preempt_disable();
    x->lazy[LAZY_STAR] = st->star, x->lazy[LAZY_LSTAR] = st->lstar, x->lazy[LAZY_CSTAR] = st->cstar, x->lazy[LAZY_SFMASK] = st->sfmask;
    x->lazy[LAZY_KERNEL_GS] = st->kernel_gs_base;
    vmx_lazy_load(x);
    preempt_enable();
    vmwrite(VMCS_GUEST_SYSENTER_CS, st->sysenter_cs);
    vmwrite(VMCS_GUEST_SYSENTER_ESP, st->sysenter_esp), vmwrite(VMCS_GUEST_SYSENTER_EIP, st->sysenter_eip);
}

static void write_msrs(struct vmx_vcpu *x, const struct cpu_state *st)
{
    vmwrite(VMCS_GUEST_PAT, st->pat);
    vmwrite(VMCS_GUEST_DEBUGCTL, st->debugctl);
    preempt_disable();
    x->lazy[LAZY_TSC_AUX] = st->tsc_aux;
    if (vmx_features.rdtscp)
        wrmsr(MSR_TSC_AUX, st->tsc_aux);
    preempt_enable();
}

static void write_drs(struct vmx_vcpu *x, const struct cpu_state *st)
{
    vmwrite(VMCS_GUEST_DR7, st->dr7);
    preempt_disable();
    x->dr6 = st->dr6;
    if (x->dr_loaded)
        write_dr6(st->dr6);
    preempt_enable();
}

static uint64_t current_dr6(struct vmx_vcpu *x)
{
    preempt_disable();
    if (x->dr_loaded)
        x->dr6 = read_dr6();
    preempt_enable();
    return x->dr6;
}

static void copy_groups(struct cpu_state *to, const struct cpu_state *from, unsigned groups)
{
    if (groups & ST_SEGS)
        memcpy(to->seg, from->seg, sizeof to->seg);
    if (groups & ST_DTABS)
        to->gdt = from->gdt, to->idt = from->idt;
    if (groups & ST_CRS)
        to->cr0 = from->cr0, to->cr2 = from->cr2, to->cr3 = from->cr3, to->cr4 = from->cr4, to->efer = from->efer, to->cpl = from->cpl;
    if (groups & ST_DRS)
        to->dr6 = from->dr6, to->dr7 = from->dr7;
    if (groups & ST_SYSCALL) {
        to->star = from->star, to->lstar = from->lstar, to->cstar = from->cstar, to->sfmask = from->sfmask, to->kernel_gs_base = from->kernel_gs_base;
        to->sysenter_cs = from->sysenter_cs, to->sysenter_esp = from->sysenter_esp, to->sysenter_eip = from->sysenter_eip;
    }
    if (groups & ST_MSRS)
        to->pat = from->pat, to->tsc_aux = from->tsc_aux, to->spec_ctrl = from->spec_ctrl, to->debugctl = from->debugctl;
    if (groups & ST_INTR)
        to->shadow = from->shadow, to->nmi_blocked = from->nmi_blocked;
}

void vmx_get_state(struct vcpu *v, struct cpu_state *st, unsigned groups)
{
    struct vmx_vcpu *x = vmx_of(v);
    copy_groups(st, &x->late, groups & x->late_groups);
    groups &= ~x->late_groups;
    if (!groups)
        return;
    ASSERT(vmx_own(v));         /* a vCPU that stands still has its state in vcpu->st */
    if (groups & ST_SEGS)
        for (unsigned i = 0; i < 8; i++)
            st->seg[i] = read_seg(i);
    if (groups & ST_DTABS) {
        st->gdt = (struct cpu_dtab){ vmread(VMCS_GUEST_GDTR_BASE), (uint16_t)vmread(VMCS_GUEST_GDTR_LIMIT) };
        st->idt = (struct cpu_dtab){ vmread(VMCS_GUEST_IDTR_BASE), (uint16_t)vmread(VMCS_GUEST_IDTR_LIMIT) };
    }
    if (groups & ST_CRS)
        read_crs(st);
    if (groups & ST_DRS)
        st->dr6 = current_dr6(x), st->dr7 = vmread(VMCS_GUEST_DR7);
    if (groups & ST_SYSCALL)
        read_syscall(x, st);
    if (groups & ST_MSRS)
        st->pat = vmread(VMCS_GUEST_PAT), st->debugctl = vmread(VMCS_GUEST_DEBUGCTL), st->tsc_aux = x->lazy[LAZY_TSC_AUX], st->spec_ctrl = 0;
    if (groups & ST_INTR) {
        st->shadow = x->interruptibility & (BLOCK_STI | BLOCK_MOV_SS);
        st->nmi_blocked = x->interruptibility & BLOCK_NMI;
    }
}

void vmx_get_code(struct vcpu *v, struct cpu_state *st)
{
    if (unlikely(vmx_of(v)->late_groups & (ST_SEGS | ST_CRS))) {
        vmx_get_state(v, st, ST_SEGS | ST_CRS);
        return;
    }
    uint32_t rights = (uint32_t)vmread(vmcs_nth(VMCS_GUEST_RIGHTS, SEG_CS));
    st->seg[SEG_CS].base = vmread(vmcs_nth(VMCS_GUEST_BASE, SEG_CS)), st->seg[SEG_CS].attr = (uint16_t)((rights & 0xff) | (rights >> 4 & 0xf00));
    read_crs(st);
}

void vmx_get_seg(struct vcpu *v, enum seg i, struct cpu_seg *seg)
{
    const struct vmx_vcpu *x = vmx_of(v);
    *seg = unlikely(x->late_groups & ST_SEGS) ? x->late.seg[i] : read_seg(i);
}

void vmx_write_state(struct vcpu *v, const struct cpu_state *st, unsigned groups)
{
    struct vmx_vcpu *x = vmx_of(v);
    if (groups & ST_SEGS)
        for (unsigned i = 0; i < 8; i++)
            write_seg(i, &st->seg[i]);
    if (groups & ST_DTABS) {
        vmwrite(VMCS_GUEST_GDTR_BASE, st->gdt.base), vmwrite(VMCS_GUEST_GDTR_LIMIT, st->gdt.limit);
        vmwrite(VMCS_GUEST_IDTR_BASE, st->idt.base), vmwrite(VMCS_GUEST_IDTR_LIMIT, st->idt.limit);
    }
    if (groups & ST_CRS)
        write_crs(x, st);
    if (groups & ST_DRS)
        write_drs(x, st);
    if (groups & ST_SYSCALL)
        write_syscall(x, st);
    if (groups & ST_MSRS)
        write_msrs(x, st);
    if (groups & ST_INTR) {
        x->interruptibility = (st->shadow & (BLOCK_STI | BLOCK_MOV_SS)) | (st->nmi_blocked ? BLOCK_NMI : 0);
        vmwrite(VMCS_INTERRUPTIBILITY, x->interruptibility);
        x->before |= BEFORE_SHADOW;
    }
}

void vmx_set_state(struct vcpu *v, const struct cpu_state *st, unsigned groups)
{
    struct vmx_vcpu *x = vmx_of(v);
    if ((groups & ST_CRS) && pae_paging(st))
        fetch_pdptes(v, st);
    if (vmx_own(v) && !(x->before & BEFORE_INIT)) {
        vmx_write_state(v, st, groups);
        x->late_groups &= ~groups;
        return;
    }
    copy_groups(&x->late, st, groups);
    x->late_groups |= groups;
    x->before |= BEFORE_STATE;
}

void vmx_dump(struct vcpu *v, void (*print)(void *, const char *), void *arg)
{
    const struct vmx_vcpu *x = vmx_of(v);
    char text[160];
    snprintf(text, sizeof text, "  VMCS exit %x qualification %llx IDT event %x, next event %x, offer %s%02x, interruptibility %x vpid %u", x->last.reason,
             (unsigned long long)x->last.qualification, x->last.idt_event, x->event, x->offer.valid ? "" : "none ", x->offer.vector,
             x->interruptibility, x->vpid);
    print(arg, text);
}
