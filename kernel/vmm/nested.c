/* Nested page faults: RAM is populated on first touch, the rest is MMIO. */
#include <errno.h>

#include "kernel/vmm/vcpu.h"

/* The part of the backing page around gpa as one leaf of this order. */
static int set_leaf(struct vm *vm, gpa_t gpa, const struct gmem_leaf *leaf, unsigned order, unsigned prot)
{
    uint64_t size = PAGE_SIZE << order;
    hpa_t pa = leaf->pa + (ALIGN_DOWN(gpa, size) & ((PAGE_SIZE << leaf->order) - 1));
    return ptab_set_leaf(&vm->nested, ALIGN_DOWN(gpa, size), pa, order, prot, PT_WB);
}

/*
 * A page leaves a VM, or what it may do with it shrinks: the entry has changed; now every vCPU is asked to flush, those in guest mode are kicked, and when each has
 * been seen outside or has taken the request, no CPU holds the old translation and the caller may drop the page.
 */
static void flush_everywhere(struct vm *vm)
{
    for (unsigned i = 0; i < vm->p.ncpus; i++)
        vcpu_request(vm->vcpu[i], REQ_FLUSH);
    for (unsigned i = 0; i < vm->p.ncpus; i++)
        while (atomic_load(&vm->vcpu[i]->mode) == IN_GUEST && (atomic_load(&vm->vcpu[i]->requests) & REQ_FLUSH))
            thread_yield();
}

void nested_forget(struct vm *vm, gpa_t gpa, uint64_t len)
{
    spin_lock(&vm->nested_lock);
    ptab_unmap(&vm->nested, gpa, len);
    spin_unlock(&vm->nested_lock);
    flush_everywhere(vm);
}

int nested_protect(struct vm *vm, gpa_t gpa, uint64_t len)
{
    spin_lock(&vm->nested_lock);
    int err = ptab_protect(&vm->nested, gpa, len, PT_R | PT_X);
    spin_unlock(&vm->nested_lock);
    flush_everywhere(vm);
    return err;
}

/* All of a GiB is there in one piece: one leaf instead of a table of 512.  Meanwhile other vCPUs fault here and find it gone, or install that leaf themselves. */
static __attribute__((noinline)) void promote(struct vm *vm, gpa_t gpa, const struct gmem_leaf *leaf, unsigned prot)
{
    spin_lock(&vm->nested_lock);
    hpa_t table = ptab_cut(&vm->nested, gpa, ORDER_1G);
    spin_unlock(&vm->nested_lock);
    if (!table)
        return;
    flush_everywhere(vm);
    spin_lock(&vm->nested_lock);
    ptab_drop(&vm->nested, table, ORDER_1G);
    set_leaf(vm, gpa, leaf, ORDER_1G, prot);
    spin_unlock(&vm->nested_lock);
}

/*
 * The nested leaf may be as large as the backing allows, smaller where a table is in the way.  What the other vCPU has installed meanwhile is just as good, but
 * for rights that were taken away (nested_protect) and that this fault asks back; no flush then: a CPU looks again before it faults.
 */
static int install(struct vm *vm, gpa_t gpa, const struct gmem_leaf *leaf)
{
    unsigned order = MIN(leaf->order, vmm_host.max_leaf), found;
    unsigned prot = PT_R | PT_X | (leaf->writable ? PT_W : 0);
    spin_lock(&vm->nested_lock);
    int err = set_leaf(vm, gpa, leaf, order, prot);
    uint64_t old = likely(!err) ? 0 : ptab_lookup(&vm->nested, gpa, &found);
    for (; err == -EEXIST && !old && order > ORDER_4K; order -= ORDER_2M)
        err = set_leaf(vm, gpa, leaf, order - ORDER_2M, prot);
    if (err == -EEXIST && old && leaf->writable && !(vm->nested.fmt->prot(old) & PT_W))
        err = ptab_protect(&vm->nested, ALIGN_DOWN(gpa, PAGE_SIZE << found), PAGE_SIZE << found, prot);
    spin_unlock(&vm->nested_lock);
    if (unlikely(!err && leaf->order == ORDER_1G && order < vmm_host.max_leaf))
        promote(vm, gpa, leaf, prot);
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
