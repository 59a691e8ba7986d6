/* Host address space: direct map of RAM, kernel image, device registers, kernel stacks.  Everything W^X; tables by kernel/mm/ptab.h. */
#pragma once
#include "kernel/mm/ptab.h"

#define PHYSMAP_BASE    0xffff888000000000ull   /* 64 TiB */
#define MMIO_BASE       0xffffc90000000000ull   /* device registers; 1 TiB, never reused */
#define MMIO_END        0xffffca0000000000ull
#define STACK_BASE      0xffffca0000000000ull   /* kernel stacks between guard pages */
#define STACK_END       0xffffcb0000000000ull
#define KSTACK_SIZE     (32 * 1024)

struct bootinfo;

/* Boot CPU, once page_alloc works: builds the final tables, switches to them, drops the boot loader's identity mapping. */
void vmap_init(const struct bootinfo *);
hpa_t vmap_root(void);                  /* CR3 of every CPU */

/* Map device memory; page granularity inside, any pa/len outside.  The same page must not be mapped with two types.  Thread context or boot; NULL: no memory,
 * or the range is RAM.  Never unmapped for devices that exist; mmio_unmap is for probes. */
void *mmio_map(hpa_t pa, size_t len, enum pt_memtype);
void  mmio_unmap(void *va, size_t len);
/* Firmware tables: RAM-like but outside the direct map (ACPI, reserved); WB, read-only. */
const void *firmware_map(hpa_t pa, size_t len);

/* Kernel stack of KSTACK_SIZE bytes with an unmapped page below and above; returns its lowest address; NULL: no memory.  Thread context. */
void *kstack_alloc(void);
void  kstack_free(void *);              /* keeps the mapping for the next alloc: no TLB flush */
/* Does va lie in a guard page of a kernel stack?  Any context. */
bool  kstack_is_guard(uintptr_t va);

/* For the start of other CPUs: map [pa, pa+len) at its own address, executable, or take that away (no flush: the caller has other CPUs drop it). -ENOMEM. */
int  vmap_identity(hpa_t pa, uint64_t len, bool on);
