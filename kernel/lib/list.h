/* Intrusive circular doubly-linked list.  The owner's lock protects it; a node that is on no list points at itself. */
#pragma once
#include "kernel/lib/base.h"

struct list { struct list *next, *prev; };

#define LIST_INIT(name) { &(name), &(name) }

static inline void list_init(struct list *l) { l->next = l->prev = l; }
static inline bool list_empty(const struct list *l) { return l->next == l; }

static inline void list_insert(struct list *n, struct list *prev, struct list *next)
{
    n->prev = prev, n->next = next;
    prev->next = n, next->prev = n;
}
static inline void list_push(struct list *head, struct list *n) { list_insert(n, head, head->next); }
static inline void list_append(struct list *head, struct list *n) { list_insert(n, head->prev, head); }

static inline void list_del(struct list *n)
{
    n->prev->next = n->next, n->next->prev = n->prev;
    list_init(n);
}

static inline struct list *list_pop(struct list *head)      /* first node, or NULL */
{
    struct list *n = head->next;
    if (n == head)
        return NULL;
    list_del(n);
    return n;
}

/* Move all nodes of `from` to the end of `to`; `from` is empty afterwards. */
static inline void list_splice(struct list *to, struct list *from)
{
    if (list_empty(from))
        return;
    from->next->prev = to->prev, to->prev->next = from->next;
    from->prev->next = to, to->prev = from->prev;
    list_init(from);
}

#define list_entry(p, type, field) container_of(p, type, field)
#define list_first(head, type, field) (list_empty(head) ? NULL : list_entry((head)->next, type, field))
#define list_for_each(v, head, field) \
    for ((v) = list_entry((head)->next, __typeof__(*(v)), field); &(v)->field != (head); \
         (v) = list_entry((v)->field.next, __typeof__(*(v)), field))
#define list_for_each_safe(v, tmp, head, field) \
    for ((v) = list_entry((head)->next, __typeof__(*(v)), field), (tmp) = list_entry((v)->field.next, __typeof__(*(v)), field); \
         &(v)->field != (head); (v) = (tmp), (tmp) = list_entry((tmp)->field.next, __typeof__(*(v)), field))
