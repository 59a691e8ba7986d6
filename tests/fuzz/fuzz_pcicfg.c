/* Configuration space and BAR accesses of any kind against two virtio functions and the bridges; then a snapshot round trip. */
#include <stdlib.h>
#include <string.h>

#include "guestdev/virtio_blk.h"
#include "guestdev/virtio_rng.h"
#include "tests/host/mem_blk.h"
#include "tests/host/port_host.h"
#include "tests/host/vguest.h"

static struct { struct vguest *g; struct mem_blk *disk; } bed;

struct input { const uint8_t *p; size_t n; };

static uint32_t take(struct input *in, unsigned bytes)
{
    uint32_t v = 0;
    for (unsigned i = 0; i < bytes && in->n; i++, in->n--)
        v |= (uint32_t)*in->p++ << (8 * i);
    return v;
}

static void step(struct input *in)
{
    static const uint8_t slots[4] = { 0, 4, 5, 31 };
    uint32_t op = take(in, 1), size = 1u << (op >> 4 & 3);
    unsigned slot = slots[op >> 6];
    uint64_t bar = vg_cfg_read(bed.g, slot, PCI_BAR(0), 4) & PCI_BAR_MEM_MASK;
    bar |= (uint64_t)vg_cfg_read(bed.g, slot, PCI_BAR(1), 4) << 32;
    switch (op & 15) {
    case 0: case 1: case 2: vg_cfg_write(bed.g, slot, take(in, 1), size, take(in, 4)); break;
    case 3: vg_cfg_read(bed.g, slot, take(in, 2) & 0xfff, size); break;
    case 4: vg_out(bed.g, 0xcf8, 4, 0x80000000u | slot << 11 | (take(in, 1) & 0xfc)); break;
    case 5: vg_out(bed.g, 0xcf8 + (take(in, 1) & 7), size & 7 ? size : 4, take(in, 4)); break;
    case 6: vg_in(bed.g, 0xcf8 + (take(in, 1) & 7), size & 7 ? size : 4); break;
    case 7: case 8: case 9: vg_write(bed.g, bar + (take(in, 2) & 0x7fff), size, take(in, 4) | (uint64_t)take(in, 2) << 40); break;
    case 10: vg_read(bed.g, bar + (take(in, 2) & 0x7fff), size); break;
    case 11: vg_cfg_write(bed.g, slot, PCI_BAR(0), 4, 0xc0000000 + (take(in, 1) << 15)); break;      /* likely conflicts */
    case 12: vg_cfg_write(bed.g, slot, PCI_COMMAND, 2, take(in, 2)); break;
    case 13: pcihost_firmware(bed.g->host); break;
    case 14: vg_write(bed.g, bar + 0x14, 1, take(in, 1)); break;
    case 15: vg_write(bed.g, bar + 0x20 + (take(in, 1) & 0x1c), 4, take(in, 2) << 4); break;
    }
}

static void round_trip(const struct gdev *dev, unsigned n)
{
    static uint8_t one[32768], two[32768];
    struct snap s, l;
    snap_init_save(&s, one, sizeof one);
    for (unsigned i = 0; i < n; i++)
        ASSERT(!dev[i].ops->snap(dev[i].dev, &s));
    size_t len = s.pos;
    for (unsigned i = 0; i < n; i++)
        dev[i].ops->reset(dev[i].dev, GDEV_POWER_ON);
    snap_init_load(&l, one, len);
    for (unsigned i = 0; i < n; i++)
        ASSERT(!dev[i].ops->snap(dev[i].dev, &l));
    snap_init_save(&s, two, sizeof two);
    for (unsigned i = 0; i < n; i++)
        ASSERT(!dev[i].ops->snap(dev[i].dev, &s));
    ASSERT(s.pos == len && !memcmp(one, two, len));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    struct virtio_blk *blk;
    struct virtio_rng *rng;
    if (!bed.g) {
        bed.g = vguest_create(4 << 20, 1);
        bed.disk = mem_blk_create(1 << 16, 1 << 16, MEM_INLINE, 1);
        host_random_seed(1);
    }
    const struct virtio_blk_config_args ba = { .gmem = &bed.g->gmem, .bus = pcihost_bus(bed.g->host), .slot = 4, .nqueues = 2, .blk = &bed.disk->blk, .serial = "" };
    ASSERT(!virtio_blk_create(&ba, &blk));
    ASSERT(!virtio_rng_create(&bed.g->gmem, pcihost_bus(bed.g->host), 5, &rng));
    pcihost_firmware(bed.g->host);
    while (in.n)
        step(&in);
    const struct gdev dev[] = { { &virtio_blk_ops, blk }, { &virtio_rng_ops, rng }, { &pcihost_ops, bed.g->host } };
    virtio_blk_ops.drain(blk, clock_ns() + 10000000000ull);
    virtio_rng_ops.drain(rng, clock_ns() + 10000000000ull);
    ASSERT(bed.g->gmem.pins == 0);
    round_trip(dev, 3);
    virtio_blk_ops.destroy(blk);
    virtio_rng_ops.destroy(rng);
    pcihost_ops.reset(bed.g->host, GDEV_RESET);
    for (unsigned i = 0; i < 8; i++)
        ASSERT(!bed.g->gsi[i]);
    return 0;
}
