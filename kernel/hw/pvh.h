/* x86/HVM direct boot ABI ("PVH"), Xen public headers arch-x86/hvm/start_info.h and elfnote.h. */
#pragma once
#include "kernel/lib/base.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18             /* name "Xen"; descriptor: 32-bit physical entry point */
#define HVM_START_MAGIC         0x336ec578u     /* EBX at entry points to the structure */

struct hvm_start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr;
    /* version 1 */
    uint64_t memmap_paddr;
    uint32_t memmap_entries, reserved;
};
_Static_assert(sizeof(struct hvm_start_info) == 56, "hvm_start_info");

struct hvm_modlist_entry { uint64_t paddr, size, cmdline_paddr, reserved; };
_Static_assert(sizeof(struct hvm_modlist_entry) == 32, "hvm_modlist_entry");

struct hvm_memmap_entry { uint64_t addr, size; uint32_t type, reserved; };      /* type as in E820 */
_Static_assert(sizeof(struct hvm_memmap_entry) == 24, "hvm_memmap_entry");
