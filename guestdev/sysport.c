#include "guestdev/sysport.h"
#include "guestdev/port8.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"

#include <stdio.h>
#include <string.h>

#define CF9_RESET   BIT(2)      /* rising edge resets; bit 1 says hard, bit 3 power cycle */
#define CF9_KEPT    (BIT(1) | BIT(2) | BIT(3))
#define P92_INIT    BIT(0)      /* rising edge */
#define P92_A20     BIT(1)
enum { DEBUG_SIGNATURE = 0xe9 };

struct sysport {
    struct spinlock lock;
    uint8_t cf9, p92;
    uint8_t len;
    char line[120];
    char name[64];
    struct ratelimit limit;
    struct signal_wire events;
};

static uint8_t cf9_read(void *dev, unsigned reg) { return ((struct sysport *)dev)->cf9; }

static void cf9_write(void *dev, unsigned reg, uint8_t val)
{
    struct sysport *p = dev;
    bool reset = val & ~p->cf9 & CF9_RESET;
    p->cf9 = val & CF9_KEPT;
    if (reset)
        signal_fire(&p->events, SIGNAL_RESET);
}

static uint8_t p92_read(void *dev, unsigned reg) { return ((struct sysport *)dev)->p92; }

/* A20 is always on: the bit is only stored. */
static void p92_write(void *dev, unsigned reg, uint8_t val)
{
    struct sysport *p = dev;
    bool reset = val & ~p->p92 & P92_INIT;
    p->p92 = val & (P92_INIT | P92_A20);
    if (reset)
        signal_fire(&p->events, SIGNAL_RESET);
}

static uint8_t debug_read(void *dev, unsigned reg) { return DEBUG_SIGNATURE; }

static void debug_write(void *dev, unsigned reg, uint8_t val)
{
    struct sysport *p = dev;
    if (val >= ' ' && val < 127)
        p->line[p->len++] = val;
    if (val != '\n' && p->len < sizeof p->line - 1)
        return;
    p->line[p->len] = 0;
    p->len = 0;
    if (ratelimit_ok(&p->limit, 200))
        log_debug("debugcon", "%s: %s", p->name, p->line);
}

static int locked(struct sysport *p, struct io *io, uint8_t (*read)(void *, unsigned), void (*write)(void *, unsigned, uint8_t))
{
    spin_lock(&p->lock);
    int err = port8(p, io, read, write);
    spin_unlock(&p->lock);
    return err;
}

int sysport_cf9_io(void *p, struct io *io) { return locked(p, io, cf9_read, cf9_write); }
int sysport_92_io(void *p, struct io *io) { return locked(p, io, p92_read, p92_write); }
int sysport_debug_io(void *p, struct io *io) { return locked(p, io, debug_read, debug_write); }

int sysport_debug_exit_io(void *sysport, struct io *io)
{
    struct sysport *p = sysport;
    if (io->write)
        signal_fire(&p->events, SIGNAL_DEBUG_EXIT | ((io->data & 0x7fffff) << 1 | 1) << 8);
    else
        io->data = 0;
    return 0;
}

static void sysport_reset(void *dev, enum gdev_reset how)
{
    struct sysport *p = dev;
    spin_lock(&p->lock);
    p->cf9 = p->len = 0;
    p->p92 = P92_A20;
    spin_unlock(&p->lock);
}

static int sysport_snap(void *dev, struct snap *s)
{
    struct sysport *p = dev;
    snap_begin(s, "sysport", 1);
    SNAP(s, p->cf9);
    SNAP(s, p->p92);
    if (snap_loading(s)) {
        p->cf9 &= CF9_KEPT;
        p->p92 &= P92_INIT | P92_A20;
    }
    return snap_end(s);
}

static void sysport_destroy(void *dev) { kfree(dev); }

const struct gdev_ops sysport_ops = { .name = "sysport", .reset = sysport_reset, .snap = sysport_snap, .destroy = sysport_destroy };

struct sysport *sysport_create(struct signal_wire events, const char *vm_name)
{
    struct sysport *p = kzalloc(sizeof *p);
    if (!p)
        return NULL;
    p->events = events;
    snprintf(p->name, sizeof p->name, "%s", vm_name);
    sysport_reset(p, GDEV_POWER_ON);
    return p;
}
