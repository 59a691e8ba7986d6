/* IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller". */
#include "drivers/ps2.h"

#include <errno.h>

#include "drivers/ps2_keys.h"
#include "kernel/hw/i8042.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/irq.h"

enum { KBD_IRQ = 1, RING = 64, MAX_DRAIN = 32 };
#define ANSWER_NS 50000000ull
#define POLL_NS   20000000ull
#define PROBE_NS  250000000ull    /* until it is known whether interrupts come: an idle machine should stay idle */

static struct {
    struct chan *chan;
    struct event event;
    struct spinlock lock;               /* the controller and head */
    uint32_t head, tail;                /* head: interrupt handler; tail: thread */
    uint8_t ring[RING];
    uint64_t irqs;
    bool polled;
    struct ps2_keys keys;
} kbd;

/* ---- Talking to the controller; boot only ---- */

static bool wait_status(uint8_t mask, uint8_t want)
{
    uint64_t limit = clock_ns() + ANSWER_NS;
    do {
        uint8_t s = inb(I8042_STATUS);
        if (s == 0xff)
            return false;       /* nothing decodes the port */
        if ((s & mask) == want)
            return true;
        cpu_relax();
    } while (clock_ns() < limit);
    return false;
}

static bool command(uint8_t c)
{
    if (!wait_status(I8042_STS_IBF, 0))
        return false;
    outb(I8042_COMMAND, c);
    return true;
}
static bool send(uint8_t b)
{
    if (!wait_status(I8042_STS_IBF, 0))
        return false;
    outb(I8042_DATA, b);
    return true;
}
static int answer(void) { return wait_status(I8042_STS_OBF, I8042_STS_OBF) ? inb(I8042_DATA) : -ETIMEDOUT; }

static void flush(void)
{
    for (unsigned i = 0; i < MAX_DRAIN && inb(I8042_STATUS) & I8042_STS_OBF; i++)
        inb(I8042_DATA);
}

/* Set 2 in the keyboard, translation to set 1 in the controller: the one combination that all of them know, USB emulation by firmware included. */
static bool set_up(void)
{
    if (inb(I8042_STATUS) == 0xff || !command(I8042_KBD_OFF) || !command(I8042_AUX_OFF))
        return false;
    flush();
    if (!command(I8042_READ_RAM))
        return false;
    int ctr = answer();
    if (ctr < 0)
        return false;
    ctr = (ctr | I8042_CTR_TRANSLATE | I8042_CTR_SYS | I8042_CTR_AUX_OFF) & ~(I8042_CTR_KBD_OFF | I8042_CTR_AUX_IRQ | I8042_CTR_KBD_IRQ);
    if (!command(I8042_WRITE_RAM) || !send((uint8_t)ctr) || !command(I8042_KBD_ON))
        return false;
    bool enabled = send(PS2_ENABLE) && answer() == PS2_ACK;
    flush();
    return enabled && command(I8042_WRITE_RAM) && send((uint8_t)(ctr | I8042_CTR_KBD_IRQ));
}

/* ---- Running ---- */

static bool take(void)
{
    bool any = false;
    unsigned long f = spin_lock_irqsave(&kbd.lock);
    for (unsigned i = 0; i < MAX_DRAIN; i++) {
        uint8_t s = inb(I8042_STATUS);
        if (!(s & I8042_STS_OBF) || s == 0xff)
            break;
        uint8_t byte = inb(I8042_DATA);
        uint32_t head = kbd.head;
        if (!(s & I8042_STS_AUX) && head - atomic_load(&kbd.tail) < RING) {
            kbd.ring[head % RING] = byte;
            atomic_store(&kbd.head, head + 1);
        }
        any = true;
    }
    spin_unlock_irqrestore(&kbd.lock, f);
    return any;
}

static enum irq_result kbd_irq(void *arg)
{
    if (!take())
        return IRQ_NOT_MINE;
    atomic_add(&kbd.irqs, 1);
    event_post(&kbd.event);
    return IRQ_HANDLED;
}

static void pass_keys(void)
{
    char text[8];
    for (uint32_t head = atomic_load(&kbd.head); kbd.tail != head; ) {
        size_t n = ps2_key(&kbd.keys, kbd.ring[kbd.tail % RING], text);
        atomic_store(&kbd.tail, kbd.tail + 1);
        if (n)
            chan_write(kbd.chan, CHAN_DEV, text, n);
    }
}

/* Until the first interrupt has come the thread also looks by itself; a byte that waited although interrupts should tell of it means that none arrives. */
static void kbd_thread(void *arg)
{
    bool waited = false;
    for (;;) {
        pass_keys();
        if (atomic_load(&kbd.irqs) && !kbd.polled) {
            event_wait(&kbd.event);
            continue;
        }
        bool woken = event_wait_until(&kbd.event, clock_ns() + (kbd.polled ? POLL_NS : PROBE_NS));
        bool full = !woken && inb(I8042_STATUS) & I8042_STS_OBF;
        if (full && waited && !kbd.polled && !atomic_load(&kbd.irqs)) {
            kbd.polled = true;
            log_info("ps2", "no interrupt arrives from the keyboard: it is polled");
        }
        if (kbd.polled)
            take();
        waited = full;
    }
}

int ps2_start(struct chan *c)
{
    kbd.chan = c;
    event_init(&kbd.event);
    if (!set_up()) {
        log_info("ps2", "no PS/2 keyboard");
        return -ENODEV;
    }
    kbd.polled = !irq_request(IRQ_ISA, KBD_IRQ, kbd_irq, NULL, "ps2");
    if (!thread_start("ps2", kbd_thread, NULL))
        return -ENOMEM;
    log_info("ps2", "keyboard%s", kbd.polled ? ", polled" : "");
    return 0;
}
