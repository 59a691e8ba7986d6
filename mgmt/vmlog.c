#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "mgmt/vmlog.h"

void vmlog_init(struct vmlog *l)
{
    memset(l, 0, sizeof *l);
    mutex_init(&l->lock);
}

void vmlog_fini(struct vmlog *l)
{
    for (; l->n; l->n--, l->first = (l->first + 1) % VMLOG_LINES)
        kfree(l->line[l->first].text);
}

void vmlog_add(struct vmlog *l, const char *fmt, ...)
{
    char text[300];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    size_t len = strlen(text);
    char *copy = kmalloc(len + 1);
    if (!copy)
        return;
    memcpy(copy, text, len + 1);
    mutex_lock(&l->lock);
    unsigned at = (l->first + l->n) % VMLOG_LINES;
    if (l->n == VMLOG_LINES) {
        kfree(l->line[at].text);
        l->first = (l->first + 1) % VMLOG_LINES;
    } else {
        l->n++;
    }
    l->line[at].utc = clock_utc_ns(), l->line[at].text = copy;
    mutex_unlock(&l->lock);
}

void vmlog_each(struct vmlog *l, void (*fn)(void *arg, uint64_t utc_ns, const char *text), void *arg)
{
    mutex_lock(&l->lock);
    for (unsigned i = 0; i < l->n; i++) {
        unsigned at = (l->first + i) % VMLOG_LINES;
        fn(arg, l->line[at].utc, l->line[at].text);
    }
    mutex_unlock(&l->lock);
}
