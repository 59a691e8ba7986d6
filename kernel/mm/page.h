/*
 * Physical memory: buddy allocator over the boot memory map, per-CPU caches of 4 KiB pages, a bounded pool of zeroed 2 MiB pages that idle CPUs refill,
 * and the ledger of promised memory.  H: hosted tests give it an arena.
 */
#pragma once
#include "kernel/lib/base.h"

enum { ORDER_4K = 0, ORDER_2M = 9, ORDER_1G = 18 };
enum { PAGE_ZERO = 1 << 0, PAGE_DMA32 = 1 << 1 /* below 4 GiB */, PAGE_RESERVED_OK = 1 << 2 /* taken from a promise made by mem_reserve */ };

/* Host physical ↔ kernel virtual through the direct map, which holds RAM only. */
extern uintptr_t physmap_base;
static inline void *pa_to_va(hpa_t pa) { return (void *)(physmap_base + pa); }
static inline hpa_t va_to_pa(const void *va) { return (uintptr_t)va - physmap_base; }    /* direct-map addresses only */

/* Boot: tell the ranges of usable RAM once, then allocate.  Page-aligned, disjoint. */
void page_init(void);
void page_add_range(hpa_t base, uint64_t len);

/* 2^order pages, naturally aligned.  0 = none (0 is never a valid page).  Without PAGE_RESERVED_OK an allocation never eats into promised memory. */
hpa_t page_alloc(unsigned order, unsigned flags);
void  page_free(hpa_t, unsigned order);
void  page_clear(hpa_t, unsigned order);
/* Reference counts for guest pages (4 KiB or 2 MiB head page): alloc gives 1; page_put frees at 0. */
void  page_get(hpa_t);
void  page_put(hpa_t, unsigned order);

/* A block of order `from`, as allocated, becomes blocks of order `to` with one reference each, which are freed one by one. */
void  page_split(hpa_t, unsigned from, unsigned to);

/* Promises (vm start): reserve bytes or -ENOMEM; nothing is allocated.  Each later allocation with PAGE_RESERVED_OK must be accounted by the promise holder. */
int   mem_reserve(uint64_t bytes);
void  mem_unreserve(uint64_t bytes);

/* Zeroed 2 MiB page from the pool, O(1); 0: it is empty, allocate and zero one. */
hpa_t page_take_zeroed_2m(unsigned flags);
bool  page_pool_refill_step(void);      /* idle CPUs: zero a bit more; false: the pool is full or memory is short */

struct mem_stats { uint64_t total, free, reserved, kernel_image, heap, zero_pool; };
void mem_stats(struct mem_stats *);
