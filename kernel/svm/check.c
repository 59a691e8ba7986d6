/*
 * What silicon checks or caches and the emulators forgive: the consistency of a VMCB (APM vol 2 "Canonicalization and Consistency Checks"), which the CPU answers
 * with a bare VMEXIT_INVALID, and the promise of the clean bits ("VMCB State Caching").
 */
#include "kernel/svm/svm.h"

#include "kernel/hw/msr.h"
#include "kernel/hw/x86.h"
#include "kernel/lib/crc.h"

/* With MCOMMIT, interruptible WBINVD, upper address ignore, automatic IBRS. */
#define EFER_KNOWN      (EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_SVME | EFER_LMSLE | EFER_FFXSR | EFER_TCE | BIT(17) | BIT(18) | BIT(20) | BIT(21))
enum { IOPM_SIZE = 3 * PAGE_SIZE, MSRPM_SIZE = 2 * PAGE_SIZE };
enum { ATTR_S = 1 << 4, ATTR_P = 1 << 7, ATTR_L = 1 << 9, ATTR_DB = 1 << 10, ATTR_UNUSED = 0xf000 };

static bool pat_bad(uint64_t v)
{
    for (unsigned i = 0; i < 64; i += 8)
        if ((v >> i & 0xff) > 7 || (v >> i & 0xfe) == 2)
            return true;
    return false;
}

static bool beyond(uint64_t pa, uint64_t len, unsigned phys_bits) { return !IS_ALIGNED(pa, PAGE_SIZE) || (pa + len - 1) >> phys_bits; }

static const char *check_controls(const struct vmcb *b, unsigned phys_bits)
{
    if (!(b->intercept[ICPT_MISC2] & ICPT_VMRUN))
        return "VMRUN is not intercepted";
    if (!b->asid)
        return "ASID 0 is the host's";
    if (beyond(b->iopm_pa, IOPM_SIZE, phys_bits))
        return "the I/O permission map is unaligned or beyond the physical address width";
    if (beyond(b->msrpm_pa, MSRPM_SIZE, phys_bits))
        return "the MSR permission map is unaligned or beyond the physical address width";
    if (!(b->np_control & NP_ENABLE))
        return "nested paging is off";
    if (beyond(b->n_cr3, PAGE_SIZE, phys_bits))
        return "nCR3 is unaligned or beyond the physical address width";
    if (pat_bad(b->g_pat))
        return "G_PAT has a memory type that does not exist";
    if (b->tlb_control != TLB_FLUSH_NONE && b->tlb_control != TLB_FLUSH_ALL && b->tlb_control != TLB_FLUSH_ASID)
        return "TLB_CONTROL is none of its values";
    return NULL;
}

static const char *check_registers(const struct vmcb *b)
{
    bool pg = b->cr0 & CR0_PG, lme = b->efer & EFER_LME;
    if (!(b->efer & EFER_SVME))
        return "EFER.SVME is clear";
    if (b->efer & ~(uint64_t)EFER_KNOWN)
        return "EFER has a reserved bit set";
    if (!(b->cr0 & CR0_CD) && (b->cr0 & CR0_NW))
        return "CR0.NW without CR0.CD";
    if (b->cr0 >> 32)
        return "CR0 has upper bits set";
    if (b->cr4 >> 32)
        return "CR4 has upper bits set";
    if (b->dr6 >> 32)
        return "DR6 has upper bits set";
    if (b->dr7 >> 32)
        return "DR7 has upper bits set";
    if (lme && pg && !(b->cr4 & CR4_PAE))
        return "long mode without CR4.PAE";
    if (lme && pg && !(b->cr0 & CR0_PE))
        return "long mode without CR0.PE";
    if (lme && pg && (b->cs.attr & ATTR_L) && (b->cs.attr & ATTR_DB))
        return "CS has both L and D set";
    if (lme && pg && b->cr3 >> 52)
        return "CR3 has reserved bits set";
    /* Silicon lets these pass and runs something else than was meant. */
    if (((b->efer & EFER_LMA) != 0) != (lme && pg))
        return "EFER.LMA is not LME and CR0.PG";
    if (pg && !(b->cr0 & CR0_PE))
        return "CR0.PG without CR0.PE";
    return (b->rflags & RFLAGS_FIXED) ? NULL : "RFLAGS bit 1 is clear";
}

static const char *check_segments(const struct vmcb *b)
{
    const struct vmcb_seg *all[] = { &b->es, &b->cs, &b->ss, &b->ds, &b->fs, &b->gs, &b->ldtr, &b->tr };
    for (unsigned i = 0; i < ARRAY_SIZE(all); i++)
        if (all[i]->attr & ATTR_UNUSED)
            return "a segment's attributes are not in VMCB form";
    bool real = !(b->cr0 & CR0_PE), v86 = !real && (b->rflags & RFLAGS_VM);
    if (b->cpl > 3 || (real && b->cpl) || (v86 && b->cpl != 3))
        return "CPL does not fit the mode";
    if (!real && !v86 && (b->cs.attr & (ATTR_S | 8)) != (ATTR_S | 8))
        return "CS is not a code segment";
    bool tss = (b->tr.attr & 5) == 1 && !(b->tr.attr & ATTR_S) && (b->tr.attr & ATTR_P);    /* 1, 3, 9, 11: QEMU leaves the busy bit out */
    return tss ? NULL : "TR is not a TSS";
}

bool svm_pushes_error(uint8_t vector)
{
    return vector < 32 && BIT(vector) & (BIT(EXC_DF) | BITS(EXC_PF, EXC_TS) | BIT(EXC_AC) | BIT(EXC_CP) | BIT(EXC_VC) | BIT(EXC_SX));
}

static const char *check_event(const struct vmcb *b)
{
    uint64_t e = b->eventinj;
    uint8_t vector = e & EVT_VECTOR;
    unsigned type = (e & EVT_TYPE) >> EVT_TYPE_SHIFT;
    if (!(e & EVT_VALID))
        return NULL;
    if (type != EVENT_INTR && type != EVENT_NMI && type != EVENT_EXCEPTION && type != EVENT_SOFT_INTR)
        return "EVENTINJ has a reserved type";
    if (type == EVENT_EXCEPTION && (vector == 2 || vector > 31))
        return "EVENTINJ has an exception with a vector that is none";
    bool error = e & EVT_ERROR_VALID, real = !(b->cr0 & CR0_PE);
    if (error && (type != EVENT_EXCEPTION || !svm_pushes_error(vector) || real))
        return "EVENTINJ has an error code where none is pushed";
    if (!error && type == EVENT_EXCEPTION && svm_pushes_error(vector) && !real)
        return "EVENTINJ lacks the error code";
    return NULL;
}

const char *svm_vmcb_flaw(const struct vmcb *b, unsigned phys_bits)
{
    const char *why = check_controls(b, phys_bits);
    if (!why)
        why = check_registers(b);
    if (!why)
        why = check_segments(b);
    return why ? why : check_event(b);
}

/* ---- Clean bits ---- */

#define SPAN(group, first, end) { group, offsetof(struct vmcb, first), offsetof(struct vmcb, end) }
static const struct { uint64_t group; uint16_t from, to; } span[] = {
    SPAN(CLEAN_I, intercept, pad014), SPAN(CLEAN_I, pause_threshold, iopm_pa), SPAN(CLEAN_I, tsc_offset, asid), SPAN(CLEAN_IOPM, iopm_pa, tsc_offset),
    SPAN(CLEAN_ASID, asid, tlb_control), SPAN(CLEAN_TPR, vintr, int_shadow), SPAN(CLEAN_NP, np_control, pad098), SPAN(CLEAN_NP, n_cr3, lbr_control),
    SPAN(CLEAN_NP, g_pat, debugctl), SPAN(CLEAN_CRX, efer, pad4d8), SPAN(CLEAN_CRX, cr4, dr7), SPAN(CLEAN_DRX, dr7, rflags), SPAN(CLEAN_DT, gdtr, ldtr),
    SPAN(CLEAN_DT, idtr, tr), SPAN(CLEAN_SEG, es, fs), SPAN(CLEAN_SEG, cpl, pad4cc), SPAN(CLEAN_CR2, cr2, pad648), SPAN(CLEAN_LBR, debugctl, pad678),
};

void svm_hash_groups(const struct vmcb *b, uint32_t hash[CLEAN_GROUPS])
{
    for (unsigned g = 0; g < CLEAN_GROUPS; g++) {
        hash[g] = 0;
        for (unsigned i = 0; i < ARRAY_SIZE(span); i++)
            if (span[i].group == BIT(g))
                hash[g] = crc32c(hash[g], (const char *)b + span[i].from, span[i].to - span[i].from);
    }
}

uint64_t svm_broken_groups(const struct vmcb *b, uint64_t clean, const uint32_t before[CLEAN_GROUPS])
{
    uint32_t now[CLEAN_GROUPS];
    uint64_t broken = 0;
    svm_hash_groups(b, now);
    for (unsigned g = 0; g < CLEAN_GROUPS; g++)
        if ((clean & BIT(g)) && now[g] != before[g])
            broken |= BIT(g);
    return broken;
}
