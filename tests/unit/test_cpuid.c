/* Guest CPUID: masks, topology, xsave sizes, out-of-range rules; on made-up hosts of both vendors and on the CPU that runs the test. */
#include <cpuid.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/vmm/cpuid.h"

enum { EAX, EBX, ECX, EDX };
static struct { uint64_t cr4, xcr0; bool apic; } cpu;
static uint64_t get_cr4(void *v) { return cpu.cr4; }
static uint64_t get_xcr0(void *v) { return cpu.xcr0; }
static bool get_apic(void *v) { return cpu.apic; }
static struct cpuid_table t;
static struct cpuid_env env = { .cr4 = get_cr4, .xcr0 = get_xcr0, .apic_on = get_apic };

struct leaf { uint32_t leaf, sub; struct cpuid_regs r; };
static void lookup_leaf(const struct leaf *l, unsigned n, uint32_t leaf, uint32_t sub, struct cpuid_regs *r)
{
    *r = (struct cpuid_regs){ 0 };
    for (; n; n--, l++)
        if (l->leaf == leaf && l->sub == sub)
            *r = l->r;
}

static const struct leaf intel_host[] = {
    { 0, 0, { 0x20, 0x756e6547, 0x6c65746e, 0x49656e69 } }, { 1, 0, { 0x806f8, 0x10400800, 0xfffffffb, 0xbfebfbff } },
    { 4, 0, { 0x7c004121, 0x02c0003f, 0x3f, 0 } }, { 4, 3, { 0x7c0fc163, 0x0380003f, 0xffff, 4 } }, { 5, 0, { 64, 64, 3, 0x2020 } }, { 6, 0, { 0xdf8ff7, 2, 9, 0 } },
    { 7, 0, { 2, 0xf3bfbfff, 0xffffffff, 0xffffffff } }, { 0xa, 0, { 0x7300405, 0, 0, 0x603 } },
    { 0xd, 0, { 0x602e7, 0x2b00, 0x2b00, 0 } }, { 0xd, 1, { 0x1f, 0x2b00, 0x1900, 0 } }, { 0xd, 2, { 256, 576, 0, 0 } },
    { 0xd, 5, { 64, 1088, 0, 0 } }, { 0xd, 6, { 512, 1152, 0, 0 } }, { 0xd, 7, { 1024, 1664, 0, 0 } }, { 0xd, 9, { 8, 2688, 0, 0 } },
    { 0x15, 0, { 2, 216, 25000000, 0 } }, { 0x1f, 0, { 1, 2, 0x100, 5 } },
    { 0x80000000, 0, { 0x80000008, 0, 0, 0 } }, { 0x80000001, 0, { 0, 0, 0x121, 0x2c100800 } }, { 0x80000007, 0, { 0, 0, 0, 0x100 } }, { 0x80000008, 0, { 0x3934, 0x200, 0, 0 } },
};
static void intel(void *arg, uint32_t leaf, uint32_t sub, struct cpuid_regs *r) { lookup_leaf(intel_host, ARRAY_SIZE(intel_host), leaf, sub, r); }

static const struct leaf amd_host[] = {
    { 0, 0, { 0x10, 0x68747541, 0x444d4163, 0x69746e65 } }, { 1, 0, { 0xa20f12, 0x0b100800, 0xfef8320b, 0x178bfbff } }, { 7, 0, { 0, 0x219c97a9, 0x40069c, 0x10 } },
    { 0xd, 0, { 0x207, 0x340, 0x988, 0 } }, { 0xd, 1, { 0xf, 0x340, 0x1800, 0 } }, { 0xd, 2, { 256, 576, 0, 0 } },
    { 0x80000000, 0, { 0x80000023, 0x68747541, 0x444d4163, 0x69746e65 } }, { 0x80000001, 0, { 0xa20f12, 0x20000000, 0x75c237ff, 0x2fd3fbff } },
    { 0x80000007, 0, { 0, 0x3b, 0, 0x6799 } }, { 0x80000008, 0, { 0x3030, 0x111ef657, 0x400b, 0 } }, { 0x8000000a, 0, { 1, 0x8000, 0, 0x101bbcff } },
    { 0x8000001d, 0, { 0x4121, 0x01c0003f, 0x3f, 0 } }, { 0x8000001d, 3, { 0x2c163, 0x03c0003f, 0x7fff, 1 } }, { 0x8000001e, 0, { 11, 0x105, 0, 0 } },
    { 0x8000001f, 0, { 1, 0x16f, 0x1fd, 0x4f } }, { 0x80000021, 0, { 0xffff, 0, 0, 0 } },
};
static void amd(void *arg, uint32_t leaf, uint32_t sub, struct cpuid_regs *r) { lookup_leaf(amd_host, ARRAY_SIZE(amd_host), leaf, sub, r); }

static void real(void *arg, uint32_t leaf, uint32_t sub, struct cpuid_regs *r) { __cpuid_count(leaf, sub, r->eax, r->ebx, r->ecx, r->edx); }

static struct cpuid_regs get(uint32_t leaf, uint32_t sub)
{
    struct cpuid_regs r;

    r = cpuid_get(&t, &env, leaf, sub);
    return r;
}

static void build(struct cpuid_policy p)
{
    cpu.cr4 = 0, cpu.xcr0 = p.xcr0, cpu.apic = true;
    env.apic_id = 3;
    cpuid_build(&t, &p);
}

static void hidden_features_are_hidden(void **state)
{
    build((struct cpuid_policy){ .raw = intel, .ncpus = 4, .xcr0 = 0xe7, .kvmclock = true });
    struct cpuid_regs r = get(1, 0);
    assert_int_equal(r.ecx & (1 << 5 | 1 << 3 | 1 << 2 | 1 << 6 | 1 << 15 | 1 << 18), 0);      /* VMX MONITOR DTES64 SMX PDCM DCA */
    assert_int_equal(r.ecx & (1u << 31 | 1 << 21 | 1 << 24), 1u << 31 | 1 << 21 | 1 << 24);
    assert_int_equal(r.edx & (1 << 21 | 1 << 22 | 1 << 29 | 1u << 31), 0);                     /* DS ACPI TM PBE */
    r = get(7, 0);
    assert_int_equal(r.ebx & (1 << 4 | 1 << 11 | 1 << 12 | 1 << 14 | 1 << 15 | 1 << 22 | 1 << 25), 0); /* HLE RTM CMT MPX CAT PT */
    assert_int_equal(r.ecx & (1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 16 | 1u << 31 | 1u << 30 | 1u << 23 | 1u << 13), 0); /* PKU WAITPKG CET LA57 PKS SGX KL TME */
    assert_int_equal(r.edx & (1 << 15 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25 | 1 << 18 | 1 << 19 | 1 << 5), 0);   /* hybrid CET AMX PCONFIG LBR UINTR */
    assert_int_equal(r.edx & (1u << 26 | 1u << 27 | 1u << 29 | 1u << 31), 0);                  /* not until the policy says so */
    static const uint32_t empty[] = { 3, 5, 8, 9, 0xa, 0xc, 0xe, 0x10, 0x12, 0x14, 0x17, 0x18, 0x19, 0x1c, 0x1d, 0x1e };
    for (unsigned n = 0; n < ARRAY_SIZE(empty); n++) {
        r = get(empty[n], 0);
        assert_int_equal(r.eax | r.ebx | r.ecx | r.edx, 0);
    }
    assert_int_equal(get(6, 0).eax, 4);
    assert_int_equal(get(0x80000008, 0).eax, 0x3034);           /* 52 physical bits, 57 linear cut to 48 */
    assert_int_equal(get(0x80000007, 0).edx, 0);
    build((struct cpuid_policy){ .raw = intel, .ncpus = 4, .xcr0 = 7, .spec_ctrl = true, .arch_caps = true, .tsc_stable = true, .kvmclock = true });
    assert_true(get(7, 0).edx & 1u << 29);
    assert_true(get(7, 0).edx & 1u << 26);
    assert_int_equal(get(7, 0).ebx & (1 << 16 | 1u << 31), 0);  /* no AVX-512 without its state */
    assert_int_equal(get(0x80000007, 0).edx, 0x100);
    assert_true(get(0x40000001, 0).eax & 1 << 24);
}

static void vcpu_state_shows(void **state)
{
    build((struct cpuid_policy){ .raw = amd, .ncpus = 4, .xcr0 = 7 });
    struct cpuid_regs r = get(1, 0);
    assert_int_equal(r.ebx, 0x03040800);
    assert_false(r.ecx & 1 << 27);
    assert_true(r.edx & 1 << 9);
    assert_true(r.edx & 1 << 28);
    cpu.cr4 = 1 << 18, cpu.apic = false;
    r = get(1, 77);
    assert_true(r.ecx & 1 << 27);
    assert_false(r.edx & 1 << 9);
    assert_false(get(0x80000001, 0).edx & 1 << 9);
    assert_false(get(0x80000001, 0).ecx & 1 << 2);              /* SVM */
    assert_int_equal(get(0x8000000a, 0).edx, 0);
}

static void topology_is_consistent(void **state)
{
    for (unsigned ncpus = 1; ncpus <= 32; ncpus++) {
        unsigned bits = 0;
        while (1u << bits < ncpus)
            bits++;
        build((struct cpuid_policy){ .raw = intel, .ncpus = ncpus, .xcr0 = 7 });
        env.apic_id = ncpus - 1;
        struct cpuid_regs r = get(0xb, 0);
        assert_int_equal(r.eax, 0);
        assert_int_equal(r.ebx, 1);
        assert_int_equal(r.ecx, 0x100);
        assert_int_equal(r.edx, ncpus - 1);
        r = get(0xb, 1);
        assert_int_equal(r.eax, bits);
        assert_int_equal(r.ebx, ncpus);
        assert_int_equal(r.ecx, 0x201);
        r = get(0xb, 7);
        assert_int_equal(r.eax | r.ebx, 0);
        assert_int_equal(r.ecx, 7);
        assert_int_equal(r.edx, ncpus - 1);
        assert_memory_equal(&(struct cpuid_regs[]){ get(0x1f, 1) }, &(struct cpuid_regs[]){ get(0xb, 1) }, 16);
        assert_int_equal(get(1, 0).ebx >> 16 & 0xff, 1u << bits);
        assert_int_equal(!!(get(1, 0).edx & 1 << 28), ncpus > 1);
        assert_int_equal(get(4, 0).eax, 0x121 | ((1u << bits) - 1) << 26);
        assert_int_equal(get(4, 3).eax, 0x163 | (ncpus - 1) << 14 | ((1u << bits) - 1) << 26);
        assert_int_equal(get(4, 9).eax, 0);
        build((struct cpuid_policy){ .raw = amd, .ncpus = ncpus, .xcr0 = 7 });
        env.apic_id = ncpus - 1;
        assert_int_equal(get(0x80000008, 0).ecx, (ncpus - 1) | bits << 12);
        assert_int_equal(get(0x8000001e, 0).eax, ncpus - 1);
        assert_int_equal(get(0x8000001e, 0).ebx, ncpus - 1);
        assert_int_equal(get(0x8000001d, 3).eax, 0x163 | (ncpus - 1) << 14);
        assert_int_equal(get(0x8000001d, 0).eax, 0x121);
        assert_int_equal(!!(get(0x80000001, 0).ecx & 2), ncpus > 1);
    }
}

static void xsave_sizes_follow_xcr0(void **state)
{
    build((struct cpuid_policy){ .raw = intel, .ncpus = 1, .xcr0 = 0xe7 });
    struct cpuid_regs r = get(0xd, 0);
    assert_int_equal(r.eax, 0xe7);
    assert_int_equal(r.ebx, 2688);
    assert_int_equal(r.ecx, 2688);
    cpu.xcr0 = 1;
    assert_int_equal(get(0xd, 0).ebx, 576);
    assert_int_equal(get(0xd, 0).ecx, 2688);
    cpu.xcr0 = 7;
    assert_int_equal(get(0xd, 0).ebx, 832);
    assert_int_equal(get(0xd, 1).ebx, 832);
    assert_int_equal(get(0xd, 1).eax, 7);                       /* XSAVEOPT XSAVEC XGETBV1, no XSAVES */
    cpu.xcr0 = 0xe3;
    assert_int_equal(get(0xd, 0).ebx, 2688);
    assert_int_equal(get(0xd, 1).ebx, 576 + 64 + 512 + 1024);
    assert_int_equal(get(0xd, 9).eax, 0);                       /* PKRU */
    assert_int_equal(get(0xd, 7).ebx, 1664);
    build((struct cpuid_policy){ .raw = intel, .ncpus = 1 });
    assert_int_equal(get(0xd, 0).eax | get(0xd, 1).eax, 0);
    assert_int_equal(get(1, 0).ecx & (1 << 26 | 1 << 28 | 1 << 12), 0);
    assert_int_equal(get(7, 0).ebx & 1 << 5, 0);
}

static void ranges_answer_as_the_vendor(void **state)
{
    build((struct cpuid_policy){ .raw = intel, .ncpus = 2, .xcr0 = 7 });
    assert_int_equal(get(0, 0).eax, 0x1f);
    assert_int_equal(get(0x20, 1).ebx, 2);                      /* as leaf 1Fh subleaf 1 */
    assert_int_equal(get(0x7fffffff, 1).ebx, 2);
    assert_int_equal(get(0x80000009, 1).ebx, 2);
    assert_int_equal(get(0xffffffff, 0).ecx, 0x100);
    assert_int_equal(get(0x40000099, 1).ebx, 0);
    build((struct cpuid_policy){ .raw = amd, .ncpus = 2, .xcr0 = 7 });
    assert_int_equal(get(0, 0).eax, 0x10);
    assert_int_equal(get(0x20, 1).ebx, 0);
    assert_int_equal(get(0x80000000, 0).eax, 0x80000021);
    assert_int_equal(get(0xffffffff, 0).eax, 0);
    assert_int_equal(get(0x80000008, 0).eax, 0x302b);           /* 48 less 5 encryption bits */
    assert_int_equal(t.phys_bits, 43);
    assert_int_equal(get(0x8000001f, 0).eax, 0);
}

/* A CPU that ends early and repeats a leaf beyond its last: nothing of that is taken for features. */
static void short_host(void *arg, uint32_t leaf, uint32_t sub, struct cpuid_regs *r)
{
    static const struct leaf host[] = {
        { 0, 0, { 1, 0x68747541, 0x444d4163, 0x69746e65 } }, { 1, 0, { 0xf51, 0x00000800, 0x80002001, 0x078bfbff } },
        { 0x80000000, 0, { 0x80000008, 0x68747541, 0x444d4163, 0x69746e65 } }, { 0x80000001, 0, { 0xf51, 0, 0x5, 0x2fd3fbff } },
        { 0x80000008, 0, { 0x3024, 0, 0, 0 } },
    };
    if (leaf > (leaf >> 31 ? 0x80000008 : 1))
        *r = (struct cpuid_regs){ 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff };
    else
        lookup_leaf(host, ARRAY_SIZE(host), leaf, sub, r);
}

static void leaves_that_the_host_lacks_are_empty(void **state)
{
    build((struct cpuid_policy){ .raw = short_host, .ncpus = 2 });
    assert_int_equal(get(0, 0).eax, 0xb);
    assert_int_equal(get(6, 0).eax, 4);                         /* ours */
    assert_int_equal(get(7, 0).ebx, 2);
    assert_int_equal(get(7, 0).ecx | get(7, 0).edx | get(2, 0).eax | get(4, 0).eax, 0);
    assert_int_equal(get(0xb, 1).ebx, 2);
    assert_int_equal(get(0x80000000, 0).eax, 0x8000001e);
    assert_int_equal(get(0x80000008, 0).eax, 0x3024);
    assert_int_equal(get(0x80000008, 0).ebx | get(0x80000019, 0).eax | get(0x8000001d, 0).eax, 0);
    assert_int_equal(t.phys_bits, 36);
}

static void hypervisor_leaves(void **state)
{
    build((struct cpuid_policy){ .raw = amd, .ncpus = 2, .xcr0 = 7, .kvmclock = true, .tsc_khz = 2500000 });
    struct cpuid_regs r = get(0x40000000, 0);
    assert_memory_equal(&r.ebx, "KVMKVMKVM\0\0\0", 12);
    assert_int_equal(r.eax, 0x40000010);
    assert_int_equal(get(0x40000001, 0).eax, 1 << 0 | 1 << 1 | 1 << 3);
    assert_int_equal(get(0x40000010, 0).eax, 2500000);
    assert_true(cpuid_has(&t, 1, ECX, 31));
    assert_false(cpuid_has(&t, 1, ECX, 5));
}

/* Nothing that the host lacks, except what our own models add. */
static void real_host_is_a_superset(void **state)
{
    static const struct { uint32_t leaf; uint32_t add[4]; } feature_leaves[] = {
        { 1, { 0, ~0u, 1u << 31 | 1 << 21 | 1 << 24, 1 << 9 | 1 << 12 | 1 << 16 | 1 << 28 } }, { 7, { 0, 1 << 1, 0, 0 } },
        { 0x80000001, { 0, 0, 1 << 1 | 1 << 22, 1 << 9 | 1 << 12 | 1 << 16 } },
    };

    build((struct cpuid_policy){ .raw = real, .ncpus = 8, .xcr0 = 7, .spec_ctrl = true, .tsc_stable = true });
    for (unsigned n = 0; n < ARRAY_SIZE(feature_leaves); n++) {
        struct cpuid_regs g = get(feature_leaves[n].leaf, 0), h;
        real(NULL, feature_leaves[n].leaf, 0, &h);
        assert_int_equal(g.ebx & ~h.ebx & ~feature_leaves[n].add[1], 0);
        assert_int_equal(g.ecx & ~h.ecx & ~feature_leaves[n].add[2], 0);
        assert_int_equal(g.edx & ~h.edx & ~feature_leaves[n].add[3], 0);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(hidden_features_are_hidden), cmocka_unit_test(vcpu_state_shows), cmocka_unit_test(topology_is_consistent),
        cmocka_unit_test(xsave_sizes_follow_xcr0), cmocka_unit_test(ranges_answer_as_the_vendor), cmocka_unit_test(leaves_that_the_host_lacks_are_empty), cmocka_unit_test(hypervisor_leaves),
        cmocka_unit_test(real_host_is_a_superset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
