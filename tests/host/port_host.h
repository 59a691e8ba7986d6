/* What hosted tests may set in the Linux implementation of kernel/lib/port.h (tests/host/port_*.c). */
#pragma once
#include "kernel/lib/port.h"

/*
 * The clock is the real one, and a thread of its own runs due timers, until host_clock_manual(true): then time stands still at
 * HOST_CLOCK_START, and host_clock_advance() moves it, running due timers in deadline order in the caller's thread with
 * clock_ns() at each one's deadline (or at the time of the call, if that was already past).  Timers armed meanwhile run too
 * if they fall due.  Armed timers stay armed when the mode changes.
 */
#define HOST_CLOCK_START 1000000000ull
void host_clock_manual(bool manual);
void host_clock_advance(uint64_t ns);
/* Time goes on in the middle of a callback, as on a busy host; what falls due runs with the next advance.  Any context. */
void host_clock_slip(uint64_t ns);
void host_clock_drift(uint64_t ns);         /* every reading moves the manual clock on by so much: a CPU that is held up between two; 0: stands still */
/* Deadline of the earliest armed timer; UINT64_MAX: none. */
uint64_t host_clock_next(void);
/* clock_utc_ns() at clock_ns() == 0.  Default: real; in manual mode 2026-01-01. */
void host_set_utc(uint64_t ns);

/* CPU index of the calling thread (default 0) and the number of CPUs (default 1). */
void host_set_cpu(unsigned cpu);
void host_set_ncpus(unsigned n);

/* The next n allocations succeed, all later ones fail; n < 0: none fails (the default). */
void port_fail_alloc_after(int n);
unsigned long host_alloc_refused(void);        /* allocations that failed since that was called */
unsigned long port_alloc_count(void);          /* allocations not yet freed */
/* While on (nests), an allocation by the calling thread panics. */
void host_alloc_forbid(bool on);

/* random_bytes() becomes a repeatable sequence (fuzzers); 0: real again. */
void host_random_seed(uint64_t seed);

/* Called with the message instead of abort(); it must not return (longjmp).  NULL: abort. */
void host_on_panic(void (*fn)(const char *msg));

/*
 * Nesting of "must not sleep" on this thread: spinlocks, preempt_disable, timer callbacks.  Sleeping calls panic unless it is 0, and
 * a spinlock not had within 30 s panics too.
 */
unsigned host_atomic_depth(void);
void host_atomic_enter(void);
void host_atomic_leave(void);
