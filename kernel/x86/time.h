/* Clock sources and clock events of the host.  clock_ns() and clock_utc_ns() are kernel/lib/port.h. */
#pragma once
#include "kernel/lib/base.h"

struct acpi;

/* Boot CPU: pick and calibrate the clock (TSC, else HPET, else ACPI PM timer).  Before it clock_ns() answers 0. */
void time_init(void);
void time_init_cpu(void);               /* clock event of this CPU; after APIC set-up */
void time_sync_ap(unsigned cpu);        /* boot CPU's half of the TSC check while cpu runs time_sync_self() */
void time_sync_self(void);

uint64_t tsc_hz(void);                  /* 0: not known */
bool     tsc_usable(void);              /* invariant (or virtual) and in step on all CPUs: clock_ns() runs by it */
const char *clock_source_name(void);
/* TSC value at a clock_ns() time and back; only meaningful when tsc_usable(). */
uint64_t tsc_from_ns(uint64_t ns);
uint64_t ns_from_tsc(uint64_t tsc);
uint64_t ns_from_tsc_delta(uint64_t ticks);

/* One event per CPU: an interrupt on this CPU at or soon after the deadline, replacing the one before; ~0 disarms.
 * Preemption off. The interrupt calls the handler in irq context. */
bool clockevent_arm(uint64_t deadline_ns);      /* false: it has passed, and nothing was armed; where the hardware sees to that by itself it fires at once and this is true */
void clockevent_set_handler(void (*fn)(void));
/* Before a CPU sleeps, interrupts off: an event that is overdue is taken here and now; true: there was one. */
bool clockevent_overdue(void);

/* Busy wait without interrupts or scheduler, for hardware delays. */
void delay_us(unsigned us);
/* Sign of life of this CPU for the watchdog; the idle loop, timer interrupts and kicks give it. */
void watchdog_touch(void);
