/* Boot information as GRUB, our own loader, QEMU and broken firmware hand it over. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "boot/bootinfo.h"

/* ---- A multiboot2 block under construction ---- */

struct block { uint8_t bytes[65536]; uint32_t len; };
static struct block blk;
static struct bootinfo bi;
static char err[160];

static void put(const void *p, size_t n)
{
    memcpy(blk.bytes + blk.len, p, n);
    blk.len += n;
}

static void put32(uint32_t v) { put(&v, 4); }
static void put64(uint64_t v) { put(&v, 8); }

static void begin(void)
{
    memset(&blk, 0, sizeof(blk));
    blk.len = 8;
}

static void pad(void) { blk.len = ALIGN_UP(blk.len, 8u); }

static void tag(uint32_t type, const void *p, uint32_t n)
{
    pad();
    put32(type);
    put32(8 + n);
    put(p, n);
}

static void string_tag(uint32_t type, const char *s) { tag(type, s, strlen(s) + 1); }

static void module_tag(uint32_t start, uint32_t end, const char *name)
{
    uint8_t buf[512];
    memcpy(buf, &start, 4);
    memcpy(buf + 4, &end, 4);
    strcpy((char *)buf + 8, name);
    tag(3, buf, 8 + strlen(name) + 1);
}

static void mmap_tag(const struct bootmem *m, int n)
{
    pad();
    put32(6);
    put32(16 + 24 * n);
    put32(24);
    put32(0);
    for (int i = 0; i < n; i++) {
        put64(m[i].base);
        put64(m[i].len);
        put32(m[i].type);
        put32(0);
    }
}

static int finish(void)
{
    tag(0, "", 0);
    memcpy(blk.bytes, &blk.len, 4);
    err[0] = '\0';
    /* Exactly as long as it says, so that the sanitizer sees any step beyond it. */
    void *copy = malloc(blk.len);
    memcpy(copy, blk.bytes, blk.len);
    int rc = bootinfo_multiboot2(&bi, copy, blk.len, err, sizeof(err));
    free(copy);
    return rc;
}

static void assert_map(const struct bootmem *want, int n)
{
    for (int i = 0; i < MIN(n, bi.nmem); i++) {
        assert_int_equal(bi.mem[i].base, want[i].base);
        assert_int_equal(bi.mem[i].len, want[i].len);
        assert_int_equal(bi.mem[i].type, want[i].type);
    }
    assert_int_equal(bi.nmem, n);
}

#define MAP(...) (const struct bootmem[]){ __VA_ARGS__ }, (int)(sizeof((const struct bootmem[]){ __VA_ARGS__ }) / sizeof(struct bootmem))
#define R BOOTMEM_RAM
#define X BOOTMEM_RESERVED
#define A BOOTMEM_ACPI
#define N BOOTMEM_NVS
#define B BOOTMEM_BAD
#define L BOOTMEM_LOADER

/* ---- Real machines ---- */

static void test_qemu_bios(void **s)
{
    uint8_t fb[24] = { 0 };
    begin();
    string_tag(1, "console=com1 demo");
    string_tag(2, "GRUB 2.06-13+deb12u1");
    module_tag(0x1000000, 0x1000805, "image:debian/vmlinuz");
    mmap_tag(MAP({ 0, 0x9fc00, R }, { 0x9fc00, 0x400, X }, { 0xf0000, 0x10000, X }, { 0x100000, 0x7fee0000, R },
                 { 0x7ffe0000, 0x20000, X }, { 0xfeffc000, 0x4000, X }, { 0xfffc0000, 0x40000, X },
                 { 0x100000000, 0x80000000, R }, { 0xfd00000000, 0x300000000, X }));
    *(uint64_t *)fb = 0xb8000;
    *(uint32_t *)(fb + 8) = 160;
    *(uint32_t *)(fb + 12) = 80;
    *(uint32_t *)(fb + 16) = 25;
    fb[20] = 16;
    fb[21] = 2;
    tag(8, fb, sizeof(fb));
    tag(14, "RSD PTR zBOCHS \0\x64\x14\xfe\x7f", 20);
    assert_int_equal(finish(), 0);
    assert_string_equal(bi.cmdline, "console=com1 demo");
    assert_string_equal(bi.loader, "GRUB 2.06-13+deb12u1");
    assert_int_equal(bi.nmods, 1);
    assert_string_equal(bi.mods[0].name, "image:debian/vmlinuz");
    assert_int_equal(bi.mods[0].len, 0x805);
    assert_map(MAP({ 0, 0x9f000, R }, { 0x9fc00, 0x400, X }, { 0xf0000, 0x10000, X }, { 0x100000, 0xf00000, R },
                   { 0x1000000, 0x1000, L }, { 0x1001000, 0x7efdf000, R }, { 0x7ffe0000, 0x20000, X }, { 0xfeffc000, 0x4000, X },
                   { 0xfffc0000, 0x40000, X }, { 0x100000000, 0x80000000, R }, { 0xfd00000000, 0x300000000, X }));
    assert_true(bi.fb.text);
    assert_int_equal(bi.fb.width, 80);
    assert_int_equal(bi.rsdp_copy_len, 20);
    assert_int_equal(bi.efi_systab, 0);
}

static void test_uefi_server(void **s)
{
    uint8_t fb[30] = { 0 };
    uint64_t systab = 0x7e9ee018;
    begin();
    mmap_tag(MAP({ 0, 0xa0000, R }, { 0x100000, 0x6b6f5000, R }, { 0x6b7f5000, 0x3000, N }, { 0x6b7f8000, 0x200000, X },
                 { 0x6b9f8000, 0x1000000, A }, { 0x6c9f8000, 0x200000, N }, { 0x6cbf8000, 0x13408000, X }, { 0x80000000, 0x10000000, X },
                 { 0xfec00000, 0x1000, X }, { 0x100000000, 0x1f80000000, R }, { 0x2080000000, 0x4000000000, R }));
    tag(12, &systab, 8);
    *(uint64_t *)fb = 0x4000000000;                     /* a 64-bit BAR */
    *(uint32_t *)(fb + 8) = 8192;                       /* pitch beyond width * 4 */
    *(uint32_t *)(fb + 12) = 1920;
    *(uint32_t *)(fb + 16) = 1080;
    memcpy(fb + 20, (uint8_t[]){ 32, 1, 0, 0, 16, 8, 8, 8, 0, 8 }, 10);
    tag(8, fb, sizeof(fb));
    tag(15, "RSD PTR \0OEM-ID\2\0\0\0\0\44\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 36);
    tag(14, "RSD PTR \0OEM-ID\0\0\0\0", 20);          /* old after new: the new one stays */
    assert_int_equal(finish(), 0);
    assert_int_equal(bi.efi_systab, systab);
    assert_int_equal(bi.rsdp_copy_len, 36);
    assert_int_equal(bi.rsdp_copy[15], 2);
    assert_int_equal(bi.fb.base, 0x4000000000);
    assert_int_equal(bi.fb.pitch, 8192);
    assert_int_equal(bi.fb.red_pos, 16);
    assert_int_equal(bi.fb.blue_len, 8);
    assert_int_equal(bi.mem[bi.nmem - 1].base, 0x100000000);
    assert_int_equal(bi.mem[bi.nmem - 1].len, 0x5f80000000);    /* neighbours of one type became one */
}

/* ---- Maps that lie ---- */

static void test_overlaps(void **s)
{
    begin();
    mmap_tag(MAP({ 0x200000, 0x100000, X }, { 0x100000, 0x400000, R }, { 0x280000, 0x100000, N }, { 0x500000, 0x100000, R },
                 { 0x500000, 0x100000, X }, { 0x100000, 0x1000, R }, { 0x480000, 0x1000, B }, { 0x480000, 0x2000, A }));
    assert_int_equal(finish(), 0);
    assert_map(MAP({ 0x100000, 0x100000, R }, { 0x200000, 0x100000, X }, { 0x300000, 0x80000, N }, { 0x380000, 0x100000, R },
                   { 0x480000, 0x1000, B }, { 0x481000, 0x1000, A }, { 0x482000, 0x7e000, R }, { 0x500000, 0x100000, X }));
}

static void test_ragged_pages(void **s)
{
    begin();
    mmap_tag(MAP({ 0x100800, 0x3000, R }, { 0x103900, 0x100, X }, { 0x200000, 0xfff, R }, { 0x300001, 0x1ffe, R }));
    assert_int_equal(finish(), 0);
    assert_map(MAP({ 0x101000, 0x2000, R }, { 0x103900, 0x100, X }));
}

static void test_wild_addresses(void **s)
{
    begin();
    mmap_tag(MAP({ 0x100000, 0x100000, R }, { ~0ull - 0xfff, 0x2000, R }, { 1ull << 52, 1, X }, { (1ull << 52) - 0x1000, ~0ull, X },
                 { 0x300000, 0, X }));
    assert_int_equal(finish(), 0);
    assert_map(MAP({ 0x100000, 0x100000, R }, { (1ull << 52) - 0x1000, 0x1000, X }));
}

static void test_unknown_type_is_reserved(void **s)
{
    begin();
    mmap_tag(MAP({ 0x100000, 0x100000, R }, { 0x180000, 0x1000, 14 }, { 0x190000, 0x1000, L }, { 0x1a0000, 0x1000, 0 }));
    assert_int_equal(finish(), 0);
    assert_int_equal(bi.mem[1].type, X);
    assert_int_equal(bi.mem[3].type, X);                /* a loader cannot claim our own type */
    assert_int_equal(bi.mem[5].type, X);
}

/* A map must be cleaned, or refused, without losing a reserved range. */
static void test_many_ranges(void **s)
{
    struct bootmem m[1200];
    begin();
    for (int i = 0; i < 1200; i++)      /* the same 400 pages three times, every other one reserved */
        m[i] = (struct bootmem){ 0x100000 + (i % 400) * 0x1000, 0x1000, i % 2 ? X : R };
    mmap_tag(m, 1200);
    assert_int_equal(finish(), 0);
    assert_int_equal(bi.nmem, 400);
    begin();
    for (int i = 0; i < 600; i++)
        m[i] = (struct bootmem){ 0x100000 + i * 0x2000, 0x1000, X };
    mmap_tag(m, 600);
    assert_int_equal(finish(), -E2BIG);
    assert_non_null(strstr(err, "512"));
}

static void test_no_ram(void **s)
{
    begin();
    mmap_tag(MAP({ 0, 0x1000000, X }));
    assert_int_equal(finish(), -EINVAL);
    assert_non_null(strstr(err, "no usable RAM"));
}

static void test_basic_meminfo(void **s)
{
    uint32_t kib[2] = { 639, 65536 };
    begin();
    tag(4, kib, 8);
    assert_int_equal(finish(), 0);
    assert_map(MAP({ 0, 0x9f000, R }, { 0x100000, 0x4000000, R }));
}

static void test_modules_in_the_map(void **s)
{
    begin();
    module_tag(0x300000, 0x300000, "empty");
    module_tag(0x200000, 0x200001, "one byte");
    module_tag(0x500000, 0x580000, "over reserved");
    mmap_tag(MAP({ 0x100000, 0x500000, R }, { 0x540000, 0x1000, X }));
    assert_int_equal(finish(), 0);
    assert_map(MAP({ 0x100000, 0x100000, R }, { 0x200000, 0x1000, L }, { 0x201000, 0x2ff000, R }, { 0x500000, 0x40000, L },
                   { 0x540000, 0x1000, X }, { 0x541000, 0x3f000, L }, { 0x580000, 0x80000, R }));
}

/* ---- Blocks that lie ---- */

static void test_truncated(void **s)
{
    begin();
    string_tag(1, "demo");
    module_tag(0x1000000, 0x1000805, "image:a");
    mmap_tag(MAP({ 0x100000, 0x7fee0000, R }));
    assert_int_equal(finish(), 0);
    uint32_t whole = blk.len;
    for (uint32_t cut = 0; cut < whole; cut++) {
        uint8_t *copy = malloc(cut + 1);
        memcpy(copy, blk.bytes, cut);
        assert_int_equal(bootinfo_multiboot2(&bi, copy, cut, err, sizeof(err)), -EINVAL);
        if (cut >= 8) {         /* and when the block claims to end there */
            memcpy(copy, &cut, 4);
            assert_int_equal(bootinfo_multiboot2(&bi, copy, cut, err, sizeof(err)), -EINVAL);
        }
        free(copy);
    }
}

static void test_bad_tags(void **s)
{
    uint32_t bad_size[] = { 0, 7, 0x7fffffff, 0xffffffff };
    for (size_t i = 0; i < ARRAY_SIZE(bad_size); i++) {
        begin();
        mmap_tag(MAP({ 0x100000, 0x7fee0000, R }));
        string_tag(2, "x");
        memcpy(blk.bytes + 8 + 40 + 4, &bad_size[i], 4);
        assert_int_equal(finish(), -EINVAL);
    }
    begin();
    module_tag(0x2000, 0x1000, "backwards");
    assert_int_equal(finish(), -EINVAL);
    begin();
    mmap_tag(MAP({ 0x100000, 0x7fee0000, R }));
    memset(blk.bytes + 16, 0, 4);                       /* entries of 0 bytes */
    assert_int_equal(finish(), -EINVAL);
    begin();
    tag(3, "abc", 3);
    assert_int_equal(finish(), -EINVAL);
}

static void test_long_strings(void **s)
{
    char text[2000];
    memset(text, 'x', sizeof(text));
    text[300] = '\0';
    begin();
    mmap_tag(MAP({ 0x100000, 0x7fee0000, R }));
    module_tag(0x100000, 0x101000, text);
    tag(2, text, 200);                                  /* no terminator */
    text[300] = 'x', text[1023] = '\0';
    string_tag(1, text);
    assert_int_equal(finish(), 0);
    assert_int_equal(strlen(bi.mods[0].name), sizeof(bi.mods[0].name) - 1);
    assert_int_equal(strlen(bi.loader), sizeof(bi.loader) - 1);
    assert_int_equal(strlen(bi.cmdline), 1023);
    text[1023] = 'x', text[1024] = '\0';
    begin();
    string_tag(1, text);
    assert_int_equal(finish(), -E2BIG);
}

static void test_too_many_modules(void **s)
{
    begin();
    mmap_tag(MAP({ 0x100000, 0x7fee0000, R }));
    for (int i = 0; i < BOOT_MAX_MODS; i++)
        module_tag(0x1000000 + i * 0x2000, 0x1001000 + i * 0x2000, "m");
    assert_int_equal(finish(), -E2BIG);                 /* 256 islands make 513 ranges */
    begin();
    mmap_tag(MAP({ 0x100000, 0x7fee0000, R }));
    for (int i = 0; i < BOOT_MAX_MODS; i++)
        module_tag(0x1000000 + i * 0x1000, 0x1001000 + i * 0x1000, "m");
    assert_int_equal(finish(), 0);
    blk.len = ALIGN_UP(blk.len, 8u) - 8;
    module_tag(0x3000000, 0x3001000, "one too many");
    assert_int_equal(finish(), -E2BIG);
}

static void test_seed(void **s)
{
    uint8_t seed[BOOT_SEED_BYTES];
    memset(seed, 0x5a, sizeof(seed));
    for (uint32_t n = 0; n <= sizeof(seed); n += sizeof(seed) / 2) {
        begin();
        mmap_tag(MAP({ 0x100000, 0x7fee0000, R }));
        tag(BOOT_TAG_SEED, seed, n);
        assert_int_equal(finish(), 0);
        assert_int_equal(bi.have_seed, n == sizeof(seed));      /* half a seed is none */
    }
    assert_memory_equal(bi.seed, seed, sizeof(seed));
}

static void test_useless_framebuffers(void **s)
{
    static const struct { uint32_t pitch, width, height; uint8_t bpp, type; } f[] = {
        { 4096, 1024, 768, 32, 0 }, { 4092, 1024, 768, 32, 1 }, { 4096, 0, 768, 32, 1 }, { 4096, 1024, 768, 8, 1 },
        { 0xffffffff, 0xffffffff, 1, 32, 1 }, { 512, 1024, 768, 200, 1 },
    };
    for (size_t i = 0; i < ARRAY_SIZE(f); i++) {
        uint8_t fb[30] = { 0 };
        begin();
        mmap_tag(MAP({ 0x100000, 0x7fee0000, R }));
        *(uint64_t *)fb = 0xfd000000;
        memcpy(fb + 8, &f[i], 12);
        fb[20] = f[i].bpp, fb[21] = f[i].type;
        tag(8, fb, sizeof(fb));
        assert_int_equal(finish(), 0);
        assert_int_equal(bi.fb.base, 0);
    }
}

/* ---- PVH ---- */

static uint8_t ram[0x10000];            /* "physical memory" from 0 */

static void *ram_at(uint64_t pa, size_t len)
{
    return pa <= sizeof(ram) && len <= sizeof(ram) - pa ? ram + pa : NULL;
}

static int pvh(uint32_t version, uint32_t nmods, uint64_t modlist, uint64_t cmdline, uint64_t memmap, uint32_t entries)
{
    uint32_t *h = (uint32_t *)(ram + 0x1000);
    uint64_t *q = (uint64_t *)(h + 4);
    h[0] = 0x336ec578, h[1] = version, h[2] = 0, h[3] = nmods;
    q[0] = modlist, q[1] = cmdline, q[2] = 0xf5b20, q[3] = memmap;
    h[12] = entries, h[13] = 0;
    return bootinfo_pvh(&bi, 0x1000, ram_at, err, sizeof(err));
}

static void test_pvh(void **s)
{
    uint64_t mods[] = { 0x8000, 0x10, 0x3100, 0, 0x9000, 0x1001, 0, 0 };
    uint64_t map[] = { 0, 0x9fc00, R, 0x9fc00, 0x400, X, 0x100000, 0xff00000, R };
    memset(ram, 0, sizeof(ram));
    memcpy(ram + 0x2000, mods, sizeof(mods));
    memcpy(ram + 0x4000, map, sizeof(map));
    strcpy((char *)ram + 0x3000, "demo console=com1");
    strcpy((char *)ram + 0x3100, "image:a");
    assert_int_equal(pvh(1, 2, 0x2000, 0x3000, 0x4000, 3), 0);
    assert_string_equal(bi.cmdline, "demo console=com1");
    assert_string_equal(bi.mods[0].name, "image:a");
    assert_string_equal(bi.mods[1].name, "");
    assert_int_equal(bi.rsdp, 0xf5b20);
    assert_map(MAP({ 0, 0x8000, R }, { 0x8000, 0x3000, L }, { 0xb000, 0x94000, R }, { 0x9fc00, 0x400, X }, { 0x100000, 0xff00000, R }));
    assert_int_equal(pvh(1, 0, 0, 0, 0x4000, 3), 0);
    assert_string_equal(bi.cmdline, "");
}

static void test_pvh_lies(void **s)
{
    uint64_t map[] = { 0x100000, 0xff00000, R };
    memset(ram, 0, sizeof(ram));
    memcpy(ram + 0x4000, map, sizeof(map));
    assert_int_equal(pvh(0, 0, 0, 0, 0x4000, 1), -EINVAL);
    assert_int_equal(pvh(1, 0, 0, 0, 0, 1), -EINVAL);
    assert_int_equal(pvh(1, 0, 0, 0, 0xfff0, 1), -EINVAL);
    assert_int_equal(pvh(1, 0, 0, 0, ~0ull - 8, 0xffffffff), -EINVAL);
    assert_int_equal(pvh(1, 0xffffffff, 0xc000, 0, 0x4000, 1), -E2BIG);
    assert_int_equal(pvh(1, 1, 0x20000, 0, 0x4000, 1), -EINVAL);
    memset(ram + 0x8000, 'x', 0x8000);
    assert_int_equal(pvh(1, 0, 0, 0x8000, 0x4000, 1), -E2BIG);
    assert_int_equal(pvh(1, 0, 0, 0xfff0, 0x4000, 1), 0);       /* runs out of memory before its end: as far as it goes */
    assert_int_equal(strlen(bi.cmdline), 16);
    assert_int_equal(bootinfo_pvh(&bi, 0x8000, ram_at, err, sizeof(err)), -EINVAL);
    assert_int_equal(bootinfo_pvh(&bi, 0xfffff000, ram_at, err, sizeof(err)), -EINVAL);
}

/* ---- Options ---- */

static void test_options(void **s)
{
    char v[8];
    memset(&bi, 0, sizeof(bi));
    strcpy(bi.cmdline, "  panic=30 demo  name=\"a b\" panic=5 long=0123456789 eq=a=b \"grub=c d\" debug=");
    assert_true(bootinfo_option(&bi, "panic", v, sizeof(v)));
    assert_string_equal(v, "5");
    assert_true(bootinfo_option(&bi, "demo", v, sizeof(v)));
    assert_string_equal(v, "");
    assert_true(bootinfo_option(&bi, "name", v, sizeof(v)));
    assert_string_equal(v, "a b");
    assert_true(bootinfo_option(&bi, "long", v, sizeof(v)));
    assert_string_equal(v, "0123456");
    assert_true(bootinfo_option(&bi, "eq", v, sizeof(v)));
    assert_string_equal(v, "a=b");
    assert_true(bootinfo_option(&bi, "grub", v, sizeof(v)));
    assert_string_equal(v, "c d");
    assert_true(bootinfo_option(&bi, "debug", v, sizeof(v)));
    assert_string_equal(v, "");
    assert_false(bootinfo_option(&bi, "dem", v, sizeof(v)));
    assert_false(bootinfo_option(&bi, "demos", v, sizeof(v)));
    assert_false(bootinfo_option(&bi, "b\"", v, sizeof(v)));
    strcpy(bi.cmdline, "\"");
    assert_false(bootinfo_option(&bi, "panic", v, sizeof(v)));
    bi.cmdline[0] = '\0';
    assert_false(bootinfo_option(&bi, "panic", v, sizeof(v)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_qemu_bios), cmocka_unit_test(test_uefi_server), cmocka_unit_test(test_overlaps),
        cmocka_unit_test(test_ragged_pages), cmocka_unit_test(test_wild_addresses), cmocka_unit_test(test_unknown_type_is_reserved),
        cmocka_unit_test(test_many_ranges), cmocka_unit_test(test_no_ram), cmocka_unit_test(test_basic_meminfo),
        cmocka_unit_test(test_modules_in_the_map), cmocka_unit_test(test_truncated), cmocka_unit_test(test_bad_tags),
        cmocka_unit_test(test_long_strings), cmocka_unit_test(test_too_many_modules), cmocka_unit_test(test_useless_framebuffers), cmocka_unit_test(test_seed),
        cmocka_unit_test(test_pvh), cmocka_unit_test(test_pvh_lies), cmocka_unit_test(test_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
