/*
 * Copy-on-write B+ trees.
 *
 * A change first makes the whole path dirty (bt_prepare): copies nodes that belong to older generations or to more than one tree,
 * splits what is full, each step leaving a valid tree of equal contents, so that running out of memory or a read error stops between
 * steps and hurts nothing.  The change itself then touches dirty nodes in memory only.
 *
 * Nodes of extent trees may be shared by copies of a file: the count of a node's block says how many parents point to it.  Making a
 * private copy of a shared node gives its children one more parent, then takes one away from the node; in this order, two files
 * may do so at the same time, and whoever brings the count to 0 owes the children theirs (bt_drop).
 */
#include "kernel/fs/btree_int.h"

#include <errno.h>
#include <string.h>

struct path { struct node *n[NODE_MAX_LEVEL + 1]; int i[NODE_MAX_LEVEL + 1]; int depth; };

static void path_put(struct fs *fs, struct path *p)
{
    for (int d = 0; d < p->depth; d++)
        node_put(fs, p->n[d]);
    p->depth = 0;
}

/* ---- Reading ---- */

static int child_index(struct node *n, struct fs_key k)
{
    int i = node_position(n, k);
    return i < 0 ? 0 : i;
}

/* Root to leaf; path.i is the child followed, and in the leaf the last item with key <= k (or -1). */
static int descend(struct btree *b, struct fs_key k, struct path *p)
{
    struct fs_ptr ptr = b->root;
    int level = -1;
    p->depth = 0;
    while (ptr.blk) {
        struct node *n;
        if (p->depth > NODE_MAX_LEVEL)
            return -EILSEQ;
        int err = node_get(b->fs, ptr, b->kind, &n);
        if (err)
            return err;
        p->n[p->depth++] = n;
        if (level >= 0 && n->hdr.level != level - 1)
            return -EILSEQ;
        level = n->hdr.level;
        if (!level) {
            p->i[p->depth - 1] = node_position(n, k);
            return 0;
        }
        p->i[p->depth - 1] = child_index(n, k);
        ptr = node_child(n, p->i[p->depth - 1])->ptr;
    }
    return -ENOENT;
}

static void copy_value(struct node *n, int i, void *val, unsigned *len)
{
    struct node_item *it = node_item(n, i);
    if (val)
        memcpy(val, n->buf + it->off, MIN(*len, (unsigned)it->len));
    if (len)
        *len = it->len;
}

int bt_get(struct btree *b, struct fs_key key, void *val, unsigned *len)
{
    struct path p;
    int err = descend(b, key, &p);
    if (!err) {
        struct node *leaf = p.n[p.depth - 1];
        int i = p.i[p.depth - 1];
        if (i < 0 || key_cmp(node_item(leaf, i)->key, key))
            err = -ENOENT;
        else
            copy_value(leaf, i, val, len);
    }
    path_put(b->fs, &p);
    return err;
}

/* The item at path.i + step (-1, +1), walking to the neighbour leaf where there is none. */
static int step_leaf(struct btree *b, struct path *p, int dir)
{
    int d = p->depth - 2;
    while (d >= 0 && (dir > 0 ? p->i[d] + 1 >= p->n[d]->hdr.nitems : p->i[d] == 0))
        d--;
    if (d < 0)
        return -ENOENT;
    p->i[d] += dir;
    while (p->n[d]->hdr.level) {
        struct node *n;
        int err = node_get(b->fs, node_child(p->n[d], p->i[d])->ptr, b->kind, &n);
        if (err)
            return err;
        node_put(b->fs, p->n[d + 1]);
        p->n[d + 1] = n;
        if (n->hdr.level != p->n[d]->hdr.level - 1 || !n->hdr.nitems)
            return -EILSEQ;
        d++;
        p->i[d] = dir > 0 ? 0 : n->hdr.nitems - 1;
    }
    return 0;
}

static int find_near(struct btree *b, struct fs_key *key, void *val, unsigned *len, int dir)
{
    struct path p;
    int err = descend(b, *key, &p);
    if (!err) {
        int d = p.depth - 1;
        if (dir > 0 && (p.i[d] < 0 || key_cmp(node_item(p.n[d], p.i[d])->key, *key)))
            p.i[d]++;
        while (!err && (p.i[d] < 0 || p.i[d] >= p.n[d]->hdr.nitems))
            err = step_leaf(b, &p, dir);
        if (!err && key_cmp(node_item(p.n[d], p.i[d])->key, *key) * dir < 0)
            err = -EILSEQ;              /* the neighbour is not where it belongs */
        if (!err) {
            *key = node_item(p.n[d], p.i[d])->key;
            copy_value(p.n[d], p.i[d], val, len);
        }
    }
    path_put(b->fs, &p);
    return err;
}

int bt_ge(struct btree *b, struct fs_key *key, void *val, unsigned *len) { return find_near(b, key, val, len, 1); }
int bt_le(struct btree *b, struct fs_key *key, void *val, unsigned *len) { return find_near(b, key, val, len, -1); }

/* ---- Making a path dirty ---- */

static void set_parent(struct btree *b, struct node *parent, int i, struct fs_ptr ptr)
{
    if (parent)
        node_child(parent, i)->ptr = ptr;
    else
        b->root = ptr;
}

/* Replaces *n by a dirty copy in its parent, if it is not dirty and ours already. */
static int make_private(struct btree *b, struct txn *t, struct node *parent, int i, struct node **n)
{
    int err = 0;
    struct node *old = *n, *copy;
    bool shared = node_is_shared(b, old, &err);
    if (err || (!shared && old->gen == b->fs->gen))
        return err;
    struct drop *d = shared ? kmalloc(sizeof *d) : NULL;
    if (shared && !d)
        return -ENOMEM;
    err = space_touch(b->fs, old->blk, 1);
    if (!err)
        err = node_new(b->fs, t, b->kind, old->hdr.level, &copy);
    if (!err && shared && (err = bt_children_add(b->fs, old)))
        node_free(b->fs, copy);
    if (err) {
        kfree(d);
        return err;
    }
    struct node_hdr h = copy->hdr;
    memcpy(copy->buf, old->buf, FS_BLOCK);
    h.nitems = old->hdr.nitems;
    copy->hdr = h;
    set_parent(b, parent, i, node_ptr(copy));
    if (shared) {
        struct list one = LIST_INIT(one);
        d->ptr = node_ptr(old);
        list_append(&one, &d->link);
        node_put(b->fs, old);
        bt_drops_queue(b->fs, &one);
    } else {
        node_free(b->fs, old);
    }
    *n = copy;
    return 0;
}

/* Where a full leaf is cut: by bytes, so that both halves are roomy. */
static int split_at(struct node *n)
{
    if (n->hdr.level)
        return n->hdr.nitems / 2;
    unsigned half = (leaf_used(n) - sizeof n->hdr) / 2, sum = 0;
    int i = 0;
    while (i < n->hdr.nitems - 1 && sum < half)
        sum += sizeof(struct node_item) + node_item(n, i++)->len;
    return MAX(i, 1);
}

/* Splits the private node n, child i of the private, roomy parent; *n becomes the half for key k. */
static int split(struct btree *b, struct txn *t, struct node *parent, int *i, struct node **n, struct fs_key k)
{
    struct node *right;
    int err = node_new(b->fs, t, b->kind, (*n)->hdr.level, &right);
    if (err)
        return err;
    int at = split_at(*n);
    node_append(right, *n, at);
    (*n)->hdr.nitems = at;
    if (!(*n)->hdr.level)
        leaf_pack(*n);
    inner_insert(parent, *i + 1, node_key(right, 0), node_ptr(right));
    if (key_cmp(k, node_key(right, 0)) >= 0) {
        node_put(b->fs, *n);
        *n = right;
        ++*i;
    } else {
        node_put(b->fs, right);
    }
    return 0;
}

/* A new root above a full one. */
static int heighten(struct btree *b, struct txn *t, struct node *root, struct node **out)
{
    if (root->hdr.level >= NODE_MAX_LEVEL)
        return -EFBIG;
    int err = node_new(b->fs, t, b->kind, root->hdr.level + 1, out);
    if (!err) {
        inner_insert(*out, 0, (struct fs_key){ 0, 0 }, node_ptr(root));
        b->root = node_ptr(*out);
    }
    return err;
}

static int plant(struct btree *b, struct txn *t)
{
    struct node *n;
    int err = node_new(b->fs, t, b->kind, 0, &n);
    if (!err) {
        b->root = node_ptr(n);
        node_put(b->fs, n);
    }
    return err;
}

/* One private, roomy node after the other from the root to the leaf of k, which is returned in use. */
static int prepare(struct btree *b, struct txn *t, struct fs_key k, struct node **leaf)
{
    struct node *parent = NULL, *n = NULL;
    int i = 0, err = b->root.blk ? 0 : plant(b, t);
    if (!err)
        err = node_get(b->fs, b->root, b->kind, &n);
    while (!err) {
        err = make_private(b, t, parent, i, &n);
        if (!err && !node_is_roomy(n)) {
            if (!parent)
                err = heighten(b, t, n, &parent), i = 0;
            if (!err)
                err = split(b, t, parent, &i, &n, k);
        }
        if (err || !n->hdr.level)
            break;
        node_put(b->fs, parent);
        parent = n, n = NULL;
        i = child_index(parent, k);
        err = node_get(b->fs, node_child(parent, i)->ptr, b->kind, &n);
        if (!err && n->hdr.level != parent->hdr.level - 1)
            err = -EILSEQ;
    }
    node_put(b->fs, parent);
    if (err)
        node_put(b->fs, n);
    else
        *leaf = n;
    return err;
}

int bt_cost(struct btree *b, int keys)
{
    struct node *n;
    int height = 1;
    if (b->root.blk && !node_get(b->fs, b->root, b->kind, &n)) {
        height = n->hdr.level + 1;
        node_put(b->fs, n);
    }
    return 2 * height + 1 + (keys - 1) * (2 * height - 1);
}

int bt_prepare(struct btree *b, struct txn *t, struct fs_key k)
{
    struct node *leaf;
    int err = prepare(b, t, k, &leaf);
    if (!err)
        node_put(b->fs, leaf);
    return err;
}

/* The leaf of k, if all nodes down to it are private already and the leaf has room: what bt_prepare has brought about. */
static struct node *prepared_leaf(struct btree *b, struct fs_key k, unsigned len)
{
    struct path p;
    struct node *leaf = NULL;
    int err = 0;
    if (!descend(b, k, &p)) {
        bool ok = leaf_fits(p.n[p.depth - 1], len);
        for (int d = 0; d < p.depth; d++)
            ok = ok && p.n[d]->gen == b->fs->gen && !node_is_shared(b, p.n[d], &err) && !err;
        if (ok) {
            leaf = p.n[--p.depth];
        }
    }
    path_put(b->fs, &p);
    return leaf;
}

int bt_set(struct btree *b, struct txn *t, struct fs_key k, const void *val, unsigned len)
{
    struct node *leaf = prepared_leaf(b, k, len);
    int err = leaf ? 0 : prepare(b, t, k, &leaf);
    if (err)
        return err;
    int i = node_position(leaf, k);
    if (i >= 0 && !key_cmp(node_item(leaf, i)->key, k)) {
        struct node_item *it = node_item(leaf, i);
        if (it->len == len)
            memcpy(leaf->buf + it->off, val, len);
        else
            leaf_remove(leaf, i), err = leaf_insert(leaf, i, k, val, len);
    } else {
        err = leaf_insert(leaf, i + 1, k, val, len);
    }
    node_put(b->fs, leaf);
    return err;
}

/* ---- Deleting ---- */

/* A dirty path without growing anything, for bt_del. */
static int private_path(struct btree *b, struct txn *t, struct fs_key k, struct path *p)
{
    struct fs_ptr ptr = b->root;
    p->depth = 0;
    for (;;) {
        struct node *n, *parent = p->depth ? p->n[p->depth - 1] : NULL;
        if (!ptr.blk)
            return -ENOENT;
        if (p->depth > NODE_MAX_LEVEL)
            return -EILSEQ;
        int err = node_get(b->fs, ptr, b->kind, &n);
        if (!err && parent && n->hdr.level != parent->hdr.level - 1)
            node_put(b->fs, n), err = -EILSEQ;
        if (!err && (err = make_private(b, t, parent, parent ? p->i[p->depth - 1] : 0, &n)))
            node_put(b->fs, n);
        if (err)
            return err;
        p->n[p->depth] = n;
        p->i[p->depth++] = n->hdr.level ? child_index(n, k) : node_position(n, k);
        if (!n->hdr.level)
            return 0;
        ptr = node_child(n, p->i[p->depth - 1])->ptr;
    }
}

/* Move a small private node's right neighbour into it, when both together are small and the neighbour is only ours. */
static void join(struct btree *b, struct node *parent, int i, struct node *n)
{
    struct node *right;
    int err = 0;
    if (i + 1 >= parent->hdr.nitems || node_used(n) > FS_BLOCK / 4 || node_get(b->fs, node_child(parent, i + 1)->ptr, b->kind, &right))
        return;
    if (right->hdr.level != n->hdr.level || node_used(right) + node_used(n) > FS_BLOCK * 3 / 4 || node_is_shared(b, right, &err) || err ||
        space_touch(b->fs, right->blk, 1)) {
        node_put(b->fs, right);
        return;
    }
    node_append(n, right, 0);
    node_free(b->fs, right);
    inner_remove(parent, i + 1);
}

/* Remove child i of the node at depth d, and what becomes empty above; frees nothing of the child itself. */
static void unlink_child(struct btree *b, struct path *p, int d)
{
    while (d >= 0) {
        inner_remove(p->n[d], p->i[d]);
        if (p->n[d]->hdr.nitems)
            return;
        node_free(b->fs, p->n[d]);
        p->n[d] = NULL;
        d--;
    }
    b->root = (struct fs_ptr){ 0, 0 };
}

/* While the root has one child only, that child is the root. */
static void lower(struct btree *b)
{
    struct node *n;
    while (b->root.blk && !node_get(b->fs, b->root, b->kind, &n)) {
        if (!n->hdr.level || n->hdr.nitems > 1 || n->gen != b->fs->gen || !n->dirty) {
            node_put(b->fs, n);
            return;
        }
        b->root = node_child(n, 0)->ptr;
        node_free(b->fs, n);
    }
}

int bt_del(struct btree *b, struct txn *t, struct fs_key k)
{
    struct path p;
    int err = private_path(b, t, k, &p), d = p.depth - 1;
    if (!err && (p.i[d] < 0 || key_cmp(node_item(p.n[d], p.i[d])->key, k)))
        err = -ENOENT;
    if (!err) {
        leaf_remove(p.n[d], p.i[d]);
        if (p.n[d]->hdr.nitems) {
            for (; d > 0; d--)
                join(b, p.n[d - 1], p.i[d - 1], p.n[d]);
        } else {
            node_free(b->fs, p.n[d]);
            p.n[d] = NULL;
            unlink_child(b, &p, d - 1);
        }
    }
    path_put(b->fs, &p);
    if (!err)
        lower(b);
    return err;
}

/* ---- Freeing a whole tree ---- */

static int drop_root(struct btree *b)
{
    int err = bt_drop(b->fs, b->root);
    if (!err)
        b->root = (struct fs_ptr){ 0, 0 };
    return err;
}

static uint64_t leaf_blocks(struct node *n)
{
    uint64_t sum = 0;
    for (int i = 0; !n->hdr.level && i < n->hdr.nitems; i++) {
        struct ext_rec e;
        memcpy(&e, n->buf + node_item(n, i)->off, sizeof e);
        sum += e.len;
    }
    return sum;
}

/* Data blocks under a node; a subtree that cannot be read counts as nothing, and shows in the check. */
static uint64_t blocks_under(struct btree *b, struct node *n, struct key_range keys)
{
    uint64_t sum = leaf_blocks(n);
    for (int i = 0; n->hdr.level && i < n->hdr.nitems; i++) {
        struct node *child;
        if (node_get(b->fs, node_child(n, i)->ptr, b->kind, &child))
            continue;
        struct key_range below = child_range(n, i, keys);
        if (child->hdr.level < n->hdr.level && in_range(child, below))
            sum += blocks_under(b, child, below);
        node_put(b->fs, child);
    }
    return sum;
}

/* Cut the last subtree off that is a leaf or shared. */
int bt_drop_step(struct btree *b, struct txn *t, uint64_t *blocks, uint64_t *first)
{
    struct path p;
    struct node *n = NULL;
    int err = 0;
    *blocks = 0, *first = 0;
    if (!b->root.blk)
        return -ENOENT;
    err = node_get(b->fs, b->root, b->kind, &n);
    if (err)
        return err;
    bool whole = !n->hdr.level || node_is_shared(b, n, &err);
    uint64_t in_root = whole ? blocks_under(b, n, ALL_KEYS) : 0;
    node_put(b->fs, n);
    if (!err && whole) {
        err = drop_root(b);
        *blocks = err ? 0 : in_root;
        return err;
    }
    if (err)
        return err;
    struct fs_ptr ptr = b->root;
    p.depth = 0;
    for (;;) {                          /* p: private inner nodes; n: the node under the last, to be cut off or descended into */
        struct node *parent = p.depth ? p.n[p.depth - 1] : NULL;
        err = p.depth > NODE_MAX_LEVEL ? -EILSEQ : node_get(b->fs, ptr, b->kind, &n);
        if (err)
            break;
        if (parent && (n->hdr.level != parent->hdr.level - 1))
            err = -EILSEQ;
        if (!err && parent && (!n->hdr.level || node_is_shared(b, n, &err)) && !err) {
            uint64_t in_leaf = blocks_under(b, n, ALL_KEYS);
            node_put(b->fs, n);
            err = bt_drop(b->fs, ptr);
            if (!err) {
                *blocks = in_leaf, *first = node_child(parent, p.i[p.depth - 1])->key.a;
                unlink_child(b, &p, p.depth - 1);
            }
            break;
        }
        if (!err)
            err = make_private(b, t, parent, parent ? p.i[p.depth - 1] : 0, &n);
        if (err) {
            node_put(b->fs, n);
            break;
        }
        p.n[p.depth] = n;
        p.i[p.depth++] = n->hdr.nitems - 1;
        ptr = node_child(n, n->hdr.nitems - 1)->ptr;
    }
    path_put(b->fs, &p);
    return err;
}
