/* Locks and waits of kernel/lib/port.h.  The spinlock functions are also inline: kernel/sched/inline/port_inline.h. */
#include "kernel/sched/thread.h"
#include "kernel/sched/torture.h"
#include "kernel/x86/cpu.h"

#define MUTEX_SPINS 200

/* ---- Spinlocks ---- */

void spin_lock_wait(struct spinlock *l)
{
    do {
        while (atomic_load_relaxed(&l->held))
            cpu_relax();
    } while (__atomic_exchange_n(&l->held, 1u, __ATOMIC_ACQUIRE));
}

void port_irq_disable(void) { irq_disable(); }
void port_irq_enable(void) { irq_enable(); }
void preempt_disable(void) { preempt_count_add(1); }

void preempt_enable(void)
{
    torture_point();
    if (preempt_count_sub(1) && cpu_softwork())
        sched_preempt_point();
}

void spin_lock(struct spinlock *l)
{
    preempt_disable();
    raw_lock(l);
}

bool spin_trylock(struct spinlock *l)
{
    preempt_disable();
    if (raw_trylock(l))
        return true;
    preempt_enable();
    return false;
}

void spin_unlock(struct spinlock *l)
{
    raw_unlock(l);
    preempt_enable();
}

unsigned long spin_lock_irqsave(struct spinlock *l)
{
    unsigned long flags = irq_save();
    preempt_count_add(1);
    raw_lock(l);
    return flags;
}

void spin_unlock_irqrestore(struct spinlock *l, unsigned long flags)
{
    raw_unlock(l);
    irq_restore(flags);
    preempt_enable();
}

unsigned port_cpu(void) { return cpu_index(); }
unsigned port_ncpus(void) { return percpu_count; }

/* ---- Sleeping with a time-out ---- */

struct alarm { struct timer t; struct thread *thread; };

static void alarm_rings(struct timer *t) { thread_wake(container_of(t, struct alarm, t)->thread); }

static void alarm_set(struct alarm *a, uint64_t deadline_ns)
{
    if (deadline_ns == ~0ull)
        return;
    a->thread = thread_self();
    timer_init(&a->t, alarm_rings);
    timer_arm(&a->t, deadline_ns);
}

static void alarm_clear(struct alarm *a, uint64_t deadline_ns)
{
    if (deadline_ns != ~0ull)
        timer_cancel_sync(&a->t);
}

void thread_sleep_until(uint64_t deadline_ns)
{
    struct alarm a;
    alarm_set(&a, deadline_ns);
    for (;;) {
        sched_prepare_block();
        if (clock_ns() >= deadline_ns)
            break;
        sched_block();
    }
    sched_cancel_block();
    alarm_clear(&a, deadline_ns);
}

/*
 * ---- Waiters ----
 * Each waits on a node of its own stack.  The waker marks and wakes it under the object's lock, and the waiter takes that lock once more before it goes
 * on: so neither the node, nor the object, nor the thread can be gone while the waker still uses it.
 */
struct waiter { struct list link; struct thread *thread; bool woken; };

static void waiter_add(struct list *head, struct waiter *w)
{
    w->thread = thread_self();
    w->woken = false;
    list_append(head, &w->link);
}

static void waiter_wake(struct waiter *w)
{
    list_del(&w->link);
    atomic_store(&w->woken, true);
    thread_wake(w->thread);
}

static void waiter_wait(struct waiter *w, uint64_t deadline_ns)
{
    for (;;) {
        sched_prepare_block();
        if (atomic_load(&w->woken) || (deadline_ns != ~0ull && clock_ns() >= deadline_ns))
            break;
        sched_block();
    }
    sched_cancel_block();
}

/*
 * ---- Mutex ----
 * word: owner | MUTEX_WAITERS.  Changed by compare-and-swap when nobody waits, else under the lock.  A late-comer may overtake a waiter that has just been
 * woken, once; a waiter overtaken is handed the mutex by the next unlock.
 */
enum { MUTEX_WAITERS = 1 };
struct mutex_state { uintptr_t word; struct spinlock lock; bool hand_over; struct list waiters; };
_Static_assert(sizeof(struct mutex_state) <= sizeof(struct mutex), "opaque size");
static struct mutex_state *ms(struct mutex *m) { return (struct mutex_state *)m->opaque; }

/* Boot code before sched_init_cpu() locks without anybody to compete with. */
static struct thread *self_or_boot(void)
{
    static struct thread boot;
    struct thread *t = cpu_current();
    return likely(t) ? t : &boot;
}

static struct thread *owner_of(uintptr_t word) { return (struct thread *)(word & ~(uintptr_t)MUTEX_WAITERS); }

void mutex_init(struct mutex *m)
{
    *ms(m) = (struct mutex_state){ 0 };
    list_init(&ms(m)->waiters);
}

static bool try_owner(struct mutex_state *s, uintptr_t expect, struct thread *self)
{
    return atomic_cas(&s->word, &expect, (uintptr_t)self);
}

bool mutex_trylock(struct mutex *m)
{
    struct thread *self = self_or_boot();
    if (!try_owner(ms(m), 0, self))
        return false;
    self->mutexes++;
    return true;
}

/* The owner may be about to unlock on another CPU. */
static bool spin_for_owner(struct mutex_state *s, struct thread *self)
{
    if (percpu_count == 1)
        return false;
    for (unsigned i = 0; i < MUTEX_SPINS; i++) {
        uintptr_t word = atomic_load_relaxed(&s->word);
        if (!word && try_owner(s, 0, self))
            return true;
        if (word & MUTEX_WAITERS)
            return false;
        cpu_relax();
    }
    return false;
}

__attribute__((noinline)) static void mutex_lock_slow(struct mutex_state *s, struct thread *self)
{
    struct waiter w;
    bool overtaken = false;
    sched_may_sleep("mutex_lock");
    if (spin_for_owner(s, self))
        return;
    spin_lock(&s->lock);
    for (;;) {
        uintptr_t word = atomic_or(&s->word, (uintptr_t)MUTEX_WAITERS);
        ASSERT(owner_of(word) != self || overtaken);
        if (overtaken && owner_of(word) == self)        /* handed over */
            break;
        if (!owner_of(word)) {
            atomic_store(&s->word, (uintptr_t)self | MUTEX_WAITERS);
            break;
        }
        waiter_add(&s->waiters, &w);
        if (overtaken) {                /* first in line, and the next unlock is for us */
            list_del(&w.link);
            list_push(&s->waiters, &w.link);
            s->hand_over = true;
        }
        spin_unlock(&s->lock);
        waiter_wait(&w, ~0ull);
        spin_lock(&s->lock);
        overtaken = true;
    }
    if (list_empty(&s->waiters))
        atomic_and(&s->word, ~(uintptr_t)MUTEX_WAITERS);
    spin_unlock(&s->lock);
}

void mutex_lock(struct mutex *m)
{
    struct mutex_state *s = ms(m);
    struct thread *self = self_or_boot();
    if (unlikely(!try_owner(s, 0, self)))
        mutex_lock_slow(s, self);
    self->mutexes++;
}

__attribute__((noinline)) static void mutex_unlock_slow(struct mutex_state *s, struct thread *self)
{
    spin_lock(&s->lock);
    ASSERT(owner_of(s->word) == self);
    struct waiter *w = list_first(&s->waiters, struct waiter, link);
    uintptr_t next = w && s->hand_over ? (uintptr_t)w->thread : 0;
    s->hand_over = false;
    atomic_store(&s->word, w ? next | MUTEX_WAITERS : 0);
    if (w)
        waiter_wake(w);
    spin_unlock(&s->lock);
}

void mutex_unlock(struct mutex *m)
{
    struct thread *self = self_or_boot();
    uintptr_t expect = (uintptr_t)self;
    self->mutexes--;
    if (unlikely(!atomic_cas(&ms(m)->word, &expect, (uintptr_t)0)))
        mutex_unlock_slow(ms(m), self);
}

/* ---- Condition ---- */
struct cond_state { struct spinlock lock; struct list waiters; };
_Static_assert(sizeof(struct cond_state) <= sizeof(struct cond), "opaque size");
static struct cond_state *cs(struct cond *c) { return (struct cond_state *)c->opaque; }

void cond_init(struct cond *c)
{
    *cs(c) = (struct cond_state){ 0 };
    list_init(&cs(c)->waiters);
}

bool cond_wait_until(struct cond *c, struct mutex *m, uint64_t deadline_ns)
{
    struct cond_state *s = cs(c);
    struct waiter w;
    struct alarm a;
    spin_lock(&s->lock);
    waiter_add(&s->waiters, &w);
    spin_unlock(&s->lock);
    mutex_unlock(m);
    alarm_set(&a, deadline_ns);
    waiter_wait(&w, deadline_ns);
    alarm_clear(&a, deadline_ns);
    spin_lock(&s->lock);
    if (!w.woken)
        list_del(&w.link);
    spin_unlock(&s->lock);
    mutex_lock(m);
    return w.woken;
}

void cond_wait(struct cond *c, struct mutex *m) { cond_wait_until(c, m, ~0ull); }

void cond_signal(struct cond *c)
{
    struct cond_state *s = cs(c);
    spin_lock(&s->lock);
    struct waiter *w = list_first(&s->waiters, struct waiter, link);
    if (w)
        waiter_wake(w);
    spin_unlock(&s->lock);
}

void cond_broadcast(struct cond *c)
{
    struct cond_state *s = cs(c);
    struct waiter *w;
    spin_lock(&s->lock);
    while ((w = list_first(&s->waiters, struct waiter, link)))
        waiter_wake(w);
    spin_unlock(&s->lock);
}

/* ---- Event ---- */
struct event_state { struct spinlock lock; bool posted; struct thread *waiter; };
_Static_assert(sizeof(struct event_state) <= sizeof(struct event), "opaque size");
static struct event_state *es(struct event *e) { return (struct event_state *)e->opaque; }

void event_init(struct event *e) { *es(e) = (struct event_state){ 0 }; }

void event_post(struct event *e)
{
    struct event_state *s = es(e);
    unsigned long flags = spin_lock_irqsave(&s->lock);
    s->posted = true;
    if (s->waiter)
        thread_wake(s->waiter);
    spin_unlock_irqrestore(&s->lock, flags);
}

static bool event_consume(struct event_state *s, bool give_up)
{
    unsigned long flags = spin_lock_irqsave(&s->lock);
    bool posted = s->posted;
    if (posted)
        s->posted = false;
    s->waiter = posted || give_up ? NULL : thread_self();
    spin_unlock_irqrestore(&s->lock, flags);
    return posted;
}

bool event_wait_until(struct event *e, uint64_t deadline_ns)
{
    struct event_state *s = es(e);
    struct alarm a;
    bool posted = event_consume(s, true), late = false;
    if (posted)
        return true;
    alarm_set(&a, deadline_ns);
    for (;;) {
        sched_prepare_block();
        late = deadline_ns != ~0ull && clock_ns() >= deadline_ns;
        posted = event_consume(s, late);
        if (posted || late)
            break;
        sched_block();
    }
    sched_cancel_block();
    alarm_clear(&a, deadline_ns);
    return posted;
}

void event_wait(struct event *e) { event_wait_until(e, ~0ull); }
