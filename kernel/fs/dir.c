/* Names: directories are items of the name tree, keyed by a hash of the name.  Everything here runs under tree_lock. */
#include "kernel/fs/fs_int.h"

#include <errno.h>
#include <string.h>

#define HASH_BITS 48            /* of the name; the low 8 bits of the number tell names of one hash apart */

union dent { struct dirent_rec rec; uint8_t bytes[sizeof(struct dirent_rec) + FS_NAME_MAX]; };

/* A name in a directory, found or to be made. */
struct place {
    uint64_t dir;
    const char *name;
    unsigned len;
    struct fs_key key;          /* where it is, or would go */
    uint64_t ino;               /* 0: there is none */
    uint8_t type;
};

uint64_t dir_hash(const char *name, unsigned len)
{
    uint64_t h = 0xcbf29ce484222325ull;
    for (unsigned i = 0; i < len; i++)
        h = (h ^ (uint8_t)name[i]) * 0x100000001b3ull;
    return (h ^ h >> 29) & BITS(HASH_BITS - 1, 0);
}

static struct fs_key dent_key(uint64_t dir, uint64_t number) { return (struct fs_key){ dir, (uint64_t)ITEM_DIRENT << 56 | number }; }

/* The next entry at or after *key in the directory; -ENOENT: none. */
static int dent_next(struct fs *fs, struct fs_key *key, union dent *d)
{
    unsigned len = sizeof *d;
    uint64_t dir = key->a;
    int err = bt_ge(&fs->tree, key, d, &len);
    if (err || key->a != dir || key->b >> 56 != ITEM_DIRENT)
        return err ? err : -ENOENT;
    if (len < sizeof d->rec || len != sizeof d->rec + d->rec.len || !d->rec.len || d->rec.ino < FS_FIRST_INO ||
        (d->rec.type != FS_TYPE_FILE && d->rec.type != FS_TYPE_DIR))
        return -EILSEQ;
    return 0;
}

static int find_name(struct fs *fs, struct place *p)
{
    union dent d;
    uint64_t first = dir_hash(p->name, p->len) << 8;
    struct fs_key k = dent_key(p->dir, first);
    bool have_key = false;
    int err;
    p->ino = 0;
    for (uint64_t n = first; n < first + 256; n = (k.b & BITS(55, 0)) + 1) {
        k = dent_key(p->dir, n);
        err = dent_next(fs, &k, &d);
        uint64_t at = err ? first + 256 : k.b & BITS(55, 0);
        if (err && err != -ENOENT)
            return err;
        if (at > n && !have_key)
            p->key = dent_key(p->dir, n), have_key = true;
        if (at >= first + 256)
            break;
        if (d.rec.len == p->len && !memcmp(d.rec.name, p->name, p->len)) {
            p->key = k, p->ino = d.rec.ino, p->type = d.rec.type;
            return 0;
        }
    }
    return have_key ? 0 : -ENOSPC;
}

static int name_ok(const char *name, unsigned len)
{
    if (len > FS_NAME_MAX)
        return -ENAMETOOLONG;
    return !len || (len == 1 && name[0] == '.') || (len == 2 && name[0] == '.' && name[1] == '.') ? -EINVAL : 0;
}

/* Walks to the last name of the path; p->len 0: the path is the root. */
static int walk(struct fs *fs, const char *path, struct place *p)
{
    *p = (struct place){ .dir = FS_ROOT, .ino = FS_ROOT, .type = FS_TYPE_DIR };
    for (;;) {
        while (*path == '/')
            path++;
        if (!*path)
            return 0;
        if (!p->ino)
            return -ENOENT;
        if (p->type != FS_TYPE_DIR)
            return -ENOTDIR;
        unsigned len = strcspn(path, "/");
        int err = name_ok(path, len);
        p->dir = p->ino, p->name = path, p->len = len;
        if (!err)
            err = find_name(fs, p);
        if (err)
            return err;
        path += len;
    }
}

static int walk_existing(struct fs *fs, const char *path, struct place *p)
{
    int err = walk(fs, path, p);
    return err ? err : p->ino ? 0 : -ENOENT;
}

/* ---- Changing a directory: prepared first, then applied ---- */

struct change { struct fs *fs; struct txn t; int err; };

static void prepare(struct change *c, struct fs_key k)
{
    if (!c->err)
        c->err = bt_prepare(&c->fs->tree, &c->t, k);
}

/* From here on a failure leaves a half-done change. */
static void must(struct change *c, int err)
{
    if (err)
        c->err = fs_fail(c->fs, err);
}

static void put_name(struct change *c, const struct place *p, uint64_t ino, uint8_t type)
{
    union dent d;
    d.rec.ino = ino, d.rec.type = type, d.rec.len = p->len;
    memcpy(d.rec.name, p->name, p->len);
    must(c, bt_set(&c->fs->tree, &c->t, p->key, &d, sizeof d.rec + p->len));
}

static void count_entries(struct change *c, uint64_t dir, int more)
{
    struct inode_rec rec;
    int err = inode_load(c->fs, dir, &rec);
    if (!err) {
        rec.nentries += more;
        rec.mtime = rec.ctime = clock_utc_ns();
        err = inode_store(c->fs, &c->t, dir, &rec);
    }
    must(c, err);
}

static void make_orphan(struct change *c, uint64_t ino)
{
    must(c, bt_set(&c->fs->tree, &c->t, orphan_key(ino), "", 0));
}

static void remove_dir(struct change *c, uint64_t ino)
{
    must(c, bt_del(&c->fs->tree, &c->t, inode_key(ino)));
    c->fs->ninodes--;
}

static int begin(struct change *c, struct fs *fs, int keys, unsigned flags)
{
    *c = (struct change){ .fs = fs };
    int err = txn_begin(fs, &c->t, keys * atomic_load_relaxed(&fs->tree_cost), flags);
    if (!err)
        mutex_lock(&fs->tree_lock);
    return err;
}

static int end(struct change *c)
{
    mutex_unlock(&c->fs->tree_lock);
    txn_end(c->fs, &c->t);
    return c->err;
}

/* ---- Making ---- */

/* The place of a name that must not exist. */
static void walk_new(struct change *c, const char *path, struct place *p)
{
    c->err = walk(c->fs, path, p);
    if (!c->err && p->ino)
        c->err = -EEXIST;
}

/* A new inode under the name of p, with this record. */
static void create_at(struct change *c, struct place *p, struct inode_rec *rec, uint64_t *ino)
{
    struct fs *fs = c->fs;
    *ino = fs->next_ino;
    prepare(c, p->key);
    prepare(c, inode_key(*ino));
    prepare(c, inode_key(p->dir));
    if (c->err)
        return;
    rec->mtime = rec->ctime = clock_utc_ns();
    fs->next_ino++, fs->ninodes++;
    put_name(c, p, *ino, rec->type);
    must(c, inode_store(fs, &c->t, *ino, rec));
    count_entries(c, p->dir, 1);
}

int fs_mkdir(struct fs *fs, const char *path)
{
    struct change c;
    struct place p;
    uint64_t ino;
    int err = begin(&c, fs, 3, 0);
    if (err)
        return err;
    walk_new(&c, path, &p);
    struct inode_rec rec = { .type = FS_TYPE_DIR, .parent = p.dir };
    if (!c.err)
        create_at(&c, &p, &rec, &ino);
    return end(&c);
}

static int create_file(struct fs *fs, const char *path, unsigned flags, struct fs_file **out)
{
    struct change c;
    struct place p;
    uint64_t ino;
    bool csum = flags & FS_CSUM || (fs->super.flags & SUPER_CSUM_DATA && !(flags & FS_NOCSUM));
    struct inode_rec rec = { .type = FS_TYPE_FILE, .flags = csum ? INODE_CSUM : 0 };
    struct fs_file *spare = kzalloc(sizeof *spare);
    int err = spare ? begin(&c, fs, 3, 0) : -ENOMEM;
    if (err) {
        kfree(spare);
        return err;
    }
    c.err = walk(fs, path, &p);
    if (!c.err && p.ino)
        c.err = p.type == FS_TYPE_DIR ? -EISDIR : flags & FS_EXCL ? -EEXIST : 0, ino = p.ino;
    else if (!c.err)
        create_at(&c, &p, &rec, &ino);
    if (!c.err)
        c.err = inode_open_with(fs, ino, &spare, out);
    kfree(spare);
    return end(&c);
}

int fs_open(struct fs *fs, const char *path, unsigned flags, struct fs_file **out)
{
    struct place p;
    mutex_lock(&fs->tree_lock);
    int err = walk_existing(fs, path, &p);
    if (!err)
        err = flags & FS_EXCL ? -EEXIST : p.type == FS_TYPE_DIR ? -EISDIR : inode_open(fs, p.ino, out);
    mutex_unlock(&fs->tree_lock);
    return err == -ENOENT && flags & FS_CREATE ? create_file(fs, path, flags, out) : err;
}

void fs_close(struct fs_file *f)
{
    if (f)
        inode_put(f);
}

bool fs_is_open(struct fs *fs, const char *path)
{
    struct place p;
    struct fs_file *f;
    bool open = false;
    mutex_lock(&fs->tree_lock);
    if (!walk_existing(fs, path, &p)) {
        mutex_lock(&fs->inode_lock);
        list_for_each(f, &fs->inodes[p.ino % ARRAY_SIZE(fs->inodes)], hash)
            open |= f->ino == p.ino && f->opens;
        mutex_unlock(&fs->inode_lock);
    }
    mutex_unlock(&fs->tree_lock);
    return open;
}

/* ---- Copying ---- */

/* The source's lock is held and its fast path stopped: the copy is of one moment. */
static int clone_locked(struct fs_file *src, const char *to)
{
    struct change c;
    struct place p;
    uint64_t ino;
    struct fs *fs = src->fs;
    int err = begin(&c, fs, 4, 0);
    if (err)
        return err;
    struct inode_rec rec = src->rec;
    rec.ext = src->ext.root;
    walk_new(&c, to, &p);
    if (!c.err && rec.ext.blk) {
        c.err = space_add(fs, rec.ext.blk, 1);
        if (!c.err)
            atomic_store_relaxed(&fs->last_clone, fs->gen);
    }
    if (!c.err) {
        create_at(&c, &p, &rec, &ino);
        if (c.err && rec.ext.blk)
            must(&c, space_sub(fs, rec.ext.blk, 1, NULL));
    }
    return end(&c);
}

int fs_reflink(struct fs *fs, const char *from, const char *to)
{
    struct fs_file *src;
    int err = fs_open(fs, from, 0, &src);
    if (err)
        return err;
    mutex_lock(&src->lock);
    mapped_gate(&src->m);
    mapped_read_only(&src->m);
    err = clone_locked(src, to);
    mapped_ungate(&src->m);
    mutex_unlock(&src->lock);
    fs_close(src);
    return err;
}

/* ---- Removing and renaming ---- */

static int check_removable(struct fs *fs, const struct place *p)
{
    struct inode_rec rec;
    if (!p->ino)
        return -ENOENT;
    if (!p->len)
        return -EBUSY;
    if (p->type != FS_TYPE_DIR)
        return 0;
    int err = inode_load(fs, p->ino, &rec);
    return err ? err : rec.nentries ? -ENOTEMPTY : 0;
}

/* After its name is gone for good: the blocks of a file that nobody has open. */
static void reap_unnamed(struct fs *fs, uint64_t ino)
{
    struct fs_file *f;
    mutex_lock(&fs->tree_lock);
    int err = inode_open(fs, ino, &f);
    mutex_unlock(&fs->tree_lock);
    if (!err) {
        inode_unname(fs, ino);
        inode_put(f);
    }
}

static void unname(struct change *c, const struct place *p, uint64_t *reap)
{
    if (p->type == FS_TYPE_DIR) {
        remove_dir(c, p->ino);
        return;
    }
    make_orphan(c, p->ino);
    if (!inode_unname(c->fs, p->ino))
        *reap = p->ino;
}

static void prepare_unname(struct change *c, const struct place *p)
{
    prepare(c, p->type == FS_TYPE_DIR ? inode_key(p->ino) : orphan_key(p->ino));
}

int fs_unlink(struct fs *fs, const char *path)
{
    struct change c;
    struct place p;
    uint64_t reap = 0;
    int err = begin(&c, fs, 3, TXN_FREES);
    if (err)
        return err;
    c.err = walk(fs, path, &p);
    if (!c.err)
        c.err = check_removable(fs, &p);
    if (!c.err) {
        prepare(&c, p.key);
        prepare(&c, inode_key(p.dir));
        prepare_unname(&c, &p);
    }
    if (!c.err) {
        must(&c, bt_del(&fs->tree, &c.t, p.key));
        count_entries(&c, p.dir, -1);
        unname(&c, &p, &reap);
    }
    err = end(&c);
    if (!err && reap)
        reap_unnamed(fs, reap);
    return err;
}

/* `how` when directory `dir` is or lies below `above`. */
static int check_not_below(struct fs *fs, uint64_t above, uint64_t dir, int how)
{
    struct inode_rec rec;
    for (unsigned depth = 0; dir != FS_ROOT; depth++) {
        if (dir == above)
            return how;
        int err = depth < 4096 ? inode_load(fs, dir, &rec) : -EILSEQ;
        if (err)
            return err;
        dir = rec.parent;
    }
    return 0;
}

/* Of several reasons to refuse it states the one that Linux states. */
static int check_rename(struct fs *fs, const struct place *a, const struct place *b)
{
    if (!a->ino)
        return -ENOENT;
    if (!a->len || !b->len)
        return -EBUSY;
    int err = a->type == FS_TYPE_DIR ? check_not_below(fs, a->ino, b->dir, -EINVAL) : 0;
    if (!err && b->ino && b->type == FS_TYPE_DIR)
        err = check_not_below(fs, b->ino, a->dir, -ENOTEMPTY);
    if (err)
        return err;
    if (!b->ino || a->ino == b->ino)
        return 0;
    if (a->type != b->type)
        return b->type == FS_TYPE_DIR ? -EISDIR : -ENOTDIR;
    return check_removable(fs, b);
}

static void move_dir(struct change *c, uint64_t ino, uint64_t parent)
{
    struct inode_rec rec;
    int err = inode_load(c->fs, ino, &rec);
    if (!err) {
        rec.parent = parent;
        err = inode_store(c->fs, &c->t, ino, &rec);
    }
    must(c, err);
}

static void rename_apply(struct change *c, const struct place *a, const struct place *b, uint64_t *reap)
{
    must(c, bt_del(&c->fs->tree, &c->t, a->key));
    put_name(c, b, a->ino, a->type);
    count_entries(c, a->dir, -1);
    if (!b->ino)
        count_entries(c, b->dir, 1);
    else
        unname(c, b, reap);
    if (a->type == FS_TYPE_DIR)
        move_dir(c, a->ino, b->dir);
}

int fs_rename(struct fs *fs, const char *from, const char *to)
{
    struct change c;
    struct place a, b;
    uint64_t reap = 0;
    int err = begin(&c, fs, 6, 0);
    if (err)
        return err;
    c.err = walk(fs, from, &a);
    if (!c.err)
        c.err = walk(fs, to, &b);
    if (!c.err)
        c.err = check_rename(fs, &a, &b);
    if (c.err || a.ino == b.ino)
        return end(&c);
    prepare(&c, a.key);
    prepare(&c, b.key);
    prepare(&c, inode_key(a.dir));
    prepare(&c, inode_key(b.dir));
    prepare(&c, inode_key(a.ino));
    if (b.ino)
        prepare_unname(&c, &b);
    if (!c.err)
        rename_apply(&c, &a, &b, &reap);
    err = end(&c);
    if (!err && reap)
        reap_unnamed(fs, reap);
    return err;
}

/* ---- Repair ---- */

int dir_adopt(struct fs *fs, const char *path, uint64_t ino, uint8_t type)
{
    struct change c;
    struct place p;
    int err = begin(&c, fs, 3, 0);
    if (err)
        return err;
    walk_new(&c, path, &p);
    if (!c.err) {
        prepare(&c, p.key);
        prepare(&c, inode_key(p.dir));
        prepare(&c, inode_key(ino));
    }
    if (!c.err) {
        put_name(&c, &p, ino, type);
        count_entries(&c, p.dir, 1);
        if (type == FS_TYPE_DIR)
            move_dir(&c, ino, p.dir);
    }
    return end(&c);
}

/* ---- Looking ---- */

static void fill_stat(const struct inode_rec *r, uint64_t ino, struct fs_stat *st)
{
    *st = (struct fs_stat){
        .ino = ino, .size = r->size, .allocated = r->blocks << FS_BLOCK_SHIFT, .mtime = r->mtime, .ctime = r->ctime,
        .entries = r->nentries, .dir = r->type == FS_TYPE_DIR, .csum = r->flags & INODE_CSUM,
    };
}

int fs_fstat(struct fs_file *f, struct fs_stat *st)
{
    mutex_lock(&f->lock);
    fill_stat(&f->rec, f->ino, st);
    mutex_unlock(&f->lock);
    return 0;
}

int fs_stat(struct fs *fs, const char *path, struct fs_stat *st)
{
    struct place p;
    struct inode_rec rec;
    struct fs_file *f = NULL;
    mutex_lock(&fs->tree_lock);
    int err = walk_existing(fs, path, &p);
    if (!err && p.type == FS_TYPE_DIR) {
        err = inode_load(fs, p.ino, &rec);
        if (!err)
            fill_stat(&rec, p.ino, st);
    } else if (!err) {
        err = inode_open(fs, p.ino, &f);
    }
    mutex_unlock(&fs->tree_lock);
    if (err || !f)
        return err;
    err = fs_fstat(f, st);
    inode_put(f);
    return err;
}

int fs_readdir(struct fs *fs, const char *path, uint64_t cookie, struct fs_dirent *out)
{
    struct place p;
    union dent d;
    mutex_lock(&fs->tree_lock);
    int err = walk_existing(fs, path, &p);
    if (!err && p.type != FS_TYPE_DIR)
        err = -ENOTDIR;
    if (!err) {
        struct fs_key k = dent_key(p.ino, cookie);
        err = dent_next(fs, &k, &d);
        if (!err) {
            *out = (struct fs_dirent){ .ino = d.rec.ino, .cookie = (k.b & BITS(55, 0)) + 1, .dir = d.rec.type == FS_TYPE_DIR };
            memcpy(out->name, d.rec.name, d.rec.len);
        }
    }
    mutex_unlock(&fs->tree_lock);
    return err;
}
