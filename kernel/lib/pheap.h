/*
 * Intrusive pairing heap, smallest key first: insert and peek O(1), removal O(log n) amortised, no allocation.  The owner's lock
 * protects it.  Keys compare as signed differences, so virtual times may wrap.  Equal keys leave in no promised order.
 */
#pragma once
#include "kernel/lib/base.h"

struct pheap_node {
    struct pheap_node *child, *next;
    struct pheap_node *prev;            /* elder sibling, or the parent of a first child; NULL: the root */
    uint64_t key;
};
struct pheap { struct pheap_node *root; };

static inline bool pheap_before(const struct pheap_node *a, const struct pheap_node *b) { return (int64_t)(a->key - b->key) < 0; }

/* Joins two heaps; the root that was there first (a) wins ties. */
static inline struct pheap_node *pheap_meld(struct pheap_node *a, struct pheap_node *b)
{
    if (pheap_before(b, a)) {
        struct pheap_node *t = a;
        a = b, b = t;
    }
    b->prev = a;
    b->next = a->child;
    if (b->next)
        b->next->prev = b;
    a->child = b;
    a->next = a->prev = NULL;
    return a;
}

static inline struct pheap_node *pheap_first(const struct pheap *h) { return h->root; }

static inline void pheap_insert(struct pheap *h, struct pheap_node *n)       /* n->key is set */
{
    n->child = n->next = n->prev = NULL;
    h->root = h->root ? pheap_meld(h->root, n) : n;
}

/* Two-pass merge of a list of siblings; NULL for an empty list. */
static inline struct pheap_node *pheap_merge_list(struct pheap_node *n)
{
    struct pheap_node *pairs = NULL, *root;
    while (n) {
        struct pheap_node *a = n, *b = a->next;
        if (b) {
            n = b->next;
            a = pheap_meld(a, b);
        } else {
            n = NULL;
        }
        a->next = pairs;
        pairs = a;
    }
    root = pairs;
    if (!root)
        return NULL;
    pairs = root->next;
    root->next = root->prev = NULL;
    while (pairs) {
        struct pheap_node *rest = pairs->next;
        root = pheap_meld(root, pairs);
        pairs = rest;
    }
    return root;
}

static inline void pheap_remove(struct pheap *h, struct pheap_node *n)
{
    struct pheap_node *sub = pheap_merge_list(n->child);
    if (h->root == n) {
        h->root = sub;
        return;
    }
    if (n->prev->child == n)
        n->prev->child = n->next;
    else
        n->prev->next = n->next;
    if (n->next)
        n->next->prev = n->prev;
    if (sub)
        h->root = pheap_meld(h->root, sub);
}

static inline struct pheap_node *pheap_pop(struct pheap *h)
{
    struct pheap_node *n = h->root;
    if (n)
        h->root = pheap_merge_list(n->child);
    return n;
}
