/*
 * The LAPIC timer.  Lock-free: `deadline` is the one word that both sides change.  The vCPU stores a new one and arms the vtimer; the expiry moves it on by
 * compare-and-swap, and only who succeeds delivers.  SDM vol. 3 "APIC Timer".
 */
#include "guestdev/lapic_priv.h"

/* Bits 3, 1, 0 of the divide register: 0 = by 2, … 6 = by 128, 7 = by 1. */
static unsigned divide_shift(uint32_t dcr) { return (((dcr & 3) | (dcr >> 1 & 4)) + 1) & 7; }
static uint64_t ticks_to_ns(struct lapic *l, uint32_t ticks) { return (uint64_t)ticks << divide_shift(reg_get(l, LAPIC_TIMER_DIVIDE)); }
static uint32_t timer_mode(const struct lapic *l) { return reg_get(l, LAPIC_LVT_TIMER) & LVT_TIMER_MODE; }

/* Arm for the deadline as it is; once more if the other side moved it meanwhile and our arming overwrote that one. */
static void arm(struct lapic *l)
{
    uint64_t d;
    do {
        d = atomic_load(&l->deadline);
        if (d)
            vtimer_arm(&l->timer, d);
    } while (unlikely(atomic_load(&l->deadline) != d));
}

static void expired(void *arg)
{
    struct lapic *l = arg;
    uint64_t now = READ_ONCE(l->timer.now), d = atomic_load(&l->deadline), next;
    do {
        if (!d || now < d)
            return;             /* stopped, or set anew: whoever did it has armed the vtimer too */
        uint64_t period = atomic_load(&l->period);
        next = 0;
        if (period) {
            uint64_t missed = (now - d) / period;
            next = d + (missed + 1) * period;
            if (next < now + LAPIC_MIN_PERIOD_NS)
                next += (now + LAPIC_MIN_PERIOD_NS - next + period - 1) / period * period;
        }
    } while (!atomic_cas(&l->deadline, &d, next));
    lapic_deliver_lvt(l, LAPIC_LVT_TIMER);
    if (next)
        arm(l);
}

void lapic_timer_init(struct lapic *l) { vtimer_init(&l->timer, l->c.clock, expired, l); }

void lapic_timer_stop(struct lapic *l)
{
    if (atomic_load_relaxed(&l->deadline)) {
        atomic_store(&l->deadline, 0ull);
        vtimer_cancel(&l->timer);
    }
}

static void start(struct lapic *l, uint64_t deadline, uint64_t period)
{
    atomic_store(&l->period, period);
    atomic_xchg(&l->deadline, MAX(deadline, 1ull));
    arm(l);
}

void lapic_timer_set_count(struct lapic *l, uint32_t count)
{
    uint32_t mode = timer_mode(l);
    if (mode == LVT_TIMER_DEADLINE)
        return;
    reg_set(l, LAPIC_TIMER_INIT, count);
    if (!count) {
        lapic_timer_stop(l);
        return;
    }
    uint64_t ns = ticks_to_ns(l, count);
    start(l, vmclock_now(l->c.clock) + ns, mode == LVT_TIMER_PERIODIC ? ns : 0);
}

uint32_t lapic_timer_left(struct lapic *l)
{
    uint64_t d = atomic_load(&l->deadline), period = l->period, now = vmclock_now(l->c.clock);
    if (!d || timer_mode(l) == LVT_TIMER_DEADLINE)
        return 0;
    uint64_t left;
    if (d > now)
        left = period ? (d - now) % period : d - now;   /* merged ticks: the deadline may be several periods away */
    else
        left = period ? period - (now - d) % period : 0;
    if (period && !left)
        left = period;
    return left >> divide_shift(reg_get(l, LAPIC_TIMER_DIVIDE));
}

/* A running timer goes on from its present count at the new rate. */
void lapic_timer_set_divide(struct lapic *l, uint32_t dcr)
{
    uint32_t left = lapic_timer_left(l);
    bool running = atomic_load(&l->deadline) && timer_mode(l) != LVT_TIMER_DEADLINE;
    reg_set(l, LAPIC_TIMER_DIVIDE, dcr);
    if (running)
        start(l, vmclock_now(l->c.clock) + ticks_to_ns(l, left), l->period ? ticks_to_ns(l, reg_get(l, LAPIC_TIMER_INIT)) : 0);
}

/* Before the LVT register changes.  To or from TSC-deadline mode disarms; between the other two the count goes on. */
void lapic_timer_set_lvt(struct lapic *l, uint32_t lvt)
{
    uint32_t old = timer_mode(l), mode = lvt & LVT_TIMER_MODE;
    if (mode == old)
        return;
    if (mode == LVT_TIMER_DEADLINE || old == LVT_TIMER_DEADLINE) {
        lapic_timer_stop(l);
        reg_set(l, LAPIC_TIMER_INIT, 0);
    }
    atomic_store(&l->period, mode == LVT_TIMER_PERIODIC ? ticks_to_ns(l, reg_get(l, LAPIC_TIMER_INIT)) : 0);
}

void lapic_timer_set_tsc(struct lapic *l, uint64_t tsc)
{
    const struct vcpu_wires *w = &l->c.wires;
    if (timer_mode(l) != LVT_TIMER_DEADLINE)
        return;
    l->tsc_deadline = tsc;
    if (!tsc) {
        lapic_timer_stop(l);
    } else if (tsc <= w->tsc(w->vcpu)) {
        lapic_timer_stop(l);
        lapic_deliver_lvt(l, LAPIC_LVT_TIMER);
    } else {
        start(l, w->tsc_to_ns(w->vcpu, tsc), 0);
    }
}

uint64_t lapic_timer_tsc(struct lapic *l)
{
    return timer_mode(l) == LVT_TIMER_DEADLINE && atomic_load(&l->deadline) ? l->tsc_deadline : 0;
}

void lapic_timer_loaded(struct lapic *l)
{
    if (timer_mode(l) != LVT_TIMER_PERIODIC)
        l->period = 0;
    else if (l->deadline)
        l->period = ticks_to_ns(l, reg_get(l, LAPIC_TIMER_INIT));
    arm(l);
}
