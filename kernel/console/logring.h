/*
 * The log's memory: fixed slots in an area that may survive a warm reset.  Each slot carries a check word that depends on the boot it was written in, so a reader
 * after the reset takes whole lines of the last boot and nothing else.  No locks: kernel/console/log.c serialises.  H.
 */
#pragma once
#include "kernel/console/console.h"

struct logring_slot { struct log_line line; uint64_t check; };

struct logring_area {
    uint64_t magic, boot, slots, check;     /* check: of the three words before */
    struct logring_slot slot[];
};

struct logring { struct logring_area *area; unsigned slots; uint64_t next; };

/* Lays out `bytes` of memory afresh; `boot` differs from boot to boot.  -EINVAL: fewer than two slots. */
int  logring_init(struct logring *, void *mem, size_t bytes, uint64_t boot);
/* Sets line->seq and keeps the line; the oldest goes when the ring is full. */
void logring_add(struct logring *, struct log_line *);
/* Oldest kept line with seq >= *seq, *seq advanced behind it; false: none. */
bool logring_read(const struct logring *, uint64_t *seq, struct log_line *);
/* Attach to what a previous boot left in memory: the number of readable lines, 0 if none; then logring_read() works on it. */
unsigned logring_recover(struct logring *, const void *mem, size_t bytes);
