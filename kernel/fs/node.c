/* Tree nodes in memory: a cache of clean ones, and the dirty ones of the open transaction group. */
#include "kernel/fs/fs_int.h"

#include <errno.h>
#include <string.h>
#include "kernel/lib/crc.h"

static struct list *bucket(struct fs *fs, uint64_t blk)
{
    return &fs->hash[(blk * 0x9e3779b97f4a7c15ull >> 40) & (fs->hash_size - 1)];
}

static struct node *find(struct fs *fs, struct fs_ptr ptr)
{
    struct node *n;
    list_for_each(n, bucket(fs, ptr.blk), hash)
        if (n->blk == ptr.blk && n->gen == ptr.gen)
            return n;
    return NULL;
}

/* ---- Checks: after them the rest of the code may trust what it reads ---- */

static uint32_t node_crc(struct fs *fs, const uint8_t *buf)
{
    return crc32c(fs->seed, buf + sizeof(uint32_t), FS_BLOCK - sizeof(uint32_t));
}

static int check_ext(const uint8_t *buf, const struct node_item *it, const struct node_item *next)
{
    struct ext_rec e;
    if (it->len < sizeof e || it->key.b)
        return -EILSEQ;
    memcpy(&e, buf + it->off, sizeof e);
    bool csum = e.flags & EXT_CSUM;
    uint64_t end = it->key.a + e.len;
    if (!e.len || e.len > (csum ? EXT_MAX_CSUM : EXT_MAX) || e.flags & ~(EXT_CSUM | EXT_UNWRITTEN) || e.flags == (EXT_CSUM | EXT_UNWRITTEN) ||
        it->len != sizeof e + (csum ? 4 * e.len : 0) || !e.pblk || end < it->key.a || end >> 52 || (next && end > next->key.a))
        return -EILSEQ;
    return 0;
}

static int check_leaf(const struct node_hdr *h, const uint8_t *buf)
{
    const struct node_item *it = (const struct node_item *)(buf + sizeof *h);
    size_t room = sizeof *h + h->nitems * sizeof *it, used = room;
    if (room > FS_BLOCK)
        return -EILSEQ;
    for (int i = 0; i < h->nitems; i++, it++) {
        const struct node_item *next = i + 1 < h->nitems ? it + 1 : NULL;
        used += it->len;
        if (it->len > NODE_MAX_VALUE || it->off < room || it->off + it->len > FS_BLOCK || (next && key_cmp(it->key, next->key) >= 0))
            return -EILSEQ;
        if (h->kind == NODE_EXT && check_ext(buf, it, next))
            return -EILSEQ;
    }
    return used <= FS_BLOCK ? 0 : -EILSEQ;
}

static int check_inner(const struct node_hdr *h, const uint8_t *buf)
{
    const struct node_child *c = (const struct node_child *)(buf + sizeof *h);
    if (!h->nitems || h->nitems > NODE_MAX_CHILDREN || h->level > NODE_MAX_LEVEL)
        return -EILSEQ;
    for (int i = 0; i < h->nitems; i++)
        if (!c[i].ptr.blk || c[i].ptr.gen > h->gen || (i && key_cmp(c[i - 1].key, c[i].key) >= 0))
            return -EILSEQ;
    return 0;
}

static int check(struct fs *fs, struct fs_ptr ptr, uint8_t kind, const uint8_t *buf)
{
    const struct node_hdr *h = (const struct node_hdr *)buf;
    if (h->crc != node_crc(fs, buf) || h->blk != ptr.blk || h->gen != ptr.gen || h->kind != kind)
        return -EILSEQ;
    return h->level ? check_inner(h, buf) : check_leaf(h, buf);
}

int node_read(struct fs *fs, struct fs_ptr ptr, uint8_t kind, uint8_t *buf)
{
    if (!ptr.blk || ptr.blk >= fs_blocks(fs))
        return -EILSEQ;
    int err = blk_read(fs->dev, ptr.blk << FS_BLOCK_SHIFT, buf, FS_BLOCK);
    return err ? err : check(fs, ptr, kind, buf);
}

/* ---- Cache ---- */

static struct node *node_alloc(struct fs_ptr ptr)
{
    struct node *n = kmalloc(sizeof *n);
    if (n) {
        list_init(&n->hash);
        list_init(&n->link);
        n->blk = ptr.blk, n->gen = ptr.gen;
        n->refs = 1, n->dirty = n->committing = false;
    }
    return n;
}

static void insert(struct fs *fs, struct node *n)
{
    list_push(bucket(fs, n->blk), &n->hash);
    fs->ncached++;
}

static struct node *cached(struct fs *fs, struct fs_ptr ptr)
{
    struct node *n = find(fs, ptr);
    if (n) {
        n->refs++;
        if (!n->dirty && !n->committing) {
            list_del(&n->link);
            list_append(&fs->lru, &n->link);
        }
    }
    return n;
}

/* At most two go per addition, so that a burst of dirty nodes is worked off without a pause. */
static void evict(struct fs *fs)
{
    struct node *n, *tmp;
    int tries = 8;
    list_for_each_safe(n, tmp, &fs->lru, link) {
        if (fs->ncached <= fs->cache_max || !tries--)
            return;
        if (n->refs)
            continue;
        list_del(&n->link);
        list_del(&n->hash);
        fs->ncached--;
        kfree(n);
    }
}

int node_get(struct fs *fs, struct fs_ptr ptr, uint8_t kind, struct node **out)
{
    spin_lock(&fs->cache_lock);
    struct node *n = cached(fs, ptr), *other;
    spin_unlock(&fs->cache_lock);
    if (n) {
        *out = n;
        if (n->hdr.kind == kind)
            return 0;
        node_put(fs, n);
        return -EILSEQ;
    }
    n = node_alloc(ptr);
    if (!n)
        return -ENOMEM;
    int err = node_read(fs, ptr, kind, n->buf);
    if (err) {
        kfree(n);
        return err;
    }
    spin_lock(&fs->cache_lock);
    other = cached(fs, ptr);            /* two trees that share the node may both have read it */
    if (!other) {
        insert(fs, n);
        list_append(&fs->lru, &n->link);
        evict(fs);
    }
    spin_unlock(&fs->cache_lock);
    if (other)
        kfree(n);
    *out = other ? other : n;
    return 0;
}

void node_put(struct fs *fs, struct node *n)
{
    if (!n)
        return;
    spin_lock(&fs->cache_lock);
    n->refs--;
    spin_unlock(&fs->cache_lock);
}

int node_new(struct fs *fs, struct txn *t, uint8_t kind, uint8_t level, struct node **out)
{
    uint64_t got;
    struct node *n = node_alloc((struct fs_ptr){ 0, fs->gen });
    if (!n)
        return -ENOMEM;
    int err = 0;
    if (!t->resv && !(err = space_promise(fs, 1, true)))        /* deeper than promised for */
        t->resv = 1;
    if (!err)
        err = space_alloc(fs, 0, 1, ALLOC_REF, true, &n->blk, &got);
    if (err) {
        kfree(n);
        return err;
    }
    t->resv--;
    space_unpromise(fs, 1);
    memset(n->buf, 0, FS_BLOCK);
    n->hdr = (struct node_hdr){ .level = level, .kind = kind, .blk = n->blk, .gen = n->gen };
    n->dirty = true;
    spin_lock(&fs->cache_lock);
    insert(fs, n);
    list_append(&fs->dirty, &n->link);
    atomic_store_relaxed(&fs->ndirty, fs->ndirty + 1);
    atomic_store_relaxed(&fs->changed, true);
    spin_unlock(&fs->cache_lock);
    *out = n;
    return 0;
}

void node_free(struct fs *fs, struct node *n)
{
    int err = space_sub(fs, n->blk, 1, NULL);
    spin_lock(&fs->cache_lock);
    n->refs--;
    atomic_store_relaxed(&fs->changed, true);
    if (n->dirty) {
        n->dirty = false;
        atomic_store_relaxed(&fs->ndirty, fs->ndirty - 1);
        list_del(&n->link);
        list_del(&n->hash);
        fs->ncached--;
        ASSERT(!n->refs);
        kfree(n);
    }
    spin_unlock(&fs->cache_lock);
    if (err)
        fs_fail(fs, err);
}

void node_seal(struct fs *fs, struct node *n) { n->hdr.crc = node_crc(fs, n->buf); }

void nodes_fini(struct fs *fs)
{
    for (unsigned i = 0; fs->hash && i < fs->hash_size; i++)
        while (!list_empty(&fs->hash[i])) {
            struct node *n = list_first(&fs->hash[i], struct node, hash);
            list_del(&n->hash);
            kfree(n);
        }
    kfree(fs->hash);
}
