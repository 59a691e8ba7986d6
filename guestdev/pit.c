#include "guestdev/pit.h"
#include "guestdev/port8.h"
#include "kernel/hw/i8254.h"
#include "kernel/lib/port.h"

#include <errno.h>

enum { NS_PER_S = 1000000000, REFRESH_TICKS = 18 };

/*
 * Time is in ticks of the 1.193182 MHz clock since VM time 0.  A counter that is `running` was loaded at tick `start` with `count`; what it shows and its
 * OUT follow from the tick now.  Otherwise it stands at `frozen` elapsed ticks (gate low, or waiting for its first count or trigger).
 */
struct counter {
    uint8_t mode, access;
    bool bcd, gate;
    bool running, loaded;       /* loaded: there is a count */
    bool armed;                 /* modes 1, 5: triggered since the count; modes 0, 4: counting began */
    uint32_t count;             /* 1 .. 65536 (BCD: 10000) */
    uint32_t next_count;        /* written while counting in modes 1, 2, 3, 5; taken at the end of the period or by the next trigger; 0 none */
    uint64_t start;
    uint64_t frozen;
    uint8_t write_lsb;          /* first byte of a two-byte write */
    bool write_second, read_second;
    bool count_latched, status_latched;
    uint16_t latch;
    uint8_t status;
};

struct pit {
    struct spinlock lock;
    struct counter c[3];
    uint8_t portb;
    struct vmclock *clock;
    struct vtimer timer;
    struct irqline irq0;
    bool irq_level;
};

/* Exact both ways: floor, and the first nanosecond at which that many ticks have passed.  No 128-bit arithmetic, no rounding that adds up. */
static uint64_t ns_to_ticks(uint64_t ns) { return ns / NS_PER_S * I8254_HZ + ns % NS_PER_S * I8254_HZ / NS_PER_S; }
static uint64_t ticks_to_ns(uint64_t t) { return t / I8254_HZ * NS_PER_S + (t % I8254_HZ * NS_PER_S + I8254_HZ - 1) / I8254_HZ; }
static uint64_t now_ticks(struct pit *p) { return ns_to_ticks(vmclock_now(p->clock)); }

static bool periodic(const struct counter *c) { return c->mode == 2 || c->mode == 3; }
static uint32_t full_range(const struct counter *c) { return c->bcd ? 10000 : 65536; }

/* Ticks since the count was loaded; before that (the tick after the write) 0. */
static uint64_t elapsed(const struct counter *c, uint64_t now)
{
    if (!c->running)
        return c->frozen;
    return now > c->start ? now - c->start : 0;
}

static void take_next(struct counter *c)
{
    if (c->next_count)
        c->count = c->next_count;
    c->next_count = 0;
}

/* A count written to a periodic counter begins with the next period. */
static void settle(struct counter *c, uint64_t now)
{
    if (!c->next_count || !periodic(c) || !c->running || elapsed(c, now) < c->count)
        return;
    c->start += c->count;
    take_next(c);
}

static bool out(const struct counter *c, uint64_t now)
{
    uint64_t e = elapsed(c, now);
    if (!c->loaded)
        return c->mode != 0;
    switch (c->mode) {
    case 0:
        return c->armed && e >= c->count;
    case 1:
        return !c->armed || (c->running && now < c->start) || e >= c->count;
    case 2:
        return !c->running || e % c->count != c->count - 1;
    case 3:
        return !c->running || e % c->count < (c->count + 1) / 2;
    default:                    /* 4, 5: one tick low when the count runs out */
        return !c->armed || e != c->count;
    }
}

static uint32_t value(const struct counter *c, uint64_t now)
{
    uint64_t e = elapsed(c, now);
    if (c->mode == 2)
        return c->count - e % c->count;
    if (c->mode == 3) {         /* counts by two, each half from the (even) count */
        uint32_t pos = e % c->count, high = (c->count + 1) / 2;
        return (c->count & ~1u) - 2 * (pos < high ? pos : pos - high);
    }
    uint32_t range = full_range(c);
    return (c->count + range - e % range) % range;
}

static uint16_t to_bcd(uint32_t v) { return v % 10 | v / 10 % 10 << 4 | v / 100 % 10 << 8 | v / 1000 % 10 << 12; }
static uint32_t from_bcd(uint16_t v) { return (v & 15) + (v >> 4 & 15) * 10 + (v >> 8 & 15) * 100 + (v >> 12) * 1000; }
static uint16_t reading(const struct counter *c, uint64_t now) { return c->bcd ? to_bcd(value(c, now)) : value(c, now); }

/* ---- IRQ 0 ---- */

/* First tick after `now` at which OUT rises; UINT64_MAX: never as things are. */
static uint64_t next_rise(const struct counter *c, uint64_t now)
{
    if (!c->loaded || !c->running)
        return UINT64_MAX;
    uint64_t e = elapsed(c, now), first = c->start + c->count;
    switch (c->mode) {
    case 0:
    case 1:
        return c->armed && e < c->count ? first : UINT64_MAX;
    case 2:
    case 3:
        return c->next_count || now < c->start ? first : c->start + (e / c->count + 1) * c->count;
    default:
        return c->armed && e <= c->count ? first + 1 : UINT64_MAX;
    }
}

static void arm(struct pit *p, uint64_t now)
{
    const struct counter *c = &p->c[0];
    uint64_t t = next_rise(c, now);
    if (t == UINT64_MAX)
        vtimer_cancel(&p->timer);
    else
        vtimer_arm(&p->timer, MAX(ticks_to_ns(t), periodic(c) ? vmclock_now(p->clock) + PIT_MIN_PERIOD_NS : 0));
}

/* The wire shows OUT; between two rises of a periodic counter it is not worth a timer to show the low part, the next rise brings it. */
static void update(struct pit *p, uint64_t now)
{
    struct counter *c = &p->c[0];
    settle(c, now);
    bool level = out(c, now);
    if (level != p->irq_level) {
        p->irq_level = level;
        irqline_set(&p->irq0, level);
    }
    arm(p, now);
}

static void expired(void *arg)
{
    struct pit *p = arg;
    spin_lock(&p->lock);
    uint64_t now = now_ticks(p);
    /* An expiry that lost a race with a write finds its rise not due: update() has armed the right one. */
    if (!p->timer.armed) {
        if (p->irq_level)
            irqline_set(&p->irq0, false);
        p->irq_level = false;
        update(p, now);
    }
    spin_unlock(&p->lock);
}

/* ---- Registers ---- */

static void write_control(struct pit *p, uint8_t val, uint64_t now)
{
    struct counter *c = &p->c[val >> I8254_SEL_SHIFT];
    uint8_t mode = val >> I8254_MODE_SHIFT & 7;
    *c = (struct counter){
        .mode = mode > 5 ? mode - 4 : mode, .access = val >> I8254_RW_SHIFT & 3, .bcd = val & I8254_BCD, .gate = c->gate,
    };
    c->count = full_range(c);
}

static void latch_count(struct counter *c, uint64_t now)
{
    if (c->count_latched)
        return;
    c->latch = reading(c, now);
    c->count_latched = true;
    c->read_second = false;
}

static bool null_count(const struct counter *c, uint64_t now)
{
    return !c->loaded || c->next_count || (c->running ? now < c->start : !c->armed && !periodic(c));
}

static void latch_status(struct counter *c, uint64_t now)
{
    if (c->status_latched)
        return;
    c->status = (out(c, now) ? I8254_STATUS_OUT : 0) | (null_count(c, now) ? I8254_STATUS_NULL : 0) | c->access << I8254_RW_SHIFT |
                c->mode << I8254_MODE_SHIFT | c->bcd;
    c->status_latched = true;
}

static void read_back(struct pit *p, uint8_t val, uint64_t now)
{
    for (unsigned i = 0; i < 3; i++) {
        if (!(val & 2u << i))
            continue;
        if (!(val & I8254_RB_NO_COUNT))
            latch_count(&p->c[i], now);
        if (!(val & I8254_RB_NO_STATUS))
            latch_status(&p->c[i], now);
    }
}

/* 8254 datasheet, "Mode Definitions": a new count is loaded on the clock after the write, in modes 1 and 5 after a trigger. */
static void load(struct counter *c, uint32_t count, uint64_t now)
{
    bool triggered = c->mode == 1 || c->mode == 5;
    c->loaded = true;
    if (c->running && (periodic(c) || triggered)) {
        c->next_count = count;
        return;
    }
    c->count = count;
    if (triggered)
        return;
    c->armed = true;
    c->frozen = 0;
    c->running = c->gate;
    c->start = now + 1;
}

static void write_count(struct counter *c, uint8_t val, uint64_t now)
{
    uint16_t raw;
    switch (c->access) {
    case I8254_RW_LSB:
        raw = val;
        break;
    case I8254_RW_MSB:
        raw = val << 8;
        break;
    default:
        c->write_second = !c->write_second;
        if (c->write_second) {
            c->write_lsb = val;
            if (c->mode == 0) { /* the first byte stops the count and pulls OUT low */
                c->frozen = 0;
                c->running = c->armed = false;
            }
            return;
        }
        raw = val << 8 | c->write_lsb;
    }
    uint32_t count = c->bcd ? from_bcd(raw) : raw;
    if (c->bcd && count > 9999)
        count = 9999;           /* digits above 9 */
    if (periodic(c) && count == 1)
        count = 2;              /* not allowed in modes 2 and 3 */
    load(c, count ? count : full_range(c), now);
}

static void set_gate(struct counter *c, bool gate, uint64_t now)
{
    if (gate == c->gate)
        return;
    c->gate = gate;
    settle(c, now);
    if (!c->loaded)
        return;
    if (c->mode == 1 || c->mode == 5) {
        if (gate) {
            take_next(c);
            c->armed = c->running = true;
            c->start = now + 1;
        }
    } else if (!gate) {
        c->frozen = elapsed(c, now);
        c->running = false;
    } else if (c->armed) {      /* modes 0, 4 go on where they were; 2, 3 start over */
        c->running = true;
        c->start = periodic(c) ? now + 1 : now - c->frozen;
        take_next(c);
    }
}

static uint8_t read_count(struct counter *c, uint64_t now)
{
    if (c->status_latched) {
        c->status_latched = false;
        return c->status;
    }
    uint16_t v = c->count_latched ? c->latch : reading(c, now);
    bool high = c->access == I8254_RW_MSB;
    if (c->access == I8254_RW_BOTH) {
        high = c->read_second;
        c->read_second = !c->read_second;
    }
    if (c->access != I8254_RW_BOTH || high)
        c->count_latched = false;
    return high ? v >> 8 : v;
}

static uint8_t pit_read(void *dev, unsigned reg)
{
    struct pit *p = dev;
    uint8_t val = 0xff;
    spin_lock(&p->lock);
    if (reg < 3) {
        uint64_t now = now_ticks(p);
        settle(&p->c[reg], now);
        val = read_count(&p->c[reg], now);
    }
    spin_unlock(&p->lock);
    return val;
}

static void pit_write(void *dev, unsigned reg, uint8_t val)
{
    struct pit *p = dev;
    spin_lock(&p->lock);
    uint64_t now = now_ticks(p);
    for (unsigned i = 0; i < 3; i++)
        settle(&p->c[i], now);
    if (reg < 3)
        write_count(&p->c[reg], val, now);
    else if (val >= I8254_READBACK)
        read_back(p, val, now);
    else if ((val >> I8254_RW_SHIFT & 3) == I8254_RW_LATCH)
        latch_count(&p->c[val >> I8254_SEL_SHIFT], now);
    else
        write_control(p, val, now);
    if (reg == 0 || (reg == 3 && val < 0x40 && (val >> I8254_RW_SHIFT & 3) != I8254_RW_LATCH))
        update(p, now);
    spin_unlock(&p->lock);
}

int pit_io(void *pit, struct io *io) { return port8(pit, io, pit_read, pit_write); }

static uint8_t port61_read(void *dev, unsigned reg)
{
    struct pit *p = dev;
    spin_lock(&p->lock);
    uint64_t now = now_ticks(p);
    settle(&p->c[2], now);
    uint8_t val = p->portb | (now / REFRESH_TICKS & 1 ? PORT61_REFRESH : 0) | (out(&p->c[2], now) ? PORT61_OUT2 : 0);
    spin_unlock(&p->lock);
    return val;
}

static void port61_write(void *dev, unsigned reg, uint8_t val)
{
    struct pit *p = dev;
    spin_lock(&p->lock);
    p->portb = val & (PORT61_GATE2 | PORT61_SPEAKER | PORT61_PCI_SERR_DISABLE | PORT61_IOCHK_DISABLE);
    set_gate(&p->c[2], val & PORT61_GATE2, now_ticks(p));
    spin_unlock(&p->lock);
}

int pit_port61_io(void *pit, struct io *io) { return port8(pit, io, port61_read, port61_write); }

/* ---- Life cycle ---- */

/* The chip has no reset: "undefined until programmed".  Here: mode 3, no count, so that nothing interrupts. */
static void pit_reset(void *dev, enum gdev_reset how)
{
    struct pit *p = dev;
    spin_lock(&p->lock);
    p->portb = 0;
    for (unsigned i = 0; i < 3; i++)
        p->c[i] = (struct counter){ .mode = 3, .access = I8254_RW_BOTH, .gate = i != 2, .count = 65536 };
    update(p, now_ticks(p));
    spin_unlock(&p->lock);
}

static int counter_snap(struct counter *c, struct snap *s)
{
    snap_begin(s, "pit counter", 1);
    SNAP(s, c->mode);
    SNAP(s, c->access);
    SNAP(s, c->bcd);
    SNAP(s, c->gate);
    SNAP(s, c->running);
    SNAP(s, c->loaded);
    SNAP(s, c->armed);
    SNAP(s, c->count);
    SNAP(s, c->next_count);
    SNAP(s, c->start);
    SNAP(s, c->frozen);
    SNAP(s, c->write_lsb);
    SNAP(s, c->write_second);
    SNAP(s, c->read_second);
    SNAP(s, c->count_latched);
    SNAP(s, c->status_latched);
    SNAP(s, c->latch);
    SNAP(s, c->status);
    if (snap_loading(s) && (c->mode > 5 || c->access > 3 || !c->count || c->count > 65536 || c->next_count > 65536 || (c->bcd && MAX(c->count, c->next_count) > 10000)))
        s->err = -EINVAL;
    return snap_end(s);
}

static int pit_snap(void *dev, struct snap *s)
{
    struct pit *p = dev;
    int err = 0;
    spin_lock(&p->lock);
    for (unsigned i = 0; i < 3 && !err; i++)
        err = counter_snap(&p->c[i], s);
    snap_begin(s, "pit", 1);
    SNAP(s, p->portb);
    SNAP(s, p->irq_level);
    err = snap_end(s);
    spin_unlock(&p->lock);
    if (!snap_loading(s))
        return err;
    if (err) {
        pit_reset(p, GDEV_RESET);
        return err;
    }
    spin_lock(&p->lock);
    arm(p, now_ticks(p));
    spin_unlock(&p->lock);
    return 0;
}

static void pit_destroy(void *dev)
{
    struct pit *p = dev;
    vtimer_destroy(&p->timer);
    kfree(p);
}

const struct gdev_ops pit_ops = { .name = "pit", .reset = pit_reset, .snap = pit_snap, .destroy = pit_destroy };

struct pit *pit_create(struct vmclock *clock, struct irqline irq0)
{
    struct pit *p = kzalloc(sizeof *p);
    if (!p)
        return NULL;
    p->clock = clock;
    p->irq0 = irq0;
    vtimer_init(&p->timer, clock, expired, p);
    pit_reset(p, GDEV_POWER_ON);
    return p;
}
