/* Transactions, and the commit that makes a generation of them durable. */
#include "kernel/fs/fs_int.h"

#include <errno.h>
#include <string.h>
#include "kernel/lib/crc.h"
#include "kernel/lib/log.h"

#define NODES_DIRTY_MAX 4096u   /* a commit is due (16 MiB) */
#define CHUNKS_MAX      4096u

/* ---- Many writes at once ---- */

#define WINDOW 32
struct wave_slot { struct blk_req req; struct iov iov; struct wave *wave; bool busy; };
struct wave {
    struct blk *dev;
    struct spinlock lock;
    struct event free;
    int err, inflight;
    struct wave_slot slot[WINDOW];
    uint8_t ctx[] __aligned_to(16);
};

struct wave *wave_create(struct blk *dev)
{
    size_t each = ALIGN_UP(dev->limits.ctx_size, 16u);
    struct wave *w = kmalloc_aligned(sizeof *w + WINDOW * each, 16);
    if (!w)
        return NULL;
    memset(w, 0, sizeof *w);
    w->dev = dev;
    event_init(&w->free);
    for (int i = 0; i < WINDOW; i++)
        w->slot[i].wave = w, w->slot[i].req.ctx = w->ctx + i * each;
    return w;
}

/* The post is made under the lock: whoever sees the count at 0 may free the wave. */
static void wave_done(struct blk_req *r)
{
    struct wave_slot *s = container_of(r, struct wave_slot, req);
    struct wave *w = s->wave;
    spin_lock(&w->lock);
    if (r->err && !w->err)
        w->err = r->err;
    s->busy = false;
    w->inflight--;
    event_post(&w->free);
    spin_unlock(&w->lock);
}

static struct wave_slot *wave_slot(struct wave *w, int at_most)
{
    for (;;) {
        spin_lock(&w->lock);
        struct wave_slot *s = NULL;
        for (int i = 0; w->inflight <= at_most && i < WINDOW && !s; i++)
            if (!w->slot[i].busy)
                s = &w->slot[i];
        spin_unlock(&w->lock);
        if (s)
            return s;
        event_wait(&w->free);
    }
}

static void wave_write(struct wave *w, uint64_t blk, void *buf)
{
    struct wave_slot *s = wave_slot(w, WINDOW - 1);
    spin_lock(&w->lock);
    s->busy = true;
    w->inflight++;
    spin_unlock(&w->lock);
    s->iov = (struct iov){ buf, FS_BLOCK };
    s->req = (struct blk_req){ .op = BLK_WRITE, .off = blk << FS_BLOCK_SHIFT, .len = FS_BLOCK, .iov = &s->iov, .niov = 1,
                               .done = wave_done, .ctx = s->req.ctx };
    blk_submit(w->dev, &s->req);
}

static int wave_end(struct wave *w)
{
    wave_slot(w, 0);
    int err = w->err;
    w->err = 0;
    return err;
}

/* ---- Pages of a commit ---- */

static int pages_reserve(struct pagelist *pl, unsigned n)
{
    list_init(&pl->spare);
    list_init(&pl->used);
    while (n--) {
        struct page *p = kmalloc(sizeof *p);
        if (!p)
            return -ENOMEM;
        list_append(&pl->spare, &p->link);
    }
    return 0;
}

void page_add(struct pagelist *pl, uint64_t blk, const void *copy)
{
    struct list *l = list_pop(&pl->spare);
    ASSERT(l);
    struct page *p = list_entry(l, struct page, link);
    p->blk = blk;
    memcpy(p->buf, copy, FS_BLOCK);
    list_append(&pl->used, &p->link);
}

static void pages_free(struct pagelist *pl)
{
    struct list *l;
    while ((l = list_pop(&pl->spare)) || (l = list_pop(&pl->used)))
        kfree(list_entry(l, struct page, link));
}

/* ---- Transactions ---- */

int fs_fail(struct fs *fs, int err)
{
    int none = 0;
    if (__atomic_compare_exchange_n(&fs->failed, &none, err, false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE))
        log_err("fs", "pool %.32s: error %d; now read-only, the disk keeps the last commit", fs->super.label, -err);
    return err;
}

int fs_writable(struct fs *fs)
{
    return fs->flags & FS_RDONLY || atomic_load(&fs->failed) ? -EROFS : 0;
}

static bool pressed(struct fs *fs)
{
    return atomic_load_relaxed(&fs->ndirty) > NODES_DIRTY_MAX || atomic_load_relaxed(&fs->space.nchunks) > CHUNKS_MAX;
}

static void join(struct fs *fs)
{
    mutex_lock(&fs->txn_lock);
    while (fs->freezing)
        cond_wait(&fs->txn_cond, &fs->txn_lock);
    fs->txn_active++;
    mutex_unlock(&fs->txn_lock);
}

int txn_begin(struct fs *fs, struct txn *t, int blocks, unsigned flags)
{
    int err = fs_writable(fs);
    if (!err && pressed(fs))
        err = fs_commit(fs);
    if (err && err != -ENOMEM)
        return err;
    err = space_promise(fs, blocks, flags & TXN_FREES);
    if (err == -ENOSPC && !(err = fs_commit(fs)))       /* a commit gives back what was freed or promised too generously */
        err = space_promise(fs, blocks, flags & TXN_FREES);
    if (err)
        return err;
    t->resv = blocks;
    join(fs);
    return 0;
}

void txn_end(struct fs *fs, struct txn *t)
{
    if (t->resv)
        space_unpromise(fs, t->resv);
    mutex_lock(&fs->txn_lock);
    if (!--fs->txn_active)
        cond_broadcast(&fs->txn_cond);
    mutex_unlock(&fs->txn_lock);
}

void txns_freeze(struct fs *fs)
{
    mutex_lock(&fs->txn_lock);
    fs->freezing = true;
    while (fs->txn_active)
        cond_wait(&fs->txn_cond, &fs->txn_lock);
    mutex_unlock(&fs->txn_lock);
}

void txns_thaw(struct fs *fs)
{
    mutex_lock(&fs->txn_lock);
    fs->freezing = false;
    cond_broadcast(&fs->txn_cond);
    mutex_unlock(&fs->txn_lock);
}

/* ---- Commit ---- */

/* Everything of the open generation becomes immutable; the next one opens.  Nothing has changed after an error. */
static int close_generation(struct fs *fs, struct pagelist *pl)
{
    struct node *n;
    int err = drops_run(fs);
    if (!err)
        err = inodes_flush(fs);
    if (!err && (err = pages_reserve(pl, space_dirty_pages(fs))))
        inodes_unflush(fs);
    if (err)
        return err;
    space_freeze(fs, pl);
    spin_lock(&fs->cache_lock);
    list_for_each(n, &fs->dirty, link)
        n->dirty = false, n->committing = true;
    list_splice(&fs->committing, &fs->dirty);
    atomic_store_relaxed(&fs->ndirty, 0u);
    atomic_store_relaxed(&fs->changed, false);
    spin_unlock(&fs->cache_lock);
    list_for_each(n, &fs->committing, link)
        node_seal(fs, n);
    fs->super.gen = fs->gen;
    fs->super.blocks = fs_blocks(fs);
    fs->super.free = fs->space.free;
    fs->super.next_ino = fs->next_ino, fs->super.ninodes = fs->ninodes;
    fs->super.root = fs->tree.root;
    fs->super.space = fs->space.top;
    atomic_store(&fs->gen, fs->gen + 1);
    return 0;
}

static int write_super(struct fs *fs)
{
    struct fs_super *s = &fs->super;
    int slot = !fs->slot, err;
    s->crc = 0;
    s->crc = crc32c(0, s, sizeof *s);
    err = blk_write(fs->dev, (uint64_t)(FS_SUPER + slot) << FS_BLOCK_SHIFT, s, sizeof *s, BLK_FUA);
    if (!err && s->blocks >= FS_GROUP + FS_HEADER)
        err = blk_write(fs->dev, (uint64_t)(FS_GROUP + FS_SUPER + slot) << FS_BLOCK_SHIFT, s, sizeof *s, BLK_FUA);
    if (!err)
        fs->slot = slot;
    return err;
}

static int write_generation(struct fs *fs, struct pagelist *pl)
{
    struct page *p;
    struct node *n;
    list_for_each(p, &pl->used, link)
        wave_write(fs->wave, p->blk, p->buf);
    list_for_each(n, &fs->committing, link)
        wave_write(fs->wave, n->blk, n->buf);
    int err = wave_end(fs->wave);
    if (!err)
        err = blk_flush(fs->dev);
    return err ? err : write_super(fs);
}

static void nodes_committed(struct fs *fs)
{
    struct list *l;
    spin_lock(&fs->cache_lock);
    while ((l = list_pop(&fs->committing))) {
        struct node *n = list_entry(l, struct node, link);
        n->committing = false;
        list_append(&fs->lru, &n->link);
    }
    spin_unlock(&fs->cache_lock);
}

static int commit_locked(struct fs *fs)
{
    struct pagelist pl = { LIST_INIT(pl.spare), LIST_INIT(pl.used) };
    txns_freeze(fs);
    int err = fs_writable(fs);
    if (!err && !fs->changed && !fs->ndirty_inodes) {
        txns_thaw(fs);
        return blk_flush(fs->dev);
    }
    if (!err)
        err = close_generation(fs, &pl);
    if (!err) {
        inodes_stored(fs);
        atomic_store_relaxed(&fs->tree_cost, bt_cost(&fs->tree, 1));
    }
    uint64_t gen = fs->super.gen;
    txns_thaw(fs);
    if (!err) {
        err = write_generation(fs, &pl);
        if (err)
            fs_fail(fs, err);
        nodes_committed(fs);
        if (!err) {
            atomic_store(&fs->committed, gen);
            space_committed(fs, fs->flags & FS_DISCARD);
        }
    }
    pages_free(&pl);
    return err;
}

int fs_commit(struct fs *fs)
{
    mutex_lock(&fs->commit_lock);
    int err = commit_locked(fs);
    mutex_unlock(&fs->commit_lock);
    return err;
}

int fs_sync(struct fs *fs) { return fs->flags & FS_RDONLY ? 0 : fs_commit(fs); }
