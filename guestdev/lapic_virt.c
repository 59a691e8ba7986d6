/*
 * A local APIC whose page the CPU works on: APIC-register virtualization and virtual-interrupt delivery.  SDM vol. 3 "APIC Virtualization and Virtual Interrupts".
 *
 * While the guest runs, the CPU moves bits from IRR to ISR and out of ISR, keeps PPR, and stores what the guest writes; it does not do so atomically.  So others
 * leave their requests in `posted` and kick the vCPU out of the guest, and the vCPU's thread moves them into IRR.  The page is the truth at all times; nothing is
 * cached of IRR and ISR.  Everything here runs on the vCPU's own thread, outside the guest.
 */
#include "guestdev/lapic_priv.h"

/* Of the vectors from 32 * `from` on. */
static inline uint8_t highest_from(const struct lapic *l, unsigned row, unsigned from)
{
#pragma GCC unroll 8
    for (unsigned w = 8; w-- > from; ) {
        uint32_t bits = reg_get(l, row + 16 * w);
        if (bits)
            return (uint8_t)(32 * w + 31 - __builtin_clz(bits));
    }
    return 0;
}
static uint8_t highest(const struct lapic *l, unsigned row) { return highest_from(l, row, 0); }

uint8_t lapic_virt_isrv(const struct lapic *l) { return highest(l, LAPIC_ISR); }

/* Whoever posts sets the bit before the summary, and we clear the summary before we take the bits. */
void lapic_virt_merge(struct lapic *l)
{
    if (!atomic_load(&l->irr_words))
        return;
    for (uint32_t words = atomic_xchg(&l->irr_words, 0u); words; words &= words - 1) {
        unsigned w = (unsigned)__builtin_ctz(words);
        reg_set(l, LAPIC_IRR + 16 * w, reg_get(l, LAPIC_IRR + 16 * w) | atomic_xchg(&l->posted[4 * w], 0u));
    }
}

int lapic_virt_pending(void *apic)
{
    struct lapic *l = apic;
    uint32_t ext = atomic_load(&l->ext);
    lapic_virt_merge(l);
    int v = ext ? lapic_pending_extint(l, ext) : IRQ_NONE;
    if (v != IRQ_NONE)
        return v;
    v = highest(l, LAPIC_IRR);
    return IRQ_VIRT | (v && v >> 4 > highest_from(l, LAPIC_ISR, (unsigned)v >> 5) >> 4 ? v : 0);
}

/* Kept beside the page, because the guest's write has replaced them by the time we hear of it. */
static void remember(struct lapic *l)
{
    l->was.lvt_timer = reg_get(l, LAPIC_LVT_TIMER), l->was.divide = reg_get(l, LAPIC_TIMER_DIVIDE), l->was.init = reg_get(l, LAPIC_TIMER_INIT);
}

void lapic_virt(void *apic, struct apic_virt *a)
{
    struct lapic *l = apic;
    remember(l);
    lapic_virt_merge(l);
    *a = (struct apic_virt){ .xapic = lapic_hw_enabled(l) && !x2apic_mode(l), .x2apic = x2apic_mode(l),
                             .rvi = highest(l, LAPIC_IRR), .svi = highest(l, LAPIC_ISR) };
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; i++)
        a->eoi_exit[i] = (uint64_t)reg_get(l, LAPIC_TMR + 32 * i + 16) << 32 | reg_get(l, LAPIC_TMR + 32 * i);
}

/* The model's own EOI: an access that the CPU could not carry out. */
void lapic_virt_eoi(struct lapic *l)
{
    uint8_t vector = highest(l, LAPIC_ISR);
    unsigned w = vector >> 5;
    uint32_t bit = BIT(vector & 31);
    if (!vector)
        return;
    reg_set(l, LAPIC_ISR + 16 * w, reg_get(l, LAPIC_ISR + 16 * w) & ~bit);
    if (reg_get(l, LAPIC_TMR + 16 * w) & bit)
        lapic_eoi_level(l, vector);
    l->c.wires.irq(l->c.wires.vcpu);            /* the CPU must hear that its highest vector in service is another one */
}

void lapic_eoi_done(void *apic, uint8_t vector)
{
    struct lapic *l = apic;
    if (reg_get(l, LAPIC_TMR + 16 * (vector >> 5)) & BIT(vector & 31))
        lapic_eoi_level(l, vector);
    l->c.wires.irq(l->c.wires.vcpu);
}

/* A level-triggered vector between its acceptance and its EOI.  LINT0's remote IRR says this of its own; the guest may have written over that bit. */
static bool in_flight(const struct lapic *l, uint8_t vector)
{
    unsigned at = 16u * (vector >> 5);
    return (reg_get(l, LAPIC_ISR + at) | reg_get(l, LAPIC_IRR + at)) & reg_get(l, LAPIC_TMR + at) & BIT(vector & 31);
}

void lapic_wrote(void *apic, uint32_t off)
{
    struct lapic *l = apic;
    uint32_t val = reg_get(l, off);
    switch (off) {
    case LAPIC_SELF_IPI:
        if (x2apic_mode(l))
            lapic_self_ipi(l, val);
        return;
    case LAPIC_ID:
        lapic_set_derived_ids(l);               /* read-only, as in newer CPUs */
        return;
    case LAPIC_LVT_TIMER:
        reg_set(l, off, l->was.lvt_timer);
        break;
    case LAPIC_TIMER_DIVIDE:
        reg_set(l, off, l->was.divide);
        break;
    case LAPIC_TIMER_INIT:
        reg_set(l, off, l->was.init);
        break;
    case LAPIC_LVT_THERMAL ... LAPIC_LVT_ERROR:
        reg_set(l, off, off == LAPIC_LVT_LINT0 && in_flight(l, val & LVT_VECTOR) ? (uint32_t)LVT_REMOTE_IRR : 0);
        break;
    }
    struct io io = { .off = off, .size = 4, .write = true, .data = val };
    lapic_virt_io(l, &io);
}

int lapic_virt_io(void *lapic, struct io *io)
{
    int err = lapic_io(lapic, io);
    remember(lapic);
    return err;
}
