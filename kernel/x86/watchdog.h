/* Names CPUs that do not answer interrupts, or leave timers and switches undone, for 10 s. */
#pragma once
void watchdog_start(void);      /* each CPU, after sched_init_cpu() */
