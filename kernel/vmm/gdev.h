/*
 * What every emulated device is: a private struct, x_create(wires…), one io_fn per region, reset, ONE bidirectional snap, and a pure x_update()
 * that recomputes its interrupt output from state.  It looks nothing up, never calls a vCPU, has no file-scope state.
 * Every device guards its state with its own spinlock; lock order: device → IOAPIC/MSI → LAPIC (atomics only).
 */
#pragma once
#include "kernel/vmm/bus.h"
#include "kernel/vmm/snap.h"

enum gdev_reset { GDEV_POWER_ON, GDEV_RESET /* reset line; RTC RAM and similar survive */ };

struct gdev_ops {
    const char *name;
    void (*reset)(void *dev, enum gdev_reset);
    int  (*snap)(void *dev, struct snap *);
    void (*destroy)(void *dev);
    /* Optional.  drain: thread context; returns when no request is in flight (new ones are not started: VM is paused), or at the deadline with what a dead
     * disk still holds. */
    void (*drain)(void *dev, uint64_t deadline_ns);
    /* Optional.  The VM goes on after a drain: take up again what waits on the host's side (console input). */
    void (*resume)(void *dev);
};
struct gdev { const struct gdev_ops *ops; void *dev; };

/* An interrupt wire: level-signalled; the receiver turns edges into what it needs.  Atomic or thread context, under the device's lock. */
struct irqline { void (*set)(void *arg, unsigned pin, bool level); void *arg; unsigned pin; };
static inline void irqline_set(const struct irqline *l, bool level)
{
    if (l->set)
        l->set(l->arg, l->pin, level);
}
/* A message-signalled interrupt leaves the device by this wire. */
struct msi_wire { void (*send)(void *arg, uint64_t addr, uint32_t data); void *arg; };
/* An event with no level: reset request, S5, power button to the outside. */
struct signal_wire { void (*fire)(void *arg, unsigned what); void *arg; };
static inline void signal_fire(const struct signal_wire *w, unsigned what)
{
    if (w->fire)
        w->fire(w->arg, what);
}
enum { SIGNAL_RESET = 1, SIGNAL_POWEROFF, SIGNAL_DEBUG_EXIT /* | code << 8 */ };
