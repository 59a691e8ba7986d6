/*
 * ACPI tables of one virtual PC: RSDP, XSDT, FADT, FACS, MADT, HPET, MCFG, DSDT (dsdt.asl, compiled by iasl) and an SSDT with its processors.
 * ACPI Specification 6.4.
 */
#pragma once
#include "kernel/lib/base.h"

struct acpi_platform {
    unsigned ncpus;                     /* APIC IDs 0 .. ncpus-1 */
    uint8_t ioapic_id;
    uint64_t mem64, mem64_len;          /* 64-bit PCI window; length 0: none */
    uint16_t pm1_evt, pm1_cnt, pm_tmr, gpe0;    /* I/O ports; gpe0 0: none */
    uint8_t gpe0_len, sci_irq;
    uint16_t reset_port;
    uint8_t reset_value;
    bool hpet, ps2, vga;
};

enum { ACPI_TABLES_MAX = 0x8000 };

/* Builds the tables for guest physical address `at` (below 1 MiB, 16-aligned); the RSDP comes first.  Bytes used, or -ENOSPC. */
int acpi_tables_build(const struct acpi_platform *, uint64_t at, uint8_t *buf, size_t cap);
