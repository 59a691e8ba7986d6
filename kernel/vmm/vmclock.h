/*
 * vmclock: the one clock of a VM in nanoseconds.  Starts at 0, stands still while the VM is paused; feeds guest TSC, kvmclock, PIT, HPET, PM timer and
 * LAPIC timer.  vtimers fire in VM time: they stop and start with it.  (The RTC follows clock_utc_ns() instead.)
 */
#pragma once
#include "kernel/lib/list.h"
#include "kernel/lib/port.h"

struct vmclock {
    struct spinlock lock;       /* writers of running, offset, stopped_at; the list.  Outside vtimer locks, inside device locks */
    uint32_t seq;               /* odd while a writer is inside: vmclock_now() takes no lock */
    bool running;
    int64_t offset;             /* VM time = clock_ns() + offset while running */
    uint64_t stopped_at;        /* VM time while not running */
    struct list timers;         /* all vtimers */
};

struct vtimer {
    struct timer host;
    struct spinlock lock;       /* guards deadline and armed; innermost */
    struct vmclock *clock;
    void (*fn)(void *arg);      /* atomic context */
    void *arg;
    uint64_t deadline;          /* VM time; valid while armed */
    bool armed;
    uint64_t now;               /* VM time that the latest expiry saw; fn may take it for the time instead of reading the clock */
    struct list link;
};

void vmclock_init(struct vmclock *);                    /* stopped at 0 */
/* Any context, no lock. */
uint64_t vmclock_now(struct vmclock *);
void vmclock_start(struct vmclock *);                   /* idempotent; arms all vtimers */
void vmclock_stop(struct vmclock *);                    /* idempotent */
void vmclock_set(struct vmclock *, uint64_t ns);        /* stopped only: after loading a snapshot */

void vtimer_init(struct vtimer *, struct vmclock *, void (*fn)(void *), void *arg);
void vtimer_arm(struct vtimer *, uint64_t vm_ns);       /* any context but irq; from its own callback too */
/* True: it was armed and will not fire.  False: idle, or fn may be running right now on another CPU: fn checks its device's state under the device's lock. */
bool vtimer_cancel(struct vtimer *);
void vtimer_destroy(struct vtimer *);                   /* cancels and waits; thread context */
