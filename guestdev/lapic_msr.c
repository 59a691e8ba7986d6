/* x2APIC registers as MSRs, IA32_APIC_BASE and IA32_TSC_DEADLINE.  SDM vol. 3 "Extended XAPIC (x2APIC)", "x2APIC State Transitions". */
#include "guestdev/lapic_priv.h"

/* By offset / 16: what exists in x2APIC mode.  ID, VERSION, LDR, PPR, ISR, TMR, IRR and the current count are read-only, EOI and SELF_IPI write-only. */
#define R(off) BIT((off) >> 4)
#define READ_WRITE (R(LAPIC_TPR) | R(LAPIC_SVR) | R(LAPIC_ESR) | R(LAPIC_ICR) | R(LAPIC_LVT_TIMER) | R(LAPIC_LVT_THERMAL) | R(LAPIC_LVT_PERF) | \
                    R(LAPIC_LVT_LINT0) | R(LAPIC_LVT_LINT1) | R(LAPIC_LVT_ERROR) | R(LAPIC_TIMER_INIT) | R(LAPIC_TIMER_DIVIDE))
#define READ_ONLY (R(LAPIC_ID) | R(LAPIC_VERSION) | R(LAPIC_LDR) | R(LAPIC_PPR) | R(LAPIC_TIMER_CURRENT) | BITS(7, 0) << (LAPIC_ISR >> 4) | \
                   BITS(7, 0) << (LAPIC_TMR >> 4) | BITS(7, 0) << (LAPIC_IRR >> 4))
#define WRITE_ONLY (R(LAPIC_EOI) | R(LAPIC_SELF_IPI))

/* Bits that must be zero, per register; ICR's destination half is free. */
static uint64_t reserved_bits(struct lapic *l, unsigned off)
{
    switch (off) {
    case LAPIC_EOI:
    case LAPIC_ESR:
        return ~0ull;
    case LAPIC_TPR:
    case LAPIC_SELF_IPI:
        return ~0xffull;
    case LAPIC_SVR:
        return ~(LAPIC_SVR_ENABLE | LAPIC_SVR_FOCUS_OFF | 0xffull);
    case LAPIC_ICR:
        return BITS(31, 20) | BITS(17, 16) | BIT(13);
    case LAPIC_LVT_TIMER:
        return ~(LVT_VECTOR | LVT_PENDING | LVT_MASKED | LVT_TIMER_MODE);
    case LAPIC_LVT_ERROR:
        return ~(LVT_VECTOR | LVT_PENDING | LVT_MASKED);
    case LAPIC_LVT_THERMAL:
    case LAPIC_LVT_PERF:
        return ~(LVT_VECTOR | LVT_DELIVERY | LVT_PENDING | LVT_MASKED);
    case LAPIC_LVT_LINT0:
    case LAPIC_LVT_LINT1:
        return ~(LVT_VECTOR | LVT_DELIVERY | LVT_PENDING | LVT_ACTIVE_LOW | LVT_REMOTE_IRR | LVT_LEVEL | LVT_MASKED);
    case LAPIC_TIMER_DIVIDE:
        return ~0xbull;
    default:
        return BITS(63, 32);
    }
}

static void write_icr64(struct lapic *l, uint64_t val)
{
    unsigned delivery = val & APIC_DELIVERY;
    uint32_t icr = val & ~ICR_BUSY;
    reg_set(l, LAPIC_ICR, icr);
    reg_set(l, LAPIC_ICR + 4, val >> 32);
    if ((delivery == APIC_FIXED || delivery == APIC_LOWEST) && (icr & 0xff) < 16)
        lapic_raise_error(l, LAPIC_ESR_SEND_ILLEGAL);
    else
        apic_send_ipi(l->fabric, l, icr, val >> 32, true);
}

void lapic_self_ipi(struct lapic *l, uint32_t vector)
{
    if (vector < 16)
        lapic_raise_error(l, LAPIC_ESR_SEND_ILLEGAL);
    else
        lapic_deliver(l, APIC_FIXED, (uint8_t)vector, false);
}

static bool x2apic_read(struct lapic *l, unsigned reg, uint64_t *val)
{
    if (reg > 0x3f || !((READ_WRITE | READ_ONLY) & BIT(reg)))
        return false;
    *val = lapic_read(l, reg << 4);
    if (reg == LAPIC_ICR >> 4)
        *val |= (uint64_t)reg_get(l, LAPIC_ICR + 4) << 32;
    return true;
}

static bool x2apic_write(struct lapic *l, unsigned reg, uint64_t val)
{
    if (reg > 0x3f || !((READ_WRITE | WRITE_ONLY) & BIT(reg)) || (val & reserved_bits(l, reg << 4)))
        return false;
    if (reg == LAPIC_ICR >> 4)
        write_icr64(l, val);
    else if (reg == LAPIC_SELF_IPI >> 4)
        lapic_self_ipi(l, (uint32_t)val);
    else
        lapic_write(l, reg << 4, val);
    return true;
}

/* Disabled ↔ xAPIC → x2APIC → disabled; every other change of the two mode bits is #GP. */
static bool write_base(struct lapic *l, uint64_t val)
{
    uint64_t mode_bits = APIC_BASE_ENABLE | APIC_BASE_X2APIC, old = l->base & mode_bits, mode = val & mode_bits;
    uint64_t allowed = BITS(l->c.phys_bits - 1, 12) | APIC_BASE_BSP | APIC_BASE_ENABLE | (l->c.x2apic ? APIC_BASE_X2APIC : 0);
    if (val & ~allowed || mode == APIC_BASE_X2APIC)
        return false;
    if ((old == mode_bits && mode == APIC_BASE_ENABLE) || (old == 0 && mode == mode_bits))
        return false;
    uint64_t changed = l->base ^ val;
    atomic_store_relaxed(&l->base, val);
    if (mode != old) {
        if (!mode) {
            lapic_reset_registers(l);
        } else if (mode == mode_bits) {
            reg_set(l, LAPIC_ICR_HI, 0);
            reg_set(l, LAPIC_ICR + 4, 0);
        }
        lapic_set_derived_ids(l);
        l->c.wires.irq(l->c.wires.vcpu);
    }
    if ((changed & (mode_bits | BITS(51, 12))) && l->c.moved)
        l->c.moved(l->c.moved_arg, l->c.apic_id, mode == APIC_BASE_ENABLE ? val & APIC_BASE_ADDR : 0);
    return true;
}

bool lapic_msr_read(void *apic, uint32_t msr, uint64_t *val)
{
    struct lapic *l = apic;
    if (msr - MSR_X2APIC < 0x100)
        return x2apic_mode(l) && x2apic_read(l, msr - MSR_X2APIC, val);
    if (msr == MSR_APIC_BASE)
        *val = l->base;
    else if (msr == MSR_TSC_DEADLINE && l->c.tsc_deadline)
        *val = lapic_timer_tsc(l);
    else
        return false;
    return true;
}

bool lapic_msr_write(void *apic, uint32_t msr, uint64_t val)
{
    struct lapic *l = apic;
    if (msr - MSR_X2APIC < 0x100)
        return x2apic_mode(l) && x2apic_write(l, msr - MSR_X2APIC, val);
    if (msr == MSR_APIC_BASE)
        return write_base(l, val);
    if (msr != MSR_TSC_DEADLINE || !l->c.tsc_deadline)
        return false;
    lapic_timer_set_tsc(l, val);
    return true;
}
