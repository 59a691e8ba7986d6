/* kernel/lib/log.h on Linux: to stderr when JOIST_LOG is set in the environment. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"

void log_write(enum log_level level, const char *area, const char *fmt, ...)
{
    char line[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    if (getenv("JOIST_LOG"))
        fprintf(stderr, "%c %s: %s\n", "EWID"[level], area, line);
}

bool ratelimit_ok(struct ratelimit *r, uint32_t burst)
{
    uint64_t now = clock_ns(), start = atomic_load(&r->window_start);
    if (!start || now - start >= 1000000000) {
        if (atomic_cas(&r->window_start, &start, now ? now : 1)) {
            uint32_t lost = atomic_xchg(&r->suppressed, 0u);
            atomic_store(&r->count, 0u);
            if (lost)
                log_write(LOG_WARN, "log", "%u lines not shown", lost);
        }
    }
    if (atomic_add(&r->count, 1u) <= burst)
        return true;
    atomic_add(&r->suppressed, 1u);
    return false;
}
