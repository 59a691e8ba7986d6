#include "kernel/x86/acpi.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "kernel/hw/apic.h"

enum { MAX_TABLE = 4 << 20, MAX_TABLES = 512 };

struct parser { struct acpi_info *info; const struct acpi_source *src; hpa_t dsdt; hpa_t ssdt[32]; unsigned ssdts; uint32_t seen; };

static void __printf_like(2, 3) warn(struct acpi_info *a, const char *fmt, ...)
{
    if (a->warnings == ACPI_MAX_WARN)
        return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(a->warning[a->warnings++], sizeof(a->warning[0]), fmt, ap);
    va_end(ap);
}

static bool sums_to_zero(const void *p, size_t len)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < len; i++)
        sum += ((const uint8_t *)p)[i];
    return sum == 0;
}

static void put_name(char out[5], const char *sig)
{
    for (unsigned i = 0; i < 4; i++)
        out[i] = sig[i] >= 32 && sig[i] < 127 ? sig[i] : '?';
    out[4] = 0;
}

/* The whole table at pa, checked; NULL: unusable, said once. */
static const struct acpi_header *table_at(struct parser *p, hpa_t pa)
{
    char name[5];
    const struct acpi_header *h = pa ? p->src->map(pa, sizeof(*h)) : NULL;
    if (!h)
        return NULL;
    uint32_t len = h->length;
    put_name(name, h->signature);
    if (len < sizeof(*h) || len > MAX_TABLE) {
        warn(p->info, "table %s has the impossible length %u; ignored", name, (unsigned)len);
        return NULL;
    }
    h = p->src->map(pa, len);
    if (!h || h->length != len)
        return NULL;
    if (!sums_to_zero(h, len)) {
        warn(p->info, "table %s has a wrong checksum; ignored", name);
        return NULL;
    }
    return h;
}

/* Copy of the fixed part of a table; what a shorter, older table lacks is zero. */
static void copy_fixed(void *dst, size_t size, const struct acpi_header *h)
{
    memset(dst, 0, size);
    memcpy(dst, h, MIN(size, (size_t)h->length));
}

/* ---- RSDP ---- */
static bool rsdp_ok(const struct acpi_rsdp *r, size_t have)
{
    return have >= 20 && !memcmp(r->signature, "RSD PTR ", 8) && sums_to_zero(r, 20);
}

static hpa_t scan(const struct acpi_source *s, hpa_t from, size_t len)
{
    const uint8_t *m = s->map(from, len);
    for (size_t i = 0; m && i + 20 <= len; i += 16)
        if (rsdp_ok((const void *)(m + i), len - i))
            return from + i;
    return 0;
}

/* ACPI 6.4 "Finding the RSDP on IA-PC Systems". */
static hpa_t search_rsdp(const struct acpi_source *s)
{
    const uint8_t *bda = s->map(0x40e, 2);
    hpa_t ebda = bda ? (hpa_t)(bda[0] | bda[1] << 8) << 4 : 0, at = 0;
    if (ebda >= 0x400 && ebda < 0xa0000)
        at = scan(s, ebda, 1024);
    return at ? at : scan(s, 0xe0000, 0x20000);
}

/* The RSDP at pa: 20 bytes, and the rest if it says that there is one. */
static size_t read_rsdp(const struct acpi_source *s, hpa_t pa, struct acpi_rsdp *out)
{
    const struct acpi_rsdp *r = pa ? s->map(pa, 20) : NULL;
    size_t len = 20;
    if (!r || !rsdp_ok(r, 20))
        return 0;
    if (r->revision >= 2) {
        const struct acpi_rsdp *whole = s->map(pa, sizeof(*out));
        r = whole ? whole : r, len = whole ? sizeof(*out) : len;
    }
    memcpy(out, r, len);
    return len;
}

static bool find_rsdp(const struct acpi_source *s, struct acpi_rsdp *out)
{
    size_t have = 0;
    memset(out, 0, sizeof(*out));
    if (s->rsdp_copy && rsdp_ok((const void *)s->rsdp_copy, s->rsdp_copy_len))
        memcpy(out, s->rsdp_copy, have = MIN(sizeof(*out), s->rsdp_copy_len));
    if (!have)
        have = read_rsdp(s, s->rsdp, out);
    if (!have)
        have = read_rsdp(s, search_rsdp(s), out);
    if (!have)
        return false;
    if (out->revision < 2 || have < sizeof(*out) || out->length < sizeof(*out) || !sums_to_zero(out, sizeof(*out)))
        out->xsdt = 0;
    return true;
}

/* ---- MADT ---- */
static void add_cpu(struct acpi_info *a, uint32_t apic_id, uint32_t uid, uint32_t flags)
{
    if (!(flags & MADT_CPU_ENABLED) || apic_id == 0xffffffff)
        return;
    for (unsigned i = 0; i < a->cpus; i++)
        if (a->cpu[i].apic_id == apic_id)
            return;             /* some tables list a CPU as LAPIC and as x2APIC */
    a->cpus_listed++;
    if (a->cpus < MAX_CPUS)
        a->cpu[a->cpus++] = (struct acpi_cpu){ apic_id, uid };
}

static void add_ioapic(struct acpi_info *a, const struct madt_ioapic *e)
{
    if (a->ioapics < ACPI_MAX_IOAPICS && e->address)
        a->ioapic[a->ioapics++] = (struct acpi_ioapic){ e->id, e->address, e->gsi_base };
}

/* "Conforms to the bus" means edge/high for ISA; the SCI's override is level/low by the same rule. */
static void inti(uint16_t flags, bool *low, bool *level)
{
    *low = (flags & INTI_POLARITY) == INTI_ACTIVE_LOW;
    *level = (flags & INTI_TRIGGER) == INTI_LEVEL;
}

static void add_override(struct acpi_info *a, const struct madt_override *e)
{
    if (e->bus != 0 || e->source >= ISA_IRQS)
        return;
    struct acpi_line *l = &a->isa[e->source];
    l->gsi = e->gsi, l->overridden = true;
    inti(e->flags, &l->active_low, &l->level);
}

static void add_lint(struct acpi_info *a, uint32_t uid, bool all, uint16_t flags, uint8_t lint)
{
    if (a->lints == ACPI_MAX_LINT || lint > 1)
        return;
    struct acpi_lint *l = &a->lint[a->lints++];
    *l = (struct acpi_lint){ .uid = uid, .all = all, .lint = lint };
    inti(flags, &l->active_low, &l->level);
}

static void add_nmi_source(struct acpi_info *a, const struct madt_nmi_source *e)
{
    if (a->nmi_sources == ACPI_MAX_NMI_SOURCES)
        return;
    unsigned i = a->nmi_sources++;
    a->nmi_source[i].gsi = e->gsi;
    inti(e->flags, &a->nmi_source[i].active_low, &a->nmi_source[i].level);
}

static size_t madt_min_length(uint8_t type)
{
    static const uint8_t len[] = {
        [MADT_LAPIC] = sizeof(struct madt_lapic), [MADT_IOAPIC] = sizeof(struct madt_ioapic), [MADT_OVERRIDE] = sizeof(struct madt_override),
        [MADT_NMI_SOURCE] = sizeof(struct madt_nmi_source), [MADT_LAPIC_NMI] = sizeof(struct madt_lapic_nmi),
        [MADT_LAPIC_BASE] = sizeof(struct madt_lapic_base), [MADT_X2APIC] = sizeof(struct madt_x2apic),
        [MADT_X2APIC_NMI] = sizeof(struct madt_x2apic_nmi),
    };
    return type < sizeof(len) && len[type] ? len[type] : sizeof(struct acpi_subtable);
}

static void madt_entry(struct acpi_info *a, const struct acpi_subtable *s)
{
    switch (s->type) {
    case MADT_LAPIC: {
        const struct madt_lapic *e = (const void *)s;
        add_cpu(a, e->apic_id, e->uid, e->apic_id == 0xff ? 0 : e->flags);
        break;
    }
    case MADT_X2APIC: {
        const struct madt_x2apic *e = (const void *)s;
        add_cpu(a, e->x2apic_id, e->uid, e->flags);
        break;
    }
    case MADT_IOAPIC:
        add_ioapic(a, (const void *)s);
        break;
    case MADT_OVERRIDE:
        add_override(a, (const void *)s);
        break;
    case MADT_NMI_SOURCE:
        add_nmi_source(a, (const void *)s);
        break;
    case MADT_LAPIC_NMI: {
        const struct madt_lapic_nmi *e = (const void *)s;
        add_lint(a, e->uid, e->uid == 0xff, e->flags, e->lint);
        break;
    }
    case MADT_X2APIC_NMI: {
        const struct madt_x2apic_nmi *e = (const void *)s;
        add_lint(a, e->uid, e->uid == 0xffffffff, e->flags, e->lint);
        break;
    }
    case MADT_LAPIC_BASE: {
        const struct madt_lapic_base *e = (const void *)s;
        a->lapic_base = e->address;
        break;
    }
    }
}

static void parse_madt(struct parser *p, const struct acpi_header *h)
{
    struct acpi_info *a = p->info;
    if (h->length < sizeof(struct acpi_madt)) {
        warn(a, "MADT is too short; ignored");
        return;
    }
    const struct acpi_madt *m = (const void *)h;
    a->have_madt = true;
    a->pics = m->flags & MADT_PCAT_COMPAT;
    if (m->lapic_base)
        a->lapic_base = m->lapic_base;
    size_t at = sizeof(*m);
    while (at + sizeof(struct acpi_subtable) <= h->length) {
        const struct acpi_subtable *s = (const void *)((const uint8_t *)h + at);
        if (s->length < madt_min_length(s->type) || s->length > h->length - at) {
            warn(a, "MADT entry at %u has a wrong length; the rest is ignored", (unsigned)at);
            return;
        }
        madt_entry(a, s);
        at += s->length;
    }
}

/* ---- FADT ---- */
static struct acpi_gas reg(const struct acpi_gas *ext, uint32_t port, uint8_t len)
{
    struct acpi_gas g = *ext;
    if (g.address && (g.space == ACPI_SPACE_IO ? g.address <= 0xffff : g.space == ACPI_SPACE_MEMORY)) {
        if (!g.bits)
            g.bits = (uint8_t)(len * 8);
        return g;
    }
    memset(&g, 0, sizeof(g));
    if (port && port <= 0xffff)
        g = (struct acpi_gas){ .space = ACPI_SPACE_IO, .bits = (uint8_t)(MIN(len, (uint8_t)8) * 8), .address = port };
    return g;
}

static void parse_fadt(struct parser *p, const struct acpi_header *h)
{
    struct acpi_info *a = p->info;
    struct acpi_fadt f;
    if (h->length < offsetof(struct acpi_fadt, flags) + 4) {
        warn(a, "FADT is too short; ignored");
        return;
    }
    copy_fixed(&f, sizeof(f), h);
    a->have_fadt = true;
    a->hw_reduced = f.flags & FADT_HW_REDUCED;
    a->pm_timer_32 = f.flags & FADT_TMR_VAL_EXT;
    a->sci = f.sci_int, a->boot_arch = f.boot_arch, a->boot_arch_valid = f.h.revision >= 2, a->century = f.century;
    a->smi_cmd = f.smi_cmd, a->acpi_enable = f.acpi_enable;
    a->pm1_evt_len = f.pm1_evt_len;
    a->pm1a_evt = reg(&f.x_pm1a_evt, f.pm1a_evt, f.pm1_evt_len);
    a->pm1b_evt = reg(&f.x_pm1b_evt, f.pm1b_evt, f.pm1_evt_len);
    a->pm1a_cnt = reg(&f.x_pm1a_cnt, f.pm1a_cnt, 2);
    a->pm1b_cnt = reg(&f.x_pm1b_cnt, f.pm1b_cnt, 2);
    a->pm_timer = reg(&f.x_pm_tmr, f.pm_tmr, 4);
    a->reset = reg(&f.reset_reg, 0, 1);
    a->reset_value = f.reset_value;
    a->reset_supported = f.flags & FADT_RESET_REG_SUP && a->reset.address;
    a->sleep_control = reg(&f.sleep_control, 0, 1);
    a->sleep_status = reg(&f.sleep_status, 0, 1);
    p->dsdt = f.x_dsdt ? f.x_dsdt : f.dsdt;
}

/* ---- _S5_ without an interpreter: NameOp _S5_ PackageOp PkgLength NumElements, two integer constants.  ACPI 6.4 "AML Specification". ---- */
static bool aml_integer(const uint8_t **at, const uint8_t *end, uint8_t *v)
{
    if (*at >= end)
        return false;
    uint8_t op = *(*at)++;
    unsigned bytes = op == 0x0a ? 1 : op == 0x0b ? 2 : op == 0x0c ? 4 : 0;
    if (!bytes) {
        *v = op;                /* ZeroOp, OneOp */
        return op <= 1;
    }
    if ((size_t)(end - *at) < bytes)
        return false;
    *v = **at;
    *at += bytes;
    return true;
}

static bool find_s5(struct acpi_info *a, const struct acpi_header *h)
{
    const uint8_t *b = (const uint8_t *)h, *end = b + h->length;
    for (const uint8_t *n = b + sizeof(*h) + 1; n + 8 <= end; n++) {
        if (memcmp(n, "_S5_", 4) || n[4] != 0x12 || (n[-1] != 0x08 && !(n[-1] == '\\' && n[-2] == 0x08)))
            continue;
        const uint8_t *v = n + 5 + 1 + (n[5] >> 6) + 1;         /* PkgLength has 1 to 4 bytes */
        if (aml_integer(&v, end, &a->s5_a) && a->s5_a < 8) {
            if (!aml_integer(&v, end, &a->s5_b) || a->s5_b >= 8)
                a->s5_b = a->s5_a;
            return a->have_s5 = true;
        }
    }
    return false;
}

/* ---- The others ---- */
static void parse_hpet(struct parser *p, const struct acpi_header *h)
{
    struct acpi_hpet t;
    copy_fixed(&t, sizeof(t), h);
    if (h->length >= offsetof(struct acpi_hpet, number) && t.base.space == ACPI_SPACE_MEMORY && t.base.address)
        p->info->hpet = t.base.address;
}

static void parse_mcfg(struct parser *p, const struct acpi_header *h)
{
    struct acpi_info *a = p->info;
    for (size_t at = sizeof(struct acpi_mcfg); at + sizeof(struct mcfg_entry) <= h->length && a->mcfgs < ACPI_MAX_MCFG; at += sizeof(struct mcfg_entry)) {
        struct mcfg_entry e;
        memcpy(&e, (const uint8_t *)h + at, sizeof(e));
        uint64_t size = (uint64_t)(e.bus_last - e.bus_first + 1) << 20;
        if (!e.base || e.base & (PAGE_SIZE - 1) || e.bus_last < e.bus_first || e.base + size < e.base) {
            warn(a, "MCFG entry for segment %u is wrong; ignored", e.segment);
            continue;
        }
        a->mcfg[a->mcfgs].base = e.base, a->mcfg[a->mcfgs].segment = e.segment;
        a->mcfg[a->mcfgs].bus_first = e.bus_first, a->mcfg[a->mcfgs].bus_last = e.bus_last;
        a->mcfgs++;
    }
}

static void parse_spcr(struct parser *p, const struct acpi_header *h)
{
    struct acpi_spcr t;
    copy_fixed(&t, sizeof(t), h);
    if (h->length < offsetof(struct acpi_spcr, pci_bus) || !t.base.address)
        return;
    p->info->have_spcr = true;
    p->info->spcr = t.base, p->info->spcr_type = t.type, p->info->spcr_baud = t.baud, p->info->spcr_pci_device = t.pci_device;
}

static void add_iommu(struct acpi_info *a, uint64_t base)
{
    if (a->iommus < ARRAY_SIZE(a->iommu_base) && base)
        a->iommu_base[a->iommus++] = base;
}

/* VT-d Specification 4.1 "DMA Remapping Reporting Structure": flags at 37, units of type 0 with the register base at 8. */
static void parse_dmar(struct parser *p, const struct acpi_header *h)
{
    const uint8_t *b = (const uint8_t *)h;
    p->info->dmar = true;
    p->info->x2apic_opt_out = h->length > 37 && b[37] & 2;
    for (size_t at = 48; at + 16 <= h->length;) {
        uint16_t type, len;
        uint64_t base;
        memcpy(&type, b + at, 2), memcpy(&len, b + at + 2, 2), memcpy(&base, b + at + 8, 8);
        if (len < 4 || len > h->length - at)
            return;
        if (type == 0 && len >= 16)
            add_iommu(p->info, base);
        at += len;
    }
}

/* AMD I/O Virtualization Technology Specification 3.05 "IVRS": IVHD blocks 10h, 11h, 40h with the register base at 8. */
static void parse_ivrs(struct parser *p, const struct acpi_header *h)
{
    const uint8_t *b = (const uint8_t *)h;
    p->info->ivrs = true;
    for (size_t at = 48; at + 16 <= h->length;) {
        uint16_t len;
        uint64_t base;
        memcpy(&len, b + at + 2, 2), memcpy(&base, b + at + 8, 8);
        if (len < 4 || len > h->length - at)
            return;
        if (b[at] == 0x10 && len >= 16)
            add_iommu(p->info, base);
        at += len;
    }
}

static const struct { char sig[5]; void (*parse)(struct parser *, const struct acpi_header *); } parsers[] = {
    { "APIC", parse_madt }, { "FACP", parse_fadt }, { "HPET", parse_hpet }, { "MCFG", parse_mcfg },
    { "SPCR", parse_spcr }, { "DMAR", parse_dmar }, { "IVRS", parse_ivrs },
};

static void parse_table(struct parser *p, hpa_t pa)
{
    const struct acpi_header *h = pa ? p->src->map(pa, sizeof(*h)) : NULL;
    if (!h)
        return;
    if (!memcmp(h->signature, "SSDT", 4) && p->ssdts < ARRAY_SIZE(p->ssdt))
        p->ssdt[p->ssdts++] = pa;
    for (unsigned i = 0; i < ARRAY_SIZE(parsers); i++) {
        if (memcmp(h->signature, parsers[i].sig, 4) || p->seen & BIT(i))
            continue;           /* of two tables with one name the first counts */
        if ((h = table_at(p, pa)) != NULL) {
            p->seen |= (uint32_t)BIT(i);
            parsers[i].parse(p, h);
        }
        return;
    }
}

static bool parse_root(struct parser *p, hpa_t pa, const char *sig, size_t entry)
{
    const struct acpi_header *h = table_at(p, pa);
    if (!h || memcmp(h->signature, sig, 4))
        return false;
    size_t n = MIN((h->length - sizeof(*h)) / entry, (size_t)MAX_TABLES);
    for (size_t i = 0; i < n; i++) {
        uint64_t at = 0;
        memcpy(&at, (const uint8_t *)(h + 1) + i * entry, entry);
        parse_table(p, at);
    }
    memcpy(p->info->oem, h->oem_id, 6);
    return true;
}

int acpi_parse(struct acpi_info *a, const struct acpi_source *src)
{
    struct parser p = { .info = a, .src = src };
    struct acpi_rsdp r;
    memset(a, 0, sizeof(*a));
    a->lapic_base = LAPIC_DEFAULT_BASE;
    a->spcr_pci_device = 0xffff;
    for (unsigned i = 0; i < ISA_IRQS; i++)
        a->isa[i].gsi = i;
    if (!find_rsdp(src, &r) || (!(r.xsdt && parse_root(&p, r.xsdt, "XSDT", 8)) && !parse_root(&p, r.rsdt, "RSDT", 4)))
        return -ENOENT;
    a->found = true;
    const struct acpi_header *d = table_at(&p, p.dsdt);
    if (!(d && find_s5(a, d)))
        for (unsigned i = 0; i < p.ssdts && !a->have_s5; i++)
            if ((d = table_at(&p, p.ssdt[i])) != NULL)
                find_s5(a, d);
    return 0;
}
