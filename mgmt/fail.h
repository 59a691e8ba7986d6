/* Exit codes and the sentence that goes with them.  Every failure says what was wrong, with which object, and what to do next. */
#pragma once
#include "kernel/lib/base.h"

enum exit_code {
    EX_DONE = 0, EX_FAILED = 1, EX_USAGE = 2, EX_NOTFOUND = 3, EX_STATE = 4 /* wrong state, or exists */,
    EX_PERM = 5, EX_RESOURCE = 6, EX_TIMEOUT = 7, EX_IO = 8, EX_UNSUPPORTED = 9, EX_INTERRUPTED = 130,
};

struct fail { int code; char message[320]; char hint[240]; };

/* Sets code and message, clears the hint; returns code. */
int fail_set(struct fail *, int code, const char *fmt, ...) __printf_like(3, 4);
void fail_hint(struct fail *, const char *fmt, ...) __printf_like(2, 3);
/* The exit code that tells about a -errno. */
int fail_code(int err);
