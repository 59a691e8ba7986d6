/*
 * High Precision Event Timer.  IA-PC HPET Specification 1.0a.  A 64-bit counter of 10 ns ticks from the VM clock; three 64-bit timers, all periodic; no FSB (MSI)
 * delivery.  A comparator written with a value just passed fires at once (silicon would wait for the counter to wrap).  Periodic matches keep their
 * phase; those closer together than HPET_MIN_PERIOD_NS, or missed, are merged.
 *
 * Legacy replacement sits in the HPET: the PIT's IRQ 0 and the RTC's IRQ 8 run through it and are cut off while it is on.
 * Lock: one spinlock, inside the PIT's and RTC's, outside the PIC's and IOAPIC's.
 */
#pragma once
#include "kernel/vmm/gdev.h"
#include "kernel/vmm/vmclock.h"

enum { HPET_TIMERS = 3, HPET_TICK_NS = 10, HPET_MIN_PERIOD_NS = 20000 };
#define HPET_BLOCK_ID_VALUE 0x8086a201u         /* low half of the capabilities, as the ACPI table repeats it */
struct hpet;

struct hpet_wires {
    struct irqline irq0, irq8;          /* ISA IRQ 0 and 8: PIC input and IOAPIC pin */
    struct irqline gsi;                 /* set(arg, gsi, level) for routed timers; the pin is the GSI */
    uint32_t routes;                    /* GSIs that a timer may be routed to, as the board allows */
};

struct hpet *hpet_create(struct vmclock *, const struct hpet_wires *);  /* NULL: no memory */
extern const struct gdev_ops hpet_ops;
int  hpet_io(void *hpet, struct io *);          /* HPET_SIZE bytes at HPET_DEFAULT_BASE */
void hpet_isa_in(void *hpet, unsigned irq, bool level);         /* fits struct irqline: pin 0 from the PIT, 8 from the RTC */
