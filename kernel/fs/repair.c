/*
 * Repair: new trees from what can be read of the old ones.
 *
 * The new trees grow beside the old ones and replace them at once: a power cut before that leaves the old state and some leaked
 * blocks.  An entry stays if it leads to an inode of its type that no earlier entry has, and a directory keeps its name if that leads to the root.
 */
#include "kernel/fs/check_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LOST "lost+found"

struct repair { struct check *c; struct btree names; struct fs_key last; };

static int put(struct fs *fs, struct btree *b, struct fs_key key, const void *val, unsigned len)
{
    struct txn t;
    int err = txn_begin(fs, &t, bt_cost(b, 1), TXN_FREES);
    if (err)
        return err;
    err = bt_prepare(b, &t, key);
    if (!err)
        err = bt_set(b, &t, key, val, len);
    txn_end(fs, &t);
    return err;
}

/* ---- Deciding what stays ---- */

/* A directory whose record is lost but whose entries are there gets a new one. */
static void make_missing(struct check *c, struct node *n, void *arg)
{
    union dirent_buf d;
    for (int i = 0; i < n->hdr.nitems && !c->err; i++) {
        struct seen new = { .ino = node_item(n, i)->key.a, .type = FS_TYPE_DIR, .made = true };
        if (node_item(n, i)->key.b >> 56 == ITEM_DIRENT && check_dirent_ok(n, i, &d) && new.ino >= FS_FIRST_INO && new.ino < BIT(48) &&
            !check_seen(c, new.ino))
            check_see(c, &new);
    }
}

static struct seen *target_of(struct check *c, uint64_t dir, const struct dirent_rec *d)
{
    struct seen *s = check_seen(c, d->ino), *p = check_seen(c, dir);
    return s && p && p->type == FS_TYPE_DIR && s->type == d->type && s->ino != FS_ROOT ? s : NULL;
}

static void choose_names(struct check *c, struct node *n, void *arg)
{
    union dirent_buf d;
    for (int i = 0; i < n->hdr.nitems && !c->err; i++) {
        if (node_item(n, i)->key.b >> 56 != ITEM_DIRENT || !check_dirent_ok(n, i, &d))
            continue;
        struct seen *s = target_of(c, node_item(n, i)->key.a, &d.rec);
        if (s && !s->by)
            s->by = node_item(n, i)->key.a;
    }
}

/* Directories that contain each other: the one met first loses its name. */
static void break_loop(struct check *c, struct seen *s)
{
    struct seen *up = s;
    for (size_t steps = 0; up && up->by && !up->reached; steps++) {
        if (steps > c->nseen) {
            s->by = 0;
            return;
        }
        up = check_seen(c, up->by);
    }
    for (; s && s->by && !s->reached; s = check_seen(c, s->by))
        s->reached = true;
}

static void decide(struct check *c)
{
    struct seen root = { .ino = FS_ROOT, .type = FS_TYPE_DIR, .made = true };
    if (!check_seen(c, FS_ROOT))
        check_see(c, &root);
    check_each_leaf(c, make_missing, NULL);
    for (size_t i = 0; i < c->nseen; i++)
        c->seen[i].by = 0, c->seen[i].reached = c->seen[i].orphan = false, c->seen[i].entries = 0;
    check_each_leaf(c, choose_names, NULL);
    for (size_t i = 0; i < c->nseen; i++)
        if (c->seen[i].type == FS_TYPE_DIR)
            break_loop(c, &c->seen[i]);
}

/* ---- Extents ---- */

struct extents { struct fs *fs; struct btree to; uint64_t end, blocks; int err; };

static void copy_extents(struct extents *x, struct fs_ptr ptr, int above, struct key_range keys)
{
    struct node *n;
    int err = node_get(x->fs, ptr, NODE_EXT, &n);
    if (err) {
        x->err = err == -ENOMEM ? err : 0;
        return;
    }
    bool usable = (above < 0 || n->hdr.level == above - 1) && in_range(n, keys);
    for (int i = 0; usable && !x->err && i < n->hdr.nitems; i++) {
        if (n->hdr.level) {
            copy_extents(x, node_child(n, i)->ptr, n->hdr.level, child_range(n, i, keys));
            continue;
        }
        const struct node_item *it = node_item(n, i);
        struct ext_rec e;
        memcpy(&e, n->buf + it->off, sizeof e);
        if (it->key.a < x->end || !check_extent_place(x->fs, &e))
            continue;
        x->err = put(x->fs, &x->to, it->key, n->buf + it->off, it->len);
        x->end = it->key.a + e.len;
        x->blocks += e.len;
    }
    node_put(x->fs, n);
}

static int mend_file(struct fs *fs, struct inode_rec *rec)
{
    struct extents x = { .fs = fs, .to = { fs, { 0, 0 }, NODE_EXT } };
    if (rec->ext.blk)
        copy_extents(&x, rec->ext, -1, ALL_KEYS);
    rec->ext = x.to.root;
    rec->blocks = x.blocks;
    if (rec->size >= BIT(62))
        rec->size = x.end << FS_BLOCK_SHIFT;
    return x.err;
}

/* ---- Copying the name tree ---- */

static int copy_inode(struct repair *r, struct node *n, const struct node_item *it)
{
    struct seen *s = check_seen(r->c, it->key.a);
    struct inode_rec rec;
    if (!s || s->made || it->len != sizeof rec)
        return 0;
    memcpy(&rec, n->buf + it->off, sizeof rec);
    if (rec.type != s->type)
        return 0;
    if (rec.type == FS_TYPE_DIR)
        rec.parent = s->ino == FS_ROOT ? FS_ROOT : s->by, rec.nentries = 0, rec.size = 0;
    int err = s->bad_extents || rec.size >= BIT(62) ? mend_file(r->c->fs, &rec) : 0;
    return err ? err : put(r->c->fs, &r->names, it->key, &rec, sizeof rec);
}

static int copy_entry(struct repair *r, struct node *n, int i)
{
    union dirent_buf d;
    const struct node_item *it = node_item(n, i);
    struct seen *s = check_dirent_ok(n, i, &d) ? target_of(r->c, it->key.a, &d.rec) : NULL;
    if (!s || s->by != it->key.a || s->placed)
        return 0;
    s->placed = true;
    check_seen(r->c, it->key.a)->entries++;
    return put(r->c->fs, &r->names, it->key, &d, it->len);
}

static int copy_orphan(struct repair *r, const struct node_item *it)
{
    struct seen *s = it->key.a == FS_ORPHANS ? check_seen(r->c, it->key.b & BITS(55, 0)) : NULL;
    if (!s || s->by || s->type != FS_TYPE_FILE)
        return 0;
    s->orphan = true;
    return put(r->c->fs, &r->names, it->key, "", 0);
}

static void copy_leaf(struct check *c, struct node *n, void *arg)
{
    struct repair *r = arg;
    for (int i = 0; i < n->hdr.nitems && !c->err; i++) {
        const struct node_item *it = node_item(n, i);
        if (key_cmp(it->key, r->last) <= 0)
            continue;                   /* a leaf at a wrong place, or twice */
        r->last = it->key;
        switch (it->key.b >> 56) {
        case ITEM_INODE:  c->err = copy_inode(r, n, it); break;
        case ITEM_DIRENT: c->err = copy_entry(r, n, i); break;
        case ITEM_ORPHAN: c->err = copy_orphan(r, it); break;
        }
    }
}

static void make_dirs(struct repair *r)
{
    struct check *c = r->c;
    struct inode_rec rec = { .type = FS_TYPE_DIR, .mtime = clock_utc_ns(), .ctime = clock_utc_ns() };
    for (size_t i = 0; i < c->nseen && !c->err; i++) {
        rec.parent = c->seen[i].ino == FS_ROOT ? FS_ROOT : c->seen[i].by;
        if (c->seen[i].made)
            c->err = put(c->fs, &r->names, inode_key(c->seen[i].ino), &rec, sizeof rec);
    }
}

static void replace_tree(struct repair *r)
{
    struct fs *fs = r->c->fs;
    mutex_lock(&fs->tree_lock);
    fs->tree.root = r->names.root;
    fs->ninodes = r->c->nseen;
    fs->next_ino = MAX(fs->next_ino, r->c->seen[r->c->nseen - 1].ino + 1);
    atomic_store_relaxed(&fs->changed, true);
    mutex_unlock(&fs->tree_lock);
}

/* ---- In the new tree ---- */

static int set_entries(struct fs *fs, const struct seen *s)
{
    struct inode_rec rec;
    mutex_lock(&fs->tree_lock);
    int err = inode_load(fs, s->ino, &rec);
    mutex_unlock(&fs->tree_lock);
    rec.nentries = s->entries;
    return err ? err : put(fs, &fs->tree, inode_key(s->ino), &rec, sizeof rec);
}

static int adopt(struct check *c, const struct seen *s)
{
    char path[64];
    int err = fs_mkdir(c->fs, LOST);
    for (int i = 0; (!err || err == -EEXIST) && i < 100; i++) {
        snprintf(path, sizeof path, i ? LOST "/inode-%llu.%d" : LOST "/inode-%llu", ull(s->ino), i);
        err = dir_adopt(c->fs, path, s->ino, s->type);
        if (!err) {
            c->rep->lost_found++;
            return 0;
        }
    }
    return err;
}

int repair_trees(struct check *c)
{
    struct repair r = { .c = c, .names = { c->fs, { 0, 0 }, NODE_FS } };
    decide(c);
    check_each_leaf(c, copy_leaf, &r);
    if (!c->err)
        make_dirs(&r);
    if (c->err)
        return c->err;
    replace_tree(&r);
    int err = fs_commit(c->fs);
    for (size_t i = 0; i < c->nseen && !err; i++)
        if (c->seen[i].entries)
            err = set_entries(c->fs, &c->seen[i]);
    for (size_t i = 0; i < c->nseen && !err; i++)
        if (!c->seen[i].by && !c->seen[i].orphan && c->seen[i].ino != FS_ROOT)
            err = adopt(c, &c->seen[i]);
    return err ? err : fs_commit(c->fs);
}
