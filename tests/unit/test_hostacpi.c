/* The host's ACPI parser: what firmware writes, and what broken firmware writes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/x86/acpi.h"

/* ---- Physical memory with tables in it.  Each mapping is an exact copy, so that ASan sees a read past what was asked for. ---- */
enum { MEM = 1 << 20, MAX_MAPS = 4096 };
static uint8_t mem[MEM];
static void *maps[MAX_MAPS];
static unsigned nmaps;
static uint32_t next_table;
static uint64_t root[16];
static unsigned nroot;
static struct acpi_info info;

static const void *map(hpa_t pa, size_t len)
{
    if (pa >= MEM || len > MEM - pa || nmaps == MAX_MAPS)
        return NULL;
    maps[nmaps] = malloc(len ? len : 1);
    memcpy(maps[nmaps], mem + pa, len);
    return maps[nmaps++];
}

static int reset(void **state)
{
    while (nmaps)
        free(maps[--nmaps]);
    memset(mem, 0, sizeof(mem));
    next_table = 0x10000, nroot = 0;
    return 0;
}

static void fix_sum(uint32_t at, uint32_t len, uint32_t sum_at)
{
    uint8_t sum = 0;
    mem[sum_at] = 0;
    for (uint32_t i = 0; i < len; i++)
        sum += mem[at + i];
    mem[sum_at] = (uint8_t)-sum;
}

/* A table of the given bytes behind the header; returns its address. */
static uint32_t table(const char *sig, const void *body, uint32_t len)
{
    uint32_t at = next_table, total = sizeof(struct acpi_header) + len;
    struct acpi_header h = { .length = total, .revision = 3, .oem_id = "TESTER" };
    memcpy(h.signature, sig, 4);
    memcpy(mem + at, &h, sizeof(h));
    if (len)
        memcpy(mem + at + sizeof(h), body, len);
    fix_sum(at, total, at + 9);
    next_table = ALIGN_UP(at + total, 16u);
    return at;
}

static uint32_t add(const char *sig, const void *body, uint32_t len) { return (uint32_t)(root[nroot++] = table(sig, body, len)); }
#define ADD_STRUCT(sig, s) add(sig, (const uint8_t *)&(s) + sizeof(struct acpi_header), sizeof(s) - sizeof(struct acpi_header))

static void write_rsdp(uint32_t at, uint32_t rsdt, uint64_t xsdt)
{
    struct acpi_rsdp r = { .signature = "RSD PTR ", .oem_id = "TESTER", .revision = xsdt ? 2 : 0, .rsdt = rsdt, .length = 36, .xsdt = xsdt };
    memcpy(mem + at, &r, sizeof(r));
    fix_sum(at, 20, at + 8);
    fix_sum(at, 36, at + 32);
}

static uint32_t write_xsdt(void) { return table("XSDT", root, nroot * 8); }
static uint32_t write_rsdt(void)
{
    uint32_t r[16];
    for (unsigned i = 0; i < nroot; i++)
        r[i] = (uint32_t)root[i];
    return table("RSDT", r, nroot * 4);
}

static int parse(void)
{
    struct acpi_source src = { .map = map };
    return acpi_parse(&info, &src);
}

static int finish(void)
{
    write_rsdp(0xe0040, 0, write_xsdt());
    return parse();
}

/* ---- MADT ---- */
struct bytes { uint8_t b[1024]; uint32_t n; };
static void put(struct bytes *s, const void *p, uint32_t n)
{
    memcpy(s->b + s->n, p, n);
    s->n += n;
}
#define PUT(s, type, ...) do { type v_ = { __VA_ARGS__ }; put(s, &v_, sizeof(v_)); } while (0)

static struct bytes madt_start(void)
{
    struct bytes s = { .n = 0 };
    uint32_t fixed[2] = { 0xfee00000, MADT_PCAT_COMPAT };
    put(&s, fixed, 8);
    return s;
}

static void test_madt(void **state)
{
    struct bytes s = madt_start();
    PUT(&s, struct madt_lapic, { MADT_LAPIC, 8 }, 1, 4, 1);
    PUT(&s, struct madt_lapic, { MADT_LAPIC, 8 }, 2, 0, 1);
    PUT(&s, struct madt_lapic, { MADT_LAPIC, 8 }, 3, 6, 0);             /* disabled */
    PUT(&s, struct madt_lapic, { MADT_LAPIC, 8 }, 4, 0xff, 1);          /* "use the x2APIC entry" */
    PUT(&s, struct madt_x2apic, { MADT_X2APIC, 16 }, 0, 0x1234, 1, 77);
    PUT(&s, struct madt_x2apic, { MADT_X2APIC, 16 }, 0, 4, 1, 1);       /* the first one again */
    PUT(&s, struct madt_ioapic, { MADT_IOAPIC, 12 }, 9, 0, 0xfec00000, 0);
    PUT(&s, struct madt_ioapic, { MADT_IOAPIC, 12 }, 10, 0, 0xfec01000, 24);
    PUT(&s, struct madt_override, { MADT_OVERRIDE, 10 }, 0, 0, 2, 0);
    PUT(&s, struct madt_override, { MADT_OVERRIDE, 10 }, 0, 9, 20, INTI_ACTIVE_LOW | INTI_LEVEL);
    PUT(&s, struct madt_override, { MADT_OVERRIDE, 10 }, 0, 200, 5, 0); /* no such ISA interrupt */
    PUT(&s, struct madt_lapic_nmi, { MADT_LAPIC_NMI, 6 }, 0xff, 0, 1);
    uint8_t future[] = { 0x7f, 5, 1, 2, 3 };
    put(&s, future, sizeof(future));
    PUT(&s, struct madt_lapic_base, { MADT_LAPIC_BASE, 12 }, 0, 0x1fee00000ull);
    add("APIC", s.b, s.n);
    assert_int_equal(finish(), 0);
    assert_int_equal(info.cpus, 3);
    assert_int_equal(info.cpu[0].apic_id, 4);
    assert_int_equal(info.cpu[1].apic_id, 0);
    assert_int_equal(info.cpu[2].apic_id, 0x1234);
    assert_int_equal(info.cpu[2].uid, 77);
    assert_int_equal(info.ioapics, 2);
    assert_int_equal(info.ioapic[1].gsi_base, 24);
    assert_int_equal(info.isa[0].gsi, 2);
    assert_false(info.isa[0].active_low || info.isa[0].level);
    assert_true(info.isa[9].gsi == 20 && info.isa[9].active_low && info.isa[9].level);
    assert_int_equal(info.isa[1].gsi, 1);
    assert_true(info.lints == 1 && info.lint[0].all && info.lint[0].lint == 1);
    assert_true(info.lapic_base == 0x1fee00000ull && info.pics);
    assert_int_equal(info.warnings, 0);
}

static void test_madt_broken(void **state)
{
    static const uint8_t bad[][12] = {
        { 0, 0 },                               /* length 0 would loop for ever */
        { MADT_LAPIC, 7, 1, 9, 1, 0, 0 },       /* too short for its type */
        { MADT_LAPIC, 200, 1, 9, 1, 0, 0, 0 },  /* past the end */
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        reset(NULL);
        struct bytes s = madt_start();
        PUT(&s, struct madt_lapic, { MADT_LAPIC, 8 }, 1, 3, 1);
        put(&s, bad[i], 12);
        add("APIC", s.b, s.n);
        assert_int_equal(finish(), 0);
        assert_int_equal(info.cpus, 1);         /* what came before counts */
        assert_int_equal(info.warnings, 1);
    }
    reset(NULL);
    add("APIC", NULL, 0);
    assert_int_equal(finish(), 0);
    assert_false(info.have_madt);
}

static void test_many_cpus(void **state)
{
    static uint8_t body[8 + 300 * sizeof(struct madt_x2apic)];
    for (unsigned i = 0; i < 300; i++) {
        struct madt_x2apic e = { { MADT_X2APIC, 16 }, 0, i * 2, 1, i };
        memcpy(body + 8 + i * sizeof(e), &e, sizeof(e));
    }
    add("APIC", body, sizeof(body));
    assert_int_equal(finish(), 0);
    assert_int_equal(info.cpus, MAX_CPUS);
    assert_true(info.cpus_listed >= MAX_CPUS);
}

/* ---- FADT and S5 ---- */
static uint32_t dsdt(const void *aml, uint32_t n) { return table("DSDT", aml, n); }

static void test_fadt(void **state)
{
    static const uint8_t aml[] = { 0x10, 0x20, 0x08, '_', 'S', '5', '_', 0x12, 0x0a, 0x04, 0x0a, 0x05, 0x0a, 0x06, 0x00, 0x00 };
    struct acpi_fadt f = { .dsdt = dsdt(aml, sizeof(aml)), .smi_cmd = 0xb2, .acpi_enable = 2, .pm1a_cnt = 0x604, .pm1a_evt = 0x600, .pm_tmr = 0x608,
                           .pm1_evt_len = 4, .pm1_cnt_len = 2, .pm_tmr_len = 4, .flags = FADT_RESET_REG_SUP | FADT_TMR_VAL_EXT, .century = 0x32 };
    f.reset_reg = (struct acpi_gas){ ACPI_SPACE_IO, 8, 0, 1, 0xcf9 };
    f.reset_value = 0x0f;
    f.x_pm_tmr = (struct acpi_gas){ ACPI_SPACE_MEMORY, 32, 0, 3, 0xfed80808 };
    ADD_STRUCT("FACP", f);
    assert_int_equal(finish(), 0);
    assert_true(info.have_fadt && info.have_s5 && info.s5_a == 5 && info.s5_b == 6);
    assert_true(info.pm1a_cnt.address == 0x604 && info.pm1a_cnt.space == ACPI_SPACE_IO && info.pm1a_cnt.bits == 16);
    assert_true(info.pm1b_cnt.address == 0);
    assert_true(info.pm_timer.address == 0xfed80808 && info.pm_timer.space == ACPI_SPACE_MEMORY && info.pm_timer_32);
    assert_true(info.reset_supported && info.reset.address == 0xcf9 && info.reset_value == 0x0f);
}

/* ACPI 1.0: 116 bytes, no reset register, RSDT. */
static void test_old_fadt(void **state)
{
    static const uint8_t aml[] = { 0x08, '\\', '_', 'S', '5', '_', 0x12, 0x06, 0x04, 0x01, 0x01, 0x00, 0x00 };
    struct acpi_fadt f = { .dsdt = dsdt(aml, sizeof(aml)), .pm1a_cnt = 0xb004, .pm_tmr = 0xb008, .pm_tmr_len = 4, .flags = FADT_RESET_REG_SUP };
    add("FACP", (uint8_t *)&f + sizeof(struct acpi_header), 116 - sizeof(struct acpi_header));
    write_rsdp(0xe0040, write_rsdt(), 0);
    assert_int_equal(parse(), 0);
    assert_true(info.have_s5 && info.s5_a == 1 && info.s5_b == 1);
    assert_true(info.pm_timer.address == 0xb008 && !info.pm_timer_32 && !info.reset_supported);
}

static void test_s5_broken(void **state)
{
    static const uint8_t cut[][16] = {
        { 0x08, '_', 'S', '5', '_', 0x12 }, { 0x08, '_', 'S', '5', '_', 0x12, 0xff }, { 0x08, '_', 'S', '5', '_', 0x12, 0x05, 0x02, 0x0a },
        { 0x08, '_', 'S', '5', '_', 0x12, 0x05, 0x02, 0x0a, 0x09 },     /* SLP_TYP has three bits */
        { 0x07, '_', 'S', '5', '_', 0x12, 0x05, 0x02, 0x0a, 0x05 },     /* not a name */
    };
    static const uint32_t len[] = { 6, 7, 9, 10, 10 };
    for (unsigned i = 0; i < ARRAY_SIZE(cut); i++) {
        reset(NULL);
        struct acpi_fadt f = { .dsdt = dsdt(cut[i], len[i]) };
        ADD_STRUCT("FACP", f);
        assert_int_equal(finish(), 0);
        assert_false(info.have_s5);
    }
}

/* ---- Others ---- */
static void test_others(void **state)
{
    struct acpi_hpet h = { .base = { ACPI_SPACE_MEMORY, 64, 0, 0, 0xfed00000 } };
    ADD_STRUCT("HPET", h);
    struct { uint64_t reserved; struct mcfg_entry e[3]; } m = { 0, { { 0xb0000000, 0, 0, 255, 0 }, { 0xc0000000, 1, 9, 3, 0 }, { 0xd0000000, 2, 0, 31, 0 } } };
    add("MCFG", &m, sizeof(m));
    struct acpi_spcr s = { .base = { ACPI_SPACE_IO, 8, 0, 1, 0x2f8 }, .pci_device = 0xffff };
    ADD_STRUCT("SPCR", s);
    uint8_t dmar[48] = { 39, 3 };
    dmar[12 + 2] = 24, dmar[12 + 8 + 3] = 0xfe;         /* DRHD at FE000000h */
    add("DMAR", dmar, sizeof(dmar));
    assert_int_equal(finish(), 0);
    assert_int_equal(info.hpet, 0xfed00000);
    assert_true(info.mcfgs == 2 && info.mcfg[1].segment == 2 && info.mcfg[1].bus_last == 31 && info.warnings == 1);
    assert_true(info.have_spcr && info.spcr.address == 0x2f8);
    assert_true(info.dmar && info.x2apic_opt_out && info.iommus == 1 && info.iommu_base[0] == 0xfe000000);
}

static void test_checksums(void **state)
{
    struct acpi_hpet h = { .base = { ACPI_SPACE_MEMORY, 64, 0, 0, 0xfed00000 } };
    uint32_t at = ADD_STRUCT("HPET", h);
    mem[at + 50] ^= 1;
    assert_int_equal(finish(), 0);
    assert_true(info.hpet == 0 && info.warnings == 1);

    reset(NULL);
    ADD_STRUCT("HPET", h);
    uint32_t xsdt = write_xsdt(), rsdt = write_rsdt();
    write_rsdp(0xe0040, rsdt, xsdt);
    mem[xsdt + 36] ^= 1;                /* XSDT broken: the RSDT is used */
    assert_int_equal(parse(), 0);
    assert_int_equal(info.hpet, 0xfed00000);

    mem[rsdt + 36] ^= 1;
    assert_int_equal(parse(), -ENOENT);
    assert_int_equal(info.isa[4].gsi, 4);
    assert_int_equal(info.lapic_base, 0xfee00000);
}

static void test_lengths(void **state)
{
    static const uint32_t lengths[] = { 0, 35, 0x7fffffff, 0xffffffff, 2 << 20 };
    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
        reset(NULL);
        struct acpi_hpet h = { 0 };
        uint32_t at = ADD_STRUCT("HPET", h);
        memcpy(mem + at + 4, &lengths[i], 4);
        assert_int_equal(finish(), 0);
        assert_int_equal(info.hpet, 0);
    }
}

static void test_rsdp_places(void **state)
{
    struct acpi_hpet h = { .base = { ACPI_SPACE_MEMORY, 64, 0, 0, 0xfed00000 } };
    ADD_STRUCT("HPET", h);
    uint32_t xsdt = write_xsdt();
    mem[0x40e] = 0x00, mem[0x40f] = 0x9f;               /* extended BIOS data at 9F000h */
    write_rsdp(0x9f3e0, 0, xsdt);
    assert_int_equal(parse(), 0);
    assert_int_equal(info.hpet, 0xfed00000);

    uint8_t copy[36];
    memcpy(copy, mem + 0x9f3e0, 36);
    memset(mem + 0x9f3e0, 0, 36);
    assert_int_equal(parse(), -ENOENT);
    struct acpi_source by_copy = { .map = map, .rsdp_copy = copy, .rsdp_copy_len = 36 };
    assert_int_equal(acpi_parse(&info, &by_copy), 0);
    struct acpi_source cut = { .map = map, .rsdp_copy = copy, .rsdp_copy_len = 20 };     /* no room for the XSDT's address */
    assert_int_equal(acpi_parse(&info, &cut), -ENOENT);
    memcpy(mem + 0x5000, copy, 36);
    struct acpi_source by_address = { .map = map, .rsdp = 0x5000 };
    assert_int_equal(acpi_parse(&info, &by_address), 0);
    struct acpi_source nowhere = { .map = map, .rsdp = ~0ull };
    assert_int_equal(acpi_parse(&info, &nowhere), -ENOENT);
}

static void test_two_of_one(void **state)
{
    struct acpi_hpet a = { .base = { ACPI_SPACE_MEMORY, 64, 0, 0, 0xfed00000 } }, b = { .base = { ACPI_SPACE_MEMORY, 64, 0, 0, 0xfed10000 } };
    ADD_STRUCT("HPET", a);
    ADD_STRUCT("HPET", b);
    assert_int_equal(finish(), 0);
    assert_int_equal(info.hpet, 0xfed00000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_madt, reset, reset), cmocka_unit_test_setup_teardown(test_madt_broken, reset, reset),
        cmocka_unit_test_setup_teardown(test_many_cpus, reset, reset), cmocka_unit_test_setup_teardown(test_fadt, reset, reset),
        cmocka_unit_test_setup_teardown(test_old_fadt, reset, reset), cmocka_unit_test_setup_teardown(test_s5_broken, reset, reset),
        cmocka_unit_test_setup_teardown(test_others, reset, reset), cmocka_unit_test_setup_teardown(test_checksums, reset, reset),
        cmocka_unit_test_setup_teardown(test_lengths, reset, reset), cmocka_unit_test_setup_teardown(test_rsdp_places, reset, reset),
        cmocka_unit_test_setup_teardown(test_two_of_one, reset, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
