#include "guestdev/uart.h"
#include "guestdev/port8.h"
#include "kernel/hw/ns16550.h"
#include "kernel/lib/port.h"

#include <errno.h>
#include <string.h>

struct fifo { uint8_t buf[UART_FIFO_SIZE], n; };        /* oldest first */

struct uart {
    struct spinlock lock;
    uint8_t ier, fcr, lcr, mcr, lsr_errors, msr, scr, dll, dlm;
    bool thre_irq;              /* THR went empty since IIR was read */
    bool timeout;               /* received bytes below the trigger level have waited */
    bool stalled;               /* nobody takes our output */
    bool irq_level;
    bool paused;                /* between drain and resume the channel is left alone: the state must not move under a save */
    struct fifo rx, tx;
    uint32_t poke;              /* atomic: the channel wants attention */
    bool pumping;               /* one thread at a time moves bytes between FIFOs and channel */
    uint64_t dropped;
    struct chan *chan;
    struct irqline irq;
    struct vtimer rx_timer, stall_timer;
    struct vmclock *clock;
};

static unsigned depth(const struct uart *u) { return u->fcr & FCR_ENABLE ? UART_FIFO_SIZE : 1; }
static unsigned trigger(const struct uart *u) { return u->fcr & FCR_ENABLE ? (uint8_t[]){ 1, 4, 8, 14 }[u->fcr >> 6] : 1; }

static void push(struct fifo *f, uint8_t byte) { f->buf[f->n++] = byte; }
static void drop_first(struct fifo *f, unsigned n)
{
    f->n -= n;
    memmove(f->buf, f->buf + n, f->n);
}

/* ---- Interrupts ---- */

/* PC16550D, "Interrupt Control Functions": the reason of highest priority. */
static uint8_t reason(const struct uart *u)
{
    if ((u->ier & IER_LINE) && u->lsr_errors)
        return IIR_LINE;
    if ((u->ier & IER_RX) && u->rx.n >= trigger(u))
        return IIR_RX;
    if ((u->ier & IER_RX) && u->rx.n && u->timeout)
        return IIR_TIMEOUT;
    if ((u->ier & IER_THRE) && u->thre_irq)
        return IIR_THRE;
    if ((u->ier & IER_MODEM) && (u->msr & MSR_DELTA))
        return IIR_MODEM;
    return IIR_NONE;
}

static void update(struct uart *u)
{
    bool level = reason(u) != IIR_NONE && (u->mcr & MCR_OUT2) && !(u->mcr & MCR_LOOP);
    if (level == u->irq_level)
        return;
    u->irq_level = level;
    irqline_set(&u->irq, level);
}

/* Bytes below the trigger level interrupt once nothing has come or gone for a while. */
static void rx_changed(struct uart *u)
{
    u->timeout = false;
    if (u->rx.n && u->rx.n < trigger(u) && (u->ier & IER_RX))
        vtimer_arm(&u->rx_timer, vmclock_now(u->clock) + UART_TIMEOUT_NS);
}

static void rx_waited(void *arg)
{
    struct uart *u = arg;
    spin_lock(&u->lock);
    u->timeout = u->rx.n && !u->rx_timer.armed;
    update(u);
    spin_unlock(&u->lock);
}

/* ---- Moving bytes ---- */

/* Takes what the channel would get; with the lock held.  In loopback mode nothing leaves. */
static unsigned take_tx(const struct uart *u, uint8_t *buf)
{
    memcpy(buf, u->tx.buf, u->tx.n);
    return u->tx.n;
}

static void sent(struct uart *u, unsigned n)
{
    drop_first(&u->tx, n);
    if (n && !u->tx.n)
        u->thre_irq = true;
}

static unsigned rx_room(const struct uart *u)
{
    return u->mcr & MCR_LOOP || u->rx.n >= depth(u) ? 0 : depth(u) - u->rx.n;
}

/* One turn: the channel is called without the lock, which is why only one thread at a time is in here. */
static void pump_once(struct uart *u)
{
    uint8_t out[UART_FIFO_SIZE], in[UART_FIFO_SIZE];
    unsigned n = take_tx(u, out), room = rx_room(u);
    spin_unlock(&u->lock);
    unsigned done = n ? chan_write(u->chan, CHAN_DEV, out, n) : 0;
    unsigned got = room ? chan_read(u->chan, CHAN_DEV, in, room) : 0;
    spin_lock(&u->lock);
    if (done) {                 /* somebody reads: the patience starts over */
        u->stalled = false;
        vtimer_cancel(&u->stall_timer);
    }
    sent(u, MIN(done, u->tx.n));
    if (u->tx.n && u->stalled) {
        u->dropped += u->tx.n;
        sent(u, u->tx.n);
    } else if (u->tx.n && !u->stall_timer.armed) {
        vtimer_arm(&u->stall_timer, vmclock_now(u->clock) + UART_STALL_NS);
    }
    for (unsigned i = 0; i < got && u->rx.n < UART_FIFO_SIZE; i++)
        push(&u->rx, in[i]);
    if (got)
        rx_changed(u);
}

/* Lock held on entry and exit.  A call that finds another thread inside, or itself by way of the channel's notification, leaves a poke behind. */
static void pump(struct uart *u)
{
    atomic_store(&u->poke, 1u);
    if (u->pumping || u->paused || !u->chan)
        return;
    u->pumping = true;
    while (atomic_xchg(&u->poke, 0u))
        pump_once(u);
    u->pumping = false;
}

static void chan_moved(void *arg)
{
    struct uart *u = arg;
    spin_lock(&u->lock);
    pump(u);
    update(u);
    spin_unlock(&u->lock);
}

static void tx_stalled(void *arg)
{
    struct uart *u = arg;
    spin_lock(&u->lock);
    u->stalled = u->tx.n && !u->stall_timer.armed;
    pump(u);
    update(u);
    spin_unlock(&u->lock);
}

/* ---- Registers ---- */

static void transmit(struct uart *u, uint8_t byte)
{
    u->thre_irq = false;
    if (u->mcr & MCR_LOOP) {
        if (u->rx.n < depth(u))
            push(&u->rx, byte);
        else
            u->lsr_errors |= LSR_OE;
        u->thre_irq = true;
        rx_changed(u);
    } else if (!u->chan) {
        u->thre_irq = true;
    } else if (u->tx.n < UART_FIFO_SIZE) {
        push(&u->tx, byte);
        pump(u);
    } else {
        u->dropped++;           /* the guest did not wait for THRE */
    }
}

static uint8_t receive(struct uart *u)
{
    if (!u->rx.n)
        return 0;
    uint8_t byte = u->rx.buf[0];
    drop_first(&u->rx, 1);
    if (u->rx.n < trigger(u))
        pump(u);
    rx_changed(u);
    return byte;
}

static void write_ier(struct uart *u, uint8_t val)
{
    bool rise = (val & ~u->ier) & IER_THRE;
    u->ier = val & 0x0f;
    if (rise && !u->tx.n)
        u->thre_irq = true;     /* enabling it with THR empty interrupts at once */
    if (!u->timeout)
        rx_changed(u);
}

static void write_fcr(struct uart *u, uint8_t val)
{
    if ((val ^ u->fcr) & FCR_ENABLE)
        val |= FCR_CLEAR_RX | FCR_CLEAR_TX;
    if (val & FCR_CLEAR_RX)
        u->rx.n = 0;
    if ((val & FCR_CLEAR_TX) && !u->pumping)
        sent(u, u->tx.n);
    u->fcr = val & FCR_ENABLE ? val & (FCR_ENABLE | FCR_TRIGGER) : 0;
    pump(u);
    rx_changed(u);
}

/* Loopback: DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD. */
static void write_mcr(struct uart *u, uint8_t val)
{
    u->mcr = val & 0x1f;
    uint8_t now = MSR_CTS | MSR_DSR | MSR_DCD, old = u->msr;
    if (val & MCR_LOOP)
        now = (val & MCR_RTS ? MSR_CTS : 0) | (val & MCR_DTR ? MSR_DSR : 0) | (val & MCR_OUT1 ? MSR_RI : 0) | (val & MCR_OUT2 ? MSR_DCD : 0);
    uint8_t delta = (old ^ now) >> 4;
    if (!(old & MSR_RI))
        delta &= ~(MSR_RI >> 4);        /* TERI: only the trailing edge counts */
    u->msr = now | (old & MSR_DELTA) | delta;
    pump(u);
}

static uint8_t line_status(struct uart *u)
{
    uint8_t val = u->lsr_errors | (u->rx.n ? LSR_DR : 0) | (u->tx.n ? 0 : LSR_THRE | LSR_TEMT);
    u->lsr_errors = 0;
    return val;
}

static uint8_t identify(struct uart *u)
{
    uint8_t val = reason(u);
    if (val == IIR_THRE)
        u->thre_irq = false;
    return val | (u->fcr & FCR_ENABLE ? IIR_FIFOS : 0);
}

static uint8_t read_reg(struct uart *u, unsigned reg)
{
    uint8_t val;
    switch (reg) {
    case UART_DATA:
        return u->lcr & LCR_DLAB ? u->dll : receive(u);
    case UART_IER:
        return u->lcr & LCR_DLAB ? u->dlm : u->ier;
    case UART_IIR:
        return identify(u);
    case UART_LCR:
        return u->lcr;
    case UART_MCR:
        return u->mcr;
    case UART_LSR:
        return line_status(u);
    case UART_MSR:
        val = u->msr;
        u->msr &= ~MSR_DELTA;
        return val;
    default:
        return u->scr;
    }
}

static void write_reg(struct uart *u, unsigned reg, uint8_t val)
{
    switch (reg) {
    case UART_DATA:
        if (u->lcr & LCR_DLAB)
            u->dll = val;
        else
            transmit(u, val);
        break;
    case UART_IER:
        if (u->lcr & LCR_DLAB)
            u->dlm = val;
        else
            write_ier(u, val);
        break;
    case UART_FCR:
        write_fcr(u, val);
        break;
    case UART_LCR:
        u->lcr = val;
        break;
    case UART_MCR:
        write_mcr(u, val);
        break;
    case UART_SCR:
        u->scr = val;
        break;
    }
}

static __attribute__((noinline)) uint8_t read_locked(struct uart *u, unsigned reg)
{
    spin_lock(&u->lock);
    uint8_t val = read_reg(u, reg);
    update(u);
    spin_unlock(&u->lock);
    return val;
}

/* The line status is what guests poll.  Without errors in it a read changes nothing, and two bytes tell it: no lock. */
static inline uint8_t uart_read(void *dev, unsigned reg)
{
    const struct uart *u = dev;
    if (likely((reg & 7) == UART_LSR && !READ_ONCE(u->lsr_errors)))
        return (READ_ONCE(u->rx.n) ? LSR_DR : 0) | (READ_ONCE(u->tx.n) ? 0 : LSR_THRE | LSR_TEMT);
    return read_locked(dev, reg & 7);
}

static void uart_write(void *dev, unsigned reg, uint8_t val)
{
    struct uart *u = dev;
    spin_lock(&u->lock);
    write_reg(u, reg & 7, val);
    update(u);
    spin_unlock(&u->lock);
}

int uart_io(void *uart, struct io *io) { return port8(uart, io, uart_read, uart_write); }

uint64_t uart_dropped(struct uart *u)
{
    spin_lock(&u->lock);
    uint64_t n = u->dropped;
    spin_unlock(&u->lock);
    return n;
}

/* ---- Life cycle ---- */

static void uart_reset(void *dev, enum gdev_reset how)
{
    struct uart *u = dev;
    spin_lock(&u->lock);
    u->ier = u->fcr = u->lcr = u->mcr = u->lsr_errors = u->scr = u->dll = u->dlm = 0;
    u->msr = MSR_CTS | MSR_DSR | MSR_DCD;
    u->thre_irq = u->timeout = u->stalled = u->paused = false;
    u->rx.n = 0;
    if (!u->pumping)
        u->tx.n = 0;
    vtimer_cancel(&u->rx_timer);
    vtimer_cancel(&u->stall_timer);
    update(u);
    spin_unlock(&u->lock);
}

static int uart_snap(void *dev, struct snap *s)
{
    struct uart *u = dev;
    spin_lock(&u->lock);
    snap_begin(s, "uart", 1);
    SNAP(s, u->ier);
    SNAP(s, u->fcr);
    SNAP(s, u->lcr);
    SNAP(s, u->mcr);
    SNAP(s, u->lsr_errors);
    SNAP(s, u->msr);
    SNAP(s, u->scr);
    SNAP(s, u->dll);
    SNAP(s, u->dlm);
    SNAP(s, u->thre_irq);
    SNAP(s, u->timeout);
    SNAP(s, u->stalled);
    SNAP(s, u->irq_level);
    SNAP(s, u->rx.buf);
    SNAP(s, u->rx.n);
    SNAP(s, u->tx.buf);
    SNAP(s, u->tx.n);
    if (snap_loading(s)) {
        u->ier &= 0x0f;
        u->mcr &= 0x1f;
        if (u->rx.n > UART_FIFO_SIZE || u->tx.n > UART_FIFO_SIZE) {
            u->rx.n = u->tx.n = 0;
            s->err = -EINVAL;
        }
        u->fcr = u->fcr & FCR_ENABLE ? u->fcr & (FCR_ENABLE | FCR_TRIGGER) : 0;
        if (!u->timeout)
            rx_changed(u);
    }
    spin_unlock(&u->lock);
    return snap_end(s);
}

static void uart_drain(void *dev, uint64_t deadline_ns)
{
    struct uart *u = dev;
    spin_lock(&u->lock);
    u->paused = true;
    while (u->pumping) {        /* the channel's other side is in there: a bounded copy */
        spin_unlock(&u->lock);
        thread_yield();
        spin_lock(&u->lock);
    }
    spin_unlock(&u->lock);
}

static void uart_resume(void *dev)
{
    struct uart *u = dev;
    spin_lock(&u->lock);
    u->paused = false;
    spin_unlock(&u->lock);
    chan_moved(u);
}

static void uart_destroy(void *dev)
{
    struct uart *u = dev;
    if (u->chan)
        chan_set_notify(u->chan, CHAN_DEV, NULL, NULL);
    vtimer_destroy(&u->rx_timer);
    vtimer_destroy(&u->stall_timer);
    kfree(u);
}

const struct gdev_ops uart_ops = { .name = "uart", .reset = uart_reset, .snap = uart_snap, .destroy = uart_destroy, .drain = uart_drain, .resume = uart_resume };

struct uart *uart_create(struct vmclock *clock, struct irqline irq, struct chan *chan)
{
    struct uart *u = kzalloc(sizeof *u);
    if (!u)
        return NULL;
    u->clock = clock;
    u->irq = irq;
    u->chan = chan;
    vtimer_init(&u->rx_timer, clock, rx_waited, u);
    vtimer_init(&u->stall_timer, clock, tx_stalled, u);
    uart_reset(u, GDEV_POWER_ON);
    if (chan)
        chan_set_notify(chan, CHAN_DEV, chan_moved, u);
    return u;
}
