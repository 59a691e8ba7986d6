/* Making, mounting and committing a pool. */
#include "kernel/fs/fs_int.h"

#include <errno.h>
#include <string.h>
#include "kernel/lib/crc.h"
#include "kernel/lib/log.h"

#define NODES_DIRTY_MAX 4096u   /* a commit is due (16 MiB) */
#define CHUNKS_MAX      4096u
#define HASH_SIZE       4096u
#define CACHE_MAX       8192u   /* clean nodes kept (32 MiB) */

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

static struct wave *wave_create(struct blk *dev)
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

static void freeze(struct fs *fs)
{
    mutex_lock(&fs->txn_lock);
    fs->freezing = true;
    while (fs->txn_active)
        cond_wait(&fs->txn_cond, &fs->txn_lock);
    mutex_unlock(&fs->txn_lock);
}

static void thaw(struct fs *fs)
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
    fs->super.blocks = fs->space.blocks;
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
    freeze(fs);
    int err = fs_writable(fs);
    if (!err && !fs->changed && !fs->ndirty_inodes) {
        thaw(fs);
        return blk_flush(fs->dev);
    }
    if (!err)
        err = close_generation(fs, &pl);
    if (!err) {
        inodes_stored(fs);
        atomic_store_relaxed(&fs->tree_cost, bt_cost(&fs->tree, 1));
    }
    uint64_t gen = fs->super.gen;
    thaw(fs);
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

/* ---- Opening and closing ---- */

/* After a failed commit: what could not be stored is given up. */
static void forget_all(struct fs *fs)
{
    struct list *l;
    while ((l = list_pop(&fs->drops)))
        kfree(list_entry(l, struct drop, link));
    for (size_t i = 0; i < ARRAY_SIZE(fs->inodes); i++)
        while ((l = list_pop(&fs->inodes[i]))) {
            struct fs_file *f = list_entry(l, struct fs_file, hash);
            mapped_fini(&f->m);
            kfree(f);
        }
}

static void fs_destroy(struct fs *fs)
{
    forget_all(fs);
    space_fini(fs);
    nodes_fini(fs);
    kfree(fs->wave);
    kfree(fs);
}

static uint64_t whole_pool(uint64_t bytes)
{
    uint64_t blocks = MIN(bytes >> FS_BLOCK_SHIFT, FS_MAX_BLOCKS);
    return blocks % FS_GROUP && blocks % FS_GROUP < FS_HEADER + 16 ? ALIGN_DOWN(blocks, (uint64_t)FS_GROUP) : blocks;
}

static int fs_create(struct blk *dev, const struct fs_super *super, unsigned flags, struct fs **out)
{
    struct fs *fs = kzalloc(sizeof *fs);
    if (!fs)
        return -ENOMEM;
    fs->dev = dev, fs->flags = flags, fs->super = *super;
    fs->seed = crc32c(0, super->uuid, sizeof super->uuid);
    fs->gen = super->gen + 1, fs->committed = super->gen;
    fs->next_ino = super->next_ino, fs->ninodes = super->ninodes;
    fs->tree = (struct btree){ fs, super->root, NODE_FS };
    mutex_init(&fs->txn_lock), cond_init(&fs->txn_cond), mutex_init(&fs->commit_lock);
    mutex_init(&fs->tree_lock), mutex_init(&fs->inode_lock);
    mutex_init(&fs->work_lock), event_init(&fs->work_event), event_init(&fs->commit_event);
    list_init(&fs->lru), list_init(&fs->dirty), list_init(&fs->committing), list_init(&fs->drops);
    list_init(&fs->dirty_inodes), list_init(&fs->work);
    for (size_t i = 0; i < ARRAY_SIZE(fs->inodes); i++)
        list_init(&fs->inodes[i]);
    fs->hash_size = HASH_SIZE, fs->cache_max = CACHE_MAX;
    fs->hash = kmalloc(HASH_SIZE * sizeof *fs->hash);
    for (unsigned i = 0; fs->hash && i < HASH_SIZE; i++)
        list_init(&fs->hash[i]);
    fs->wave = wave_create(dev);
    int err = fs->hash && fs->wave ? space_init(fs) : -ENOMEM;
    if (err) {
        fs_destroy(fs);
        return err;
    }
    atomic_store_relaxed(&fs->tree_cost, bt_cost(&fs->tree, 1));
    *out = fs;
    return err;
}

static int clear_supers(struct blk *dev, uint64_t blocks)
{
    uint8_t *zero = kzalloc(2 * FS_BLOCK);
    int err = zero ? blk_write(dev, (uint64_t)FS_SUPER << FS_BLOCK_SHIFT, zero, 2 * FS_BLOCK, 0) : -ENOMEM;
    if (!err && blocks >= FS_GROUP + FS_HEADER)
        err = blk_write(dev, (uint64_t)(FS_GROUP + FS_SUPER) << FS_BLOCK_SHIFT, zero, 2 * FS_BLOCK, 0);
    kfree(zero);
    return err ? err : blk_flush(dev);
}

static void first_super(struct fs_super *s, const struct fs_mkfs_opts *o, uint64_t blocks)
{
    memset(s, 0, sizeof *s);
    memcpy(s->magic, FS_MAGIC, 8);
    s->version = FS_VERSION;
    random_bytes(s->uuid, sizeof s->uuid);
    s->blocks = blocks;
    s->next_ino = FS_FIRST_INO, s->ninodes = 1;
    s->flags = o->flags & FS_CSUM_DATA ? SUPER_CSUM_DATA : 0;
    memcpy(s->label, o->label, sizeof s->label);
    for (uint64_t g = 0; g * FS_GROUP < blocks; g++)
        s->free += MIN(blocks - g * FS_GROUP, (uint64_t)FS_GROUP) - FS_HEADER;
}

static int make(struct blk *dev, const struct fs_super *super)
{
    struct fs *fs;
    struct txn t;
    struct inode_rec root = { .type = FS_TYPE_DIR, .mtime = clock_utc_ns(), .ctime = clock_utc_ns(), .parent = FS_ROOT };
    int err = fs_create(dev, super, 0, &fs);
    if (err)
        return err;
    err = clear_supers(dev, super->blocks);
    if (!err)
        err = txn_begin(fs, &t, atomic_load_relaxed(&fs->tree_cost), 0);
    if (!err) {
        err = inode_store(fs, &t, FS_ROOT, &root);
        txn_end(fs, &t);
    }
    if (!err)
        err = fs_commit(fs);
    fs_destroy(fs);
    return err;
}

int fs_mkfs(struct blk *dev, const struct fs_mkfs_opts *o)
{
    uint64_t blocks = whole_pool(o->size ? MIN(o->size, dev->size) : dev->size);
    if (blocks < FS_MIN_BLOCKS || dev->limits.block > FS_BLOCK)
        return -ENOSPC;
    struct fs_super *super = kmalloc(sizeof *super);
    if (!super)
        return -ENOMEM;
    first_super(super, o, blocks);
    int err = blk_claim(dev, true);
    if (!err) {
        err = make(dev, super);
        blk_release(dev, true);
    }
    kfree(super);
    return err;
}

static bool super_ok(struct fs_super *s, uint64_t max_blocks)
{
    uint32_t crc = s->crc;
    s->crc = 0;
    uint32_t real = crc32c(0, s, sizeof *s);
    s->crc = crc;
    return real == crc && !memcmp(s->magic, FS_MAGIC, 8) && s->version == FS_VERSION && s->blocks >= FS_MIN_BLOCKS &&
        s->blocks <= max_blocks && whole_pool(s->blocks << FS_BLOCK_SHIFT) == s->blocks && s->free <= s->blocks && s->gen < UINT64_MAX / 2;
}

/* The valid superblock of the highest generation.  -EMEDIUMTYPE-like cases are told apart: no pool here, or none that is whole. */
static int find_super(struct blk *dev, struct fs_super *best, int *slot)
{
    static const uint64_t place[] = { FS_SUPER, FS_SUPER + 1, FS_GROUP + FS_SUPER, FS_GROUP + FS_SUPER + 1 };
    uint64_t max = MIN(dev->size >> FS_BLOCK_SHIFT, FS_MAX_BLOCKS);
    struct fs_super *s = kmalloc(sizeof *s);
    int err = s ? -EILSEQ : -ENOMEM, read_err = 0;
    best->gen = 0;
    for (unsigned i = 0; s && i < ARRAY_SIZE(place); i++) {
        if (place[i] >= max)
            continue;
        int e = blk_read(dev, place[i] << FS_BLOCK_SHIFT, s, sizeof *s);
        if (e)
            read_err = e;
        else if (super_ok(s, max) && s->gen > best->gen)
            *best = *s, *slot = i & 1, err = 0;
    }
    kfree(s);
    return err == -EILSEQ && read_err ? read_err : err;
}

static int mount_super(struct blk *dev, unsigned flags, struct fs_super *super, struct fs **out)
{
    int slot = 0, err = find_super(dev, super, &slot);
    if (!err)
        err = fs_create(dev, super, flags, out);
    if (err)
        return err;
    (*out)->slot = slot;
    if (!(flags & (FS_RDONLY | FS_SALVAGE)))
        err = orphans_reap(*out);
    if (err == -ENOSPC || err == -EROFS)
        err = 0;                        /* tried again at the next mount */
    if (err)
        fs_destroy(*out);
    return err;
}

int fs_mount(struct blk *dev, unsigned flags, struct fs **out)
{
    bool write = !(flags & FS_RDONLY);
    struct fs_super *super = kmalloc(sizeof *super);
    if (!super)
        return -ENOMEM;
    int err = blk_claim(dev, write);
    if (!err) {
        err = mount_super(dev, flags, super, out);
        if (err)
            blk_release(dev, write);
    }
    kfree(super);
    return err;
}

static bool any_open(struct fs *fs)
{
    struct fs_file *f;
    bool open = false;
    mutex_lock(&fs->inode_lock);
    for (size_t i = 0; i < ARRAY_SIZE(fs->inodes); i++)
        list_for_each(f, &fs->inodes[i], hash)
            open |= f->opens > 0;
    mutex_unlock(&fs->inode_lock);
    return open;
}

int fs_unmount(struct fs *fs)
{
    if (any_open(fs))
        return -EBUSY;
    threads_stop(fs);
    int err = fs->flags & FS_RDONLY ? 0 : fs_commit(fs);
    if (err == -EROFS && fs->failed)
        err = fs->failed;
    blk_release(fs->dev, !(fs->flags & FS_RDONLY));
    fs_destroy(fs);
    return err;
}

void fs_usage(struct fs *fs, struct fs_usage *u)
{
    mutex_lock(&fs->space.lock);
    uint64_t headers = fs->space.ngroups * FS_HEADER;
    uint64_t keep = MIN(fs->space.keep, fs->space.free);
    *u = (struct fs_usage){
        .size = fs->space.blocks << FS_BLOCK_SHIFT, .free = space_available(fs) << FS_BLOCK_SHIFT,
        .overhead = (headers + keep) << FS_BLOCK_SHIFT, .files = fs->ninodes, .gen = fs->committed, .failed = fs->failed,
    };
    mutex_unlock(&fs->space.lock);
    u->used = u->size - u->free - u->overhead;
    memcpy(u->label, fs->super.label, sizeof u->label);
}

int fs_grow(struct fs *fs, uint64_t size)
{
    uint64_t blocks = whole_pool(size ? MIN(size, fs->dev->size) : fs->dev->size);
    int err = fs_writable(fs);
    if (err || blocks == fs->space.blocks)
        return err;
    if (blocks < fs->space.blocks || (size && size > fs->dev->size))
        return -EINVAL;
    /* The mirror superblocks appear with the second group: no old pool's may be found there. */
    if (fs->space.blocks < FS_GROUP + FS_HEADER && blocks >= FS_GROUP + FS_HEADER)
        err = blk_write_zeroes(fs->dev, (uint64_t)(FS_GROUP + FS_SUPER) << FS_BLOCK_SHIFT, 2 * FS_BLOCK, 0);
    if (!err) {
        mutex_lock(&fs->commit_lock);
        freeze(fs);
        err = space_set_end(fs, blocks);
        if (!err)
            atomic_store_relaxed(&fs->changed, true);
        thaw(fs);
        mutex_unlock(&fs->commit_lock);
    }
    return err ? err : fs_commit(fs);
}
