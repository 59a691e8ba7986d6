/* kernel/lib/port.h on Linux: clock, timers and deferred work. */
#include <pthread.h>
#include <time.h>
#include "kernel/lib/list.h"
#include "kernel/lib/pheap.h"
#include "tests/host/port_clock.h"
#include "tests/host/port_host.h"

#define UTC_2026 1767225600000000000ull
#define MANUAL_POLL_NS 200000           /* how soon waiters see a manual clock move */

/* The lock is a pthread mutex and not a spinlock: arming is allowed in atomic context, where sleeping is an error of the caller. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed, ran;     /* the queue's head or the mode changed; a callback ended */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct pheap queue;
static struct timer *running;
static pthread_t runner;
static bool manual;
static uint64_t manual_now, utc_base, drift;

/* ---- Clock ---- */

static uint64_t real_ns(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

uint64_t clock_ns(void) { return atomic_load(&manual) ? atomic_add(&manual_now, atomic_load(&drift)) : real_ns(CLOCK_MONOTONIC); }
void host_clock_drift(uint64_t ns) { atomic_store(&drift, ns); }

uint64_t clock_utc_ns(void)
{
    uint64_t base = atomic_load(&utc_base);
    if (base)
        return base + clock_ns();
    return atomic_load(&manual) ? UTC_2026 + clock_ns() : real_ns(CLOCK_REALTIME);
}

void host_set_utc(uint64_t ns) { atomic_store(&utc_base, ns); }

struct timespec host_clock_deadline(uint64_t deadline_ns)
{
    if (atomic_load(&manual))
        deadline_ns = real_ns(CLOCK_MONOTONIC) + MANUAL_POLL_NS;
    deadline_ns = MIN(deadline_ns, (uint64_t)INT64_MAX);
    return (struct timespec){ .tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000 };
}

/* ---- Timers ---- */

struct timer_state { struct pheap_node node; uint64_t armed; };
_Static_assert(sizeof(struct timer_state) <= sizeof(((struct timer *)0)->opaque), "opaque size");
static struct timer_state *ts(struct timer *t) { return (struct timer_state *)t->opaque; }
static struct timer *timer_of(struct pheap_node *n) { return container_of((uint64_t *)n, struct timer, opaque[0]); }

void timer_init(struct timer *t, void (*fn)(struct timer *))
{
    *t = (struct timer){ .fn = fn };
}

/* Runs the first timer if its time has come.  The lock is held on entry and exit, not around the callback. */
static bool run_one(uint64_t now)
{
    struct pheap_node *n = pheap_first(&queue);
    if (!n || n->key > now || running)
        return false;
    pheap_pop(&queue);
    struct timer *t = timer_of(n);
    ts(t)->armed = 0;
    running = t;
    runner = pthread_self();
    pthread_mutex_unlock(&lock);
    host_atomic_enter();
    t->fn(t);
    host_atomic_leave();
    pthread_mutex_lock(&lock);
    running = NULL;
    pthread_cond_broadcast(&ran);
    return true;
}

static void *timer_thread(void *arg)
{
    pthread_setname_np(pthread_self(), "timers");
    pthread_mutex_lock(&lock);
    for (;;) {
        struct pheap_node *n = pheap_first(&queue);
        if (atomic_load(&manual) || !n || running) {
            pthread_cond_wait(&changed, &lock);
        } else if (!run_one(real_ns(CLOCK_MONOTONIC))) {
            struct timespec when = host_clock_deadline(n->key);
            pthread_cond_timedwait(&changed, &lock, &when);
        }
    }
    return NULL;
}

static void start(void)
{
    pthread_condattr_t a;
    pthread_t id;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &a);
    pthread_cond_init(&ran, &a);
    if (pthread_create(&id, NULL, timer_thread, NULL))
        panic("no timer thread");
    pthread_detach(id);
}

void timer_arm(struct timer *t, uint64_t deadline_ns)
{
    if (!atomic_load(&manual))
        pthread_once(&once, start);
    pthread_mutex_lock(&lock);
    if (ts(t)->armed)
        pheap_remove(&queue, &ts(t)->node);
    t->deadline = deadline_ns;
    ts(t)->node.key = MIN(deadline_ns, (uint64_t)INT64_MAX);
    ts(t)->armed = 1;
    pheap_insert(&queue, &ts(t)->node);
    if (pheap_first(&queue) == &ts(t)->node && !atomic_load(&manual))
        pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

bool timer_cancel(struct timer *t)
{
    pthread_mutex_lock(&lock);
    bool was = ts(t)->armed;
    if (was)
        pheap_remove(&queue, &ts(t)->node);
    ts(t)->armed = 0;
    pthread_mutex_unlock(&lock);
    return was;
}

void timer_cancel_sync(struct timer *t)
{
    if (host_atomic_depth())
        panic("timer_cancel_sync in atomic context");
    pthread_mutex_lock(&lock);
    for (;;) {
        if (ts(t)->armed)
            pheap_remove(&queue, &ts(t)->node);
        ts(t)->armed = 0;
        if (running != t)
            break;
        ASSERT(!pthread_equal(runner, pthread_self()));
        pthread_cond_wait(&ran, &lock);
    }
    pthread_mutex_unlock(&lock);
}

void host_clock_manual(bool on)
{
    pthread_once(&once, start);
    pthread_mutex_lock(&lock);
    while (running)
        pthread_cond_wait(&ran, &lock);
    atomic_store(&manual_now, HOST_CLOCK_START);
    atomic_store(&manual, on);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

void host_clock_advance(uint64_t ns)
{
    ASSERT(atomic_load(&manual) && !host_atomic_depth());
    pthread_mutex_lock(&lock);
    uint64_t end = manual_now + ns;
    for (struct pheap_node *n; (n = pheap_first(&queue)) && n->key <= end; ) {
        atomic_store(&manual_now, MAX(manual_now, n->key));
        if (!run_one(end))
            pthread_cond_wait(&ran, &lock);     /* another thread advances too */
    }
    atomic_store(&manual_now, MAX(manual_now, end));
    pthread_mutex_unlock(&lock);
}

void host_clock_slip(uint64_t ns)
{
    ASSERT(atomic_load(&manual));
    atomic_add(&manual_now, ns);
}

uint64_t host_clock_next(void)
{
    pthread_mutex_lock(&lock);
    uint64_t next = queue.root ? timer_of(queue.root)->deadline : UINT64_MAX;
    pthread_mutex_unlock(&lock);
    return next;
}

/* ---- Work ---- */

struct work_state { struct list link; uint64_t queued; };
_Static_assert(sizeof(struct work_state) <= sizeof(((struct work *)0)->opaque), "opaque size");
static struct work_state *ws(struct work *w) { return (struct work_state *)w->opaque; }

static pthread_mutex_t work_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work_come = PTHREAD_COND_INITIALIZER, work_gone = PTHREAD_COND_INITIALIZER;
static pthread_once_t work_once = PTHREAD_ONCE_INIT;
static struct list work_list = LIST_INIT(work_list);
static struct work *work_running;       /* kept here: its function may free it */

static void *work_thread(void *arg)
{
    pthread_setname_np(pthread_self(), "work");
    pthread_mutex_lock(&work_lock);
    for (;;) {
        struct list *l = list_pop(&work_list);
        if (!l) {
            pthread_cond_wait(&work_come, &work_lock);
            continue;
        }
        struct work *w = container_of((uint64_t *)l, struct work, opaque[0]);
        ws(w)->queued = 0;
        work_running = w;
        pthread_mutex_unlock(&work_lock);
        w->fn(w);
        ASSERT(host_atomic_depth() == 0);
        pthread_mutex_lock(&work_lock);
        work_running = NULL;
        pthread_cond_broadcast(&work_gone);
    }
    return NULL;
}

static void work_start(void)
{
    pthread_t id;
    if (pthread_create(&id, NULL, work_thread, NULL))
        panic("no work thread");
    pthread_detach(id);
}

void work_init(struct work *w, void (*fn)(struct work *))
{
    *w = (struct work){ .fn = fn };
    list_init(&ws(w)->link);
}

bool work_queue(struct work *w)
{
    pthread_once(&work_once, work_start);
    pthread_mutex_lock(&work_lock);
    bool fresh = !ws(w)->queued;
    if (fresh) {
        ws(w)->queued = 1;
        list_append(&work_list, &ws(w)->link);
        pthread_cond_signal(&work_come);
    }
    pthread_mutex_unlock(&work_lock);
    return fresh;
}

void work_flush(struct work *w)
{
    if (host_atomic_depth())
        panic("work_flush in atomic context");
    pthread_mutex_lock(&work_lock);
    while (ws(w)->queued || work_running == w)
        pthread_cond_wait(&work_gone, &work_lock);
    pthread_mutex_unlock(&work_lock);
}
