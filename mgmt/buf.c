#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "kernel/lib/port.h"
#include "mgmt/buf.h"

void buf_init(struct buf *b, size_t max)
{
    *b = (struct buf){ .max = max };
}

void buf_free(struct buf *b)
{
    kfree(b->p);
    buf_init(b, b->max);
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    if (b->p)
        b->p[0] = 0;
}

static bool buf_room(struct buf *b, size_t len)
{
    if (b->failed || len > b->max || b->len > b->max - len) {
        b->failed = true;
        return false;
    }
    if (b->len + len < b->cap)
        return true;
    size_t cap = MAX(2 * b->cap, b->len + len + 256);
    char *p = kmalloc(cap);
    if (!p) {
        b->failed = true;
        return false;
    }
    if (b->len)
        memcpy(p, b->p, b->len);
    kfree(b->p);
    b->p = p, b->cap = cap;
    return true;
}

void buf_add(struct buf *b, const void *data, size_t len)
{
    if (!buf_room(b, len))
        return;
    if (len)
        memcpy(b->p + b->len, data, len);
    b->p[b->len += len] = 0;
}

void buf_byte(struct buf *b, char c) { buf_add(b, &c, 1); }
void buf_str(struct buf *b, const char *s) { buf_add(b, s, strlen(s)); }

void buf_fmt(struct buf *b, const char *fmt, ...)
{
    char text[513];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    buf_add(b, text, n < 0 ? 0 : MIN((size_t)n, sizeof text - 1));
}

void buf_pad(struct buf *b, char c, size_t n)
{
    while (n-- && !b->failed)
        buf_add(b, &c, 1);
}
