/*
 * virtio console with one port over a byte channel.  VIRTIO 1.2, section 5.3.
 *
 * Input waits in the channel until the guest gives buffers.  Output that the channel has no room for keeps its buffer until there is room; when nobody makes any
 * for VCON_STALL_NS it is dropped (as the UART does), because Linux spins with a lock held until its buffer comes back.
 */
#pragma once
#include "guestdev/pci.h"
#include "kernel/console/chan.h"
#include "kernel/vmm/gmem.h"
#include "kernel/vmm/vmclock.h"

enum { VCON_STALL_NS = 50000000 };

struct virtio_console;
struct virtio_console_args { struct gmem *gmem; struct pci_bus *bus; unsigned slot; struct chan *chan; struct vmclock *clock; };
int virtio_console_create(const struct virtio_console_args *, struct virtio_console **);       /* 0; -ENOMEM, -EBUSY */
extern const struct gdev_ops virtio_console_ops;
