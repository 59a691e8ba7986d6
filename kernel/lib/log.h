/* Kernel log: leveled, time-stamped lines into a ring and to the consoles.  Any context.  Implemented in kernel/console/log.c. */
#pragma once
#include "kernel/lib/base.h"

enum log_level { LOG_ERR, LOG_WARN, LOG_INFO, LOG_DEBUG };

void log_write(enum log_level, const char *area, const char *fmt, ...) __printf_like(3, 4);
#define log_err(area, ...)   log_write(LOG_ERR, area, __VA_ARGS__)
#define log_warn(area, ...)  log_write(LOG_WARN, area, __VA_ARGS__)
#define log_info(area, ...)  log_write(LOG_INFO, area, __VA_ARGS__)
#define log_debug(area, ...) log_write(LOG_DEBUG, area, __VA_ARGS__)

/* At most `burst` lines per second pass; the next line that passes tells how many did not.  For all that a guest can cause. */
struct ratelimit { uint64_t window_start; uint32_t count, suppressed; };
bool ratelimit_ok(struct ratelimit *, uint32_t burst);
#define log_limited(rl, level, area, ...) do { if (ratelimit_ok(rl, 5)) log_write(level, area, __VA_ARGS__); } while (0)
