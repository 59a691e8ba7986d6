/* qcow2: mapping, reading, writing, discarding, compressed clusters, resizing. */
#include "kernel/block/qcow2.h"

#include <errno.h>
#include <string.h>

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

static uint64_t entries_per_table(const struct qcow2 *q) { return cluster_size(q) / 8; }

/* How many entries from `place` on say the same as the first, e, of clusters that lie one behind the other; within the piece in memory. */
static uint64_t run_of(struct qcow2 *q, uint64_t place, uint64_t e, uint64_t most)
{
    enum kind k = kind_of(q, e);
    uint64_t n = 1, next;
    most = k == K_COMPRESSED ? 1 : MIN(most, (q->piece - place % q->piece) / 8);
    while (n < most && !l2_get(q, place + 8 * n, &next) && kind_of(q, next) == k && !((next ^ e) & QCOW_COPIED) &&
           (k != K_DATA || (next & QCOW_OFFSET) == (e & QCOW_OFFSET) + (n << q->bits)))
        n++;
    return n;
}

static int qcow2_map(struct image *img, uint64_t off, uint64_t *len, unsigned *what, struct blk **to, uint64_t *at, bool *writable)
{
    struct qcow2 *q = qcow2_of(img);
    uint64_t in = off & (cluster_size(q) - 1), want = (in + *len + cluster_size(q) - 1) >> q->bits, place, e = 0, n;
    int err = l2_place(q, off, false, &place);
    if (!err && place)
        err = l2_get(q, place, &e);
    if (err)
        return err;
    enum kind k = kind_of(q, e);
    if (k == K_DATA && !sane_offset(q, e & QCOW_OFFSET))
        return -EILSEQ;
    n = place ? run_of(q, place, e, want) : MIN(want, entries_per_table(q) - (off >> q->bits) % entries_per_table(q));
    *to = img->file;
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

/* ---- The format ---- */

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

const struct image_ops qcow2_ops = {
    .format = IMAGE_QCOW2, .map = qcow2_map, .read_compressed = qcow2_read_compressed, .write = qcow2_write, .discard = qcow2_discard,
    .write_packed = qcow2_write_packed, .flush = qcow2_flush, .resize = qcow2_resize, .check = qcow2_check, .info = qcow2_info,
    .snapshot = qcow2_snapshot, .fini = qcow2_fini,
};
