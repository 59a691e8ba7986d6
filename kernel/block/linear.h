/* A disk made of pieces of others, one after the other: partitions (one piece) and linear volumes. */
#pragma once
#include "kernel/block/blk.h"

struct linear_seg { struct blk *to; uint64_t off, len; };      /* bytes */

/* The segments are copied.  With one segment, claims know which part of which disk it is.  The disks below are not owned. */
int linear_open(const char *kind, const char *name, const struct linear_seg *, unsigned n, bool read_only, struct blk **out);
