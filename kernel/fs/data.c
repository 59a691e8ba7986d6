/* Reading, writing, allocating and freeing the contents of files, from threads. */
#include "kernel/fs/fs_int.h"

#include <errno.h>
#include <string.h>
#include "kernel/lib/crc.h"

#define PIECE 256u              /* blocks copied at once (1 MiB) */

static uint64_t bytes(uint64_t blocks) { return blocks << FS_BLOCK_SHIFT; }

/* ---- Reading ---- */

/* Whole blocks of a checksummed extent, verified. */
static int read_summed(struct fs *fs, const struct extent *e, void *buf, uint64_t n)
{
    int err = blk_read(fs->dev, bytes(e->pblk), buf, bytes(n));
    for (uint64_t i = 0; !err && i < n; i++)
        if (crc32c(fs->seed, (uint8_t *)buf + bytes(i), FS_BLOCK) != e->csum[i])
            err = -EILSEQ;
    return err;
}

static int read_part(struct fs *fs, const struct extent *e, size_t in, void *buf, size_t len)
{
    if (e->hole || e->flags & EXT_UNWRITTEN) {
        memset(buf, 0, len);
        return 0;
    }
    if (!(e->flags & EXT_CSUM))
        return blk_pread(fs->dev, bytes(e->pblk) + in, buf, len);
    uint64_t n = blocks_of(in + len);
    uint8_t *copy = kmalloc_aligned(bytes(n), 4096);
    if (!copy)
        return -ENOMEM;
    int err = read_summed(fs, e, copy, n);
    if (!err)
        memcpy(buf, copy + in, len);
    kfree(copy);
    return err;
}

int file_read_locked(struct fs_file *f, uint64_t off, void *buf, size_t len)
{
    char *to = buf;
    int err = 0;
    while (len && !err) {
        struct extent e;
        uint64_t l = off >> FS_BLOCK_SHIFT;
        size_t in = off & (FS_BLOCK - 1);
        err = ext_lookup(f, l, blocks_of(off + len), &e);
        if (err)
            break;
        size_t k = MIN(len, bytes(e.len) - in);
        err = read_part(f->fs, &e, in, to, k);
        if (!(e.flags & EXT_CSUM))
            map_learn(f, l, e.len, e.pblk, e.hole || e.flags & EXT_UNWRITTEN ? MAP_ZERO : MAP_READ);
        off += k, to += k, len -= k;
    }
    return err;
}

int64_t fs_read(struct fs_file *f, uint64_t off, void *buf, size_t len)
{
    mutex_lock(&f->lock);
    uint64_t size = f->rec.size;
    len = off >= size ? 0 : MIN(len, size - off);
    int err = file_read_locked(f, off, buf, len);
    mutex_unlock(&f->lock);
    return err ? err : (int64_t)len;
}

/* ---- Sizes ---- */

int file_set_size(struct fs_file *f, uint64_t size)
{
    struct txn t;
    int err = txn_begin(f->fs, &t, atomic_load_relaxed(&f->fs->tree_cost), 0);
    if (!err) {
        inode_dirty(f, &t);
        f->rec.size = size;
        f->rec.mtime = clock_utc_ns();
        atomic_store_relaxed(&f->fs->changed, true);
        txn_end(f->fs, &t);
    }
    return err;
}

/* ---- Writing ---- */

/* Space for up to n blocks near the file's last ones, pinned.  A full pool may have space again after a commit. */
static int take_space(struct fs_file *f, uint64_t goal, uint64_t n, uint64_t *start, uint64_t *got)
{
    struct fs *fs = f->fs;
    int err = fs_writable(fs);
    if (!err)
        err = space_promise(fs, n, false);
    if (err == -ENOSPC && !(err = fs_commit(fs)))
        err = space_promise(fs, n, false);
    if (err == -ENOSPC && n > 1)
        return take_space(f, goal, n / 2, start, got);
    if (err)
        return err;
    err = space_alloc(fs, goal, n, ALLOC_PIN, false, start, got);
    space_unpromise(fs, n);
    if (!err)
        f->goal = *start + *got;
    return err;
}

/* A write into blocks that hold nothing of the file yet, or nothing that may be overwritten. */
struct fresh {
    struct fs_file *f;
    struct extent old, to;
    uint64_t off;               /* bytes; of this piece */
    const uint8_t *buf;
    size_t len, in;             /* in: offset within the first block */
    bool in_place;              /* preallocated: the blocks are there */
};

/* An edge block that is written in part keeps the rest of what it showed so far. */
static int keep_edge(struct fresh *w, uint8_t *copy, uint64_t i)
{
    struct extent e = w->old;
    if (e.hole || e.flags & EXT_UNWRITTEN) {
        memset(copy + bytes(i), 0, FS_BLOCK);
        return 0;
    }
    e.pblk += i;
    e.csum[0] = w->old.csum[i % EXT_MAX_CSUM];
    return read_part(w->f->fs, &e, 0, copy + bytes(i), FS_BLOCK);
}

static int write_copy(struct fresh *w, uint64_t n)
{
    uint8_t *copy = kmalloc_aligned(bytes(n), 4096);
    int err = copy ? 0 : -ENOMEM;
    if (!err && w->in)
        err = keep_edge(w, copy, 0);
    if (!err && (w->in + w->len) % FS_BLOCK && (n > 1 || !w->in))
        err = keep_edge(w, copy, n - 1);
    if (!err) {
        memcpy(copy + w->in, w->buf, w->len);
        for (uint64_t i = 0; w->to.flags & EXT_CSUM && i < n; i++)
            w->to.csum[i] = crc32c(w->f->fs->seed, copy + bytes(i), FS_BLOCK);
        err = blk_write(w->f->fs->dev, bytes(w->to.pblk), copy, bytes(n), 0);
    }
    kfree(copy);
    return err;
}

/* Write first, then let the tree point to it: a commit in between must not show what the blocks held before. */
static int write_fresh(struct fresh *w, uint64_t *n)
{
    struct fs_file *f = w->f;
    bool whole = !w->in && w->len % FS_BLOCK == 0 && !(w->to.flags & EXT_CSUM);
    uint64_t end = w->off + w->len;
    int err = whole ? blk_write(f->fs->dev, bytes(w->to.pblk), w->buf, w->len, 0) : write_copy(w, *n);
    if (!err)
        err = ext_edit(f, w->in_place ? EDIT_SAME : EDIT_NEW, w->old.lblk, &w->to, *n, end);
    if (err && !w->in_place)
        space_unpin(f->fs, w->to.pblk, *n);
    return err;
}

/* How the piece at the front of the write is mapped decides how much is done at once and where it goes. */
static int write_front(struct fs_file *f, uint64_t off, const uint8_t *buf, size_t len, bool sole, const struct extent *e, size_t *done)
{
    bool csum = f->rec.flags & INODE_CSUM;
    struct fresh w = { .f = f, .old = *e, .off = off, .buf = buf, .in = off & (FS_BLOCK - 1) };
    uint64_t n = MIN(e->len, blocks_of(w.in + len));
    n = MIN(n, (uint64_t)(csum ? EXT_MAX_CSUM : PIECE));
    w.in_place = sole && !e->hole && e->flags & EXT_UNWRITTEN;
    w.to.flags = csum ? EXT_CSUM : 0;
    w.to.pblk = e->pblk;
    if (!w.in_place) {
        int err = take_space(f, f->goal, n, &w.to.pblk, &n);
        if (err)
            return err;
    }
    w.len = MIN(len, bytes(n) - w.in);
    int err = write_fresh(&w, &n);
    if (!err && !csum)
        map_learn(f, e->lblk, n, w.to.pblk, MAP_WRITE);
    *done = w.len;
    return err;
}

static int overwrite(struct fs_file *f, uint64_t off, const void *buf, const struct extent *e, size_t in, size_t len)
{
    int err = fs_writable(f->fs);
    if (!err)
        err = blk_pwrite(f->fs->dev, bytes(e->pblk) + in, buf, len);
    if (!err)
        map_learn(f, e->lblk, e->len, e->pblk, MAP_WRITE);
    return !err && off + len > f->rec.size ? file_set_size(f, off + len) : err;
}

int file_write_locked(struct fs_file *f, uint64_t off, const void *buf, size_t len)
{
    const uint8_t *from = buf;
    int err = 0;
    while (len && !err) {
        struct extent e;
        bool sole = false;
        size_t in = off & (FS_BLOCK - 1), k;
        err = ext_lookup(f, off >> FS_BLOCK_SHIFT, blocks_of(off + len), &e);
        if (!err && !e.hole)
            err = ext_sole(f, &e, &sole);
        if (err)
            break;
        k = MIN(len, bytes(e.len) - in);
        if (sole && !e.flags)
            err = overwrite(f, off, from, &e, in, k);
        else
            err = write_front(f, off, from, len, sole, &e, &k);
        off += k, from += k, len -= k;
    }
    return err;
}

static int check_end(uint64_t off, uint64_t len)
{
    return off > BIT(61) || len > BIT(61) ? -EFBIG : 0;
}

int fs_write(struct fs_file *f, uint64_t off, const void *buf, size_t len)
{
    int err = check_end(off, len);
    if (err)
        return err;
    mutex_lock(&f->lock);
    err = file_write_locked(f, off, buf, len);
    mutex_unlock(&f->lock);
    return err;
}

/* ---- Freeing ---- */

int file_free(struct fs_file *f)
{
    struct fs *fs = f->fs;
    uint64_t blocks, first;
    int err = 0;
    mapped_gate(&f->m);
    map_forget(f, 0, BIT(51));
    while (!err && f->ext.root.blk) {
        struct txn t;
        err = txn_begin(fs, &t, bt_cost(&f->ext, 1) + atomic_load_relaxed(&fs->tree_cost), TXN_FREES);
        if (err)
            break;
        inode_dirty(f, &t);
        err = bt_drop_step(&f->ext, &t, &blocks, &first);
        f->rec.blocks -= MIN(blocks, f->rec.blocks);
        if (!err)                       /* the size goes along: nothing stale is left behind the end when this stops half-way */
            f->rec.size = MIN(f->rec.size, bytes(first));
        if (!f->ext.root.blk)
            f->rec.blocks = 0;
        atomic_store_relaxed(&fs->changed, true);
        inode_dirty(f, &t);
        txn_end(fs, &t);
    }
    mapped_ungate(&f->m);
    return err;
}

/* From the end, in steps: the size shrinks with the blocks, so that a crash leaves no stale data behind the end. */
static int shrink(struct fs_file *f, uint64_t size)
{
    static const uint8_t zero[FS_BLOCK];
    uint64_t first = blocks_of(size), end = blocks_of(f->rec.size);
    int err = 0;
    if (size % FS_BLOCK) {
        struct extent e;
        size_t tail = MIN(bytes(first), f->rec.size) - size;
        err = ext_lookup(f, first - 1, first, &e);
        if (!err && !e.hole && !(e.flags & EXT_UNWRITTEN))
            err = file_write_locked(f, size, zero, tail);
    }
    while (!err && !(err = ext_end(f, &end)) && end > first) {       /* holes cost nothing, however long */
        uint64_t from = end - first > EXT_MAX ? end - EXT_MAX : first;
        err = ext_unmap(f, from, end);
        if (!err)
            err = file_set_size(f, MAX(size, bytes(from)));
        end = from;
    }
    return err ? err : file_set_size(f, size);
}

int fs_truncate(struct fs_file *f, uint64_t size)
{
    int err = check_end(size, 0);
    if (err)
        return err;
    mutex_lock(&f->lock);
    if (!size && f->rec.size) {
        err = file_free(f);
    } else if (size < f->rec.size) {
        err = shrink(f, size);
    } else if (size > f->rec.size) {
        err = file_set_size(f, size);
    }
    if (!err && f->rec.size != size)
        err = file_set_size(f, size);
    mutex_unlock(&f->lock);
    return err;
}

/* Written and ours alone: the same blocks become unwritten.  Else they go, and others come. */
static int zero_extent(struct fs_file *f, struct extent *e, bool keep)
{
    bool sole;
    int err = ext_sole(f, e, &sole);
    if (err || !keep || !sole || e->flags & EXT_CSUM)
        return err ? err : ext_edit(f, EDIT_REMOVE, e->lblk, NULL, e->len, 0);
    if (e->flags & EXT_UNWRITTEN)
        return 0;
    e->flags = EXT_UNWRITTEN;
    mapped_gate(&f->m);
    err = ext_edit(f, EDIT_SAME, e->lblk, e, e->len, 0);
    mapped_ungate(&f->m);
    return err;
}

static int zero_edge(struct fs_file *f, uint64_t off, uint64_t len)
{
    static const uint8_t zero[FS_BLOCK];
    struct extent e;
    int err = len ? ext_lookup(f, off >> FS_BLOCK_SHIFT, (off >> FS_BLOCK_SHIFT) + 1, &e) : 0;
    if (err || !len || e.hole || e.flags & EXT_UNWRITTEN)
        return err;
    return file_write_locked(f, off, zero, len);
}

int file_punch_locked(struct fs_file *f, uint64_t off, uint64_t len, bool keep)
{
    uint64_t end = MIN(off + len, f->rec.size);
    if (off >= end)
        return 0;
    uint64_t first = blocks_of(off), last = end == f->rec.size ? blocks_of(end) : end >> FS_BLOCK_SHIFT;
    int err = zero_edge(f, off, MIN(bytes(first), end) - off);
    if (!err && last >= first && bytes(last) < end)
        err = zero_edge(f, bytes(last), end - bytes(last));
    while (!err && first < last) {
        struct extent e;
        err = ext_lookup(f, first, last, &e);
        if (!err && !e.hole)
            err = zero_extent(f, &e, keep);
        first += e.len;
    }
    return err;
}

static int punch(struct fs_file *f, uint64_t off, uint64_t len, bool keep)
{
    int err = check_end(off, len);
    if (err)
        return err;
    mutex_lock(&f->lock);
    err = file_punch_locked(f, off, len, keep);
    mutex_unlock(&f->lock);
    return err;
}

int fs_punch(struct fs_file *f, uint64_t off, uint64_t len) { return punch(f, off, len, false); }
int fs_zero(struct fs_file *f, uint64_t off, uint64_t len) { return punch(f, off, len, true); }

/* ---- Preallocation ---- */

/* What was added, to be taken back when the pool turns out too fragmented or memory fails. */
struct added { uint64_t lblk, len; };
struct prealloc { struct fs_file *f; struct added *added; size_t n, cap; uint64_t promised; };

static int count_holes(struct fs_file *f, uint64_t lblk, uint64_t end, uint64_t *sum)
{
    int err = 0;
    while (!err && lblk < end) {
        struct extent e;
        err = ext_lookup(f, lblk, end, &e);
        if (!err)
            *sum += e.hole ? e.len : 0, lblk += e.len;
    }
    return err;
}

static int note_added(struct prealloc *p, uint64_t lblk, uint64_t len)
{
    if (p->n && p->added[p->n - 1].lblk + p->added[p->n - 1].len == lblk) {
        p->added[p->n - 1].len += len;
        return 0;
    }
    if (p->n == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 64;
        struct added *a = kmalloc(cap * sizeof *a);
        if (!a)
            return -ENOMEM;
        if (p->added)
            memcpy(a, p->added, p->n * sizeof *a);
        kfree(p->added);
        p->added = a, p->cap = cap;
    }
    p->added[p->n++] = (struct added){ lblk, len };
    return 0;
}

static int fill_hole(struct prealloc *p, struct extent *hole)
{
    struct fs *fs = p->f->fs;
    struct extent to = { .flags = EXT_UNWRITTEN };
    uint64_t got;
    int err = note_added(p, hole->lblk, 0);
    if (!err)
        err = space_alloc(fs, p->f->goal, MIN(hole->len, (uint64_t)EXT_MAX), ALLOC_PIN, false, &to.pblk, &got);
    if (err)
        return err;
    space_unpromise(fs, got);
    p->promised -= got;
    p->f->goal = to.pblk + got;
    err = ext_edit(p->f, EDIT_NEW, hole->lblk, &to, got, 0);
    if (err)
        space_unpin(fs, to.pblk, got);
    else
        err = note_added(p, hole->lblk, got);
    hole->len = got;
    return err;
}

static void take_back(struct prealloc *p)
{
    for (size_t i = 0; i < p->n; i++)
        if (ext_unmap(p->f, p->added[i].lblk, p->added[i].lblk + p->added[i].len))
            return;             /* stays allocated: counted, usable, and freed with the file */
}

static int promise_all(struct prealloc *p, uint64_t holes)
{
    struct fs *fs = p->f->fs;
    int err = space_promise(fs, holes, false);
    if (err == -ENOSPC && !(err = fs_commit(fs)))
        err = space_promise(fs, holes, false);
    p->promised = err ? 0 : holes;
    return err;
}

static int allocate_locked(struct fs_file *f, uint64_t lblk, uint64_t end)
{
    struct prealloc p = { .f = f };
    uint64_t holes = 0;
    int err = fs_writable(f->fs);
    if (!err)
        err = count_holes(f, lblk, end, &holes);
    if (!err)
        err = promise_all(&p, holes);
    while (!err && lblk < end) {
        struct extent e;
        err = ext_lookup(f, lblk, end, &e);
        if (!err && e.hole)
            err = fill_hole(&p, &e);
        if (!err)
            lblk += e.len;
    }
    if (p.promised)
        space_unpromise(f->fs, p.promised);
    if (err)
        take_back(&p);
    kfree(p.added);
    return err;
}

int fs_allocate(struct fs_file *f, uint64_t off, uint64_t len)
{
    int err = check_end(off, len);
    if (err || !len)
        return err;
    mutex_lock(&f->lock);
    err = allocate_locked(f, off >> FS_BLOCK_SHIFT, blocks_of(off + len));
    if (!err && off + len > f->rec.size)
        err = file_set_size(f, off + len);
    mutex_unlock(&f->lock);
    return err;
}

/* ---- Holes ---- */

static int64_t seek(struct fs_file *f, uint64_t off, bool want_hole)
{
    mutex_lock(&f->lock);
    uint64_t size = f->rec.size, l = off >> FS_BLOCK_SHIFT, end = blocks_of(size);
    int64_t found = off < size ? (want_hole ? (int64_t)size : -ENXIO) : -ENXIO;
    while (off < size && l < end) {
        struct extent e;
        int err = ext_lookup(f, l, end, &e);
        if (err) {
            found = err;
            break;
        }
        if ((e.hole || e.flags & EXT_UNWRITTEN) == want_hole) {
            found = MAX(off, bytes(l));
            break;
        }
        l += e.len;
    }
    mutex_unlock(&f->lock);
    return found;
}

int64_t fs_seek_data(struct fs_file *f, uint64_t off) { return seek(f, off, false); }
int64_t fs_seek_hole(struct fs_file *f, uint64_t off) { return seek(f, off, true); }
