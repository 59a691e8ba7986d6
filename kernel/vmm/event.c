/* What a vCPU is to take at its next entry: exceptions, NMI, interrupts, in the architecture's order. */
#include "kernel/hw/x86.h"
#include "kernel/vmm/vcpu.h"

enum { APIC_TPR = 0x80 };

static bool irq_above_tpr(const struct vcpu *v, int irq)
{
    return (irq & IRQ_EXTINT) || (irq & 0xf0) > (v->irqchip.page[APIC_TPR] & 0xf0);
}

static void offer_irq(struct vcpu *v)
{
    int irq = v->has_irqchip ? v->irqchip.pending(v->irqchip.apic) : IRQ_NONE;
    if (irq == IRQ_NONE && v->irq_offered == IRQ_NONE)
        return;
    struct event_info ev = { .type = EVENT_INTR, .valid = irq != IRQ_NONE, .vector = (uint8_t)irq };
    v->irq_offered = irq;
    atomic_store_relaxed(v->irqchip.offered, (uint32_t)irq);    /* may_enter() has the barrier */
    hv->inject(v, &ev);
}

static void deliver_nmi(struct vcpu *v)
{
    static const struct event_info nmi = { .type = EVENT_NMI, .vector = 2, .valid = true };
    if (!hv->can_inject(v, EVENT_NMI))
        return;
    atomic_sub(&v->nmi_pending, 1);
    hv->inject(v, &nmi);
    v->stats.nmis++;
}

/*
 * One event goes by event injection; a pending interrupt is only offered, the CPU takes it when IF, shadow and TPR allow.  What does not fit now opens a
 * window, whose exit brings us back here.
 */
void vcpu_events(struct vcpu *v)
{
    if (v->exc.valid) {                 /* raised while another event was being delivered: that one starts anew, or is lost as on the CPU */
        hv->inject(v, &v->exc);
        v->exc.valid = v->reinject.valid = false;
        v->stats.exceptions++;
    } else if (v->reinject.valid) {
        hv->inject(v, &v->reinject);
        v->reinject.valid = false;
    } else if (atomic_load(&v->nmi_pending)) {
        deliver_nmi(v);
    }
    hv->want_window(v, atomic_load(&v->nmi_pending) ? WINDOW_NMI : WINDOW_NONE);
    offer_irq(v);
}

bool vcpu_wakes(struct vcpu *v)
{
    if (v->exc.valid || v->reinject.valid)
        return true;
    if (atomic_load(&v->nmi_pending) && hv->can_inject(v, EVENT_NMI))
        return true;
    if (!v->has_irqchip || !(v->rflags & RFLAGS_IF))
        return false;
    int irq = v->irqchip.pending(v->irqchip.apic);
    return irq != IRQ_NONE && irq_above_tpr(v, irq);
}
