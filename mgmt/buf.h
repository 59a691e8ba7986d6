/*
 * A growing byte buffer with a ceiling.  Failure (no memory, ceiling) is sticky, so that writers need no check per call; readers
 * look at `failed`.
 */
#pragma once
#include "kernel/lib/base.h"

struct buf { char *p; size_t len, cap, max; bool failed; };     /* p[len] is 0 once something was added */

void buf_init(struct buf *, size_t max);
void buf_free(struct buf *);            /* may be used again */
void buf_clear(struct buf *);           /* empty, memory kept */
void buf_add(struct buf *, const void *, size_t len);
void buf_byte(struct buf *, char);
void buf_str(struct buf *, const char *);
void buf_fmt(struct buf *, const char *fmt, ...) __printf_like(2, 3);   /* at most 512 bytes per call */
void buf_pad(struct buf *, char, size_t n);
static inline const char *buf_text(const struct buf *b) { return b->p ? b->p : ""; }
