/* Nodes of extent trees that several files share: references of their children, and what is owed when one dies. */
#include "kernel/fs/btree_int.h"

#include <errno.h>
#include <string.h>

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

int bt_children_add(struct fs *fs, struct node *n)
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

void bt_drops_queue(struct fs *fs, struct list *drops)
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
        bt_drops_queue(fs, &one);
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
        bt_drops_queue(fs, &children);
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
