/* Multiboot Specification version 0.6.96: what a kernel file declares and what it is told. */
#pragma once
#include "kernel/lib/base.h"

#define MULTIBOOT_MAGIC         0x1badb002u     /* in the first 8192 bytes of the file, 4-aligned */
#define MULTIBOOT_BOOTED        0x2badb002u     /* EAX at entry; EBX = struct multiboot_info */
#define MULTIBOOT_SEARCH        8192

struct multiboot_header {
    uint32_t magic, flags;
#define MULTIBOOT_PAGE_ALIGN    BIT(0)
#define MULTIBOOT_MEMORY_INFO   BIT(1)
#define MULTIBOOT_VIDEO_MODE    BIT(2)
#define MULTIBOOT_REQUIRED      0xffffu
#define MULTIBOOT_AOUT_KLUDGE   BIT(16)         /* the address fields are valid */
    uint32_t checksum;
    uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};
_Static_assert(sizeof(struct multiboot_header) == 32, "multiboot header");

struct multiboot_info {
    uint32_t flags;
#define MULTIBOOT_INFO_MEMORY   BIT(0)
#define MULTIBOOT_INFO_CMDLINE  BIT(2)
#define MULTIBOOT_INFO_MODS     BIT(3)
#define MULTIBOOT_INFO_MMAP     BIT(6)
#define MULTIBOOT_INFO_LOADER   BIT(9)
    uint32_t mem_lower, mem_upper;              /* KiB from 0 and from 1 MiB */
    uint32_t boot_device, cmdline, mods_count, mods_addr;
    uint32_t syms[4];
    uint32_t mmap_length, mmap_addr, drives_length, drives_addr, config_table, boot_loader_name, apm_table;
    uint32_t vbe_control_info, vbe_mode_info;
    uint16_t vbe_mode, vbe_interface_seg, vbe_interface_off, vbe_interface_len;
};
_Static_assert(sizeof(struct multiboot_info) == 88, "multiboot information");

struct multiboot_mod { uint32_t start, end, string, reserved; };
_Static_assert(sizeof(struct multiboot_mod) == 16, "multiboot module");

struct multiboot_mmap { uint32_t size; uint32_t base_lo, base_hi, len_lo, len_hi; uint32_t type; };     /* size: of what follows it */
_Static_assert(sizeof(struct multiboot_mmap) == 24, "multiboot memory map entry");
