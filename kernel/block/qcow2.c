/* qcow2: opening, mapping, writing, compressed clusters, making, resizing. */
#include "kernel/block/qcow2.h"

#include <errno.h>
#include <string.h>

#define MAX_RT_BYTES (16u << 20)
#define RUN_BYTES    (1u << 20)         /* allocated at once */

/* ---- Mapping ---- */

enum kind { K_NONE, K_DATA, K_ZERO, K_ZERO_ALLOC, K_COMPRESSED };

static enum kind kind_of(const struct qcow2 *q, uint64_t e)
{
    if (e & QCOW_COMPRESSED)
        return K_COMPRESSED;
    if (q->version >= 3 && e & QCOW_ZERO)
        return e & QCOW_OFFSET ? K_ZERO_ALLOC : K_ZERO;
    return e & QCOW_OFFSET ? K_DATA : K_NONE;
}

static unsigned what_of(enum kind k)
{
    return k == K_NONE ? EXTENT_BACKING : k == K_DATA ? EXTENT_DATA : k == K_COMPRESSED ? EXTENT_COMPRESSED | EXTENT_DATA : EXTENT_ZERO;
}

static int qcow2_map(struct image *img, uint64_t off, uint64_t *len, unsigned *what, struct blk **to, uint64_t *at, bool *writable)
{
    struct qcow2 *q = qcow2_of(img);
    uint64_t in = off & (cluster_size(q) - 1), place, e = 0, n = 1;
    int err = l2_place(q, off, false, &place);
    *to = img->file;
    if (!err && place)
        err = l2_get(q, place, &e);
    if (err)
        return err;
    enum kind k = kind_of(q, e);
    uint64_t left = place ? (q->piece - place % q->piece) / 8 : 1, want = (in + *len + cluster_size(q) - 1) >> q->bits;
    if (!place)
        n = MIN(want, cluster_size(q) / 8 - (off >> q->bits & (cluster_size(q) / 8 - 1)));
    if (k == K_DATA && !sane_offset(q, e & QCOW_OFFSET))
        return -EILSEQ;
    for (uint64_t next; n < MIN(left, want) && k != K_COMPRESSED && !l2_get(q, place + 8 * n, &next); n++)
        if (kind_of(q, next) != k || (next ^ e) & QCOW_COPIED || (k == K_DATA && (next & QCOW_OFFSET) != (e & QCOW_OFFSET) + (n << q->bits)))
            break;
    *what = what_of(k);
    *at = (e & QCOW_OFFSET) + in;
    *writable = k == K_DATA && e & QCOW_COPIED && q->l1[off >> (2 * q->bits - 3)] & QCOW_COPIED;
    *len = MIN(*len, (n << q->bits) - in);
    return 0;
}

/* ---- Compressed clusters ---- */

void compressed_place(const struct qcow2 *q, uint64_t e, uint64_t *off, uint64_t *len)
{
    unsigned x = 62 - (q->bits - 8);
    *off = e & (BIT(x) - 1);
    *len = (((e & (QCOW_COMPRESSED - 1)) >> x) + 1) * 512 - (*off & 511);
}

static int expand(struct qcow2 *q, uint64_t e)
{
    uint64_t off, len;
    compressed_place(q, e, &off, &len);
    if (off >= q->img.file->size)
        return -EILSEQ;
    len = MIN(len, q->img.file->size - off);
    uint8_t *in = kmalloc(len);
    if (!in)
        return -ENOMEM;
    q->expanded_entry = 0;
    int err = file_read(q->img.file, off, in, len);
    if (!err)
        err = codec_expand(q->zstd ? CODEC_ZSTD : CODEC_DEFLATE, in, len, q->expanded, cluster_size(q));
    kfree(in);
    if (!err)
        q->expanded_entry = e;
    return err;
}

static int qcow2_read_compressed(struct image *img, uint64_t off, void *buf, size_t len)
{
    struct qcow2 *q = qcow2_of(img);
    uint64_t place, e = 0;
    int err = l2_place(q, off, false, &place);
    if (!err)
        err = l2_get(q, place, &e);
    if (!err && !q->expanded)
        err = (q->expanded = kmalloc(cluster_size(q))) ? 0 : -ENOMEM;
    if (!err && q->expanded_entry != e)
        err = expand(q, e);
    if (!err)
        memcpy(buf, q->expanded + (off & (cluster_size(q) - 1)), len);
    return err;
}

/* ---- Writing ---- */

/* What an entry holds loses a reference (after the next flush). */
static void release(struct qcow2 *q, uint64_t e)
{
    uint64_t off, len;
    enum kind k = kind_of(q, e);
    if (k == K_COMPRESSED) {
        compressed_place(q, e, &off, &len);
        clusters_free(q, off, len);
        q->expanded_entry = 0;
    } else if (k == K_DATA || k == K_ZERO_ALLOC) {
        clusters_free(q, e & QCOW_OFFSET, cluster_size(q));
    }
}

/* One cluster of which only a part is written: the rest comes from what it showed so far. */
static int write_part(struct qcow2 *q, uint64_t to, uint64_t off, const void *buf, size_t len)
{
    uint64_t in = off & (cluster_size(q) - 1), start = off - in;
    uint8_t *copy = kzalloc(cluster_size(q));
    int err = copy ? image_read_locked(&q->img, start, copy, MIN(cluster_size(q), q->img.blk.size - start)) : -ENOMEM;
    if (!err) {
        memcpy(copy + in, buf, len);
        err = file_write(q->img.file, to, copy, cluster_size(q));
    }
    kfree(copy);
    return err;
}

/* How many clusters from `at` on may be given new places in one go: all of them wholly written, none usable as it is. */
static uint64_t run_of_new(struct qcow2 *q, uint64_t at, uint64_t most)
{
    uint64_t n = 1, e;
    most = MIN(most, (q->piece - at % q->piece) / 8);
    while (n < most && !l2_get(q, at + 8 * n, &e) && (kind_of(q, e) == K_NONE || kind_of(q, e) == K_ZERO))
        n++;
    return n;
}

static int write_new(struct qcow2 *q, uint64_t off, const void *buf, size_t *len, uint64_t at, uint64_t e)
{
    uint64_t in = off & (cluster_size(q) - 1), n = 1, to;
    bool reuse = kind_of(q, e) == K_ZERO_ALLOC && e & QCOW_COPIED;
    int err = 0;
    if (!reuse && !in && *len >= cluster_size(q))
        n = run_of_new(q, at, MIN(*len, (size_t)RUN_BYTES) >> q->bits);
    n = MAX(n, 1ull);
    *len = MIN(*len, (n << q->bits) - in);
    to = e & QCOW_OFFSET;
    if (reuse && !sane_offset(q, to))
        return -EILSEQ;
    if (!reuse)
        err = clusters_alloc(q, n, &to);
    if (!err)
        err = *len == n << q->bits ? file_write(q->img.file, to, buf, *len) : write_part(q, to, off, buf, *len);
    for (uint64_t i = 0; !err && i < n; i++)
        err = l2_set(q, at + 8 * i, (to + (i << q->bits)) | QCOW_COPIED);
    if (!err && !reuse)
        release(q, e);
    else if (err && !reuse && to)
        clusters_free(q, to, n << q->bits);
    return err;
}

static int qcow2_write(struct image *img, uint64_t off, const void *buf, size_t *len)
{
    struct qcow2 *q = qcow2_of(img);
    uint64_t part = *len, at, e;
    unsigned what;
    struct blk *to;
    bool writable;
    int err = qcow2_map(img, off, &part, &what, &to, &at, &writable);
    if (err)
        return err;
    if (writable) {
        *len = part;
        return file_write(img->file, at, buf, part);
    }
    err = l2_place(q, off, true, &at);
    if (!err)
        err = l2_get(q, at, &e);
    return err ? err : write_new(q, off, buf, len, at, e);
}

/* ---- Discarding ---- */

static uint64_t cleared(struct qcow2 *q, uint64_t e, bool keep)
{
    if (keep && e & QCOW_COPIED && (kind_of(q, e) == K_DATA || kind_of(q, e) == K_ZERO_ALLOC))
        return e | QCOW_ZERO;
    return q->version >= 3 && (q->img.backing || keep) ? QCOW_ZERO : 0;
}

static int clear_one(struct qcow2 *q, uint64_t off, bool keep)
{
    uint64_t at, e = 0;
    int err = l2_place(q, off, false, &at);
    if (!err && at)
        err = l2_get(q, at, &e);
    uint64_t to = cleared(q, e, keep);
    if (err || e == to || (!at && !q->img.backing))
        return err;
    err = l2_place(q, off, true, &at);
    if (!err)
        err = l2_set(q, at, to);
    if (!err && !(to & QCOW_OFFSET))
        release(q, e);
    return err;
}

static int qcow2_discard(struct image *img, uint64_t off, uint64_t len, bool keep)
{
    struct qcow2 *q = qcow2_of(img);
    int err = q->version < 3 && (keep || img->backing) ? -ENOTSUP : 0;
    for (uint64_t end = off + len; !err && off < end; off += cluster_size(q)) {
        uint64_t at;
        err = l2_place(q, off, false, &at);
        if (!err && !at && !img->backing)       /* no table: skip to the next one */
            off = ALIGN_DOWN(off, 1ull << (2 * q->bits - 3)) + (1ull << (2 * q->bits - 3)) - cluster_size(q);
        else if (!err)
            err = clear_one(q, off, keep);
    }
    return err;
}

/* ---- Writing compressed ---- */

/* Room for n bytes behind the last compressed data, or in a fresh cluster; each cluster touched gains a reference. */
static int pack(struct qcow2 *q, uint64_t n, uint64_t *off)
{
    uint64_t in = q->packed & (cluster_size(q) - 1), fresh, count;
    int err = 0;
    if (in && in + n <= cluster_size(q)) {
        err = refcount_get(q, q->packed >> q->bits, &count);
        if (!err && count && !refcount_set(q, q->packed >> q->bits, count + 1)) {
            *off = q->packed;
            q->packed += n;
            return 0;
        }
    }
    if (!err)
        err = clusters_alloc(q, 1, &fresh);
    if (err)
        return err;
    *off = fresh;
    q->packed = fresh + n;
    return 0;
}

static int qcow2_write_packed(struct image *img, uint64_t off, const void *packed, size_t n)
{
    struct qcow2 *q = qcow2_of(img);
    uint64_t at, e, to;
    if (off & (cluster_size(q) - 1) || !n || n >= cluster_size(q))
        return -EINVAL;
    int err = l2_place(q, off, true, &at);
    if (!err)
        err = l2_get(q, at, &e);
    if (!err)
        err = pack(q, n, &to);
    if (!err)
        err = file_write(img->file, to, packed, n);
    if (!err) {
        uint64_t sectors = ((to + n - 1) >> 9) - (to >> 9);
        err = l2_set(q, at, QCOW_COMPRESSED | sectors << (62 - (q->bits - 8)) | to);
    }
    if (!err)
        release(q, e);
    return err;
}

/* ---- Size ---- */

static int grow_l1(struct qcow2 *q, uint64_t need)
{
    uint64_t off, bytes = ALIGN_UP(need * 8, cluster_size(q));
    if (need * 8 > MAX_L1_BYTES)
        return -EFBIG;
    uint64_t *l1 = kzalloc(bytes);
    int err = l1 ? clusters_alloc(q, bytes >> q->bits, &off) : -ENOMEM;
    if (err) {
        kfree(l1);
        return err;
    }
    memcpy(l1, q->l1, q->l1_size * 8ull);
    if (q->l1_size)
        clusters_free(q, q->l1_off, q->l1_size * 8ull);
    kfree(q->l1);
    q->l1 = l1, q->l1_size = need, q->l1_off = off;
    q->l1_dirty = true;
    return 0;
}

/* What lies behind the old end, in the last cluster or in the backing file, must read as zeroes now. */
static int clear_tail(struct qcow2 *q, uint64_t old, uint64_t size)
{
    static const uint8_t zero[4096];
    uint64_t edge = MIN(ALIGN_UP(old, cluster_size(q)), size), end = q->img.backing ? MIN(size, q->img.backing->size) : 0;
    int err = 0;
    uint64_t part = 1, at;
    unsigned what;
    struct blk *to;
    bool writable;
    if (edge > old)
        err = qcow2_map(&q->img, old, &part, &what, &to, &at, &writable);
    if (!err && edge > old && (what & EXTENT_DATA || (what & EXTENT_BACKING && end > old)))
        for (uint64_t o = old; !err && o < edge; o += 4096)
            err = image_write_locked(&q->img, o, zero, MIN(edge - o, 4096ull));
    if (!err && end > edge) {
        err = qcow2_discard(&q->img, edge, ALIGN_UP(end, cluster_size(q)) - edge, false);
        for (uint64_t o = edge; err == -ENOTSUP && o < end; o += 4096)
            if (image_write_locked(&q->img, o, zero, MIN(end - o, 4096ull)))
                return -EIO;
        err = err == -ENOTSUP ? 0 : err;
    }
    return err;
}

static int qcow2_resize(struct image *img, uint64_t size, struct image_env *env)
{
    struct qcow2 *q = qcow2_of(img);
    uint64_t old = img->blk.size, per = 1ull << (2 * q->bits - 3), need = (size + per - 1) / per;
    int err = 0;
    if (q->nsnapshots && (q->version < 3 || size < old))
        return image_refuse(env, -ENOTSUP, "the image has snapshots: it cannot shrink, nor grow unless its version is 3");
    if (need > q->l1_size)
        err = grow_l1(q, need);
    if (!err && size < old && ALIGN_UP(size, cluster_size(q)) < old)
        err = qcow2_discard(img, ALIGN_UP(size, cluster_size(q)), old - ALIGN_UP(size, cluster_size(q)), false);
    if (err)
        return err;
    img->blk.size = size;
    if (size > old)
        err = clear_tail(q, old, size);
    q->header_dirty = true;
    atomic_store(&img->dirty, true);
    if (!err)
        err = qcow2_flush(img);
    if (err)
        img->blk.size = old;
    return err;
}

/* ---- Opening ---- */

static void qcow2_info(struct image *img, struct image_info *i)
{
    struct qcow2 *q = qcow2_of(img);
    i->version = q->version, i->refcount_bits = 1 << q->refcount_order, i->snapshots = q->nsnapshots;
    i->lazy_refcounts = q->compat & COMPAT_LAZY, i->zstd = q->zstd;
    i->dirty = q->incompat & INCOMPAT_DIRTY, i->corrupt = q->incompat & INCOMPAT_CORRUPT;
    memcpy(i->backing, q->backing, sizeof i->backing);
    i->backing_format = q->backing_format;
}

static void qcow2_fini(struct image *img)
{
    struct qcow2 *q = qcow2_of(img);
    if (!img->blk.limits.read_only && !img->failed && img->file->size > q->end << q->bits)
        blk_resize(img->file, q->end << q->bits);       /* what was taken in advance; a disk cannot, and need not */
    metas_fini(q);
    kfree(q->l1);
    kfree(q->rt);
    kfree(q->freed);
    kfree(q->expanded);
}

static const struct image_ops qcow2_ops = {
    .format = IMAGE_QCOW2, .map = qcow2_map, .read_compressed = qcow2_read_compressed, .write = qcow2_write, .discard = qcow2_discard,
    .write_packed = qcow2_write_packed, .flush = qcow2_flush, .resize = qcow2_resize, .check = qcow2_check, .info = qcow2_info,
    .snapshot = qcow2_snapshot, .fini = qcow2_fini,
};

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

static int check_tables(struct qcow2 *q, struct image_env *env)
{
    uint64_t per = 1ull << (2 * q->bits - 3), size = q->img.blk.size, rt_bytes = (uint64_t)q->rt_clusters << q->bits;
    if (size >> 62 || q->l1_size * 8ull > MAX_L1_BYTES || q->l1_size < (size + per - 1) / per || (q->l1_size && !sane_offset(q, q->l1_off)))
        return image_refuse(env, -EILSEQ, "the level-1 table or the size makes no sense");
    if (!q->rt_clusters || rt_bytes > MAX_RT_BYTES || !sane_offset(q, q->rt_off))
        return image_refuse(env, -EILSEQ, "the reference count table makes no sense");
    if ((unsigned)q->nsnapshots > 65536 || (q->nsnapshots && !sane_offset(q, q->snapshots_off)))
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
    char format[16] = "";
    while (off + 8 <= end) {
        int err = file_read(q->img.file, off, h, 8);
        uint32_t type = be32(h), len = be32(h + 4);
        if (err || !type || len > end - off - 8)
            return err;
        if (type == EXT_BACKING_FORMAT && len < sizeof format) {
            err = file_read(q->img.file, off + 8, format, len);
            q->backing_format = image_format_named(format);
        }
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
    return err;
}

static int find_end(struct qcow2 *q)
{
    uint64_t c = (q->img.file->size + cluster_size(q) - 1) >> q->bits, count;
    for (; c > 1; c--) {
        int err = refcount_get(q, c - 1, &count);
        if (err)
            return err == -EILSEQ ? 0 : err;
        if (count)
            break;
    }
    q->end = c;
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
    return !err && q->backing[0] && !(flags & IMAGE_NO_BACKING) ? image_open_backing(&q->img, q->backing_format, q->backing, env) : err;
}

int qcow2_open(struct blk *file, unsigned flags, struct image_env *env, struct image **out)
{
    struct qcow2 *q = kzalloc(sizeof *q);
    if (!q)
        return -ENOMEM;
    q->img.ops = &qcow2_ops, q->img.file = file;
    q->img.blk.limits.read_only = !(flags & IMAGE_WRITE);
    for (size_t i = 0; i < ARRAY_SIZE(q->hash); i++)
        list_init(&q->hash[i]);
    list_init(&q->clean), list_init(&q->dirty[META_REF]), list_init(&q->dirty[META_L2]);
    int err = load(q, flags, env);
    if (!err && flags & IMAGE_WRITE)
        err = prepare_writing(q, flags, env);
    if (!err)
        err = image_ready(&q->img, "qcow2");
    if (err) {
        q->img.failed = err;
        image_drop_backing(&q->img);
        qcow2_fini(&q->img);
        kfree(q);
        return err;
    }
    *out = &q->img;
    return 0;
}

/* ---- Making ---- */

static int put_backing(uint8_t *h, uint32_t cluster, int hlen, const struct image_opts *o, struct image_env *env)
{
    const char *format = image_format_name(o->backing_format);
    size_t flen = o->backing_format ? strlen(format) : 0, at = hlen, blen = o->backing ? strlen(o->backing) : 0;
    if (blen > 1023 || at + 24 + flen + blen > cluster)
        return image_refuse(env, -EINVAL, "the backing file's name is too long");
    if (flen) {
        put_be32(h + at, EXT_BACKING_FORMAT), put_be32(h + at + 4, flen);
        memcpy(h + at + 8, format, flen);
        at += 8 + ALIGN_UP(flen, 8u);
    }
    at += 8;                            /* end of the extensions */
    if (blen) {
        put_be64(h + QH_BACKING_OFF, at), put_be32(h + QH_BACKING_LEN, blen);
        memcpy(h + at, o->backing, blen);
    }
    return 0;
}

/* An image of size 0: header, one cluster of table, one block of counts.  Growing it makes the rest. */
static int write_seed(struct blk *file, const struct image_opts *o, uint32_t cluster, int version, int order, struct image_env *env)
{
    uint8_t *h = kzalloc(3 * (size_t)cluster);
    if (!h)
        return -ENOMEM;
    int hlen = version < 3 ? QH_V2_LEN : o->zstd ? QH_V3_LEN : QH_COMPRESSION;
    put_be32(h, QCOW_MAGIC), put_be32(h + QH_VERSION, version);
    put_be32(h + QH_CLUSTER_BITS, __builtin_ctz(cluster));
    put_be64(h + QH_L1_OFF, 0);
    put_be64(h + QH_RT_OFF, cluster), put_be32(h + QH_RT_CLUSTERS, 1);
    if (version >= 3) {
        put_be64(h + QH_INCOMPAT, o->zstd ? INCOMPAT_COMPRESSION : 0);
        put_be64(h + QH_COMPAT, o->lazy_refcounts ? COMPAT_LAZY : 0);
        put_be32(h + QH_REFCOUNT_ORDER, order), put_be32(h + QH_LEN, hlen);
        h[QH_COMPRESSION] = o->zstd;
    }
    int err = put_backing(h, cluster, hlen, o, env);
    put_be64(h + cluster, 2ull * cluster);
    uint8_t *counts = h + 2 * (size_t)cluster;
    for (int i = 0; i < 3; i++)
        switch (order) {
        case 0: case 1: case 2: counts[i * (1 << order) / 8] |= 1 << (i * (1 << order) % 8); break;
        default:                counts[(i + 1) * ((1 << order) / 8) - 1] = 1; break;
        }
    if (!err)
        err = file_resize(file, 3ull * cluster);
    if (!err)
        err = file_write(file, 0, h, 3 * (size_t)cluster);
    kfree(h);
    return err;
}

/* Give every cluster a place; full: with zeroes in it. */
static int preallocate(struct qcow2 *q, bool full)
{
    uint64_t size = q->img.blk.size, place, off;
    static const uint8_t zero[4096];
    int err = 0;
    for (uint64_t o = 0; !err && o < size; o += cluster_size(q)) {
        err = l2_place(q, o, true, &place);
        if (!err)
            err = clusters_alloc(q, 1, &off);
        if (!err)
            err = l2_set(q, place, off | QCOW_COPIED);
        for (uint64_t k = 0; !err && full && k < cluster_size(q); k += q->piece)
            err = file_write(q->img.file, off + k, zero, q->piece);
        if (!err && q->ndirty > 512)
            err = qcow2_flush(&q->img);
    }
    return err;
}

static void keep_open(struct blk *b) { }

/* The caller's file under an image that closes what it sits on. */
struct borrowed { struct blk blk; struct blk *file; };
static void borrowed_submit(struct blk *b, struct blk_req *r)
{
    struct borrowed *w = container_of(b, struct borrowed, blk);
    w->file->ops->submit(w->file, r);
}
static int borrowed_resize(struct blk *b, uint64_t size)
{
    struct borrowed *w = container_of(b, struct borrowed, blk);
    int err = blk_resize(w->file, size);
    b->size = w->file->size;
    return err;
}

int qcow2_create(struct blk *file, const struct image_opts *o, struct image_env *env)
{
    static const struct blk_ops ops = { borrowed_submit, borrowed_resize, keep_open };
    uint32_t cluster = o->cluster_size ? o->cluster_size : 65536;
    int version = o->version ? o->version : 3, bits = o->refcount_bits ? o->refcount_bits : 16;
    struct image *img;
    if (cluster & (cluster - 1) || cluster < 512 || cluster > 2 << 20 || bits & (bits - 1) || bits > 64 || bits < 1 ||
        version < 2 || version > 3 || (version == 2 && (bits != 16 || o->lazy_refcounts || o->zstd)))
        return image_refuse(env, -EINVAL, "these options do not go together");
    int err = write_seed(file, o, cluster, version, __builtin_ctz(bits), env);
    struct borrowed w = { { .ops = &ops, .kind = "qcow2", .size = file->size, .limits = file->limits }, file };
    if (!err)
        err = blk_ready(&w.blk);
    if (err)
        return err;
    err = qcow2_open(&w.blk, IMAGE_WRITE | IMAGE_NO_BACKING, env, &img);
    if (!err) {
        err = image_resize(&img->blk, o->size, false, env);
        if (!err && o->prealloc != PREALLOC_OFF)
            err = preallocate(qcow2_of(img), o->prealloc == PREALLOC_FULL);
        if (!err)
            err = qcow2_flush(img);
        blk_close(&img->blk);
    } else {
        blk_close(&w.blk);
    }
    return err;
}
