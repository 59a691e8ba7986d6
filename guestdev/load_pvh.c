/* ELF kernels with a Xen PHYS32_ENTRY note (x86/HVM direct boot ABI): Linux vmlinux with CONFIG_PVH, unikernels, firmware payloads. */
#include <errno.h>
#include <string.h>

#include "guestdev/load.h"
#include "kernel/hw/pvh.h"

bool load_pvh_is(const uint8_t *k, size_t len)
{
    const uint8_t *desc;
    uint32_t n;
    return load_elf_note(k, len, "Xen", XEN_ELFNOTE_PHYS32_ENTRY, &desc, &n);
}

/* The descriptor is 4 bytes, or 8 in files that give every note a pointer-sized one. */
static int find_entry(struct load *l, const struct elf_image *img, uint64_t *entry)
{
    const uint8_t *desc;
    uint32_t n;
    *entry = 0;
    if (!load_elf_note(l->kernel, l->kernel_len, "Xen", XEN_ELFNOTE_PHYS32_ENTRY, &desc, &n) || (n != 4 && n != 8))
        return load_fail(l, -EINVAL, "the kernel's PVH note is damaged");
    memcpy(entry, desc, n);
    for (int i = 0; i < img->nsegs; i++)
        if (*entry >= img->seg[i].paddr && *entry - img->seg[i].paddr < img->seg[i].memsz)
            return 0;
    return load_fail(l, -EINVAL, "the kernel's PVH entry point %llx is in none of its segments", (unsigned long long)*entry);
}

/* As high as it goes: the kernel's own memory grows upwards from its end. */
static int place_initrd(struct load *l, const struct elf_image *img, uint64_t *at)
{
    uint64_t low = load_low_ram(l);
    *at = 0;
    if (!l->initrd_len)
        return 0;
    if (l->initrd_len < low) {
        *at = ALIGN_DOWN(low - l->initrd_len, PAGE_SIZE);
        if (*at >= MAX(img->end, HIGH_MEM))
            return 0;
    }
    return load_fail(l, -ENOSPC, "no room for the initrd (%llu KiB) beside the kernel: give the VM more memory", (unsigned long long)(l->initrd_len >> 10));
}

static int write_info(struct load *l, gpa_t info, uint64_t initrd)
{
    struct e820 map[LOAD_MAX_MAP];
    struct hvm_memmap_entry mmap[LOAD_MAX_MAP];
    int n = load_memory_map(l, map);
    for (int i = 0; i < n; i++)
        mmap[i] = (struct hvm_memmap_entry){ map[i].base, map[i].len, map[i].type, 0 };
    struct hvm_start_info si = {
        .magic = HVM_START_MAGIC, .version = 1, .nr_modules = initrd ? 1 : 0, .modlist_paddr = initrd ? info + LOAD_INFO_MODS : 0,
        .cmdline_paddr = info + LOAD_INFO_CMDLINE, .rsdp_paddr = l->rsdp, .memmap_paddr = info + LOAD_INFO_MMAP, .memmap_entries = (uint32_t)n,
    };
    struct hvm_modlist_entry mod = { .paddr = initrd, .size = l->initrd_len, .cmdline_paddr = info + LOAD_INFO_STRING };
    int err = gmem_write(l->gmem, info + LOAD_INFO_START, &si, sizeof si);
    err = err ? err : gmem_write(l->gmem, info + LOAD_INFO_MODS, &mod, sizeof mod);
    return err ? err : gmem_write(l->gmem, info + LOAD_INFO_MMAP, mmap, (size_t)n * sizeof mmap[0]);
}

int load_pvh(struct load *l)
{
    struct elf_image img;
    uint64_t entry, initrd;
    int err = load_elf_parse(l, &img);
    if (!err)
        err = find_entry(l, &img, &entry);
    if (!err)
        err = place_initrd(l, &img, &initrd);
    return err ? err : load_with_info(l, &img, entry, initrd, write_info);
}
