/* VMDK: grain tables, mapping, reading, writing, flushing, checking. */
#include "kernel/block/vmdk.h"

#include <errno.h>
#include <string.h>
#include "kernel/block/codec.h"

#define TABLES_MAX 4096u        /* in memory: 8 MiB */
#define DIRTY_MAX 1024u

/* ---- Grain tables ---- */

/* A clean table leaves memory, the one that was looked at longest ago in the order of the disk. */
static void drop_one(struct vmdk *v)
{
    for (uint64_t n = 0; n < v->ngt; n++) {
        struct grain_table *t = &v->gt[v->hand];
        v->hand = (v->hand + 1) % v->ngt;
        if (!t->e || t->dirty)
            continue;
        kfree(t->e);
        t->e = NULL;
        v->loaded--;
        return;
    }
}

static int table_load(struct vmdk *v, struct grain_table *t)
{
    if (t->e || !t->at)
        return 0;
    if (v->loaded >= TABLES_MAX)
        drop_one(v);
    t->e = kmalloc(v->h.gtes * 4);
    int err = t->e ? file_read(v->img.file, t->at * SECTOR, t->e, v->h.gtes * 4) : -ENOMEM;
    if (err) {
        kfree(t->e);
        t->e = NULL;
    }
    v->loaded += !err;
    return err;
}

static int entry_get(struct vmdk *v, uint64_t grain, uint32_t *e)
{
    struct grain_table *t = &v->gt[grain / v->h.gtes];
    int err = table_load(v, t);
    *e = err || !t->e ? 0 : t->e[grain % v->h.gtes];
    return err;
}

static bool is_data(uint32_t e) { return e > 1; }

static int sparse_map(struct vmdk *v, uint64_t off, uint64_t *len, unsigned *what, uint64_t *at)
{
    uint64_t g = off / grain_bytes(v), in = off % grain_bytes(v), n = 1, want = (in + *len + grain_bytes(v) - 1) / grain_bytes(v);
    uint32_t e, next;
    bool packed = v->h.flags & F_COMPRESSED;
    int err = entry_get(v, g, &e);
    if (err)
        return err;
    if (is_data(e) && (uint64_t)e * SECTOR >= v->img.file->size)
        return -EILSEQ;
    while (n < want && (g + n) % v->h.gtes && !(packed && is_data(e)) && !entry_get(v, g + n, &next) &&
           (is_data(e) ? next == e + n * v->h.grain : !is_data(next)))
        n++;
    *what = !is_data(e) ? EXTENT_ZERO : packed ? EXTENT_DATA | EXTENT_COMPRESSED : EXTENT_DATA;
    *at = e * SECTOR + in;
    *len = MIN(*len, n * grain_bytes(v) - in);
    return 0;
}

static int vmdk_map(struct image *img, uint64_t off, uint64_t *len, unsigned *what, struct blk **to, uint64_t *at, bool *writable)
{
    struct vmdk *v = vmdk_of(img);
    *to = v->flat ? v->flat : img->file;
    if (v->flat) {
        *what = EXTENT_DATA, *at = v->flat_off + off, *writable = true;
        return 0;
    }
    int err = sparse_map(v, off, len, what, at);
    *writable = !err && *what == EXTENT_DATA;
    return err;
}

static int vmdk_read_compressed(struct image *img, uint64_t off, void *buf, size_t len)
{
    struct vmdk *v = vmdk_of(img);
    struct { uint64_t lba; uint32_t size; } __packed marker;
    uint32_t e;
    int err = entry_get(v, off / grain_bytes(v), &e);
    if (!err && !v->expanded)
        err = (v->expanded = kmalloc(grain_bytes(v))) ? 0 : -ENOMEM;
    if (!err && v->expanded_at != e) {
        err = file_read(img->file, e * SECTOR, &marker, sizeof marker);
        if (!err && (!marker.size || marker.size > 2 * grain_bytes(v) || marker.lba != off / grain_bytes(v) * v->h.grain))
            err = -EILSEQ;
        uint8_t *in = err ? NULL : kmalloc(marker.size);
        if (!err)
            err = in ? file_read(img->file, e * SECTOR + sizeof marker, in, marker.size) : -ENOMEM;
        /* The last grain of the disk may be shorter. */
        uint64_t whole = MIN(grain_bytes(v), img->blk.size - off / grain_bytes(v) * grain_bytes(v));
        v->expanded_at = 0;
        if (!err && codec_expand(CODEC_ZLIB, in, marker.size, v->expanded, grain_bytes(v)))
            err = codec_expand(CODEC_ZLIB, in, marker.size, v->expanded, whole);
        kfree(in);
        v->expanded_at = err ? 0 : e;
    }
    if (!err)
        memcpy(buf, v->expanded + off % grain_bytes(v), len);
    return err;
}

/* ---- Writing ---- */

static int vmdk_flush(struct image *);

static int vmdk_write(struct image *img, uint64_t off, const void *buf, size_t *len)
{
    struct vmdk *v = vmdk_of(img);
    if (v->flat)
        return file_write(v->flat, v->flat_off + off, buf, *len);
    uint64_t g = off / grain_bytes(v), in = off % grain_bytes(v);
    struct grain_table *t = &v->gt[g / v->h.gtes];
    uint32_t e;
    *len = MIN(*len, (size_t)(grain_bytes(v) - in));
    int err = v->dirty > DIRTY_MAX ? vmdk_flush(img) : 0;
    if (!err)
        err = entry_get(v, g, &e);
    if (err)
        return err;
    if (is_data(e))
        return file_write(img->file, e * SECTOR + in, buf, *len);
    if (!t->e || v->end + v->h.grain > UINT32_MAX)
        return -ENOSPC;
    err = file_write_fresh(img->file, v->end * SECTOR, grain_bytes(v), in, buf, *len);
    if (!err) {
        t->e[g % v->h.gtes] = v->end;
        v->dirty += !t->dirty;
        t->dirty = true;
        v->end += v->h.grain;
        atomic_store(&img->dirty, true);
    }
    return err;
}

static int vmdk_discard(struct image *img, uint64_t off, uint64_t len, bool keep)
{
    struct vmdk *v = vmdk_of(img);
    int err = 0;
    while (!err && len) {
        uint64_t part = len, at;
        unsigned what = EXTENT_DATA;
        if (v->flat)
            at = v->flat_off + off;
        else
            err = sparse_map(v, off, &part, &what, &at);
        if (!err && what == EXTENT_DATA)
            err = blk_write_zeroes(v->flat ? v->flat : img->file, at, part, keep ? 0 : BLK_UNMAP_OK);
        off += part, len -= part;
    }
    return err;
}

/* Data, then both copies of the tables that show it. */
static int vmdk_flush(struct image *img)
{
    struct vmdk *v = vmdk_of(img);
    int err = blk_flush(v->flat ? v->flat : img->file);
    bool any = false;
    for (uint64_t i = 0; !err && v->dirty; i++) {
        struct grain_table *t = &v->gt[i];
        if (!t->dirty)
            continue;
        any = true;
        if (t->at2)
            err = file_write(img->file, t->at2 * SECTOR, t->e, v->h.gtes * 4);
        if (!err)
            err = file_write(img->file, t->at * SECTOR, t->e, v->h.gtes * 4);
        t->dirty = err != 0;
        v->dirty -= !err;
    }
    if (!err && any)
        err = blk_flush(img->file);
    if (err)
        img->failed = err;
    return err;
}

static void vmdk_info(struct image *img, struct image_info *i)
{
    struct vmdk *v = vmdk_of(img);
    memcpy(i->subformat, v->type, sizeof i->subformat), memcpy(i->extent, v->extent, sizeof i->extent);
    i->cid = v->cid, i->parent_cid = v->parent_cid;
    i->fixed = v->flat, i->compressed = v->h.flags & F_COMPRESSED;
}

static void vmdk_fini(struct image *img)
{
    struct vmdk *v = vmdk_of(img);
    for (uint64_t i = 0; v->gt && i < v->ngt; i++)
        kfree(v->gt[i].e);
    kfree(v->gt);
    kfree(v->expanded);
    if (v->claimed)
        blk_release(v->flat, v->claimed_write);
    blk_close(v->flat);
}

static int vmdk_check(struct image *img, unsigned fix, struct image_check *c)
{
    struct vmdk *v = vmdk_of(img);
    int err = 0;
    if (v->flat)
        return 0;
    c->total = (img->blk.size + grain_bytes(v) - 1) / grain_bytes(v);
    for (uint64_t g = 0; !err && g < c->total; g++) {
        uint32_t e;
        err = entry_get(v, g, &e);
        if (err || !is_data(e))
            continue;
        c->allocated++;
        c->corruptions += e * SECTOR >= img->file->size;
    }
    return err;
}

const struct image_ops vmdk_ops = {
    .format = IMAGE_VMDK, .map = vmdk_map, .read_compressed = vmdk_read_compressed, .write = vmdk_write, .discard = vmdk_discard,
    .flush = vmdk_flush, .check = vmdk_check, .info = vmdk_info, .fini = vmdk_fini,
};
