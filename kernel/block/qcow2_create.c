/* qcow2: making an image. */
#include "kernel/block/qcow2.h"

#include <errno.h>
#include <string.h>

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

int qcow2_create(struct blk *file, const struct image_opts *o, struct image_env *env)
{
    uint32_t cluster = o->cluster_size ? o->cluster_size : 65536;
    int version = o->version ? o->version : 3, bits = o->refcount_bits ? o->refcount_bits : 16;
    struct image *img;
    if (cluster & (cluster - 1) || cluster < 512 || cluster > 2 << 20 || bits & (bits - 1) || bits > 64 || bits < 1 ||
        version < 2 || version > 3 || (version == 2 && (bits != 16 || o->lazy_refcounts || o->zstd)))
        return image_refuse(env, -EINVAL, "these options do not go together");
    int err = write_seed(file, o, cluster, version, __builtin_ctz(bits), env);
    if (!err)
        err = qcow2_open(file, IMAGE_WRITE | IMAGE_NO_BACKING, env, &img);
    if (err)
        return err;
    img->keeps_file = true;
    err = image_resize(&img->blk, o->size, false, env);
    if (!err && o->prealloc != PREALLOC_OFF)
        err = preallocate(qcow2_of(img), o->prealloc == PREALLOC_FULL);
    if (!err)
        err = qcow2_flush(img);
    blk_close(&img->blk);
    return err;
}
