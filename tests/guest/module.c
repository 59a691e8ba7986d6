/*
 * What a boot loader hands over, by multiboot or PVH: command line, memory map, and a module with its string, byte for byte; and all of it again after a
 * reset, though the guest has spoilt it meanwhile.
 */
#include "lib/guest.h"

enum { MODULE_BYTES = 3 * 1024 * 1024 + 123, PAGE = 4096, RAM = 1, CMOS_BOOTS = 0x50 };
#define PVH_MAGIC 0x336ec578u
#define MULTIBOOT_MAGIC 0x2badb002u

struct multiboot { uint32_t flags, lower, upper, device, cmdline, mods_count, mods, syms[4], mmap_length, mmap, drives_length, drives, config, loader; };
struct multiboot_mod { uint32_t start, end, string, zero; };
struct multiboot_mmap { uint32_t size; uint64_t base, length; uint32_t type; } __attribute__((packed));
struct pvh { uint32_t magic, version, flags, nr_modules; uint64_t modules, cmdline, rsdp, memmap; uint32_t memmap_entries, zero; };
struct pvh_mod { uint64_t base, size, string, zero; };
struct pvh_mmap { uint64_t base, length; uint32_t type, zero; };

extern uint32_t boot_magic, boot_info;
extern char _start[];

/* The two protocols in one form. */
struct range { uint64_t base, length; uint32_t type; };
static struct { unsigned modules, ranges; const char *cmdline, *string; uint64_t start, length; struct range range[16]; } boot;

static bool same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static void add_range(uint64_t base, uint64_t length, uint32_t type)
{
    if (boot.ranges < ARRAY_SIZE(boot.range))
        boot.range[boot.ranges++] = (struct range){ base, length, type };
}

static void read_multiboot(const struct multiboot *mb)
{
    const struct multiboot_mod *mod = (void *)(ulong)mb->mods;
    EQUAL("flags", mb->flags & 0x4d, 0x4d);             /* memory, command line, modules, map */
    EQUAL("lower-memory", mb->lower, 639);
    for (uint32_t at = 0; at < mb->mmap_length;) {
        const struct multiboot_mmap *e = (void *)(ulong)(mb->mmap + at);
        add_range(e->base, e->length, e->type);
        at += e->size + 4;
    }
    boot.modules = mb->mods_count;
    boot.cmdline = (const char *)(ulong)mb->cmdline;
    if (boot.modules)
        boot.start = mod->start, boot.length = mod->end - mod->start, boot.string = (const char *)(ulong)mod->string;
}

static void read_pvh(const struct pvh *p)
{
    const struct pvh_mod *mod = (void *)(ulong)p->modules;
    const struct pvh_mmap *e = (void *)(ulong)p->memmap;
    EQUAL("magic", p->magic, PVH_MAGIC);
    CHECK("rsdp", !memcmp((const void *)(ulong)p->rsdp, "RSD PTR ", 8));
    for (unsigned n = 0; n < p->memmap_entries; n++)
        add_range(e[n].base, e[n].length, e[n].type);
    boot.modules = p->nr_modules;
    boot.cmdline = (const char *)(ulong)p->cmdline;
    if (boot.modules)
        boot.start = mod->base, boot.length = mod->size, boot.string = (const char *)(ulong)mod->string;
}

static void check_map(void)
{
    uint64_t ram = 0;
    bool sorted = true, module_in_ram = false;
    for (unsigned n = 0; n < boot.ranges; n++) {
        const struct range *r = &boot.range[n];
        sorted = sorted && (!n || r->base >= r[-1].base + r[-1].length);
        if (r->type != RAM)
            continue;
        ram += r->length;
        module_in_ram |= boot.start >= r->base && boot.start + boot.length <= r->base + r->length;
    }
    CHECK("map-sorted", sorted);
    CHECK("module-in-ram", module_in_ram);
    EQUAL("ram", ram, 64 * 1024 * 1024 - 0x100000 + 639 * 1024);
}

static uint8_t byte_at(uint32_t n) { return (uint8_t)(n * 7 + (n >> 8) * 13 + (n >> 16)); }

static void check_module(void)
{
    uint8_t *module = (uint8_t *)(ulong)boot.start;
    uint32_t wrong = 0;
    EQUAL("modules", boot.modules, 1);
    if (!boot.modules)
        return;
    EQUAL("module-length", boot.length, MODULE_BYTES);
    EQUAL("module-page-aligned", boot.start % PAGE, 0);
    CHECK("module-clear-of-kernel", boot.start >= (ulong)end || boot.start + boot.length <= (ulong)_start);
    report("module-string", same(boot.string, "module.bin"), "'%s'", boot.string);
    for (uint32_t n = 0; n < MODULE_BYTES; n++)
        wrong += module[n] != byte_at(n);
    EQUAL("module-bytes", wrong, 0);
    memset(module, 0xee, MODULE_BYTES);                 /* the next boot brings it again */
}

int main(void)
{
    pic_mask_all();
    print("started by %s\n", boot_magic == PVH_MAGIC ? "PVH" : boot_magic == MULTIBOOT_MAGIC ? "multiboot" : "something else");
    if (boot_magic == PVH_MAGIC)
        read_pvh((void *)(ulong)boot_info);
    else
        read_multiboot((void *)(ulong)boot_info);
    report("command-line", same(boot.cmdline, "one two=3 'four'"), "'%s'", boot.cmdline);
    check_module();
    check_map();
    outb(0x70, CMOS_BOOTS);                             /* battery-backed: survives the reset */
    if (inb(0x71) != 0x5a) {
        outb(0x71, 0x5a);
        outb(0xcf9, 6);
        delay_us(1000000);
        CHECK("reset", false);
    }
    outb(0x71, 0);
    return 0;
}
