/*
 * ACPI power management of the ICH9: PM1, PM timer, a small GPE block, SMI command port.  ACPI Specification 6.4, "ACPI Hardware Specification"; ICH9 datasheet
 * "Power Management I/O Registers".
 *
 * Lock: one spinlock, outside the PIC's and IOAPIC's.
 */
#pragma once
#include "kernel/vmm/gdev.h"
#include "kernel/vmm/vmclock.h"

enum {                          /* offsets in the block of PM_BLOCK_LEN ports */
    PM_PM1_STS = 0x00, PM_PM1_EN = 0x02, PM_PM1_CNT = 0x04, PM_TIMER = 0x08, PM_GPE0_STS = 0x20, PM_GPE0_EN = 0x28, PM_BLOCK_LEN = 0x80,
    PM_GPE0_LEN = 16,           /* 8 bytes of status, 8 of enable */
};
enum { PM_SLP_TYP_S5 = 7 };     /* ICH9 datasheet "PM1_CNT" */
enum { PM_SMI_CMD = 0xb2, PM_ACPI_ENABLE = 2, PM_ACPI_DISABLE = 3 };
struct pm;

struct pm_config {
    struct vmclock *clock;
    struct irqline sci;
    struct signal_wire power;   /* SIGNAL_POWEROFF */
    bool timer_32bit;           /* FADT TMR_VAL_EXT */
    bool acpi_mode;             /* SCI_EN is set from reset on: FADT without SMI_CMD */
};

struct pm *pm_create(const struct pm_config *);         /* NULL: no memory */
extern const struct gdev_ops pm_ops;
int  pm_io(void *pm, struct io *);              /* PM_BLOCK_LEN ports at PMBASE */
int  pm_smi_io(void *pm, struct io *);          /* ports B2h, B3h */
void pm_power_button(struct pm *);              /* any context but irq */
void pm_gpe(void *pm, unsigned bit, bool level);        /* fits struct irqline; GPE 0 .. 63, latched */
