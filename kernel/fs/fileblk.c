/* A file as a disk: the engine of kernel/block/mapped.c over the file's extents, and the pool's threads that do the slow part. */
#include "kernel/fs/fs_int.h"

#include <errno.h>
#include <string.h>

#define COMMIT_EVERY_NS 5000000000ull

struct file_blk {
    struct blk blk;
    struct fs_file *f;
};

static struct fs_file *file_of(struct mapped *m) { return container_of(m, struct fs_file, m); }

/* ---- What the engine asks ---- */

static void file_kick(struct mapped *m)
{
    struct fs *fs = file_of(m)->fs;
    spin_lock(&fs->queue_lock);
    list_append(&fs->work, &file_of(m)->work_link);
    spin_unlock(&fs->queue_lock);
    event_post(&fs->work_event);
}

/* Is everything that this file's requests changed in the trees durable? */
static bool file_settled(struct mapped *m)
{
    return atomic_load(&file_of(m)->dirty_gen) <= atomic_load(&file_of(m)->fs->committed);
}

static int read_fn(void *f, uint64_t off, void *buf, size_t len) { return file_read_locked(f, off, buf, len); }
static int write_fn(void *f, uint64_t off, const void *buf, size_t len) { return file_write_locked(f, off, buf, len); }

static int file_slow(struct mapped *m, struct blk_req *r, size_t from)
{
    struct fs_file *f = file_of(m);
    int err = 0;
    switch (r->op) {
    case BLK_READ:
    case BLK_WRITE:        err = mapped_copy(r, from, read_fn, write_fn, f); break;
    case BLK_DISCARD:      err = file_punch_locked(f, r->off, r->len, false); break;
    case BLK_WRITE_ZEROES: err = file_punch_locked(f, r->off, r->len, !(r->flags & BLK_UNMAP_OK)); break;
    case BLK_FLUSH:        return file_settled(m) ? blk_flush(f->fs->dev) : fs_commit(f->fs);
    }
    if (!err && r->op != BLK_READ && r->flags & BLK_FUA)
        err = fs_commit(f->fs);
    return err;
}

static void file_lock(struct mapped *m) { mutex_lock(&file_of(m)->lock); }
static void file_unlock(struct mapped *m) { mutex_unlock(&file_of(m)->lock); }

const struct mapped_ops file_mapped_ops = { file_kick, file_settled, file_slow, file_lock, file_unlock };

/* ---- The pool's threads ---- */

static struct fs_file *next_file(struct fs *fs)
{
    spin_lock(&fs->queue_lock);
    struct list *l = list_pop(&fs->work);
    bool more = !list_empty(&fs->work) || atomic_load(&fs->stopping);
    spin_unlock(&fs->queue_lock);
    if (more)
        event_post(&fs->work_event);
    return l ? list_entry(l, struct fs_file, work_link) : NULL;
}

static void worker(void *arg)
{
    struct fs *fs = arg;
    while (!atomic_load(&fs->stopping)) {
        event_wait(&fs->work_event);
        for (struct fs_file *f; (f = next_file(fs)); )
            mapped_serve(&f->m);
    }
}

static void committer(void *arg)
{
    struct fs *fs = arg;
    while (!atomic_load(&fs->stopping)) {
        event_wait_until(&fs->commit_event, clock_ns() + COMMIT_EVERY_NS);
        if (!atomic_load(&fs->stopping) && (atomic_load_relaxed(&fs->changed) || atomic_load_relaxed(&fs->ndirty_inodes)))
            fs_commit(fs);
    }
}

int threads_start(struct fs *fs)
{
    int err = 0;
    mutex_lock(&fs->work_lock);
    for (int i = 0; !err && i <= FS_THREADS; i++) {
        if (fs->thread[i])
            continue;
        fs->thread[i] = thread_start(i ? "fs-work" : "fs-commit", i ? worker : committer, fs);
        err = fs->thread[i] ? 0 : -ENOMEM;
    }
    mutex_unlock(&fs->work_lock);
    return err;
}

void threads_stop(struct fs *fs)
{
    atomic_store(&fs->stopping, true);
    event_post(&fs->commit_event);
    event_post(&fs->work_event);
    for (int i = 0; i <= FS_THREADS; i++)
        if (fs->thread[i])
            thread_join(fs->thread[i]);
}

/* ---- The disk ---- */

static void file_submit(struct blk *b, struct blk_req *r)
{
    struct file_blk *fb = container_of(b, struct file_blk, blk);
    if (r->op == BLK_WRITE && unlikely(atomic_load_relaxed(&fb->f->fs->failed)))
        blk_complete(r, -EROFS);
    else
        mapped_submit(&fb->f->m, r, b->limits.block);
}

static int file_resize(struct blk *b, uint64_t size)
{
    struct file_blk *fb = container_of(b, struct file_blk, blk);
    int err = fs_truncate(fb->f, size);
    if (!err)
        atomic_store_relaxed(&b->size, ALIGN_DOWN(size, (uint64_t)b->limits.block));
    return err;
}

static void users(struct fs_file *f, int more)
{
    mutex_lock(&f->lock);
    mapped_use(&f->m, more);
    mutex_unlock(&f->lock);
}

static void file_blk_close(struct blk *b)
{
    struct file_blk *fb = container_of(b, struct file_blk, blk);
    users(fb->f, -1);
    fs_close(fb->f);
    kfree(fb);
}

static const struct blk_ops file_ops = { file_submit, file_resize, file_blk_close };

int fs_file_blk(struct fs_file *f, bool read_only, struct blk **out)
{
    const struct blk_limits *below = &f->fs->dev->limits;
    struct file_blk *fb = kzalloc(sizeof *fb);
    int err = fb ? threads_start(f->fs) : -ENOMEM;
    if (err) {
        kfree(fb);
        return err;
    }
    fb->f = f;
    fb->blk = (struct blk){ .ops = &file_ops, .kind = "file", .limits = blk_limits_any(), .below = &f->itself, .below_len = UINT64_MAX };
    struct blk_limits *l = &fb->blk.limits;
    l->block = below->block, l->phys_block = FS_BLOCK, l->mem_align = below->mem_align, l->max_segs = below->max_segs, l->max_len = below->max_len;
    l->ctx_size = mapped_ctx_size(below->ctx_size);
    l->read_only = read_only || f->fs->flags & FS_RDONLY;
    l->discard = l->write_zeroes = l->volatile_cache = l->fua = true;
    fb->blk.size = ALIGN_DOWN(f->rec.size, (uint64_t)l->block);
    users(f, 1);
    err = blk_ready(&fb->blk);
    if (err) {
        users(f, -1);
        kfree(fb);
        return err;
    }
    *out = &fb->blk;
    return 0;
}
