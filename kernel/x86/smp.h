/* Other CPUs: start, kick, call, stop. */
#pragma once
#include "kernel/x86/percpu.h"

/* Boot CPU, once, interrupts may be off: start every enabled CPU of the MADT; they enter sched_start_cpu().  Late and dead ones are reported. */
void smp_start(hpa_t trampoline);       /* a free page below 1 MiB; 0: none */
/* Any context.  A kick makes the CPU leave guest mode (or HLT) and does nothing else; resched also runs its return path with SOFT_RESCHED set. */
void smp_kick(unsigned cpu);
void smp_resched(unsigned cpu);
/* Run fn(arg) in irq context on one CPU or on all other online CPUs and wait for the end.  Interrupts on, no lock held that fn or an interrupt takes. */
void smp_call_on(unsigned cpu, void (*fn)(void *), void *arg);
void smp_call_others(void (*fn)(void *), void *arg);
/* Drop translations of kernel addresses [va, va+len) on all CPUs; same context rules. */
void smp_flush_tlb(const void *va, size_t len);
/* Panic, reset: stop all others by NMI; any context; returns when they have stopped or after a bounded time. */
void smp_stop_others(void);
