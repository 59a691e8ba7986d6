/*
 * Inside of the space accounting: reference counts of all blocks, and who gets the free ones.
 *
 * Tables live at fixed places in two slots each (format.h), so writing them needs no space; the entry above says which slot counts
 * and what its checksum is, up to the superblock.  In memory: all of the upper levels that were needed, and a cache of chunks.
 *
 * space_table.c loads them, space_alloc.c promises and gives out, space_count.c counts users, space_commit.c makes a generation of tables,
 * space_grow.c trims, grows and recounts.  Everything declared here is called with space.lock held.
 */
#pragma once
#include "kernel/fs/fs_int.h"

#define CHUNKS_KEPT 1024u       /* clean chunks in memory after a commit (6 MiB) */

static inline struct fs *fs_of(struct space *s) { return container_of(s, struct fs, space); }
static inline uint64_t l0_blk(uint64_t c, int slot) { return c / FS_FAN * FS_GROUP + FS_L0 + 2 * (c % FS_FAN) + slot; }
static inline uint64_t l1_blk(uint64_t g, int slot) { return g * FS_GROUP + FS_L1 + slot; }
static inline uint64_t l2_blk(unsigned j, int slot) { return (uint64_t)j * FS_FAN * FS_GROUP + FS_L2 + slot; }

static inline bool bit(const uint64_t *map, unsigned i) { return map[i / 64] >> (i % 64) & 1; }
static inline void bit_set(uint64_t *map, unsigned i) { map[i / 64] |= BIT(i % 64); }
static inline void bit_clear(uint64_t *map, unsigned i) { map[i / 64] &= ~BIT(i % 64); }

/* The part of [start, +len) in its first chunk. */
static inline unsigned piece(uint64_t start, uint64_t len) { return MIN(FS_CHUNK - start % FS_CHUNK, len); }

/* ---- space_table.c ---- */
uint32_t space_default_free(uint64_t blocks, uint64_t chunk);          /* free blocks of a chunk never written, in a pool of that size */
uint64_t space_default_group_free(struct space *, uint64_t group);     /* the same of a group */
struct space_ent *space_group_ent(struct space *, uint64_t group);     /* NULL: default */
int space_group_load(struct space *, uint64_t group, struct group **);
int space_chunk_load(struct space *, uint64_t index, struct chunk **);
void space_chunk_forget(struct space *, struct chunk *);
void space_soil(struct space *, struct group *, struct chunk *);       /* they differ from the disk; chunk may be NULL */
int space_l2_need(struct space *, unsigned j);                         /* memory for a level-2 page */
void space_set_keep(struct space *);                                   /* the reserve, from the size */
