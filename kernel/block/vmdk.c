/*
 * VMDK: monolithic sparse, monolithic flat, and stream-optimised (read only), as VMware's "Virtual Disk Format 5.0" has them.
 * A sparse file has a directory of grain tables, twice; a flat one is a text descriptor beside a raw file.
 */
#include "kernel/block/codec.h"
#include "kernel/block/image_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512ull
#define DESC_MAX 65536u
#define GTES 512u
#define TABLES_MAX 4096u        /* in memory: 8 MiB */
#define DIRTY_MAX 1024u
#define DIRECTORY_MAX (1u << 20)        /* tables: 32 TiB of grains of 64 KiB */

struct vmdk_header {
    char magic[4];
    uint32_t version, flags;
    uint64_t capacity, grain, desc_off, desc_size;      /* sectors */
    uint32_t gtes;
    uint64_t rgd_off, gd_off, overhead;
    uint8_t unclean, newline[4];
    uint16_t compression;
    uint8_t zero[433];
} __packed;
_Static_assert(sizeof(struct vmdk_header) == 512, "VMDK header");
enum { F_NEWLINES = 1, F_RGD = 2, F_ZERO_GRAIN = 4, F_COMPRESSED = 1 << 16, F_MARKERS = 1 << 17 };

struct grain_table { uint32_t *e; uint32_t at, at2; bool dirty; };      /* at, at2: sectors of the table and its copy; 0: none */

struct vmdk {
    struct image img;
    struct vmdk_header h;
    char type[32], extent[256];         /* of the descriptor */
    uint32_t cid, parent_cid;
    struct grain_table *gt;     /* NULL: flat */
    uint64_t ngt, end;          /* end: sector where the next grain goes */
    uint64_t loaded, dirty, hand;       /* tables in memory, those that wait for a flush, where to look for one to drop */
    struct blk *flat;
    uint64_t flat_off;
    bool claimed, claimed_write;        /* the flat extent */
    uint8_t *expanded;
    uint32_t expanded_at;
};

static struct vmdk *vmdk_of(struct image *img) { return container_of(img, struct vmdk, img); }
static uint64_t grain_bytes(const struct vmdk *v) { return v->h.grain * SECTOR; }

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
    for (uint64_t i = 0; !err && v->gt && i < v->ngt; i++) {
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

static const struct image_ops vmdk_ops = {
    .format = IMAGE_VMDK, .map = vmdk_map, .read_compressed = vmdk_read_compressed, .write = vmdk_write, .discard = vmdk_discard,
    .flush = vmdk_flush, .check = vmdk_check, .info = vmdk_info, .fini = vmdk_fini,
};

/* ---- Descriptors ---- */

/* The value of KEY=value or KEY="value" at the start of a line. */
static bool desc_value(const char *desc, const char *key, char *out, size_t room)
{
    size_t klen = strlen(key), n = 0;
    for (const char *p = desc; p; p = strchr(p, '\n'), p = p ? p + 1 : NULL) {
        if (strncmp(p, key, klen) || p[klen] != '=')
            continue;
        p += klen + 1;
        bool quoted = *p == '"';
        for (p += quoted; *p && *p != '\n' && *p != '\r' && !(quoted && *p == '"') && n + 1 < room; p++)
            out[n++] = *p;
        out[n] = 0;
        return true;
    }
    return false;
}

static int check_desc(struct vmdk *v, const char *desc, struct image_env *env)
{
    char cid[16] = "", parent[16] = "ffffffff";
    if (!desc_value(desc, "createType", v->type, sizeof v->type))
        return image_refuse(env, -EILSEQ, "the VMDK descriptor has no createType");
    desc_value(desc, "CID", cid, sizeof cid);
    desc_value(desc, "parentCID", parent, sizeof parent);
    v->cid = strtoul(cid, NULL, 16), v->parent_cid = strtoul(parent, NULL, 16);
    if (v->parent_cid != UINT32_MAX)
        return image_refuse(env, -ENOTSUP, "VMDK images with a parent are not supported");
    return 0;
}

/* RW 204800 FLAT "name" 0 */
static int flat_extent(struct vmdk *v, const char *desc, char *name, size_t room)
{
    unsigned extents = 0;
    for (const char *p = desc; p; p = strchr(p, '\n'), p = p ? p + 1 : NULL) {
        if (strncmp(p, "RW ", 3) && strncmp(p, "RDONLY ", 7))
            continue;
        char *end;
        uint64_t sectors = strtoull(strchr(p, ' ') + 1, &end, 10);
        size_t n = 0;
        if (strncmp(end, " FLAT \"", 7) || extents++ || sectors >> 50)
            return -ENOTSUP;
        for (end += 7; *end && *end != '"' && *end != '\n' && n + 1 < room; end++)
            name[n++] = *end;
        name[n] = 0;
        if (*end != '"')
            return -EILSEQ;
        v->img.blk.size = sectors * SECTOR;
        v->flat_off = strtoull(end + 1, NULL, 10) * SECTOR;
    }
    return extents == 1 ? 0 : -EILSEQ;
}

static int open_flat(struct vmdk *v, const char *desc, unsigned flags, struct image_env *env)
{
    char *name = v->extent;
    int err = check_desc(v, desc, env);
    if (!err && strcmp(v->type, "monolithicFlat"))
        return image_refuse(env, -ENOTSUP, "VMDK type %s is not supported", v->type);
    if (!err && (err = flat_extent(v, desc, name, sizeof v->extent)))
        return image_refuse(env, err, "the VMDK descriptor's extents are not supported");
    if (!err && !env->open)
        return image_refuse(env, -ENOENT, "the extent '%.100s' cannot be opened here", name);
    if (!err && (err = env->open(env->arg, name, flags & IMAGE_WRITE, &v->flat)))
        return image_refuse(env, err, "the extent '%.100s' cannot be opened", name);
    if (!err) {
        err = image_claim(v->flat, flags & IMAGE_WRITE, name, env);
        v->claimed = !err, v->claimed_write = flags & IMAGE_WRITE;
    }
    if (!err && (v->flat_off > v->flat->size || v->img.blk.size > v->flat->size - v->flat_off))
        err = image_refuse(env, -EILSEQ, "the extent '%.100s' is too short", name);
    v->img.cluster = 65536;
    return err;
}

/* ---- Sparse files ---- */

static int check_sparse(struct vmdk *v, struct image_env *env)
{
    struct vmdk_header *h = &v->h;
    if (memcmp(h->magic, "KDMV", 4) || h->version < 1 || h->version > 3)
        return image_refuse(env, -EILSEQ, "this is not a VMDK image");
    if (!h->grain || h->grain & (h->grain - 1) || h->grain < 8 || h->grain > 2048 || h->gtes != GTES || h->capacity >> 43)
        return image_refuse(env, -ENOTSUP, "the VMDK geometry is not supported");
    if (h->flags & F_COMPRESSED && h->compression != 1)
        return image_refuse(env, -ENOTSUP, "the VMDK compression is not known");
    if (!h->gd_off || h->gd_off > v->img.file->size / SECTOR || (h->flags & F_RGD && h->rgd_off > v->img.file->size / SECTOR))
        return image_refuse(env, -EILSEQ, "the VMDK header makes no sense");
    return 0;
}

static int load_directory(struct vmdk *v)
{
    uint64_t per = v->h.grain * v->h.gtes, bytes;
    v->ngt = (v->h.capacity + per - 1) / per;
    bytes = v->ngt * 4;
    if (bytes > v->img.file->size || v->ngt > DIRECTORY_MAX)
        return -EILSEQ;
    uint32_t *gd = kmalloc(MAX(bytes, 4ull));
    v->gt = kzalloc(MAX(v->ngt, 1ull) * sizeof *v->gt);
    int err = gd && v->gt ? file_read(v->img.file, v->h.gd_off * SECTOR, gd, bytes) : -ENOMEM;
    for (uint64_t i = 0; !err && i < v->ngt; i++)
        v->gt[i].at = gd[i];
    if (!err && v->h.flags & F_RGD && v->h.rgd_off) {
        err = file_read(v->img.file, v->h.rgd_off * SECTOR, gd, bytes);
        for (uint64_t i = 0; !err && i < v->ngt; i++)
            v->gt[i].at2 = gd[i];
    }
    for (uint64_t i = 0; !err && i < v->ngt; i++)
        if (v->gt[i].at >= v->img.file->size / SECTOR || v->gt[i].at2 >= v->img.file->size / SECTOR)
            err = -EILSEQ;
    kfree(gd);
    return err;
}

static int open_sparse(struct vmdk *v, unsigned flags, struct image_env *env)
{
    struct blk *file = v->img.file;
    int err = 0;
    if (v->h.gd_off == UINT64_MAX) {            /* written as a stream: the real header is at the end */
        if (file->size < 1536)
            return image_refuse(env, -EILSEQ, "the VMDK stream has no end");
        err = file_read(file, file->size - 1024, &v->h, sizeof v->h);
    }
    if (!err)
        err = check_sparse(v, env);
    char *desc = err ? NULL : kzalloc(DESC_MAX + 1);
    if (!err && !desc)
        err = -ENOMEM;
    if (!err && v->h.desc_off) {
        err = file_read(file, v->h.desc_off * SECTOR, desc, MIN(v->h.desc_size * SECTOR, (uint64_t)DESC_MAX));
        if (!err)
            err = check_desc(v, desc, env);
    }
    kfree(desc);
    if (!err && flags & IMAGE_WRITE && v->h.flags & (F_COMPRESSED | F_MARKERS))
        err = image_refuse(env, -EROFS, "stream-optimised VMDK images can only be read");
    if (!err)
        err = load_directory(v);
    if (err == -EILSEQ && !env->error[0])
        image_refuse(env, err, "the VMDK grain directory makes no sense");
    v->img.blk.size = v->h.capacity * SECTOR;
    v->img.cluster = grain_bytes(v);
    v->end = ALIGN_UP(file->size / SECTOR, v->h.grain ? v->h.grain : 1);
    return err;
}

static int load(struct vmdk *v, unsigned flags, struct image_env *env)
{
    int err = file_read(v->img.file, 0, &v->h, sizeof v->h);
    if (err || !memcmp(v->h.magic, "KDMV", 4))
        return err ? err : open_sparse(v, flags, env);
    char *desc = kzalloc(DESC_MAX + 1);
    err = desc ? file_read(v->img.file, 0, desc, MIN(v->img.file->size, (uint64_t)DESC_MAX)) : -ENOMEM;
    if (!err && strncmp(desc, "# Disk DescriptorFile", 21))
        err = image_refuse(env, -EILSEQ, "this is not a VMDK image");
    memset(&v->h, 0, sizeof v->h);
    if (!err)
        err = open_flat(v, desc, flags, env);
    kfree(desc);
    return err;
}

int vmdk_open(struct blk *file, unsigned flags, struct image_env *env, struct image **out)
{
    struct vmdk *v = kzalloc(sizeof *v);
    if (!v)
        return -ENOMEM;
    v->img.ops = &vmdk_ops, v->img.file = file;
    v->img.blk.limits.read_only = !(flags & IMAGE_WRITE);
    int err = load(v, flags, env);
    return image_opened(&v->img, "vmdk", err, out);
}

/* ---- Making ---- */

static int put_desc(char *desc, size_t room, const struct image_opts *o, const char *type, const char *extent, const char *name, uint64_t sectors)
{
    uint32_t cid;
    uint64_t cylinders = sectors / (16 * 63);
    random_bytes(&cid, sizeof cid);
    return snprintf(desc, room,
        "# Disk DescriptorFile\nversion=1\nCID=%08x\nparentCID=ffffffff\ncreateType=\"%s\"\n\n"
        "# Extent description\nRW %llu %s \"%s\"%s\n\n"
        "# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"%llu\"\nddb.geometry.heads = \"16\"\n"
        "ddb.geometry.sectors = \"63\"\nddb.adapterType = \"ide\"\n",
        cid & 0x7fffffff, type, (unsigned long long)sectors, extent, name, o->fixed ? " 0" : "",
        (unsigned long long)MIN(cylinders, 65535ull));
}

static int create_flat(struct blk *file, const struct image_opts *o, struct image_env *env)
{
    char desc[2048];
    struct blk *flat;
    if (!o->flat_name || !env->open)
        return image_refuse(env, -EINVAL, "a flat VMDK image needs a second file");
    int n = put_desc(desc, sizeof desc, o, "monolithicFlat", "FLAT", o->flat_name, o->size / SECTOR);
    if (n >= (int)sizeof desc)
        return image_refuse(env, -EINVAL, "the extent's name is too long");
    int err = env->open(env->arg, o->flat_name, true, &flat);
    if (err)
        return image_refuse(env, err, "the extent '%.100s' cannot be made", o->flat_name);
    err = blk_resize(flat, o->size);
    blk_close(flat);
    if (!err)
        err = blk_resize(file, ALIGN_UP((uint64_t)n, SECTOR));
    char *padded = err ? NULL : kzalloc(ALIGN_UP((size_t)n, SECTOR));
    if (!err && !padded)
        err = -ENOMEM;
    if (!err) {
        memset(padded, '\n', ALIGN_UP((size_t)n, SECTOR));
        memcpy(padded, desc, n);
        err = file_write(file, 0, padded, ALIGN_UP((size_t)n, SECTOR));
    }
    kfree(padded);
    return err;
}

/* A directory and its tables, which follow it. */
static int put_directory(struct blk *file, uint64_t at, uint64_t ngt)
{
    uint64_t sectors = (ngt * 4 + 511) / 512;
    uint32_t *gd = kzalloc(MAX(sectors, 1ull) * SECTOR);
    if (!gd)
        return -ENOMEM;
    for (uint64_t i = 0; i < ngt; i++)
        gd[i] = at + sectors + i * (GTES * 4 / 512);
    int err = file_write(file, at * SECTOR, gd, sectors * SECTOR);
    kfree(gd);
    return err;
}

int vmdk_create(struct blk *file, const struct image_opts *o, struct image_env *env)
{
    struct vmdk_header h = { .magic = { 'K', 'D', 'M', 'V' }, .version = 1, .flags = F_NEWLINES | F_RGD, .grain = 128, .desc_off = 1, .desc_size = 20,
                             .gtes = GTES, .newline = { '\n', ' ', '\r', '\n' } };
    char desc[20 * 512] = "";
    if (o->stream)
        return image_refuse(env, -ENOTSUP, "stream-optimised VMDK images can only be read");
    h.capacity = (o->size + SECTOR - 1) / SECTOR;
    if (o->fixed)
        return create_flat(file, o, env);
    uint64_t per = h.grain * GTES, ngt = (h.capacity + per - 1) / per, gd = (ngt * 4 + 511) / 512, tables = ngt * (GTES * 4 / 512);
    if (h.capacity > 1ull << 32)
        return image_refuse(env, -EFBIG, "a sparse VMDK image cannot be larger than 2 TiB");
    h.rgd_off = 21, h.gd_off = 21 + gd + tables;
    h.overhead = ALIGN_UP(h.gd_off + gd + tables, h.grain);
    put_desc(desc, sizeof desc, o, "monolithicSparse", "SPARSE", "image.vmdk", h.capacity);
    int err = blk_resize(file, 0);
    if (!err)
        err = blk_resize(file, h.overhead * SECTOR);
    if (!err)
        err = file_write(file, 0, &h, sizeof h);
    if (!err)
        err = file_write(file, SECTOR, desc, sizeof desc);
    if (!err)
        err = put_directory(file, h.rgd_off, ngt);
    if (!err)
        err = put_directory(file, h.gd_off, ngt);
    return err ? err : blk_flush(file);
}
