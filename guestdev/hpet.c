#include "guestdev/hpet.h"
#include "kernel/hw/hpet.h"
#include "kernel/lib/port.h"

#include <errno.h>

enum { TICK_FS = HPET_TICK_NS * 1000000 };
#define NEVER       UINT64_MAX
#define TN_WRITABLE (HPET_TN_LEVEL | HPET_TN_ENABLE | HPET_TN_PERIODIC | HPET_TN_VAL_SET | HPET_TN_32BIT | HPET_TN_ROUTE)

struct tmr {
    uint64_t config;            /* writable bits only */
    uint64_t cmp;               /* comparator as software sees it */
    uint64_t period;            /* last value written while periodic */
    uint64_t match;             /* counter value of the next match; NEVER */
    struct vtimer timer;
    struct hpet *hpet;
};

struct hpet {
    struct spinlock lock;
    uint64_t config;
    uint32_t status;
    uint64_t base;              /* running: VM time at which the counter was 0 (modulo 2^64) */
    uint64_t stopped;           /* halted: the counter */
    uint32_t isa_in;            /* inputs from PIT and RTC, bit per IRQ */
    struct tmr t[HPET_TIMERS];
    struct vmclock *clock;
    struct hpet_wires w;
};

static bool running(const struct hpet *h) { return READ_ONCE(h->config) & HPET_CFG_ENABLE; }
static bool legacy(const struct hpet *h) { return h->config & HPET_CFG_LEGACY; }
static bool is_32bit(const struct tmr *t) { return t->config & HPET_TN_32BIT; }

/* Without the lock: a guest that halts the counter while it reads it gets one or the other. */
static uint64_t counter(struct hpet *h)
{
    return running(h) ? (vmclock_now(h->clock) - READ_ONCE(h->base)) / HPET_TICK_NS : READ_ONCE(h->stopped);
}

/* ---- Interrupts ---- */

static const struct irqline *isa_wire(const struct hpet *h, unsigned n)
{
    if (!legacy(h) || n > 1)
        return NULL;
    return n == 0 ? &h->w.irq0 : &h->w.irq8;
}

static void drive(struct hpet *h, unsigned n, bool level)
{
    const struct irqline *isa = isa_wire(h, n);
    unsigned gsi = (h->t[n].config & HPET_TN_ROUTE) >> HPET_TN_ROUTE_SHIFT;
    if (isa)
        irqline_set(isa, level);
    else if (h->w.routes >> gsi & 1 && h->w.gsi.set)
        h->w.gsi.set(h->w.gsi.arg, gsi, level);
}

static bool level_out(const struct hpet *h, unsigned n)
{
    return (h->t[n].config & (HPET_TN_LEVEL | HPET_TN_ENABLE)) == (HPET_TN_LEVEL | HPET_TN_ENABLE) && running(h) && (h->status & BIT(n));
}

static void fire(struct hpet *h, unsigned n)
{
    struct tmr *t = &h->t[n];
    if (t->config & HPET_TN_LEVEL)
        h->status |= BIT(n);
    if (!(t->config & HPET_TN_ENABLE))
        return;
    if (t->config & HPET_TN_LEVEL) {
        drive(h, n, true);
    } else {
        drive(h, n, true);
        drive(h, n, false);
    }
}

void hpet_isa_in(void *hpet, unsigned irq, bool level)
{
    struct hpet *h = hpet;
    spin_lock(&h->lock);
    h->isa_in = (h->isa_in & ~BIT(irq & 31)) | (uint32_t)level << (irq & 31);
    if (!legacy(h))
        irqline_set(irq ? &h->w.irq8 : &h->w.irq0, level);
    spin_unlock(&h->lock);
}

/* ---- Matches ---- */

/* From the comparator: the next counter value that it matches.  A value up to half the range behind counts as just missed. */
static void set_match(struct tmr *t, uint64_t now)
{
    if (is_32bit(t)) {
        int32_t left = (uint32_t)t->cmp - (uint32_t)now;
        t->match = now + (left > 0 ? left : 1);
    } else {
        t->match = (int64_t)(t->cmp - now) > 0 ? t->cmp : now + 1;
    }
}

/* Past matches up to `now` are taken; true if there was one. */
static bool advance(struct tmr *t, uint64_t now)
{
    if (t->match == NEVER || (int64_t)(now - t->match) < 0)
        return false;
    if ((t->config & HPET_TN_PERIODIC) && t->period) {
        uint64_t n = (now - t->match) / t->period + 1;
        t->match += n * t->period;
        t->cmp += n * t->period;
        if (is_32bit(t))
            t->cmp = (uint32_t)t->cmp;
    } else {
        t->match = is_32bit(t) ? t->match + ((now - t->match) >> 32 << 32) + (1ull << 32) : NEVER;
    }
    return true;
}

static void arm(struct tmr *t)
{
    struct hpet *h = t->hpet;
    if (!running(h) || !(t->config & HPET_TN_ENABLE) || t->match == NEVER) {
        vtimer_cancel(&t->timer);
        return;
    }
    uint64_t now = vmclock_now(h->clock), at = h->base + t->match * HPET_TICK_NS;
    uint64_t earliest = t->config & HPET_TN_PERIODIC ? now + HPET_MIN_PERIOD_NS : now;
    if ((int64_t)(at - earliest) < 0)
        at = earliest;
    if ((int64_t)(t->match - counter(h)) < (int64_t)(NEVER / HPET_TICK_NS / 2))        /* behind us: at once; beyond a century: never */
        vtimer_arm(&t->timer, at);
    else
        vtimer_cancel(&t->timer);
}

static void expired(void *arg)
{
    struct tmr *t = arg;
    struct hpet *h = t->hpet;
    spin_lock(&h->lock);
    if (running(h) && advance(t, counter(h)))
        fire(h, t - h->t);
    if (!t->timer.armed)
        arm(t);
    spin_unlock(&h->lock);
}

/* Matches of a timer whose interrupt is off are taken when somebody looks. */
static void catch_up(struct hpet *h, unsigned n)
{
    if (running(h) && !(h->t[n].config & HPET_TN_ENABLE) && advance(&h->t[n], counter(h)))
        fire(h, n);
}

/* ---- Registers ---- */

static uint64_t read_timer(struct hpet *h, unsigned off)
{
    unsigned n = (off - HPET_TIMER(0)) / 0x20;
    if (n >= HPET_TIMERS)
        return 0;
    catch_up(h, n);
    switch (off & 0x1f) {
    case 0:
        return h->t[n].config | HPET_TN_PERIODIC_CAP | HPET_TN_64BIT_CAP | (uint64_t)h->w.routes << HPET_TN_ROUTE_CAP_SHIFT;
    case 8:
        return h->t[n].cmp;
    default:
        return 0;
    }
}

static uint64_t read_reg(struct hpet *h, unsigned off)
{
    switch (off) {
    case HPET_ID:
        return (uint64_t)TICK_FS << 32 | HPET_BLOCK_ID_VALUE;
    case HPET_CONFIG:
        return h->config;
    case HPET_STATUS:
        for (unsigned n = 0; n < HPET_TIMERS; n++)
            catch_up(h, n);
        return h->status;
    case HPET_COUNTER:
        return counter(h);
    default:
        return off >= HPET_TIMER(0) ? read_timer(h, off) : 0;
    }
}

/* The wires a change of routing leaves go low, those it reaches follow the state. */
static void levels_off(struct hpet *h)
{
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        if (level_out(h, n))
            drive(h, n, false);
}

static void levels_on(struct hpet *h)
{
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        if (level_out(h, n))
            drive(h, n, true);
}

static void write_config(struct hpet *h, uint64_t val)
{
    uint64_t now = counter(h), changed = (h->config ^ val) & (HPET_CFG_ENABLE | HPET_CFG_LEGACY);
    levels_off(h);
    if (changed & HPET_CFG_ENABLE) {
        WRITE_ONCE(h->stopped, now);
        WRITE_ONCE(h->base, vmclock_now(h->clock) - now * HPET_TICK_NS);
    }
    WRITE_ONCE(h->config, h->config ^ changed);
    if (changed & HPET_CFG_LEGACY) {
        irqline_set(&h->w.irq0, !legacy(h) && (h->isa_in & BIT(0)));
        irqline_set(&h->w.irq8, !legacy(h) && (h->isa_in & BIT(8)));
    }
    levels_on(h);
    if (changed & HPET_CFG_ENABLE)
        for (unsigned n = 0; n < HPET_TIMERS; n++)
            arm(&h->t[n]);
}

static void write_counter(struct hpet *h, uint64_t val)
{
    if (running(h))
        return;                 /* "undefined": here without effect */
    WRITE_ONCE(h->stopped, val);
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        set_match(&h->t[n], val);
}

static void write_tn_config(struct hpet *h, struct tmr *t, uint64_t val)
{
    unsigned gsi = (val & HPET_TN_ROUTE) >> HPET_TN_ROUTE_SHIFT;
    levels_off(h);
    val &= TN_WRITABLE;
    if (!(h->w.routes >> gsi & 1))
        val = (val & ~HPET_TN_ROUTE) | (t->config & HPET_TN_ROUTE);
    bool resized = (val ^ t->config) & HPET_TN_32BIT;
    t->config = val;
    if (is_32bit(t)) {
        t->cmp = (uint32_t)t->cmp;
        t->period = (uint32_t)t->period;
    }
    if (resized)
        set_match(t, counter(h));
    levels_on(h);
    arm(t);
}

/* HPET 1.0a, "Timer N Comparator Value Register": a periodic timer takes the value as its period, and as the comparator too if VAL_SET was written before. */
static void write_cmp(struct hpet *h, struct tmr *t, uint64_t val)
{
    bool periodic = t->config & HPET_TN_PERIODIC;
    if (is_32bit(t))
        val = (uint32_t)val;
    if (periodic)
        t->period = val;
    if (!periodic || (t->config & HPET_TN_VAL_SET))
        t->cmp = val;
    t->config &= ~HPET_TN_VAL_SET;
    set_match(t, counter(h));
    arm(t);
}

static void write_reg(struct hpet *h, unsigned off, uint64_t val)
{
    unsigned n = (off - HPET_TIMER(0)) / 0x20;
    if (off == HPET_CONFIG) {
        write_config(h, val);
    } else if (off == HPET_STATUS) {
        levels_off(h);
        h->status &= ~val;
        levels_on(h);
    } else if (off == HPET_COUNTER) {
        write_counter(h, val);
    } else if (off >= HPET_TIMER(0) && n < HPET_TIMERS) {
        catch_up(h, n);
        if ((off & 0x1f) == 0)
            write_tn_config(h, &h->t[n], val);
        else if ((off & 0x1f) == 8)
            write_cmp(h, &h->t[n], val);
    }
}

/* A 32-bit write keeps the other half of its register; a status write must not clear what the guest did not name. */
static uint64_t merged(struct hpet *h, unsigned reg, const struct io *io)
{
    unsigned shift = (io->off & 4) * 8;
    uint64_t mask = (io->size == 8 ? ~0ull : 0xffffffffull) << shift;
    uint64_t old = reg == HPET_STATUS ? 0 : read_reg(h, reg);
    return (old & ~mask) | (io->data << shift & mask);
}

int hpet_io(void *hpet, struct io *io)
{
    struct hpet *h = hpet;
    unsigned reg = io->off & ~7u;
    if (!io->write && reg == HPET_COUNTER) {
        io->data = counter(h) >> (io->off & 7) * 8;
        return 0;
    }
    if (io->write && (io->size < 4 || (io->off & 3)))
        return 0;               /* HPET 1.0a, 2.3: registers are written by aligned 32- or 64-bit accesses */
    spin_lock(&h->lock);
    if (io->write)
        write_reg(h, reg, merged(h, reg, io));
    else
        io->data = read_reg(h, reg) >> (io->off & 7) * 8;
    spin_unlock(&h->lock);
    return 0;
}

/* ---- Life cycle ---- */

static void hpet_reset(void *dev, enum gdev_reset how)
{
    struct hpet *h = dev;
    spin_lock(&h->lock);
    write_config(h, 0);
    h->stopped = 0;
    h->status = 0;
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        struct tmr *t = &h->t[n];
        vtimer_cancel(&t->timer);
        t->config = h->w.routes ? (uint64_t)__builtin_ctz(h->w.routes) << HPET_TN_ROUTE_SHIFT : 0;
        t->cmp = t->match = NEVER;
        t->period = 0;
    }
    spin_unlock(&h->lock);
}

static int tmr_snap(struct tmr *t, struct snap *s)
{
    snap_begin(s, "hpet timer", 1);
    SNAP(s, t->config);
    SNAP(s, t->cmp);
    SNAP(s, t->period);
    SNAP(s, t->match);
    if (snap_loading(s))
        t->config &= TN_WRITABLE;
    return snap_end(s);
}

static int hpet_snap(void *dev, struct snap *s)
{
    struct hpet *h = dev;
    int err = 0;
    spin_lock(&h->lock);
    for (unsigned n = 0; n < HPET_TIMERS && !err; n++)
        err = tmr_snap(&h->t[n], s);
    snap_begin(s, "hpet", 1);
    SNAP(s, h->config);
    SNAP(s, h->status);
    SNAP(s, h->base);
    SNAP(s, h->stopped);
    SNAP(s, h->isa_in);
    err = snap_end(s);
    if (snap_loading(s)) {
        h->config &= HPET_CFG_ENABLE | HPET_CFG_LEGACY;
        h->status &= BITS(HPET_TIMERS - 1, 0);
        for (unsigned n = 0; n < HPET_TIMERS; n++)
            arm(&h->t[n]);
    }
    spin_unlock(&h->lock);
    return err;
}

static void hpet_destroy(void *dev)
{
    struct hpet *h = dev;
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        vtimer_destroy(&h->t[n].timer);
    kfree(h);
}

const struct gdev_ops hpet_ops = { .name = "hpet", .reset = hpet_reset, .snap = hpet_snap, .destroy = hpet_destroy };

struct hpet *hpet_create(struct vmclock *clock, const struct hpet_wires *w)
{
    struct hpet *h = kzalloc(sizeof *h);
    if (!h)
        return NULL;
    h->clock = clock;
    h->w = *w;
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        h->t[n].hpet = h;
        vtimer_init(&h->t[n].timer, clock, expired, &h->t[n]);
    }
    hpet_reset(h, GDEV_POWER_ON);
    return h;
}
