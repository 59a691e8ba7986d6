/* The memory part of kernel/lib/port.h, on the kernel heap. */
#include <string.h>

#include "kernel/lib/port.h"
#include "kernel/mm/heap.h"

void *kmalloc(size_t size) { return heap_alloc(size, 16); }

void *kzalloc(size_t size)
{
    void *p = heap_alloc(size, 16);
    if (p)
        memset(p, 0, size);
    return p;
}

void *kmalloc_aligned(size_t size, size_t align) { return heap_alloc(size, align); }

void kfree(void *p) { heap_free(p); }
