/*
 * Disk image formats behind struct blk.
 *
 * The format is always stated by whoever opens an image, never guessed from its first bytes: a guest that may write a raw image could
 * make it look like one of a format that names other files.  image_probe is for the operator's commands on images that no guest has
 * written as raw.
 *
 * Thread context throughout.  Errors: -EILSEQ damaged, -ENOTSUP with a sentence in image_error, -EINVAL, -ENOSPC, -ENOMEM, -EIO, -EROFS.
 */
#pragma once
#include "kernel/block/blk.h"

enum image_format { IMAGE_NONE, IMAGE_RAW, IMAGE_QCOW2, IMAGE_VDI, IMAGE_VMDK, IMAGE_ISO };
const char *image_format_name(enum image_format);
enum image_format image_format_named(const char *name);        /* IMAGE_NONE: unknown */

/* How an image gets at the other files that it names (backing file, extents).  `name` as the image has it, relative to the image. */
struct image_env {
    int (*open)(void *arg, const char *name, bool write, struct blk **out);
    void *arg;
    char error[200];            /* a sentence, when a call fails for a reason an operator should read */
    int depth;                  /* of the backing chain so far */
};

enum {
    IMAGE_WRITE = 1, IMAGE_NO_BACKING = 2,
    IMAGE_REPAIR = 4,           /* with IMAGE_WRITE: for image_check alone; opens what is marked corrupt or in use, too */
};

/* The image owns `file` from then on and closes it, on error too.  The result's size is the virtual size. */
int image_open(enum image_format, struct blk *file, unsigned flags, struct image_env *, struct blk **out);
enum image_format image_probe(struct blk *file);

enum image_prealloc { PREALLOC_OFF, PREALLOC_METADATA, PREALLOC_FULL };

struct image_opts {
    uint64_t size;
    /* qcow2 */
    uint32_t cluster_size;      /* 0: 64 KiB */
    int version;                /* 0: 3 */
    int refcount_bits;          /* 0: 16 */
    bool lazy_refcounts, zstd;
    enum image_prealloc prealloc;
    const char *backing;        /* NULL: none */
    enum image_format backing_format;
    /* vdi, vmdk */
    bool fixed;                 /* vdi: fixed; vmdk: monolithic flat */
    bool stream;                /* vmdk: stream-optimised: refused, they can only be read */
    const char *flat_name;      /* vmdk flat: name of the extent file as the descriptor states it */
};
/* Makes an empty image in `file`, which is resized as needed; not closed. */
int image_create(enum image_format, struct blk *file, const struct image_opts *, struct image_env *);

struct image_info {
    enum image_format format;
    uint64_t virtual_size;
    uint32_t cluster_size;
    char backing[1024];
    enum image_format backing_format;
    int version, refcount_bits, snapshots;
    bool lazy_refcounts, zstd, dirty, corrupt, compressed, fixed;
    /* vmdk */
    char subformat[32];         /* create type */
    uint32_t cid, parent_cid;
    char extent[256];           /* monolithic flat: the name of its data's file */
};
int image_info(struct blk *image, struct image_info *);

struct image_snapshot { char id[128], name[256]; uint64_t state_size, date_sec, date_nsec, clock_ns, icount /* UINT64_MAX: none */; };
int image_snapshot(struct blk *image, int i, struct image_snapshot *);      /* -ENOENT: there are not so many */

struct image_check {
    uint64_t corruptions, leaks, errors_fixed, leaks_fixed;
    uint64_t allocated, total, compressed, fragmented, end;     /* clusters; end: bytes of the file in use */
    void (*say)(void *arg, const char *msg);
    void *arg;
};
enum { CHECK_FIX_LEAKS = 1, CHECK_FIX_ALL = 2 };
int image_check(struct blk *image, unsigned fix, struct image_check *);        /* -ENOTSUP: this format has nothing to check */

/* What [off, off+*len) shows; *len becomes the part with one answer. */
enum { EXTENT_DATA = 1, EXTENT_ZERO = 2 /* reads as zeroes */, EXTENT_BACKING = 4 /* not in this image */, EXTENT_COMPRESSED = 8 };
int image_map(struct blk *image, uint64_t off, uint64_t *len, unsigned *what, uint64_t *at);

/* One whole cluster, which the caller has compressed to n bytes, fewer than the cluster's: raw deflate with a window of 4 KiB, or zstd
 * if image_info says so.  For qcow2; -ENOTSUP otherwise. */
int image_write_packed(struct blk *image, uint64_t off, const void *packed, size_t n);
/* Shrinking loses what is behind the new end: allowed only with `shrink`.  env: for the sentence. */
int image_resize(struct blk *image, uint64_t size, bool shrink, struct image_env *env);
/* Plain reading and writing from a thread that can wait, without the request engine between. */
int image_pread(struct blk *image, uint64_t off, void *buf, size_t len);
int image_pwrite(struct blk *image, uint64_t off, const void *buf, size_t len);
