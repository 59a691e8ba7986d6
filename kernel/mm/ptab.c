#include "kernel/mm/ptab.h"

#include <errno.h>

#include "kernel/hw/x86.h"
#include "kernel/mm/page.h"

/*
 * Entry bits.  Long mode: AMD APM vol 2 "4-Kbyte Page Translation", Intel SDM vol 3 "4-Level Paging"; NPT tables are long-mode tables walked as
 * user accesses; EPT: SDM vol 3 "EPT Translation Mechanism".
 */
static uint64_t long_leaf(unsigned prot, enum pt_memtype type, bool large)
{
    static const uint64_t pat[] = { [PT_WB] = 0, [PT_WC] = PTE_PWT, [PT_UC] = PTE_PCD | PTE_PWT };
    uint64_t e = PTE_P | PTE_A | PTE_D | pat[type];
    e |= (prot & PT_W) ? PTE_W : 0;
    e |= (prot & PT_U) ? PTE_U : 0;
    e |= (prot & PT_GLOBAL) ? PTE_G : 0;
    e |= (prot & PT_X) ? 0 : PTE_NX;
    return e | (large ? PTE_PS : 0);
}

static unsigned long_prot(uint64_t e)
{
    if (!(e & PTE_P))
        return 0;
    return PT_R | (e & PTE_W ? PT_W : 0) | (e & PTE_NX ? 0 : PT_X) | (e & PTE_U ? PT_U : 0) | (e & PTE_G ? PT_GLOBAL : 0);
}

static uint64_t npt_leaf(unsigned prot, enum pt_memtype type, bool large)
{
    return long_leaf((prot & ~(unsigned)PT_GLOBAL) | PT_U, type, large);
}

enum { EPT_R = 1, EPT_W = 2, EPT_X = 4, EPT_TYPE_WB = 6 << 3, EPT_TYPE_WC = 1 << 3, EPT_IPAT = 64, EPT_PS = 128, EPT_A = 256, EPT_D = 512 };

static uint64_t ept_leaf(unsigned prot, enum pt_memtype type, bool large)
{
    static const uint64_t mt[] = { [PT_WB] = EPT_TYPE_WB | EPT_IPAT, [PT_WC] = EPT_TYPE_WC, [PT_UC] = 0 };
    uint64_t e = EPT_A | EPT_D | mt[type];
    e |= (prot & PT_R) ? EPT_R : 0;
    e |= (prot & PT_W) ? EPT_W : 0;
    e |= (prot & PT_X) ? EPT_X : 0;
    return e | (large ? EPT_PS : 0);
}

static unsigned ept_prot(uint64_t e)
{
    return (e & EPT_R ? PT_R : 0) | (e & EPT_W ? PT_W : 0) | (e & EPT_X ? PT_X : 0);
}

const struct pt_format pt_host = {
    .name = "host", .levels = 4, .table = PTE_P | PTE_W | PTE_A, .leaf_large = PTE_PS, .addr_mask = PTE_ADDR,
    .accessed = PTE_A, .dirty = PTE_D, .present = PTE_P, .leaf = long_leaf, .prot = long_prot,
};
const struct pt_format pt_npt = {
    .name = "NPT", .levels = 4, .table = PTE_P | PTE_W | PTE_U | PTE_A, .leaf_large = PTE_PS, .addr_mask = PTE_ADDR,
    .accessed = PTE_A, .dirty = PTE_D, .present = PTE_P, .leaf = npt_leaf, .prot = long_prot,
};
const struct pt_format pt_ept = {
    .name = "EPT", .levels = 4, .table = EPT_R | EPT_W | EPT_X, .leaf_large = EPT_PS, .addr_mask = PTE_ADDR,
    .accessed = EPT_A, .dirty = EPT_D, .present = EPT_R | EPT_W | EPT_X, .leaf = ept_leaf, .prot = ept_prot,
};

static unsigned level_order(unsigned level) { return 9 * level; }       /* level 0: 4 KiB leaves, 1: 2 MiB, 2: 1 GiB */
static uint64_t level_size(unsigned level) { return PAGE_SIZE << level_order(level); }

static uint64_t *slot_in(const struct ptab *pt, uint64_t table, unsigned level, uint64_t va)
{
    uint64_t *t = pa_to_va(table & pt->fmt->addr_mask);
    return &t[va >> (PAGE_SHIFT + level_order(level)) & 511];
}

static bool present(const struct ptab *pt, uint64_t e) { return e & pt->fmt->present; }

static bool is_leaf(const struct ptab *pt, uint64_t e, unsigned level)
{
    return level == 0 || (e & pt->fmt->leaf_large);
}

int ptab_init(struct ptab *pt, const struct pt_format *fmt, unsigned max_leaf, hpa_t (*alloc)(void *), void (*free)(void *, hpa_t), void *arg)
{
    *pt = (struct ptab){ .fmt = fmt, .max_leaf = max_leaf, .alloc = alloc, .free = free, .arg = arg };
    pt->root = alloc(arg);
    pt->tables = 1;
    return pt->root ? 0 : -ENOMEM;
}

static void destroy_table(struct ptab *pt, hpa_t table, unsigned level)
{
    uint64_t *t = pa_to_va(table);
    for (unsigned i = 0; level > 0 && i < 512; i++)
        if (present(pt, t[i]) && !is_leaf(pt, t[i], level))
            destroy_table(pt, t[i] & pt->fmt->addr_mask, level - 1);
    pt->free(pt->arg, table);
    pt->tables--;
}

void ptab_destroy(struct ptab *pt)
{
    if (pt->root)
        destroy_table(pt, pt->root, pt->fmt->levels - 1);
    pt->root = 0;
}

static hpa_t new_table(struct ptab *pt)
{
    hpa_t t = pt->alloc(pt->arg);
    pt->tables += t != 0;
    return t;
}

/* Replace a large leaf by a table of leaves one level down that say the same; one store makes it visible. */
static int split(struct ptab *pt, uint64_t *slot, unsigned level)
{
    hpa_t table = new_table(pt);
    if (!table)
        return -ENOMEM;
    uint64_t *t = pa_to_va(table), leaf = *slot;
    if (level == 1)
        leaf &= ~pt->fmt->leaf_large;
    for (unsigned i = 0; i < 512; i++)
        t[i] = leaf + i * level_size(level - 1);
    atomic_store(slot, table | pt->fmt->table);
    return 0;
}

/* The table below *slot, made when there is none and split when there is a leaf.  0: no memory. */
static hpa_t descend(struct ptab *pt, uint64_t *slot, unsigned level)
{
    if (!present(pt, *slot)) {
        hpa_t table = new_table(pt);
        if (table)
            atomic_store(slot, table | pt->fmt->table);
        return table;
    }
    if (is_leaf(pt, *slot, level) && split(pt, slot, level))
        return 0;
    return *slot & pt->fmt->addr_mask;
}

enum change { CHANGE_MAP, CHANGE_UNMAP, CHANGE_PROTECT };
struct range_change { enum change what; hpa_t pa; unsigned prot; enum pt_memtype type; };

static void change_leaf(struct ptab *pt, uint64_t *slot, unsigned level, const struct range_change *c, hpa_t pa)
{
    uint64_t old = *slot, e = 0;
    if (c->what == CHANGE_MAP)
        e = pa | pt->fmt->leaf(c->prot, c->type, level > 0);
    else if (c->what == CHANGE_PROTECT && present(pt, old))
        e = (old & pt->fmt->addr_mask & ~(level_size(level) - 1)) | pt->fmt->leaf(c->prot, PT_WB, level > 0);
    atomic_store(slot, e);
}

/* A leaf of this level takes the whole piece [va, va + level_size). */
static bool leaf_fits(const struct ptab *pt, unsigned level, uint64_t va, hpa_t pa, uint64_t len)
{
    uint64_t size = level_size(level);
    return level_order(level) <= pt->max_leaf && level < 3 && IS_ALIGNED(va, size) && IS_ALIGNED(pa, size) && len >= size;
}

static int change_range(struct ptab *pt, hpa_t table, unsigned level, uint64_t va, uint64_t len, const struct range_change *c, uint64_t done)
{
    while (len) {
        uint64_t size = level_size(level);
        uint64_t piece = MIN(len, size - (va & (size - 1)));
        uint64_t *slot = slot_in(pt, table, level, va);
        bool have = present(pt, *slot), table_below = have && !is_leaf(pt, *slot, level);
        bool whole = piece == size;
        if (c->what == CHANGE_MAP ? !table_below && leaf_fits(pt, level, va, c->pa + done, piece) : !table_below && (whole || !have)) {
            if (c->what == CHANGE_MAP || have)
                change_leaf(pt, slot, level, c, c->pa + done);
        } else {
            hpa_t next = descend(pt, slot, level);
            int err = next ? change_range(pt, next, level - 1, va, piece, c, done) : -ENOMEM;
            if (err)
                return err;
        }
        va += piece, len -= piece, done += piece;
    }
    return 0;
}

int ptab_map(struct ptab *pt, uint64_t va, hpa_t pa, uint64_t len, unsigned prot, enum pt_memtype type)
{
    struct range_change c = { CHANGE_MAP, pa, prot, type };
    return change_range(pt, pt->root, pt->fmt->levels - 1, va, len, &c, 0);
}

void ptab_unmap(struct ptab *pt, uint64_t va, uint64_t len)
{
    struct range_change c = { .what = CHANGE_UNMAP };
    change_range(pt, pt->root, pt->fmt->levels - 1, va, len, &c, 0);
}

int ptab_protect(struct ptab *pt, uint64_t va, uint64_t len, unsigned prot)
{
    struct range_change c = { .what = CHANGE_PROTECT, .prot = prot };
    return change_range(pt, pt->root, pt->fmt->levels - 1, va, len, &c, 0);
}

uint64_t ptab_lookup(const struct ptab *pt, uint64_t va, unsigned *order)
{
    hpa_t table = pt->root;
    for (unsigned level = pt->fmt->levels; level-- > 0;) {
        uint64_t e = atomic_load(slot_in(pt, table, level, va));
        if (!present(pt, e))
            return 0;
        if (is_leaf(pt, e, level)) {
            *order = level_order(level);
            return e;
        }
        table = e & pt->fmt->addr_mask;
    }
    return 0;
}

int ptab_set_leaf(struct ptab *pt, uint64_t va, hpa_t pa, unsigned order, unsigned prot, enum pt_memtype type)
{
    unsigned target = order / 9;
    hpa_t table = pt->root;
    for (unsigned level = pt->fmt->levels - 1; level > target; level--) {
        uint64_t *slot = slot_in(pt, table, level, va);
        if (present(pt, *slot) && is_leaf(pt, *slot, level))
            return -EEXIST;
        table = descend(pt, slot, level);
        if (!table)
            return -ENOMEM;
    }
    uint64_t *slot = slot_in(pt, table, target, va);
    if (present(pt, *slot))
        return -EEXIST;
    atomic_store(slot, pa | pt->fmt->leaf(prot, type, target > 0));
    return 0;
}

hpa_t ptab_cut(struct ptab *pt, uint64_t va, unsigned order)
{
    unsigned target = order / 9;
    hpa_t table = pt->root;
    for (unsigned level = pt->fmt->levels - 1;; level--) {
        uint64_t *slot = slot_in(pt, table, level, va);
        if (!present(pt, *slot) || is_leaf(pt, *slot, level))
            return 0;
        table = *slot & pt->fmt->addr_mask;
        if (level > target)
            continue;
        atomic_store(slot, 0ull);
        return table;
    }
}

void ptab_drop(struct ptab *pt, hpa_t table, unsigned order) { destroy_table(pt, table, order / 9 - 1); }

static void count_table(const struct ptab *pt, hpa_t table, unsigned level, struct pt_leaves *n)
{
    const uint64_t *t = pa_to_va(table);
    for (unsigned i = 0; i < 512; i++) {
        uint64_t e = atomic_load(&t[i]);
        if (!present(pt, e))
            continue;
        if (!is_leaf(pt, e, level))
            count_table(pt, e & pt->fmt->addr_mask, level - 1, n);
        else
            ++*(level == 0 ? &n->n4k : level == 1 ? &n->n2m : &n->n1g);
    }
}

void ptab_count(const struct ptab *pt, struct pt_leaves *n)
{
    *n = (struct pt_leaves){ 0 };
    count_table(pt, pt->root, pt->fmt->levels - 1, n);
}
