/* VMDK: making an image. */
#include "kernel/block/vmdk.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

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
