/*
 * A disk in memory for tests, which can do what real disks do: end requests late, in any order and from another thread, lose what
 * was not flushed, fail, and tell afterwards what was written in which order.
 */
#pragma once
#include "kernel/block/blk.h"

enum mem_mode {
    MEM_INLINE,     /* requests end inside submit */
    MEM_QUEUED,     /* requests end in mem_blk_step(), in random order; data moves at that moment */
    MEM_THREADED,   /* a thread of its own does the same */
};

struct mem_log {                /* one entry per ended write-like request or flush, in order of end */
    enum blk_op op;
    unsigned flags;
    uint64_t off, len;
    uint8_t *data;              /* BLK_WRITE */
    size_t at_submit;           /* flush: entries that existed when it was submitted, i.e. that it covers */
};

struct mem_blk {
    struct blk blk;             /* limits may be changed before mem_blk_ready */
    uint8_t *data;              /* sparse mapping of blk.size bytes (of capacity for resizing) */
    uint64_t capacity;
    enum mem_mode mode;
    uint64_t seed;
    /* Called before each request is carried out; non-zero: the request fails with it and nothing moves. */
    int (*fail)(struct mem_blk *, struct blk_req *, void *arg);
    void *fail_arg;
    int fail_after;             /* >= 0: so many requests succeed, all later ones fail with -EIO */
    bool record;
    struct mem_log *log;
    size_t nlog, log_cap;
    uint64_t count[5];          /* requests by op */
    /* private */
    uint32_t lock;
    struct list pending;
    unsigned npending;
    void *thread;
};

/* Capacity may exceed size for online growth.  Memory comes zeroed and costs only what is touched. */
struct mem_blk *mem_blk_create(uint64_t size, uint64_t capacity, enum mem_mode mode, uint64_t seed);
/* Closes it, whatever the ops it was given in place of its own. */
void mem_blk_free(struct mem_blk *);
/* After changing limits; done by create for the default ones. */
void mem_blk_relimit(struct mem_blk *);
bool mem_blk_step(struct mem_blk *);    /* ends one request; false: none pending */
void mem_blk_drain(struct mem_blk *);
void mem_blk_log_reset(struct mem_blk *);

uint64_t mem_rand(uint64_t *seed);      /* splitmix64 */
