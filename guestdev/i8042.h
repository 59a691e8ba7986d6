/*
 * Keyboard controller with nothing plugged in: answers its own commands, and for the missing devices what the chip answers when none replies
 * (FEh with the time-out bit).  Reset and A20 work.  IBM PS/2 Hardware Interface Technical Reference.
 * Lock: one spinlock, outside the PIC's and IOAPIC's.
 */
#pragma once
#include "kernel/vmm/gdev.h"

struct i8042;

struct i8042 *i8042_create(struct irqline irq1, struct irqline irq12, struct signal_wire events /* SIGNAL_RESET */);     /* NULL: no memory */
extern const struct gdev_ops i8042_ops;
int i8042_data_io(void *i8042, struct io *);            /* port 60h */
int i8042_command_io(void *i8042, struct io *);         /* port 64h */
