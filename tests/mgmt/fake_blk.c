/* Disks that are only opened and closed: the management layer never reads them. */
#include <stdio.h>
#include "kernel/block/blk.h"
#include "kernel/lib/port.h"

static void fake_close(struct blk *b) { kfree(b); }
static const struct blk_ops ops = { .close = fake_close };

static struct blk *fake_create(const char *name, uint64_t size, bool read_only)
{
    struct blk *b = kzalloc(sizeof *b);
    if (!b)
        return NULL;
    b->ops = &ops, b->size = size;
    b->limits.read_only = read_only;
    snprintf(b->name, sizeof b->name, "%s", name);
    return b;
}

__attribute__((weak)) struct blk *blk_ram_create(const char *name, void *base, uint64_t size, bool read_only)
{
    return fake_create(name, size, read_only);
}
__attribute__((weak)) struct blk *blk_overlay_create(const char *name, struct blk *base, uint64_t limit)
{
    return fake_create(name, base->size, false);
}
__attribute__((weak)) void blk_close(struct blk *b) { b->ops->close(b); }
