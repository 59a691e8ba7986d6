/* VDI, VirtualBox's image, dynamic and fixed: a header, a map of 4-byte entries, blocks of 1 MiB in order of their first write. */
#include "kernel/block/image_int.h"

#include <errno.h>
#include <string.h>

#define VDI_SIGNATURE 0xbeda107fu
#define VDI_VERSION   0x00010001u
#define VDI_BLOCK     (1u << 20)
#define VDI_FREE      0xffffffffu       /* never written */
#define VDI_ZERO      0xfffffffeu       /* discarded */

struct vdi_header {
    char text[64];
    uint32_t signature, version, header_size, type, flags;
    char description[256];
    uint32_t map_off, data_off, cylinders, heads, sectors, sector_size, unused;
    uint64_t size;
    uint32_t block_size, block_extra, blocks, allocated;
    uint8_t uuid[16], uuid_snapshot[16], uuid_link[16], uuid_parent[16];
    uint8_t zero[56];
} __packed;
_Static_assert(sizeof(struct vdi_header) == 512, "VDI header");
enum { VDI_DYNAMIC = 1, VDI_STATIC = 2 };

struct vdi {
    struct image img;
    struct vdi_header h;
    uint32_t *map;
    bool *map_dirty;            /* per 512 bytes of the map */
    uint8_t *used;              /* bit per place of a block in the file */
    uint32_t first_free;        /* no place below is free */
    bool header_dirty;
};

static struct vdi *vdi_of(struct image *img) { return container_of(img, struct vdi, img); }
static uint64_t map_bytes(const struct vdi *v) { return ALIGN_UP(v->h.blocks * 4ull, 512ull); }

static bool is_used(const struct vdi *v, uint32_t e) { return v->used[e / 8] >> e % 8 & 1; }
static void set_used(struct vdi *v, uint32_t e) { v->used[e / 8] |= 1 << e % 8; }
static uint64_t used_bytes(uint64_t blocks) { return blocks / 8 + 1; }

static uint64_t place(const struct vdi *v, uint32_t entry) { return v->h.data_off + (uint64_t)entry * v->h.block_size; }

static int vdi_map(struct image *img, uint64_t off, uint64_t *len, unsigned *what, struct blk **to, uint64_t *at, bool *writable)
{
    struct vdi *v = vdi_of(img);
    uint64_t b = off / v->h.block_size, in = off % v->h.block_size;
    uint32_t e = v->map[b];
    bool data = e < VDI_ZERO;
    uint64_t n = 1, want = (in + *len + v->h.block_size - 1) / v->h.block_size;
    while (n < want && b + n < v->h.blocks && (data ? v->map[b + n] == e + n : v->map[b + n] >= VDI_ZERO))
        n++;
    *what = data ? EXTENT_DATA : EXTENT_ZERO;
    *to = img->file;
    *at = data ? place(v, e) + in : 0;
    *writable = data;
    *len = MIN(*len, n * v->h.block_size - in);
    return 0;
}

static void set_entry(struct vdi *v, uint64_t b, uint32_t e)
{
    v->map[b] = e;
    v->map_dirty[b / 128] = true;
    atomic_store(&v->img.dirty, true);
}

/* The header's count of blocks is the first place behind all that are in use: where other writers put their next one. */
static void count_places(struct vdi *v)
{
    uint32_t n = v->h.blocks;
    while (n && !is_used(v, n - 1))
        n--;
    if (v->h.allocated != n)
        v->h.allocated = n, v->header_dirty = true;
}

/* There is a free place for every block: places that a crash lost, which the map does not name, are free again. */
static uint32_t free_place(struct vdi *v)
{
    while (is_used(v, v->first_free))
        v->first_free++;
    return v->first_free;
}

static int vdi_write(struct image *img, uint64_t off, const void *buf, size_t *len)
{
    struct vdi *v = vdi_of(img);
    uint64_t b = off / v->h.block_size, in = off % v->h.block_size;
    uint32_t e = v->map[b];
    *len = MIN(*len, (size_t)(v->h.block_size - in));
    if (e < VDI_ZERO)
        return file_write(img->file, place(v, e) + in, buf, *len);
    e = free_place(v);
    int err = file_write_fresh(img->file, place(v, e), v->h.block_size, in, buf, *len);
    if (!err) {
        set_entry(v, b, e);
        set_used(v, e);
        if (e >= v->h.allocated)
            v->h.allocated = e + 1, v->header_dirty = true;
    }
    return err;
}

/* Blocks cannot be given back: written over with zeroes (by the caller) or, if never written, left alone. */
static int vdi_discard(struct image *img, uint64_t off, uint64_t len, bool keep)
{
    struct vdi *v = vdi_of(img);
    int err = 0;
    for (uint64_t b = off / v->h.block_size; !err && b * v->h.block_size < off + len; b++)
        if (v->map[b] < VDI_ZERO)
            err = blk_write_zeroes(img->file, place(v, v->map[b]), v->h.block_size, keep ? 0 : BLK_UNMAP_OK);
    return err;
}

/* Data, then the map that shows it.  The count of blocks goes first: a block that is counted and not mapped is only lost space. */
static int vdi_flush(struct image *img)
{
    struct vdi *v = vdi_of(img);
    int err = 0;
    if (v->header_dirty)
        err = file_write(img->file, 0, &v->h, sizeof v->h);
    if (!err)
        err = blk_flush(img->file);
    v->header_dirty &= err != 0;
    bool any = false;
    for (uint64_t i = 0; !err && i < map_bytes(v) / 512; i++)
        if (v->map_dirty[i]) {
            err = file_write(img->file, v->h.map_off + i * 512, v->map + i * 128, 512);
            v->map_dirty[i] = err != 0;
            any = true;
        }
    if (!err && any)
        err = blk_flush(img->file);
    if (err)
        img->failed = err;
    return err;
}

static int vdi_check(struct image *img, unsigned fix, struct image_check *c)
{
    struct vdi *v = vdi_of(img);
    c->total = v->h.blocks;
    for (uint32_t b = 0; b < v->h.blocks; b++)
        c->allocated += v->map[b] < VDI_ZERO;   /* that no two are in one place was checked when it was opened */
    c->leaks = v->h.allocated - c->allocated;
    c->end = place(v, v->h.allocated);
    return 0;
}

static void vdi_info(struct image *img, struct image_info *i) { i->fixed = vdi_of(img)->h.type == VDI_STATIC; }

static void vdi_fini(struct image *img)
{
    kfree(vdi_of(img)->map);
    kfree(vdi_of(img)->map_dirty);
    kfree(vdi_of(img)->used);
}

static int vdi_resize(struct image *img, uint64_t size, struct image_env *);

static const struct image_ops vdi_ops = {
    .format = IMAGE_VDI, .map = vdi_map, .write = vdi_write, .discard = vdi_discard, .flush = vdi_flush, .resize = vdi_resize, .check = vdi_check,
    .info = vdi_info, .fini = vdi_fini,
};

static int check_header(const struct vdi_header *h, uint64_t file_size, struct image_env *env)
{
    if (h->signature != VDI_SIGNATURE)
        return image_refuse(env, -EILSEQ, "this is not a VDI image");
    if (h->version >> 16 != 1 || (h->type != VDI_DYNAMIC && h->type != VDI_STATIC))
        return image_refuse(env, -ENOTSUP, "VDI version %x, type %u is not supported (differencing images are not)", h->version, h->type);
    if (h->block_size != VDI_BLOCK || h->sector_size != 512 || h->block_extra)
        return image_refuse(env, -ENOTSUP, "VDI blocks of %u bytes are not supported", h->block_size);
    if (h->map_off % 512 || h->data_off % 512 || h->blocks > 0x20000000u || h->map_off + h->blocks * 4ull > h->data_off || h->data_off > file_size ||
        h->size > (uint64_t)h->blocks * VDI_BLOCK)
        return image_refuse(env, -EILSEQ, "the VDI header makes no sense");
    return 0;
}

/* Entries name different places, as many as there are blocks. */
static int check_map(struct vdi *v)
{
    for (uint32_t b = 0; b < v->h.blocks; b++) {
        uint32_t e = v->map[b];
        if (e >= VDI_ZERO)
            continue;
        if (e >= v->h.blocks || is_used(v, e))
            return -EILSEQ;
        set_used(v, e);
    }
    count_places(v);
    return 0;
}

static int load(struct vdi *v, struct image_env *env)
{
    struct blk *file = v->img.file;
    int err = file_read(file, 0, &v->h, sizeof v->h);
    if (!err)
        err = check_header(&v->h, file->size, env);
    if (err)
        return err;
    if (map_bytes(v) > file->size)
        return image_refuse(env, -EILSEQ, "the VDI map is larger than the file");
    v->map = kmalloc(map_bytes(v) + 512);
    v->map_dirty = kzalloc(map_bytes(v) / 512 + 1);
    v->used = kzalloc(used_bytes(v->h.blocks));
    if (!v->map || !v->map_dirty || !v->used)
        return -ENOMEM;
    err = file_read(file, v->h.map_off, v->map, map_bytes(v));
    if (!err && check_map(v))
        err = image_refuse(env, -EILSEQ, "the VDI map makes no sense");
    v->img.blk.size = v->h.size;
    v->img.cluster = v->h.block_size;
    return err;
}

int vdi_open(struct blk *file, unsigned flags, struct image_env *env, struct image **out)
{
    struct vdi *v = image_alloc(sizeof *v, &vdi_ops, file, flags);
    return v ? image_opened(&v->img, "vdi", load(v, env), out) : -ENOMEM;
}

/* ---- Making and resizing ---- */

static uint64_t data_offset(uint64_t blocks) { return ALIGN_UP(512 + blocks * 4, (uint64_t)VDI_BLOCK); }

int vdi_create(struct blk *file, const struct image_opts *o, struct image_env *env)
{
    uint64_t blocks = (o->size + VDI_BLOCK - 1) / VDI_BLOCK, bytes = ALIGN_UP(blocks * 4, 512ull);
    if (blocks > 0x1fffffff)
        return image_refuse(env, -EFBIG, "a VDI image cannot be larger than 512 TiB");
    struct vdi_header h = {
        .text = "<<< Oracle VM VirtualBox Disk Image >>>\n", .signature = VDI_SIGNATURE, .version = VDI_VERSION, .header_size = 0x190,
        .type = o->fixed ? VDI_STATIC : VDI_DYNAMIC, .map_off = 512, .data_off = data_offset(blocks), .sector_size = 512, .size = o->size,
        .block_size = VDI_BLOCK, .blocks = blocks, .allocated = o->fixed ? blocks : 0,
    };
    uint32_t *map = kmalloc(MAX(bytes, 512ull));
    if (!map)
        return -ENOMEM;
    random_bytes(h.uuid, 16), random_bytes(h.uuid_snapshot, 16);
    for (uint64_t i = 0; i < bytes / 4; i++)
        map[i] = i >= blocks ? 0 : o->fixed ? i : VDI_FREE;
    int err = blk_resize(file, h.data_off + (o->fixed ? blocks * VDI_BLOCK : 0));
    if (!err)
        err = file_write(file, 0, &h, sizeof h);
    if (!err && bytes)
        err = file_write(file, 512, map, bytes);
    kfree(map);
    return err ? err : blk_flush(file);
}

/* The map grows within the space before the data; making more would mean moving blocks, which only converting does. */
static int vdi_resize(struct image *img, uint64_t size, struct image_env *env)
{
    struct vdi *v = vdi_of(img);
    uint64_t blocks = (size + VDI_BLOCK - 1) / VDI_BLOCK, bytes = ALIGN_UP(blocks * 4, 512ull);
    if (size < img->blk.size || v->h.type == VDI_STATIC)
        return image_refuse(env, -ENOTSUP, "a VDI image can only grow, and only if it is dynamic; convert it");
    if (v->h.map_off + bytes > v->h.data_off)
        return image_refuse(env, -ENOTSUP, "the VDI image's map has room for %llu MiB only; convert it", (unsigned long long)((v->h.data_off - v->h.map_off) / 4));
    uint32_t *map = kmalloc(bytes + 512);
    bool *dirty = kzalloc(bytes / 512 + 1);
    uint8_t *used = kzalloc(used_bytes(blocks));
    int err = map && dirty && used ? vdi_flush(img) : -ENOMEM;
    if (err) {
        kfree(map), kfree(dirty), kfree(used);
        return err;
    }
    memcpy(used, v->used, used_bytes(v->h.blocks));
    memcpy(map, v->map, v->h.blocks * 4ull);
    for (uint64_t b = v->h.blocks; b < bytes / 4; b++)
        map[b] = VDI_FREE;
    memset(dirty, true, bytes / 512);
    kfree(v->map), kfree(v->map_dirty), kfree(v->used);
    v->map = map, v->map_dirty = dirty, v->used = used;
    v->h.blocks = blocks;
    err = vdi_flush(img);       /* the map first: the header makes it count */
    v->h.size = size;
    v->header_dirty = true;
    return err ? err : vdi_flush(img);
}
