/* Loaders: what ends up in guest memory and registers, and a sentence for each kind of bad file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "guestdev/load.h"
#include "kernel/hw/elf.h"
#include "kernel/hw/linux_boot.h"
#include "kernel/hw/multiboot.h"
#include "kernel/hw/pvh.h"
#include "kernel/vmm/decode.h"
#include "tests/host/vguest.h"

#define MIB (1ull << 20)
enum { RAM = 32 << 20 };

static struct vguest *g;
static char err[256];

static int setup(void **state) { g = vguest_create(RAM, 1); return 0; }
static int teardown(void **state) { vguest_destroy(g); return 0; }

static struct load with(const void *kernel, size_t len)
{
    static uint8_t initrd[5000];
    memset(initrd, 0x1d, sizeof initrd);
    memset(err, 0, sizeof err);
    return (struct load){ .gmem = &g->gmem, .kernel = kernel, .kernel_len = len, .initrd = initrd, .initrd_len = sizeof initrd, .initrd_name = "dir/first.mod", .cmdline = "a=1 b",
                          .ram = RAM, .rsdp = BIOS_AREA, .err = err, .errlen = sizeof err };
}

static void get(gpa_t at, void *buf, size_t len) { assert_int_equal(gmem_read(&g->gmem, at, buf, len), 0); }

static void expect_text(gpa_t at, const char *want)
{
    char got[64] = "";
    get(at, got, strlen(want) + 1);
    assert_string_equal(got, want);
}

static void expect_initrd(gpa_t at, uint64_t len)
{
    uint8_t b[2];
    assert_int_equal(len, 5000);
    assert_int_equal(at % 4096, 0);
    get(at, b, 1);
    get(at + 4999, b + 1, 1);
    assert_int_equal(b[0], 0x1d);
    assert_int_equal(b[1], 0x1d);
}

/* ---- Linux ---- */

enum { BZ_LEN = 5 * 512 + 8192 };

static uint8_t *bzimage(struct linux_setup_header **h)
{
    uint8_t *k = calloc(1, BZ_LEN);
    k[LINUX_HDR_END_BYTE] = 0x6a;
    *h = (void *)(k + LINUX_SETUP_HDR);
    **h = (struct linux_setup_header){
        .setup_sects = 4, .boot_flag = LINUX_BOOT_FLAG, .header = LINUX_MAGIC, .version = 0x020f, .loadflags = LINUX_LOADED_HIGH, .initrd_addr_max = 0x7fffffff,
        .kernel_alignment = 0x200000, .relocatable_kernel = 1, .xloadflags = LINUX_XLF_KERNEL_64, .cmdline_size = 2047, .pref_address = 16 * MIB,
        .init_size = 4 * MIB,
    };
    k[LINUX_SETUP_HDR + 0x10] = 0xeb;
    memset(k + 5 * 512, 0x90, 8192);
    return k;
}

static void linux_boot(void **state)
{
    struct linux_setup_header *h;
    uint8_t *k = bzimage(&h), params[4096], b;
    struct load l = with(k, BZ_LEN);
    assert_int_equal(load_kind(k, BZ_LEN), LOAD_LINUX);
    assert_int_equal(load_kernel(&l), 0);
    assert_int_equal(l.rip, 16 * MIB + 0x200);
    assert_int_equal(l.cpu.efer, 0x500);
    assert_int_equal(l.cpu.seg[SEG_CS].attr, 0xa9b);
    get(16 * MIB, &b, 1);
    assert_int_equal(b, 0x90);
    get(l.gpr[LOAD_RSI], params, sizeof params);
    struct linux_setup_header *p = (void *)(params + LINUX_SETUP_HDR);
    expect_text(p->cmd_line_ptr, "a=1 b");
    expect_initrd(p->ramdisk_image, p->ramdisk_size);
    assert_true(p->ramdisk_image >= 20 * MIB);
    assert_int_equal(p->type_of_loader, 0xff);
    uint64_t rsdp;
    memcpy(&rsdp, params + LINUX_BP_RSDP, 8);
    assert_int_equal(rsdp, BIOS_AREA);
    uint64_t usable = 0;
    for (unsigned i = 0; i < params[LINUX_BP_E820_ENTRIES]; i++) {
        struct linux_e820 e;
        memcpy(&e, params + LINUX_BP_E820_TABLE + i * sizeof e, sizeof e);
        usable += e.type == E820_RAM ? e.size : 0;
    }
    assert_int_equal(usable, RAM - MIB + CONV_MEM_END);
    /* The page tables map what was loaded one to one. */
    uint64_t e, at = l.cpu.cr3;
    for (unsigned level = 39; level > 21; level -= 9) {
        get(at + 8 * (16 * MIB >> level & 511), &e, 8);
        assert_true(e & 1);
        at = e & ~0xfffull;
    }
    get(at + 8 * (16 * MIB >> 21 & 511), &e, 8);
    assert_int_equal(e & ~0xfffull, 16 * MIB);
    assert_true(e & 0x80);
    h->xloadflags = 0;                  /* 32-bit entry */
    assert_int_equal(load_kernel(&l), 0);
    assert_int_equal(l.rip, 16 * MIB);
    assert_int_equal(l.cpu.efer, 0);
    assert_int_equal(l.cpu.cr0, 0x11);
    free(k);
}

static void refuse(struct load *l, int want, const char *word)
{
    assert_int_equal(load_kernel(l), want);
    assert_non_null(strstr(err, word));
}

static void linux_bad(void **state)
{
    struct linux_setup_header *h;
    uint8_t *k = bzimage(&h);
    struct load l = with(k, BZ_LEN);
    h->version = 0x0209, refuse(&l, -EINVAL, "2.9"), h->version = 0x020f;
    h->loadflags = 0, refuse(&l, -EINVAL, "zImage"), h->loadflags = 1;
    h->cmdline_size = 4, refuse(&l, -EINVAL, "5 characters"), h->cmdline_size = 2047;
    h->setup_sects = 255, refuse(&l, -EINVAL, "ends within"), h->setup_sects = 4;
    h->init_size = RAM, refuse(&l, -ENOSPC, "more memory"), h->init_size = ~0u;
    refuse(&l, -ENOSPC, "more memory"), h->init_size = 4 * MIB;
    h->pref_address = ~0ull;            /* nonsense, but it is relocatable */
    assert_int_equal(load_kernel(&l), 0);
    assert_int_equal(l.rip, 2 * MIB + 0x200);
    h->kernel_alignment = 3, refuse(&l, -ENOSPC, "memory"), h->kernel_alignment = 0x200000;
    h->relocatable_kernel = 0, refuse(&l, -ENOSPC, "memory");
    h->pref_address = 0x90000, refuse(&l, -ENOSPC, "memory"), h->pref_address = 16 * MIB;
    h->initrd_addr_max = 20 * MIB, refuse(&l, -ENOSPC, "initrd"), h->initrd_addr_max = 0x7fffffff;
    l.initrd_len = 13 * MIB;
    refuse(&l, -ENOSPC, "initrd");
    l.kernel_len = 600;
    assert_true(load_kernel(&l) < 0);
    free(k);
}

/* ---- ELF ---- */

struct __attribute__((packed)) elf64_file { struct elf64_ehdr eh; struct elf64_phdr ph[2]; struct elf_note n; char name[4]; uint64_t desc; struct multiboot_header mb; uint8_t code[64]; };

static struct elf64_file elf64(bool note, bool mb)
{
    struct elf64_file f = {
        .eh = { .e_ident = "\177ELF\2\1\1", .e_type = 2, .e_machine = 62, .e_version = 1, .e_entry = 0xffffffff80200040, .e_phoff = sizeof f.eh, .e_phentsize = sizeof f.ph[0], .e_phnum = 2 },
        .ph = { { .p_type = ELF_PT_LOAD, .p_offset = offsetof(struct elf64_file, mb), .p_vaddr = 0xffffffff80200000, .p_paddr = 0x200000, .p_filesz = 96, .p_memsz = 0x3000, .p_align = 4096 },
                { .p_type = note ? ELF_PT_NOTE : 0, .p_offset = offsetof(struct elf64_file, n), .p_filesz = 24, .p_align = 4 } },
        .n = { 4, 8, XEN_ELFNOTE_PHYS32_ENTRY }, .name = "Xen", .desc = 0x200010,
    };
    memset(f.code, 0xcc, sizeof f.code);
    if (mb)
        f.mb = (struct multiboot_header){ .magic = MULTIBOOT_MAGIC, .flags = 2, .checksum = (uint32_t)-(MULTIBOOT_MAGIC + 2) };
    return f;
}

/* A kernel that calls the BIOS all the same comes back, with the carry flag. */
static void no_bios(void **state)
{
    struct elf64_file f = elf64(false, true);
    struct load l = with(&f, sizeof f);
    uint16_t vector[2], irq[2];
    uint8_t code[9];
    static const uint8_t want[] = { 0x55, 0x89, 0xe5, 0x80, 0x4e, 0x06, 0x01, 0x5d, 0xcf };
    assert_int_equal(load_kernel(&l), 0);
    get(0x13 * 4, vector, 4);
    get(0x08 * 4, irq, 4);
    get((gpa_t)vector[1] * 16 + vector[0], code, sizeof code);
    assert_memory_equal(code, want, sizeof want);
    get((gpa_t)irq[1] * 16 + irq[0], code, 1);
    assert_int_equal(code[0], 0xcf);
}

static void pvh(void **state)
{
    struct elf64_file f = elf64(true, true);
    struct load l = with(&f, sizeof f);
    struct hvm_start_info si;
    struct hvm_modlist_entry mod;
    uint8_t junk[0x3000], tail;
    memset(junk, 0xff, sizeof junk);
    gmem_write(&g->gmem, 0x200000, junk, sizeof junk);
    assert_int_equal(load_kind(l.kernel, l.kernel_len), LOAD_PVH);
    assert_int_equal(load_kernel(&l), 0);
    assert_int_equal(l.rip, 0x200010);
    assert_int_equal(l.cpu.cr0, 0x11);
    assert_int_equal(l.cpu.seg[SEG_CS].attr, 0xc9b);
    get(l.gpr[LOAD_RBX], &si, sizeof si);
    assert_int_equal(si.magic, HVM_START_MAGIC);
    assert_int_equal(si.rsdp_paddr, BIOS_AREA);
    expect_text(si.cmdline_paddr, "a=1 b");
    assert_int_equal(si.nr_modules, 1);
    get(si.modlist_paddr, &mod, sizeof mod);
    expect_initrd(mod.paddr, mod.size);
    expect_text(mod.cmdline_paddr, "dir/first.mod");
    struct hvm_memmap_entry e;
    get(si.memmap_paddr, &e, sizeof e);
    assert_int_equal(e.size, CONV_MEM_END);
    get(0x200000 + 95, &tail, 1);
    assert_int_equal(tail, 0xcc);
    get(0x200000 + 96, &tail, 1);       /* bss */
    assert_int_equal(tail, 0);
    get(0x202fff, &tail, 1);
    assert_int_equal(tail, 0);
    f.desc = 0x203000;                  /* just outside */
    refuse(&l, -EINVAL, "entry point");
    f.n.n_descsz = 2;
    refuse(&l, -EINVAL, "damaged");
    f.n.n_namesz = 0xffffffff;          /* not found: multiboot then */
    assert_int_equal(load_kind(l.kernel, l.kernel_len), LOAD_MULTIBOOT);
}

static void multiboot64(void **state)
{
    struct elf64_file f = elf64(false, true);
    struct load l = with(&f, sizeof f);
    struct multiboot_info mi;
    struct multiboot_mod mod;
    struct multiboot_mmap e;
    assert_int_equal(load_kind(l.kernel, l.kernel_len), LOAD_MULTIBOOT);
    assert_int_equal(load_kernel(&l), 0);
    assert_int_equal(l.rip, 0x200040);  /* the virtual entry, translated */
    assert_int_equal(l.gpr[LOAD_RAX], MULTIBOOT_BOOTED);
    get(l.gpr[LOAD_RBX], &mi, sizeof mi);
    assert_int_equal(mi.mem_lower, 639);
    assert_int_equal(mi.mem_upper, 31 * 1024);
    expect_text(mi.cmdline, "a=1 b");
    expect_text(mi.boot_loader_name, "Joist");
    assert_int_equal(mi.mods_count, 1);
    get(mi.mods_addr, &mod, sizeof mod);
    assert_int_equal(mod.start, 0x203000);
    expect_initrd(mod.start, mod.end - mod.start);
    expect_text(mod.string, "dir/first.mod");
    uint64_t seen = 0;
    for (uint32_t at = 0; at < mi.mmap_length; at += e.size + 4) {
        get(mi.mmap_addr + at, &e, sizeof e);
        assert_int_equal(e.size, 20);
        if (e.type == 1)
            seen += e.len_lo;
    }
    assert_int_equal(seen, RAM - MIB + CONV_MEM_END);
    l.initrd_len = 0;
    assert_int_equal(load_kernel(&l), 0);
    get(l.gpr[LOAD_RBX], &mi, sizeof mi);
    assert_int_equal(mi.mods_count, 0);
    f.mb.flags |= 8, f.mb.checksum -= 8;
    refuse(&l, -EINVAL, "features");
}

static void elf_bad(void **state)
{
    struct elf64_file f = elf64(true, false), ok = f;
    struct load l = with(&f, sizeof f);
    f.ph[0].p_paddr = 0xa0000, refuse(&l, -ENOSPC, "RAM"), f = ok;              /* VGA hole */
    f.ph[0].p_paddr = 0, refuse(&l, -ENOSPC, "RAM"), f = ok;                    /* BIOS data area */
    f.ph[0].p_paddr = 0xe0000, refuse(&l, -ENOSPC, "RAM"), f = ok;              /* ACPI tables */
    f.ph[0].p_paddr = RAM - 0x1000, refuse(&l, -ENOSPC, "RAM"), f = ok;
    f.ph[0].p_memsz = ~0ull, refuse(&l, -ENOSPC, "RAM"), f = ok;
    f.ph[0].p_memsz = 8, refuse(&l, -EINVAL, "larger in the file"), f = ok;
    f.ph[0].p_offset = 1 << 20, refuse(&l, -EINVAL, "beyond the file"), f = ok;
    f.ph[0].p_offset = ~0ull - 4, refuse(&l, -EINVAL, "beyond the file"), f = ok;
    f.ph[0].p_type = 0, refuse(&l, -EINVAL, "nothing to load"), f = ok;
    f.eh.e_entry = 5, refuse(&l, -EINVAL, "entry"), f = ok;
    f.eh.e_phnum = 60000, f.ph[0].p_filesz = f.ph[0].p_memsz = 0;
    assert_int_equal(load_kernel(&l), -EINVAL);
    f = ok, f.eh.e_phentsize = 8, refuse(&l, -EINVAL, "without a PVH note"), f = ok;
    /* Boot information moves away from a kernel that lies where it usually goes. */
    f.ph[0].p_paddr = f.ph[0].p_vaddr = 0x10000, f.eh.e_entry = 0x10000, f.desc = 0x10000;
    assert_int_equal(load_kernel(&l), 0);
    assert_true(l.gpr[LOAD_RBX] >= 0x40000);
}

static void unknown(void **state)
{
    static uint8_t k[1024];
    struct load l = with(k, sizeof k);
    refuse(&l, -EINVAL, "none of the kernel formats");
    k[510] = 0x55, k[511] = 0xaa, refuse(&l, -EINVAL, "boot sector");
    k[0] = 0x1f, k[1] = 0x8b, refuse(&l, -EINVAL, "gzip");
    k[0] = 'M', k[1] = 'Z', refuse(&l, -EINVAL, "EFI");
    for (size_t n = 0; n < 64; n++) {
        l.kernel_len = n;
        assert_true(load_kernel(&l) < 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linux_boot), cmocka_unit_test(linux_bad), cmocka_unit_test(pvh), cmocka_unit_test(no_bios), cmocka_unit_test(multiboot64), cmocka_unit_test(elf_bad), cmocka_unit_test(unknown),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
