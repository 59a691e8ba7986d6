/*
 * Kernel heap over the page allocator: size classes in slabs up to 2 KiB, whole pages above.  H; the kernel's kmalloc family is kernel/mm/kmalloc.c.
 */
#pragma once
#include "kernel/lib/base.h"

void *heap_alloc(size_t size, size_t align);    /* align: power of two up to 4096; NULL: no memory */
void  heap_free(void *);
uint64_t heap_bytes(void);                      /* pages held */
