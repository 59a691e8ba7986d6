/*
 * The one walker of split virtqueues (VIRTIO 1.2, section 2.7).  Devices never see descriptors: they pop a chain, which is a stream of readable bytes
 * followed by a stream of writable bytes, already checked, and push it back.
 *
 * The rings stay pinned from the first use to virtq_unmap, so that an index costs a load and not a translation.  What they hold is hostile: every
 * index, length, count and loop is bounded here, each descriptor is read once, and whatever is against the rules breaks the queue (-EPROTO),
 * to which the device answers with DEVICE_NEEDS_RESET.
 *
 * Contexts: the driver side (pop, suppress, rearm) has one caller at a time, in thread context.  The device side (push, signal) is serialised by the
 * caller's lock; any context but irq.  The two may run at once.
 */
#pragma once
#include "kernel/hw/virtio.h"
#include "kernel/lib/iov.h"
#include "kernel/vmm/gmem.h"
#include "kernel/vmm/snap.h"

enum { VIRTQ_MAX = 1024 /* entries */, VIRTQ_AREA_PAGES = 5 /* 16 KiB of descriptors, any alignment */ };

struct virtq_area { char *page[VIRTQ_AREA_PAGES]; unsigned off; struct iov iov[VIRTQ_AREA_PAGES]; int niov; };

struct virtq {
    /* Set before use by the transport; constant while enabled. */
    struct gmem *gmem;
    uint16_t max, size;                 /* entries: offered, chosen (power of two) */
    bool enabled, event_idx, indirect;
    uint64_t desc, driver, device;      /* addresses of descriptor table, available ring, used ring */

    bool mapped;
    struct virtq_area a_desc, a_driver, a_device;

    uint16_t last_avail;                /* driver side: next entry to take */
    uint16_t used, signalled;           /* device side: next entry to give; index at the last signal */
};

struct vseg { gpa_t gpa; uint32_t len; };

struct vchain {
    uint16_t head;
    uint16_t max;                       /* room in seg[]; set by the owner before pop */
    uint16_t nread, nwrite;             /* readable segments, then writable ones */
    uint32_t read_len, write_len;
    struct vseg *seg;
};

/* Back to the state after a device reset; unmaps. */
void virtq_reset(struct virtq *);
/* Takes the next chain.  1: taken; 0: none; -EPROTO: the driver broke the rules, or the rings are not in RAM. */
int  virtq_pop(struct virtq *, struct vchain *);
/* Walks chain `head` again: a request that was in flight when the VM was saved. */
int  virtq_pop_head(struct virtq *, uint16_t head, struct vchain *);
/* Ask the driver not to notify while we look anyway; ask again, true: something came in between, look once more. */
void virtq_suppress(struct virtq *);
bool virtq_rearm(struct virtq *);
/* Gives chain `head` back, `written` bytes of its writable part filled. */
void virtq_push(struct virtq *, uint16_t head, uint32_t written);
/* After one or more pushes: does the driver want an interrupt? */
bool virtq_signal(struct virtq *);
/* Unpins the rings; the next use pins them again.  Nobody may be inside. */
void virtq_unmap(struct virtq *);
/* Indexes and configuration; loading leaves it unmapped.  -EINVAL by the stream's sticky error. */
void virtq_snap(struct virtq *, struct snap *);

/* The streams of a chain.  Bytes copied, fewer at the end of the stream; -EFAULT: a segment is not RAM. */
long vchain_read(const struct virtq *, const struct vchain *, size_t off, void *buf, size_t len);
long vchain_write(const struct virtq *, const struct vchain *, size_t off, const void *buf, size_t len);
/* Pins from `off` of the readable or writable stream at most `len` bytes, as many as fit into max entries; *niov entries used.
 * Bytes pinned; -EFAULT.  The caller unpins. */
long vchain_pin(const struct virtq *, const struct vchain *, bool writable, size_t off, size_t len, struct iov *, int max, int *niov);
/* Pins the last writable byte (where a request's status goes).  0; -EFAULT: not RAM, or nothing is writable. */
int  vchain_pin_last(const struct virtq *, const struct vchain *, struct iov *);
