/*
 * IOAPIC with 24 pins, version 20h (EOI register).  Intel 82093AA datasheet; ICH9 datasheet "I/O Advanced Programmable Interrupt Controller".
 *
 * A pin's wire says "asserted".  Pins in `active_low` are wired to lines that are electrically low when asserted (PCI interrupts): a guest that programs the
 * other polarity sees the inverse, as on a real board.
 * Lock: one spinlock, inside device and PIC locks; messages leave with it held (the LAPICs take none).
 */
#pragma once
#include "guestdev/apic.h"
#include "kernel/vmm/gdev.h"

enum { IOAPIC_PINS = 24 };
struct ioapic;

struct ioapic *ioapic_create(struct apic_wire, uint32_t active_low);    /* NULL: no memory */
extern const struct gdev_ops ioapic_ops;
int  ioapic_io(void *ioapic, struct io *);                      /* 4 KiB at IOAPIC_DEFAULT_BASE */
void ioapic_pin(void *ioapic, unsigned pin, bool asserted);     /* fits struct irqline */
void ioapic_eoi(void *ioapic, uint8_t vector);                  /* fits apic_fabric.ioapic.eoi */
