/*
 * Console multiplexer: one guest port, any number of terminals.  A worker moves the guest's output into a ring of the last 64
 * KiB; each terminal reads the ring at its own position, so that a slow one loses text instead of stalling the guest or another
 * terminal.  Survives restarts of the VM.
 */
#pragma once
#include "kernel/console/chan.h"
#include "mgmt/watch.h"

enum { CONMUX_KEEP = 64 << 10, CONMUX_CHAN = 16 << 10 };

struct conmux {
    struct spinlock lock;       /* ring and head */
    uint8_t *ring;              /* NULL until the first plug */
    uint64_t head;              /* bytes ever written */
    struct watchers watchers;   /* posted on new output, room for input, plug and unplug */
    struct mutex plug_lock;     /* guards chan */
    struct chan *chan;          /* owned; NULL: no machine */
    struct work drain;
};

void conmux_init(struct conmux *);
void conmux_fini(struct conmux *);                      /* unplugged */
/* Makes the channel for a new machine; its CHAN_DEV side is the guest's port.  NULL: no memory. */
struct chan *conmux_plug(struct conmux *);
/* After the machine is gone; takes in the last output; no-op when unplugged. */
void conmux_unplug(struct conmux *);
uint64_t conmux_oldest(struct conmux *);
/* Copies output from *pos on and advances it; *lost counts bytes that were overwritten before they were read. */
size_t conmux_read(struct conmux *, uint64_t *pos, void *buf, size_t len, uint64_t *lost);
size_t conmux_write(struct conmux *, const void *, size_t);    /* to the guest; bytes taken; all of them when nothing is plugged */
