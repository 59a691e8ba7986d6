/*
 * The common engine of layers that map their blocks to places in other disks: pool files and image formats.
 *
 * A sorted cache of map entries answers submit under a spinlock, in any context: what is cached goes straight down, part by part.
 * The rest is queued for a thread, in which the owner holds its lock, may wait, and teaches the cache.
 */
#pragma once
#include "kernel/block/blk.h"
#include "kernel/lib/port.h"

enum { MAP_ZERO /* reads as zeroes; writes are slow */, MAP_READ /* writes are slow */, MAP_WRITE };

struct map { uint64_t off, len, at; struct blk *to; uint8_t state; bool pass; /* see blk_pass */ };
#define MAP_CACHE 8192          /* entries */

struct mapped;
struct mapped_ops {
    /* Any context: let a thread call mapped_serve(). */
    void (*kick)(struct mapped *);
    /* Any context: no change of the map waits to become durable, so FLUSH and FUA mean the same below. */
    bool (*settled)(struct mapped *);
    /* Thread, between lock and unlock: carry the request out from byte `from` on.  For FLUSH: make everything durable. */
    int  (*slow)(struct mapped *, struct blk_req *, size_t from);
    void (*lock)(struct mapped *);
    void (*unlock)(struct mapped *);
};

struct mapped {
    const struct mapped_ops *ops;
    struct blk *below;          /* where flushes go */
    const struct blk_limits *own;       /* what every request has been checked against */
    int inflight;               /* parts on their way down; raised under spin with the gate open, lowered without */
    bool draining;              /* the next that finds inflight at 0 posts `drained` */
    struct spinlock spin;       /* guards all that follows */
    struct map *map;
    unsigned n, cap, users;     /* users: without any, nothing is learnt */
    unsigned hit;               /* where the last request was found */
    int gate;
    bool queued;
    struct event drained;
    struct list queue;
};

/* `own`: limits that every disk on the owner keeps, at least. */
void mapped_init(struct mapped *, const struct mapped_ops *, struct blk *below, const struct blk_limits *own);
void mapped_fini(struct mapped *);
/* Context bytes per request over disks that need `below` bytes. */
uint32_t mapped_ctx_size(uint32_t below);

/* blk_ops.submit of the owner.  `block`: the owner's logical block. */
void mapped_submit(struct mapped *, struct blk_req *, uint32_t block);
/* Work off the queue, or a good part of it, after which it kicks again.  The owner may be gone when it returns. */
void mapped_serve(struct mapped *);

/* All of these with the owner's lock held. */
void mapped_use(struct mapped *, int more);             /* disks open on the owner come and go */
void mapped_learn(struct mapped *, uint64_t off, uint64_t len, struct blk *to, uint64_t at, unsigned state);
void mapped_forget(struct mapped *, uint64_t off, uint64_t len);
void mapped_read_only(struct mapped *);                 /* entries that could be written to become MAP_READ */
/* Stop the fast path and wait until it is empty: before blocks are unmapped that requests may be using. */
void mapped_gate(struct mapped *);
void mapped_ungate(struct mapped *);

/* Describe bytes [done, done+len) of a request in `to`: the same list if that is all of it, else a slice in iov[max], which may have to
 * be shorter.  Returns its length, a multiple of block; 0: not even one block fits in so many entries. */
size_t blk_slice(struct blk_req *to, struct iov *iov, int max, const struct blk_req *r, size_t done, size_t len, uint32_t block);

/* Copies a request's data through a buffer to and from functions that take one: the usual `slow` for reads and writes. */
int mapped_copy(struct blk_req *, size_t from, int (*read)(void *, uint64_t, void *, size_t),
                int (*write)(void *, uint64_t, const void *, size_t), void *arg);
