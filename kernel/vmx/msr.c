/* MSR bitmap, and the MSRs that travel with the vCPU.  SDM vol 3 "MSR-Bitmap Address": one bit per MSR, four 1 KiB quarters. */
#include "kernel/hw/msr.h"
#include "kernel/vmx/vmx.h"

#include <errno.h>
#include <string.h>

#include "kernel/x86/cpu.h"

enum { QUARTER = 0x400, WRITES = 2 * QUARTER, RANGE = 0x2000 };

struct vmx_vm { hpa_t bitmap; };

hpa_t vmx_msr_bitmap(const struct vm *vm) { return ((const struct vmx_vm *)vm->hv)->bitmap; }

static void pass_msr(struct vmx_vm *x, uint32_t msr, bool write, bool pass)
{
    uint32_t n = msr - 0xc0000000u < RANGE ? msr - 0xc0000000u : msr;
    if (n >= RANGE)
        return;
    uint8_t *at = (uint8_t *)pa_to_va(x->bitmap) + (write ? WRITES : 0) + (n != msr ? QUARTER : 0) + n / 8;
    uint8_t bit = (uint8_t)(1u << n % 8);
    *at = pass ? *at & ~bit : *at | bit;
}

void vmx_set_pass(struct vm *vm, enum hv_pass kind, uint32_t what, bool pass)
{
    if (kind == PASS_MSR_READ || kind == PASS_MSR_WRITE)
        pass_msr(vm->hv, what, kind == PASS_MSR_WRITE, pass);
}

/* Kept in the VMCS or switched with the vCPU: the guest may have them as they are. */
int vmx_msr_init(struct vm *vm)
{
    static const uint32_t own[] = {
        MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE, MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_SFMASK, MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP,
    };
    struct vmx_vm *x = kzalloc(sizeof *x);
    if (!x)
        return -ENOMEM;
    x->bitmap = page_alloc(ORDER_4K, 0);
    if (!x->bitmap) {
        kfree(x);
        return -ENOMEM;
    }
    memset(pa_to_va(x->bitmap), 0xff, PAGE_SIZE);
    for (unsigned i = 0; i < ARRAY_SIZE(own); i++) {
        pass_msr(x, own[i], false, true);
        pass_msr(x, own[i], true, true);
    }
    vm->hv = x;
    return 0;
}

void vmx_msr_fini(struct vm *vm)
{
    struct vmx_vm *x = vm->hv;
    page_free(x->bitmap, ORDER_4K);
    kfree(x);
    vm->hv = NULL;
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
