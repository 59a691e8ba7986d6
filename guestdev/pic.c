#include "guestdev/pic.h"
#include "guestdev/port8.h"
#include "kernel/hw/i8259.h"
#include "kernel/lib/port.h"

enum { MASTER, SLAVE };

struct chip {
    uint8_t lines;              /* inputs, as wired */
    uint8_t latch;              /* rising edges not yet acknowledged */
    uint8_t elcr;
    uint8_t imr, isr;
    uint8_t base;               /* ICW2: vector of input 0 */
    uint8_t icw1, icw4;
    uint8_t icw_step;           /* which ICW the data port expects: 0 none, 2, 3, 4 */
    uint8_t lowest;             /* input of lowest priority */
    bool smm, rotate_aeoi, read_isr, poll;
};

struct pic {
    struct spinlock lock;
    struct chip chip[2];
    int out_irq;                /* what the output last said: best request, -1 none */
    struct irqline out;
};

/* A level input requests as long as it is high, an edge input once per rise. */
static uint8_t irr(const struct chip *c) { return (c->latch & ~c->elcr) | (c->lines & c->elcr); }

/* Rank of the most urgent set bit: 0 highest, 8 none. */
static unsigned rank(const struct chip *c, uint8_t bits)
{
    unsigned rotate = (c->lowest + 1) & 7;
    uint8_t r = bits >> rotate | bits << (8 - rotate);
    return r ? (unsigned)__builtin_ctz(r) : 8;
}
static unsigned input(const struct chip *c, unsigned rnk) { return (rnk + c->lowest + 1) & 7; }

/* Best request that may interrupt now, or -1. */
static int best(const struct chip *c, bool master)
{
    uint8_t blocking = c->isr;
    if (c->smm)
        blocking &= ~c->imr;    /* 8259A, "Special Mask Mode": a masked level in service holds nobody back */
    if (master && (c->icw4 & ICW4_SFNM))
        blocking &= ~(1u << I8259_CASCADE);     /* further requests from the slave in service come through */
    unsigned want = rank(c, irr(c) & ~c->imr);
    return want < rank(c, blocking) ? (int)input(c, want) : -1;
}

static void set_line(struct chip *c, unsigned n, bool level)
{
    uint8_t bit = 1u << n;
    if (level && !(c->lines & bit))
        c->latch |= bit;
    c->lines = level ? c->lines | bit : c->lines & ~bit;
}

/* The slave's request, as the master passes it on; 7 = spurious: it vanished after it reached the master. */
static int slave_request(const struct pic *p)
{
    int n = best(&p->chip[SLAVE], false);
    return n < 0 ? 7 : n;
}

static void update(struct pic *p)
{
    set_line(&p->chip[MASTER], I8259_CASCADE, best(&p->chip[SLAVE], false) >= 0);
    int irq = best(&p->chip[MASTER], true);
    if (irq == I8259_CASCADE)
        irq = 8 + slave_request(p);
    if (irq == p->out_irq)
        return;
    p->out_irq = irq;
    irqline_set(&p->out, irq >= 0);
}

void pic_irq(void *pic, unsigned irq, bool level)
{
    struct pic *p = pic;
    if (irq > 15 || irq == I8259_CASCADE)
        return;
    spin_lock(&p->lock);
    set_line(&p->chip[irq >> 3], irq & 7, level);
    update(p);
    spin_unlock(&p->lock);
}

/* ---- Acknowledge ---- */

static void rotate(struct chip *c, unsigned n) { c->lowest = n; }

static void acknowledge(struct chip *c, unsigned n)
{
    c->latch &= ~(1u << n);
    if (!(c->icw4 & ICW4_AEOI))
        c->isr |= 1u << n;
    else if (c->rotate_aeoi)
        rotate(c, n);
}

/* The slave's INT falls during the cycle and rises again for the next request, which the master's edge-triggered input needs. */
static void acknowledge_slave(struct pic *p, int n)
{
    if (n >= 0)
        acknowledge(&p->chip[SLAVE], n);
    set_line(&p->chip[MASTER], I8259_CASCADE, false);
}

int pic_pending(void *pic)
{
    struct pic *p = pic;
    int vector = -1;
    spin_lock(&p->lock);
    int n = best(&p->chip[MASTER], true);
    if (n == I8259_CASCADE)
        vector = p->chip[SLAVE].base + slave_request(p);
    else if (n >= 0)
        vector = p->chip[MASTER].base + n;
    spin_unlock(&p->lock);
    return vector;
}

void pic_intack(void *pic, int vector)
{
    struct pic *p = pic;
    spin_lock(&p->lock);
    const struct chip *s = &p->chip[SLAVE];
    bool from_slave = (vector & 0xf8) == s->base && (best(&p->chip[MASTER], true) == I8259_CASCADE || (vector & 0xf8) != p->chip[MASTER].base);
    acknowledge(&p->chip[MASTER], from_slave ? I8259_CASCADE : vector & 7);
    if (from_slave)
        acknowledge_slave(p, best(s, false) < 0 ? -1 : vector & 7);
    update(p);
    spin_unlock(&p->lock);
}

/* ---- Registers ---- */

static void write_icw1(struct chip *c, uint8_t val)
{
    /* 8259A, "Initialization Command Words": edge sense and mask cleared, IR7 lowest, special mask off, status read = IRR. */
    *c = (struct chip){ .lines = c->lines, .elcr = c->elcr, .base = c->base, .icw1 = val, .icw_step = 2, .lowest = 7 };
}

static void end_of_interrupt(struct chip *c, bool specific, unsigned level, bool rotating)
{
    if (!specific) {
        uint8_t candidates = c->smm ? c->isr & ~c->imr : c->isr;
        unsigned r = rank(c, candidates);
        if (r == 8)
            return;
        level = input(c, r);
    }
    c->isr &= ~(1u << level);
    if (rotating)
        rotate(c, level);
}

static void write_ocw2(struct chip *c, uint8_t val)
{
    bool r = val & OCW2_R, sl = val & OCW2_SL;
    if (val & OCW2_EOI)
        end_of_interrupt(c, sl, val & OCW2_LEVEL, r);
    else if (r && sl)
        rotate(c, val & OCW2_LEVEL);
    else if (!sl)
        c->rotate_aeoi = r;
}

static void write_ocw3(struct chip *c, uint8_t val)
{
    if (val & OCW3_ESMM)
        c->smm = val & OCW3_SMM;
    if (val & OCW3_POLL)
        c->poll = true;
    else if (val & OCW3_RR)
        c->read_isr = val & OCW3_RIS;
}

static void write_data(struct chip *c, uint8_t val)
{
    switch (c->icw_step) {
    case 2:
        c->base = val & 0xf8;
        c->icw_step = !(c->icw1 & ICW1_SNGL) ? 3 : c->icw1 & ICW1_IC4 ? 4 : 0;
        break;
    case 3:                     /* the cascade is wired */
        c->icw_step = c->icw1 & ICW1_IC4 ? 4 : 0;
        break;
    case 4:
        c->icw4 = val & (ICW4_8086 | ICW4_AEOI | ICW4_BUF_MASTER | ICW4_BUF | ICW4_SFNM);
        c->icw_step = 0;
        break;
    default:
        c->imr = val;
    }
}

static void chip_write(struct pic *p, struct chip *c, unsigned reg, uint8_t val)
{
    spin_lock(&p->lock);
    if (reg & 1)
        write_data(c, val);
    else if (val & ICW1_INIT)
        write_icw1(c, val);
    else if (val & OCW3_SEL)
        write_ocw3(c, val);
    else
        write_ocw2(c, val);
    update(p);
    spin_unlock(&p->lock);
}

/* 8259A, "Poll Command": the read is the acknowledge. */
static uint8_t read_poll(struct pic *p, struct chip *c)
{
    int n = best(c, c == &p->chip[MASTER]);
    c->poll = false;
    if (n < 0)
        return 0;
    acknowledge(c, n);
    if (c == &p->chip[SLAVE])
        set_line(&p->chip[MASTER], I8259_CASCADE, false);
    update(p);
    return 0x80 | n;
}

static __attribute__((noinline)) uint8_t read_status(struct pic *p, struct chip *c, unsigned reg)
{
    uint8_t val;
    spin_lock(&p->lock);
    if (c->poll)
        val = read_poll(p, c);
    else if (reg & 1)
        val = c->imr;
    else
        val = c->read_isr ? c->isr : irr(c);
    spin_unlock(&p->lock);
    return val;
}

/* The mask is one byte that nothing else depends on: no lock. */
static inline uint8_t chip_read(struct pic *p, struct chip *c, unsigned reg)
{
    return likely((reg & 1) && !READ_ONCE(c->poll)) ? READ_ONCE(c->imr) : read_status(p, c, reg);
}

static uint8_t master_read(void *p, unsigned reg) { return chip_read(p, &((struct pic *)p)->chip[MASTER], reg); }
static uint8_t slave_read(void *p, unsigned reg) { return chip_read(p, &((struct pic *)p)->chip[SLAVE], reg); }
static void master_write(void *p, unsigned reg, uint8_t val) { chip_write(p, &((struct pic *)p)->chip[MASTER], reg, val); }
static void slave_write(void *p, unsigned reg, uint8_t val) { chip_write(p, &((struct pic *)p)->chip[SLAVE], reg, val); }

static const uint8_t elcr_mask[2] = { 0xf8, 0xde };    /* IRQ 0, 1, 2, 8 and 13 are edge-triggered for good */

static uint8_t elcr_read(void *dev, unsigned reg) { return READ_ONCE(((struct pic *)dev)->chip[reg & 1].elcr); }

static void elcr_write(void *dev, unsigned reg, uint8_t val)
{
    struct pic *p = dev;
    spin_lock(&p->lock);
    p->chip[reg & 1].elcr = val & elcr_mask[reg & 1];
    update(p);
    spin_unlock(&p->lock);
}

int pic_master_io(void *pic, struct io *io) { return port8(pic, io, master_read, master_write); }
int pic_slave_io(void *pic, struct io *io) { return port8(pic, io, slave_read, slave_write); }
int pic_elcr_io(void *pic, struct io *io) { return port8(pic, io, elcr_read, elcr_write); }

/* ---- Life cycle ---- */

static void pic_reset(void *dev, enum gdev_reset how)
{
    struct pic *p = dev;
    spin_lock(&p->lock);
    for (unsigned i = 0; i < 2; i++)
        p->chip[i] = (struct chip){ .lines = p->chip[i].lines, .lowest = 7 };
    update(p);
    spin_unlock(&p->lock);
}

static int chip_snap(struct chip *c, struct snap *s, uint8_t elcr_allowed)
{
    snap_begin(s, "pic", 1);
    SNAP(s, c->lines);
    SNAP(s, c->latch);
    SNAP(s, c->elcr);
    SNAP(s, c->imr);
    SNAP(s, c->isr);
    SNAP(s, c->base);
    SNAP(s, c->icw1);
    SNAP(s, c->icw4);
    SNAP(s, c->icw_step);
    SNAP(s, c->lowest);
    SNAP(s, c->smm);
    SNAP(s, c->rotate_aeoi);
    SNAP(s, c->read_isr);
    SNAP(s, c->poll);
    if (snap_loading(s)) {
        c->elcr &= elcr_allowed;
        c->base &= 0xf8;
        c->lowest &= 7;
        c->icw_step = c->icw_step < 2 || c->icw_step > 4 ? 0 : c->icw_step;
    }
    return snap_end(s);
}

static int pic_snap(void *dev, struct snap *s)
{
    struct pic *p = dev;
    spin_lock(&p->lock);
    int err = chip_snap(&p->chip[MASTER], s, elcr_mask[MASTER]);
    if (!err)
        err = chip_snap(&p->chip[SLAVE], s, elcr_mask[SLAVE]);
    if (snap_loading(s) && !err)
        update(p);
    spin_unlock(&p->lock);
    return err;
}

static void pic_destroy(void *dev) { kfree(dev); }

const struct gdev_ops pic_ops = { .name = "pic", .reset = pic_reset, .snap = pic_snap, .destroy = pic_destroy };

struct pic *pic_create(struct irqline out)
{
    struct pic *p = kzalloc(sizeof *p);
    if (!p)
        return NULL;
    p->out = out;
    p->out_irq = -1;
    pic_reset(p, GDEV_POWER_ON);
    return p;
}
