/*
 * All that code which also runs on Linux may ask of its surroundings.  Two implementations: the kernel's (kernel/sched,
 * kernel/mm, kernel/x86) and tests/host/port_*.c on pthreads.  Code above never asks which one it has.
 *
 * Contexts, used in every header of this tree:
 *   thread      may sleep (mutex, cond, kmalloc of any size, blk waits)
 *   atomic      holds a spinlock or is a timer callback: preemption off, interrupts ON; may spin-lock, arm timers, wake; never sleeps
 *   irq         hard interrupt handler: interrupts off; may only use *_irqsave locks, wake, raise soft work
 * Timer callbacks run in atomic context, never inside another spinlock holder on the same CPU, so device locks need no irqsave.
 */
#pragma once
#include "kernel/lib/base.h"

/* ---- Failure of our own code.  Never reachable by anything a guest, a disk or the network can choose. ---- */
__attribute__((noreturn, cold)) void panic(const char *fmt, ...) __printf_like(1, 2);
#define ASSERT(c) do { if (unlikely(!(c))) panic("%s:%d: assertion failed: %s", __FILE__, __LINE__, #c); } while (0)

/* ---- Spinlocks.  FIFO is not promised.  Held with preemption off; taken in threads and timer callbacks. ---- */
struct spinlock { uint32_t held; };
#define SPINLOCK_INIT { 0 }
void spin_lock(struct spinlock *);
bool spin_trylock(struct spinlock *) __must_check;
void spin_unlock(struct spinlock *);
/* For the few locks that a hard interrupt handler takes too. */
unsigned long spin_lock_irqsave(struct spinlock *) __must_check;
void spin_unlock_irqrestore(struct spinlock *, unsigned long flags);
void preempt_disable(void);
void preempt_enable(void);
/* Thread context, interrupts on: nothing comes between on this CPU.  Not nested, no locks inside. */
void port_irq_disable(void);
void port_irq_enable(void);

/* ---- Sleeping lock and condition; thread context only.  Zero-filled memory is not initialised: call the init. ---- */
struct mutex { uint64_t opaque[8]; };
struct cond  { uint64_t opaque[8]; };
void mutex_init(struct mutex *);
void mutex_lock(struct mutex *);
bool mutex_trylock(struct mutex *) __must_check;
void mutex_unlock(struct mutex *);
void cond_init(struct cond *);
void cond_wait(struct cond *, struct mutex *);
/* Waits until signalled or clock_ns() >= deadline; false on time-out. */
bool cond_wait_until(struct cond *, struct mutex *, uint64_t deadline_ns);
void cond_signal(struct cond *);        /* also from atomic context */
void cond_broadcast(struct cond *);     /* also from atomic context */

/* One-shot or repeated wake-up of one waiter, from any context (irq too).  post() before wait() is remembered. */
struct event { uint64_t opaque[6]; };
void event_init(struct event *);
void event_post(struct event *);
void event_wait(struct event *);                                   /* consumes the post */
bool event_wait_until(struct event *, uint64_t deadline_ns);       /* false on time-out */

/* ---- Clock: nanoseconds since boot, monotonic on all CPUs. ---- */
uint64_t clock_ns(void);
/* Wall clock: nanoseconds since 1970-01-01 UTC. */
uint64_t clock_utc_ns(void);

/* ---- Timers: one-shot; `fn` runs in atomic context at or soon after the deadline. ---- */
struct timer {
    void (*fn)(struct timer *);
    uint64_t deadline;          /* clock_ns() units; valid while armed */
    uint64_t opaque[6];         /* queue links and CPU, the port's own */
};
void timer_init(struct timer *, void (*fn)(struct timer *));
/* Arms or re-arms; any context but irq; allowed from its own callback.  A deadline in the past fires at once (not inline). */
void timer_arm(struct timer *, uint64_t deadline_ns);
/* True when the timer was armed and will not fire.  False: idle, or its callback may be running right now on another CPU. */
bool timer_cancel(struct timer *);
/* After it the callback is not running and will not run.  Thread context, without any lock the callback takes. */
void timer_cancel_sync(struct timer *);

/* ---- Deferred work: `fn` runs once in a worker thread per queueing; queueing a queued item is a no-op (returns false). ---- */
struct work {
    void (*fn)(struct work *);
    uint64_t opaque[6];
};
void work_init(struct work *, void (*fn)(struct work *));
bool work_queue(struct work *);         /* any context but irq */
void work_flush(struct work *);         /* thread context: waits until it is neither queued nor running */

/* ---- Threads (hosted tests and kernel services; vCPU threads are made by kernel/sched directly). ---- */
struct thread;
struct thread *thread_start(const char *name, void (*fn)(void *), void *arg);      /* NULL: no memory */
void thread_join(struct thread *);      /* waits for the end and frees it; exactly once per thread */
void thread_yield(void);
void thread_sleep_until(uint64_t deadline_ns);

/* ---- Memory.  NULL when there is none; callers handle it.  Not in irq context. ---- */
void *kmalloc(size_t size) __attribute__((malloc));                 /* 16-byte aligned, contents undefined */
void *kzalloc(size_t size) __attribute__((malloc));
void *kmalloc_aligned(size_t size, size_t align) __attribute__((malloc)); /* align: power of two up to 4096 */
void  kfree(void *);                                                /* NULL is allowed */

/* ---- CPUs. ---- */
#define MAX_CPUS 256
unsigned port_cpu(void);                /* index of this CPU, 0 .. port_ncpus()-1; stable only with preemption off */
unsigned port_ncpus(void);

/* Cryptographically strong bytes (CSPRNG); blocks at no time, panics if used before it is seeded. */
void random_bytes(void *buf, size_t len);

/* The kernel's hot functions inline; an empty file elsewhere. */
#include "port_inline.h"
