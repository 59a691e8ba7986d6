/*
 * APIC virtualization: the CPU reads the LAPIC's registers from the model's own page, carries out writes of TPR, EOI and self-IPIs, and delivers interrupts
 * from it.  SDM vol 3 "APIC Virtualization and Virtual Interrupts".
 *
 * The page is the one place of truth.  What the VMCS holds beside it (RVI and SVI, the EOI-exit bitmap, the way of access) follows from it and is written again
 * whenever the vCPU has looked for events: every change that others or the model itself make to the page ends in such a look.
 */
#include "kernel/vmx/vmx.h"

#include <errno.h>

enum { SVI_SHIFT = 8 };

int vmx_apic_init(struct vmx_vm *x)
{
    x->apic_page = vmx_features.apic_virt ? page_alloc(ORDER_4K, PAGE_ZERO) : 0;
    return x->apic_page || !vmx_features.apic_virt ? 0 : -ENOMEM;
}

void vmx_apic_fini(struct vmx_vm *x)
{
    if (x->apic_page)
        page_free(x->apic_page, ORDER_4K);
}

/*
 * The APIC-access page is an address for the CPU to recognize; its contents are never used, but it must be mapped.  With the page unmapped accesses are nested
 * faults and reach the model that way.  A vCPU that still has the old translation sees its own registers where it had them, until it flushes.
 */
void vmx_apic_page(struct vm *vm, gpa_t base)
{
    struct vmx_vm *x = vmx_vm_of(vm);
    if (!x->apic_page || x->apic_base == base)
        return;
    spin_lock(&vm->nested_lock);
    if (x->apic_base)
        ptab_unmap(&vm->nested, x->apic_base, PAGE_SIZE);
    x->apic_base = base && !ptab_set_leaf(&vm->nested, base, x->apic_page, ORDER_4K, PT_R | PT_W, PT_WB) ? base : 0;
    spin_unlock(&vm->nested_lock);
}

static void set_access(struct vcpu *v, struct vmx_vcpu *x, const struct apic_virt *a)
{
    uint32_t way = SEC_APIC_REGS | SEC_VINTR | (a->x2apic ? SEC_X2APIC : 0) | (a->xapic ? SEC_APIC_ACCESS : 0);
    uint32_t want = (x->secondary & ~(uint32_t)(SEC_X2APIC | SEC_APIC_ACCESS)) | way;
    if (want == x->secondary)
        return;
    vmwrite(VMCS_SECONDARY, x->secondary = want);
    vmwrite(VMCS_MSR_BITMAP, a->x2apic ? vmx_vm_of(v->vm)->msr_bitmap_x2apic : vmx_vm_of(v->vm)->msr_bitmap);
    x->before |= BEFORE_FLUSH_LINEAR | BEFORE_FLUSH_NESTED;         /* translations know which pages are APIC-access pages */
}

/*
 * vmx_features.virq_ignores_if: a virtual interrupt may be pending only while the guest can take it.  choose_event() holds it back until then.  One that comes up
 * when the guest ends another is learnt of by an exit of that EOI.  Left open: a guest that lowers its TPR, or sends itself an IPI by shorthand, with IF clear.
 */
static void keep_off_if(struct vcpu *v, struct vmx_vcpu *x, struct apic_virt *a)
{
    enum { TPR = 0x80, IRR = 0x200, WORDS = 8, STEP = 16 };
    const uint8_t *page = v->irqchip.page;
    uint32_t next = a->svi > page[TPR] ? a->svi : page[TPR], others = 0;
#pragma GCC unroll 8
    for (unsigned w = 0; w < WORDS; w++)
        others |= *(const uint32_t *)(page + IRR + STEP * w) & (w == a->rvi >> 5 ? ~BIT(a->rvi & 31) : ~0u);
    x->virq_waits = a->rvi >> 4 > next >> 4;
    x->before |= x->virq_waits ? BEFORE_EVENT : 0;
    if (others || (a->rvi && !x->virq_waits))
        for (unsigned i = 0; i < ARRAY_SIZE(a->eoi_exit); i++)
            a->eoi_exit[i] = ~0ull;
}

void vmx_apic_update(struct vcpu *v)
{
    struct vmx_vcpu *x = vmx_of(v);
    struct apic_virt a;
    v->irqchip.virt(v->irqchip.apic, &a);
    if (vmx_features.virq_ignores_if)
        keep_off_if(v, x, &a);
    set_access(v, x, &a);
    x->svi = a.svi;
    vmwrite(VMCS_GUEST_INTR_STATUS, a.rvi | (uint64_t)a.svi << SVI_SHIFT);
    for (unsigned i = 0; i < ARRAY_SIZE(x->eoi_exit); i++)
        if (unlikely(x->eoi_exit[i] != a.eoi_exit[i]))
            vmwrite(vmcs_nth(VMCS_EOI_EXIT0, i), x->eoi_exit[i] = a.eoi_exit[i]);
}

/*
 * The same CPUs (Bochs 2.7) do not tell which virtual interrupt's delivery an exit cut short: the IDT-vectoring information is that of an earlier event.  A vector
 * that has come into service since, while the guest still stands where IF is set, is the one.
 */
uint32_t vmx_apic_vectoring(struct vcpu *v, uint32_t info)
{
    uint8_t svi = (uint8_t)(vmread(VMCS_GUEST_INTR_STATUS) >> SVI_SHIFT);
    return svi && svi != vmx_of(v)->svi && (v->rflags & RFLAGS_IF) ? (uint32_t)VEC_VALID | svi : info;
}

/* An access that the CPU does not carry out by itself is as good as a nested fault. */
enum exit_kind vmx_apic_access(struct vcpu *v, struct exit *e, uint64_t q)
{
    unsigned type = q >> APICQ_TYPE_SHIFT & 15;
    e->u.mmio.gpa = vmx_vm_of(v->vm)->apic_base | (q & APICQ_OFFSET);
    e->u.mmio.gva = 0, e->u.mmio.gva_valid = false;
    e->u.mmio.access = type == APICQ_READ ? MMIO_READ : type == APICQ_WRITE ? MMIO_WRITE : type == APICQ_FETCH ? MMIO_EXEC : MMIO_WRITE;
    e->u.mmio.final = type <= APICQ_FETCH;
    e->u.mmio.present = true;
    return EXIT_MMIO;
}
