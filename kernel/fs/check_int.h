/* Inside of the check: check.c reads and counts everything, repair.c builds anew what is damaged, scrub.c reads beside normal use. */
#pragma once
#include "kernel/fs/fs_int.h"

enum { BAD_DATA = 1, BAD_SPACE = 2 /* counts */, BAD_NAMES = 4 /* name tree, inode records */, BAD_FILE = 8 /* an extent tree */ };

/* What is known of an inode. */
struct seen {
    uint64_t ino, parent;
    uint64_t by;                /* repair: the directory whose entry for it stays; 0: none */
    uint32_t names, entries, nentries;
    uint8_t type;
    bool orphan, bad_extents, reached;
    bool made, placed;          /* repair: had no record; its entry is in the new tree */
};

struct check {
    struct fs *fs;
    struct fs_report *rep;
    unsigned flags, bad;
    uint16_t **count;           /* by chunk; NULL: none counted */
    uint64_t nchunks;
    struct seen *seen;          /* ascending by ino */
    size_t nseen, seen_cap;
    struct seen *now;           /* whose extents are being read */
    uint8_t *buf;               /* data */
    int err;                    /* the check itself could not go on */
};

void finding(struct check *, unsigned what, const char *fmt, ...) __printf_like(3, 4);
static inline unsigned long long ull(uint64_t v) { return v; }

struct seen *check_seen(struct check *, uint64_t ino);
/* Inserts in order; NULL: no memory, and c->err says so. */
struct seen *check_see(struct check *, const struct seen *);
/* Calls leaf for each readable leaf of the name tree, in order. */
void check_each_leaf(struct check *, void (*leaf)(struct check *, struct node *, void *arg), void *arg);
/* A copy of item i if it is a well-formed entry. */
union dirent_buf { struct dirent_rec rec; uint8_t bytes[NODE_MAX_VALUE]; };
bool check_dirent_ok(struct node *, int i, union dirent_buf *);
void check_data_blocks(struct check *, uint64_t ino, uint64_t lblk, const struct ext_rec *);
bool check_extent_place(struct fs *, const struct ext_rec *);  /* all of it is in the pool and outside the tables */

/* With counts that are right for all that could be read: builds the trees anew from that.  The old ones are leaked until the next recount. */
int repair_trees(struct check *);
