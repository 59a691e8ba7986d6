/*
 * qcow2, versions 2 and 3, as "The qcow2 disk image format" of QEMU's documentation describes it (docs/interop/qcow2.txt, QEMU 7.2).
 *
 * Changes of tables stay in memory until a flush, which writes them in an order that leaves a usable image at every moment: reference
 * counts that went up, then (after a flush) tables that use them, then what leads to those tables; counts that go down wait until the
 * tables that no longer use their clusters are durable.  A crash leaks clusters at worst.
 */
#pragma once
#include "kernel/block/image_int.h"
#include "kernel/block/codec.h"

#define QCOW_MAGIC 0x514649fbu
#define QCOW_COPIED     BIT(63)
#define QCOW_COMPRESSED BIT(62)
#define QCOW_ZERO       BIT(0)
#define QCOW_OFFSET     BITS(55, 9)
#define MAX_L1_BYTES    (64u << 20)

enum {                          /* header offsets */
    QH_MAGIC = 0, QH_VERSION = 4, QH_BACKING_OFF = 8, QH_BACKING_LEN = 16, QH_CLUSTER_BITS = 20, QH_SIZE = 24, QH_CRYPT = 32, QH_L1_SIZE = 36,
    QH_L1_OFF = 40, QH_RT_OFF = 48, QH_RT_CLUSTERS = 56, QH_NSNAPSHOTS = 60, QH_SNAPSHOTS_OFF = 64, QH_V2_LEN = 72,
    QH_INCOMPAT = 72, QH_COMPAT = 80, QH_AUTOCLEAR = 88, QH_REFCOUNT_ORDER = 96, QH_LEN = 100, QH_COMPRESSION = 104, QH_V3_LEN = 112,
};
enum { INCOMPAT_DIRTY = 1, INCOMPAT_CORRUPT = 2, INCOMPAT_DATA_FILE = 4, INCOMPAT_COMPRESSION = 8, INCOMPAT_EXTL2 = 16 };
enum { COMPAT_LAZY = 1 };
enum { EXT_BACKING_FORMAT = 0xe2792aca };

enum { META_REF, META_L2, METAS };

/* A piece of a table in memory. */
struct meta { struct list hash, link; uint64_t off; int kind; bool dirty; uint8_t buf[]; };

struct freed { uint64_t cluster, n; };

struct qcow2 {
    struct image img;
    int version, bits;          /* bits: of the cluster size */
    uint32_t refcount_order, nsnapshots;
    uint64_t snapshots_off, incompat, compat, autoclear;
    bool zstd;
    char backing[1024], backing_driver[32];     /* the latter as the image states it; empty: it does not */
    enum image_format backing_format;
    uint64_t *l1;               /* as on disk, in our byte order */
    uint32_t l1_size;
    uint64_t l1_off;
    bool l1_dirty, header_dirty;
    uint64_t *rt;
    uint64_t rt_off, rt_entries;
    uint32_t rt_clusters;
    bool rt_dirty, rt_moved;
    uint64_t rt_old, rt_old_clusters;
    /* Allocation, in clusters */
    uint64_t cursor, end;       /* all below cursor are in use; all from end on are free */
    struct freed *freed;
    unsigned nfreed, freed_cap;
    uint64_t packed;            /* compressed data: next byte of the cluster being filled; 0: none */
    /* Cache of table pieces */
    uint32_t piece;
    struct list hash[64], clean, dirty[METAS];
    unsigned nclean, ndirty;
    uint8_t *expanded;          /* the cluster that was expanded last */
    uint64_t expanded_entry;
};

static inline struct qcow2 *qcow2_of(struct image *img) { return container_of(img, struct qcow2, img); }
static inline uint64_t cluster_size(const struct qcow2 *q) { return 1ull << q->bits; }
static inline uint64_t counts_per_block(const struct qcow2 *q) { return cluster_size(q) * 8 >> q->refcount_order; }

/* qcow2.c */
extern const struct image_ops qcow2_ops;
void compressed_place(const struct qcow2 *, uint64_t entry, uint64_t *off, uint64_t *len);

/* qcow2_open.c */
int  read_words(struct qcow2 *, uint64_t off, uint64_t n, uint64_t **out);        /* big-endian words of the file, for kfree */

/* qcow2_alloc.c */
int  meta_get(struct qcow2 *, uint64_t off, int kind, struct meta **);     /* the piece that holds byte off; valid until the next call */
void meta_soil(struct qcow2 *, struct meta *);
void meta_forget(struct qcow2 *, uint64_t off, uint64_t len);              /* the cluster is no table any more */
void metas_fini(struct qcow2 *);
int  refcount_get(struct qcow2 *, uint64_t cluster, uint64_t *count);
int  refcount_set(struct qcow2 *, uint64_t cluster, uint64_t count);
int  clusters_alloc(struct qcow2 *, uint64_t n, uint64_t *off);           /* contiguous, count 1 */
void clusters_free(struct qcow2 *, uint64_t off, uint64_t bytes);         /* one reference less, after the next flush */
int  qcow2_flush(struct image *);
int  qcow2_write_header(struct qcow2 *);
/* The entry's place for guest offset off; with `make`, its table is made or made private.  0 in *at: there is no table. */
int  l2_place(struct qcow2 *, uint64_t off, bool make, uint64_t *at);
int  l2_get(struct qcow2 *, uint64_t at, uint64_t *entry);
int  l2_set(struct qcow2 *, uint64_t at, uint64_t entry);
bool sane_offset(const struct qcow2 *, uint64_t off);

/* qcow2_snapshot.c */
struct snapshot { uint64_t l1_off; uint32_t l1_size; struct image_snapshot info; };
int snapshot_read(struct qcow2 *, uint64_t *off, struct snapshot *);      /* *off moves on to the next; -EILSEQ: it makes no sense */
int qcow2_snapshot(struct image *, int i, struct image_snapshot *);

/* qcow2_check.c */
int qcow2_check(struct image *, unsigned fix, struct image_check *);
