/*
 * The 8259 pair of a PC with ELCR.  Intel 8259A datasheet; ICH9 datasheet "8259 Interrupt Controllers", "ELCR1", "ELCR2".
 *
 * An edge is latched until it is acknowledged, also while masked and even if the line falls again (the chip would answer that with a spurious IRQ 7: no
 * request of an emulated device gets lost).  Spurious IRQ 15 is as on the chip: the slave's request vanished after it reached the master.
 * Lock: one spinlock, inside device locks, outside the IOAPIC's; the output wire is called with it held.
 */
#pragma once
#include "kernel/vmm/gdev.h"

struct pic;

/* out: the master's INTR pin; called with true again when it stays high and another request is the best now. */
struct pic *pic_create(struct irqline out);     /* NULL: no memory */
extern const struct gdev_ops pic_ops;
int  pic_master_io(void *pic, struct io *);     /* ports 20h, 21h */
int  pic_slave_io(void *pic, struct io *);      /* ports A0h, A1h */
int  pic_elcr_io(void *pic, struct io *);       /* ports 4D0h, 4D1h */
void pic_irq(void *pic, unsigned irq, bool level);      /* fits struct irqline; irq 0 .. 15, 2 is ignored */

/* The vector that an INTA cycle would give now, or -1.  Without side effects. */
int  pic_pending(void *pic);
/* The INTA cycle for `vector` as pic_pending returned it. */
void pic_intack(void *pic, int vector);
