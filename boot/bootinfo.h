/*
 * What the kernel knows when it starts, whoever loaded it: GRUB (multiboot2), boot/uefi (our loader) or a PVH-capable emulator.
 * The parsers turn hostile or broken input into this struct or a sentence.  H: no allocation, no globals.
 * Multiboot2 Specification version 2.0; x86/HVM direct boot ABI.
 */
#pragma once
#include "boot/boot.h"
#include "kernel/lib/base.h"

enum bootmem_type { BOOTMEM_RAM = 1, BOOTMEM_RESERVED, BOOTMEM_ACPI, BOOTMEM_NVS, BOOTMEM_BAD, BOOTMEM_LOADER /* RAM once modules are done with */ };

struct bootmem { uint64_t base, len; enum bootmem_type type; };

struct bootmod {
    uint64_t base, len;         /* host physical; page aligned base (PVH: as the loader chose) */
    char name[128];             /* module command line as given, NUL terminated, cut if longer */
};

struct bootfb {
    uint64_t base;              /* host physical, may lie above 4 GiB; 0: no framebuffer */
    uint32_t width, height, pitch;      /* pixels, pixels, bytes per line */
    uint8_t bpp, red_pos, red_len, green_pos, green_len, blue_pos, blue_len;
    bool text;                  /* EGA text mode at base instead of pixels; width and height in characters */
};

enum { BOOT_MAX_MEM = 512, BOOT_MAX_MODS = 256 };

struct bootinfo {
    char loader[64];
    char cmdline[1024];
    struct bootmem mem[BOOT_MAX_MEM];   /* after bootinfo_finish: sorted, disjoint, RAM trimmed to whole pages, overlaps won by the stricter type */
    int nmem;
    struct bootmod mods[BOOT_MAX_MODS];
    int nmods;
    struct bootfb fb;
    uint64_t rsdp;              /* host physical of the ACPI RSDP (a copy in the info block counts: rsdp_copy); 0: search the BIOS area */
    uint8_t rsdp_copy[36];
    uint32_t rsdp_copy_len;
    uint8_t seed[BOOT_SEED_BYTES];      /* random numbers of the firmware, if have_seed; secret: to be wiped by the one who takes them */
    bool have_seed;
    uint64_t efi_systab;        /* 0: BIOS */
};

/* Parse a multiboot2 information block of at most `max` bytes.  0 or -errno with a sentence in err[]. */
int bootinfo_multiboot2(struct bootinfo *, const void *info, size_t max, char *err, size_t errlen);
/* Parse a PVH hvm_start_info; `at` turns a physical address range into a pointer, or NULL. */
int bootinfo_pvh(struct bootinfo *, uint64_t start_info, void *(*at)(uint64_t pa, size_t len), char *err, size_t errlen);
/*
 * Sort and clean the memory map; called by both.  Modules become BOOTMEM_LOADER.  The kernel image itself and the information block are
 * not marked: the block is not needed any more, the image's place is the kernel's own knowledge.  -EINVAL: no usable RAM.
 */
int bootinfo_finish(struct bootinfo *, char *err, size_t errlen);
/*
 * Value of `key=` on the command line copied to val (cut to len - 1 characters); false if absent.  A bare `key` gives an empty value.
 * The last one wins.  Double quotes keep blanks together and are taken off.
 */
bool bootinfo_option(const struct bootinfo *, const char *key, char *val, size_t len);
