#include "guestdev/virtio_console.h"

#include <errno.h>
#include <string.h>

#include "guestdev/virtio_pci.h"

enum { RX, TX, NQUEUES, QUEUE_MAX = 64, PIECE = 256 };

struct virtio_console {
    struct virtio v;
    struct chan *chan;
    struct virtio_console_config cfg;
    struct vseg rx_seg[QUEUE_MAX], tx_seg[QUEUE_MAX];
    struct vchain rx, tx;
    bool rx_held;                       /* a chain waits for input; touched in run(RX) only */
    bool tx_held, tx_reload;            /* a chain waits for room; walk it again by its head after a load.  In run(TX) only */
    uint32_t tx_off;
    bool dropping;                      /* atomic */
    struct work work;
    struct vtimer stall;
};

static struct virtio_console *console(struct virtio *v)
{
    return container_of(v, struct virtio_console, v);
}

/* ---- Output ---- */

/* Moves what fits; true: all of the chain is out (or dropped). */
static bool tx_move(struct virtio_console *c)
{
    const struct virtq *q = &c->v.queue[TX].vq;
    while (c->tx_off < c->tx.read_len) {
        uint8_t buf[PIECE];
        long n = vchain_read(q, &c->tx, c->tx_off, buf, sizeof buf);
        if (n <= 0) {
            virtio_break(&c->v, "output buffer outside RAM");
            return false;
        }
        size_t took = chan_write(c->chan, CHAN_DEV, buf, (size_t)n);
        c->tx_off += (uint32_t)took;
        if (took == (size_t)n) {
            atomic_store(&c->dropping, false);
            continue;
        }
        if (!atomic_load(&c->dropping))
            return false;
        c->tx_off = c->tx.read_len;
    }
    return true;
}

/* 1: there is a chain in c->tx. */
static int tx_next(struct virtio_console *c)
{
    struct virtq *q = &c->v.queue[TX].vq;
    if (c->tx_held && !c->tx_reload)
        return 1;
    int got = c->tx_reload ? virtq_pop_head(q, c->tx.head, &c->tx) : virtq_pop(q, &c->tx);
    if (got < 0)
        virtio_break(&c->v, "bad output chain");
    if (got > 0 && !c->tx_reload)
        c->tx_off = 0;
    c->tx_reload = false;
    c->tx_held = got > 0;
    return got;
}

static void run_tx(struct virtio_console *c)
{
    struct virtq *q = &c->v.queue[TX].vq;
    do {
        virtq_suppress(q);
        while (virtio_is_live(&c->v) && tx_next(c) > 0) {
            if (!tx_move(c)) {
                vtimer_arm(&c->stall, vmclock_now(c->stall.clock) + VCON_STALL_NS);
                return;                 /* room or the timer brings us back */
            }
            c->tx_held = false;
            virtio_push(&c->v, TX, c->tx.head, 0);
        }
    } while (virtio_is_live(&c->v) && virtq_rearm(q));
    vtimer_cancel(&c->stall);
}

/* ---- Input ---- */

/* Fills the chain from the channel; bytes put, -EFAULT. */
static long rx_fill(struct virtio_console *c)
{
    const struct virtq *q = &c->v.queue[RX].vq;
    uint32_t off = 0;
    while (off < c->rx.write_len) {
        uint8_t buf[PIECE];
        size_t n = chan_read(c->chan, CHAN_DEV, buf, MIN((size_t)(c->rx.write_len - off), sizeof buf));
        if (!n)
            break;
        if (vchain_write(q, &c->rx, off, buf, n) != (long)n)
            return -EFAULT;
        off += (uint32_t)n;
    }
    return off;
}

static void run_rx(struct virtio_console *c)
{
    struct virtq *q = &c->v.queue[RX].vq;
    do {
        virtq_suppress(q);
        while (virtio_is_live(&c->v) && chan_readable(c->chan, CHAN_DEV)) {
            int got = virtq_pop(q, &c->rx);
            if (got < 0 || (got > 0 && !c->rx.write_len)) {
                virtio_break(&c->v, "bad input chain");
                return;
            }
            if (!got)
                break;
            long n = rx_fill(c);
            if (n < 0) {
                virtio_break(&c->v, "input buffer outside RAM");
                return;
            }
            virtio_push(&c->v, RX, c->rx.head, (uint32_t)n);
        }
        /* Without input there is nothing to be notified of: new buffers are found when input comes. */
    } while (virtio_is_live(&c->v) && chan_readable(c->chan, CHAN_DEV) && virtq_rearm(q));
}

static void vcon_run(struct virtio *v, unsigned q)
{
    if (q == TX)
        run_tx(console(v));
    else
        run_rx(console(v));
}

/* ---- The other side ---- */

static void vcon_work(struct work *w)
{
    struct virtio_console *c = container_of(w, struct virtio_console, work);
    virtio_kick(&c->v, RX);
    virtio_kick(&c->v, TX);
}

static void on_chan(void *arg)
{
    struct virtio_console *c = arg;
    work_queue(&c->work);
}

static void on_stall(void *arg)
{
    struct virtio_console *c = arg;
    atomic_store(&c->dropping, true);
    work_queue(&c->work);
}

static void vcon_config_write(struct virtio *v, unsigned off, unsigned size, uint64_t val)
{
    uint8_t ch = (uint8_t)val;
    if (off == offsetof(struct virtio_console_config, emerg_wr) && size == 4)
        chan_write(console(v)->chan, CHAN_DEV, &ch, 1);
}

/* ---- Life ---- */

static void vcon_reset(struct virtio *v)
{
    struct virtio_console *c = console(v);
    c->tx_held = c->tx_reload = false;
    c->tx_off = 0;
    atomic_store(&c->dropping, false);
}

static void vcon_snap(struct virtio *v, struct snap *s)
{
    struct virtio_console *c = console(v);
    SNAP(s, c->tx_held);
    snap_bytes(s, "tx.head", &c->tx.head, sizeof c->tx.head);
    SNAP(s, c->tx_off);
    if (snap_loading(s))
        c->tx_reload = c->tx_held;
}

static const struct virtio_class vcon_class = {
    .name = "virtio-console", .id = VIRTIO_ID_CONSOLE, .pci_class = PCI_CLASS_COMM_OTHER,
    .run = vcon_run, .reset = vcon_reset, .config_write = vcon_config_write, .snap = vcon_snap,
};

int virtio_console_create(const struct virtio_console_args *a, struct virtio_console **out)
{
    struct virtio_console *c = kzalloc(sizeof *c);
    if (!c)
        return -ENOMEM;
    const struct virtio_setup setup = {
        .cls = &vcon_class, .gmem = a->gmem, .bus = a->bus, .slot = a->slot, .nqueues = NQUEUES, .queue_max = QUEUE_MAX,
        .features = VIRTIO_CONSOLE_F_EMERG_WRITE, .config = &c->cfg, .config_len = sizeof c->cfg,
    };
    c->chan = a->chan;
    c->rx.seg = c->rx_seg;
    c->tx.seg = c->tx_seg;
    c->rx.max = c->tx.max = QUEUE_MAX;
    work_init(&c->work, vcon_work);
    vtimer_init(&c->stall, a->clock, on_stall, c);
    int err = virtio_init(&c->v, &setup);
    if (err) {
        vtimer_destroy(&c->stall);
        kfree(c);
        return err;
    }
    chan_set_notify(c->chan, CHAN_DEV, on_chan, c);
    *out = c;
    return 0;
}

static void ops_reset(void *dev, enum gdev_reset kind) { virtio_reset(&((struct virtio_console *)dev)->v); }
static int  ops_snap(void *dev, struct snap *s) { return virtio_snap(&((struct virtio_console *)dev)->v, s); }
static void ops_drain(void *dev, uint64_t deadline_ns) { virtio_drain(&((struct virtio_console *)dev)->v, deadline_ns); }
static void ops_resume(void *dev) { virtio_resume(&((struct virtio_console *)dev)->v); }
static void ops_destroy(void *dev)
{
    struct virtio_console *c = dev;
    chan_set_notify(c->chan, CHAN_DEV, NULL, NULL);
    virtio_fini(&c->v);
    vtimer_destroy(&c->stall);
    work_flush(&c->work);
    kfree(c);
}
const struct gdev_ops virtio_console_ops = {
    .name = "virtio-console", .reset = ops_reset, .snap = ops_snap, .destroy = ops_destroy, .drain = ops_drain, .resume = ops_resume,
};
