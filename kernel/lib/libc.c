/* What newlib asks of its surroundings: memory, and a way to stop.  Its reentrancy argument is of no use here. */
#include <malloc.h>
#include <reent.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/lib/port.h"

/* malloc'ed blocks carry their size for realloc; kmalloc'ed ones are another family. */
struct block { size_t size, unused; uint8_t data[]; };
static struct block *block_of(void *p) { return container_of((uint8_t (*)[])p, struct block, data); }

void *_malloc_r(struct _reent *r, size_t size)
{
    struct block *b = size < SIZE_MAX - sizeof(*b) ? kmalloc(sizeof(*b) + size) : NULL;
    if (!b)
        return NULL;
    b->size = size;
    return b->data;
}

void _free_r(struct _reent *r, void *p)
{
    if (p)
        kfree(block_of(p));
}

void *_calloc_r(struct _reent *r, size_t n, size_t size)
{
    size_t bytes;
    void *p = __builtin_mul_overflow(n, size, &bytes) ? NULL : _malloc_r(r, bytes);
    return p ? memset(p, 0, bytes) : NULL;
}

void *_realloc_r(struct _reent *r, void *old, size_t size)
{
    void *p = _malloc_r(r, size);
    if (p && old) {
        memcpy(p, old, MIN(size, block_of(old)->size));
        _free_r(r, old);
    }
    return p;
}

__attribute__((noreturn)) void abort(void) { panic("abort() called"); }

/* What gcc's code asks of libgcc, which is not linked. */
int __popcountdi2(long v);
int __popcountdi2(long v)
{
    uint64_t x = (uint64_t)v;
    x -= x >> 1 & 0x5555555555555555ull;
    x = (x & 0x3333333333333333ull) + (x >> 2 & 0x3333333333333333ull);
    return (int)(((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0full) * 0x0101010101010101ull >> 56);
}
