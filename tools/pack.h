/* Compresses clusters on all CPUs; results come in the order of submission. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct packer;
/* Takes cluster `off`, which is buf[0..cluster), or packed[0..n) if n is not 0: it became smaller.  Called from pack_add and pack_end, in
 * order.  0 or -errno. */
typedef int pack_out(void *arg, uint64_t off, const uint8_t *buf, const uint8_t *packed, size_t n);

/* zstd or raw deflate as qcow2 wants it.  NULL: no memory, no threads. */
struct packer *pack_start(size_t cluster, bool zstd, pack_out *out, void *arg);
int pack_add(struct packer *, uint64_t off, const uint8_t *buf);       /* copies; 0 or what `out` said */
int pack_end(struct packer *);                                          /* waits for the rest, frees */
