#include "kernel/x86/mtrr.h"
#include "kernel/x86/cpu.h"

enum { MAX_VARIABLE = 32, FIXED = 11 };
static const uint32_t fixed_msr[FIXED] = {
    MSR_MTRR_FIX64K_00000, MSR_MTRR_FIX16K_80000, MSR_MTRR_FIX16K_A0000, MSR_MTRR_FIX4K_C0000, MSR_MTRR_FIX4K_C0000 + 1, MSR_MTRR_FIX4K_C0000 + 2,
    MSR_MTRR_FIX4K_C0000 + 3, MSR_MTRR_FIX4K_C0000 + 4, MSR_MTRR_FIX4K_C0000 + 5, MSR_MTRR_FIX4K_C0000 + 6, MSR_MTRR_FIX4K_C0000 + 7,
};
struct mtrrs { unsigned variable; bool has_fixed; uint64_t def_type, base[MAX_VARIABLE], mask[MAX_VARIABLE], fixed[FIXED]; };

static struct mtrrs boot;
static bool saved;

static void read_all(struct mtrrs *m)
{
    uint64_t cap = rdmsr(MSR_MTRRCAP), n = cap & MTRRCAP_VCNT;
    m->variable = n > MAX_VARIABLE ? MAX_VARIABLE : (unsigned)n;
    m->has_fixed = cap & MTRRCAP_FIX;
    m->def_type = rdmsr(MSR_MTRR_DEF_TYPE);
    for (unsigned i = 0; i < m->variable; i++)
        m->base[i] = rdmsr(MSR_MTRR_PHYSBASE0 + 2 * i), m->mask[i] = rdmsr(MSR_MTRR_PHYSMASK0 + 2 * i);
    for (unsigned i = 0; m->has_fixed && i < FIXED; i++)
        m->fixed[i] = rdmsr(fixed_msr[i]);
}

void mtrr_save(void)
{
    if (cpu_has(FEAT_MTRR))
        read_all(&boot), saved = true;
}

static bool same(const struct mtrrs *m)
{
    bool eq = m->def_type == boot.def_type;
    for (unsigned i = 0; i < boot.variable; i++)
        eq &= m->base[i] == boot.base[i] && m->mask[i] == boot.mask[i];
    for (unsigned i = 0; boot.has_fixed && i < FIXED; i++)
        eq &= m->fixed[i] == boot.fixed[i];
    return eq;
}

/* SDM vol. 3 "MTRR Considerations in MP Systems": caches off and empty, no TLB entries, while the registers change. */
void mtrr_apply(void)
{
    struct mtrrs now = { 0 };
    if (!saved)
        return;
    read_all(&now);
    if (same(&now))
        return;
    uint64_t cr0 = read_cr0();
    write_cr0((cr0 | CR0_CD) & ~CR0_NW);
    wbinvd();
    tlb_flush_local();
    wrmsr(MSR_MTRR_DEF_TYPE, boot.def_type & ~MTRR_DEF_ENABLE);
    for (unsigned i = 0; i < boot.variable && i < now.variable; i++)
        wrmsr_safe(MSR_MTRR_PHYSBASE0 + 2 * i, boot.base[i]), wrmsr_safe(MSR_MTRR_PHYSMASK0 + 2 * i, boot.mask[i]);
    for (unsigned i = 0; boot.has_fixed && now.has_fixed && i < FIXED; i++)
        wrmsr_safe(fixed_msr[i], boot.fixed[i]);
    wrmsr(MSR_MTRR_DEF_TYPE, boot.def_type);
    wbinvd();
    tlb_flush_local();
    write_cr0(cr0);
}
