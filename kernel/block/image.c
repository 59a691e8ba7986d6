/* What all image formats have in common: opening, the request engine, reading through backing files, raw images. */
#include "kernel/block/image_int.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "kernel/block/split.h"

/* Opening takes half a kilobyte of stack per file of a chain, and so does a read that goes down through it; kernel stacks have 32. */
#define MAX_CHAIN 16

static const char *const names[] = { "none", "raw", "qcow2", "vdi", "vmdk", "iso" };

const char *image_format_name(enum image_format f) { return names[f]; }

enum image_format image_format_named(const char *name)
{
    for (size_t i = 1; i < ARRAY_SIZE(names); i++)
        if (!strcmp(name, names[i]))
            return i;
    return IMAGE_NONE;
}

/* Names come from images: what a terminal would obey does not get through. */
int image_refuse(struct image_env *env, int err, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(env->error, sizeof env->error, fmt, ap);
    va_end(ap);
    for (char *p = env->error; *p; p++)
        if (*p > 0 && (*p < ' ' || *p == 127))
            *p = '?';
    return err;
}

/* ---- Other files: claimed, so that nobody else writes what an image in use rests on ---- */

int image_claim(struct blk *other, bool write, const char *name, struct image_env *env)
{
    int err = blk_claim(other, write);
    return err == -EBUSY ? image_refuse(env, err, "the file '%.100s' is being %s", name, write ? "used" : "written") : err;
}

int image_open_backing(struct image *img, enum image_format f, const char *name, struct image_env *env)
{
    struct blk *file;
    if (!env->open)
        return image_refuse(env, -ENOENT, "the backing file '%.100s' cannot be opened here", name);
    int err = env->open(env->arg, name, false, &file);
    if (err)
        return image_refuse(env, err, "the backing file '%.100s' cannot be opened", name);
    env->depth++;
    err = image_open(f ? f : IMAGE_RAW, file, 0, env, &img->backing);
    env->depth--;
    if (err)
        return err;
    err = image_claim(img->backing, false, name, env);
    if (err) {
        blk_close(img->backing);
        img->backing = NULL;
    }
    return err;
}

static void drop_backing(struct image *img)
{
    if (img->backing)
        blk_release(img->backing, false);
    blk_close(img->backing);
}

/* ---- The file below ---- */

int file_read(struct blk *b, uint64_t off, void *buf, size_t len)
{
    size_t have = off < b->size ? MIN(len, b->size - off) : 0;
    memset((char *)buf + have, 0, len - have);
    return have ? blk_pread(b, off, buf, have) : 0;
}

int file_extend(struct blk *b, uint64_t size)
{
    return size > b->size ? blk_resize(b, ALIGN_UP(size, (uint64_t)b->limits.block)) : 0;
}

/* A disk keeps its size, and need only be large enough. */
int file_resize(struct blk *b, uint64_t size)
{
    int err = blk_resize(b, ALIGN_UP(size, (uint64_t)b->limits.block));
    return err == -ENOTSUP && size <= b->size ? 0 : err;
}

int file_write(struct blk *b, uint64_t off, const void *buf, size_t len)
{
    int err = file_extend(b, off + len);
    return err ? err : blk_pwrite(b, off, buf, len);
}

int file_write_fresh(struct blk *b, uint64_t at, uint64_t size, uint64_t in, const void *buf, size_t len)
{
    int err = file_extend(b, at + size);
    if (!err && len < size)
        err = blk_write_zeroes(b, at, size, BLK_UNMAP_OK);
    return err ? err : file_write(b, at + in, buf, len);
}

/* ---- Reading and writing, in threads ---- */

static struct image *image_of(struct blk *b) { return container_of(b, struct image, blk); }

int image_read_backing(struct image *img, uint64_t off, void *buf, size_t len)
{
    if (!img->backing) {
        memset(buf, 0, len);
        return 0;
    }
    return file_read(img->backing, off, buf, len);
}

static int read_part(struct image *img, uint64_t off, void *buf, size_t *len)
{
    uint64_t part = *len, at = 0;
    unsigned what;
    struct blk *to = img->file;
    bool writable = false;
    int err = img->ops->map(img, off, &part, &what, &to, &at, &writable);
    if (err)
        return err;
    *len = part;
    if (what & EXTENT_COMPRESSED)
        return img->ops->read_compressed(img, off, buf, part);
    if (what & EXTENT_ZERO) {
        memset(buf, 0, part);
        return 0;
    }
    return what & EXTENT_BACKING ? image_read_backing(img, off, buf, part) : file_read(to, at, buf, part);
}

/* Teach the engine, as far as the table says without further reading: more than was asked for. */
static void learn(struct image *img, uint64_t off)
{
    uint64_t start = ALIGN_DOWN(off, (uint64_t)img->cluster), len = img->blk.size - start, at = 0;
    unsigned what;
    struct blk *to = img->file;
    bool writable = false;
    if (!img->m.users || img->ops->map(img, start, &len, &what, &to, &at, &writable) || what & EXTENT_COMPRESSED)
        return;
    unsigned block = img->blk.limits.block - 1;
    if (what & EXTENT_ZERO || (what & EXTENT_BACKING && !img->backing))
        mapped_learn(&img->m, start, len, NULL, 0, MAP_ZERO);
    else if (what & EXTENT_BACKING && start + len <= ALIGN_DOWN(img->backing->size, img->backing->limits.block) && !(start & (img->backing->limits.block - 1)))
        mapped_learn(&img->m, start, len, img->backing, start, MAP_READ);
    else if (what & EXTENT_DATA && !(at & block) && at + len <= to->size)
        mapped_learn(&img->m, start, len, to, at, writable && !img->blk.limits.read_only ? MAP_WRITE : MAP_READ);
}

int image_read_locked(struct image *img, uint64_t off, void *buf, size_t len)
{
    int err = 0;
    char *to = buf;
    while (len && !err) {
        size_t part = len;
        err = read_part(img, off, to, &part);
        if (!err)
            learn(img, off);
        off += part, to += part, len -= part;
    }
    return err;
}

int image_write_locked(struct image *img, uint64_t off, const void *buf, size_t len)
{
    const char *from = buf;
    int err = img->failed;
    while (len && !err) {
        size_t part = len;
        err = img->ops->write(img, off, from, &part);
        if (!err)
            learn(img, off);
        off += part, from += part, len -= part;
    }
    return err;
}

static int write_zeroes(struct image *img, uint64_t off, uint64_t len)
{
    static const uint8_t zero[16384];
    int err = 0;
    while (len && !err) {
        size_t k = MIN(len, (uint64_t)sizeof zero);
        err = image_write_locked(img, off, zero, k);
        off += k, len -= k;
    }
    return err;
}

/* Whole clusters by the format's own means, edges by writing. */
static int clear(struct image *img, const struct blk_req *r)
{
    uint64_t end = r->off + r->len, c = img->cluster;
    uint64_t first = MIN(ALIGN_UP(r->off, c), end), last = end == img->blk.size ? end : ALIGN_DOWN(end, c);
    bool zeroes = r->op == BLK_WRITE_ZEROES, keep = zeroes && !(r->flags & BLK_UNMAP_OK);
    int err = img->failed;
    if (!img->ops->discard || first >= last)
        return err ? err : zeroes ? write_zeroes(img, r->off, r->len) : 0;
    if (!err && zeroes)
        err = write_zeroes(img, r->off, first - r->off);
    if (!err && zeroes)
        err = write_zeroes(img, last, end - last);
    if (!err) {
        mapped_gate(&img->m);
        err = img->ops->discard(img, first, last - first, keep);
        mapped_forget(&img->m, first, last - first);
        mapped_ungate(&img->m);
        if (err == -ENOTSUP)
            err = zeroes ? write_zeroes(img, first, last - first) : 0;
    }
    return err;
}

static int flush(struct image *img)
{
    int err = img->failed ? img->failed : img->ops->flush ? img->ops->flush(img) : blk_flush(img->file);
    if (!err)
        atomic_store(&img->dirty, false);
    return err;
}

/* ---- The engine's questions ---- */

static struct image *of(struct mapped *m) { return container_of(m, struct image, m); }
static void image_kick(struct mapped *m) { event_post(&of(m)->work); }
static bool image_settled(struct mapped *m) { return !atomic_load(&of(m)->dirty); }
static void image_lock(struct mapped *m) { mutex_lock(&of(m)->lock); }
static void image_unlock(struct mapped *m) { mutex_unlock(&of(m)->lock); }
static int read_fn(void *img, uint64_t off, void *buf, size_t len) { return image_read_locked(img, off, buf, len); }
static int write_fn(void *img, uint64_t off, const void *buf, size_t len) { return image_write_locked(img, off, buf, len); }

static int image_slow(struct mapped *m, struct blk_req *r, size_t from)
{
    struct image *img = of(m);
    int err = 0;
    switch (r->op) {
    case BLK_READ:
    case BLK_WRITE:        err = mapped_copy(r, from, read_fn, write_fn, img); break;
    case BLK_DISCARD:
    case BLK_WRITE_ZEROES: err = clear(img, r); break;
    case BLK_FLUSH:        return flush(img);
    }
    return !err && r->op != BLK_READ && r->flags & BLK_FUA ? flush(img) : err;
}

static const struct mapped_ops engine = { image_kick, image_settled, image_slow, image_lock, image_unlock };

static void image_thread(void *arg)
{
    struct image *img = arg;
    while (!atomic_load(&img->stopping)) {
        event_wait(&img->work);
        if (!atomic_load(&img->stopping))
            mapped_serve(&img->m);
    }
}

static void image_submit(struct blk *b, struct blk_req *r) { mapped_submit(&image_of(b)->m, r, b->limits.block); }

static int image_blk_resize(struct blk *b, uint64_t size)
{
    struct image_env env = { .open = NULL };
    return image_resize(b, size, false, &env);
}

static void image_close(struct blk *b)
{
    struct image *img = image_of(b);
    atomic_store(&img->stopping, true);
    event_post(&img->work);
    if (img->thread)
        thread_join(img->thread);
    if (!b->limits.read_only)
        flush(img);
    if (img->ops->fini)
        img->ops->fini(img);
    mapped_fini(&img->m);
    drop_backing(img);
    if (!img->keeps_file)
        blk_close(img->file);
    kfree(img);
}

static const struct blk_ops image_blk_ops = { image_submit, image_blk_resize, image_close };

static int start_engine(struct image *img, const char *kind)
{
    struct blk *b = &img->blk;
    bool read_only = b->limits.read_only;
    uint32_t ctx = MAX(img->file->limits.ctx_size, img->backing ? img->backing->limits.ctx_size : 0);
    b->ops = &image_blk_ops, b->kind = kind, b->below = img->file;
    memcpy(b->name, img->file->name, sizeof b->name);
    b->limits = blk_limits_any();
    b->limits.block = img->file->limits.block;
    b->limits.phys_block = MAX(4096u, b->limits.block);
    b->limits.mem_align = img->file->limits.mem_align, b->limits.max_segs = img->file->limits.max_segs, b->limits.max_len = img->file->limits.max_len;
    b->limits.ctx_size = mapped_ctx_size(ctx);
    b->limits.read_only = read_only;
    b->limits.discard = b->limits.write_zeroes = b->limits.volatile_cache = b->limits.fua = true;
    mutex_init(&img->lock);
    event_init(&img->work);
    mapped_init(&img->m, &engine, img->file, &img->blk.limits);
    mapped_use(&img->m, 1);
    b->size = ALIGN_DOWN(b->size, (uint64_t)b->limits.block);
    int err = blk_ready(b);
    if (!err) {
        img->thread = thread_start(kind, image_thread, img);
        err = img->thread ? 0 : -ENOMEM;
        if (err)
            blk_split_close(b);
    }
    return err;
}

void *image_alloc(size_t size, const struct image_ops *ops, struct blk *file, unsigned flags)
{
    struct image *img = kzalloc(size);
    if (!img)
        return NULL;
    img->ops = ops, img->file = file;
    img->blk.limits.read_only = !(flags & IMAGE_WRITE);
    return img;
}

int image_opened(struct image *img, const char *kind, int err, struct image **out)
{
    if (!err)
        err = start_engine(img, kind);
    if (!err) {
        *out = img;
        return 0;
    }
    img->failed = err;
    img->ops->fini(img);
    drop_backing(img);
    kfree(img);
    return err;
}

/* ---- Calls by format ---- */

#define SIZE_MAX_BITS 62        /* sums of two sizes cannot overflow */

static struct image *as_image(struct blk *b) { return b->ops == &image_blk_ops ? image_of(b) : NULL; }

int image_resize(struct blk *b, uint64_t size, bool shrink, struct image_env *env)
{
    struct image *img = as_image(b);
    env->error[0] = 0;
    if (b->limits.read_only)
        return -EROFS;
    if (size < b->size && !shrink)
        return image_refuse(env, -EINVAL, "the image would shrink, and lose what lies behind its new end");
    if (size >> SIZE_MAX_BITS)
        return -EFBIG;
    if (!img)
        return blk_resize(b, size);
    size = ALIGN_UP(size, (uint64_t)b->limits.block);
    mutex_lock(&img->lock);
    mapped_gate(&img->m);
    mapped_forget(&img->m, 0, UINT64_MAX / 2);
    int err = img->failed;
    if (!err)
        err = img->ops->resize ? img->ops->resize(img, size, env) : image_refuse(env, -ENOTSUP, "%s images cannot be resized; convert it", b->kind);
    if (!err)
        b->size = size;
    mapped_ungate(&img->m);
    mutex_unlock(&img->lock);
    return err;
}

int image_info(struct blk *b, struct image_info *info)
{
    struct image *img = as_image(b);
    memset(info, 0, sizeof *info);
    info->format = img ? img->ops->format : IMAGE_RAW;
    info->virtual_size = b->size;
    info->cluster_size = img ? img->cluster : 0;
    if (img && img->ops->info)
        img->ops->info(img, info);
    return 0;
}

int image_snapshot(struct blk *b, int i, struct image_snapshot *out)
{
    struct image *img = as_image(b);
    if (!img || !img->ops->snapshot)
        return -ENOENT;
    mutex_lock(&img->lock);
    int err = img->ops->snapshot(img, i, out);
    mutex_unlock(&img->lock);
    return err;
}

int image_check(struct blk *b, unsigned fix, struct image_check *c)
{
    struct image *img = as_image(b);
    if (!img || !img->ops->check)
        return -ENOTSUP;
    mutex_lock(&img->lock);
    int err = b->limits.read_only ? 0 : flush(img);
    if (!err)
        err = img->ops->check(img, fix, c);
    mutex_unlock(&img->lock);
    return err;
}

int image_map(struct blk *b, uint64_t off, uint64_t *len, unsigned *what, uint64_t *at)
{
    struct image *img = as_image(b);
    struct blk *to;
    bool writable;
    if (!img) {
        *what = EXTENT_DATA, *at = off;
        return 0;
    }
    mutex_lock(&img->lock);
    int err = img->ops->map(img, off, len, what, &to, at, &writable);
    if (!err && *what & EXTENT_BACKING && !img->backing)
        *what |= EXTENT_ZERO;
    mutex_unlock(&img->lock);
    return err;
}

int image_write_packed(struct blk *b, uint64_t off, const void *packed, size_t n)
{
    struct image *img = as_image(b);
    if (!img || !img->ops->write_packed)
        return -ENOTSUP;
    if (b->limits.read_only)
        return -EROFS;
    if (off >= b->size)
        return -EINVAL;
    mutex_lock(&img->lock);
    mapped_gate(&img->m);
    int err = img->failed ? img->failed : img->ops->write_packed(img, off, packed, n);
    mapped_forget(&img->m, off, img->cluster);
    mapped_ungate(&img->m);
    mutex_unlock(&img->lock);
    return err;
}

int image_pread(struct blk *b, uint64_t off, void *buf, size_t len)
{
    struct image *img = as_image(b);
    if (!img || off > b->size || len > b->size - off)
        return img ? -EINVAL : blk_pread(b, off, buf, len);
    mutex_lock(&img->lock);
    int err = image_read_locked(img, off, buf, len);
    mutex_unlock(&img->lock);
    return err;
}

int image_pwrite(struct blk *b, uint64_t off, const void *buf, size_t len)
{
    struct image *img = as_image(b);
    if (!img || b->limits.read_only || off > b->size || len > b->size - off)
        return b->limits.read_only ? -EROFS : img ? -EINVAL : blk_pwrite(b, off, buf, len);
    mutex_lock(&img->lock);
    int err = image_write_locked(img, off, buf, len);
    mutex_unlock(&img->lock);
    return err;
}

/* ---- Opening ---- */

int image_open(enum image_format f, struct blk *file, unsigned flags, struct image_env *env, struct blk **out)
{
    struct image *img = NULL;
    int err;
    env->error[0] = 0;
    if (env->depth >= MAX_CHAIN) {
        blk_close(file);
        return image_refuse(env, -ELOOP, "the chain of backing files is longer than %d", MAX_CHAIN);
    }
    if (file->limits.read_only)
        flags &= ~IMAGE_WRITE;
    switch (f) {
    case IMAGE_RAW:
    case IMAGE_ISO:
        *out = file;
        if (f == IMAGE_ISO)
            file->limits.read_only = true;
        return 0;
    case IMAGE_QCOW2: err = qcow2_open(file, flags, env, &img); break;
    case IMAGE_VDI:   err = vdi_open(file, flags, env, &img); break;
    case IMAGE_VMDK:  err = vmdk_open(file, flags, env, &img); break;
    default:          err = image_refuse(env, -EINVAL, "the image format must be stated");
    }
    if (err)
        blk_close(file);
    else
        *out = &img->blk;
    return err;
}

int image_create(enum image_format f, struct blk *file, const struct image_opts *o, struct image_env *env)
{
    env->error[0] = 0;
    if (o->size >> SIZE_MAX_BITS)
        return -EFBIG;
    switch (f) {
    case IMAGE_RAW:   return file_resize(file, o->size);
    case IMAGE_QCOW2: return qcow2_create(file, o, env);
    case IMAGE_VDI:   return vdi_create(file, o, env);
    case IMAGE_VMDK:  return vmdk_create(file, o, env);
    default:          return image_refuse(env, -ENOTSUP, "images of this format cannot be made");
    }
}

enum image_format image_probe(struct blk *file)
{
    static const char desc[] = "# Disk DescriptorFile";
    uint8_t head[512], iso[512];
    if (file_read(file, 0, head, sizeof head))
        return IMAGE_NONE;
    if (!memcmp(head, "QFI\xfb", 4) && be32(head + 4) >= 2)
        return IMAGE_QCOW2;
    if (!memcmp(head + 0x40, "\x7f\x10\xda\xbe", 4))
        return IMAGE_VDI;
    if (!memcmp(head, "KDMV", 4) || !memcmp(head, desc, sizeof desc - 1))
        return IMAGE_VMDK;
    if (!file_read(file, 32768, iso, sizeof iso) && !memcmp(iso, "\1CD001", 6))
        return IMAGE_ISO;
    return IMAGE_RAW;
}
