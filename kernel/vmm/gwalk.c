/* Walk of the guest's own page tables.  Intel SDM vol 3 "Paging"; AMD APM vol 2 "Page Translation and Protection". */
#include <errno.h>

#include "kernel/vmm/vcpu.h"

struct walk {
    struct vcpu *v;
    const struct cpu_state *st;
    unsigned access;
    uint64_t rights;            /* AND of W and U over the levels, OR of NX */
    bool nx_on, pae;
};

static unsigned bits_per_level(const struct walk *w) { return w->pae ? 9 : 10; }
static unsigned entry_size(const struct walk *w) { return w->pae ? 8 : 4; }

static uint64_t reserved_bits(const struct walk *w, unsigned level, uint64_t e)
{
    uint64_t rsvd = w->pae ? BITS(51, 0) & ~(BIT(vmm_host.phys_bits) - 1) : 0;
    if (w->pae && !w->nx_on)
        rsvd |= PTE_NX;
    if (level == 3)
        rsvd |= PTE_PS;
    if (level && (e & PTE_PS))
        rsvd |= w->pae ? BITS(level == 2 ? 29 : 20, 13) : BIT(21);
    return e & rsvd;
}

/* Sets bits in an entry that hardware walkers may be changing too. */
static int mark(struct walk *w, gpa_t at, uint64_t *e, uint64_t bits)
{
    while ((*e & bits) != bits) {
        int err = gmem_cmpxchg(&w->v->vm->gmem, at, entry_size(w), e, *e | bits);
        if (!err)
            *e |= bits;
        else if (err != -EAGAIN)
            return err;
        else if (!(*e & PTE_P))
            return -EAGAIN;
    }
    return 0;
}

static bool allowed(const struct walk *w)
{
    bool user = w->access & PF_U;
    if ((w->access & PF_I) && (w->rights & PTE_NX))
        return false;
    if (user && !(w->rights & PTE_U))
        return false;
    if ((w->access & PF_W) && !(w->rights & PTE_W) && (user || (w->st->cr0 & CR0_WP)))
        return false;
    if (!user && (w->rights & PTE_U)) {
        if ((w->access & PF_I) && (w->st->cr4 & CR4_SMEP))
            return false;
        if (!(w->access & PF_I) && (w->st->cr4 & CR4_SMAP) && !(w->v->rflags & RFLAGS_AC))
            return false;
    }
    return true;
}

static int fault(const struct walk *w, unsigned why, uint32_t *error)
{
    bool report_i = w->nx_on || (w->st->cr4 & CR4_SMEP);
    *error = (w->access & (PF_W | PF_U)) | (report_i ? w->access & PF_I : 0) | why;
    return -EFAULT;
}

static gpa_t leaf_address(const struct walk *w, unsigned level, uint64_t e, gva_t va)
{
    uint64_t size = PAGE_SIZE << bits_per_level(w) * level;
    uint64_t base = e & BITS(51, 12) & ~(size - 1);
    if (!w->pae && level)       /* PSE-36: bits 39:32 of the address in 20:13 of the entry */
        base = (e & BITS(31, 22)) | (e & BITS(20, 13)) << 19;
    return base | (va & (size - 1));
}

static int walk_levels(struct walk *w, gpa_t table, unsigned level, gva_t va, gpa_t *gpa, uint32_t *error)
{
    struct gmem *g = &w->v->vm->gmem;
    for (;; level--) {
        unsigned shift = PAGE_SHIFT + bits_per_level(w) * level;
        gpa_t at = table + (va >> shift & (BIT(bits_per_level(w)) - 1)) * entry_size(w);
        const void *host = gmem_peek(g, at);
        if (unlikely(!host))
            return -EIO;
        uint64_t e = w->pae ? atomic_load((const uint64_t *)host) : atomic_load((const uint32_t *)host);
        if (!(e & PTE_P))
            return fault(w, 0, error);
        bool pdpte = w->pae && level == 2 && !(w->st->efer & EFER_LMA);
        bool large = level && (e & PTE_PS) && !pdpte && (w->pae || (w->st->cr4 & CR4_PSE));
        if (!pdpte && (w->pae || large) && reserved_bits(w, level, e))
            return fault(w, PF_P | PF_RSVD, error);
        if (!pdpte)
            w->rights = (w->rights & (e | ~(uint64_t)(PTE_W | PTE_U))) | (e & PTE_NX);
        bool leaf = large || level == 0;
        if (leaf && !allowed(w))
            return fault(w, PF_P, error);
        uint64_t bits = (pdpte ? 0 : PTE_A) | (leaf && (w->access & PF_W) ? PTE_D : 0);
        int err = mark(w, at, &e, bits);
        if (err)
            return err == -EAGAIN ? fault(w, 0, error) : -EIO;
        if (leaf) {
            *gpa = leaf_address(w, level, e, va);
            return 0;
        }
        table = w->pae ? e & BITS(51, 12) : e & BITS(31, 12);
    }
}

/*
 * Long mode, nothing to mark and nothing to refuse: the case of nearly every walk.  false: the long way decides, and reports faults.
 */
static bool walk_quick(struct vcpu *v, const struct cpu_state *st, gva_t va, unsigned access, gpa_t *gpa)
{
    struct gmem *g = &v->vm->gmem;
    uint64_t table = st->cr3 & BITS(51, 12), all = ~0ull, any = 0, e;
    unsigned shift = 39;
    for (;; shift -= 9) {
        const uint64_t *at = gmem_peek(g, table + (va >> shift & 511) * 8);
        if (unlikely(!at))
            return false;
        e = atomic_load(at);
        all &= e, any |= e;
        if (shift == PAGE_SHIFT || (e & PTE_PS))
            break;
        table = e & BITS(51, 12);
    }
    uint64_t need = PTE_P | PTE_A | (access & PF_W ? PTE_W : 0) | (access & PF_U ? PTE_U : 0);
    uint64_t refuse = v->vm->pte_reserved | (access & PF_I || !(st->efer & EFER_NXE) ? PTE_NX : 0);
    if ((all & need) != need || (any & refuse) || shift == 39 || ((access & PF_W) && !(e & PTE_D)))
        return false;
    if (!(access & PF_U) && (all & PTE_U) && (st->cr4 & (access & PF_I ? CR4_SMEP : CR4_SMAP)))
        return false;
    uint64_t size = 1ull << shift;
    if (e & BITS(51, 13) & (size - 1) & ~(uint64_t)(PAGE_SIZE - 1))        /* reserved bits of a large leaf */
        return false;
    *gpa = (e & BITS(51, 12) & ~(size - 1)) | (va & (size - 1));
    return true;
}

int gwalk(struct vcpu *v, gva_t va, unsigned access, gpa_t *gpa, uint32_t *error)
{
    const struct cpu_state *st = vcpu_code(v);
    if (!(st->cr0 & CR0_PG)) {
        *gpa = va;
        return 0;
    }
    if ((st->efer & EFER_LMA) && likely(walk_quick(v, st, va, access, gpa)))
        return 0;
    struct walk w = { .v = v, .st = st, .access = access, .rights = PTE_W | PTE_U, .nx_on = st->efer & EFER_NXE, .pae = st->cr4 & CR4_PAE };
    if (st->efer & EFER_LMA)
        return walk_levels(&w, st->cr3 & BITS(51, 12), 3, va, gpa, error);
    if (w.pae)
        return walk_levels(&w, st->cr3 & BITS(31, 5), 2, (uint32_t)va, gpa, error);
    return walk_levels(&w, st->cr3 & BITS(31, 12), 1, (uint32_t)va, gpa, error);
}
