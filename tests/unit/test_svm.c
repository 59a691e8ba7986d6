/* AMD-V's arithmetic: ASIDs against a TLB that remembers, the clean bits' promise, what VMRUN refuses. */
#include "tests/host/test.h"

#include <stdlib.h>
#include <string.h>

#include "kernel/hw/x86.h"
#include "kernel/svm/svm.h"

static uint64_t next_random(uint64_t *s)
{
    *s = *s * 6364136223846793005ull + 1442695040888963407ull;
    return *s >> 33;
}

/* ---- ASIDs ---- */

enum { CPUS = 3, VCPUS = 40, ASIDS = 16, STEPS = 200000 };

/* What a CPU's TLB may hold under an ASID: whose translations, and from before which of its flushes. */
struct cached { int vcpu; unsigned epoch; };

struct model {
    struct svm_cpu cpu[CPUS];
    struct cached tlb[CPUS][ASIDS];
    struct svm_vcpu vcpu[VCPUS];
    int last_cpu[VCPUS];
    unsigned epoch[VCPUS], wraps;
};

static struct model *make_model(void)
{
    struct model *m = calloc(1, sizeof *m);
    for (int c = 0; c < CPUS; c++) {
        m->cpu[c] = (struct svm_cpu){ .asid_gen = 1, .asid_next = 1, .asid_max = ASIDS - 1 };
        for (int a = 0; a < ASIDS; a++)
            m->tlb[c][a].vcpu = -1;
    }
    for (int i = 0; i < VCPUS; i++) {
        m->vcpu[i].vmcb = aligned_alloc(4096, sizeof(struct vmcb));
        memset(m->vcpu[i].vmcb, 0, sizeof(struct vmcb));
        m->last_cpu[i] = -1;
    }
    return m;
}

static void free_model(struct model *m)
{
    for (int i = 0; i < VCPUS; i++)
        free(m->vcpu[i].vmcb);
    free(m);
}

/* One entry, as svm_load() and svm_run() make it; whether the TLB holds nothing under this ASID but what the vCPU may use. */
static bool enter(struct model *m, int c, int i)
{
    struct svm_vcpu *s = &m->vcpu[i];
    if (m->last_cpu[i] != c)
        s->vmcb->clean = 0, s->asid_gen = 0;
    m->last_cpu[i] = c;
    if (s->asid_gen != m->cpu[c].asid_gen)
        svm_new_asid(&m->cpu[c], s);
    uint32_t asid = s->vmcb->asid;
    assert_in_range(asid, 1, ASIDS - 1);
    if (s->vmcb->tlb_control == TLB_FLUSH_ALL) {
        m->wraps++;
        for (int a = 0; a < ASIDS; a++)
            m->tlb[c][a].vcpu = -1;
    } else if (s->vmcb->tlb_control == TLB_FLUSH_ASID) {
        m->tlb[c][asid].vcpu = -1;
    }
    s->vmcb->tlb_control = TLB_FLUSH_NONE;
    s->vmcb->clean = CLEAN_ALL;
    const struct cached *t = &m->tlb[c][asid];
    bool good = t->vcpu < 0 || (t->vcpu == i && t->epoch == m->epoch[i]);
    m->tlb[c][asid] = (struct cached){ i, m->epoch[i] };
    return good;
}

static bool asids_hold(bool cpu_can_flush, bool forget_to_flush)
{
    struct model *m = make_model();
    uint64_t seed = 3;
    bool good = true;
    for (int step = 0; step < STEPS; step++) {
        int i = (int)(next_random(&seed) % VCPUS), c = (int)(next_random(&seed) % CPUS);
        if (next_random(&seed) % 4)
            c = m->last_cpu[i] < 0 ? c : m->last_cpu[i];
        if (next_random(&seed) % 8 == 0) {
            m->epoch[i]++;
            if (!forget_to_flush)
                svm_flush_asid(&m->vcpu[i], cpu_can_flush);
        }
        good &= enter(m, c, i);
    }
    assert_true(m->wraps > 100);
    free_model(m);
    return good;
}

static void asids_never_mix_translations(void **state)
{
    assert_true(asids_hold(false, false));
    assert_true(asids_hold(true, false));
    assert_false(asids_hold(false, true));      /* the model does see what is missing */
}

static void more_vcpus_than_asids_on_one_cpu(void **state)
{
    struct model *m = make_model();
    for (int round = 0; round < 100; round++)
        for (int i = 0; i < VCPUS; i++)
            assert_true(enter(m, 0, i));
    assert_int_equal(m->wraps, (100 * VCPUS - 1) / (ASIDS - 1));
    unsigned wraps = m->wraps;
    for (int i = 0; i < ASIDS - 1; i++)         /* as many as there are keep theirs */
        assert_true(enter(m, 0, i));
    uint64_t gen = m->cpu[0].asid_gen;
    for (int round = 0; round < 100; round++)
        assert_true(enter(m, 0, ASIDS - 2));
    assert_int_equal(m->cpu[0].asid_gen, gen);
    assert_in_range(m->wraps, wraps, wraps + 1);
    free_model(m);
}

static void new_number_is_not_clean(void **state)
{
    struct model *m = make_model();
    m->vcpu[0].vmcb->clean = CLEAN_ALL;
    svm_new_asid(&m->cpu[0], &m->vcpu[0]);
    assert_false(m->vcpu[0].vmcb->clean & CLEAN_ASID);
    free_model(m);
}

/* ---- Clean bits ---- */

#define IN(group, field) { group, offsetof(struct vmcb, field), #field }
static const struct { uint64_t group; size_t at; const char *name; } cached_field[] = {
    IN(CLEAN_I, intercept[ICPT_CR]), IN(CLEAN_I, intercept[ICPT_EXC]), IN(CLEAN_I, intercept[ICPT_MISC2]), IN(CLEAN_I, tsc_offset), IN(CLEAN_I, pause_count),
    IN(CLEAN_I, pause_threshold), IN(CLEAN_IOPM, iopm_pa), IN(CLEAN_IOPM, msrpm_pa), IN(CLEAN_ASID, asid), IN(CLEAN_TPR, vintr), IN(CLEAN_NP, np_control),
    IN(CLEAN_NP, n_cr3), IN(CLEAN_NP, g_pat), IN(CLEAN_CRX, cr0), IN(CLEAN_CRX, cr3), IN(CLEAN_CRX, cr4), IN(CLEAN_CRX, efer), IN(CLEAN_DRX, dr6),
    IN(CLEAN_DRX, dr7), IN(CLEAN_DT, gdtr.base), IN(CLEAN_DT, idtr.limit), IN(CLEAN_SEG, cs.attr), IN(CLEAN_SEG, ds.base), IN(CLEAN_SEG, es.sel),
    IN(CLEAN_SEG, ss.limit), IN(CLEAN_SEG, cpl), IN(CLEAN_CR2, cr2), IN(CLEAN_LBR, debugctl),
};
/* Never cached, or loaded by VMLOAD. */
static const size_t free_field[] = {
    offsetof(struct vmcb, rip), offsetof(struct vmcb, rsp), offsetof(struct vmcb, rax), offsetof(struct vmcb, rflags), offsetof(struct vmcb, eventinj),
    offsetof(struct vmcb, tlb_control), offsetof(struct vmcb, int_shadow), offsetof(struct vmcb, fs.base), offsetof(struct vmcb, gs.base),
    offsetof(struct vmcb, tr.base), offsetof(struct vmcb, lstar), offsetof(struct vmcb, exitcode), offsetof(struct vmcb, clean),
};

static void broken_clean_bits_are_seen(void **state)
{
    struct vmcb *b = calloc(1, sizeof *b);
    uint32_t hash[CLEAN_GROUPS];
    svm_hash_groups(b, hash);
    assert_int_equal(svm_broken_groups(b, CLEAN_ALL, hash), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(cached_field); i++) {
        uint8_t *at = (uint8_t *)b + cached_field[i].at;
        *at ^= 1;
        if (svm_broken_groups(b, CLEAN_ALL, hash) != cached_field[i].group)
            fail_msg("a change of %s is not seen", cached_field[i].name);
        assert_int_equal(svm_broken_groups(b, CLEAN_ALL & ~cached_field[i].group, hash), 0);    /* declared: as it should be */
        *at ^= 1;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(free_field); i++)
        ((uint8_t *)b)[free_field[i]] ^= 1;
    assert_int_equal(svm_broken_groups(b, CLEAN_ALL, hash), 0);
    free(b);
}

/* ---- What VMRUN refuses ---- */

enum { PHYS_BITS = 40 };

static void make_good(struct vmcb *b)
{
    memset(b, 0, sizeof *b);
    b->intercept[ICPT_MISC2] = (uint32_t)ICPT_VMRUN;
    b->iopm_pa = 0x10000, b->msrpm_pa = 0x20000, b->n_cr3 = 0x30000, b->asid = 1, b->np_control = NP_ENABLE;
    b->g_pat = 0x0007040600070406ull, b->efer = EFER_SVME | EFER_LME | EFER_LMA, b->cr0 = CR0_PE | CR0_PG | CR0_ET, b->cr4 = CR4_PAE;
    b->dr6 = 0xffff0ff0, b->dr7 = 0x400, b->rflags = RFLAGS_FIXED;
    b->cs.attr = 0x29b, b->ss.attr = b->ds.attr = 0xc93, b->tr.attr = 0x8b, b->ldtr.attr = 0x82;
}

static void inject(struct vmcb *b, unsigned type, uint8_t vector, bool error)
{
    b->eventinj = EVT_VALID | type << EVT_TYPE_SHIFT | vector | (error ? EVT_ERROR_VALID : 0);
}

#define FLAW(text, ...) do { make_good(b); __VA_ARGS__; const char *why = svm_vmcb_flaw(b, PHYS_BITS); \
        if (!why || !strstr(why, text)) fail_msg("%s: %s", text, why ? why : "not seen"); } while (0)
#define FINE(...) do { make_good(b); __VA_ARGS__; const char *why = svm_vmcb_flaw(b, PHYS_BITS); if (why) fail_msg("%s: %s", #__VA_ARGS__, why); } while (0)

static void control_flaws_are_named(void **state)
{
    struct vmcb *b = aligned_alloc(4096, sizeof *b);
    FINE((void)0);
    FLAW("VMRUN", b->intercept[ICPT_MISC2] = 0);
    FLAW("ASID", b->asid = 0);
    FLAW("I/O permission", b->iopm_pa = BIT(PHYS_BITS) - 2 * PAGE_SIZE);
    FLAW("I/O permission", b->iopm_pa = 0x10800);
    FLAW("MSR permission", b->msrpm_pa = BIT(PHYS_BITS) - PAGE_SIZE);
    FLAW("nested paging", b->np_control = 0);
    FLAW("nCR3", b->n_cr3 = BIT(PHYS_BITS));
    FLAW("G_PAT", b->g_pat = 2);
    FLAW("G_PAT", b->g_pat = 8ull << 56);
    FLAW("TLB_CONTROL", b->tlb_control = 2);
    free(b);
}

static void register_flaws_are_named(void **state)
{
    struct vmcb *b = aligned_alloc(4096, sizeof *b);
    FLAW("SVME", b->efer &= ~EFER_SVME);
    FLAW("EFER has", b->efer |= BIT(1));
    FLAW("CR0.NW", b->cr0 |= CR0_NW);
    FINE(b->cr0 |= CR0_NW | CR0_CD);
    FLAW("CR0 has", b->cr0 |= BIT(32));
    FLAW("CR4 has", b->cr4 |= BIT(32));
    FLAW("DR6", b->dr6 |= BIT(32));
    FLAW("DR7", b->dr7 |= BIT(32));
    FLAW("CR4.PAE", b->cr4 = 0);
    FLAW("CR0.PE", b->cr0 &= ~(uint64_t)CR0_PE);
    FLAW("L and D", b->cs.attr |= 1 << 10);
    FLAW("CR3", b->cr3 = BIT(52));
    FLAW("LMA", b->efer &= ~EFER_LMA);
    FLAW("PG without", b->efer = EFER_SVME, b->cr0 = CR0_PG);
    FLAW("RFLAGS", b->rflags = 0);
    free(b);
}

static void segment_flaws_are_named(void **state)
{
    struct vmcb *b = aligned_alloc(4096, sizeof *b);
    FLAW("VMCB form", b->ds.attr = 0xc093);             /* the descriptor's layout, with its hole */
    FLAW("CPL", b->efer = EFER_SVME, b->cr0 = CR0_ET, b->cpl = 3);
    FLAW("CPL", b->efer = EFER_SVME, b->cr0 = CR0_PE | CR0_ET, b->rflags |= RFLAGS_VM, b->cpl = 0);
    FINE(b->efer = EFER_SVME, b->cr0 = CR0_PE | CR0_ET, b->rflags |= RFLAGS_VM, b->cpl = 3, b->cs.attr = 0xf3);
    FLAW("code segment", b->cs.attr = 0x93);
    FINE(b->efer = EFER_SVME, b->cr0 = CR0_ET, b->cs.attr = 0x93);
    FLAW("TR is", b->tr.attr = 0x82);
    FLAW("TR is", b->tr.attr = 0x9b);
    FLAW("TR is", b->tr.attr = 0x0b);
    free(b);
}

static void event_flaws_are_named(void **state)
{
    struct vmcb *b = aligned_alloc(4096, sizeof *b);
    FINE(inject(b, EVENT_EXCEPTION, EXC_PF, true));
    FINE(inject(b, EVENT_EXCEPTION, EXC_UD, false));
    FINE(inject(b, EVENT_NMI, 2, false));
    FINE(inject(b, EVENT_INTR, 0x30, false));
    FLAW("reserved type", inject(b, 1, 0, false));
    FLAW("vector that is none", inject(b, EVENT_EXCEPTION, 2, false));
    FLAW("vector that is none", inject(b, EVENT_EXCEPTION, 32, false));
    FLAW("where none", inject(b, EVENT_EXCEPTION, EXC_UD, true));
    FLAW("where none", inject(b, EVENT_EXCEPTION, EXC_GP, true), b->efer = EFER_SVME, b->cr0 = CR0_ET);
    FLAW("lacks", inject(b, EVENT_EXCEPTION, EXC_GP, false));
    free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(asids_never_mix_translations), cmocka_unit_test(more_vcpus_than_asids_on_one_cpu), cmocka_unit_test(new_number_is_not_clean),
        cmocka_unit_test(broken_clean_bits_are_seen), cmocka_unit_test(control_flaws_are_named), cmocka_unit_test(register_flaws_are_named),
        cmocka_unit_test(segment_flaws_are_named), cmocka_unit_test(event_flaws_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
