/*
 * Partitions: GPT (UEFI Specification 2.10, "GUID Partition Table (GPT) Disk Layout") and MBR with logical partitions.
 * Thread context.  A damaged table is -EILSEQ, none is -ENOENT.
 */
#pragma once
#include "kernel/block/blk.h"

enum part_scheme { PART_MBR, PART_GPT };
#define PART_MAX 128

struct part {
    int number;                 /* as other systems count: MBR 1-4, logical from 5 on; GPT: entry + 1 */
    uint64_t off, len;          /* bytes */
    uint8_t type;               /* MBR */
    bool active;                /* MBR: bootable */
    uint8_t type_guid[16], guid[16];    /* GPT, in on-disk order */
    char name[73];              /* GPT: what is not ASCII becomes '?' */
};

struct part_table {
    enum part_scheme scheme;
    bool from_backup;           /* GPT: the first header or its entries are damaged */
    uint8_t guid[16];
    unsigned n;
    struct part part[PART_MAX];
};

int part_read(struct blk *disk, struct part_table *);
/* Replace whatever table there is.  Offsets and lengths: multiples of 1 MiB are best, of the block size needed; MBR numbers from 5 on make
 * logical partitions, each with a track of 1 MiB before it (off counts behind it).  The disk must be claimed for writing by the caller. */
int part_write(struct blk *disk, const struct part_table *);
/* Rewrite a damaged first (or backup) GPT from the other. */
int part_repair(struct blk *disk);
/* The partition as a disk; disk is not owned and must outlive it.  Name: DISKpN. */
int part_open(struct blk *disk, const struct part *, bool read_only, struct blk **out);

extern const uint8_t part_guid_linux[16], part_guid_esp[16], part_guid_lvm[16], part_guid_joist[16];
