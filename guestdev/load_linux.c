/* Linux bzImage by the boot protocol, version 2.10 and later: 64-bit entry where the kernel has one, else 32-bit. */
#include <errno.h>
#include <string.h>

#include "guestdev/load.h"
#include "kernel/hw/linux_boot.h"

/* Conventional memory; the decompressor's trampoline takes the pages just below 9F000h. */
enum { AT_WORK = 0x10000, AT_PARAMS = 0x18000, AT_CMDLINE = 0x19000, CMDLINE_ROOM = 0x1000 };

static bool read_header(const uint8_t *k, size_t len, struct linux_setup_header *h)
{
    if (len < LINUX_SETUP_HDR + sizeof *h)
        return false;
    memcpy(h, k + LINUX_SETUP_HDR, sizeof *h);
    return h->boot_flag == LINUX_BOOT_FLAG && h->header == LINUX_MAGIC;
}

bool load_linux_is(const uint8_t *k, size_t len)
{
    struct linux_setup_header h;
    return read_header(k, len, &h);
}

struct plan { uint64_t file_off, size, at, initrd; };

static int check_header(struct load *l, const struct linux_setup_header *h)
{
    if (h->version < 0x020a)
        return load_fail(l, -EINVAL, "the kernel speaks boot protocol %u.%u, older than 2.10", h->version >> 8, h->version & 0xff);
    if (!(h->loadflags & LINUX_LOADED_HIGH))
        return load_fail(l, -EINVAL, "the kernel is a zImage; give a bzImage");
    size_t cmdline = strlen(l->cmdline);
    if (cmdline > h->cmdline_size || cmdline >= CMDLINE_ROOM)
        return load_fail(l, -EINVAL, "the command line has %llu characters, this kernel takes %u", (unsigned long long)cmdline,
                         MIN(h->cmdline_size, (uint32_t)CMDLINE_ROOM - 1));
    return 0;
}

static int place_kernel(struct load *l, const struct linux_setup_header *h, struct plan *p)
{
    p->file_off = ((h->setup_sects ? h->setup_sects : 4) + 1) * 512u;
    if (p->file_off >= l->kernel_len)
        return load_fail(l, -EINVAL, "the kernel file ends within its setup code");
    p->size = l->kernel_len - p->file_off;
    uint64_t need = MAX(p->size, (uint64_t)h->init_size), align = h->kernel_alignment;
    p->at = h->pref_address;
    if (p->at >= HIGH_MEM && load_place_ok(l, p->at, need))
        return 0;
    if (h->relocatable_kernel && align && !(align & (align - 1))) {
        p->at = ALIGN_UP((uint64_t)HIGH_MEM, MAX(align, (uint64_t)PAGE_SIZE));
        if (load_place_ok(l, p->at, need))
            return 0;
    }
    return load_fail(l, -ENOSPC, "the kernel needs %llu MiB of RAM to start: give the VM more memory", (unsigned long long)((p->at + need) >> 20));
}

/* As high as the kernel allows, so that it is out of the way of what the kernel unpacks to. */
static int place_initrd(struct load *l, const struct linux_setup_header *h, struct plan *p)
{
    p->initrd = 0;
    if (!l->initrd_len)
        return 0;
    uint64_t top = MIN(load_low_ram(l), (uint64_t)h->initrd_addr_max + 1), floor = p->at + MAX(p->size, (uint64_t)h->init_size);
    if (top > floor && l->initrd_len <= top - floor) {
        p->initrd = ALIGN_DOWN(top - l->initrd_len, PAGE_SIZE);
        if (p->initrd >= floor)
            return 0;
    }
    return load_fail(l, -ENOSPC, "no room for the initrd (%llu KiB) beside the kernel: give the VM more memory", (unsigned long long)(l->initrd_len >> 10));
}

static void build_params(const struct load *l, const struct linux_setup_header *h, const struct plan *p, uint8_t params[LINUX_BP_BYTES])
{
    struct linux_setup_header out;
    struct e820 map[LOAD_MAX_MAP];
    size_t end = MIN((size_t)(0x202 + l->kernel[LINUX_HDR_END_BYTE]), (size_t)LINUX_HDR_ROOM);
    memset(params, 0, LINUX_BP_BYTES);
    memcpy(params + LINUX_SETUP_HDR, l->kernel + LINUX_SETUP_HDR, MIN(end, l->kernel_len) - LINUX_SETUP_HDR);
    memcpy(&out, params + LINUX_SETUP_HDR, sizeof out);
    out.type_of_loader = 0xff;
    out.code32_start = (uint32_t)p->at;
    out.ramdisk_image = (uint32_t)p->initrd;
    out.ramdisk_size = (uint32_t)l->initrd_len;
    out.cmd_line_ptr = AT_CMDLINE;
    out.setup_data = 0;
    memcpy(params + LINUX_SETUP_HDR, &out, sizeof out);
    memcpy(params + LINUX_BP_RSDP, &l->rsdp, 8);
    int n = load_memory_map(l, map);
    params[LINUX_BP_E820_ENTRIES] = (uint8_t)n;
    for (int i = 0; i < n; i++) {
        struct linux_e820 e = { map[i].base, map[i].len, map[i].type };
        memcpy(params + LINUX_BP_E820_TABLE + (size_t)i * sizeof e, &e, sizeof e);
    }
}

static int write_all(struct load *l, const struct plan *p, const uint8_t params[LINUX_BP_BYTES])
{
    int err = gmem_write(l->gmem, AT_PARAMS, params, LINUX_BP_BYTES);
    err = err ? err : load_string(l, AT_CMDLINE, l->cmdline, CMDLINE_ROOM);
    err = err ? err : gmem_write(l->gmem, p->at, l->kernel + p->file_off, p->size);
    if (!err && p->initrd)
        err = gmem_write(l->gmem, p->initrd, l->initrd, l->initrd_len);
    return err ? load_fail(l, -EFAULT, "guest memory cannot be written") : 0;
}

int load_linux(struct load *l)
{
    struct linux_setup_header h;
    struct plan p = { 0 };
    uint8_t params[LINUX_BP_BYTES];
    if (!read_header(l->kernel, l->kernel_len, &h))
        return load_fail(l, -EINVAL, "the kernel is not a Linux bzImage");
    int err = check_header(l, &h);
    if (!err)
        err = place_kernel(l, &h, &p);
    if (!err)
        err = place_initrd(l, &h, &p);
    if (err || l->check_only)
        return err;
    build_params(l, &h, &p, params);
    err = write_all(l, &p, params);
    if (err)
        return err;
    l->gpr[LOAD_RSI] = AT_PARAMS;
    if (h.version >= 0x020c && h.xloadflags & LINUX_XLF_KERNEL_64 && p.size > 0x200)
        return load_long64(l, AT_WORK, p.at + 0x200);
    return load_flat32(l, AT_WORK, p.at);
}
