/* kernel/lib/port.h on Linux: locks, waits and threads. */
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "kernel/sched/fpu.h"
#include "tests/host/port_clock.h"
#include "tests/host/port_host.h"

#define SPIN_LIMIT_S 30

static __thread unsigned atomic_depth;
static __thread unsigned cpu;
static unsigned ncpus = 1;

unsigned host_atomic_depth(void) { return atomic_depth; }
void host_atomic_enter(void) { atomic_depth++; }

void host_atomic_leave(void)
{
    ASSERT(atomic_depth > 0);
    atomic_depth--;
}

static void may_sleep(const char *what)
{
    if (atomic_depth)
        panic("%s in atomic context (depth %u)", what, atomic_depth);
}

unsigned port_cpu(void) { return cpu; }
unsigned port_ncpus(void) { return atomic_load_relaxed(&ncpus); }
void host_set_cpu(unsigned n) { cpu = n; }
void host_set_ncpus(unsigned n) { atomic_store_relaxed(&ncpus, n); }
void port_irq_disable(void) { host_atomic_enter(); }
void port_irq_enable(void) { host_atomic_leave(); }
void preempt_disable(void) { host_atomic_enter(); }
void preempt_enable(void) { host_atomic_leave(); }

/* ---- Spinlocks ---- */

bool spin_trylock(struct spinlock *l)
{
    if (atomic_xchg(&l->held, 1u))
        return false;
    host_atomic_enter();
    return true;
}

static void spin_slow(struct spinlock *l)
{
    time_t start = time(NULL);
    for (unsigned n = 0; atomic_xchg(&l->held, 1u); n++) {
        sched_yield();
        if (n % 1024 == 1023 && time(NULL) - start > SPIN_LIMIT_S)
            panic("spinlock %p: not had for %d s", (void *)l, SPIN_LIMIT_S);
    }
}

void spin_lock(struct spinlock *l)
{
    if (unlikely(atomic_xchg(&l->held, 1u)))
        spin_slow(l);
    host_atomic_enter();
}

void spin_unlock(struct spinlock *l)
{
    ASSERT(atomic_load_relaxed(&l->held) == 1);
    atomic_store(&l->held, 0u);
    host_atomic_leave();
}

unsigned long spin_lock_irqsave(struct spinlock *l)
{
    spin_lock(l);
    return 0;
}
void spin_unlock_irqrestore(struct spinlock *l, unsigned long flags) { spin_unlock(l); }

/* ---- Mutex and condition ---- */

_Static_assert(sizeof(pthread_mutex_t) <= sizeof(struct mutex), "opaque size");
_Static_assert(sizeof(pthread_cond_t) <= sizeof(struct cond), "opaque size");
static pthread_mutex_t *pm(struct mutex *m) { return (pthread_mutex_t *)m->opaque; }
static pthread_cond_t *pc(struct cond *c) { return (pthread_cond_t *)c->opaque; }

static void must(int err, const char *what)
{
    if (err)
        panic("%s: %s", what, strerror(err));
}

void mutex_init(struct mutex *m)
{
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_settype(&a, PTHREAD_MUTEX_ERRORCHECK);
    must(pthread_mutex_init(pm(m), &a), "mutex_init");
    pthread_mutexattr_destroy(&a);
}
void mutex_lock(struct mutex *m)
{
    may_sleep("mutex_lock");
    must(pthread_mutex_lock(pm(m)), "mutex_lock");
}
bool mutex_trylock(struct mutex *m) { return pthread_mutex_trylock(pm(m)) == 0; }
void mutex_unlock(struct mutex *m) { must(pthread_mutex_unlock(pm(m)), "mutex_unlock"); }

void cond_init(struct cond *c)
{
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    must(pthread_cond_init(pc(c), &a), "cond_init");
    pthread_condattr_destroy(&a);
}

void cond_wait(struct cond *c, struct mutex *m)
{
    may_sleep("cond_wait");
    must(pthread_cond_wait(pc(c), pm(m)), "cond_wait");
}

bool cond_wait_until(struct cond *c, struct mutex *m, uint64_t deadline_ns)
{
    may_sleep("cond_wait_until");
    for (;;) {
        if (clock_ns() >= deadline_ns)
            return false;
        struct timespec ts = host_clock_deadline(deadline_ns);
        int err = pthread_cond_timedwait(pc(c), pm(m), &ts);
        if (err == 0)
            return true;
        if (err != ETIMEDOUT)
            must(err, "cond_wait_until");
    }
}
void cond_signal(struct cond *c) { pthread_cond_signal(pc(c)); }
void cond_broadcast(struct cond *c) { pthread_cond_broadcast(pc(c)); }

/* ---- Event: a futex word, so that a poster touches nothing of an event which its waiter already freed ---- */

static uint32_t *word(struct event *e) { return (uint32_t *)e->opaque; }

void event_init(struct event *e) { atomic_store(word(e), 0u); }

void event_post(struct event *e)
{
    uint32_t *w = word(e);
    if (!atomic_xchg(w, 1u))
        syscall(SYS_futex, w, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void event_wait(struct event *e)
{
    may_sleep("event_wait");
    while (!atomic_xchg(word(e), 0u))
        syscall(SYS_futex, word(e), FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

bool event_wait_until(struct event *e, uint64_t deadline_ns)
{
    may_sleep("event_wait_until");
    while (!atomic_xchg(word(e), 0u)) {
        if (clock_ns() >= deadline_ns)
            return false;
        struct timespec ts = host_clock_deadline(deadline_ns);
        syscall(SYS_futex, word(e), FUTEX_WAIT_BITSET_PRIVATE, 0, &ts, NULL, FUTEX_BITSET_MATCH_ANY);
    }
    return true;
}

/* ---- Threads ---- */

struct thread {
    pthread_t id;
    void (*fn)(void *);
    void *arg;
    const struct thread_hooks *hooks;
    struct event wake;
    unsigned cpu;
    char name[16];
};

static __thread struct thread *self;

static void *thread_main(void *arg)
{
    struct thread *t = arg;
    self = t;
    host_set_cpu(t->cpu);
    pthread_setname_np(pthread_self(), t->name);
    if (t->hooks)
        t->hooks->load(t->hooks->arg, true);
    t->fn(t->arg);
    ASSERT(atomic_depth == 0);
    return NULL;
}

static struct thread *start(const char *name, const struct thread_hooks *hooks, void (*fn)(void *), void *arg)
{
    static unsigned next_cpu;
    struct thread *t = kzalloc(sizeof *t);
    if (!t)
        return NULL;
    t->fn = fn, t->arg = arg, t->hooks = hooks;
    t->cpu = hooks ? atomic_add(&next_cpu, 1) % port_ncpus() : 0;
    event_init(&t->wake);
    strncpy(t->name, name, sizeof t->name - 1);
    if (pthread_create(&t->id, NULL, thread_main, t)) {
        kfree(t);
        return NULL;
    }
    return t;
}

struct thread *thread_start(const char *name, void (*fn)(void *), void *arg) { return start(name, NULL, fn, arg); }

/* ---- The part of kernel/sched/sched.h that kernel/vmm needs: a thread per vCPU, its hooks called once, weights and caps ignored. ---- */

struct thread *thread_create(const struct thread_attr *a, void (*fn)(void *), void *arg) { return start(a->name, a->hooks, fn, arg); }
struct thread *thread_self(void) { return self; }
void thread_exit(void) { pthread_exit(NULL); }
void thread_wake(struct thread *t) { event_post(&t->wake); }
void sched_prepare_block(void) {}
void sched_cancel_block(void) {}
/* A wake-up may be left over from before: callers check their condition in a loop, as the contract has it. */
void sched_block(void) { event_wait(&self->wake); }
bool sched_need_resched(void) { return false; }
void sched_preempt_point(void) {}
void thread_yield_hint(void) { sched_yield(); }
int thread_set_share(struct thread *t, unsigned weight, unsigned cap) { return 0; }
uint64_t thread_steal_ns(const struct thread *t) { return 0; }
uint64_t thread_own_steal_ns(void) { return 0; }
uint64_t thread_run_ns(const struct thread *t) { return 0; }
size_t sched_fpu_size(void) { return 1024; }
void fpu_area_init(void *area) { memset(area, 0, sched_fpu_size()); }
void fpu_area_sanitize(void *area) {}
void fpu_detach(void) {}
void fpu_attach(void) {}

void thread_join(struct thread *t)
{
    may_sleep("thread_join");
    must(pthread_join(t->id, NULL), "thread_join");
    kfree(t);
}

void thread_yield(void) { sched_yield(); }

void thread_sleep_until(uint64_t deadline_ns)
{
    may_sleep("thread_sleep_until");
    while (clock_ns() < deadline_ns) {
        struct timespec ts = host_clock_deadline(deadline_ns);
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
    }
}
