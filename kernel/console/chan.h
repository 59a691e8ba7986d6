/*
 * struct chan: a two-sided byte channel (guest UART, virtio console, host serial, shell session meet here).
 * Side 0 is the device, side 1 the consumer (console multiplexer, shell, test).  Both rings are fixed at creation.
 * Any context but irq; lock-free between one writer and one reader per direction, a spinlock inside for several.
 */
#pragma once
#include "kernel/lib/base.h"

struct chan;
enum { CHAN_DEV = 0, CHAN_USER = 1 };

struct chan *chan_create(size_t ring_bytes);            /* power of two; NULL: no memory */
void   chan_destroy(struct chan *);
/* Returns the bytes taken, 0 .. len; fewer than len when the ring is full. */
size_t chan_write(struct chan *, int side, const void *buf, size_t len);
size_t chan_read(struct chan *, int side, void *buf, size_t len);
size_t chan_readable(struct chan *, int side);          /* bytes that chan_read(side) would return */
size_t chan_writable(struct chan *, int side);
/* Called (atomic context) on `side` after the other side wrote (readable) or read (writable).  NULL clears.  Must not call back into the chan's
 * set_notify.  After set_notify returns the old callback is not running. */
void   chan_set_notify(struct chan *, int side, void (*fn)(void *arg), void *arg);
