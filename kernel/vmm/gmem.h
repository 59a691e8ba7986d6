/*
 * gmem: the one door to guest memory.  Guest RAM is reference-counted host pages (4 KiB or 2 MiB), populated on first touch.
 *
 * Every function is safe against any guest-chosen gpa and length: outside RAM they fail with -EFAULT, nothing partial is promised.
 * Contexts: read/write/pin in thread context on any thread (population may wait for a zeroed page, never for memory: RAM was reserved at creation).
 * A host pointer is valid only while pinned; nobody keeps one across a guest entry otherwise.  Guests write concurrently:
 * copy first, then decide.
 */
#pragma once
#include "kernel/lib/base.h"
#include "kernel/lib/iov.h"

struct gmem;
enum gmem_prot { GMEM_READ = 1, GMEM_WRITE = 2 };

int gmem_read(struct gmem *, gpa_t, void *buf, size_t len);
int gmem_write(struct gmem *, gpa_t, const void *buf, size_t len);
int gmem_zero(struct gmem *, gpa_t, size_t len);
/* Naturally aligned single-copy-atomic accesses (virtqueue indexes, page-table entries); size 1, 2, 4 or 8. */
int gmem_load(struct gmem *, gpa_t, unsigned size, uint64_t *val);          /* acquire */
int gmem_store(struct gmem *, gpa_t, unsigned size, uint64_t val);          /* release */
/* 0: exchanged; -EAGAIN: *old updated with what was there; -EFAULT. */
int gmem_cmpxchg(struct gmem *, gpa_t, unsigned size, uint64_t *old, uint64_t val);

/* Describe [gpa, gpa+len) as host memory for DMA; adjacent pages merge.  Pins until gmem_unpin.  Returns entries used (<= max), -EFAULT when
 * any byte is not RAM (ROM counts as read-only RAM), -E2BIG when max is too small (nothing is pinned then).  len 0 gives 0. */
int  gmem_pin(struct gmem *, gpa_t, size_t len, enum gmem_prot, struct iov *, int max);
/* Same entries as pin returned.  dirty: the memory was written. */
void gmem_unpin(struct gmem *, const struct iov *, int n, bool dirty);

/* Is [gpa, gpa+len) RAM? */
bool gmem_is_ram(struct gmem *, gpa_t, size_t len);
uint64_t gmem_ram_bytes(const struct gmem *);
/* Calls fn for each RAM range in address order (for e820, SRAT, dump). */
void gmem_each_range(struct gmem *, void (*fn)(void *arg, gpa_t base, uint64_t len, bool rom), void *arg);
