/* Switching off, resetting, ACPI registers. */
#pragma once
#include "kernel/x86/acpi.h"

void power_init(void);          /* after ACPI tables and mmio_map: maps what is needed later in any context */
void power_set_hv_off(void (*fn)(void));        /* called on every CPU before reset, power-off or stop: leaves VMX/SVM operation; NMI context too */
void power_hv_off(void);        /* on this CPU */
/* S5; thread context.  Does not return on success; -errno with the reason in the log. */
int  power_off(void);
/* Any context; tries every way down to the triple fault. */
__attribute__((noreturn)) void power_reset(void);

/* Fixed ACPI registers in port or mapped memory space; absent ones read 0 and ignore writes.  Any context. */
uint32_t acpi_reg_read(const struct acpi_gas *);
void acpi_reg_write(const struct acpi_gas *, uint32_t);
