/* VMDK: opening: descriptors, headers, the directory of grain tables. */
#include "kernel/block/vmdk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DESC_MAX 65536u
#define DIRECTORY_MAX (1u << 20)        /* tables: 32 TiB of grains of 64 KiB */

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
static int flat_extent(struct vmdk *v, const char *desc, char *name, size_t room, bool *read_only)
{
    unsigned extents = 0;
    for (const char *p = desc; p; p = strchr(p, '\n'), p = p ? p + 1 : NULL) {
        if (strncmp(p, "RW ", 3) && strncmp(p, "RDONLY ", 7))
            continue;
        char *end;
        *read_only = p[1] == 'D';
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
    bool read_only = false;
    int err = check_desc(v, desc, env);
    if (!err && strcmp(v->type, "monolithicFlat"))
        return image_refuse(env, -ENOTSUP, "VMDK type %s is not supported", v->type);
    if (!err && (err = flat_extent(v, desc, name, sizeof v->extent, &read_only)))
        return image_refuse(env, err, "the VMDK descriptor's extents are not supported");
    if (!err && read_only && flags & IMAGE_WRITE)
        return image_refuse(env, -EROFS, "the descriptor says that the extent '%.100s' is only to be read", name);
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
    struct vmdk *v = image_alloc(sizeof *v, &vmdk_ops, file, flags);
    return v ? image_opened(&v->img, "vmdk", load(v, flags, env), out) : -ENOMEM;
}
