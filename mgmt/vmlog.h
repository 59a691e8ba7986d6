/* What happened to a VM, with times: the last events and crash reports.  Thread context. */
#pragma once
#include "kernel/lib/port.h"

enum { VMLOG_LINES = 256 };

struct vmlog { struct mutex lock; struct { uint64_t utc; char *text; } line[VMLOG_LINES]; unsigned first, n; };

void vmlog_init(struct vmlog *);
void vmlog_fini(struct vmlog *);
void vmlog_add(struct vmlog *, const char *fmt, ...) __printf_like(2, 3);
/* Oldest first, under the lock. */
void vmlog_each(struct vmlog *, void (*fn)(void *arg, uint64_t utc_ns, const char *text), void *arg);
