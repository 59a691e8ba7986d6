/*
 * virtio block device over a struct blk.  VIRTIO 1.2, section 5.2.
 *
 * A request goes from the guest's doorbell through its pinned pages to blk_submit on the vCPU's own thread: no thread hop, no copy, no allocation.
 * Contexts for VIRTIO_BLK_REQS requests are made at creation; beyond that the ring is the queue.
 */
#pragma once
#include "guestdev/pci.h"
#include "kernel/block/blk.h"

enum { VIRTIO_BLK_REQS = 64, VIRTIO_BLK_SEGS = 62 /* data segments per request that the guest may use: 2 KiB of lists per context */ };

struct virtio_blk;
struct virtio_blk_config_args {
    struct gmem *gmem;
    struct pci_bus *bus;
    unsigned slot, nqueues;             /* 1 .. VIRTIO_MAX_QUEUES */
    struct blk *blk;                    /* the caller's; must outlive the device */
    bool read_only;
    const char *serial;                 /* at most 20 characters are shown */
};
int virtio_blk_create(const struct virtio_blk_config_args *, struct virtio_blk **);    /* 0; -ENOMEM, -EBUSY slot taken */
extern const struct gdev_ops virtio_blk_ops;
