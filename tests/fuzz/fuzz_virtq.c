/*
 * A hostile driver: rings, descriptors and indirect tables of any content for virtio-blk, console and entropy.  The input is a program of small steps.
 * Whatever it does: no fault, and once the device has drained no guest page is pinned and no request is lost.
 */
#include <stdlib.h>
#include <string.h>

#include "guestdev/virtio_blk.h"
#include "guestdev/virtio_console.h"
#include "guestdev/virtio_rng.h"
#include "tests/host/mem_blk.h"
#include "tests/host/port_host.h"
#include "tests/host/vguest.h"

enum { SLOT = 4, DISK = 1 << 18, RAM = 4 << 20, WINDOW = 0x10000 /* rings and buffers of the fuzzed driver */, WINDOW_BYTES = 0x8000 };

static struct { struct vguest *g; struct mem_blk *disk; struct chan *chan; struct vmclock clock; struct gdev dev; struct vdrv d; } bed;

static void make_device(unsigned kind)
{
    struct virtio_blk *blk;
    struct virtio_console *con;
    struct virtio_rng *rng;
    struct pci_bus *bus = pcihost_bus(bed.g->host);
    const struct virtio_blk_config_args ba = { .gmem = &bed.g->gmem, .bus = bus, .slot = SLOT, .nqueues = 2, .blk = &bed.disk->blk, .serial = "fuzz" };
    const struct virtio_console_args ca = { .gmem = &bed.g->gmem, .bus = bus, .slot = SLOT, .chan = bed.chan, .clock = &bed.clock };
    switch (kind % 4) {
    case 0: ASSERT(!virtio_rng_create(&bed.g->gmem, bus, SLOT, &rng)); bed.dev = (struct gdev){ &virtio_rng_ops, rng }; break;
    case 1: ASSERT(!virtio_console_create(&ca, &con)); bed.dev = (struct gdev){ &virtio_console_ops, con }; break;
    default: ASSERT(!virtio_blk_create(&ba, &blk)); bed.dev = (struct gdev){ &virtio_blk_ops, blk }; break;
    }
}

struct input { const uint8_t *p; size_t n; };

static uint32_t take(struct input *in, unsigned bytes)
{
    uint32_t v = 0;
    for (unsigned i = 0; i < bytes && in->n; i++, in->n--)
        v |= (uint32_t)*in->p++ << (8 * i);
    return v;
}


static void start(uint64_t features)
{
    vdrv_negotiate(&bed.d, features | VIRTIO_F_VERSION_1);
    for (unsigned q = 0; q < 2; q++) {
        bed.g->heap = WINDOW + q * 0x2000;
        vdrv_setup_queue(&bed.d, q, 16);
    }
    vdrv_ok(&bed.d);
}

static void write_window(struct input *in)
{
    uint32_t at = take(in, 2) % WINDOW_BYTES, len = take(in, 1);
    uint8_t buf[256];
    for (uint32_t i = 0; i < len; i++)
        buf[i] = (uint8_t)take(in, 1);
    gmem_write(&bed.g->gmem, WINDOW + at, buf, len);
}

/* A well-formed descriptor with fuzzed fields gets further than random bytes do. */
static void write_desc(struct input *in)
{
    uint32_t what = take(in, 1), i = what & 15;
    struct vring_desc d = { WINDOW + take(in, 2) % WINDOW_BYTES, take(in, 2), (uint16_t)take(in, 1), (uint16_t)take(in, 1) };
    if (what & 0x80)
        d.addr = take(in, 4) | (uint64_t)take(in, 2) << 32;
    if (what & 0x40)
        d.len = take(in, 4);
    gpa_t table = what & 0x20 ? WINDOW + 0x6000 : bed.d.q[what >> 4 & 1].desc;
    gmem_write(&bed.g->gmem, table + 16 * i, &d, sizeof d);
}

static void offer(struct input *in)
{
    unsigned q = take(in, 1) & 1, head = take(in, 1);
    struct vdrv_queue *r = &bed.d.q[q];
    if (!r->size)                       /* reset meanwhile */
        return;
    gmem_store(&bed.g->gmem, r->avail + VRING_AVAIL_RING(r->avail_idx % 16), 2, head);
    gmem_store(&bed.g->gmem, r->avail + VRING_AVAIL_IDX, 2, ++r->avail_idx);
    vdrv_kick(&bed.d, q);
}

static void request(struct input *in)
{
    struct virtio_blk_hdr h = { .type = take(in, 1) & 15, .sector = take(in, 2) };
    unsigned flags = take(in, 1);
    gmem_write(&bed.g->gmem, WINDOW + 0x7000, &h, 16);
    struct vbuf v[4] = { { WINDOW + 0x7000, 16, false }, { WINDOW + take(in, 2), take(in, 2), flags & 1 }, { WINDOW + take(in, 2), take(in, 2), flags & 1 },
                         { WINDOW + 0x7100, 1, true } };
    bed.g->heap = WINDOW + 0x6000;
    if (!bed.d.q[flags >> 1 & 1].size)
        return;
    vdrv_add(&bed.d, flags >> 1 & 1, v, 4, flags & 4);
    vdrv_kick(&bed.d, flags >> 1 & 1);
}

static void snap_round_trip(void)
{
    static uint8_t one[16384], two[16384];
    struct snap s, l;
    snap_init_save(&s, one, sizeof one);
    ASSERT(!bed.dev.ops->snap(bed.dev.dev, &s));
    snap_init_load(&l, one, s.pos);
    ASSERT(!bed.dev.ops->snap(bed.dev.dev, &l));
    size_t n = s.pos;
    snap_init_save(&s, two, sizeof two);
    ASSERT(!bed.dev.ops->snap(bed.dev.dev, &s) && s.pos == n && !memcmp(one, two, n));
}

static void settle(void)
{
    for (unsigned i = 0; i < 1000; i++) {
        mem_blk_drain(bed.disk);
        thread_yield();
        if (!bed.disk->npending && i > 2)
            break;
    }
}

static void step(struct input *in)
{
    char buf[64];
    switch (take(in, 1) % 16) {
    case 0: case 1: write_window(in); break;
    case 2: case 3: write_desc(in); break;
    case 4: case 5: offer(in); break;
    case 6: case 7: request(in); break;
    case 8: mem_blk_step(bed.disk); break;
    case 9: vdrv_kick(&bed.d, take(in, 1) & 1); break;
    case 10: vg_write(bed.g, bed.d.common + take(in, 1) % 0x40, 1u << take(in, 1) % 4, take(in, 4)); break;
    case 11: vdrv_reset(&bed.d); break;
    case 12: start(take(in, 4)); break;
    case 13: chan_write(bed.chan, CHAN_USER, "0123456789", take(in, 1) % 11); break;
    case 14: chan_read(bed.chan, CHAN_USER, buf, take(in, 1) % 64); break;
    case 15: vg_cfg_write(bed.g, SLOT, take(in, 1), 1u << take(in, 1) % 3, take(in, 4)); break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    if (!bed.g) {
        bed.g = vguest_create(RAM, 1);
        bed.disk = mem_blk_create(DISK, DISK, MEM_QUEUED, 1);
        bed.disk->blk.limits.discard = bed.disk->blk.limits.write_zeroes = true;
        mem_blk_relimit(bed.disk);
        bed.chan = chan_create(64);
        vmclock_init(&bed.clock);
        vmclock_start(&bed.clock);
        host_random_seed(1);
    }
    unsigned kind = take(&in, 1);
    make_device(kind);
    vdrv_probe(&bed.d, bed.g, SLOT);
    start(take(&in, 4));
    while (in.n)
        step(&in);
    settle();
    bed.dev.ops->drain(bed.dev.dev, clock_ns() + 10000000000ull);
    ASSERT(bed.g->gmem.pins == 0);
    snap_round_trip();
    bed.dev.ops->resume(bed.dev.dev);
    settle();
    bed.dev.ops->reset(bed.dev.dev, GDEV_RESET);
    ASSERT(bed.g->gmem.pins == 0);
    bed.dev.ops->destroy(bed.dev.dev);
    gmem_zero(&bed.g->gmem, WINDOW, WINDOW_BYTES);
    return 0;
}
