/*
 * Real-time clock and CMOS memory.  Motorola MC146818A datasheet; ICH9 datasheet "RTC" (256 bytes in two banks).
 *
 * The time is the host's UTC plus an offset that the guest sets by setting its clock; it goes on while the VM is paused.  Periodic ticks follow the VM clock.
 * Flags that nobody reads are not counted: a guest that is late finds one periodic tick, as on the chip.
 * Lock: one spinlock, outside the HPET's, PIC's and IOAPIC's.
 */
#pragma once
#include "kernel/vmm/gdev.h"
#include "kernel/vmm/vmclock.h"

struct rtc;

struct rtc *rtc_create(struct vmclock *, struct irqline irq8);  /* NULL: no memory */
extern const struct gdev_ops rtc_ops;
int  rtc_io(void *rtc, struct io *);            /* ports 70h .. 73h: index and data of both banks */
/* CMOS memory as firmware sets it; index 0Eh .. FFh.  It survives every reset. */
void rtc_set_cmos(struct rtc *, uint8_t index, uint8_t val);
/* The memory size fields that PC firmware and old loaders read: RAM below and above 4 GiB, bytes. */
void rtc_set_memory(struct rtc *, uint64_t below_4g, uint64_t above_4g);
