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
#include "kernel/fs/fs_int.h"

#include <errno.h>
#include <string.h>

struct path { struct node *n[NODE_MAX_LEVEL + 1]; int i[NODE_MAX_LEVEL + 1]; int depth; };

#define ROOM_ITEMS 3            /* what bt_prepare keeps room for in a leaf */

static void path_put(struct fs *fs, struct path *p)
{
    for (int d = 0; d < p->depth; d++)
        node_put(fs, p->n[d]);
    p->depth = 0;
}

/* ---- Inside of a node ---- */

/* The last position with key <= k; -1: none. */
static int position(struct node *n, struct fs_key k)
{
    int lo = 0, hi = n->hdr.nitems;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (key_cmp(node_key(n, mid), k) <= 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo - 1;
}

static unsigned leaf_used(struct node *n)
{
    unsigned sum = sizeof n->hdr + n->hdr.nitems * sizeof(struct node_item);
    for (int i = 0; i < n->hdr.nitems; i++)
        sum += node_item(n, i)->len;
    return sum;
}

static unsigned node_used(struct node *n)
{
    return n->hdr.level ? sizeof n->hdr + n->hdr.nitems * sizeof(struct node_child) : leaf_used(n);
}

static unsigned max_value(const struct node *n)
{
    return n->hdr.kind == NODE_EXT ? sizeof(struct ext_rec) + 4 * EXT_MAX_CSUM : NODE_MAX_VALUE;
}

static bool fits(struct node *leaf, unsigned len) { return leaf_used(leaf) + sizeof(struct node_item) + len <= FS_BLOCK; }

static bool is_roomy(struct node *n)
{
    if (n->hdr.level)
        return n->hdr.nitems < NODE_MAX_CHILDREN;
    return leaf_used(n) + ROOM_ITEMS * (sizeof(struct node_item) + max_value(n)) <= FS_BLOCK;
}

static unsigned values_start(struct node *n)
{
    unsigned start = FS_BLOCK;
    for (int i = 0; i < n->hdr.nitems; i++)
        start = MIN(start, (unsigned)node_item(n, i)->off);
    return start;
}

/* Values move to the end of the block without gaps. */
static void leaf_pack(struct node *n)
{
    uint8_t old[FS_BLOCK];
    unsigned at = FS_BLOCK;
    memcpy(old, n->buf, FS_BLOCK);
    for (int i = 0; i < n->hdr.nitems; i++) {
        struct node_item *it = node_item(n, i);
        at -= it->len;
        memcpy(n->buf + at, old + it->off, it->len);
        it->off = at;
    }
}

static void leaf_remove(struct node *n, int i)
{
    memmove(node_item(n, i), node_item(n, i + 1), (n->hdr.nitems - i - 1) * sizeof(struct node_item));
    n->hdr.nitems--;
}

static int leaf_insert(struct node *n, int i, struct fs_key key, const void *val, unsigned len)
{
    if (leaf_used(n) + sizeof(struct node_item) + len > FS_BLOCK)
        return -EILSEQ;
    if (values_start(n) < sizeof n->hdr + (n->hdr.nitems + 1) * sizeof(struct node_item) + len)
        leaf_pack(n);
    unsigned off = values_start(n) - len;
    memmove(node_item(n, i + 1), node_item(n, i), (n->hdr.nitems - i) * sizeof(struct node_item));
    *node_item(n, i) = (struct node_item){ .key = key, .off = off, .len = len };
    memcpy(n->buf + off, val, len);
    n->hdr.nitems++;
    return 0;
}

static void inner_insert(struct node *n, int i, struct fs_key key, struct fs_ptr ptr)
{
    memmove(node_child(n, i + 1), node_child(n, i), (n->hdr.nitems - i) * sizeof(struct node_child));
    *node_child(n, i) = (struct node_child){ key, ptr };
    n->hdr.nitems++;
}

static void inner_remove(struct node *n, int i)
{
    memmove(node_child(n, i), node_child(n, i + 1), (n->hdr.nitems - i - 1) * sizeof(struct node_child));
    n->hdr.nitems--;
}

/* Append items [from, end) of src to dst; src may be a clean node and is left alone. */
static void append_items(struct node *dst, struct node *src, int from)
{
    for (int i = from; i < src->hdr.nitems; i++) {
        if (src->hdr.level) {
            inner_insert(dst, dst->hdr.nitems, node_child(src, i)->key, node_child(src, i)->ptr);
        } else {
            struct node_item *it = node_item(src, i);
            leaf_insert(dst, dst->hdr.nitems, it->key, src->buf + it->off, it->len);
        }
    }
}

static struct fs_ptr ptr_of(const struct node *n) { return (struct fs_ptr){ n->blk, n->gen }; }

/* ---- Reading ---- */

static int child_index(struct node *n, struct fs_key k)
{
    int i = position(n, k);
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
            p->i[p->depth - 1] = position(n, k);
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
        if (n->hdr.level != p->n[d]->hdr.level - 1)
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

/* ---- Sharing ---- */

bool node_is_shared(struct btree *b, struct node *n, int *err)
{
    uint64_t gen = atomic_load_relaxed(&b->fs->gen);
    if (b->kind != NODE_EXT || (n->gen == gen && atomic_load_relaxed(&b->fs->last_clone) != gen))
        return false;
    int ref = space_ref(b->fs, n->blk);
    if (ref < 1)
        *err = ref ? ref : -EILSEQ;
    return ref > 1;
}

enum { REF_ADD, REF_SUB, REF_TOUCH };

static int item_ref(struct fs *fs, struct node *n, int i, int op)
{
    struct ext_rec e = { .len = 1 };
    if (n->hdr.level)
        e.pblk = node_child(n, i)->ptr.blk;
    else
        memcpy(&e, n->buf + node_item(n, i)->off, sizeof e);
    if (op == REF_TOUCH)
        return space_touch(fs, e.pblk, e.len);
    return op == REF_ADD ? space_add(fs, e.pblk, e.len) : space_sub(fs, e.pblk, e.len, NULL);
}

static int children_touch(struct fs *fs, struct node *n)
{
    int err = 0;
    for (int i = 0; !err && i < n->hdr.nitems; i++)
        err = item_ref(fs, n, i, REF_TOUCH);
    return err;
}

static int children_add(struct fs *fs, struct node *n)
{
    int err = children_touch(fs, n), i;
    for (i = 0; !err && i < n->hdr.nitems; i++)
        err = item_ref(fs, n, i, REF_ADD);
    if (err)
        for (i -= 2; i >= 0; i--)
            if (item_ref(fs, n, i, REF_SUB))
                fs_fail(fs, -EILSEQ);
    return err;
}

static void drops_queue(struct fs *fs, struct list *drops)
{
    spin_lock(&fs->cache_lock);
    list_splice(&fs->drops, drops);
    atomic_store_relaxed(&fs->changed, true);
    spin_unlock(&fs->cache_lock);
}

static int drop_add(struct list *drops, struct fs_ptr ptr)
{
    struct drop *d = kmalloc(sizeof *d);
    if (!d)
        return -ENOMEM;
    d->ptr = ptr;
    list_append(drops, &d->link);
    return 0;
}

int bt_drop(struct fs *fs, struct fs_ptr ptr)
{
    struct list one = LIST_INIT(one);
    int err = drop_add(&one, ptr);
    if (!err)
        drops_queue(fs, &one);
    return err;
}

/* All memory and tables that dropping a dead node's children takes, before anything is changed. */
static int drop_prepare(struct fs *fs, struct node *n, struct list *children)
{
    int err = space_touch(fs, n->blk, 1);
    if (!err && !n->hdr.level)
        err = children_touch(fs, n);
    for (int i = 0; !err && n->hdr.level && i < n->hdr.nitems; i++)
        err = drop_add(children, node_child(n, i)->ptr);
    return err;
}

static void drops_free(struct list *drops)
{
    struct list *l;
    while ((l = list_pop(drops)))
        kfree(list_entry(l, struct drop, link));
}

/* A dead node that is still dirty need not be written any more. */
static void bury(struct fs *fs, struct node *n, bool died)
{
    spin_lock(&fs->cache_lock);
    atomic_store_relaxed(&fs->changed, true);
    if (died && n->dirty && n->refs == 1) {
        n->dirty = false;
        atomic_store_relaxed(&fs->ndirty, fs->ndirty - 1);
        list_del(&n->link);
        list_append(&fs->lru, &n->link);
    }
    n->refs--;
    spin_unlock(&fs->cache_lock);
}

/* One reference less; with the last one its children lose one each: later, by way of the list, so that depth stays bounded. */
static int drop_one(struct fs *fs, struct fs_ptr ptr)
{
    struct list children = LIST_INIT(children);
    struct node *n;
    uint64_t died = 0;
    int err = node_get(fs, ptr, NODE_EXT, &n);
    if (err)
        return err;
    err = drop_prepare(fs, n, &children);
    if (!err)
        err = space_sub(fs, ptr.blk, 1, &died);
    for (int i = 0; !err && died && !n->hdr.level && i < n->hdr.nitems; i++)
        if ((err = item_ref(fs, n, i, REF_SUB)))
            fs_fail(fs, err);
    if (!err && died)
        drops_queue(fs, &children);
    drops_free(&children);
    bury(fs, n, died);
    return err;
}

/* -ENOMEM: some are left and can be run again.  Other errors make the pool read-only. */
int drops_run(struct fs *fs)
{
    int err = 0;
    while (!err) {
        spin_lock(&fs->cache_lock);
        struct list *l = list_pop(&fs->drops);
        spin_unlock(&fs->cache_lock);
        if (!l)
            break;
        struct drop *d = list_entry(l, struct drop, link);
        err = drop_one(fs, d->ptr);
        if (err == -ENOMEM) {
            spin_lock(&fs->cache_lock);
            list_push(&fs->drops, l);
            spin_unlock(&fs->cache_lock);
            return err;
        }
        kfree(d);
    }
    return err ? fs_fail(fs, err) : 0;
}

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
    if (!err && shared && (err = children_add(b->fs, old)))
        node_free(b->fs, copy);
    if (err) {
        kfree(d);
        return err;
    }
    struct node_hdr h = copy->hdr;
    memcpy(copy->buf, old->buf, FS_BLOCK);
    h.nitems = old->hdr.nitems;
    copy->hdr = h;
    set_parent(b, parent, i, ptr_of(copy));
    if (shared) {
        struct list one = LIST_INIT(one);
        d->ptr = ptr_of(old);
        list_append(&one, &d->link);
        node_put(b->fs, old);
        drops_queue(b->fs, &one);
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
    append_items(right, *n, at);
    (*n)->hdr.nitems = at;
    if (!(*n)->hdr.level)
        leaf_pack(*n);
    inner_insert(parent, *i + 1, node_key(right, 0), ptr_of(right));
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
        inner_insert(*out, 0, (struct fs_key){ 0, 0 }, ptr_of(root));
        b->root = ptr_of(*out);
    }
    return err;
}

static int plant(struct btree *b, struct txn *t)
{
    struct node *n;
    int err = node_new(b->fs, t, b->kind, 0, &n);
    if (!err) {
        b->root = ptr_of(n);
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
        if (!err && !is_roomy(n)) {
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
        bool ok = fits(p.n[p.depth - 1], len);
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
    int i = position(leaf, k);
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
        p->i[p->depth++] = n->hdr.level ? child_index(n, k) : position(n, k);
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
    append_items(n, right, 0);
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
static uint64_t blocks_under(struct btree *b, struct node *n)
{
    uint64_t sum = leaf_blocks(n);
    for (int i = 0; n->hdr.level && i < n->hdr.nitems; i++) {
        struct node *child;
        if (node_get(b->fs, node_child(n, i)->ptr, b->kind, &child))
            continue;
        if (child->hdr.level < n->hdr.level)
            sum += blocks_under(b, child);
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
    uint64_t in_root = whole ? blocks_under(b, n) : 0;
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
            uint64_t in_leaf = blocks_under(b, n);
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
