/* The Linux/x86 Boot Protocol, version 2.15 (Documentation/arch/x86/boot.rst, zero-page.rst). */
#pragma once
#include "kernel/lib/base.h"

/* Offsets in the file and, the same, in struct boot_params. */
#define LINUX_SETUP_HDR         0x1f1   /* first byte of the header */
#define LINUX_HDR_END_BYTE      0x201   /* header ends at 202h + this byte */
#define LINUX_HDR_ROOM          0x290   /* and never beyond */
#define LINUX_BOOT_FLAG         0xaa55
#define LINUX_MAGIC             0x53726448      /* "HdrS" */

struct linux_setup_header {
    uint8_t setup_sects;                /* 512-byte sectors of real-mode code after the first; 0 means 4 */
    uint16_t root_flags;
    uint32_t syssize;
    uint16_t ram_size, vid_mode, root_dev, boot_flag, jump;
    uint32_t header;                    /* LINUX_MAGIC */
    uint16_t version;                   /* 020Ah = 2.10 */
    uint32_t realmode_swtch;
    uint16_t start_sys_seg, kernel_version;
    uint8_t type_of_loader;             /* FFh: one without a number */
    uint8_t loadflags;
#define LINUX_LOADED_HIGH       BIT(0)
    uint16_t setup_move_size;
    uint32_t code32_start, ramdisk_image, ramdisk_size, bootsect_kludge;
    uint16_t heap_end_ptr;
    uint8_t ext_loader_ver, ext_loader_type;
    uint32_t cmd_line_ptr;
    uint32_t initrd_addr_max;           /* last byte an initrd may occupy */
    uint32_t kernel_alignment;
    uint8_t relocatable_kernel, min_alignment;
    uint16_t xloadflags;
#define LINUX_XLF_KERNEL_64     BIT(0)  /* 64-bit entry at 200h */
    uint32_t cmdline_size;              /* without the terminating zero */
    uint32_t hardware_subarch;
    uint64_t hardware_subarch_data;
    uint32_t payload_offset, payload_length;
    uint64_t setup_data, pref_address;
    uint32_t init_size;                 /* contiguous memory from the load address that the kernel needs before it reads the memory map */
    uint32_t handover_offset, kernel_info_offset;
} __attribute__((packed));
_Static_assert(offsetof(struct linux_setup_header, header) == 0x202 - LINUX_SETUP_HDR, "Linux setup header");
_Static_assert(offsetof(struct linux_setup_header, initrd_addr_max) == 0x22c - LINUX_SETUP_HDR, "Linux setup header");
_Static_assert(offsetof(struct linux_setup_header, pref_address) == 0x258 - LINUX_SETUP_HDR, "Linux setup header");
_Static_assert(sizeof(struct linux_setup_header) == 0x26c - LINUX_SETUP_HDR, "Linux setup header");

/* struct boot_params ("zero page"), 4096 bytes. */
#define LINUX_BP_BYTES          4096
#define LINUX_BP_RSDP           0x070   /* uint64_t */
#define LINUX_BP_E820_ENTRIES   0x1e8   /* uint8_t */
#define LINUX_BP_E820_TABLE     0x2d0
struct linux_e820 { uint64_t addr, size; uint32_t type; } __attribute__((packed));
_Static_assert(sizeof(struct linux_e820) == 20, "Linux E820 entry");
