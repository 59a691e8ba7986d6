#include "guestdev/ioapic.h"
#include "kernel/lib/port.h"

#include <errno.h>
#include <string.h>

enum { VERSION = 0x20 };
#define REDIR_WRITABLE (REDIR_VECTOR | APIC_DELIVERY | REDIR_LOGICAL | REDIR_ACTIVE_LOW | REDIR_LEVEL | REDIR_MASKED | BITS(63, 56))

struct ioapic {
    struct spinlock lock;
    uint32_t id, index;
    uint64_t redir[IOAPIC_PINS];        /* without remote IRR */
    uint32_t remote_irr;                /* bit per pin */
    uint32_t asserted;                  /* wires, bit per pin */
    uint32_t active_low;
    struct apic_wire out;
};

/* Only fixed and lowest-priority interrupts can be level-triggered; the other modes act on edges whatever the trigger bit says. */
static bool is_level(uint64_t redir) { return (redir & REDIR_LEVEL) && (redir & APIC_DELIVERY) <= APIC_LOWEST; }

static bool is_active(const struct ioapic *a, unsigned pin)
{
    bool low = a->redir[pin] & REDIR_ACTIVE_LOW;
    return ((a->asserted ^ a->active_low) >> pin & 1) != low;
}

static void send(struct ioapic *a, unsigned pin)
{
    uint64_t r = a->redir[pin];
    struct apic_msg m = {
        .dest = r >> REDIR_DEST_SHIFT, .delivery = r & APIC_DELIVERY, .vector = r & REDIR_VECTOR, .logical = r & REDIR_LOGICAL, .level = is_level(r),
    };
    a->out.send(a->out.arg, &m);
}

/* A level pin that is active and not in service sends; remote IRR then holds it until its EOI. */
static void update_level(struct ioapic *a, unsigned pin)
{
    uint64_t r = a->redir[pin];
    if (!is_level(r) || (r & REDIR_MASKED) || (a->remote_irr & BIT(pin)) || !is_active(a, pin))
        return;
    a->remote_irr |= BIT(pin);
    send(a, pin);
}

void ioapic_pin(void *ioapic, unsigned pin, bool asserted)
{
    struct ioapic *a = ioapic;
    if (pin >= IOAPIC_PINS)
        return;
    spin_lock(&a->lock);
    bool was = is_active(a, pin);
    a->asserted = (a->asserted & ~BIT(pin)) | (uint32_t)asserted << pin;
    if (is_level(a->redir[pin]))
        update_level(a, pin);
    else if (!was && is_active(a, pin) && !(a->redir[pin] & REDIR_MASKED))
        send(a, pin);           /* an edge at a masked pin is neither delivered nor kept (82093AA, "Interrupt Mask") */
    spin_unlock(&a->lock);
}

static void eoi_locked(struct ioapic *a, uint8_t vector)
{
    for (uint32_t left = a->remote_irr; left; left &= left - 1) {
        unsigned pin = __builtin_ctz(left);
        if ((a->redir[pin] & REDIR_VECTOR) != vector)
            continue;
        a->remote_irr &= ~BIT(pin);
        update_level(a, pin);
    }
}

void ioapic_eoi(void *ioapic, uint8_t vector)
{
    struct ioapic *a = ioapic;
    spin_lock(&a->lock);
    eoi_locked(a, vector);
    spin_unlock(&a->lock);
}

static void write_redir(struct ioapic *a, unsigned reg, uint32_t val)
{
    unsigned pin = reg >> 1, shift = (reg & 1) * 32;
    if (pin >= IOAPIC_PINS)
        return;
    uint64_t r = (a->redir[pin] & ~(0xffffffffull << shift)) | (uint64_t)val << shift;
    a->redir[pin] = r & REDIR_WRITABLE;
    if (!is_level(r))
        a->remote_irr &= ~BIT(pin);     /* how software ends an interrupt on chips without the EOI register */
    update_level(a, pin);
}

static uint32_t read_redir(struct ioapic *a, unsigned reg)
{
    unsigned pin = reg >> 1;
    if (pin >= IOAPIC_PINS)
        return 0;
    uint64_t r = a->redir[pin] | (a->remote_irr & BIT(pin) ? REDIR_REMOTE_IRR : 0);
    return r >> (reg & 1) * 32;
}

static uint32_t read_window(struct ioapic *a)
{
    switch (a->index) {
    case IOAPIC_REG_ID:
    case IOAPIC_REG_ARB:
        return a->id;
    case IOAPIC_REG_VERSION:
        return VERSION | (IOAPIC_PINS - 1) << 16;
    default:
        return a->index >= IOAPIC_REG_REDIR ? read_redir(a, a->index - IOAPIC_REG_REDIR) : 0;
    }
}

static void write_reg(struct ioapic *a, unsigned off, uint32_t val)
{
    if (off == IOAPIC_INDEX)
        a->index = val & 0xff;
    else if (off == IOAPIC_EOI)
        eoi_locked(a, val);
    else if (off == IOAPIC_DATA && a->index == IOAPIC_REG_ID)
        a->id = val & 0x0f000000;
    else if (off == IOAPIC_DATA && a->index >= IOAPIC_REG_REDIR)
        write_redir(a, a->index - IOAPIC_REG_REDIR, val);
}

/* The window wants 32-bit accesses; narrower ones reach the low bytes. */
int ioapic_io(void *ioapic, struct io *io)
{
    struct ioapic *a = ioapic;
    unsigned off = io->off & 0xff;      /* the registers repeat in the page */
    spin_lock(&a->lock);
    if (io->write)
        write_reg(a, off, io->data);
    else
        io->data = off == IOAPIC_INDEX ? a->index : off == IOAPIC_DATA ? read_window(a) : 0;
    spin_unlock(&a->lock);
    return 0;
}

static void ioapic_reset(void *dev, enum gdev_reset how)
{
    struct ioapic *a = dev;
    spin_lock(&a->lock);
    a->id = a->index = a->remote_irr = 0;
    for (unsigned i = 0; i < IOAPIC_PINS; i++)
        a->redir[i] = REDIR_MASKED;
    spin_unlock(&a->lock);
}

static int ioapic_snap(void *dev, struct snap *s)
{
    struct ioapic *a = dev;
    snap_begin(s, "ioapic", 1);
    SNAP(s, a->id);
    SNAP(s, a->index);
    SNAP(s, a->redir);
    SNAP(s, a->remote_irr);
    SNAP(s, a->asserted);
    if (snap_loading(s)) {
        a->id &= 0x0f000000;
        a->index &= 0xff;
        a->remote_irr &= BITS(IOAPIC_PINS - 1, 0);
        a->asserted &= BITS(IOAPIC_PINS - 1, 0);
        for (unsigned i = 0; i < IOAPIC_PINS; i++)
            a->redir[i] &= REDIR_WRITABLE;
    }
    return snap_end(s);
}

static void ioapic_destroy(void *dev) { kfree(dev); }

const struct gdev_ops ioapic_ops = { .name = "ioapic", .reset = ioapic_reset, .snap = ioapic_snap, .destroy = ioapic_destroy };

struct ioapic *ioapic_create(struct apic_wire out, uint32_t active_low)
{
    struct ioapic *a = kzalloc(sizeof *a);
    if (!a)
        return NULL;
    a->out = out;
    a->active_low = active_low;
    ioapic_reset(a, GDEV_POWER_ON);
    return a;
}
