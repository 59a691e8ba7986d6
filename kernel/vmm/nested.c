/* Nested page faults: RAM is populated on first touch, the rest is MMIO. */
#include <errno.h>

#include "kernel/vmm/vcpu.h"

/* The nested leaf may be as large as the backing allows; what the other vCPU has installed meanwhile is just as good. */
static int install(struct vm *vm, gpa_t gpa, const struct gmem_leaf *leaf)
{
    unsigned order = MIN(leaf->order, vmm_host.max_leaf);
    uint64_t size = PAGE_SIZE << order;
    hpa_t pa = leaf->pa + (ALIGN_DOWN(gpa, size) & ((PAGE_SIZE << leaf->order) - 1));
    unsigned prot = PT_R | PT_X | (leaf->writable ? PT_W : 0);
    spin_lock(&vm->nested_lock);
    int err = ptab_set_leaf(&vm->nested, ALIGN_DOWN(gpa, size), pa, order, prot, PT_WB);
    spin_unlock(&vm->nested_lock);
    return err == -EEXIST ? 0 : err;
}

/* RAM to be populated, a write to ROM, or an access that cannot be answered. */
static __attribute__((noinline)) void memory_fault(struct vcpu *v, struct exit *e, gpa_t gpa)
{
    struct gmem_leaf leaf;
    int err = gmem_leaf(&v->vm->gmem, gpa, &leaf);
    bool rom_write = !err && !leaf.writable && (e->u.mmio.access & MMIO_WRITE);
    if (!err && !rom_write)
        err = install(v->vm, gpa, &leaf);
    else if (e->u.mmio.final && !(e->u.mmio.access & MMIO_EXEC)) {
        vcpu_emulate(v, e);
        return;
    }
    if (err == -ENOMEM)
        vcpu_crash(v, "no memory for the page at %llx although it was reserved", (unsigned long long)gpa);
    else if (err && (e->u.mmio.access & MMIO_EXEC))
        vcpu_crash(v, "runs at guest-physical %llx, where there is no memory", (unsigned long long)gpa);
    else if (err || rom_write)
        vcpu_crash(v, "its page tables lie at guest-physical %llx, which is not writable memory", (unsigned long long)gpa);
}

void vcpu_nested_fault(struct vcpu *v, struct exit *e)
{
    gpa_t gpa = e->u.mmio.gpa;
    if (!gmem_covers(&v->vm->gmem, gpa) && e->u.mmio.final && !(e->u.mmio.access & MMIO_EXEC))
        vcpu_emulate(v, e);
    else
        memory_fault(v, e, gpa);
}
