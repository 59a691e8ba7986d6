/*
 * Inside kernel/sched.  Lock order: a wait object's own lock, then one run queue's.  Run queue locks are taken with interrupts off, a second one only by
 * trylock.
 *
 * Who may touch a thread's scheduling state: the holder of the lock of rq_of(t->cpu).  t->cpu changes only under the lock of the CPU it leaves.
 *   RUNNING   runs (on_cpu), or is on its queue, or is between two queues
 *   BLOCKING  still runs, has said that it will sleep unless woken; only the thread itself enters this state, without a lock
 *   BLOCKED   sleeps; while on_cpu is still set it is leaving its CPU, and a wake-up only sets RUNNING: finish_switch() requeues it
 *   WAKING    belongs to whoever moves it to the queue of t->cpu; nobody else touches it
 *   DEAD      for ever
 */
#pragma once
#include "kernel/sched/rq.h"
#include "kernel/sched/sched.h"
#include "kernel/x86/percpu.h"

enum thread_state { THREAD_RUNNING, THREAD_BLOCKING, THREAD_BLOCKED, THREAD_WAKING, THREAD_DEAD };
enum { FPU_NOWHERE = ~0u };

struct thread {
    uint64_t rsp;                       /* saved stack pointer while not on a CPU */
    uint32_t state;                     /* enum thread_state */
    uint32_t cpu;                       /* runs, waits or last ran here */
    bool on_cpu;                        /* its registers and stack are in use by a CPU */
    bool moved;                         /* changed CPU since its last load hook */
    uint8_t cls;
    uint32_t mutexes;                   /* held; a holder is not throttled */
    struct sched_ent ent;
    const struct thread_hooks *hooks;
    uint64_t run_ns, steal_ns;
    uint64_t kstack_top;
    /* FPU: NULL for kernel threads.  Registers of CPU fpu_cpu hold this state if that CPU's fpu_owner is this thread. */
    void *fpu, *fpu_detached;
    uint32_t fpu_cpu;

    void (*fn)(void *);
    void *arg;
    void *kstack, *own_fpu;             /* to free */
    struct cpuset cpus;                 /* where it may run */
    struct event done;
    struct list all;                    /* thread list */
    char name[24];
};

struct rq {
    struct spinlock lock;
    uint32_t cpu;
    bool started;                       /* the boot flow has become the idle thread */
    bool yield;                         /* the running thread asked to stand behind its peers once */
    struct rq_core core;
    struct thread *curr, *idle;         /* curr: who owns the CPU; during a switch already the next one */
    uint64_t curr_since;                /* accounted up to here */
    uint64_t slice_end;                 /* ~0: nobody waits */
    uint64_t balance_at, rotate_at;
    uint64_t load;                      /* weights of ready threads and of the running one; others read it without the lock */
    uint64_t switches, steals, pushes;
    struct thread idle_thread;
};

struct timer_base;

extern struct rq *sched_rqs[MAX_CPUS];
static inline struct rq *rq_of(unsigned cpu) { return sched_rqs[cpu]; }
static inline struct rq *this_rq(void) { return this_cpu()->sched; }
static inline bool cpuset_has(const struct cpuset *s, unsigned cpu) { return s->bits[cpu / 64] >> (cpu % 64) & 1; }

/* Locks without preemption accounting, for code that has interrupts off. */
void spin_lock_wait(struct spinlock *);
static inline bool raw_trylock(struct spinlock *l) { return !__atomic_exchange_n(&l->held, 1u, __ATOMIC_ACQUIRE); }
static inline void raw_lock(struct spinlock *l)
{
    if (unlikely(!raw_trylock(l)))
        spin_lock_wait(l);
}
static inline void raw_unlock(struct spinlock *l) { atomic_store(&l->held, 0u); }

static inline void softwork_set(unsigned bits) { __asm__ volatile("lock orl %0, %%gs:12" :: "ri"(bits) : "memory", "cc"); }
static inline void softwork_clear(unsigned bits) { __asm__ volatile("lock andl %0, %%gs:12" :: "ri"(~bits) : "memory", "cc"); }

/* switch.S: saves callee-saved registers and the stack pointer, goes on where the other thread left; returns the thread that was left. */
struct thread *switch_context(uint64_t *save_rsp, uint64_t load_rsp, struct thread *prev);
extern const char thread_entry_stub[];

static inline struct thread *thread_of(struct sched_ent *e) { return e ? container_of(e, struct thread, ent) : NULL; }
static inline bool may_run_on(const struct thread *t, unsigned cpu) { return cpuset_has(&t->cpus, cpu); }

/* runq.c.  Interrupts off; unless said otherwise the queue's lock is held. */
struct rq *runq_lock_of(struct thread *);                       /* takes the lock of the thread's queue, which it returns */
void runq_publish_load(struct rq *);
void runq_account(struct rq *, uint64_t now);                   /* brings the running thread's and the queue's virtual time up to date */
void runq_put(struct rq *, struct thread *, uint64_t now);      /* RUNNING, on no queue and no CPU; READY or THROTTLED after it */
void runq_take(struct rq *, struct thread *);
void runq_kick(struct rq *);                                    /* its CPU shall choose again */
void runq_kick_for(struct rq *, const struct thread *);         /* if the thread just put there makes that necessary */
void runq_put_and_kick(struct rq *, struct thread *, uint64_t now);
unsigned runq_choose_cpu(const struct thread *);                /* for a thread that wakes; takes an idle CPU's mark */
void runq_set_idle(unsigned cpu, bool idle);
/*
 * Moving a thread that is on no queue and no CPU needs no two locks: under the lock of its old CPU it becomes WAKING and belongs to the new CPU,
 * so that nobody else touches it, and its virtual time carries the difference only.  Then runq_arrive() without the old lock, which takes the new one.
 */
void runq_depart(struct rq *from, struct thread *, unsigned to);
void runq_arrive(struct thread *, bool woken);
/* An idle CPU takes the oldest cold waiter of the CPU that has most of them. */
void runq_steal(struct rq *, uint64_t now);
/* An overloaded one gives its oldest waiter to the CPU with the least load, if that is better or it is time to take turns. */
void runq_push(struct rq *, uint64_t now);
void sched_add_new(struct thread *);                            /* WAKING, t->cpu a hint; takes the lock */
bool sched_any_online(const struct cpuset *);

/* sched.c */
void thread_begin(struct thread *prev) __attribute__((noreturn));      /* first C code of a new thread */
void sched_may_sleep(const char *what);                                /* panics in atomic context */
/* timer.c */
void timer_init_cpu(void);
void timer_run(void);                   /* due callbacks of this CPU; preemption off, interrupts on */
void timer_set_slice(uint64_t ns);      /* when this CPU's scheduler wants SOFT_RESCHED; interrupts off; ~0: never */
/* work.c */
void work_init_cpu(void);
/* fpu.c */
void fpu_switch_out(struct thread *);
void fpu_switch_in(struct thread *);
