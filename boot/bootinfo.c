#include "boot/bootinfo.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PHYS_LIMIT BIT(52)      /* no x86-64 CPU addresses more */

/* ---- Memory map ---- */

/* Which of two overlapping entries is right: the one that would do less harm if it were wrong. */
static int strictness(enum bootmem_type t)
{
    static const uint8_t rank[] = {
        [BOOTMEM_RAM] = 0, [BOOTMEM_LOADER] = 1, [BOOTMEM_ACPI] = 2, [BOOTMEM_NVS] = 3, [BOOTMEM_RESERVED] = 4, [BOOTMEM_BAD] = 5,
    };
    return rank[t];
}

static uint64_t mem_end(const struct bootmem *m)
{
    return m->base + m->len;
}

/* Puts entry i where its base belongs, among later entries that are sorted. */
static void sift_up(struct bootinfo *b, int i)
{
    struct bootmem m = b->mem[i];
    for (; i + 1 < b->nmem && b->mem[i + 1].base < m.base; i++)
        b->mem[i] = b->mem[i + 1];
    b->mem[i] = m;
}

static void sort_map(struct bootinfo *b)
{
    for (int i = b->nmem - 2; i >= 0; i--)
        sift_up(b, i);
}

static void drop(struct bootinfo *b, int i)
{
    b->nmem--;
    memmove(&b->mem[i], &b->mem[i + 1], (size_t)(b->nmem - i) * sizeof(b->mem[0]));
}

/* Entries i and i + 1 overlap: one step towards none.  False: no room for the third piece. */
static bool resolve(struct bootinfo *b, int i)
{
    struct bootmem *x = &b->mem[i], *y = &b->mem[i + 1];
    uint64_t xe = mem_end(x), ye = mem_end(y);

    if (x->type == y->type) {
        x->len = MAX(xe, ye) - x->base;
        drop(b, i + 1);
    } else if (strictness(x->type) > strictness(y->type)) {
        if (ye <= xe) {
            drop(b, i + 1);
        } else {
            y->base = xe;
            y->len = ye - xe;
            sift_up(b, i + 1);
        }
    } else {
        struct bootmem tail = { ye, xe - ye, x->type };
        int at = i + 2;
        x->len = y->base - x->base;
        if (x->len == 0) {
            drop(b, i);
            at--;
        }
        if (xe > ye) {
            if (b->nmem == BOOT_MAX_MEM)
                return false;
            memmove(&b->mem[at + 1], &b->mem[at], (size_t)(b->nmem - at) * sizeof(b->mem[0]));
            b->mem[at] = tail;
            b->nmem++;
            sift_up(b, at);
        }
    }
    return true;
}

static void merge_neighbours(struct bootinfo *b)
{
    int out = 0;
    for (int i = 1; i < b->nmem; i++) {
        struct bootmem *last = &b->mem[out], *m = &b->mem[i];
        if (m->type == last->type && m->base == mem_end(last))
            last->len += m->len;
        else
            b->mem[++out] = *m;
    }
    if (b->nmem)
        b->nmem = out + 1;
}

static bool disjoin(struct bootinfo *b)
{
    sort_map(b);
    for (int i = 0; i + 1 < b->nmem;) {
        if (mem_end(&b->mem[i]) <= b->mem[i + 1].base)
            i++;
        else if (!resolve(b, i))
            return false;
        else if (i > 0)
            i--;        /* a shortened or dropped entry may touch the one before */
    }
    merge_neighbours(b);
    return true;
}

/* Adds one raw range; what lies beyond PHYS_LIMIT is cut.  False: the map is full even after cleaning. */
static bool add_range(struct bootinfo *b, uint64_t base, uint64_t len, enum bootmem_type type)
{
    if (len == 0 || base >= PHYS_LIMIT)
        return true;
    if (b->nmem == BOOT_MAX_MEM && (!disjoin(b) || b->nmem == BOOT_MAX_MEM))
        return false;
    b->mem[b->nmem++] = (struct bootmem){ base, MIN(len, PHYS_LIMIT - base), type };
    return true;
}

static int map_full(char *err, size_t errlen)
{
    snprintf(err, errlen, "The firmware's memory map has more than %d ranges.", BOOT_MAX_MEM);
    return -E2BIG;
}

static enum bootmem_type e820_type(uint32_t type)
{
    return type >= BOOTMEM_RAM && type <= BOOTMEM_BAD ? (enum bootmem_type)type : BOOTMEM_RESERVED;
}

int bootinfo_finish(struct bootinfo *b, char *err, size_t errlen)
{
    for (int i = 0; i < b->nmods; i++) {
        uint64_t base = ALIGN_DOWN(b->mods[i].base, PAGE_SIZE), end = ALIGN_UP(b->mods[i].base + b->mods[i].len, PAGE_SIZE);
        if (!add_range(b, base, end - base, BOOTMEM_LOADER))
            return map_full(err, errlen);
    }
    if (!disjoin(b))
        return map_full(err, errlen);

    bool ram = false;
    for (int i = 0; i < b->nmem;) {
        struct bootmem *m = &b->mem[i];
        if (m->type == BOOTMEM_RAM || m->type == BOOTMEM_LOADER) {
            uint64_t base = ALIGN_UP(m->base, PAGE_SIZE), end = ALIGN_DOWN(mem_end(m), PAGE_SIZE);
            if (base >= end) {
                drop(b, i);
                continue;
            }
            *m = (struct bootmem){ base, end - base, m->type };
            ram |= m->type == BOOTMEM_RAM;
        }
        i++;
    }
    if (!ram) {
        snprintf(err, errlen, "The boot loader's memory map lists no usable RAM.");
        return -EINVAL;
    }
    return 0;
}

/* ---- Modules and strings ---- */

static void copy_string(char *dst, size_t dstlen, const void *src, size_t srclen)
{
    size_t n = strnlen(src, srclen);
    n = MIN(n, dstlen - 1);
    memcpy(dst, src, n);
    dst[n] = '\0';
}

static int add_module(struct bootinfo *b, uint64_t base, uint64_t len, const char *name, size_t namelen, char *err, size_t errlen)
{
    if (b->nmods == BOOT_MAX_MODS) {
        snprintf(err, errlen, "The boot image has more than %d modules.", BOOT_MAX_MODS);
        return -E2BIG;
    }
    struct bootmod *m = &b->mods[b->nmods];
    copy_string(m->name, sizeof(m->name), name, namelen);
    if (base >= PHYS_LIMIT || len > PHYS_LIMIT - base) {
        snprintf(err, errlen, "Boot module '%s' has an impossible address: 0x%llx, %llu bytes.", m->name, (unsigned long long)base,
                 (unsigned long long)len);
        return -EINVAL;
    }
    m->base = base;
    m->len = len;
    b->nmods++;
    return 0;
}

static int cmdline_too_long(char *err, size_t errlen)
{
    snprintf(err, errlen, "The kernel command line is longer than %zu characters.", sizeof(((struct bootinfo *)0)->cmdline) - 1);
    return -E2BIG;
}

static int set_cmdline(struct bootinfo *b, const char *s, size_t len, char *err, size_t errlen)
{
    if (strnlen(s, len) >= sizeof(b->cmdline))
        return cmdline_too_long(err, errlen);
    copy_string(b->cmdline, sizeof(b->cmdline), s, len);
    return 0;
}

/* ---- Multiboot2 Specification 2.0, "Boot information format" ---- */

enum mb2_tag_type {
    MB2_END = 0, MB2_CMDLINE = 1, MB2_LOADER = 2, MB2_MODULE = 3, MB2_MEMINFO = 4, MB2_MMAP = 6, MB2_FRAMEBUFFER = 8,
    MB2_EFI64 = 12, MB2_RSDP_OLD = 14, MB2_RSDP_NEW = 15,
};
struct mb2_header { uint32_t total_size, reserved; };
struct mb2_tag { uint32_t type, size; };
struct mb2_module { struct mb2_tag tag; uint32_t start, end; /* name */ };
struct mb2_meminfo { struct mb2_tag tag; uint32_t lower_kib, upper_kib; };
struct mb2_mmap { struct mb2_tag tag; uint32_t entry_size, entry_version; };
struct mb2_mmap_entry { uint64_t base, len; uint32_t type, reserved; };
struct mb2_framebuffer {
    struct mb2_tag tag;
    uint64_t addr;
    uint32_t pitch, width, height;
    uint8_t bpp, type, reserved[2];
    uint8_t red_pos, red_len, green_pos, green_len, blue_pos, blue_len;     /* type MB2_FB_RGB only */
};
enum { MB2_FB_RGB = 1, MB2_FB_TEXT = 2 };
_Static_assert(sizeof(struct mb2_module) == 16 && sizeof(struct mb2_mmap) == 16 && sizeof(struct mb2_mmap_entry) == 24, "mb2");
_Static_assert(offsetof(struct mb2_framebuffer, red_pos) == 32, "mb2");

/* The tag being parsed: its bytes (not aligned) and size, header included. */
struct tag { uint32_t type, size; const uint8_t *at; };

/* Copies the fixed part out; what a short tag lacks reads as 0.  False if less than `need` bytes are there. */
static bool tag_get(const struct tag *t, void *dst, size_t size, size_t need)
{
    memset(dst, 0, size);
    memcpy(dst, t->at, MIN(size, (size_t)t->size));
    return t->size >= need;
}

static int mb2_mmap(struct bootinfo *b, const struct tag *t, char *err, size_t errlen)
{
    struct mb2_mmap m;
    if (!tag_get(t, &m, sizeof(m), sizeof(m)) || m.entry_size < 20 || m.entry_size > 4096) {
        snprintf(err, errlen, "The boot loader's memory map has entries of %u bytes.", m.entry_size);
        return -EINVAL;
    }
    for (size_t off = sizeof(m); off + m.entry_size <= t->size; off += m.entry_size) {
        struct mb2_mmap_entry e = { 0 };
        memcpy(&e, t->at + off, MIN((size_t)m.entry_size, sizeof(e)));
        if (!add_range(b, e.base, e.len, e820_type(e.type)))
            return map_full(err, errlen);
    }
    return 0;
}

static int mb2_module(struct bootinfo *b, const struct tag *t, char *err, size_t errlen)
{
    struct mb2_module m;
    if (!tag_get(t, &m, sizeof(m), sizeof(m)) || m.end < m.start) {
        snprintf(err, errlen, "Boot module %d is described by a broken tag.", b->nmods);
        return -EINVAL;
    }
    return add_module(b, m.start, m.end - m.start, (const char *)t->at + sizeof(m), t->size - sizeof(m), err, errlen);
}

static void mb2_framebuffer(struct bootinfo *b, const struct tag *t)
{
    struct mb2_framebuffer f;
    if (!tag_get(t, &f, sizeof(f), offsetof(struct mb2_framebuffer, red_pos)))
        return;
    bool text = f.type == MB2_FB_TEXT;
    bool rgb = f.type == MB2_FB_RGB && t->size >= offsetof(struct mb2_framebuffer, blue_len) + 1 && f.bpp >= 15 && f.bpp <= 32 &&
        f.pitch >= (uint64_t)f.width * ((f.bpp + 7u) / 8u);
    if ((!text && !rgb) || f.width == 0 || f.height == 0 || f.addr >= PHYS_LIMIT)
        return;         /* palettes and nonsense: no screen */
    b->fb = (struct bootfb){
        .base = f.addr, .width = f.width, .height = f.height, .pitch = f.pitch, .bpp = f.bpp, .text = text,
        .red_pos = f.red_pos, .red_len = f.red_len, .green_pos = f.green_pos, .green_len = f.green_len,
        .blue_pos = f.blue_pos, .blue_len = f.blue_len,
    };
}

static void mb2_rsdp(struct bootinfo *b, const struct tag *t)
{
    uint32_t len = t->size - sizeof(struct mb2_tag);
    if (len < 20 || len < b->rsdp_copy_len)
        return;         /* the new one is longer and wins, in either order */
    b->rsdp_copy_len = MIN(len, (uint32_t)sizeof(b->rsdp_copy));
    memcpy(b->rsdp_copy, t->at + sizeof(struct mb2_tag), b->rsdp_copy_len);
}

static int mb2_tag(struct bootinfo *b, const struct tag *t, struct mb2_meminfo *basic, char *err, size_t errlen)
{
    const char *text = (const char *)t->at + sizeof(struct mb2_tag);
    size_t textlen = t->size - sizeof(struct mb2_tag);

    switch (t->type) {
    case MB2_CMDLINE:
        return set_cmdline(b, text, textlen, err, errlen);
    case MB2_LOADER:
        copy_string(b->loader, sizeof(b->loader), text, textlen);
        return 0;
    case MB2_MODULE:
        return mb2_module(b, t, err, errlen);
    case MB2_MEMINFO:
        tag_get(t, basic, sizeof(*basic), sizeof(*basic));
        return 0;
    case MB2_MMAP:
        return mb2_mmap(b, t, err, errlen);
    case MB2_FRAMEBUFFER:
        mb2_framebuffer(b, t);
        return 0;
    case MB2_EFI64:
        if (textlen >= sizeof(b->efi_systab))
            memcpy(&b->efi_systab, text, sizeof(b->efi_systab));
        return 0;
    case MB2_RSDP_OLD:
    case MB2_RSDP_NEW:
        mb2_rsdp(b, t);
        return 0;
    case BOOT_TAG_SEED:
        b->have_seed = textlen >= sizeof(b->seed);
        memcpy(b->seed, text, MIN(textlen, sizeof(b->seed)));
        return 0;
    }
    return 0;
}

/* BIOS machines without E820: all that is known is how much lies below 640 KiB and from 1 MiB on. */
static void use_basic_meminfo(struct bootinfo *b, const struct mb2_meminfo *basic)
{
    add_range(b, 0, MIN(basic->lower_kib, 640u) * 1024ull, BOOTMEM_RAM);
    add_range(b, 0x100000, basic->upper_kib * 1024ull, BOOTMEM_RAM);
}

int bootinfo_multiboot2(struct bootinfo *b, const void *info, size_t max, char *err, size_t errlen)
{
    struct mb2_header h = { 0 };
    struct mb2_meminfo basic = { 0 };

    memset(b, 0, sizeof(*b));
    if (max >= sizeof(h))
        memcpy(&h, info, sizeof(h));
    if (h.total_size < sizeof(h) || h.total_size > max) {
        snprintf(err, errlen, "The boot loader's information block claims %u bytes.", h.total_size);
        return -EINVAL;
    }
    for (size_t off = sizeof(h); off + sizeof(struct mb2_tag) <= h.total_size;) {
        struct tag t = { .at = (const uint8_t *)info + off };
        memcpy(&t, t.at, sizeof(struct mb2_tag));
        if (t.size < sizeof(struct mb2_tag) || t.size > h.total_size - off)
            break;
        if (t.type == MB2_END) {
            if (b->nmem == 0)
                use_basic_meminfo(b, &basic);
            return bootinfo_finish(b, err, errlen);
        }
        int rc = mb2_tag(b, &t, &basic, err, errlen);
        if (rc < 0)
            return rc;
        off += ALIGN_UP((size_t)t.size, 8);
    }
    snprintf(err, errlen, "The boot loader's information block is cut off.");
    return -EINVAL;
}

/* ---- x86/HVM direct boot ABI ---- */

#define PVH_MAGIC 0x336ec578
struct pvh_start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist, cmdline, rsdp;
    uint64_t memmap;                        /* version 1 on */
    uint32_t memmap_entries, reserved;
};
struct pvh_module { uint64_t base, len, cmdline, reserved; };
struct pvh_memmap_entry { uint64_t base, len; uint32_t type, reserved; };
_Static_assert(sizeof(struct pvh_start_info) == 56 && sizeof(struct pvh_module) == 32 && sizeof(struct pvh_memmap_entry) == 24, "pvh");

static bool pvh_get(void *(*at)(uint64_t, size_t), uint64_t pa, uint64_t index, void *dst, size_t size)
{
    uint64_t from = pa + index * size;
    const void *p = pa && pa < PHYS_LIMIT && from < PHYS_LIMIT ? at(from, size) : NULL;
    if (p)
        memcpy(dst, p, size);
    return p != NULL;
}

/* The string at pa, cut to size - 1 characters; returns false if it was cut. */
static bool pvh_string(void *(*at)(uint64_t, size_t), uint64_t pa, char *dst, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (!pvh_get(at, pa, i, &dst[i], 1))
            dst[i] = '\0';
        if (dst[i] == '\0')
            return true;
    }
    dst[size - 1] = '\0';
    return false;
}

static int pvh_modules(struct bootinfo *b, const struct pvh_start_info *si, void *(*at)(uint64_t, size_t), char *err, size_t errlen)
{
    for (uint32_t i = 0; i < si->nr_modules; i++) {
        struct pvh_module m;
        char name[sizeof(b->mods[0].name)];
        if (!pvh_get(at, si->modlist, i, &m, sizeof(m))) {
            snprintf(err, errlen, "The list of boot modules lies outside memory.");
            return -EINVAL;
        }
        pvh_string(at, m.cmdline, name, sizeof(name));
        int rc = add_module(b, m.base, m.len, name, sizeof(name), err, errlen);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int bootinfo_pvh(struct bootinfo *b, uint64_t start_info, void *(*at)(uint64_t pa, size_t len), char *err, size_t errlen)
{
    struct pvh_start_info si;

    memset(b, 0, sizeof(*b));
    if (!pvh_get(at, start_info, 0, &si, offsetof(struct pvh_start_info, memmap)) || si.magic != PVH_MAGIC) {
        snprintf(err, errlen, "The start information at 0x%llx is not a PVH one.", (unsigned long long)start_info);
        return -EINVAL;
    }
    if (si.version < 1 || !pvh_get(at, start_info, 0, &si, sizeof(si))) {
        snprintf(err, errlen, "The start information has no memory map: PVH version 1 is needed, this is %u.", si.version);
        return -EINVAL;
    }
    copy_string(b->loader, sizeof(b->loader), "PVH", 4);
    b->rsdp = si.rsdp;
    if (!pvh_string(at, si.cmdline, b->cmdline, sizeof(b->cmdline)))
        return cmdline_too_long(err, errlen);
    for (uint32_t i = 0; i < si.memmap_entries; i++) {
        struct pvh_memmap_entry e;
        if (!pvh_get(at, si.memmap, i, &e, sizeof(e))) {
            snprintf(err, errlen, "The memory map lies outside memory.");
            return -EINVAL;
        }
        if (!add_range(b, e.base, e.len, e820_type(e.type)))
            return map_full(err, errlen);
    }
    int rc = pvh_modules(b, &si, at, err, errlen);
    return rc < 0 ? rc : bootinfo_finish(b, err, errlen);
}

/* ---- Options ---- */

/* End of the word at s: a blank outside double quotes, or the end. */
static const char *word_end(const char *s)
{
    bool quoted = false;
    for (; *s && (quoted || *s != ' '); s++)
        quoted ^= *s == '"';
    return s;
}

static void copy_unquoted(char *dst, size_t len, const char *s, const char *end)
{
    size_t n = 0;
    for (; s < end; s++)
        if (*s != '"' && n + 1 < len)
            dst[n++] = *s;
    if (len)
        dst[n] = '\0';
}

bool bootinfo_option(const struct bootinfo *b, const char *key, char *val, size_t len)
{
    size_t keylen = strlen(key);
    bool found = false;

    for (const char *s = b->cmdline, *end; *s; s = end) {
        s += strspn(s, " ");
        end = word_end(s);
        s += *s == '"';         /* GRUB quotes the whole word: "key=a b" */
        if ((size_t)(end - s) < keylen || strncmp(s, key, keylen) != 0 || (s + keylen < end && s[keylen] != '='))
            continue;
        found = true;
        copy_unquoted(val, len, s + keylen < end ? s + keylen + 1 : end, end);
    }
    return found;
}
