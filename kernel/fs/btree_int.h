/* Inside of the trees: btree.c changes them, btree_node.c knows the inside of a node, btree_share.c what copies of files share. */
#pragma once
#include "kernel/fs/fs_int.h"

#define ROOM_ITEMS 3            /* what bt_prepare keeps room for in a leaf */

/* ---- btree_node.c: a node that is read, or dirty and of a tree whose lock is held ---- */
int node_position(struct node *, struct fs_key);        /* the last with key <= the given one; -1: none */
unsigned leaf_used(struct node *);                      /* bytes */
unsigned node_used(struct node *);
bool leaf_fits(struct node *leaf, unsigned len);
bool node_is_roomy(struct node *);                      /* ROOM_ITEMS more fit, or one child */
void leaf_pack(struct node *);                          /* values move to the end of the block without gaps */
int leaf_insert(struct node *, int i, struct fs_key, const void *val, unsigned len);   /* -EILSEQ: no room */
void leaf_remove(struct node *, int i);
void inner_insert(struct node *, int i, struct fs_key, struct fs_ptr);
void inner_remove(struct node *, int i);
void node_append(struct node *dst, struct node *src, int from);        /* items [from, end) of src, which is left alone */
static inline struct fs_ptr node_ptr(const struct node *n) { return (struct fs_ptr){ n->blk, n->gen }; }

/* ---- btree_share.c ---- */
int bt_children_add(struct fs *, struct node *);        /* one more parent for each child; all or nothing */
void bt_drops_queue(struct fs *, struct list *drops);   /* of struct drop: settled before the commit */
