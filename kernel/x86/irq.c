/* Vectors, device interrupts, dispatch. */
#include <errno.h>
#include <string.h>
#include "kernel/lib/list.h"
#include "kernel/lib/log.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/ioapic.h"
#include "kernel/x86/lapic.h"
#include "kernel/x86/smp.h"
#include "kernel/x86/smp_internal.h"
#include "kernel/x86/time.h"
#include "kernel/x86/time_internal.h"
#include "kernel/x86/trap.h"

struct irq_desc { irq_fn *fn; void *arg; const char *name; uint64_t count; };

/* One INTx or ISA line with all who share it. */
struct irq_source {
    struct spinlock lock;               /* handlers; held while they run */
    struct list handlers, node;
    uint32_t gsi;
    unsigned cpu, vector;
    uint32_t masked;                    /* depth, under lock_mask */
    uint32_t unhandled;                 /* in a row */
    bool level, dead;
};
struct irq_handle { struct list node; struct irq_source *src; irq_fn *fn; void *arg; const char *name; uint64_t count; };

enum { UNHANDLED_LIMIT = 100000 };

static struct spinlock vector_lock;     /* percpu->vectors[] */
static struct spinlock mask_lock;       /* irq_source.masked; taken in irq context */
static struct mutex source_mutex;       /* list of sources */
static struct list sources = LIST_INIT(sources);
static struct ratelimit spurious_limit;

/* ---- Vectors ---- */
static unsigned vectors_used(const struct percpu *p)
{
    unsigned n = 0;
    for (unsigned v = VEC_DEVICE_FIRST; v <= VEC_DEVICE_LAST; v++)
        n += p->vectors[v] != NULL;
    return n;
}

/* Without interrupt remapping a device reaches only APIC IDs below 255. */
static struct percpu *pick_cpu(int cpu)
{
    struct percpu *best = NULL;
    if (cpu != IRQ_ANY_CPU)
        return cpu >= 0 && (unsigned)cpu < percpu_count && percpu_of((unsigned)cpu)->online ? percpu_of((unsigned)cpu) : NULL;
    for (unsigned i = 0; i < percpu_count; i++) {
        struct percpu *p = percpu_of(i);
        if (p->online && p->apic_id < 0xff && (!best || vectors_used(p) < vectors_used(best)))
            best = p;
    }
    return best;
}

int irq_vector_alloc(int cpu, irq_fn *fn, void *arg, const char *name, unsigned *cpu_out)
{
    struct irq_desc *d = kzalloc(sizeof(*d));
    if (!d)
        return -ENOMEM;
    *d = (struct irq_desc){ .fn = fn, .arg = arg, .name = name };
    int vector = -ENOSPC;
    spin_lock(&vector_lock);
    struct percpu *p = pick_cpu(cpu);
    for (unsigned v = VEC_DEVICE_FIRST; p && v <= VEC_DEVICE_LAST; v++) {
        if (!p->vectors[v]) {
            atomic_store(&p->vectors[v], d);
            *cpu_out = p->cpu;
            vector = (int)v;
            break;
        }
    }
    spin_unlock(&vector_lock);
    if (vector < 0)
        kfree(d);
    return vector;
}

static void nothing(void *arg) { }

void irq_vector_free(unsigned cpu, unsigned vector)
{
    struct percpu *p = percpu_of(cpu);
    spin_lock(&vector_lock);
    struct irq_desc *d = p->vectors[vector];
    atomic_store(&p->vectors[vector], NULL);
    spin_unlock(&vector_lock);
    smp_call_on(cpu, nothing, NULL);    /* handlers run with interrupts off: when this has run, none is in the old one */
    kfree(d);
}

int irq_msi_address(unsigned cpu, unsigned vector, uint64_t *addr, uint32_t *data)
{
    uint32_t id = percpu_of(cpu)->apic_id;
    if (id >= 0xff)
        return -ERANGE;
    *addr = MSI_ADDR_BASE | id << MSI_ADDR_DEST_SHIFT;
    *data = vector;
    return 0;
}

/* ---- Lines ---- */
static enum irq_result source_irq(void *arg)
{
    struct irq_source *s = arg;
    struct irq_handle *h;
    enum irq_result r = IRQ_NOT_MINE;
    unsigned long f = spin_lock_irqsave(&s->lock);
    list_for_each(h, &s->handlers, node) {
        if (h->fn(h->arg) == IRQ_HANDLED) {
            h->count++;
            r = IRQ_HANDLED;
        }
    }
    s->unhandled = r == IRQ_HANDLED ? 0 : s->unhandled + 1;
    if (s->unhandled == UNHANDLED_LIMIT && s->level && !s->dead) {
        s->dead = true;
        ioapic_mask(s->gsi, true);
        log_err("irq", "nobody handles interrupt line %u; it is switched off", (unsigned)s->gsi);
    }
    spin_unlock_irqrestore(&s->lock, f);
    return r;
}

static struct irq_source *find_source(uint32_t gsi)
{
    struct irq_source *s;
    list_for_each(s, &sources, node)
        if (s->gsi == gsi)
            return s;
    return NULL;
}

static struct irq_source *new_source(uint32_t gsi, bool active_low, bool level)
{
    if (!ioapic_has(gsi)) {
        log_warn("irq", "there is no interrupt line %u", (unsigned)gsi);
        return NULL;
    }
    struct irq_source *s = kzalloc(sizeof(*s));
    int v = s ? irq_vector_alloc(IRQ_ANY_CPU, source_irq, s, "line", &s->cpu) : -ENOMEM;
    if (v < 0) {
        log_warn("irq", "no vector for interrupt line %u", (unsigned)gsi);
        kfree(s);
        return NULL;
    }
    list_init(&s->handlers);
    s->gsi = gsi, s->vector = (unsigned)v, s->level = level;
    ioapic_route(gsi, s->vector, percpu_of(s->cpu)->apic_id, active_low, level);
    list_append(&sources, &s->node);
    return s;
}

struct irq_handle *irq_request(enum irq_line kind, unsigned number, irq_fn *fn, void *arg, const char *name)
{
    struct acpi_line line = { .gsi = number, .active_low = true, .level = true };
    if (kind == IRQ_ISA && number < ISA_IRQS)
        line = acpi.isa[number];
    struct irq_handle *h = kzalloc(sizeof(*h));
    if (!h)
        return NULL;
    mutex_lock(&source_mutex);
    struct irq_source *s = find_source(line.gsi);
    bool fresh = !s;
    if (!s)
        s = new_source(line.gsi, line.active_low, line.level);
    if (s) {
        *h = (struct irq_handle){ .src = s, .fn = fn, .arg = arg, .name = name };
        unsigned long f = spin_lock_irqsave(&s->lock);
        list_append(&s->handlers, &h->node);
        spin_unlock_irqrestore(&s->lock, f);
        if (fresh)
            ioapic_mask(s->gsi, false);
    }
    mutex_unlock(&source_mutex);
    if (!s)
        kfree(h);
    return s ? h : NULL;
}

void irq_release(struct irq_handle *h)
{
    struct irq_source *s = h->src;
    mutex_lock(&source_mutex);
    unsigned long f = spin_lock_irqsave(&s->lock);
    list_del(&h->node);
    bool last = list_empty(&s->handlers);
    spin_unlock_irqrestore(&s->lock, f);
    if (last) {
        ioapic_mask(s->gsi, true);
        list_del(&s->node);
        irq_vector_free(s->cpu, s->vector);
        kfree(s);
    }
    mutex_unlock(&source_mutex);
    kfree(h);
}

static void change_mask(struct irq_source *s, int by)
{
    unsigned long f = spin_lock_irqsave(&mask_lock);
    uint32_t before = s->masked;
    s->masked += (uint32_t)by;
    if (!before != !s->masked && !s->dead)
        ioapic_mask(s->gsi, s->masked);
    spin_unlock_irqrestore(&mask_lock, f);
}

void irq_mask(struct irq_handle *h) { change_mask(h->src, 1); }
void irq_unmask(struct irq_handle *h) { change_mask(h->src, -1); }
uint64_t irq_count(const struct irq_handle *h) { return h->count; }

void irq_each(void (*fn)(void *arg, unsigned cpu, unsigned vector, const char *name, uint64_t count), void *arg)
{
    for (unsigned c = 0; c < percpu_count; c++) {
        struct percpu *p = percpu_of(c);
        fn(arg, c, VEC_TIMER, "timer", p->timer_irqs);
        fn(arg, c, VEC_CALL, "ipi", p->ipis);
        spin_lock(&vector_lock);
        for (unsigned v = VEC_DEVICE_FIRST; v <= VEC_DEVICE_LAST; v++)
            if (p->vectors[v])
                fn(arg, c, v, p->vectors[v]->name, p->vectors[v]->count);
        spin_unlock(&vector_lock);
    }
}

void irq_init(void) { mutex_init(&source_mutex); }

/* ---- Dispatch ---- */
static void device_irq(struct percpu *p, unsigned vector)
{
    struct irq_desc *d = atomic_load(&p->vectors[vector]);
    if (d) {
        d->count++;
        d->fn(d->arg);
    } else {
        p->spurious++;
        log_limited(&spurious_limit, LOG_WARN, "irq", "vector %#x on CPU %u belongs to nobody", vector, (unsigned)p->cpu);
    }
    lapic_eoi();        /* after the handler: a level line has been silenced or masked by now */
}

void irq_dispatch_vector(uint8_t vector)
{
    struct percpu *p = this_cpu();
    p->irqs++;
    preempt_count_add(PREEMPT_IRQ);
    switch (vector) {
    case VEC_TIMER:
        lapic_eoi();
        p->timer_irqs++;
        watchdog_touch();
        clockevent_interrupt();
        break;
    case VEC_RESCHED:
    case VEC_KICK:              /* the exit from the guest or from HLT was the purpose */
        lapic_eoi();
        p->ipis++;
        watchdog_touch();
        break;
    case VEC_CALL:
        lapic_eoi();
        p->ipis++;
        smp_call_interrupt();
        break;
    case VEC_APIC_ERROR:
        log_limited(&spurious_limit, LOG_WARN, "apic", "error %#x on CPU %u", (unsigned)lapic_error(), (unsigned)p->cpu);
        lapic_eoi();
        break;
    case VEC_SPURIOUS:          /* no EOI: SDM vol. 3 "Spurious Interrupt" */
        p->spurious++;
        break;
    default:
        if (vector < VEC_DEVICE_FIRST)
            p->spurious++;      /* a masked PIC can still say IRQ 7 or 15; the local APIC does not know of it */
        else
            device_irq(p, vector);
    }
    preempt_count_sub(PREEMPT_IRQ);
}

void irq_dispatch(struct trap_frame *f)
{
    irq_dispatch_vector((uint8_t)f->vector);
    if (preempt_count() == 0 && cpu_softwork())
        sched_irq_exit();
}
