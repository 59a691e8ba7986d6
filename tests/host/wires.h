/* The other ends of a device's wires, for unit tests and fuzzers: they remember what they were told. */
#pragma once
#include "guestdev/apic.h"
#include "kernel/vmm/event.h"
#include "kernel/vmm/gdev.h"
#include "kernel/vmm/vmclock.h"

struct wire { bool level; unsigned rises, falls, calls, pin; };

static inline void wire_set(void *arg, unsigned pin, bool level)
{
    struct wire *w = arg;
    w->calls++;
    w->pin = pin;
    w->rises += level && !w->level;
    w->falls += !level && w->level;
    w->level = level;
}
static inline struct irqline wire_line(struct wire *w, unsigned pin) { return (struct irqline){ wire_set, w, pin }; }

struct signals { unsigned n, last; };
static inline void signals_fire(void *arg, unsigned what)
{
    struct signals *s = arg;
    s->n++;
    s->last = what;
}
static inline struct signal_wire signals_wire(struct signals *s) { return (struct signal_wire){ signals_fire, s }; }

struct messages { unsigned n; struct apic_msg last; };
static inline void messages_send(void *arg, const struct apic_msg *m)
{
    struct messages *r = arg;
    r->n++;
    r->last = *m;
}

/* A vCPU's side of struct vcpu_wires; its TSC runs at 2 GHz with VM time. */
struct fake_vcpu { unsigned irqs, nmis, smis, inits, sipis; uint8_t sipi_vector; struct vmclock *clock; };
static inline void fake_irq(void *v) { atomic_add(&((struct fake_vcpu *)v)->irqs, 1u); }
static inline void fake_tpr(void *v) {}
static inline void fake_nmi(void *v) { ((struct fake_vcpu *)v)->nmis++; }
static inline void fake_smi(void *v) { ((struct fake_vcpu *)v)->smis++; }
static inline void fake_init(void *v) { ((struct fake_vcpu *)v)->inits++; }
static inline void fake_sipi(void *v, uint8_t vector)
{
    ((struct fake_vcpu *)v)->sipis++;
    ((struct fake_vcpu *)v)->sipi_vector = vector;
}
static inline uint64_t fake_tsc(void *v) { return 2 * vmclock_now(((struct fake_vcpu *)v)->clock); }
static inline uint64_t fake_tsc_to_ns(void *v, uint64_t tsc) { return tsc / 2 + (tsc & 1); }
static inline struct vcpu_wires fake_vcpu_wires(struct fake_vcpu *v)
{
    return (struct vcpu_wires){ v, fake_irq, fake_tpr, fake_nmi, fake_smi, fake_init, fake_sipi, fake_tsc, fake_tsc_to_ns };
}

/* Register accesses as the bus makes them. */
static inline uint64_t io_read(io_fn *fn, void *dev, uint64_t off, unsigned size)
{
    struct io io = { .off = off, .size = size };
    int err = fn(dev, &io);
    return err ? ~0ull : size == 8 ? io.data : io.data & ((1ull << 8 * size) - 1);
}
static inline void io_write(io_fn *fn, void *dev, uint64_t off, unsigned size, uint64_t data)
{
    struct io io = { .off = off, .size = size, .write = true, .data = data };
    fn(dev, &io);
}
