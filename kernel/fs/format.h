/*
 * The pool on disk.  docs/FS-FORMAT.md explains it and argues why a power cut cannot hurt it; this file has the layouts.
 * All integers are little-endian; a block is 4096 bytes; block numbers count from the start of the pool.
 */
#pragma once
#include "kernel/lib/base.h"

#define FS_BLOCK        4096u
#define FS_BLOCK_SHIFT  12
#define FS_MAGIC        "JOISTFS\1"
#define FS_VERSION      1

/* ---- Geometry ---- */

#define FS_CHUNK        2048u                   /* blocks counted by one page of reference counts (8 MiB) */
#define FS_FAN          256u                    /* entries of a page of the upper levels */
#define FS_GROUP        (FS_CHUNK * FS_FAN)     /* 2 GiB */
#define FS_HEADER       560u                    /* blocks at the start of each group that belong to the tables */
#define FS_SUPER        16u                     /* +0, +1 in groups 0 and 1: superblocks of even and odd generations */
#define FS_L0           32u                     /* within a group: 2 slots for each of its 256 chunks */
#define FS_L1           544u                    /* 2 slots: the group's entries */
#define FS_L2           546u                    /* 2 slots, in each 256th group: entries of 256 groups */
#define FS_L3           548u                    /* 2 slots, in group 0: entries of all level-2 pages */
#define FS_MIN_BLOCKS   1024u
#define FS_MAX_BLOCKS   ((uint64_t)FS_GROUP * FS_FAN * FS_FAN)

#define FS_REF_NONE     0xffffu                 /* beyond the end of the pool */
#define FS_REF_MAX      0xfff0u

/* ---- Space tables ---- */

enum { SPACE_DEFAULT, SPACE_PAGE, SPACE_UNIFORM };

struct space_ent {
    uint32_t crc;               /* SPACE_PAGE: of the page in `slot` */
    uint32_t free;              /* blocks with count 0 under this entry; not kept for SPACE_DEFAULT */
    uint16_t value;             /* SPACE_UNIFORM (level 0 only): the count of every block of the chunk */
    uint8_t state, slot;
    uint32_t zero;
};
_Static_assert(sizeof(struct space_ent) == 16, "space entry");

/* ---- Trees ---- */

struct fs_ptr { uint64_t blk, gen; };           /* blk 0: none */

struct fs_key { uint64_t a, b; };

enum { NODE_FS = 1, NODE_EXT = 2 };

struct node_hdr {
    uint32_t crc;               /* of the block from `nitems`, started with the pool's seed */
    uint16_t nitems;
    uint8_t level, kind;
    uint64_t blk, gen;
    uint64_t zero;
};
_Static_assert(sizeof(struct node_hdr) == 32, "node header");

struct node_item {              /* leaf; values grow down from the end of the block */
    struct fs_key key;
    uint16_t off, len;
    uint32_t zero;
};
_Static_assert(sizeof(struct node_item) == 24, "leaf item");

struct node_child { struct fs_key key; struct fs_ptr ptr; };
_Static_assert(sizeof(struct node_child) == 32, "child");

#define NODE_MAX_CHILDREN ((FS_BLOCK - sizeof(struct node_hdr)) / sizeof(struct node_child))
#define NODE_MAX_LEVEL  8
#define NODE_MAX_VALUE  288u

/* Keys of the name tree: a = inode, b = type << 56 | number. */
enum { ITEM_INODE = 1, ITEM_DIRENT = 2, ITEM_ORPHAN = 3 };
#define FS_ORPHANS      0ull                    /* a of the ITEM_ORPHAN items; number = inode */
#define FS_ROOT         1ull
#define FS_FIRST_INO    16ull

enum { FS_TYPE_FILE = 1, FS_TYPE_DIR = 2 };
enum { INODE_CSUM = 1 };                        /* data is checksummed and never overwritten in place */

struct inode_rec {
    uint8_t type, flags;
    uint16_t mode;
    uint32_t nentries;          /* directory: entries */
    uint64_t size;              /* bytes */
    uint64_t blocks;            /* file: blocks mapped */
    uint64_t mtime, ctime;      /* ns since 1970 */
    uint64_t parent;            /* inode of the directory it is in; 0: none any more */
    struct fs_ptr ext;          /* file: root of its extent tree */
    uint64_t zero[8];
};
_Static_assert(sizeof(struct inode_rec) == 128, "inode");

struct dirent_rec { uint64_t ino; uint8_t type, len; char name[]; } __packed;
#define FS_NAME_MAX 255

/* Extent tree: a = first block of the file, b = 0. */
enum { EXT_UNWRITTEN = 1, EXT_CSUM = 2 };
struct ext_rec {
    uint64_t pblk;
    uint32_t len;               /* blocks */
    uint32_t flags;
    uint32_t csum[];            /* EXT_CSUM: CRC-32C of each block */
};
_Static_assert(sizeof(struct ext_rec) == 16, "extent");
#define EXT_MAX      32768u
#define EXT_MAX_CSUM 64u

/* ---- Superblock ---- */

struct fs_super {
    char magic[8];
    uint32_t crc;               /* of the whole block with this field 0 */
    uint32_t version;
    uint8_t uuid[16];
    uint64_t gen;
    uint64_t blocks;
    uint64_t free;              /* blocks with count 0 */
    uint64_t next_ino, ninodes;
    struct fs_ptr root;         /* name tree */
    struct space_ent space;     /* of the level-3 page */
    uint32_t flags;             /* SUPER_* */
    uint32_t zero0;
    char label[32];
    uint8_t zero[4096 - 144];
};
enum { SUPER_CSUM_DATA = 1 };
_Static_assert(sizeof(struct fs_super) == FS_BLOCK, "superblock");
