/* The tables as a foreign tool sees them: iasl must disassemble each without complaint, and find what we put in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "guestdev/acpi_tables.h"
#include "kernel/hw/acpi.h"

static const uint64_t at = 0xe0000;

static struct acpi_platform platform(unsigned ncpus)
{
    return (struct acpi_platform){
        .ncpus = ncpus, .ioapic_id = 0, .mem64 = 0x140000000, .mem64_len = 64ull << 30, .pm1_evt = 0x600, .pm1_cnt = 0x604, .pm_tmr = 0x608,
        .sci_irq = 9, .reset_port = 0xcf9, .reset_value = 6, .hpet = true,
    };
}

static uint8_t sum(const uint8_t *p, size_t n)
{
    uint8_t s = 0;
    while (n--)
        s = (uint8_t)(s + *p++);
    return s;
}

static const struct acpi_header *find(const uint8_t *buf, const char *sig)
{
    const struct acpi_rsdp *r = (const void *)buf;
    const struct acpi_header *x = (const void *)(buf + (r->xsdt - at));
    for (unsigned i = 0; i < (x->length - sizeof *x) / 8; i++) {
        uint64_t a;
        memcpy(&a, (const char *)(x + 1) + 8 * i, 8);
        const struct acpi_header *h = (const void *)(buf + (a - at));
        if (!memcmp(h->signature, sig, 4))
            return h;
        if (!strcmp(sig, "DSDT") && !memcmp(h->signature, "FACP", 4))
            return (const void *)(buf + (((const struct acpi_fadt *)h)->x_dsdt - at));
    }
    return NULL;
}

static void checksums(void **state)
{
    static uint8_t buf[ACPI_TABLES_MAX];
    static const char *const sigs[] = { "FACP", "APIC", "MCFG", "SSDT", "HPET", "DSDT" };
    struct acpi_platform p = platform(32);
    int n = acpi_tables_build(&p, at, buf, sizeof buf);
    assert_true(n > 0);
    const struct acpi_rsdp *r = (const void *)buf;
    assert_memory_equal(r->signature, "RSD PTR ", 8);
    assert_int_equal(sum(buf, 20), 0);
    assert_int_equal(sum(buf, 36), 0);
    for (unsigned i = 0; i < 6; i++) {
        const struct acpi_header *h = find(buf, sigs[i]);
        assert_non_null(h);
        assert_int_equal(sum((const void *)h, h->length), 0);
        assert_true((const uint8_t *)h + h->length <= buf + n);
    }
    const struct acpi_fadt *f = (const void *)find(buf, "FACP");
    assert_int_equal(f->facs % 64, 0);
    assert_memory_equal(buf + (f->facs - at), "FACS", 4);
    p.hpet = false;
    assert_true(acpi_tables_build(&p, at, buf, sizeof buf) > 0);
    assert_null(find(buf, "HPET"));
}

/* Runs iasl -d on a table and gives back its output. */
static char *disassemble(const char *dir, const struct acpi_header *h)
{
    char aml[256], cmd[600], dsl[256];
    static char text[1 << 20];
    snprintf(aml, sizeof aml, "%s/%.4s.dat", dir, h->signature);
    snprintf(dsl, sizeof dsl, "%s/%.4s.dsl", dir, h->signature);
    FILE *f = fopen(aml, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(h, h->length, 1, f), 1);
    fclose(f);
    snprintf(cmd, sizeof cmd, "cd %s && iasl -d %s >log 2>&1 && ! grep -iE 'error|invalid|could not|unknown' log", dir, aml);
    assert_int_equal(system(cmd), 0);
    f = fopen(dsl, "rb");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    return text;
}

static void foreign_tool(void **state)
{
    static uint8_t buf[ACPI_TABLES_MAX];
    struct acpi_platform p = platform(5);
    char dir[] = "/tmp/joist-acpi-XXXXXX", cmd[64];
    assert_true(acpi_tables_build(&p, at, buf, sizeof buf) > 0);
    assert_non_null(mkdtemp(dir));
    const char *t = disassemble(dir, find(buf, "DSDT"));
    assert_non_null(strstr(t, "Name (M64B, 0x0000000140000000)"));
    assert_non_null(strstr(t, "Name (M64L, 0x0000001000000000)"));
    assert_non_null(strstr(t, "Name (HPEN, 0x0000000F)"));
    t = disassemble(dir, find(buf, "SSDT"));
    assert_non_null(strstr(t, "Device (C004)"));
    assert_null(strstr(t, "Device (C005)"));
    t = disassemble(dir, find(buf, "APIC"));
    assert_non_null(strstr(t, "[Interrupt Source Override]"));
    t = disassemble(dir, find(buf, "FACP"));
    assert_null(strstr(t, "Invalid"));
    disassemble(dir, find(buf, "MCFG"));
    disassemble(dir, find(buf, "HPET"));
    snprintf(cmd, sizeof cmd, "rm -r %s", dir);
    assert_int_equal(system(cmd), 0);
}

static void no_room(void **state)
{
    static uint8_t buf[ACPI_TABLES_MAX];
    struct acpi_platform p = platform(32);
    int n = acpi_tables_build(&p, at, buf, sizeof buf);
    for (size_t cap = 0; cap < (size_t)n; cap += 37) {
        uint8_t *small = malloc(cap + 1);
        assert_true(acpi_tables_build(&p, at, small, cap) < 0);
        free(small);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(checksums), cmocka_unit_test(foreign_tool), cmocka_unit_test(no_room) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
