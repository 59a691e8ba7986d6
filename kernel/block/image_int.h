/* Inside of the image formats: what each gives, and what image.c does for all. */
#pragma once
#include "kernel/block/image.h"
#include "kernel/block/mapped.h"

struct image;

/* All with img->lock held, in thread context. */
struct image_ops {
    enum image_format format;
    /* Where [off, off+*len) is; cuts *len to the part with one answer, at most one table page further.  *writable: in place. */
    int (*map)(struct image *, uint64_t off, uint64_t *len, unsigned *what, struct blk **to, uint64_t *at, bool *writable);
    int (*read_compressed)(struct image *, uint64_t off, void *buf, size_t len);        /* within one cluster */
    /* Make the cluster of off writable in place (allocated, ours, all of it written but for [off, off+len)) and write. */
    int (*write)(struct image *, uint64_t off, const void *buf, size_t *len);
    int (*discard)(struct image *, uint64_t off, uint64_t len, bool keep);              /* whole clusters read as zeroes */
    int (*write_packed)(struct image *, uint64_t off, const void *packed, size_t n);   /* one cluster */
    int (*flush)(struct image *);                                                       /* all metadata durable */
    int (*resize)(struct image *, uint64_t size, struct image_env *);
    int (*check)(struct image *, unsigned fix, struct image_check *);
    void (*info)(struct image *, struct image_info *);
    int (*snapshot)(struct image *, int i, struct image_snapshot *);
    void (*fini)(struct image *);                                                       /* frees the format's own */
};

struct image {
    struct blk blk;
    const struct image_ops *ops;
    struct blk *file;
    struct blk *backing;        /* NULL: reads as zeroes */
    uint32_t cluster;           /* bytes of the unit of allocation */
    struct mutex lock;
    struct mapped m;
    bool dirty;                 /* metadata waits for a flush */
    int failed;                 /* metadata could not be written: no more writes */
    bool keeps_file;            /* closing leaves the file open */
    struct thread *thread;      /* of the slow path */
    struct event work;
    bool stopping;
};

/* The first step of a format's open: its own struct of so many bytes, which begins with a struct image.  NULL: no memory. */
void *image_alloc(size_t, const struct image_ops *, struct blk *file, unsigned flags);
/* The last one, when backing, cluster and blk.size are known: starts the engine, or with err (or if that fails) frees the image.  The
 * file stays the caller's on errors. */
int image_opened(struct image *, const char *kind, int err, struct image **out);
int image_read_locked(struct image *, uint64_t off, void *buf, size_t len);
int image_write_locked(struct image *, uint64_t off, const void *buf, size_t len);
/* A backing file whose format the image does not state (IMAGE_NONE) is taken as raw: guessing would let a guest choose. */
int image_open_backing(struct image *, enum image_format, const char *name, struct image_env *);
int image_claim(struct blk *other, bool write, const char *name, struct image_env *);
/* What the cluster would read if it were not in this image. */
int image_read_backing(struct image *, uint64_t off, void *buf, size_t len);

/* Unaligned access to the file, growing it as needed. */
int file_read(struct blk *, uint64_t off, void *buf, size_t len);       /* beyond the end: zeroes */
int file_write(struct blk *, uint64_t off, const void *buf, size_t len);
int file_extend(struct blk *, uint64_t size);
/* A place of `size` bytes that held nothing of ours: buf goes to [in, in+len) of it, the rest reads as zeroes. */
int file_write_fresh(struct blk *, uint64_t at, uint64_t size, uint64_t in, const void *buf, size_t len);
int file_resize(struct blk *, uint64_t size);

__printf_like(3, 4) int image_refuse(struct image_env *, int err, const char *fmt, ...);

int qcow2_open(struct blk *, unsigned flags, struct image_env *, struct image **);
int vdi_open(struct blk *, unsigned flags, struct image_env *, struct image **);
int vmdk_open(struct blk *, unsigned flags, struct image_env *, struct image **);
int qcow2_create(struct blk *, const struct image_opts *, struct image_env *);
int vdi_create(struct blk *, const struct image_opts *, struct image_env *);
int vmdk_create(struct blk *, const struct image_opts *, struct image_env *);

static inline uint16_t be16(const void *p) { const uint8_t *b = p; return b[0] << 8 | b[1]; }
static inline uint32_t be32(const void *p) { uint32_t v; __builtin_memcpy(&v, p, 4); return __builtin_bswap32(v); }
static inline uint64_t be64(const void *p) { uint64_t v; __builtin_memcpy(&v, p, 8); return __builtin_bswap64(v); }
static inline void put_be16(void *p, uint16_t v) { uint8_t *b = p; b[0] = v >> 8, b[1] = v; }
static inline void put_be32(void *p, uint32_t v) { v = __builtin_bswap32(v), __builtin_memcpy(p, &v, 4); }
static inline void put_be64(void *p, uint64_t v) { v = __builtin_bswap64(v), __builtin_memcpy(p, &v, 8); }
