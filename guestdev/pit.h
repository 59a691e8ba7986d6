/*
 * 8254 interval timer and port 61h.  Intel 8254 datasheet, all six modes.  Counters are not ticked: what they show follows from the VM clock.
 *
 * Counter 0 drives IRQ 0 at every rise of its OUT.  Rises keep their phase (tick numbers are absolute, there is no drift).  Catch-up policy: rises that the host
 * was late for, or that are closer together than PIT_MIN_PERIOD_NS, are merged into one; a guest reads the true time from the counter.
 * Lock: one spinlock, outside the PIC's and IOAPIC's; irq0 is called with it held.
 */
#pragma once
#include "kernel/vmm/gdev.h"
#include "kernel/vmm/vmclock.h"

enum { PIT_MIN_PERIOD_NS = 20000 };
struct pit;

struct pit *pit_create(struct vmclock *, struct irqline irq0);  /* NULL: no memory */
extern const struct gdev_ops pit_ops;
int pit_io(void *pit, struct io *);             /* ports 40h .. 43h */
int pit_port61_io(void *pit, struct io *);      /* port 61h: gate of counter 2, speaker, refresh toggle */
