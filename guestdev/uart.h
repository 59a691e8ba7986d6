/*
 * 16550A UART.  National Semiconductor PC16550D datasheet.  The baud rate has no effect on speed; modem inputs are always ready.
 *
 * Bytes go out and come in through the CHAN_DEV side of a channel.  Back-pressure both ways: input stays in the channel while the receive FIFO is full;
 * output that the channel has no room for waits in the transmit FIFO with THRE clear.  Only when nobody has made room for UART_STALL_NS is output dropped
 * (counted, until there is room again), so that a guest without a reader goes on.
 * Lock: one spinlock, outside the PIC's and IOAPIC's, never held while the channel is called.
 */
#pragma once
#include "kernel/console/chan.h"
#include "kernel/vmm/gdev.h"
#include "kernel/vmm/vmclock.h"

enum { UART_STALL_NS = 50000000, UART_TIMEOUT_NS = 350000 /* four characters at 115200 baud */ };
struct uart;

/* chan NULL: output is discarded.  The channel is the caller's and outlives the UART.  NULL: no memory. */
struct uart *uart_create(struct vmclock *, struct irqline irq, struct chan *);
extern const struct gdev_ops uart_ops;
int uart_io(void *uart, struct io *);           /* 8 ports */
uint64_t uart_dropped(struct uart *);           /* bytes of output */
