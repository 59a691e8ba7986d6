/* qcow2: opening: what the header, its extensions and the places of the tables must be like. */
#include "kernel/block/qcow2.h"

#include <errno.h>
#include <string.h>

#define MAX_RT_BYTES (16u << 20)

static int check_features(struct qcow2 *q, const uint8_t *h, struct image_env *env)
{
    if (q->incompat & INCOMPAT_EXTL2)
        return image_refuse(env, -ENOTSUP, "the image uses subclusters (extended L2 entries), which are not supported; convert it first");
    if (q->incompat & INCOMPAT_DATA_FILE)
        return image_refuse(env, -ENOTSUP, "the image keeps its data in another file, which is not supported; convert it first");
    if (q->incompat & ~31ull)
        return image_refuse(env, -ENOTSUP, "the image uses features that are not known (%llx)", (unsigned long long)q->incompat);
    if (q->incompat & INCOMPAT_COMPRESSION)
        q->zstd = h[QH_COMPRESSION] == 1;
    if ((q->incompat & INCOMPAT_COMPRESSION && h[QH_COMPRESSION] > 1) || q->refcount_order > 6)
        return image_refuse(env, -ENOTSUP, "the image's compression or reference count width is not known");
    return 0;
}

static int check_header(struct qcow2 *q, const uint8_t *h, struct image_env *env)
{
    uint32_t bits = be32(h + QH_CLUSTER_BITS);
    q->version = be32(h + QH_VERSION);
    if (be32(h) != QCOW_MAGIC)
        return image_refuse(env, -EILSEQ, "this is not a qcow2 image");
    if (q->version != 2 && q->version != 3)
        return image_refuse(env, -ENOTSUP, "qcow2 version %d is not known", q->version);
    if (bits < 9 || bits > 21)
        return image_refuse(env, -EILSEQ, "a cluster size of 2^%u is not allowed", bits);
    if (be32(h + QH_CRYPT))
        return image_refuse(env, -ENOTSUP, "the image is encrypted, which is not supported");
    q->bits = bits;
    q->img.blk.size = be64(h + QH_SIZE);
    q->l1_size = be32(h + QH_L1_SIZE), q->l1_off = be64(h + QH_L1_OFF);
    q->rt_clusters = be32(h + QH_RT_CLUSTERS), q->rt_off = be64(h + QH_RT_OFF);
    q->nsnapshots = be32(h + QH_NSNAPSHOTS), q->snapshots_off = be64(h + QH_SNAPSHOTS_OFF);
    q->refcount_order = 4;
    if (q->version >= 3) {
        q->incompat = be64(h + QH_INCOMPAT), q->compat = be64(h + QH_COMPAT), q->autoclear = be64(h + QH_AUTOCLEAR);
        q->refcount_order = be32(h + QH_REFCOUNT_ORDER);
    }
    return check_features(q, h, env);
}

/* So that a small file cannot ask for much memory.  Its last cluster may be cut short. */
static bool lies_in_file(const struct qcow2 *q, uint64_t off, uint64_t bytes)
{
    return sane_offset(q, off) && bytes <= ALIGN_UP(q->img.file->size, cluster_size(q)) - off;
}

static int check_tables(struct qcow2 *q, struct image_env *env)
{
    uint64_t per = 1ull << (2 * q->bits - 3), size = q->img.blk.size, rt_bytes = (uint64_t)q->rt_clusters << q->bits;
    if (size >> 62 || q->l1_size * 8ull > MAX_L1_BYTES || q->l1_size < (size + per - 1) / per || (q->l1_size && !lies_in_file(q, q->l1_off, q->l1_size * 8ull)))
        return image_refuse(env, -EILSEQ, "the level-1 table or the size makes no sense");
    if (!q->rt_clusters || rt_bytes > MAX_RT_BYTES || !lies_in_file(q, q->rt_off, rt_bytes))
        return image_refuse(env, -EILSEQ, "the reference count table makes no sense");
    if (q->nsnapshots > 65536 || (q->nsnapshots && !sane_offset(q, q->snapshots_off)))
        return image_refuse(env, -EILSEQ, "the snapshot table makes no sense");
    return 0;
}

int read_words(struct qcow2 *q, uint64_t off, uint64_t n, uint64_t **out)
{
    *out = kzalloc(MAX(n * 8, 8ull));
    if (!*out)
        return -ENOMEM;
    int err = file_read(q->img.file, off, *out, n * 8);
    for (uint64_t i = 0; i < n; i++)
        (*out)[i] = __builtin_bswap64((*out)[i]);
    return err;
}

/* Header extensions: only the backing file's format concerns us. */
static int read_extensions(struct qcow2 *q, uint64_t off, uint64_t end)
{
    uint8_t h[8];
    while (off + 8 <= end) {
        int err = file_read(q->img.file, off, h, 8);
        uint32_t type = be32(h), len = be32(h + 4);
        if (err || !type || len > end - off - 8)
            return err;
        if (type == EXT_BACKING_FORMAT)
            err = file_read(q->img.file, off + 8, q->backing_driver, MIN(len, (uint32_t)sizeof q->backing_driver - 1));
        if (err)
            return err;
        off += 8 + ALIGN_UP(len, 8u);
    }
    return 0;
}

static int read_backing_name(struct qcow2 *q, const uint8_t *h, struct image_env *env)
{
    uint64_t off = be64(h + QH_BACKING_OFF), len = be32(h + QH_BACKING_LEN), hlen = q->version >= 3 ? be32(h + QH_LEN) : QH_V2_LEN;
    if (off && (len > 1023 || off > cluster_size(q) || len > cluster_size(q) - off || hlen > cluster_size(q)))
        return image_refuse(env, -EILSEQ, "the backing file's name makes no sense");
    int err = read_extensions(q, hlen, off ? off : cluster_size(q));
    if (!err && off)
        err = file_read(q->img.file, off, q->backing, len);
    q->backing_format = image_format_named(q->backing_driver);
    return err;
}

static int open_backing(struct qcow2 *q, struct image_env *env)
{
    if (q->backing_driver[0] && q->backing_format == IMAGE_NONE)
        return image_refuse(env, -ENOTSUP, "the backing file's format '%s' is not known", q->backing_driver);
    return image_open_backing(&q->img, q->backing_format, q->backing, env);
}

/* From the end of the file down; where there is no block of counts, a whole block's at a step: a file may be large and empty. */
static int find_end(struct qcow2 *q)
{
    uint64_t c = (q->img.file->size + cluster_size(q) - 1) >> q->bits, per = counts_per_block(q), count;
    for (c = MIN(c, q->rt_entries * per); c > 1; c--) {
        if (!q->rt[(c - 1) / per]) {
            c = ALIGN_DOWN(c - 1, per) + 1;
            continue;
        }
        int err = refcount_get(q, c - 1, &count);
        if (err)
            return err == -EILSEQ ? 0 : err;
        if (count)
            break;
    }
    q->end = MAX(c, 1ull);
    return 0;
}

static int prepare_writing(struct qcow2 *q, unsigned flags, struct image_env *env)
{
    struct image_check c = { .say = NULL };
    if (flags & IMAGE_REPAIR)
        return 0;
    if (q->incompat & INCOMPAT_CORRUPT)
        return image_refuse(env, -EILSEQ, "the image is marked corrupt; repair it first (check -r all)");
    int err = 0;
    if (q->incompat & INCOMPAT_DIRTY) {         /* lazy reference counts of a crashed writer */
        err = qcow2_check(&q->img, CHECK_FIX_ALL, &c);
        if (!err && q->incompat & INCOMPAT_DIRTY)
            err = image_refuse(env, -EILSEQ, "the reference counts could not be rebuilt");
    }
    if (!err && q->autoclear) {
        q->autoclear = 0;
        q->header_dirty = true;
    }
    return !err && q->header_dirty ? qcow2_flush(&q->img) : err;
}

static int load(struct qcow2 *q, unsigned flags, struct image_env *env)
{
    uint8_t h[QH_V3_LEN];
    int err = file_read(q->img.file, 0, h, sizeof h);
    if (!err)
        err = check_header(q, h, env);
    if (err)
        return err;
    q->piece = MIN(4096ull, cluster_size(q));
    q->img.cluster = cluster_size(q);
    q->rt_entries = ((uint64_t)q->rt_clusters << q->bits) / 8;
    err = check_tables(q, env);
    if (!err)
        err = read_words(q, q->l1_off, q->l1_size, &q->l1);
    if (!err)
        err = read_words(q, q->rt_off, q->rt_entries, &q->rt);
    if (!err)
        err = read_backing_name(q, h, env);
    if (!err)
        err = find_end(q);
    return !err && q->backing[0] && !(flags & IMAGE_NO_BACKING) ? open_backing(q, env) : err;
}

int qcow2_open(struct blk *file, unsigned flags, struct image_env *env, struct image **out)
{
    struct qcow2 *q = image_alloc(sizeof *q, &qcow2_ops, file, flags);
    if (!q)
        return -ENOMEM;
    for (size_t i = 0; i < ARRAY_SIZE(q->hash); i++)
        list_init(&q->hash[i]);
    list_init(&q->clean), list_init(&q->dirty[META_REF]), list_init(&q->dirty[META_L2]);
    int err = load(q, flags, env);
    if (!err && flags & IMAGE_WRITE)
        err = prepare_writing(q, flags, env);
    return image_opened(&q->img, "qcow2", err, out);
}
