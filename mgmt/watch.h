/* Who wants to know that something changed: a list of events to post.  Watchers re-read the state after each wake-up. */
#pragma once
#include "kernel/lib/list.h"
#include "kernel/lib/port.h"

struct watchers { struct spinlock lock; struct list list; };
struct watch { struct list link; struct event *event; };

static inline void watch_init(struct watchers *w)
{
    w->lock = (struct spinlock)SPINLOCK_INIT;
    list_init(&w->list);
}

static inline void watch_add(struct watchers *w, struct watch *me, struct event *event)
{
    me->event = event;
    spin_lock(&w->lock);
    list_append(&w->list, &me->link);
    spin_unlock(&w->lock);
}

static inline void watch_del(struct watchers *w, struct watch *me)     /* afterwards the event is not touched any more */
{
    spin_lock(&w->lock);
    list_del(&me->link);
    spin_unlock(&w->lock);
}

static inline void watch_post(struct watchers *w)                       /* thread or atomic context */
{
    struct watch *me;
    spin_lock(&w->lock);
    list_for_each(me, &w->list, link)
        event_post(me->event);
    spin_unlock(&w->lock);
}
