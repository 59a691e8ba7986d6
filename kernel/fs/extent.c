/* What a file's blocks are mapped to: the extent tree, and the cache of its answers that submit uses. */
#include "kernel/fs/fs_int.h"

#include <errno.h>
#include <string.h>

union ext_buf { struct ext_rec rec; uint8_t bytes[sizeof(struct ext_rec) + 4 * EXT_MAX_CSUM]; };

static struct fs_key ext_key(uint64_t lblk) { return (struct fs_key){ lblk, 0 }; }

/* ---- Lookup ---- */

static void to_extent(const union ext_buf *b, uint64_t start, uint64_t lblk, uint64_t limit, struct extent *e)
{
    uint64_t skip = lblk - start, len = MIN(b->rec.len - skip, limit - lblk);
    e->lblk = lblk, e->len = len, e->flags = b->rec.flags, e->pblk = b->rec.pblk + skip, e->hole = false;
    if (b->rec.flags & EXT_CSUM)
        memcpy(e->csum, b->rec.csum + skip, 4 * len);
}

int ext_lookup(struct fs_file *f, uint64_t lblk, uint64_t limit, struct extent *e)
{
    union ext_buf b;
    unsigned len = sizeof b;
    struct fs_key k = ext_key(lblk);
    int err = bt_le(&f->ext, &k, &b, &len);
    if (err && err != -ENOENT)
        return err;
    if (!err && lblk - k.a < b.rec.len) {
        to_extent(&b, k.a, lblk, limit, e);
        return b.rec.pblk + b.rec.len <= fs_blocks(f->fs) ? 0 : -EILSEQ;
    }
    k = ext_key(lblk), len = sizeof b;
    err = bt_ge(&f->ext, &k, &b, &len);
    if (err && err != -ENOENT)
        return err;
    uint64_t end = err ? limit : MIN(k.a, limit);
    *e = (struct extent){ .lblk = lblk, .len = end - lblk, .hole = true };
    return 0;
}

/* The nodes on the way down may be shared with a copy of the file, and the blocks themselves. */
static int path_shared(struct btree *b, uint64_t lblk, bool *shared)
{
    struct fs_ptr ptr = b->root;
    int err = 0;
    *shared = false;
    while (!err && ptr.blk && !*shared) {
        struct node *n;
        err = node_get(b->fs, ptr, NODE_EXT, &n);
        if (err)
            break;
        uint64_t gen = atomic_load_relaxed(&b->fs->gen);
        if (n->gen != gen || atomic_load_relaxed(&b->fs->last_clone) == gen) {
            uint64_t one;
            bool sole = true;
            err = space_sole(b->fs, n->blk, 1, &sole, &one);
            *shared = !sole;
        }
        ptr = (struct fs_ptr){ 0, 0 };
        for (int i = 0; n->hdr.level && i < n->hdr.nitems && (!i || node_child(n, i)->key.a <= lblk); i++)
            ptr = node_child(n, i)->ptr;
        node_put(b->fs, n);
    }
    return err;
}

int ext_sole(struct fs_file *f, struct extent *e, bool *sole)
{
    bool shared;
    uint64_t prefix;
    int err = path_shared(&f->ext, e->lblk, &shared);
    if (err || shared) {
        *sole = false;
        return err;
    }
    err = space_sole(f->fs, e->pblk, e->len, sole, &prefix);
    if (!err)
        e->len = prefix;
    return err;
}

/* ---- The map cache, in blocks ---- */

void map_forget(struct fs_file *f, uint64_t lblk, uint64_t len)
{
    mapped_forget(&f->m, lblk << FS_BLOCK_SHIFT, len << FS_BLOCK_SHIFT);
}

void map_learn(struct fs_file *f, uint64_t lblk, uint64_t len, uint64_t pblk, unsigned state)
{
    mapped_learn(&f->m, lblk << FS_BLOCK_SHIFT, len << FS_BLOCK_SHIFT, f->fs->dev, pblk << FS_BLOCK_SHIFT, state);
}

/* ---- Editing ---- */

/* One change: the neighbours that matter, read before anything is touched. */
struct edit {
    struct fs_file *f;
    struct txn t;
    uint64_t lblk, len;
    bool had;                   /* an extent covers the range */
    union ext_buf old, left, right, put;
    uint64_t old_at, left_at;
    bool join_left, join_right;
};

static int get_at(struct btree *b, uint64_t lblk, union ext_buf *buf, uint64_t *at)
{
    unsigned len = sizeof *buf;
    struct fs_key k = ext_key(lblk);
    int err = bt_le(b, &k, buf, &len);
    *at = k.a;
    return err;
}

static bool joins(const struct ext_rec *a, const struct ext_rec *b)
{
    return a->flags == b->flags && !(a->flags & EXT_CSUM) && a->pblk + a->len == b->pblk && a->len + b->len <= EXT_MAX;
}

/* Neighbours that the new extent continues. */
static int look_around(struct edit *ed, const struct extent *to)
{
    struct btree *b = &ed->f->ext;
    int err = get_at(b, ed->lblk, &ed->old, &ed->old_at);
    ed->had = !err && ed->lblk - ed->old_at < ed->old.rec.len;
    if (err && err != -ENOENT)
        return err;
    if (ed->had && ed->lblk + ed->len > ed->old_at + ed->old.rec.len)
        return -EILSEQ;
    if (!to)
        return 0;
    if (ed->lblk && (!ed->had || ed->old_at == ed->lblk)) {
        err = get_at(b, ed->lblk - 1, &ed->left, &ed->left_at);
        if (err && err != -ENOENT)
            return err;
        ed->join_left = !err && ed->left_at + ed->left.rec.len == ed->lblk && joins(&ed->left.rec, &ed->put.rec);
    }
    unsigned len = sizeof ed->right;
    err = bt_get(b, ext_key(ed->lblk + ed->len), &ed->right, &len);
    if (err && err != -ENOENT)
        return err;
    ed->join_right = !err && joins(&ed->put.rec, &ed->right.rec) &&
        (!ed->join_left || ed->left.rec.len + ed->len + ed->right.rec.len <= EXT_MAX);
    return 0;
}

static int edit_prepare(struct edit *ed)
{
    struct btree *b = &ed->f->ext;
    int err = bt_prepare(b, &ed->t, ext_key(ed->lblk));
    if (!err && ed->had)
        err = bt_prepare(b, &ed->t, ext_key(ed->old_at));
    if (!err && ed->join_left)
        err = bt_prepare(b, &ed->t, ext_key(ed->left_at));
    if (!err)
        err = bt_prepare(b, &ed->t, ext_key(ed->lblk + ed->len));
    if (!err && ed->had)
        err = space_touch(ed->f->fs, ed->old.rec.pblk + (ed->lblk - ed->old_at), ed->len);
    if (!err && ed->put.rec.len)
        err = space_touch(ed->f->fs, ed->put.rec.pblk, ed->put.rec.len);
    return err;
}

static int put_rec(struct edit *ed, uint64_t lblk, const struct ext_rec *r)
{
    return bt_set(&ed->f->ext, &ed->t, ext_key(lblk), r, sizeof *r + (r->flags & EXT_CSUM ? 4 * r->len : 0));
}

/* What is left of the old extent on both sides of the range. */
static int cut_old(struct edit *ed)
{
    struct ext_rec *o = &ed->old.rec;
    uint64_t skip = ed->lblk - ed->old_at, after = skip + ed->len;
    int err = 0;
    if (after < o->len) {
        union ext_buf r;
        r.rec = (struct ext_rec){ o->pblk + after, o->len - after, o->flags };
        if (o->flags & EXT_CSUM)
            memcpy(r.rec.csum, o->csum + after, 4 * r.rec.len);
        err = put_rec(ed, ed->lblk + ed->len, &r.rec);
    }
    if (!err && skip) {
        o->len = skip;
        err = put_rec(ed, ed->old_at, o);
    } else if (!err) {
        err = bt_del(&ed->f->ext, &ed->t, ext_key(ed->old_at));
    }
    return err;
}

static int put_new(struct edit *ed)
{
    struct ext_rec *r = &ed->put.rec;
    uint64_t at = ed->lblk;
    int err = 0;
    if (ed->join_right) {
        err = bt_del(&ed->f->ext, &ed->t, ext_key(ed->lblk + ed->len));
        r->len += ed->right.rec.len;
    }
    if (ed->join_left) {
        ed->left.rec.len += r->len;
        r = &ed->left.rec, at = ed->left_at;
    }
    return err ? err : put_rec(ed, at, r);
}

/* Prepared: none of this can fail but for damage that shows only now. */
static int edit_apply(struct edit *ed, int how, uint64_t new_size)
{
    struct fs_file *f = ed->f;
    uint64_t old_pblk = ed->old.rec.pblk + (ed->lblk - ed->old_at);
    int err = ed->had ? cut_old(ed) : 0;
    if (!err && how != EDIT_REMOVE)
        err = put_new(ed);
    if (!err && how == EDIT_NEW)
        err = space_publish(f->fs, ed->put.rec.pblk, ed->len);
    if (!err && how != EDIT_SAME && ed->had)
        err = space_sub(f->fs, old_pblk, ed->len, NULL);
    if (err)
        return fs_fail(f->fs, err);
    f->rec.blocks += how == EDIT_NEW ? ed->len : 0;
    f->rec.blocks -= how != EDIT_SAME && ed->had ? MIN(ed->len, f->rec.blocks) : 0;
    if (new_size > f->rec.size)
        f->rec.size = new_size;
    f->rec.mtime = clock_utc_ns();
    atomic_store_relaxed(&f->fs->changed, true);
    return 0;
}

int ext_edit(struct fs_file *f, int how, uint64_t lblk, const struct extent *to, uint64_t len, uint64_t new_size)
{
    struct edit *ed = kzalloc(sizeof *ed);
    if (!ed)
        return -ENOMEM;
    ed->f = f, ed->lblk = lblk, ed->len = len;
    if (to) {
        ed->put.rec = (struct ext_rec){ to->pblk, len, to->flags };
        if (to->flags & EXT_CSUM)
            memcpy(ed->put.rec.csum, to->csum, 4 * len);
    }
    int err = txn_begin(f->fs, &ed->t, bt_cost(&f->ext, 3) + atomic_load_relaxed(&f->fs->tree_cost), how == EDIT_REMOVE ? TXN_FREES : 0);
    if (!err) {
        inode_dirty(f, &ed->t);
        err = look_around(ed, to);
        if (!err)
            err = edit_prepare(ed);
        bool gated = !err && ed->had && how != EDIT_SAME;
        if (gated)
            mapped_gate(&f->m);
        if (!err)
            err = edit_apply(ed, how, new_size);
        inode_dirty(f, &ed->t);
        map_forget(f, lblk, len);
        if (gated)
            mapped_ungate(&f->m);
        txn_end(f->fs, &ed->t);
    }
    kfree(ed);
    return err;
}

int ext_end(struct fs_file *f, uint64_t *end)
{
    union ext_buf b;
    unsigned len = sizeof b;
    struct fs_key k = ext_key(*end ? *end - 1 : 0);
    int err = bt_le(&f->ext, &k, &b, &len);
    if (err == -ENOENT)
        *end = 0;
    else if (!err)
        *end = MIN(*end, k.a + b.rec.len);
    return err == -ENOENT ? 0 : err;
}

int ext_unmap(struct fs_file *f, uint64_t lblk, uint64_t end)
{
    struct extent e;
    int err = 0;
    while (!err && lblk < end) {
        err = ext_lookup(f, lblk, end, &e);
        if (!err && !e.hole)
            err = ext_edit(f, EDIT_REMOVE, lblk, NULL, e.len, 0);
        lblk += e.len;
    }
    map_forget(f, lblk, end - lblk);
    return err;
}
