#include "guestdev/virtio_rng.h"

#include <errno.h>
#include <string.h>

#include "guestdev/virtio_pci.h"

enum { QUEUE_MAX = 16, PIECE = 256 };

struct virtio_rng { struct virtio v; struct vchain chain; struct vseg seg[QUEUE_MAX]; };

static long fill(struct virtio *v, const struct vchain *c)
{
    uint32_t len = MIN(c->write_len, (uint32_t)VRNG_MAX), off = 0;
    uint8_t buf[PIECE];
    while (off < len) {
        uint32_t n = MIN(len - off, (uint32_t)PIECE);
        random_bytes(buf, n);
        if (vchain_write(&v->queue[0].vq, c, off, buf, n) != (long)n)
            return -EFAULT;
        off += n;
    }
    return off;
}

static void vrng_run(struct virtio *v, unsigned q)
{
    struct virtio_rng *r = container_of(v, struct virtio_rng, v);
    struct virtq *vq = &v->queue[0].vq;
    do {
        int got;
        virtq_suppress(vq);
        while (virtio_is_live(v) && (got = virtq_pop(vq, &r->chain))) {
            long n = got < 0 ? got : fill(v, &r->chain);
            if (n < 0) {
                virtio_break(v, "bad buffer");
                return;
            }
            virtio_push(v, 0, r->chain.head, (uint32_t)n);
        }
    } while (virtio_is_live(v) && virtq_rearm(vq));
}

static const struct virtio_class vrng_class = { .name = "virtio-rng", .id = VIRTIO_ID_ENTROPY, .pci_class = PCI_CLASS_OTHER, .run = vrng_run };

int virtio_rng_create(struct gmem *gmem, struct pci_bus *bus, unsigned slot, struct virtio_rng **out)
{
    struct virtio_rng *r = kzalloc(sizeof *r);
    if (!r)
        return -ENOMEM;
    const struct virtio_setup setup = { .cls = &vrng_class, .gmem = gmem, .bus = bus, .slot = slot, .nqueues = 1, .queue_max = QUEUE_MAX };
    r->chain.seg = r->seg;
    r->chain.max = QUEUE_MAX;
    int err = virtio_init(&r->v, &setup);
    if (err) {
        kfree(r);
        return err;
    }
    *out = r;
    return 0;
}

static void ops_reset(void *dev, enum gdev_reset kind) { virtio_reset(&((struct virtio_rng *)dev)->v); }
static int  ops_snap(void *dev, struct snap *s) { return virtio_snap(&((struct virtio_rng *)dev)->v, s); }
static void ops_drain(void *dev, uint64_t deadline_ns) { virtio_drain(&((struct virtio_rng *)dev)->v, deadline_ns); }
static void ops_resume(void *dev) { virtio_resume(&((struct virtio_rng *)dev)->v); }
static void ops_destroy(void *dev)
{
    virtio_fini(&((struct virtio_rng *)dev)->v);
    kfree(dev);
}
const struct gdev_ops virtio_rng_ops = {
    .name = "virtio-rng", .reset = ops_reset, .snap = ops_snap, .destroy = ops_destroy, .drain = ops_drain, .resume = ops_resume,
};
