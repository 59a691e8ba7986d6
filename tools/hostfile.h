/* A Linux file or block device as struct blk, for the host tools. */
#pragma once
#include "kernel/block/blk.h"

enum { HOST_WRITE = 1, HOST_CREATE = 2 /* and truncate */, HOST_SYNC = 4 /* flush means fdatasync */,
       HOST_LOCK = 8 /* -EBUSY while another process has it open for writing, or at all if we write */ };
/* The size is rounded up to 512; what lies behind the real end reads as zeroes.  0 or -errno. */
int host_blk_open(const char *path, unsigned flags, struct blk **out);

/* Whether off is in a hole of the file; *len becomes the length of the hole or the data, at most. */
bool host_blk_hole(struct blk *, uint64_t off, uint64_t *len);

/* Progress on stderr: a line that is redrawn on a terminal, "12 %" lines elsewhere, nothing when quiet. */
struct progress { const char *what; int last; bool quiet; };
void progress_show(struct progress *, uint64_t done, uint64_t all);
void progress_end(struct progress *);

/* 512, 4K, 10M, 1.5G, 2T: binary.  False: not a size. */
bool parse_size(const char *s, uint64_t *out);
