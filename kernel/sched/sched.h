/*
 * Threads and per-CPU run queues: preemptive, proportional share (virtual run time with weights), caps in percent, pinning.
 * A vCPU is a thread.  Runnable vCPUs cannot starve management threads nor the reverse.  Locks, timers, work: kernel/lib/port.h.
 */
#pragma once
#include "kernel/lib/list.h"
#include "kernel/lib/port.h"

enum thread_class { THREAD_KERNEL, THREAD_SERVICE /* may use SSE */, THREAD_VCPU };
struct cpuset { uint64_t bits[MAX_CPUS / 64]; };

/* Called with preemption off and interrupts on, on the CPU concerned: the thread is about to leave the CPU / has just been given it.
 * The scheduler saves and restores FPU state around them by itself (sched_fpu below). */
struct thread_hooks { void (*put)(void *arg); void (*load)(void *arg, bool migrated); void *arg; };

/* A budget of CPU time, of one thread or shared by several: a VM's vCPUs.  Opaque; the lock is inside a run queue's. */
struct sched_cap { struct spinlock lock; uint64_t budget, used, period; };
void sched_cap_init(struct sched_cap *, unsigned percent /* of one CPU; 0 = none */);
void sched_cap_set(struct sched_cap *, unsigned percent);       /* in force for a thread with its next thread_set_share() */

struct thread_attr {
    const char *name;
    enum thread_class cls;
    unsigned weight;                    /* 1 .. 10000; 0 = 100 */
    unsigned cap;                       /* percent of one CPU; 0 = none */
    struct sched_cap *shared_cap;       /* instead of cap, or NULL; must outlive the thread */
    const struct cpuset *cpus;          /* NULL: all; copied; names at least one online CPU */
    const struct thread_hooks *hooks;   /* must outlive the thread */
    void *fpu;                          /* vCPU: its guest XSAVE area (sched_fpu_size() bytes, 64-aligned), NULL: the scheduler's own */
};
struct thread *thread_create(const struct thread_attr *, void (*fn)(void *), void *arg);  /* created runnable; NULL: no memory */
struct thread *thread_self(void);
const char *thread_name(const struct thread *);
int  thread_set_share(struct thread *, unsigned weight, unsigned cap /* ignored where the thread has a shared one */);
int  thread_set_cpus(struct thread *, const struct cpuset *);
uint64_t thread_run_ns(const struct thread *);          /* time on CPU */
uint64_t thread_steal_ns(const struct thread *);        /* time runnable but not running */
uint64_t thread_own_steal_ns(void);                     /* the same of the caller, up to when it got its CPU */
unsigned thread_cpu(const struct thread *);             /* CPU it runs or last ran on */
void thread_exit(void) __attribute__((noreturn));
/* Other threads should get the CPU before this one goes on (PAUSE-spinning vCPU): goes behind its peers for one turn, as rq_yield() says. */
void thread_yield_hint(void);
/* Is there scheduler work (a switch, a timer callback) for this CPU?  Read with interrupts off before entering a guest; if so, enable interrupts, be
 * preemptible and call sched_preempt_point(), which does it. */
bool sched_need_resched(void);
void sched_preempt_point(void);
/* Per CPU, before its first switch; the boot flow may create threads and arm timers after it, but not sleep: what must sleep belongs in a thread. */
void sched_init_cpu(void);
__attribute__((noreturn)) void sched_start_cpu(void);   /* the boot flow becomes this CPU's idle thread */
/* Sleep of the current thread as a low-level pair (HLT of a vCPU): from preempt-safe context
 *   sched_prepare_block(); if (condition) sched_cancel_block(); else sched_block();
 * thread_wake() from any context (irq too) after making the condition true never gets lost.  sched_block() may also return without it: look again. */
void sched_prepare_block(void);
void sched_cancel_block(void);
void sched_block(void);
void thread_wake(struct thread *);
size_t sched_fpu_size(void);            /* bytes for the host's full XCR0; more in kernel/sched/fpu.h */
/* Iterates all threads (host top); fn runs under the list lock. */
struct thread_info { const char *name; enum thread_class cls; unsigned cpu; char state; uint64_t run_ns, steal_ns; };
void thread_each(void (*fn)(void *arg, const struct thread_info *), void *arg);
