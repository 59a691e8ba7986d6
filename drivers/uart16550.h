/* Serial ports as consoles: COM1 and what the SPCR table names. */
#pragma once
#include "kernel/hw/acpi.h"

/* Before memory: COM1, if there is one, becomes a console for log lines (polled). */
void uart_early_init(void);
/* The port that the firmware's SPCR table names, unless it is COM1; before threads, after mmio_map. */
void uart_add_spcr(const struct acpi_gas *);
/* Thread context, once interrupts work: the ports get input, a byte channel and interrupts. */
void uart_start(void);
