/*
 * A file as a disk.
 *
 * submit looks the range up in the file's map cache under a spinlock; parts that are cached go straight down, one after the other.
 * What is not cached, not allocated, shared or checksummed goes to the pool's threads, which hold the file's lock and may wait.
 */
#include "kernel/fs/fs_int.h"

#include <errno.h>
#include <string.h>

#define COMMIT_EVERY_NS 5000000000ull
#define PART_IOV 16
#define SLOW_COPY (256u << 10)

struct file_blk {
    struct blk blk;
    struct fs_file *f;
    bool write;
};

/* Per request: where it is, and the part that is on its way down. */
struct file_ctx {
    struct blk_req part;
    struct file_blk *fb;
    struct blk_req *whole;
    size_t done;
    struct iov iov[PART_IOV];
    uint8_t below[] __aligned_to(16);
};

static void advance(struct file_ctx *c);

/* ---- The pool's threads ---- */

void file_kick(struct fs_file *f)
{
    struct fs *fs = f->fs;
    spin_lock(&f->map_lock);
    bool go = !list_empty(&f->queue) && !f->queued;
    if (go)
        f->queued = true;
    spin_unlock(&f->map_lock);
    if (!go)
        return;
    spin_lock(&fs->queue_lock);
    list_append(&fs->work, &f->work_link);
    spin_unlock(&fs->queue_lock);
    event_post(&fs->work_event);
}

static void go_slow(struct file_ctx *c)
{
    struct fs_file *f = c->fb->f;
    spin_lock(&f->map_lock);
    list_append(&f->queue, &c->part.link);
    spin_unlock(&f->map_lock);
    file_kick(f);
}

/* Is everything that this file's requests changed in the trees durable? */
static bool settled(struct fs_file *f) { return atomic_load(&f->dirty_gen) <= atomic_load(&f->fs->committed); }

static int slow_data(struct fs_file *f, struct blk_req *r, size_t from)
{
    size_t left = r->len - from;
    uint8_t *copy = kmalloc_aligned(MIN(left, (size_t)SLOW_COPY), 4096);
    int err = copy ? 0 : -ENOMEM;
    while (!err && left) {
        size_t k = MIN(left, (size_t)SLOW_COPY);
        if (r->op == BLK_WRITE) {
            iov_to(r->iov, r->niov, from, copy, k);
            err = file_write_locked(f, r->off + from, copy, k);
        } else {
            err = file_read_locked(f, r->off + from, copy, k);
            if (!err)
                iov_from(r->iov, r->niov, from, copy, k);
        }
        from += k, left -= k;
    }
    kfree(copy);
    return err;
}

static int slow(struct file_ctx *c)
{
    struct fs_file *f = c->fb->f;
    struct blk_req *r = c->whole;
    int err = 0;
    switch (r->op) {
    case BLK_READ:
    case BLK_WRITE:        err = slow_data(f, r, c->done); break;
    case BLK_DISCARD:      err = file_punch_locked(f, r->off, r->len, false); break;
    case BLK_WRITE_ZEROES: err = file_punch_locked(f, r->off, r->len, !(r->flags & BLK_UNMAP_OK)); break;
    case BLK_FLUSH:        return settled(f) ? blk_flush(f->fs->dev) : fs_commit(f->fs);
    }
    if (!err && r->op != BLK_READ && r->flags & BLK_FUA)
        err = fs_commit(f->fs);
    return err;
}

/* NULL: the queue is empty, and the next request will queue the file again. */
static struct file_ctx *next_slow(struct fs_file *f)
{
    spin_lock(&f->map_lock);
    struct list *l = list_pop(&f->queue);
    f->queued = l != NULL;
    spin_unlock(&f->map_lock);
    return l ? container_of(list_entry(l, struct blk_req, link), struct file_ctx, part) : NULL;
}

/* The last request is ended last of all: until then the file cannot be closed. */
static void serve(struct fs_file *f)
{
    struct file_ctx *c;
    struct blk_req *last = NULL;
    mutex_lock(&f->lock);
    while ((c = next_slow(f))) {
        if (last)
            blk_complete(last, last->err);
        last = c->whole;
        last->err = slow(c);
    }
    mutex_unlock(&f->lock);
    if (last)
        blk_complete(last, last->err);
}

static struct fs_file *next_file(struct fs *fs)
{
    spin_lock(&fs->queue_lock);
    struct list *l = list_pop(&fs->work);
    bool more = !list_empty(&fs->work) || fs->stopping;
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
            serve(f);
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

/* ---- The fast path ---- */

static void leave(struct fs_file *f)
{
    spin_lock(&f->map_lock);
    if (!--f->inflight && f->draining) {
        f->draining = false;
        event_post(&f->drained);
    }
    spin_unlock(&f->map_lock);
}

static void part_done(struct blk_req *p)
{
    struct file_ctx *c = container_of(p, struct file_ctx, part);
    struct fs_file *f = c->fb->f;
    int err = p->err;
    c->done += p->len;
    if (err || c->done == c->whole->len) {
        struct blk_req *whole = c->whole;
        leave(f);
        blk_complete(whole, err);
        return;
    }
    leave(f);
    advance(c);
}

/* The part's memory: the request's own list if it is all of it, else a slice; parts may become shorter.  0: too many entries. */
static size_t part_memory(struct file_ctx *c, size_t len)
{
    struct blk_req *r = c->whole, *p = &c->part;
    if (!c->done && len == r->len) {
        p->iov = r->iov, p->niov = r->niov;
        return len;
    }
    size_t off = c->done, sum = 0;
    int n = 0;
    for (int i = 0; i < r->niov && n < PART_IOV && sum < len; i++) {
        if (off >= r->iov[i].len) {
            off -= r->iov[i].len;
            continue;
        }
        c->iov[n] = (struct iov){ (char *)r->iov[i].base + off, MIN(r->iov[i].len - off, len - sum) };
        sum += c->iov[n++].len, off = 0;
    }
    p->iov = c->iov, p->niov = n;
    return ALIGN_DOWN(sum, (size_t)c->fb->blk.limits.block);
}

enum look { LOOK_DOWN, LOOK_ZERO, LOOK_SLOW };

/* Finds the map entry of the next byte; on LOOK_DOWN the file counts one more in flight. */
static enum look look_up(struct file_ctx *c, uint64_t *at, size_t *len)
{
    struct fs_file *f = c->fb->f;
    struct blk_req *r = c->whole;
    uint64_t off = r->off + c->done, l = off >> FS_BLOCK_SHIFT;
    enum look look = LOOK_SLOW;
    spin_lock(&f->map_lock);
    unsigned lo = 0, hi = f->gate ? 0 : f->nmap;
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (f->map[mid].lblk + f->map[mid].len <= l)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (!f->gate && lo < f->nmap && f->map[lo].lblk <= l) {
        const struct map *m = &f->map[lo];
        uint64_t left = ((m->lblk + m->len) << FS_BLOCK_SHIFT) - off;
        *len = MIN(r->len - c->done, left);
        *at = (m->pblk << FS_BLOCK_SHIFT) + (off - (m->lblk << FS_BLOCK_SHIFT));
        if (m->state == MAP_WRITE || (m->state == MAP_READ && r->op == BLK_READ))
            look = LOOK_DOWN, f->inflight++;
        else if (m->state == MAP_ZERO && r->op == BLK_READ)
            look = LOOK_ZERO;
    }
    spin_unlock(&f->map_lock);
    return look;
}

static void advance(struct file_ctx *c)
{
    struct fs_file *f = c->fb->f;
    struct blk_req *r = c->whole;
    for (;;) {
        uint64_t at = 0;
        size_t len = 0;
        enum look look = look_up(c, &at, &len);
        if (look == LOOK_SLOW) {
            go_slow(c);
            return;
        }
        if (look == LOOK_DOWN) {
            len = part_memory(c, len);
            if (!len) {
                leave(f);
                go_slow(c);
                return;
            }
            c->part.off = at, c->part.len = len;
            blk_submit(f->fs->dev, &c->part);
            return;
        }
        iov_zero(r->iov, r->niov, c->done, len);
        c->done += len;
        if (c->done == r->len) {
            blk_complete(r, 0);
            return;
        }
    }
}

static void file_submit(struct blk *b, struct blk_req *r)
{
    struct file_blk *fb = container_of(b, struct file_blk, blk);
    struct file_ctx *c = r->ctx;
    c->fb = fb, c->whole = r, c->done = 0;
    list_init(&c->part.link);
    c->part.op = r->op, c->part.flags = r->flags, c->part.done = part_done, c->part.ctx = c->below;
    bool data = r->op == BLK_READ || r->op == BLK_WRITE;
    if (r->op == BLK_WRITE && atomic_load_relaxed(&fb->f->fs->failed))
        blk_complete(r, -EROFS);
    else if (data && (r->op == BLK_READ || !(r->flags & BLK_FUA) || settled(fb->f)))
        advance(c);
    else if (r->op == BLK_FLUSH && settled(fb->f)) {
        c->part.off = 0, c->part.len = 0, c->part.iov = NULL, c->part.niov = 0;
        spin_lock(&fb->f->map_lock);
        fb->f->inflight++;
        spin_unlock(&fb->f->map_lock);
        blk_submit(fb->f->fs->dev, &c->part);
    } else
        go_slow(c);
}

static int file_resize(struct blk *b, uint64_t size)
{
    struct file_blk *fb = container_of(b, struct file_blk, blk);
    int err = fs_truncate(fb->f, size);
    if (!err)
        b->size = ALIGN_DOWN(size, (uint64_t)b->limits.block);
    return err;
}

static void users(struct fs_file *f, int more)
{
    mutex_lock(&f->lock);
    f->map_users += more;
    if (!f->map_users)
        f->nmap = 0;
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
    fb->blk = (struct blk){ .ops = &file_ops, .kind = "file", .limits = blk_limits_any() };
    struct blk_limits *l = &fb->blk.limits;
    l->block = below->block, l->phys_block = FS_BLOCK, l->mem_align = below->mem_align, l->max_segs = below->max_segs, l->max_len = below->max_len;
    l->ctx_size = sizeof(struct file_ctx) + below->ctx_size;
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
