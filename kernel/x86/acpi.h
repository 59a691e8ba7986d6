/*
 * ACPI tables of the host, read without AML: what is needed to find CPUs, interrupt controllers, timers, PCI and the way to switch off.  Every length and
 * checksum is hostile; a table that is wrong is left out and named in the log.  H.
 */
#pragma once
#include "kernel/hw/acpi.h"
#include "kernel/lib/port.h"

enum { ACPI_MAX_IOAPICS = 64, ACPI_MAX_MCFG = 64, ACPI_MAX_LINT = 32, ACPI_MAX_NMI_SOURCES = 8, ACPI_MAX_WARN = 8, ISA_IRQS = 16 };

/* How to reach physical memory: a read-only view of [pa, pa+len) that stays valid, or NULL. */
struct acpi_source {
    const void *(*map)(hpa_t pa, size_t len);
    hpa_t rsdp;                         /* 0: search */
    const uint8_t *rsdp_copy;           /* what the loader copied; used first */
    size_t rsdp_copy_len;
};

struct acpi_cpu { uint32_t apic_id, uid; };
struct acpi_ioapic { uint8_t id; uint32_t address, gsi_base; };
struct acpi_line { uint32_t gsi; bool active_low, level, overridden; };       /* an ISA interrupt */
struct acpi_lint { uint32_t uid; bool all; uint8_t lint; bool active_low, level; };

struct acpi_info {
    bool found;
    /* MADT */
    bool have_madt, pics;
    uint64_t lapic_base;
    struct acpi_cpu cpu[MAX_CPUS];      /* enabled, distinct APIC IDs, in table order */
    unsigned cpus, cpus_listed;         /* listed: enabled ones, also those beyond MAX_CPUS */
    struct acpi_ioapic ioapic[ACPI_MAX_IOAPICS];
    unsigned ioapics;
    struct acpi_line isa[ISA_IRQS];
    struct acpi_lint lint[ACPI_MAX_LINT];
    unsigned lints;
    struct { uint32_t gsi; bool active_low, level; } nmi_source[ACPI_MAX_NMI_SOURCES];
    unsigned nmi_sources;
    /* FADT; a register whose address is 0 does not exist */
    bool have_fadt, hw_reduced, pm_timer_32, reset_supported;
    uint16_t sci, boot_arch;
    uint8_t boot_arch_valid, century;
    uint32_t smi_cmd;
    uint8_t acpi_enable, reset_value;
    struct acpi_gas pm1a_evt, pm1b_evt, pm1a_cnt, pm1b_cnt, pm_timer, reset, sleep_control, sleep_status;
    uint8_t pm1_evt_len;
    bool have_s5;
    uint8_t s5_a, s5_b;                 /* SLP_TYP values from _S5_ */
    /* Others */
    uint64_t hpet;                      /* physical address of its registers; 0: none */
    struct { uint64_t base; uint16_t segment; uint8_t bus_first, bus_last; } mcfg[ACPI_MAX_MCFG];
    unsigned mcfgs;
    bool have_spcr;
    struct acpi_gas spcr;
    uint8_t spcr_type, spcr_baud;
    uint16_t spcr_pci_device;           /* FFFFh: not a PCI function */
    bool dmar, ivrs, x2apic_opt_out;    /* there is an IOMMU; DMAR asks to leave the APICs in xAPIC mode */
    uint64_t iommu_base[16];
    unsigned iommus;
    char oem[8];
    char warning[ACPI_MAX_WARN][80];
    unsigned warnings;
};

/* 0, or -ENOENT: no usable root table (the info still holds defaults: identity ISA lines, LAPIC at its architectural place). */
int acpi_parse(struct acpi_info *, const struct acpi_source *);

extern struct acpi_info acpi;           /* the host's, filled at boot by main.c */
