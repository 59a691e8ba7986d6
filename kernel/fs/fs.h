/*
 * The pool file system.
 *
 * Copy-on-write metadata trees with checksums, committed atomically by alternating superblocks; extents with reference counts per
 * block, so that copying a file shares everything in constant time.  docs/FS-FORMAT.md has the format and the proof.
 *
 * All calls are for thread context unless said otherwise, from any number of threads.  They return 0 or -errno: -ENOENT, -EEXIST,
 * -ENOTDIR, -EISDIR, -ENOTEMPTY, -ENAMETOOLONG, -EINVAL, -ENOSPC (nothing was changed), -ENOMEM (likewise), -EROFS (mounted so, or
 * after a failed write), -EBUSY, -EIO, -EILSEQ (damaged metadata, or data that does not match its checksum).
 *
 * Durability: what ended before a successful fs_sync() or BLK_FLUSH survives any power cut, whole.  Of what came later the names
 * and sizes are those of some moment between two commits, the same moment everywhere; data written in place (overwrites) may be old
 * or new per sector.  Blocks that were freed never show in another file.
 *
 * Paths: "a/b/c", relative to the root; "" and "/" are the root.  Names: 1 to 255 bytes without '/' and NUL, not "." or "..".
 */
#pragma once
#include "kernel/block/blk.h"

struct fs;
struct fs_file;                 /* an open file; each open counts */

enum { FS_CSUM_DATA = 1 << 0 /* new files are checksummed unless told otherwise */ };

struct fs_mkfs_opts {
    char label[32];
    unsigned flags;             /* FS_CSUM_DATA */
    uint64_t size;              /* bytes; 0: all of the disk */
};
int fs_mkfs(struct blk *, const struct fs_mkfs_opts *);

enum {
    FS_RDONLY = 1 << 0,
    FS_DISCARD = 1 << 1,        /* trim what a commit has freed */
    FS_SALVAGE = 1 << 2,        /* mount what is damaged, for fs_check with FS_CHECK_REPAIR and nothing before it */
};
/* The disk is claimed for writing (reading) while mounted and not closed by unmount. */
int fs_mount(struct blk *, unsigned flags, struct fs **out);
/* No file may be open (-EBUSY).  Commits; an error of that is returned, and the pool is gone all the same. */
int fs_unmount(struct fs *);
int fs_sync(struct fs *);

struct fs_stat {
    uint64_t ino, size, allocated;      /* bytes; allocated counts shared blocks too */
    uint64_t mtime, ctime;              /* ns since 1970 */
    uint32_t entries;                   /* directory */
    bool dir, csum;
};

struct fs_usage {
    uint64_t size, used, free;          /* bytes; free can be written by files right now; used + free + overhead = size */
    uint64_t overhead;                  /* tables and the reserve that lets deletions work in a full pool */
    uint64_t files;                     /* and directories */
    uint64_t gen;                       /* commits so far */
    char label[32];
    int failed;                         /* the -errno that made the pool read-only; 0: healthy */
};
void fs_usage(struct fs *, struct fs_usage *);

/* ---- Names ---- */
int fs_stat(struct fs *, const char *path, struct fs_stat *);
int fs_mkdir(struct fs *, const char *path);
int fs_unlink(struct fs *, const char *path);           /* file, or empty directory; an open file lives on until it is closed */
int fs_rename(struct fs *, const char *from, const char *to);  /* replaces a file, or an empty directory by a directory, atomically */
/* A copy that shares all blocks, in constant time.  `to` must not exist. */
int fs_reflink(struct fs *, const char *from, const char *to);

struct fs_dirent { uint64_t ino, cookie; bool dir; char name[256]; };
/* The entry after `cookie` (0: the first) in the directory; -ENOENT: no more.  Order is that of hashes; entries that stay are seen once. */
int fs_readdir(struct fs *, const char *path, uint64_t cookie, struct fs_dirent *);

/* ---- Files ---- */
enum { FS_CREATE = 1, FS_EXCL = 2, FS_CSUM = 4, FS_NOCSUM = 8 /* of a file being created; neither: the pool's default */ };
int fs_open(struct fs *, const char *path, unsigned flags, struct fs_file **out);
void fs_close(struct fs_file *);
int fs_fstat(struct fs_file *, struct fs_stat *);
/* Bytes read (0 at the end) or -errno. */
int64_t fs_read(struct fs_file *, uint64_t off, void *buf, size_t len);
/* All or -errno; the file grows as needed.  After an error a prefix may have been written. */
int fs_write(struct fs_file *, uint64_t off, const void *buf, size_t len);
int fs_truncate(struct fs_file *, uint64_t size);
/* Space for all of [off, off+len) that reads as zeroes where nothing was written; grows the file.  -ENOSPC: nothing was taken. */
int fs_allocate(struct fs_file *, uint64_t off, uint64_t len);
int fs_punch(struct fs_file *, uint64_t off, uint64_t len);         /* reads as zeroes; whole blocks are given back */
int fs_zero(struct fs_file *, uint64_t off, uint64_t len);          /* reads as zeroes; stays allocated */
/* Next data (hole) at or after off, in bytes; -ENXIO: none before the end.  Unwritten space is a hole. */
int64_t fs_seek_data(struct fs_file *, uint64_t off);
int64_t fs_seek_hole(struct fs_file *, uint64_t off);
bool fs_is_open(struct fs *, const char *path);

/*
 * The file as a disk of its size rounded down to 512.  Reads and overwrites of allocated, unshared blocks go straight down from
 * submit; the rest is done by the pool's threads.  Closing the blk releases the file.  Growing by resize; one blk per file writes (claims).
 */
int fs_file_blk(struct fs_file *, bool read_only, struct blk **out);

/* ---- Care ---- */
struct fs_report {
    uint64_t errors, fixed;             /* findings; repairs made */
    uint64_t left;                      /* structural findings that are there now: 0 after a repair that could do it all */
    uint64_t lost_found;                /* repair: files and directories that are now in /lost+found */
    uint64_t bad_data, data_blocks;     /* checksummed blocks that do not match; blocks read */
    uint64_t files, dirs, orphans, nodes, leaked, shared;
    void (*say)(void *arg, const char *msg);            /* each finding, one sentence; may be NULL */
    void (*progress)(void *arg, uint64_t done, uint64_t all);
    void *arg;
};
enum { FS_CHECK_DATA = 1, FS_CHECK_REPAIR = 2 };
/*
 * Check everything.  Nothing else may use the pool meanwhile.  0 when it could be done, whatever it found.
 *
 * Repair counts all blocks anew, and, where more than counts is damaged, builds the trees anew from all that can be read: what cannot is lost
 * (parts of files become holes), what has lost its name is put into /lost+found as inode-N.  Data that does not match its checksum stays.
 */
int fs_check(struct fs *, unsigned flags, struct fs_report *);
/* Read all metadata and checksummed data of the committed state while the pool is in use. */
int fs_scrub(struct fs *, struct fs_report *);
int fs_trim(struct fs *, uint64_t *trimmed);            /* discard all free space */
int fs_grow(struct fs *, uint64_t size);                /* bytes; 0: all of the disk.  Durable when it returns. */
