/*
 * LVM2 volume groups with linear volumes, read from their text metadata (label "LABELONE", "LVM2 001").  Thread context.
 * Nothing of the metadata is ever written.  -ENOENT: no physical volume among the disks; -EILSEQ: damaged.
 */
#pragma once
#include "kernel/block/linear.h"

struct lvm_lv {
    char name[128];
    uint64_t size;              /* bytes */
    struct linear_seg *segs;
    unsigned nsegs;
    char problem[96];           /* not empty: why it cannot be opened */
};

struct lvm_vg { char name[128]; uint64_t seqno; unsigned nlvs; struct lvm_lv *lvs; };

/* The volume group of the first disk that belongs to one; the other disks that belong to it too are its physical volumes. */
int lvm_scan(struct blk *const *disks, unsigned n, struct lvm_vg **out);
void lvm_free(struct lvm_vg *);
/* The volume as a disk ("VG/LV"); the disks below are not owned. */
int lvm_open(struct lvm_vg *, const struct lvm_lv *, bool read_only, struct blk **out);
