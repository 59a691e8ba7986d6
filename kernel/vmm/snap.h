/*
 * snap: one function per device lists its architectural fields, used to save *and* to load.  Runs only on a paused, drained VM.
 * The stream is tagged by field name and length, so that a field added later loads from an old stream with its reset value, and a damaged
 * or foreign stream gives an error, never a wild state.  Loaders check ranges after the fields are in (return -EINVAL).
 *
 *     static int pit_snap(void *dev, struct snap *s)
 *     {
 *         struct pit *p = dev;
 *         snap_begin(s, "pit", 1);
 *         SNAP(s, p->control);
 *         snap_bytes(s, "counters", p->count, sizeof p->count);
 *         return snap_end(s);
 *     }
 */
#pragma once
#include "kernel/lib/base.h"

struct snap {
    bool loading;
    uint8_t *buf;               /* caller-owned */
    size_t len, pos;            /* save: capacity and bytes used; load: bytes given and position */
    int err;                    /* sticky: 0, -ENOSPC (save buffer full), -EINVAL (bad stream) */
    size_t section;             /* start of the open section; loading: its end in section_end */
    size_t section_end;
    uint32_t version;           /* of the open section as stored */
};

void snap_init_save(struct snap *, void *buf, size_t cap);
void snap_init_load(struct snap *, const void *buf, size_t len);
void snap_begin(struct snap *, const char *section, uint32_t version);
int  snap_end(struct snap *);           /* 0 or the sticky error; loading skips unknown trailing fields */
void snap_bytes(struct snap *, const char *field, void *p, size_t len);
/* The same for bools: loading anything but 0 and 1 is -EINVAL. */
void snap_bools(struct snap *, const char *field, void *p, size_t count);
/* Integers, bools and fixed arrays of them, host byte order (always little-endian here). */
#define SNAP(s, lvalue) _Generic((lvalue), bool: snap_bools, bool *: snap_bools, default: snap_bytes)((s), #lvalue, &(lvalue), sizeof(lvalue))
static inline bool snap_loading(const struct snap *s) { return s->loading; }
