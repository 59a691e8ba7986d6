#include "guestdev/acpi_tables.h"

#include <errno.h>
#include <string.h>

#include "build/gen/guestdev/dsdt.h"
#include "guestdev/hpet.h"
#include "kernel/hw/acpi.h"
#include "kernel/hw/hpet.h"

#define LAPIC_BASE      0xfee00000u
#define IOAPIC_BASE     0xfec00000u
#define ECAM_BASE       0xb0000000ull

/* Tables grow one behind the other; `at` is the guest physical address of buf[0]. */
struct out { uint8_t *buf; size_t cap, len; uint64_t at; bool full; };

static void put(struct out *o, const void *data, size_t len)
{
    if (o->full || len > o->cap - o->len) {
        o->full = true;
        return;
    }
    memcpy(o->buf + o->len, data, len);
    o->len += len;
}

static void align(struct out *o, size_t to)
{
    static const uint8_t zeros[64];
    put(o, zeros, ALIGN_UP(o->len, to) - o->len);
}

static uint8_t sum(const uint8_t *p, size_t len)
{
    uint8_t s = 0;
    while (len--)
        s = (uint8_t)(s + *p++);
    return s;
}

static struct acpi_header header(const char *signature, uint8_t revision)
{
    struct acpi_header h = { .revision = revision, .oem_revision = 1, .creator_revision = 1 };
    memcpy(h.signature, signature, 4);
    memcpy(h.oem_id, "JOIST ", 6);
    memcpy(h.oem_table_id, "JOISTPC ", 8);
    memcpy(h.creator_id, "JOST", 4);
    return h;
}

/* Length and checksum of the table that began at `start`; its address. */
static uint64_t finish(struct out *o, size_t start)
{
    uint32_t len = (uint32_t)(o->len - start);
    if (o->full)
        return 0;
    memcpy(o->buf + start + offsetof(struct acpi_header, length), &len, 4);
    o->buf[start + offsetof(struct acpi_header, checksum)] = 0;
    o->buf[start + offsetof(struct acpi_header, checksum)] = (uint8_t)-sum(o->buf + start, len);
    align(o, 16);
    return o->at + start;
}

/* ---- DSDT ---- */

/* Replaces the constant of `Name (name, …)`: NameOp, the name, a DWord or QWord prefix, the value. */
static void patch(uint8_t *aml, size_t len, const char *name, uint64_t value)
{
    for (size_t i = 0; i + 14 <= len; i++)
        if (aml[i] == 0x08 && !memcmp(aml + i + 1, name, 4) && (aml[i + 5] == 0x0c || aml[i + 5] == 0x0e)) {
            memcpy(aml + i + 6, &value, aml[i + 5] == 0x0c ? 4 : 8);
            return;
        }
}

static uint64_t build_dsdt(struct out *o, const struct acpi_platform *p)
{
    size_t start = o->len, len = sizeof dsdt_aml_code;
    put(o, dsdt_aml_code, len);
    if (o->full)
        return 0;
    patch(o->buf + start, len, "M64B", p->mem64);
    patch(o->buf + start, len, "M64L", p->mem64_len);
    patch(o->buf + start, len, "HPEN", p->hpet ? 0xf : 0);
    patch(o->buf + start, len, "KBEN", p->ps2 ? 0xf : 0);
    return finish(o, start);
}

/* ---- SSDT: Scope (\_SB) { Device (Cnnn) { Name (_HID, "ACPI0007") Name (_UID, n) } … } ---- */

struct aml_cpu {
    uint8_t device[2], pkg_len;
    char name[4];
    uint8_t hid_op;
    char hid[4];
    uint8_t string;
    char acpi0007[9];
    uint8_t uid_op;
    char uid[4];
    uint8_t byte, n;
} __packed;
_Static_assert(sizeof(struct aml_cpu) == 29, "one-byte package length, which counts itself but not the opcode");

static struct aml_cpu aml_cpu(unsigned n)
{
    struct aml_cpu c = { .device = { 0x5b, 0x82 }, .pkg_len = sizeof c - 2, .hid_op = 0x08, .string = 0x0d, .uid_op = 0x08, .byte = 0x0a, .n = (uint8_t)n };
    memcpy(c.name, "C000", 4);
    c.name[2] = "0123456789ABCDEF"[n >> 4 & 15];
    c.name[3] = "0123456789ABCDEF"[n & 15];
    memcpy(c.hid, "_HID", 4);
    memcpy(c.acpi0007, "ACPI0007", 9);
    memcpy(c.uid, "_UID", 4);
    return c;
}

static uint64_t build_ssdt(struct out *o, const struct acpi_platform *p)
{
    size_t start = o->len;
    struct acpi_header h = header("SSDT", 2);
    unsigned body = 2 + 5 + p->ncpus * (unsigned)sizeof(struct aml_cpu);        /* package length in its two-byte form: bits 3:0, then 11:4 */
    const uint8_t scope[] = { 0x10, (uint8_t)(0x40 | (body & 15)), (uint8_t)(body >> 4), '\\', '_', 'S', 'B', '_' };
    put(o, &h, sizeof h);
    put(o, scope, sizeof scope);
    for (unsigned i = 0; i < p->ncpus; i++) {
        struct aml_cpu c = aml_cpu(i);
        put(o, &c, sizeof c);
    }
    return finish(o, start);
}

/* ---- Fixed hardware ---- */

static uint64_t build_facs(struct out *o)
{
    uint8_t facs[64] = { 'F', 'A', 'C', 'S', sizeof facs };
    facs[32] = 2;                                       /* version */
    align(o, 64);
    uint64_t at = o->at + o->len;
    put(o, facs, sizeof facs);
    return at;
}

static struct acpi_gas io_reg(uint16_t port, uint8_t bits)
{
    return (struct acpi_gas){ .space = ACPI_SPACE_IO, .bits = bits, .access = (uint8_t)(bits == 32 ? 3 : bits == 16 ? 2 : 1), .address = port };
}

static uint64_t build_fadt(struct out *o, const struct acpi_platform *p, uint64_t facs, uint64_t dsdt)
{
    size_t start = o->len;
    struct acpi_fadt f = {
        .h = header("FACP", 6), .minor = 4, .facs = (uint32_t)facs, .dsdt = (uint32_t)dsdt, .x_dsdt = dsdt,     /* X_FACS stays 0: one of the two */
        .sci_int = p->sci_irq, .pm1a_evt = p->pm1_evt, .pm1a_cnt = p->pm1_cnt, .pm_tmr = p->pm_tmr, .gpe0 = p->gpe0,
        .pm1_evt_len = 4, .pm1_cnt_len = 2, .pm_tmr_len = 4, .gpe0_len = p->gpe0 ? p->gpe0_len : 0,
        .p_lvl2_lat = 0xfff, .p_lvl3_lat = 0xfff, .century = 0x32,
        .boot_arch = (uint16_t)(FADT_BOOT_LEGACY_DEVICES | (p->ps2 ? FADT_BOOT_8042 : 0) | (p->vga ? 0 : FADT_BOOT_NO_VGA)),
        .flags = FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_TMR_VAL_EXT | FADT_RESET_REG_SUP,
        .reset_reg = io_reg(p->reset_port, 8), .reset_value = p->reset_value,
        .x_pm1a_evt = io_reg(p->pm1_evt, 32), .x_pm1a_cnt = io_reg(p->pm1_cnt, 16), .x_pm_tmr = io_reg(p->pm_tmr, 32),
    };
    if (p->gpe0)
        f.x_gpe0 = io_reg(p->gpe0, (uint8_t)(8 * p->gpe0_len));
    memcpy(&f.hypervisor_vendor, "JoistVMM", 8);
    put(o, &f, sizeof f);
    return finish(o, start);
}

static uint64_t build_madt(struct out *o, const struct acpi_platform *p)
{
    size_t start = o->len;
    const struct acpi_madt m = { .h = header("APIC", 4), .lapic_base = LAPIC_BASE, .flags = MADT_PCAT_COMPAT };
    const struct madt_ioapic ioapic = { { MADT_IOAPIC, sizeof ioapic }, .id = p->ioapic_id, .address = IOAPIC_BASE };
    /* The timer on pin 2 as on every PC; the SCI as the level interrupt it is. */
    const struct madt_override timer = { { MADT_OVERRIDE, sizeof timer }, .source = 0, .gsi = 2 };
    const struct madt_override sci = { { MADT_OVERRIDE, sizeof sci }, .source = p->sci_irq, .gsi = p->sci_irq, .flags = INTI_LEVEL | INTI_ACTIVE_HIGH };
    const struct madt_lapic_nmi nmi = { { MADT_LAPIC_NMI, sizeof nmi }, .uid = 0xff, .flags = INTI_EDGE | INTI_ACTIVE_HIGH, .lint = 1 };
    put(o, &m, sizeof m);
    for (unsigned i = 0; i < p->ncpus; i++) {
        const struct madt_lapic cpu = { { MADT_LAPIC, sizeof cpu }, .uid = (uint8_t)i, .apic_id = (uint8_t)i, .flags = MADT_CPU_ENABLED };
        put(o, &cpu, sizeof cpu);
    }
    put(o, &ioapic, sizeof ioapic);
    put(o, &timer, sizeof timer);
    put(o, &sci, sizeof sci);
    put(o, &nmi, sizeof nmi);
    return finish(o, start);
}

static uint64_t build_hpet(struct out *o)
{
    size_t start = o->len;
    const struct acpi_hpet t = { .h = header("HPET", 1), .block_id = HPET_BLOCK_ID_VALUE, .base = { .space = ACPI_SPACE_MEMORY, .bits = 64, .address = HPET_DEFAULT_BASE } };
    put(o, &t, sizeof t);
    return finish(o, start);
}

static uint64_t build_mcfg(struct out *o)
{
    size_t start = o->len;
    const struct acpi_mcfg t = { .h = header("MCFG", 1) };
    /* There is bus 0 and nothing behind it: kernels look at every bus that is named here, 64 exits each. */
    const struct mcfg_entry e = { .base = ECAM_BASE, .bus_last = 0 };
    put(o, &t, sizeof t);
    put(o, &e, sizeof e);
    return finish(o, start);
}

/* ---- Roots ---- */

static uint64_t build_xsdt(struct out *o, const uint64_t *tables, unsigned n)
{
    size_t start = o->len;
    struct acpi_header h = header("XSDT", 1);
    put(o, &h, sizeof h);
    put(o, tables, n * sizeof tables[0]);
    return finish(o, start);
}

static uint64_t build_rsdt(struct out *o, const uint64_t *tables, unsigned n)
{
    size_t start = o->len;
    struct acpi_header h = header("RSDT", 1);
    put(o, &h, sizeof h);
    for (unsigned i = 0; i < n; i++)
        put(o, &tables[i], 4);
    return finish(o, start);
}

int acpi_tables_build(const struct acpi_platform *p, uint64_t at, uint8_t *buf, size_t cap)
{
    struct out o = { .buf = buf, .cap = cap, .at = at };
    struct acpi_rsdp r = { .signature = "RSD PTR", .revision = 2, .length = sizeof r };
    uint64_t tables[8];
    unsigned n = 0;
    r.signature[7] = ' ';
    memcpy(r.oem_id, "JOIST ", 6);
    put(&o, &r, sizeof r);
    align(&o, 64);
    uint64_t facs = build_facs(&o), dsdt = build_dsdt(&o, p);
    tables[n++] = build_fadt(&o, p, facs, dsdt);
    tables[n++] = build_madt(&o, p);
    tables[n++] = build_mcfg(&o);
    tables[n++] = build_ssdt(&o, p);
    if (p->hpet)
        tables[n++] = build_hpet(&o);
    r.xsdt = build_xsdt(&o, tables, n);
    r.rsdt = (uint32_t)build_rsdt(&o, tables, n);
    if (o.full)
        return -ENOSPC;
    r.checksum = (uint8_t)-sum((const uint8_t *)&r, 20);
    r.ext_checksum = (uint8_t)-sum((const uint8_t *)&r, sizeof r);
    memcpy(buf, &r, sizeof r);
    return (int)o.len;
}
