/* MSR permission map.  APM vol 2 "MSR Intercepts": two bits per MSR (read, write) in three 2 KiB vectors. */
#include "kernel/hw/msr.h"
#include "kernel/svm/svm.h"

#include <errno.h>
#include <string.h>

enum { MSRPM_ORDER = 1 };

struct svm_vm { hpa_t msrpm; };

static const struct { uint32_t first, offset; } vector[] = { { 0, 0 }, { 0xc0000000, 0x800 }, { 0xc0010000, 0x1000 } };

hpa_t svm_msr_bitmap(const struct vm *vm) { return ((const struct svm_vm *)vm->hv)->msrpm; }

static void pass_msr(struct svm_vm *s, uint32_t msr, bool write, bool pass)
{
    uint8_t *map = pa_to_va(s->msrpm);
    for (unsigned i = 0; i < ARRAY_SIZE(vector); i++) {
        uint32_t n = msr - vector[i].first;
        if (n >= 0x2000)
            continue;
        uint8_t bit = (uint8_t)(1u << (n % 4 * 2 + write));
        uint8_t *at = &map[vector[i].offset + n / 4];
        *at = pass ? *at & ~bit : *at | bit;
    }
}

void svm_set_pass(struct vm *vm, enum hv_pass kind, uint32_t what, bool pass)
{
    if (kind == PASS_MSR_READ || kind == PASS_MSR_WRITE)
        pass_msr(vm->hv, what, kind == PASS_MSR_WRITE, pass);
}

/* Switched by VMLOAD/VMSAVE or kept in the VMCB: the guest may have them as they are. */
int svm_msr_init(struct vm *vm)
{
    static const uint32_t own[] = {
        MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE, MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_SFMASK, MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP,
    };
    struct svm_vm *s = kzalloc(sizeof *s);
    if (!s)
        return -ENOMEM;
    s->msrpm = page_alloc(MSRPM_ORDER, 0);
    if (!s->msrpm) {
        kfree(s);
        return -ENOMEM;
    }
    memset(pa_to_va(s->msrpm), 0xff, PAGE_SIZE << MSRPM_ORDER);
    for (unsigned i = 0; i < ARRAY_SIZE(own); i++) {
        pass_msr(s, own[i], false, true);
        pass_msr(s, own[i], true, true);
    }
    vm->hv = s;
    return 0;
}

void svm_msr_fini(struct vm *vm)
{
    struct svm_vm *s = vm->hv;
    page_free(s->msrpm, MSRPM_ORDER);
    kfree(s);
    vm->hv = NULL;
}
