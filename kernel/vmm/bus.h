/*
 * The bus: ports and MMIO are the same thing.  A region is claimed with one io_fn; dispatch reads an immutable sorted map without any lock.
 *
 * Unclaimed read = all ones; unclaimed write = dropped; both are counted.  An access that straddles a region's end is split
 * into bytes.  Regions never overlap, except that a later, smaller region may be laid over an earlier one with BUS_OVERLAY (it wins).
 * bus_add, bus_remove and bus_publish: thread context or a vCPU inside dispatch (BAR moves); they publish a new map, and the old one is freed after
 * every vCPU has left dispatch.  A bound on maps that wait for that keeps a guest from filling the host's memory with them, and
 * what was removed is used again: moving regions about needs no memory.  Lock order: bus writers' lock is taken inside device locks, never the reverse.
 */
#pragma once
#include "kernel/lib/base.h"

struct vcpu;
struct bus;

struct io {
    uint64_t off;       /* within the region */
    uint8_t size;       /* 1, 2, 4 or 8 bytes */
    bool write;
    uint64_t data;      /* write: value, zero-extended; read: to be filled, bits above size ignored */
    struct vcpu *cpu;   /* who; NULL when a loader or test asks.  Devices pass it on, never look inside */
};
/* What a read gave, zero-extended. */
static inline uint64_t io_value(const struct io *io) { return io->data & (~0ull >> (64 - 8 * io->size)); }

/* Returns 0, or -errno for "not here": treated as unclaimed.  Runs on a vCPU thread in thread context with preemption on; may not sleep long. */
typedef int io_fn(void *dev, struct io *);

enum { BUS_OVERLAY = 1 << 0, BUS_QUIET = 1 << 1 /* claimed and ignored on purpose */, BUS_LATER = 1 << 2 /* see bus_publish */ };

struct bus *bus_create(const char *name, uint64_t limit /* first address beyond the space */, unsigned nreaders);
void bus_destroy(struct bus *);
/* 0; -EEXIST overlaps; -EINVAL outside; -ENOMEM, also when too many old maps are still in use.  name must outlive the region. */
int  bus_add(struct bus *, uint64_t base, uint64_t len, io_fn *fn, void *dev, const char *name, unsigned flags);
int  bus_remove(struct bus *, uint64_t base, void *dev);
/* Several changes at once: with BUS_LATER, and by bus_remove_later, they are only noted.  Readers see them with bus_publish, or with anybody's next change.
 * bus_publish: 0; -ENOMEM: not yet, and until then dispatch may still call what was removed. */
int  bus_remove_later(struct bus *, uint64_t base, void *dev);
int  bus_publish(struct bus *);

/* Dispatch.  `reader` is the vCPU index (0 .. nreaders-1): one caller at a time per reader.  After a read, bits of data above size mean nothing. */
void bus_access(struct bus *, unsigned reader, uint64_t addr, struct io *);
/* Is anything claimed at addr?  For tests and for the nested-fault path. */
bool bus_claimed(struct bus *, uint64_t addr);
uint64_t bus_unclaimed(const struct bus *);     /* accesses so far */
/* Calls fn for every region in address order (vm show --devices). */
void bus_each(struct bus *, void (*fn)(void *arg, uint64_t base, uint64_t len, const char *name), void *arg);
