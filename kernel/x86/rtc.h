/* Wall clock from the CMOS clock's registers.  H: the conversion; reading is time-bounded and kernel only. */
#pragma once
#include "kernel/lib/base.h"

/* Registers as read, still in the clock's own format (register B tells which). */
struct rtc_time { uint8_t second, minute, hour, day, month, year, century, reg_b; };
/* Seconds since 1970; 0: not a date. century 0: years 70-99 are 19xx. */
uint64_t rtc_to_unix(const struct rtc_time *);
