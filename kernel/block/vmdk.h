/*
 * VMDK: monolithic sparse, monolithic flat, and stream-optimised (read only), as VMware's "Virtual Disk Format 5.0" has them.
 * A sparse file has a directory of grain tables, twice; a flat one is a text descriptor beside a raw file.
 */
#pragma once
#include "kernel/block/image_int.h"

#define SECTOR 512ull
#define GTES 512u

struct vmdk_header {
    char magic[4];
    uint32_t version, flags;
    uint64_t capacity, grain, desc_off, desc_size;      /* sectors */
    uint32_t gtes;
    uint64_t rgd_off, gd_off, overhead;
    uint8_t unclean, newline[4];
    uint16_t compression;
    uint8_t zero[433];
} __packed;
_Static_assert(sizeof(struct vmdk_header) == 512, "VMDK header");
enum { F_NEWLINES = 1, F_RGD = 2, F_ZERO_GRAIN = 4, F_COMPRESSED = 1 << 16, F_MARKERS = 1 << 17 };

struct grain_table { uint32_t *e; uint32_t at, at2; bool dirty; };      /* at, at2: sectors of the table and its copy; 0: none */

struct vmdk {
    struct image img;
    struct vmdk_header h;
    char type[32], extent[256];         /* of the descriptor */
    uint32_t cid, parent_cid;
    struct grain_table *gt;     /* NULL: flat */
    uint64_t ngt, end;          /* end: sector where the next grain goes */
    uint64_t loaded, dirty, hand;       /* tables in memory, those that wait for a flush, where to look for one to drop */
    struct blk *flat;
    uint64_t flat_off;
    bool claimed, claimed_write;        /* the flat extent */
    uint8_t *expanded;
    uint32_t expanded_at;
};

static inline struct vmdk *vmdk_of(struct image *img) { return container_of(img, struct vmdk, img); }
static inline uint64_t grain_bytes(const struct vmdk *v) { return v->h.grain * SECTOR; }

/* vmdk.c */
extern const struct image_ops vmdk_ops;
