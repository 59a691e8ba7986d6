/* Names CPUs that do not answer interrupts, or do not reschedule, for 10 s. */
#pragma once
void watchdog_start(void);      /* boot CPU, after sched_init_cpu() */
void watchdog_tick(void);       /* timer interrupt of this CPU */
