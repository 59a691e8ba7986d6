#include "guestdev/i8042.h"
#include "guestdev/port8.h"
#include "kernel/hw/i8042.h"
#include "kernel/lib/port.h"

struct i8042 {
    struct spinlock lock;
    uint8_t ram[32];            /* byte 0: command byte */
    uint8_t out, output_port;
    uint8_t full;               /* I8042_STS_OBF, AUX and TIMEOUT as they belong to `out` */
    uint8_t cmd;                /* waits for its parameter at 60h; 0 none */
    bool after_command;         /* last write was to 64h */
    struct irqline irq1, irq12;
    bool irq1_level, irq12_level;
    struct signal_wire events;
};

static void drive(const struct irqline *l, bool *state, bool level)
{
    if (*state != level) {
        *state = level;
        irqline_set(l, level);
    }
}

static void update(struct i8042 *k)
{
    bool aux = k->full & I8042_STS_AUX, full = k->full & I8042_STS_OBF;
    drive(&k->irq1, &k->irq1_level, full && !aux && (k->ram[0] & I8042_CTR_KBD_IRQ));
    drive(&k->irq12, &k->irq12_level, full && aux && (k->ram[0] & I8042_CTR_AUX_IRQ));
}

static void reply(struct i8042 *k, uint8_t byte, uint8_t flags)
{
    k->out = byte;
    k->full = I8042_STS_OBF | flags;
}

/* The line to a device stays silent: the controller gives up after its time-out. */
static void no_device(struct i8042 *k, uint8_t aux) { reply(k, PS2_RESEND, aux | I8042_STS_TIMEOUT); }

static void write_output_port(struct i8042 *k, uint8_t val)
{
    k->output_port = val;
    if (!(val & I8042_OUT_RESET))
        signal_fire(&k->events, SIGNAL_RESET);
}

static uint8_t data_read(void *dev, unsigned reg)
{
    struct i8042 *k = dev;
    k->full = 0;
    return k->out;
}

static void data_write(void *dev, unsigned reg, uint8_t val)
{
    struct i8042 *k = dev;
    uint8_t cmd = k->cmd;
    k->cmd = 0;
    k->after_command = false;
    switch (cmd) {
    case I8042_WRITE_RAM ... I8042_WRITE_RAM + 31:
        k->ram[cmd - I8042_WRITE_RAM] = val;
        break;
    case I8042_WRITE_OUTPUT:
        write_output_port(k, val);
        break;
    case I8042_WRITE_KBD_OBF:
        reply(k, val, 0);
        break;
    case I8042_WRITE_AUX_OBF:
        reply(k, val, I8042_STS_AUX);
        break;
    case I8042_WRITE_AUX:
        no_device(k, I8042_STS_AUX);
        break;
    default:
        k->ram[0] &= ~I8042_CTR_KBD_OFF;        /* sending to the keyboard enables it */
        no_device(k, 0);
    }
}

static uint8_t status_read(void *dev, unsigned reg)
{
    struct i8042 *k = dev;
    return k->full | (k->ram[0] & I8042_CTR_SYS) | (k->after_command ? I8042_STS_CMD : 0) | I8042_STS_UNLOCKED;
}
_Static_assert((unsigned)I8042_CTR_SYS == (unsigned)I8042_STS_SYS, "the system flag is copied");

static void self_test(struct i8042 *k)
{
    k->ram[0] = I8042_CTR_SYS | I8042_CTR_KBD_OFF | I8042_CTR_AUX_OFF;
    k->output_port = I8042_OUT_RESET | I8042_OUT_A20;
    reply(k, I8042_SELF_TEST_OK, 0);
}

static void command_write(void *dev, unsigned reg, uint8_t val)
{
    struct i8042 *k = dev;
    k->cmd = 0;
    k->after_command = true;
    switch (val) {
    case I8042_READ_RAM ... I8042_READ_RAM + 31:
        reply(k, k->ram[val - I8042_READ_RAM], 0);
        break;
    case I8042_WRITE_RAM ... I8042_WRITE_RAM + 31:
    case I8042_WRITE_OUTPUT:
    case I8042_WRITE_KBD_OBF:
    case I8042_WRITE_AUX_OBF:
    case I8042_WRITE_AUX:
        k->cmd = val;
        break;
    case I8042_AUX_OFF:
        k->ram[0] |= I8042_CTR_AUX_OFF;
        break;
    case I8042_AUX_ON:
        k->ram[0] &= ~I8042_CTR_AUX_OFF;
        break;
    case I8042_KBD_OFF:
        k->ram[0] |= I8042_CTR_KBD_OFF;
        break;
    case I8042_KBD_ON:
        k->ram[0] &= ~I8042_CTR_KBD_OFF;
        break;
    case I8042_AUX_TEST:
    case I8042_KBD_TEST:
        reply(k, I8042_PORT_OK, 0);
        break;
    case I8042_SELF_TEST:
        self_test(k);
        break;
    case I8042_READ_INPUT:
        reply(k, 0x80, 0);      /* keyboard not inhibited */
        break;
    case I8042_READ_OUTPUT:
        reply(k, k->output_port | (k->full & I8042_STS_OBF ? I8042_OUT_KBD_OBF : 0), 0);
        break;
    case I8042_PULSE ... I8042_PULSE + 15:
        if (!(val & I8042_OUT_RESET))
            signal_fire(&k->events, SIGNAL_RESET);
        break;
    }
}

static int locked(struct i8042 *k, struct io *io, uint8_t (*read)(void *, unsigned), void (*write)(void *, unsigned, uint8_t))
{
    spin_lock(&k->lock);
    int err = port8(k, io, read, write);
    update(k);
    spin_unlock(&k->lock);
    return err;
}

int i8042_data_io(void *k, struct io *io) { return locked(k, io, data_read, data_write); }
int i8042_command_io(void *k, struct io *io) { return locked(k, io, status_read, command_write); }

static void i8042_reset(void *dev, enum gdev_reset how)
{
    struct i8042 *k = dev;
    spin_lock(&k->lock);
    for (unsigned i = 0; i < sizeof k->ram; i++)
        k->ram[i] = 0;
    k->ram[0] = I8042_CTR_KBD_OFF | I8042_CTR_AUX_OFF;
    k->output_port = I8042_OUT_RESET | I8042_OUT_A20;
    k->full = k->cmd = k->out = 0;
    k->after_command = false;
    update(k);
    spin_unlock(&k->lock);
}

static int i8042_snap(void *dev, struct snap *s)
{
    struct i8042 *k = dev;
    snap_begin(s, "i8042", 1);
    SNAP(s, k->ram);
    SNAP(s, k->out);
    SNAP(s, k->output_port);
    SNAP(s, k->full);
    SNAP(s, k->cmd);
    SNAP(s, k->after_command);
    SNAP(s, k->irq1_level);
    SNAP(s, k->irq12_level);
    if (snap_loading(s))
        k->full &= I8042_STS_OBF | I8042_STS_AUX | I8042_STS_TIMEOUT;
    return snap_end(s);
}

static void i8042_destroy(void *dev) { kfree(dev); }

const struct gdev_ops i8042_ops = { .name = "i8042", .reset = i8042_reset, .snap = i8042_snap, .destroy = i8042_destroy };

struct i8042 *i8042_create(struct irqline irq1, struct irqline irq12, struct signal_wire events)
{
    struct i8042 *k = kzalloc(sizeof *k);
    if (!k)
        return NULL;
    k->irq1 = irq1;
    k->irq12 = irq12;
    k->events = events;
    i8042_reset(k, GDEV_POWER_ON);
    return k;
}
