#include "drivers/uart16550.h"
#include "kernel/console/console.h"
#include "kernel/hw/ns16550.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/irq.h"
#include "kernel/x86/panic.h"
#include "kernel/x86/time.h"
#include "kernel/x86/vmap.h"

enum { MAX_UARTS = 2, RX_RING = 1024, CHAN_BYTES = 16384, COM1_IRQ = 4, COM2_IRQ = 3 };
#define POLL_NS 10000000ull

struct uart {
    struct console console;
    uint16_t port;                      /* 0: memory mapped */
    volatile uint8_t *regs;
    unsigned stride;                    /* bytes from register to register */
    bool legacy_clock;                  /* 1.8432 MHz: the divisor is known */

    struct spinlock tx_lock;            /* the transmitter; not taken in a panic */
    struct event event;                 /* something to do for the thread */
    bool polled;                        /* no interrupt arrives */
    uint64_t irqs;
    uint32_t rx_head, rx_tail;          /* head: interrupt handler; tail: thread */
    uint32_t lost;
    uint8_t rx[RX_RING];
};

static struct uart uarts[MAX_UARTS];
static unsigned nuarts;

static uint8_t rd(const struct uart *u, unsigned reg)
{
    return u->port ? inb((uint16_t)(u->port + reg)) : mmio_read8(u->regs + reg * u->stride);
}

static void wr(const struct uart *u, unsigned reg, uint8_t v)
{
    if (u->port)
        outb((uint16_t)(u->port + reg), v);
    else
        mmio_write8(u->regs + reg * u->stride, v);
}

static bool is_there(const struct uart *u)
{
    wr(u, UART_SCR, 0x5a);
    if (rd(u, UART_SCR) != 0x5a)
        return false;
    wr(u, UART_SCR, 0xa5);
    return rd(u, UART_SCR) == 0xa5 && rd(u, UART_LSR) != 0xff;
}

/* ---- Polled output: log lines before the shell has the console, and panics ---- */

/* At most about 10 ms per byte: a UART that never gets ready (flow control of a remote console) loses the byte, not the machine. */
static bool wait_empty(const struct uart *u)
{
    for (unsigned i = 0; i < 10000; i++) {
        if (rd(u, UART_LSR) & LSR_THRE)
            return true;
        cpu_relax();
    }
    return false;
}

static void write_polled(struct console *c, const char *text, size_t len)
{
    struct uart *u = container_of(c, struct uart, console);
    bool lock = !panic_in_progress();
    if (lock)
        spin_lock(&u->tx_lock);
    for (size_t i = 0; i < len; i++)
        if (wait_empty(u))
            wr(u, UART_DATA, (uint8_t)text[i]);
    if (lock)
        spin_unlock(&u->tx_lock);
}

static void set_up(struct uart *u)
{
    wr(u, UART_IER, 0);
    if (u->legacy_clock) {              /* else the firmware set the speed, and its clock is not known */
        wr(u, UART_LCR, (uint8_t)(LCR_DLAB | LCR_8BITS));
        wr(u, UART_DLL, 1);             /* 115200 */
        wr(u, UART_DLM, 0);
    }
    wr(u, UART_LCR, LCR_8BITS);
    wr(u, UART_FCR, (uint8_t)(FCR_ENABLE | FCR_CLEAR_RX | FCR_CLEAR_TX));
    wr(u, UART_MCR, (uint8_t)(MCR_DTR | MCR_RTS | MCR_OUT2));
}

static void add(struct uart *u)
{
    if (!is_there(u))
        return;
    u->console.info = (struct console_info){ "serial", 80, 24 };
    u->console.write = write_polled;
    u->console.level = LOG_INFO;
    set_up(u);
    nuarts++;
    console_register(&u->console);
}

void uart_early_init(void)
{
    uarts[0] = (struct uart){ .port = UART_COM1, .legacy_clock = true };
    add(&uarts[0]);
}

void uart_add_spcr(const struct acpi_gas *g)
{
    if (nuarts == MAX_UARTS || (g->space == ACPI_SPACE_IO && g->address == UART_COM1))
        return;
    struct uart *u = &uarts[nuarts];
    *u = (struct uart){ .stride = g->access >= 3 || g->bits == 32 ? 4 : 1 };
    if (g->space == ACPI_SPACE_IO && g->address < 0x10000) {
        u->port = (uint16_t)g->address;
        u->legacy_clock = u->port == UART_COM2;
    } else if (g->space == ACPI_SPACE_MEMORY) {
        u->regs = mmio_map(g->address, 8 * u->stride, PT_UC);
    }
    if (u->port || u->regs)
        add(u);
}

/* ---- Interrupts and the thread ---- */
static void take_input(struct uart *u)
{
    for (unsigned i = 0; i < 256 && rd(u, UART_LSR) & LSR_DR; i++) {
        uint8_t byte = rd(u, UART_DATA);
        uint32_t head = u->rx_head;
        if (head - atomic_load(&u->rx_tail) < RX_RING) {
            u->rx[head % RX_RING] = byte;
            atomic_store(&u->rx_head, head + 1);
        } else {
            u->lost++;
        }
    }
}

static enum irq_result uart_irq(void *arg)
{
    struct uart *u = arg;
    enum irq_result r = IRQ_NOT_MINE;
    for (unsigned i = 0; i < 16; i++) {         /* bounded: an interrupt that does not go away is not ours to serve */
        uint8_t iir = rd(u, UART_IIR);
        if (iir & IIR_NONE)
            break;
        r = IRQ_HANDLED;
        switch (iir & 0x0f) {
        case IIR_RX:
        case IIR_TIMEOUT:
            take_input(u);
            break;
        case IIR_THRE:
            wr(u, UART_IER, (uint8_t)IER_RX);    /* the thread asks again when it has more */
            break;
        case IIR_LINE:
            rd(u, UART_LSR);
            break;
        default:
            rd(u, UART_MSR);
        }
    }
    if (r == IRQ_HANDLED) {
        u->irqs++;
        event_post(&u->event);
    }
    return r;
}

static void pass_input(struct uart *u)
{
    uint32_t tail = u->rx_tail, head = atomic_load(&u->rx_head);
    while (tail != head) {
        uint32_t n = MIN(head - tail, RX_RING - tail % RX_RING);
        chan_write(u->console.chan, CHAN_DEV, u->rx + tail % RX_RING, n);       /* a reader that does not read loses input, as a terminal does */
        tail += n;
        atomic_store(&u->rx_tail, tail);
    }
}

/* One FIFO full; true: there may be more once the transmitter is empty. */
static bool send_some(struct uart *u)
{
    uint8_t buf[UART_FIFO_SIZE];
    bool more = true;
    spin_lock(&u->tx_lock);
    if (rd(u, UART_LSR) & LSR_THRE) {
        size_t n = chan_read(u->console.chan, CHAN_DEV, buf, sizeof(buf));
        for (size_t i = 0; i < n; i++)
            wr(u, UART_DATA, buf[i]);
        more = n == sizeof(buf);
    }
    spin_unlock(&u->tx_lock);
    return more;
}

static void uart_thread(void *arg)
{
    struct uart *u = arg;
    for (;;) {
        pass_input(u);
        bool more = send_some(u);
        if (more && rd(u, UART_LSR) & LSR_THRE)
            continue;
        if (u->polled) {
            event_wait_until(&u->event, clock_ns() + (more ? POLL_NS / 10 : POLL_NS));
            take_input(u);
            continue;
        }
        if (more)
            wr(u, UART_IER, (uint8_t)(IER_RX | IER_THRE));      /* fires at once when it is empty by now */
        event_wait(&u->event);
    }
}

static void wake_thread(void *arg) { event_post(&((struct uart *)arg)->event); }

/* An empty transmitter must interrupt as soon as that is allowed: so we learn whether interrupts arrive at all. */
static bool irq_works(struct uart *u)
{
    wr(u, UART_IER, (uint8_t)(IER_RX | IER_THRE));
    uint64_t limit = clock_ns() + 50000000;
    while (!atomic_load(&u->irqs) && clock_ns() < limit)
        thread_sleep_until(clock_ns() + 1000000);
    return atomic_load(&u->irqs);
}

static void start(struct uart *u)
{
    struct chan *c = chan_create(CHAN_BYTES);
    if (!c)
        return;
    event_init(&u->event);
    unsigned irq = u->port == UART_COM1 ? COM1_IRQ : u->port == UART_COM2 ? COM2_IRQ : 0;
    u->polled = !irq || !irq_request(IRQ_ISA, irq, uart_irq, u, "uart") || !irq_works(u);
    if (u->polled) {
        wr(u, UART_IER, 0);
        log_info("uart", "no interrupt arrives from the serial port: it is polled");
    }
    u->console.chan = c;
    chan_set_notify(c, CHAN_DEV, wake_thread, u);
    if (!thread_start("uart", uart_thread, u))
        log_err("uart", "no memory for the serial console");
}

void uart_start(void)
{
    for (unsigned i = 0; i < nuarts; i++)
        start(&uarts[i]);
}
