/* Making, mounting, growing and unmounting a pool. */
#include "kernel/fs/fs_int.h"

#include <errno.h>
#include <string.h>
#include "kernel/lib/crc.h"

#define HASH_SIZE       4096u
#define CACHE_MAX       8192u   /* clean nodes kept (32 MiB) */

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
    mutex_lock(&fs->tree_lock);
    uint64_t files = fs->ninodes;
    mutex_unlock(&fs->tree_lock);
    mutex_lock(&fs->space.lock);
    uint64_t headers = fs->space.ngroups * FS_HEADER;
    uint64_t keep = MIN(fs->space.keep, fs->space.free);
    *u = (struct fs_usage){
        .size = fs_blocks(fs) << FS_BLOCK_SHIFT, .free = space_available(fs) << FS_BLOCK_SHIFT,
        .overhead = (headers + keep) << FS_BLOCK_SHIFT, .files = files, .gen = atomic_load(&fs->committed), .failed = atomic_load(&fs->failed),
    };
    mutex_unlock(&fs->space.lock);
    u->used = u->size - u->free - u->overhead;
    memcpy(u->label, fs->super.label, sizeof u->label);
}

int fs_grow(struct fs *fs, uint64_t size)
{
    uint64_t blocks = whole_pool(size ? MIN(size, fs->dev->size) : fs->dev->size);
    int err = fs_writable(fs);
    if (err || blocks == fs_blocks(fs))
        return err;
    if (blocks < fs_blocks(fs) || (size && size > fs->dev->size))
        return -EINVAL;
    /* The mirror superblocks appear with the second group: no old pool's may be found there. */
    if (fs_blocks(fs) < FS_GROUP + FS_HEADER && blocks >= FS_GROUP + FS_HEADER)
        err = blk_write_zeroes(fs->dev, (uint64_t)(FS_GROUP + FS_SUPER) << FS_BLOCK_SHIFT, 2 * FS_BLOCK, 0);
    if (!err) {
        mutex_lock(&fs->commit_lock);
        txns_freeze(fs);
        err = space_set_end(fs, blocks);
        if (!err)
            atomic_store_relaxed(&fs->changed, true);
        txns_thaw(fs);
        mutex_unlock(&fs->commit_lock);
    }
    return err ? err : fs_commit(fs);
}
