/* Inodes: their records in the name tree, the open ones in memory, and those without a name. */
#include "kernel/fs/fs_int.h"

#include <errno.h>
#include <string.h>

struct fs_key inode_key(uint64_t ino) { return (struct fs_key){ ino, (uint64_t)ITEM_INODE << 56 }; }
struct fs_key orphan_key(uint64_t ino) { return (struct fs_key){ FS_ORPHANS, (uint64_t)ITEM_ORPHAN << 56 | ino }; }

int inode_load(struct fs *fs, uint64_t ino, struct inode_rec *rec)
{
    unsigned len = sizeof *rec;
    int err = bt_get(&fs->tree, inode_key(ino), rec, &len);
    if (!err && (len != sizeof *rec || (rec->type != FS_TYPE_FILE && rec->type != FS_TYPE_DIR) || rec->size >> 62))
        err = -EILSEQ;
    return err;
}

int inode_store(struct fs *fs, struct txn *t, uint64_t ino, const struct inode_rec *rec)
{
    return bt_set(&fs->tree, t, inode_key(ino), rec, sizeof *rec);
}

/* ---- Open inodes ---- */

static struct list *inode_bucket(struct fs *fs, uint64_t ino) { return &fs->inodes[ino % ARRAY_SIZE(fs->inodes)]; }

static struct fs_file *find(struct fs *fs, uint64_t ino)
{
    struct fs_file *f;
    list_for_each(f, inode_bucket(fs, ino), hash)
        if (f->ino == ino)
            return f;
    return NULL;
}

static int load_new(struct fs *fs, uint64_t ino, struct fs_file **spare, struct fs_file **out)
{
    struct fs_file *f = *spare ? *spare : (*spare = kzalloc(sizeof *f));
    if (!f)
        return -ENOMEM;
    int err = inode_load(fs, ino, &f->rec);
    if (!err && f->rec.type != FS_TYPE_FILE)
        err = -EISDIR;
    if (err)
        return err;
    *spare = NULL;
    f->fs = fs, f->ino = ino;
    f->ext = (struct btree){ fs, f->rec.ext, NODE_EXT };
    mutex_init(&f->lock);
    mapped_init(&f->m, &file_mapped_ops, fs->dev, &fs->dev->limits);
    list_init(&f->dirty_link), list_init(&f->work_link);
    list_push(inode_bucket(fs, ino), &f->hash);
    *out = f;
    return 0;
}

int inode_open_with(struct fs *fs, uint64_t ino, struct fs_file **spare, struct fs_file **out)
{
    int err = 0;
    mutex_lock(&fs->inode_lock);
    struct fs_file *f = find(fs, ino);
    if (!f)
        err = load_new(fs, ino, spare, &f);
    if (!err)
        f->opens++;
    mutex_unlock(&fs->inode_lock);
    *out = f;
    return err;
}

int inode_open(struct fs *fs, uint64_t ino, struct fs_file **out)
{
    struct fs_file *spare = NULL;
    int err = inode_open_with(fs, ino, &spare, out);
    kfree(spare);
    return err;
}

bool inode_unname(struct fs *fs, uint64_t ino)
{
    mutex_lock(&fs->inode_lock);
    struct fs_file *f = find(fs, ino);
    bool open = f && f->opens;
    if (f)
        f->dead = true;
    mutex_unlock(&fs->inode_lock);
    return open;
}

static void inode_destroy(struct fs_file *f)
{
    list_del(&f->hash);
    mapped_fini(&f->m);
    kfree(f);
}

/* The blocks are freed; the record goes. */
static int remove_record(struct fs_file *f)
{
    struct fs *fs = f->fs;
    struct txn t;
    int err = txn_begin(fs, &t, 2 * atomic_load_relaxed(&fs->tree_cost), TXN_FREES);
    if (err)
        return err;
    mutex_lock(&fs->tree_lock);
    err = bt_prepare(&fs->tree, &t, inode_key(f->ino));
    if (!err)
        err = bt_prepare(&fs->tree, &t, orphan_key(f->ino));
    if (!err) {
        int bad = bt_del(&fs->tree, &t, inode_key(f->ino));
        bad = bt_del(&fs->tree, &t, orphan_key(f->ino)) ?: bad;
        fs->ninodes--;
        if (bad)
            err = fs_fail(fs, bad);
        mutex_lock(&fs->inode_lock);
        if (f->dirty) {
            f->dirty = false;
            list_del(&f->dirty_link);
            atomic_store_relaxed(&fs->ndirty_inodes, fs->ndirty_inodes - 1);
            t.resv += atomic_load_relaxed(&fs->tree_cost);       /* promised when it was soiled; given back with the rest */
        }
        mutex_unlock(&fs->inode_lock);
    }
    mutex_unlock(&fs->tree_lock);
    txn_end(fs, &t);
    return err;
}

/* What fails here is tried again at the next mount: the orphan item is still there. */
static void reap(struct fs_file *f)
{
    mutex_lock(&f->lock);
    if (!fs_writable(f->fs) && !file_free(f))
        remove_record(f);
    mutex_unlock(&f->lock);
}

void inode_put(struct fs_file *f)
{
    struct fs *fs = f->fs;
    mutex_lock(&fs->inode_lock);
    if (f->opens == 1 && f->dead) {
        mutex_unlock(&fs->inode_lock);
        reap(f);
        mutex_lock(&fs->inode_lock);
    }
    if (!--f->opens && !f->dirty)
        inode_destroy(f);
    mutex_unlock(&fs->inode_lock);
}

/* ---- Changed records ---- */

void inode_dirty(struct fs_file *f, struct txn *t)
{
    struct fs *fs = f->fs;
    f->rec.ext = f->ext.root;
    f->rec.ctime = clock_utc_ns();
    atomic_store(&f->dirty_gen, fs->gen);
    mutex_lock(&fs->inode_lock);
    if (!f->dirty) {
        int missing = atomic_load_relaxed(&fs->tree_cost) - t->resv;
        if (missing > 0)                /* the tree grew since the caller asked for its promise */
            space_overpromise(fs, missing), t->resv += missing;
        t->resv -= atomic_load_relaxed(&fs->tree_cost);
        f->dirty = true;
        atomic_store_relaxed(&fs->ndirty_inodes, fs->ndirty_inodes + 1);
        list_append(&fs->dirty_inodes, &f->dirty_link);
    }
    mutex_unlock(&fs->inode_lock);
}

/* All transactions have ended; what is stored twice after an error does no harm. */
int inodes_flush(struct fs *fs)
{
    struct fs_file *f;
    struct txn t = { .resv = fs->ndirty_inodes * atomic_load_relaxed(&fs->tree_cost) };
    int err = 0;
    mutex_lock(&fs->tree_lock);         /* against readers: they do not join */
    list_for_each(f, &fs->dirty_inodes, dirty_link)
        if ((err = inode_store(fs, &t, f->ino, &f->rec)))
            break;
    mutex_unlock(&fs->tree_lock);
    space_unpromise(fs, t.resv);
    if (err)
        inodes_unflush(fs);
    return err;
}

/* The commit broke off: its inodes are still to be stored, at the price they were promised. */
void inodes_unflush(struct fs *fs)
{
    space_overpromise(fs, fs->ndirty_inodes * atomic_load_relaxed(&fs->tree_cost));
}

void inodes_stored(struct fs *fs)
{
    struct list *l;
    mutex_lock(&fs->inode_lock);
    while ((l = list_pop(&fs->dirty_inodes))) {
        struct fs_file *f = list_entry(l, struct fs_file, dirty_link);
        f->dirty = false;
        if (!f->opens)
            inode_destroy(f);
    }
    atomic_store_relaxed(&fs->ndirty_inodes, 0u);
    mutex_unlock(&fs->inode_lock);
}

/* ---- Files without a name, left by a crash ---- */

static int reap_one(struct fs *fs, uint64_t ino)
{
    struct fs_file *f;
    mutex_lock(&fs->tree_lock);
    int err = inode_open(fs, ino, &f);
    mutex_unlock(&fs->tree_lock);
    if (!err) {
        f->dead = true;
        inode_put(f);
    }
    return err == -EISDIR ? -EILSEQ : err;
}

int orphans_reap(struct fs *fs)
{
    struct fs_key k = orphan_key(0);
    int err;
    for (;; k.b++) {
        mutex_lock(&fs->tree_lock);
        err = bt_ge(&fs->tree, &k, NULL, NULL);
        mutex_unlock(&fs->tree_lock);
        if (err || k.a != FS_ORPHANS)
            break;
        uint64_t ino = k.b & BITS(55, 0);
        err = k.b >> 56 == ITEM_ORPHAN ? reap_one(fs, ino) : -EILSEQ;
        if (err)
            return err;
    }
    return err == -ENOENT ? 0 : err;
}
