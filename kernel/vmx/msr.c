/* MSR bitmap, and the MSRs that travel with the vCPU.  SDM vol 3 "MSR-Bitmap Address": one bit per MSR, four 1 KiB quarters. */
#include "kernel/hw/apic.h"
#include "kernel/hw/msr.h"
#include "kernel/vmx/vmx.h"

#include <errno.h>
#include <string.h>

#include "kernel/x86/cpu.h"

enum { QUARTER = 0x400, WRITES = 2 * QUARTER, RANGE = 0x2000 };

static void pass_msr(hpa_t bitmap, uint32_t msr, bool write, bool pass)
{
    uint32_t n = msr - 0xc0000000u < RANGE ? msr - 0xc0000000u : msr;
    if (n >= RANGE)
        return;
    uint8_t *at = (uint8_t *)pa_to_va(bitmap) + (write ? WRITES : 0) + (n != msr ? QUARTER : 0) + n / 8;
    uint8_t bit = (uint8_t)(1u << n % 8);
    *at = pass ? *at & ~bit : *at | bit;
}

void vmx_set_pass(struct vm *vm, enum hv_pass kind, uint32_t what, bool pass)
{
    if (kind != PASS_MSR_READ && kind != PASS_MSR_WRITE)
        return;
    pass_msr(vmx_vm_of(vm)->msr_bitmap, what, kind == PASS_MSR_WRITE, pass);
    pass_msr(vmx_vm_of(vm)->msr_bitmap_x2apic, what, kind == PASS_MSR_WRITE, pass);
}

/* Kept in the VMCS or switched with the vCPU: the guest may have them as they are. */
static void pass_own(hpa_t bitmap)
{
    static const uint32_t own[] = {
        MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE, MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_SFMASK, MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP,
    };
    memset(pa_to_va(bitmap), 0xff, PAGE_SIZE);
    for (unsigned i = 0; i < ARRAY_SIZE(own); i++) {
        pass_msr(bitmap, own[i], false, true);
        pass_msr(bitmap, own[i], true, true);
    }
}

/* x2APIC registers that the CPU reads from the LAPIC's page, or whose writes it carries out.  What does not exist, and the timer's present count, still exits. */
static void pass_x2apic(hpa_t bitmap)
{
    static const uint16_t reads[] = {
        LAPIC_ID, LAPIC_VERSION, LAPIC_TPR, LAPIC_PPR, LAPIC_LDR, LAPIC_SVR, LAPIC_ESR, LAPIC_ICR, LAPIC_LVT_TIMER, LAPIC_LVT_THERMAL, LAPIC_LVT_PERF,
        LAPIC_LVT_LINT0, LAPIC_LVT_LINT1, LAPIC_LVT_ERROR, LAPIC_TIMER_INIT, LAPIC_TIMER_DIVIDE,
    };
    for (unsigned i = 0; i < ARRAY_SIZE(reads); i++)
        pass_msr(bitmap, MSR_X2APIC + reads[i] / 16, false, true);
    for (unsigned off = LAPIC_ISR; off < LAPIC_IRR + 8 * 16; off += 16)
        pass_msr(bitmap, MSR_X2APIC + off / 16, false, true);
    pass_msr(bitmap, MSR_X2APIC + LAPIC_TPR / 16, true, true);
    pass_msr(bitmap, MSR_X2APIC + LAPIC_EOI / 16, true, true);
    if (!vmx_features.virq_ignores_if)
        pass_msr(bitmap, MSR_X2APIC + LAPIC_SELF_IPI / 16, true, true);
}

int vmx_msr_init(struct vmx_vm *x)
{
    x->msr_bitmap = page_alloc(ORDER_4K, 0);
    x->msr_bitmap_x2apic = page_alloc(ORDER_4K, 0);
    if (!x->msr_bitmap || !x->msr_bitmap_x2apic)
        return -ENOMEM;
    pass_own(x->msr_bitmap);
    pass_own(x->msr_bitmap_x2apic);
    pass_x2apic(x->msr_bitmap_x2apic);
    return 0;
}

void vmx_msr_fini(struct vmx_vm *x)
{
    page_free(x->msr_bitmap, ORDER_4K);
    page_free(x->msr_bitmap_x2apic, ORDER_4K);
}

/* The host itself uses none of these, so they are switched with the thread, not at every exit. */
static const uint32_t lazy_msr[LAZY_MSRS] = {
    [LAZY_STAR] = MSR_STAR, [LAZY_LSTAR] = MSR_LSTAR, [LAZY_CSTAR] = MSR_CSTAR, [LAZY_SFMASK] = MSR_SFMASK, [LAZY_KERNEL_GS] = MSR_KERNEL_GS_BASE,
    [LAZY_TSC_AUX] = MSR_TSC_AUX,
};

static unsigned lazy_count(void) { return vmx_features.rdtscp ? LAZY_MSRS : LAZY_TSC_AUX; }

void vmx_lazy_load(struct vmx_vcpu *x)
{
    for (unsigned i = 0; i < lazy_count(); i++)
        wrmsr(lazy_msr[i], x->lazy[i]);
}

void vmx_lazy_put(struct vmx_vcpu *x)
{
    for (unsigned i = 0; i < LAZY_TSC_AUX; i++)         /* writes of TSC_AUX exit, so it is known */
        x->lazy[i] = rdmsr(lazy_msr[i]);
}
