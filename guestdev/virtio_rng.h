/* virtio entropy device: fills buffers from the host's CSPRNG, at most VRNG_MAX bytes each.  VIRTIO 1.2, section 5.4. */
#pragma once
#include "guestdev/pci.h"
#include "kernel/vmm/gmem.h"

enum { VRNG_MAX = 4096 };
struct virtio_rng;
int virtio_rng_create(struct gmem *, struct pci_bus *, unsigned slot, struct virtio_rng **);    /* 0; -ENOMEM, -EBUSY */
extern const struct gdev_ops virtio_rng_ops;
