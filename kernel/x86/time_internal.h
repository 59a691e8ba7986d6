/* Between time.c and the rest of kernel/x86. */
#pragma once
#include "kernel/lib/base.h"

void clockevent_interrupt(void);                /* VEC_TIMER */
void time_set_base(void);                       /* the TSC now is clock_ns() 0 */
void time_distrust_tsc(const char *why);
uint64_t rtc_read_utc_ns(void);                 /* CMOS clock; 0: there is none or it is not set */
