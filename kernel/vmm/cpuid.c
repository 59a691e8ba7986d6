/* Guest CPUID; see cpuid.h. */
#include "kernel/vmm/cpuid.h"

#include <string.h>

#include "kernel/lib/port.h"

/* Fix-ups at lookup. */
enum { FIX_NONE, FIX_FEATURES /* leaf 1 */, FIX_XSAVE_SIZE /* D.0 */, FIX_XSAVEC_SIZE /* D.1 */, FIX_TOPOLOGY /* B, 1F */, FIX_EXT_FEATURES /* 80000001 */, FIX_AMD_ID /* 8000001E */ };

enum { XCR0_SSE = BIT(1), XCR0_AVX = BIT(2), XCR0_AVX512 = BITS(7, 5), XSAVE_LEGACY = 576 };

struct build {
    struct cpuid_table *t;
    const struct cpuid_policy *p;
    bool intel, amd;
    uint32_t host_basic, host_ext;      /* highest leaves of the host */
    unsigned id_bits;           /* of APIC IDs within the package */
};

/*
 * What passes from the host, by leaf: a bit that is not named here does not exist for guests.  Bits forced on are what our own models provide.
 * sub: -1 = the leaf has no subleaves.
 */
typedef void cpuid_fn(const struct build *, uint32_t subleaf, struct cpuid_regs *);
struct rule {
    uint32_t leaf;
    int sub;
    uint32_t eax, ebx, ecx, edx;        /* masks */
    cpuid_fn *fn;                       /* refines after the masks */
    uint8_t fix;
};

#define ALL 0xffffffffu
#define B(n) (1u << (n))
#define R(hi, lo) ((uint32_t)BITS(hi, lo))

/* Leaf 1. */
#define L1_ECX_AVX  (B(12) | B(28) | B(29))     /* FMA AVX F16C */
#define L1_ECX      (B(0) | B(1) | B(9) | B(13) | B(17) | B(19) | B(20) | B(22) | B(23) | B(25) | B(26) | B(30) | L1_ECX_AVX)
#define L1_ECX_ON   (B(21) | B(24) | B(31))     /* x2APIC, TSC deadline, hypervisor */
#define L1_EDX      (R(9, 0) | R(17, 11) | B(19) | R(27, 23))
/* Leaf 7. */
#define L7_EBX_512  (B(16) | B(17) | B(21) | B(28) | B(30) | B(31))
#define L7_EBX      (B(0) | B(3) | B(5) | R(10, 6) | B(13) | B(18) | B(19) | B(20) | B(23) | B(24) | B(29) | L7_EBX_512)
#define L7_ECX_512  (B(1) | B(6) | B(11) | B(12) | B(14))
#define L7_ECX_AVX  (B(9) | B(10))              /* VAES VPCLMULQDQ */
#define L7_ECX      (B(0) | B(2) | B(8) | B(22) | B(27) | B(28) | L7_ECX_AVX | L7_ECX_512)
#define L7_EDX_512  (B(8) | B(23))
#define L7_EDX_SPEC (B(26) | B(27) | B(31))     /* IBRS/IBPB STIBP SSBD */
#define L7_EDX      (B(4) | B(10) | B(14) | B(29) | L7_EDX_SPEC | L7_EDX_512)
/* Leaf 80000001h. */
#define E1_ECX_AVX  (B(11) | B(16))             /* XOP FMA4 */
#define E1_ECX      (B(0) | B(1) | R(8, 4) | B(21) | B(22) | E1_ECX_AVX)
#define E1_EDX      (R(9, 0) | R(17, 11) | B(20) | R(27, 22) | R(31, 29))
/* Leaf 80000008h. */
#define E8_EBX_SPEC (B(12) | B(14) | B(15) | B(16) | B(17) | B(19) | B(24))
#define E8_EBX      (B(0) | B(2) | B(9) | E8_EBX_SPEC | B(26))


static void leaf_0(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    r->eax = b->t->max_basic;
}

static void leaf_1(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    r->ebx = (r->ebx & 0xffff) | (1u << b->id_bits) << 16;
    r->ecx |= L1_ECX_ON;
    if (!b->p->xcr0)
        r->ecx &= ~(B(26) | L1_ECX_AVX);
    if (!(b->p->xcr0 & XCR0_AVX))
        r->ecx &= ~L1_ECX_AVX;
    r->edx |= B(9) | B(12) | B(16);     /* APIC MTRR PAT: ours */
    if (b->p->ncpus > 1)
        r->edx |= B(28);
}

/* Deterministic cache parameters: L1 and L2 belong to a core, the rest to the package.  Same layout in leaf 4 and 8000001Dh. */
static void cache(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    unsigned level = r->eax >> 5 & 7;

    if (!(r->eax & 0x1f))
        return;
    r->eax &= R(13, 0);
    if (level >= 3)
        r->eax |= (b->p->ncpus - 1) << 14;
    if (b->intel)
        r->eax |= ((1u << b->id_bits) - 1) << 26;
}

static void leaf_6(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    *r = (struct cpuid_regs){ .eax = B(2) };    /* ARAT: the APIC timer never stops */
}

static void leaf_7(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    r->eax = MIN(r->eax, 1u);
    r->ebx |= B(1);                             /* TSC_ADJUST */
    if (!(b->p->xcr0 & XCR0_AVX)) {
        r->ebx &= ~B(5);
        r->ecx &= ~L7_ECX_AVX;
    }
    if ((b->p->xcr0 & XCR0_AVX512) != XCR0_AVX512) {
        r->ebx &= ~L7_EBX_512;
        r->ecx &= ~L7_ECX_512;
        r->edx &= ~L7_EDX_512;
    }
    if (!b->p->spec_ctrl)
        r->edx &= ~L7_EDX_SPEC;
    if (!b->p->arch_caps)
        r->edx &= ~B(29);
}

static void leaf_7_1(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    if (!(b->p->xcr0 & XCR0_AVX))
        r->eax &= ~B(4);
    if ((b->p->xcr0 & XCR0_AVX512) != XCR0_AVX512)
        r->eax &= ~B(5);
}

/* Extended topology: one thread per core, all cores in one package. */
static void topology(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    *r = (struct cpuid_regs){ .ecx = sub };
    if (sub == 0) {
        r->ebx = 1;
        r->ecx |= 1 << 8;
    } else if (sub == 1) {
        r->eax = b->id_bits;
        r->ebx = b->p->ncpus;
        r->ecx |= 2 << 8;
    }
}

static void leaf_d(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    if (sub == 0)
        *r = (struct cpuid_regs){ .eax = b->p->xcr0, .edx = b->p->xcr0 >> 32 };    /* EBX, ECX: sizes, once all components are in */
    else if (sub > 1 && (!(b->p->xcr0 & BIT(sub)) || (r->ecx & 1)))
        *r = (struct cpuid_regs){ 0 };
}

static void leaf_e0(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    r->eax = b->t->max_ext;
}

static void leaf_e1(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    if (!(b->p->xcr0 & XCR0_AVX))
        r->ecx &= ~E1_ECX_AVX;
    if (!b->amd) {
        r->ecx &= ~(B(1) | B(22));
        return;
    }
    r->ecx |= B(22);                            /* topology extensions: leaves 8000001Dh and 1Eh are ours */
    r->ecx = b->p->ncpus > 1 ? r->ecx | B(1) : r->ecx & ~B(1);
    r->edx |= B(9) | B(12) | B(16);
}

static void leaf_e7(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    r->edx = b->p->tsc_stable ? B(8) : 0;
}

static void leaf_e8(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    r->eax = b->t->phys_bits | MIN(r->eax >> 8 & 0xff, 48u) << 8;
    if (!b->p->spec_ctrl)
        r->ebx &= ~E8_EBX_SPEC;
    r->ecx = b->amd ? (b->p->ncpus - 1) | b->id_bits << 12 : 0;
}

static void leaf_e1e(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    *r = (struct cpuid_regs){ 0 };
}

static void leaf_hyp(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    *r = (struct cpuid_regs){ b->p->tsc_khz ? 0x40000010 : 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d };
}

static void leaf_hyp_features(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    *r = (struct cpuid_regs){ .eax = B(1) };    /* no delay needed around port I/O */
    if (b->p->kvmclock)
        r->eax |= B(0) | B(3) | (b->p->tsc_stable ? B(24) : 0);
}

static void leaf_hyp_khz(const struct build *b, uint32_t sub, struct cpuid_regs *r)
{
    *r = (struct cpuid_regs){ .eax = b->p->tsc_khz };
}

#define L(l, s, a, b, c, d, ...) { .leaf = l, .sub = s, .eax = a, .ebx = b, .ecx = c, .edx = d, ##__VA_ARGS__ }

static const struct rule rules[] = {
    L(0x00, -1, ALL, ALL, ALL, ALL, .fn = leaf_0),
    L(0x01, -1, ALL, ALL, L1_ECX, L1_EDX, .fn = leaf_1, .fix = FIX_FEATURES),
    L(0x02, -1, ALL, ALL, ALL, ALL),
    L(0x04, 0, ALL, ALL, ALL, R(2, 0), .fn = cache), L(0x04, 1, ALL, ALL, ALL, R(2, 0), .fn = cache),
    L(0x04, 2, ALL, ALL, ALL, R(2, 0), .fn = cache), L(0x04, 3, ALL, ALL, ALL, R(2, 0), .fn = cache), L(0x04, 4, ALL, ALL, ALL, R(2, 0), .fn = cache),
    L(0x06, -1, 0, 0, 0, 0, .fn = leaf_6),
    L(0x07, 0, ALL, L7_EBX, L7_ECX, L7_EDX, .fn = leaf_7), L(0x07, 1, B(4) | B(5) | R(12, 10), 0, 0, 0, .fn = leaf_7_1),
    L(0x0b, 0, 0, 0, 0, 0, .fn = topology, .fix = FIX_TOPOLOGY), L(0x0b, 1, 0, 0, 0, 0, .fn = topology, .fix = FIX_TOPOLOGY), L(0x0b, 2, 0, 0, 0, 0, .fn = topology, .fix = FIX_TOPOLOGY),
    L(0x0d, 0, ALL, ALL, ALL, ALL, .fn = leaf_d, .fix = FIX_XSAVE_SIZE), L(0x0d, 1, R(2, 0), 0, 0, 0, .fn = leaf_d, .fix = FIX_XSAVEC_SIZE),
    L(0x0d, 2, ALL, ALL, R(1, 0), 0, .fn = leaf_d), L(0x0d, 5, ALL, ALL, R(1, 0), 0, .fn = leaf_d),
    L(0x0d, 6, ALL, ALL, R(1, 0), 0, .fn = leaf_d), L(0x0d, 7, ALL, ALL, R(1, 0), 0, .fn = leaf_d),
    L(0x15, -1, ALL, ALL, ALL, 0), L(0x16, -1, ALL, ALL, ALL, 0),
    L(0x1f, 0, 0, 0, 0, 0, .fn = topology, .fix = FIX_TOPOLOGY), L(0x1f, 1, 0, 0, 0, 0, .fn = topology, .fix = FIX_TOPOLOGY), L(0x1f, 2, 0, 0, 0, 0, .fn = topology, .fix = FIX_TOPOLOGY),
    L(0x40000000, -1, 0, 0, 0, 0, .fn = leaf_hyp), L(0x40000001, -1, 0, 0, 0, 0, .fn = leaf_hyp_features), L(0x40000010, -1, 0, 0, 0, 0, .fn = leaf_hyp_khz),
    L(0x80000000, -1, ALL, ALL, ALL, ALL, .fn = leaf_e0),
    L(0x80000001, -1, ALL, ALL, E1_ECX, E1_EDX, .fn = leaf_e1, .fix = FIX_EXT_FEATURES),
    L(0x80000002, -1, ALL, ALL, ALL, ALL), L(0x80000003, -1, ALL, ALL, ALL, ALL), L(0x80000004, -1, ALL, ALL, ALL, ALL),
    L(0x80000005, -1, ALL, ALL, ALL, ALL), L(0x80000006, -1, ALL, ALL, ALL, ALL),
    L(0x80000007, -1, 0, 0, 0, 0, .fn = leaf_e7), L(0x80000008, -1, ALL, E8_EBX, 0, 0, .fn = leaf_e8),
    L(0x80000019, -1, ALL, ALL, 0, 0), L(0x8000001a, -1, R(2, 0), 0, 0, 0),
    L(0x8000001d, 0, ALL, ALL, ALL, R(1, 0), .fn = cache), L(0x8000001d, 1, ALL, ALL, ALL, R(1, 0), .fn = cache), L(0x8000001d, 2, ALL, ALL, ALL, R(1, 0), .fn = cache),
    L(0x8000001d, 3, ALL, ALL, ALL, R(1, 0), .fn = cache),
    L(0x8000001e, -1, 0, 0, 0, 0, .fn = leaf_e1e, .fix = FIX_AMD_ID),
    L(0x80000021, -1, B(0) | B(2) | B(6), 0, 0, 0),
};

static uint8_t *slot(struct cpuid_table *t, uint32_t leaf)
{
    if (leaf < CPUID_BASIC)
        return &t->basic[leaf];
    if (leaf - 0x80000000u < CPUID_EXT)
        return &t->ext[leaf - 0x80000000u];
    if (leaf - 0x40000000u < CPUID_HYP)
        return &t->hyp[leaf - 0x40000000u];
    return NULL;
}

/* A leaf that the host lacks is empty, whatever its CPU answers: Intel's repeat their highest leaf. */
static void host_leaf(const struct build *b, uint32_t leaf, uint32_t sub, struct cpuid_regs *r)
{
    *r = (struct cpuid_regs){ 0 };
    if (leaf <= (leaf >> 31 ? b->host_ext : b->host_basic))
        b->p->raw(b->p->arg, leaf, sub, r);
}

static void add(const struct build *b, const struct rule *rule)
{
    struct cpuid_table *t = b->t;
    uint8_t *first = slot(t, rule->leaf);
    struct cpuid_regs r = { 0 };
    bool hyp = rule->leaf >> 30 == 1;

    ASSERT(t->count < CPUID_MAX_ENTRIES);
    if (!hyp) {
        if (rule->leaf > (rule->leaf >> 31 ? t->max_ext : t->max_basic))
            return;
        host_leaf(b, rule->leaf, rule->sub < 0 ? 0 : rule->sub, &r);
    } else if (rule->leaf == 0x40000010 && !b->p->tsc_khz) {
        return;
    }
    r = (struct cpuid_regs){ r.eax & rule->eax, r.ebx & rule->ebx, r.ecx & rule->ecx, r.edx & rule->edx };
    if (rule->fn)
        rule->fn(b, rule->sub < 0 ? 0 : rule->sub, &r);
    if (*first)
        t->entry[t->count - 1].last = false;
    else
        *first = t->count;
    t->entry[t->count++] = (struct cpuid_entry){ .r = r, .subleaf = rule->sub < 0 ? 0 : rule->sub, .fix = rule->fix, .last = true };
}

static const struct cpuid_entry *find(const struct cpuid_table *t, uint32_t leaf, uint32_t subleaf)
{
    const uint8_t *first = slot((struct cpuid_table *)t, leaf);
    const struct cpuid_entry *e = &t->entry[first ? *first : 0];

    while (e->subleaf != subleaf && !e->last)
        e++;
    return e;
}

/* Bytes of an XSAVE area with the components of `mask`, standard or compacted form. */
static uint32_t xsave_size(const struct cpuid_table *t, uint64_t mask, bool compact)
{
    uint32_t size = XSAVE_LEGACY;

    for (unsigned n = 2; n < 8; n++) {
        const struct cpuid_entry *e = find(t, 0xd, n);
        if (!(mask & BIT(n)) || e->subleaf != n || !e->r.eax)
            continue;
        if (!compact)
            size = MAX(size, e->r.ebx + e->r.eax);
        else
            size = (e->r.ecx & 2 ? ALIGN_UP(size, 64u) : size) + e->r.eax;
    }
    return size;
}

/* The host's, less what memory encryption takes; without leaf 80000008h what every CPU with long mode has. */
static uint8_t host_phys_bits(const struct build *b)
{
    struct cpuid_regs width, enc = { 0 };

    host_leaf(b, 0x80000008, 0, &width);
    if (b->amd)
        host_leaf(b, 0x8000001f, 0, &enc);
    return (width.eax & 0xff ? width.eax & 0xff : 36) - (enc.eax & 1 ? enc.ebx >> 6 & 0x3f : 0);
}

static void limits(struct build *b)
{
    struct cpuid_table *t = b->t;
    struct cpuid_regs r;

    b->p->raw(b->p->arg, 0, 0, &r);
    b->host_basic = r.eax;
    b->intel = t->intel = r.ebx == 0x756e6547;                          /* "Genu"ineIntel */
    b->amd = r.ebx == 0x68747541 || r.ebx == 0x6f677948;                /* "Auth"enticAMD, "Hygo"nGenuine */
    t->max_basic = MAX(r.eax, b->p->xcr0 ? 0x0du : 0x0bu);
    t->max_basic = MIN(t->max_basic, CPUID_BASIC - 1u);
    b->p->raw(b->p->arg, 0x80000000, 0, &r);
    b->host_ext = r.eax >> 16 == 0x8000 ? r.eax : 0x80000000u;
    t->max_ext = MAX(b->host_ext, b->amd ? 0x8000001eu : 0x80000008u);
    t->max_ext = MIN(t->max_ext, 0x80000000u + CPUID_EXT - 1);
    t->phys_bits = b->p->phys_bits ? b->p->phys_bits : host_phys_bits(b);
    while (1u << b->id_bits < b->p->ncpus)
        b->id_bits++;
}

void cpuid_build(struct cpuid_table *t, const struct cpuid_policy *p)
{
    struct build b = { .t = t, .p = p };

    memset(t, 0, sizeof *t);
    t->xcr0 = p->xcr0;
    limits(&b);
    t->entry[0].last = true;
    t->count = 1;
    for (unsigned n = 0; n < ARRAY_SIZE(rules); n++)
        if (rules[n].leaf != 0xd || p->xcr0)
            add(&b, &rules[n]);
    if (p->xcr0)
        ((struct cpuid_entry *)find(t, 0xd, 0))->r.ecx = xsave_size(t, p->xcr0, false);
}

static void fix(const struct cpuid_table *t, const struct cpuid_env *env, const struct cpuid_entry *e, uint32_t subleaf, struct cpuid_regs *r)
{
    switch (e->fix) {
    case FIX_FEATURES:
        r->ebx |= env->apic_id << 24;
        if ((r->ecx & B(26)) && (env->cr4(env->vcpu) & BIT(18)))
            r->ecx |= B(27);            /* OSXSAVE */
        /* fall through */
    case FIX_EXT_FEATURES:
        if (!env->apic_on(env->vcpu))
            r->edx &= ~B(9);
        break;
    case FIX_XSAVE_SIZE:
        r->ebx = xsave_size(t, env->xcr0(env->vcpu), false);
        break;
    case FIX_XSAVEC_SIZE:
        r->ebx = r->eax & B(1) ? xsave_size(t, env->xcr0(env->vcpu), true) : 0;
        break;
    case FIX_TOPOLOGY:
        r->ecx = (r->ecx & ~0xffu) | (subleaf & 0xff);
        r->edx = env->apic_id;
        break;
    case FIX_AMD_ID:
        r->eax = env->apic_id;
        r->ebx = env->apic_id & 0xff;
        break;
    }
}

static __attribute__((noinline)) struct cpuid_regs fixed(const struct cpuid_table *t, const struct cpuid_env *env, const struct cpuid_entry *e, uint32_t subleaf)
{
    struct cpuid_regs r = e->r;
    fix(t, env, e, subleaf, &r);
    return r;
}

struct cpuid_regs cpuid_get(const struct cpuid_table *t, const struct cpuid_env *env, uint32_t leaf, uint32_t subleaf)
{
    const struct cpuid_entry *e;
    uint32_t first = 0;

    if (likely(leaf < CPUID_BASIC))
        first = t->basic[leaf];
    else if (leaf - 0x80000000u < CPUID_EXT)
        first = t->ext[leaf - 0x80000000u];
    else if (leaf - 0x40000000u < CPUID_HYP)
        first = t->hyp[leaf - 0x40000000u];
    /* Beyond the last leaf Intel's CPUs answer as for the highest basic one, AMD's with zeros. */
    if (unlikely(!first) && t->intel && leaf - 0x40000000u > 0x0fffffffu && leaf > (leaf >> 31 ? t->max_ext : t->max_basic))
        first = t->basic[t->max_basic];
    e = &t->entry[first];
    if (unlikely(!e->last)) {           /* a leaf with subleaves */
        while (e->subleaf != subleaf && !e->last)
            e++;
        if (e->subleaf != subleaf && e->fix != FIX_TOPOLOGY)
            e = &t->entry[0];
    }
    return likely(!e->fix) ? e->r : fixed(t, env, e, subleaf);
}

bool cpuid_has(const struct cpuid_table *t, uint32_t leaf, unsigned reg, unsigned bit)
{
    const struct cpuid_regs *r = &find(t, leaf, 0)->r;
    const uint32_t v[4] = { r->eax, r->ebx, r->ecx, r->edx };

    return reg < 4 && bit < 32 && (v[reg] >> bit & 1);
}
