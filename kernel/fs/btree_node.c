/* Inside of a tree node: items in leaves, children in inner nodes. */
#include "kernel/fs/btree_int.h"

#include <errno.h>
#include <string.h>

int node_position(struct node *n, struct fs_key k)
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

unsigned leaf_used(struct node *n)
{
    unsigned sum = sizeof n->hdr + n->hdr.nitems * sizeof(struct node_item);
    for (int i = 0; i < n->hdr.nitems; i++)
        sum += node_item(n, i)->len;
    return sum;
}

unsigned node_used(struct node *n)
{
    return n->hdr.level ? sizeof n->hdr + n->hdr.nitems * sizeof(struct node_child) : leaf_used(n);
}

static unsigned node_max_value(const struct node *n)
{
    return n->hdr.kind == NODE_EXT ? sizeof(struct ext_rec) + 4 * EXT_MAX_CSUM : NODE_MAX_VALUE;
}

bool leaf_fits(struct node *leaf, unsigned len) { return leaf_used(leaf) + sizeof(struct node_item) + len <= FS_BLOCK; }

bool node_is_roomy(struct node *n)
{
    if (n->hdr.level)
        return n->hdr.nitems < NODE_MAX_CHILDREN;
    return leaf_used(n) + ROOM_ITEMS * (sizeof(struct node_item) + node_max_value(n)) <= FS_BLOCK;
}

static unsigned values_start(struct node *n)
{
    unsigned start = FS_BLOCK;
    for (int i = 0; i < n->hdr.nitems; i++)
        start = MIN(start, (unsigned)node_item(n, i)->off);
    return start;
}

void leaf_pack(struct node *n)
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

void leaf_remove(struct node *n, int i)
{
    memmove(node_item(n, i), node_item(n, i + 1), (n->hdr.nitems - i - 1) * sizeof(struct node_item));
    n->hdr.nitems--;
}

int leaf_insert(struct node *n, int i, struct fs_key key, const void *val, unsigned len)
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

void inner_insert(struct node *n, int i, struct fs_key key, struct fs_ptr ptr)
{
    memmove(node_child(n, i + 1), node_child(n, i), (n->hdr.nitems - i) * sizeof(struct node_child));
    *node_child(n, i) = (struct node_child){ key, ptr };
    n->hdr.nitems++;
}

void inner_remove(struct node *n, int i)
{
    memmove(node_child(n, i), node_child(n, i + 1), (n->hdr.nitems - i - 1) * sizeof(struct node_child));
    n->hdr.nitems--;
}

void node_append(struct node *dst, struct node *src, int from)
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
