/*
 * Direct boot: put a kernel file into guest memory and make the CPU state it expects, as firmware and boot loader would have left them.
 * load.c has what the formats share; load_linux.c, load_pvh.c, load_multiboot.c are the formats.  Everything in the files is hostile.
 *
 * A loader writes guest memory only after it has checked the whole file, and nothing in it depends on what the guest did before: it runs at every reset.
 */
#pragma once
#include "kernel/vmm/gmem.h"
#include "kernel/vmm/hv_ops.h"

/* Memory map of the virtual PC, below 4 GiB.  RAM continues at 4 GiB with what does not fit under LOW_RAM_MAX. */
#define LOW_RAM_MAX     0xb0000000ull   /* ECAM, then the PCI hole */
#define CONV_MEM_END    0x9fc00ull      /* conventional memory; the EBDA starts here */
#define VGA_HOLE        0xa0000ull
#define VGA_HOLE_END    0xc0000ull
#define BIOS_AREA       0xe0000ull      /* ACPI tables: RAM that the guest is told to leave alone */
#define HIGH_MEM        0x100000ull
#define ABOVE_4G        0x100000000ull

enum { LOAD_MAX_MAP = 8, LOAD_MAX_SEGS = 32 };
enum { E820_RAM = 1, E820_RESERVED = 2 };
struct e820 { uint64_t base, len; uint32_t type; };

struct load {
    /* In. */
    struct gmem *gmem;
    const uint8_t *kernel;
    size_t kernel_len;
    const uint8_t *initrd;
    size_t initrd_len;                  /* 0: none */
    const char *initrd_name;            /* the string of the first module; NULL: "" */
    const char *cmdline;
    uint64_t ram;
    gpa_t rsdp;
    bool check_only;                    /* everything but writing guest memory */
    char *err;
    size_t errlen;
    /* Out. */
    uint64_t gpr[16], rip;
    struct cpu_state cpu;
};

enum load_kind { LOAD_LINUX, LOAD_PVH, LOAD_MULTIBOOT, LOAD_UNKNOWN };

/* Told by content.  A PVH note wins over a multiboot header. */
enum load_kind load_kind(const uint8_t *kernel, size_t len);
const char *load_kind_name(enum load_kind);
/* 0, or -EINVAL (bad file), -ENOSPC (does not fit into this RAM), -EFAULT with a sentence in err. */
int  load_kernel(struct load *);

/* ---- For the formats ---- */
int  load_linux(struct load *);
int  load_pvh(struct load *);
int  load_multiboot(struct load *);
bool load_linux_is(const uint8_t *, size_t);
bool load_pvh_is(const uint8_t *, size_t);
bool load_multiboot_is(const uint8_t *, size_t);

/* Sets the sentence and returns `error`. */
int  load_fail(struct load *, int error, const char *fmt, ...) __printf_like(3, 4);
static inline uint64_t load_low_ram(const struct load *l) { return MIN(l->ram, (uint64_t)LOW_RAM_MAX); }
/* The map that every format tells the kernel; entries in address order. */
int  load_memory_map(const struct load *, struct e820 map[LOAD_MAX_MAP]);
/* Is [base, base+len) RAM that a kernel may be loaded to? */
bool load_place_ok(const struct load *, uint64_t base, uint64_t len);
/* BIOS data area, and real-mode services that all fail. */
int  load_bios_data(struct load *);

/* ELF (both classes), by physical addresses. */
struct elf_seg { uint64_t paddr, vaddr, memsz, filesz, off; };
struct elf_image {
    bool is64;
    uint64_t entry;                     /* physical: e_entry, translated if it is a virtual address */
    uint64_t lowest, end;               /* of all segments */
    struct elf_seg seg[LOAD_MAX_SEGS];
    int nsegs;
};
bool load_elf_is(const uint8_t *, size_t);
/* Finds a note by name and type; false: none.  *desc points into the file. */
bool load_elf_note(const uint8_t *, size_t, const char *name, uint32_t type, const uint8_t **desc, uint32_t *desc_len);
int  load_elf_parse(struct load *, struct elf_image *);
/*
 * What multiboot and PVH have in common: a block of boot information in conventional memory, its layout by LOAD_INFO_*.  Writes segments, module, both strings
 * and what `write` adds (0 or an error), and enters flat 32-bit code with EBX = info + LOAD_INFO_START.  `module`: where the initrd goes.
 */
enum {
    LOAD_INFO_GDT = 0, LOAD_INFO_START = 0x1000, LOAD_INFO_MODS = 0x1100, LOAD_INFO_NAME = 0x1180, LOAD_INFO_MMAP = 0x1200, LOAD_INFO_STRING = 0x1400,
    LOAD_INFO_CMDLINE = 0x2000, LOAD_INFO_BYTES = 0x3000
};
int  load_with_info(struct load *, const struct elf_image *, uint64_t entry, uint64_t module, int (*write)(struct load *, gpa_t info, uint64_t module));

/* Zero-terminated and cut to `room`; NULL: "".  0; -EFAULT without a sentence. */
int  load_string(struct load *, gpa_t at, const char *text, size_t room);

/* Flat 32-bit protected mode, paging off; or 64-bit mode with 4 GiB mapped one to one.  `work`: LOAD_GDT_BYTES / LOAD_LONG_BYTES of page-aligned RAM. */
#define LOAD_GDT_BYTES  0x1000u
#define LOAD_LONG_BYTES 0x7000u
int  load_flat32(struct load *, gpa_t work, uint64_t entry);
int  load_long64(struct load *, gpa_t work, uint64_t entry);
enum { LOAD_RAX, LOAD_RCX, LOAD_RDX, LOAD_RBX, LOAD_RSP, LOAD_RBP, LOAD_RSI, LOAD_RDI };
