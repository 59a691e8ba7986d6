/* Multiboot ELF kernels (Multiboot Specification 0.6.96): 32- and 64-bit files, or any file with the address fields set. */
#include <errno.h>
#include <string.h>

#include "guestdev/load.h"
#include "kernel/hw/multiboot.h"

static bool find_header(const uint8_t *k, size_t len, struct multiboot_header *h, size_t *at)
{
    len = MIN(len, (size_t)MULTIBOOT_SEARCH);
    for (size_t off = 0; off + 12 <= len; off += 4) {
        memset(h, 0, sizeof *h);
        memcpy(h, k + off, MIN(len - off, sizeof *h));
        if (h->magic == MULTIBOOT_MAGIC && h->magic + h->flags + h->checksum == 0) {
            *at = off;
            return true;
        }
    }
    return false;
}

bool load_multiboot_is(const uint8_t *k, size_t len)
{
    struct multiboot_header h;
    size_t at;
    return find_header(k, len, &h, &at);
}

/* The address fields describe one segment by themselves (section 3.1.3). */
static int parse_addresses(struct load *l, const struct multiboot_header *h, size_t header_off, struct elf_image *img)
{
    memset(img, 0, sizeof *img);
    uint64_t before = (uint64_t)h->header_addr - h->load_addr;
    if (h->load_addr > h->header_addr || before > header_off)
        return load_fail(l, -EINVAL, "the kernel's multiboot header has load address %x beyond header address %x", h->load_addr, h->header_addr);
    uint64_t off = header_off - before, file = l->kernel_len - off;
    if (h->load_end_addr && h->load_end_addr < h->load_addr)
        return load_fail(l, -EINVAL, "the kernel's multiboot header ends before it starts");
    uint64_t filesz = h->load_end_addr ? h->load_end_addr - h->load_addr : file;
    if (filesz > file)
        return load_fail(l, -EINVAL, "the kernel file is shorter than its multiboot header says");
    uint64_t memsz = h->bss_end_addr > h->load_addr ? h->bss_end_addr - h->load_addr : filesz;
    memsz = MAX(memsz, filesz);
    if (!load_place_ok(l, h->load_addr, memsz))
        return load_fail(l, -ENOSPC, "the kernel at %x (%llu KiB) does not lie in the VM's RAM: give it more memory or another kernel", h->load_addr,
                         (unsigned long long)(memsz >> 10));
    if (h->entry_addr < h->load_addr || h->entry_addr - h->load_addr >= memsz)
        return load_fail(l, -EINVAL, "the kernel's entry point %x is outside the kernel", h->entry_addr);
    img->seg[img->nsegs++] = (struct elf_seg){ h->load_addr, h->load_addr, memsz, filesz, off };
    img->entry = h->entry_addr;
    img->lowest = h->load_addr;
    img->end = h->load_addr + memsz;
    return 0;
}

/* Page-aligned behind the kernel, as boot loaders do; *at = 0 when there is none. */
static int place_module(struct load *l, const struct elf_image *img, uint64_t *at)
{
    *at = 0;
    if (!l->initrd_len)
        return 0;
    *at = ALIGN_UP(MAX(img->end, HIGH_MEM), PAGE_SIZE);
    if (load_place_ok(l, *at, l->initrd_len))
        return 0;
    return load_fail(l, -ENOSPC, "no room for the initrd (%llu KiB) behind the kernel: give the VM more memory", (unsigned long long)(l->initrd_len >> 10));
}

static unsigned build_mmap(const struct load *l, struct multiboot_mmap *out)
{
    struct e820 map[LOAD_MAX_MAP];
    int n = load_memory_map(l, map);
    for (int i = 0; i < n; i++)
        out[i] = (struct multiboot_mmap){ sizeof out[i] - 4, (uint32_t)map[i].base, (uint32_t)(map[i].base >> 32), (uint32_t)map[i].len,
                                          (uint32_t)(map[i].len >> 32), map[i].type };
    return (unsigned)n * (unsigned)sizeof *out;
}

static int write_info(struct load *l, gpa_t info, uint64_t module)
{
    static const char name[] = "Joist";
    struct multiboot_mmap mmap[LOAD_MAX_MAP];
    struct multiboot_info mi = {
        .flags = MULTIBOOT_INFO_MEMORY | MULTIBOOT_INFO_CMDLINE | MULTIBOOT_INFO_MODS | MULTIBOOT_INFO_MMAP | MULTIBOOT_INFO_LOADER,
        .mem_lower = CONV_MEM_END >> 10, .mem_upper = (uint32_t)((load_low_ram(l) - HIGH_MEM) >> 10),
        .cmdline = (uint32_t)info + LOAD_INFO_CMDLINE, .mods_addr = (uint32_t)info + LOAD_INFO_MODS, .mods_count = module ? 1 : 0,
        .mmap_addr = (uint32_t)info + LOAD_INFO_MMAP, .mmap_length = build_mmap(l, mmap), .boot_loader_name = (uint32_t)info + LOAD_INFO_NAME,
    };
    struct multiboot_mod mod = { (uint32_t)module, (uint32_t)(module + l->initrd_len), (uint32_t)info + LOAD_INFO_STRING, 0 };
    int err = gmem_write(l->gmem, info + LOAD_INFO_START, &mi, sizeof mi);
    err = err ? err : gmem_write(l->gmem, info + LOAD_INFO_MODS, &mod, sizeof mod);
    err = err ? err : gmem_write(l->gmem, info + LOAD_INFO_NAME, name, sizeof name);
    return err ? err : gmem_write(l->gmem, info + LOAD_INFO_MMAP, mmap, mi.mmap_length);
}

int load_multiboot(struct load *l)
{
    struct multiboot_header h;
    struct elf_image img;
    size_t header_off;
    uint64_t module;
    if (!find_header(l->kernel, l->kernel_len, &h, &header_off))
        return load_fail(l, -EINVAL, "the kernel has no multiboot header");
    uint32_t unknown = h.flags & MULTIBOOT_REQUIRED & ~(MULTIBOOT_PAGE_ALIGN | MULTIBOOT_MEMORY_INFO | MULTIBOOT_VIDEO_MODE);
    if (unknown)
        return load_fail(l, -EINVAL, "the kernel's multiboot header requires features %x that do not exist", unknown);
    int err = h.flags & MULTIBOOT_AOUT_KLUDGE ? parse_addresses(l, &h, header_off, &img) : load_elf_parse(l, &img);
    if (!err)
        err = place_module(l, &img, &module);
    if (!err)
        err = load_with_info(l, &img, img.entry, module, write_info);
    l->gpr[LOAD_RAX] = MULTIBOOT_BOOTED;
    return err;
}
