/* Guest MSRs: what is validated, what is kept, what does not exist. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/vmm/msr.h"
#include "kernel/vmm/snap.h"

static struct { uint64_t efer, cr0, tsc, hw[0x300], star[16], clock, wall; unsigned ibpbs; } cpu;

static uint64_t *hw(uint32_t msr)
{
    return msr == 0xc0000080 ? &cpu.efer : msr >= 0xc0000000 ? &cpu.star[msr & 15] : &cpu.hw[msr & 0x2ff];
}
static uint64_t hw_read(void *v, uint32_t msr) { return *hw(msr); }
static void hw_write(void *v, uint32_t msr, uint64_t val) { *hw(msr) = val; }
static uint64_t cr0(void *v) { return cpu.cr0; }
static uint64_t tsc(void *v) { return cpu.tsc; }
static void tsc_shift(void *v, int64_t d) { cpu.tsc += d; }
static void ibpb(void *v) { cpu.ibpbs++; }
static void clock_wall(void *v, uint64_t gpa) { cpu.wall = gpa; }
static void clock_page(void *v, uint64_t val) { cpu.clock = val; }
static const struct msr_ops ops = { hw_read, hw_write, cr0, tsc, tsc_shift, ibpb, clock_wall, clock_page };

static bool apic_read(void *a, uint32_t msr, uint64_t *val) { *val = 0xfee00900; return msr == 0x1b || msr == 0x802; }
static bool apic_write(void *a, uint32_t msr, uint64_t val) { return msr == 0x6e0 || msr == 0x80b; }
static const struct vcpu_irqchip chip = { .msr_read = apic_read, .msr_write = apic_write };

static struct msr_policy policy;
static struct vcpu_msrs m;

static void start(bool intel)
{
    memset(&cpu, 0, sizeof cpu);
    policy = (struct msr_policy){ .intel = intel, .phys_bits = 40, .efer_mask = 0x901, .kvmclock = true, .tsc_aux = true };
    m = (struct vcpu_msrs){ .ops = &ops, .policy = &policy, .irqchip = &chip };
    msr_reset(&m);
}

static uint64_t rd(uint32_t msr)
{
    uint64_t v = 0xdead;

    assert_true(msr_read(&m, msr, &v));
    return v;
}
static bool refuses_read(uint32_t msr) { uint64_t v; return !msr_read(&m, msr, &v); }
#define OK(msr, val) assert_true(msr_write(&m, (msr), (val)))
#define GP(msr, val) assert_false(msr_write(&m, (msr), (val)))

static void efer_rules(void **state)
{
    start(false);
    OK(0xc0000080, 0x900);
    assert_int_equal(cpu.efer, 0x900);
    cpu.efer = 0xd00, cpu.cr0 = 0x80000001;
    GP(0xc0000080, 0x800);              /* LME with paging on */
    OK(0xc0000080, 0xd01);
    assert_int_equal(cpu.efer, 0xd01);
    OK(0xc0000080, 0x901);              /* LMA is not the guest's to change */
    assert_int_equal(cpu.efer, 0xd01);
    GP(0xc0000080, 0x1d01);             /* SVME */
    GP(0xc0000080, 0x2);
    assert_int_equal(rd(0xc0000080), 0xd01);
}

static void canonical_and_masks(void **state)
{
    static const uint32_t bases[] = { 0x175, 0x176, 0xc0000082, 0xc0000083, 0xc0000100, 0xc0000101, 0xc0000102 };

    start(true);
    for (unsigned n = 0; n < ARRAY_SIZE(bases); n++) {
        GP(bases[n], 0x800000000000);
        OK(bases[n], 0xffff800000000000 + n);
        assert_int_equal(rd(bases[n]), 0xffff800000000000 + n);
    }
    OK(0xc0000081, ~0ull);
    GP(0xc0000084, 1ull << 32);
    OK(0xc0000103, 0xffffffff);
    GP(0xc0000103, 1ull << 32);
    OK(0x1d9, 2);
    GP(0x1d9, 0x1000);
    OK(0x277, 0x0007040600070406);
    GP(0x277, 0x0007040600070402);
    GP(0x277, 0x0807040600070406);
}

static void mtrrs(void **state)
{
    start(true);
    assert_int_equal(rd(0xfe), 0x508);
    assert_int_equal(rd(0x2ff), 0);
    OK(0x2ff, 0xc06);
    GP(0x2ff, 0xc02);
    GP(0x2ff, 0x1006);
    OK(0x200, 0x80000000);
    OK(0x201, 0xff80000800);
    GP(0x201, 0xff80000801);
    GP(0x201, 0x1ff80000800);
    GP(0x200, 0x80000007);
    GP(0x200, 0x80000100);
    OK(0x20f, 0x800);
    assert_true(refuses_read(0x210));
    OK(0x250, 0x0606060606060606);
    OK(0x259, 0x0101010101010101);
    OK(0x26f, 0x0505050505050505);
    GP(0x268, 0x0606060606060603);
    assert_int_equal(rd(0x200), 0x80000000);
    assert_int_equal(rd(0x259), 0x0101010101010101);
    assert_int_equal(rd(0x26f), 0x0505050505050505);
    assert_int_equal(rd(0x258), 0);
}

static void time_stamp_counter(void **state)
{
    start(true);
    cpu.tsc = 1000;
    assert_int_equal(rd(0x10), 1000);
    OK(0x10, 5000);
    assert_int_equal(cpu.tsc, 5000);
    assert_int_equal(rd(0x3b), 4000);
    OK(0x3b, 3500);
    assert_int_equal(cpu.tsc, 4500);
    OK(0x4b564d01, 0x1001);
    assert_int_equal(cpu.clock, 0x1001);
    assert_int_equal(rd(0x12), 0x1001);
    OK(0x11, 0x2000);
    assert_int_equal(cpu.wall, 0x2000);
    assert_int_equal(rd(0x4b564d00), 0x2000);
    policy.kvmclock = false;
    GP(0x4b564d01, 0);
    assert_true(refuses_read(0x12));
}

static void speculation_controls(void **state)
{
    start(true);
    GP(0x48, 1);
    GP(0x49, 1);
    assert_true(refuses_read(0x10a));
    policy.spec_ctrl_mask = 7, policy.has_arch_caps = true, policy.arch_caps = 0x2b;
    OK(0x48, 5);
    assert_int_equal(rd(0x48), 5);
    GP(0x48, 8);
    OK(0x49, 1);
    OK(0x49, 0);
    GP(0x49, 2);
    assert_int_equal(cpu.ibpbs, 1);
    assert_true(refuses_read(0x49));
    assert_int_equal(rd(0x10a), 0x2b);
    GP(0x10a, 0);
    policy.ucode_rev = 0xabc;
    assert_int_equal(rd(0x8b), 0xabcull << 32);
}

static void apic_msrs_go_to_the_apic(void **state)
{
    start(true);
    assert_int_equal(rd(0x1b), 0xfee00900);
    assert_int_equal(rd(0x802), 0xfee00900);
    assert_true(refuses_read(0x803));
    OK(0x6e0, 12345);
    OK(0x80b, 0);
    GP(0x802, 0);
    m.irqchip = NULL;
    assert_true(refuses_read(0x1b));
    GP(0x6e0, 1);
}

static void vendors_differ(void **state)
{
    start(true);
    assert_int_equal(rd(0x3a), 1);
    GP(0x3a, 5);
    assert_int_equal(rd(0x1a0), 0x1801);
    OK(0x1a0, ~0ull);
    assert_int_equal(rd(0x1a0) & (1 << 11 | 1 << 12), 1 << 11 | 1 << 12);
    assert_true(refuses_read(0xc0010015));
    assert_true(refuses_read(0x480));
    start(false);
    assert_true(refuses_read(0x3a));
    assert_int_equal(rd(0xc0010015) & 1 << 24, 1 << 24);
    OK(0xc0010015, 1 << 18 | 1 << 3);
    assert_int_equal(rd(0xc0010015), 1 << 18 | 1 << 24);
    GP(0xc0010015, 1 << 4);
    assert_int_equal(rd(0xc0010114), 0x18);
    assert_true(refuses_read(0xc0010117));
    assert_int_equal(rd(0xc0011029), 2);
    policy.ucode_rev = 0xa201009;
    assert_int_equal(rd(0x8b), 0xa201009);
    OK(0xc0010020, 0x1234);
}

static void unknown_is_refused_everywhere(void **state)
{
    static const uint32_t none[] = { 2, 0xf, 0x18, 0x4a, 0x300, 0x3ff, 0x480, 0x570, 0x900, 0xda0, 0x40000000, 0x40000118, 0x4b564d02, 0xc0000000, 0xc0000105, 0xc001011f, 0xffffffff };

    start(true);
    for (unsigned n = 0; n < ARRAY_SIZE(none); n++) {
        assert_true(refuses_read(none[n]));
        GP(none[n], 0);
    }
    assert_int_equal(rd(0x179), 0);
    assert_int_equal(rd(0x413), 0);
    GP(0x413, 1);
    assert_true(m.faults >= 2 * ARRAY_SIZE(none));
}

/* The binary search finds each range from both ends: a table out of order would lose some. */
static void every_range_is_found(void **state)
{
    static const uint32_t both[] = { 0, 1, 0x10, 0x11, 0x12, 0x3b, 0x8b, 0xfe, 0x174, 0x175, 0x176, 0x179, 0x17a, 0x1d9, 0x1db, 0x1de, 0x200, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x26f,
        0x277, 0x2ff, 0x400, 0x47f, 0x4b564d00, 0x4b564d01, 0xc0000080, 0xc0000081, 0xc0000084, 0xc0000100, 0xc0000103 };
    static const uint32_t amd[] = { 0xc0000408, 0xc0010000, 0xc0010007, 0xc0010010, 0xc0010015, 0xc001001a, 0xc001001d, 0xc001001f, 0xc0010044, 0xc0010055, 0xc0010058, 0xc0010061, 0xc001006b,
        0xc0010111, 0xc0010140, 0xc0010200, 0xc001020b, 0xc0011002, 0xc0011020, 0xc0011028, 0xc0011029, 0xc001102a, 0xc00110a2 };
    static const uint32_t intel[] = { 0x17, 0x2a, 0x34, 0x3a, 0xc1, 0xcd, 0xce, 0x119, 0x11e, 0x140, 0x186, 0x198, 0x199, 0x19c, 0x1a0, 0x1a2, 0x1ad, 0x1b0, 0x1fc, 0x606 };

    start(false);
    for (unsigned n = 0; n < ARRAY_SIZE(both); n++)
        rd(both[n]);
    for (unsigned n = 0; n < ARRAY_SIZE(amd); n++)
        rd(amd[n]);
    start(true);
    for (unsigned n = 0; n < ARRAY_SIZE(both); n++)
        rd(both[n]);
    for (unsigned n = 0; n < ARRAY_SIZE(intel); n++)
        rd(intel[n]);
}

static void snapshot(void **state)
{
    uint8_t buf[2048];
    struct snap s;
    struct vcpu_msrs saved;

    start(true);
    OK(0x2ff, 0xc06);
    OK(0x201, 0xff80000800);
    OK(0x4b564d01, 0x3001);
    OK(0x10, 99);
    saved = m;
    snap_init_save(&s, buf, sizeof buf);
    assert_int_equal(msr_snap(&m, &s), 0);
    size_t len = s.pos;
    msr_reset(&m);
    snap_init_load(&s, buf, len);
    assert_int_equal(msr_snap(&m, &s), 0);
    assert_memory_equal(&m.tsc_adjust, &saved.tsc_adjust, offsetof(struct vcpu_msrs, reads) - offsetof(struct vcpu_msrs, tsc_adjust));
    m.mtrr_def = 0x1234;                /* a stream that no guest could have made */
    snap_init_save(&s, buf, sizeof buf);
    assert_int_equal(msr_snap(&m, &s), 0);
    len = s.pos;
    snap_init_load(&s, buf, len);
    assert_true(msr_snap(&m, &s) < 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(efer_rules), cmocka_unit_test(canonical_and_masks), cmocka_unit_test(mtrrs), cmocka_unit_test(time_stamp_counter),
        cmocka_unit_test(speculation_controls), cmocka_unit_test(apic_msrs_go_to_the_apic), cmocka_unit_test(vendors_differ),
        cmocka_unit_test(unknown_is_refused_everywhere), cmocka_unit_test(every_range_is_found), cmocka_unit_test(snapshot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
