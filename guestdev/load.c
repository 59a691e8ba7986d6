#include "guestdev/load.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "kernel/hw/elf.h"
#include "kernel/vmm/decode.h"

int load_fail(struct load *l, int error, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(l->err, l->errlen, fmt, ap);
    va_end(ap);
    return error;
}

/* ---- Which format ---- */

enum load_kind load_kind(const uint8_t *k, size_t len)
{
    if (load_linux_is(k, len))
        return LOAD_LINUX;
    if (load_pvh_is(k, len))
        return LOAD_PVH;
    if (load_multiboot_is(k, len))
        return LOAD_MULTIBOOT;
    return LOAD_UNKNOWN;
}

const char *load_kind_name(enum load_kind kind)
{
    static const char *const names[] = { "Linux bzImage", "PVH ELF", "multiboot ELF", "unknown" };
    return names[kind];
}

static const char *looks_like(const uint8_t *k, size_t len)
{
    if (load_elf_is(k, len))
        return "an ELF file without a PVH note or a multiboot header";
    if (len >= 2 && k[0] == 'M' && k[1] == 'Z')
        return "an EFI program or a Linux kernel older than boot protocol 2.10";
    if (len >= 4 && k[0] == 0x1f && k[1] == 0x8b)
        return "a gzip file: unpack it first";
    if (len >= 512 && k[510] == 0x55 && k[511] == 0xaa)
        return "a boot sector or disk image: use it as a disk";
    return "none of the kernel formats";
}

int load_kernel(struct load *l)
{
    memset(l->gpr, 0, sizeof l->gpr);
    memset(&l->cpu, 0, sizeof l->cpu);
    int err = l->check_only ? 0 : load_bios_data(l);
    if (err)
        return err;
    switch (load_kind(l->kernel, l->kernel_len)) {
    case LOAD_LINUX:     return load_linux(l);
    case LOAD_PVH:       return load_pvh(l);
    case LOAD_MULTIBOOT: return load_multiboot(l);
    default:
        return load_fail(l, -EINVAL, "the kernel is %s; give a Linux bzImage, an ELF file with a PVH note or a multiboot ELF file",
                         looks_like(l->kernel, l->kernel_len));
    }
}

/* ---- Memory ---- */

int load_memory_map(const struct load *l, struct e820 map[LOAD_MAX_MAP])
{
    uint64_t low = load_low_ram(l);
    int n = 0;
    map[n++] = (struct e820){ 0, CONV_MEM_END, E820_RAM };
    map[n++] = (struct e820){ CONV_MEM_END, VGA_HOLE - CONV_MEM_END, E820_RESERVED };
    map[n++] = (struct e820){ BIOS_AREA, HIGH_MEM - BIOS_AREA, E820_RESERVED };
    if (low > HIGH_MEM)
        map[n++] = (struct e820){ HIGH_MEM, low - HIGH_MEM, E820_RAM };
    map[n++] = (struct e820){ 0xb0000000, 0x10000000, E820_RESERVED };      /* ECAM: Linux believes MCFG only if the map reserves it */
    if (l->ram > low)
        map[n++] = (struct e820){ ABOVE_4G, l->ram - low, E820_RAM };
    return n;
}

bool load_place_ok(const struct load *l, uint64_t base, uint64_t len)
{
    uint64_t low = load_low_ram(l);
    if (base >= HIGH_MEM)
        return base <= low && len <= low - base;
    return base >= 0x1000 && base < CONV_MEM_END && len <= CONV_MEM_END - base;        /* page 0: BIOS data area */
}

/*
 * There is no BIOS, and some kernels (Xen) call it from real mode all the same.  Every service fails: the carry flag comes back set.  Hardware interrupts
 * of the 8259's power-on vectors just return.
 */
static int write_vectors(struct load *l)
{
    enum { SEGMENT = 0xf000, RETURN = 0xff53 /* where every BIOS has an IRET */, FAIL = RETURN + 1 };
    static const uint8_t code[] = { 0xcf /* iret */, 0x55, 0x89, 0xe5, 0x80, 0x4e, 0x06, 0x01, 0x5d, 0xcf /* push bp; mov bp, sp; or byte [bp+6], 1; pop bp; iret */ };
    struct { uint16_t off, seg; } vector[256];
    for (unsigned i = 0; i < ARRAY_SIZE(vector); i++) {
        bool irq = i < 0x10 || (i >= 0x70 && i < 0x78);
        vector[i].off = irq ? RETURN : FAIL;
        vector[i].seg = SEGMENT;
    }
    int err = gmem_write(l->gmem, 0, vector, sizeof vector);
    return err ? err : gmem_write(l->gmem, (SEGMENT << 4) + RETURN, code, sizeof code);
}

int load_bios_data(struct load *l)
{
    uint16_t ebda = CONV_MEM_END >> 4, base_kib = CONV_MEM_END >> 10;
    uint8_t ebda_kib = 1;
    if (gmem_write(l->gmem, 0x40e, &ebda, 2) || gmem_write(l->gmem, 0x413, &base_kib, 2) || gmem_write(l->gmem, CONV_MEM_END, &ebda_kib, 1) ||
        write_vectors(l))
        return load_fail(l, -EFAULT, "no RAM below 1 MiB");
    return 0;
}

int load_string(struct load *l, gpa_t at, const char *text, size_t room)
{
    size_t len = text ? strnlen(text, room - 1) : 0;
    return gmem_write(l->gmem, at, text ? text : "", len) || gmem_zero(l->gmem, at + len, 1) ? -EFAULT : 0;
}

/* ---- ELF ---- */

/* A program header of either class, widened; false: outside the file. */
static bool elf_phdr(const uint8_t *k, size_t len, unsigned i, struct elf64_phdr *ph)
{
    struct elf64_ehdr e64;
    struct elf32_ehdr e32;
    if (k[4] == ELF_CLASS_64) {
        memcpy(&e64, k, sizeof e64);
        uint64_t off = e64.e_phoff + (uint64_t)i * e64.e_phentsize;
        if (i >= e64.e_phnum || e64.e_phentsize < sizeof *ph || off < e64.e_phoff || off > len || len - off < sizeof *ph)
            return false;
        memcpy(ph, k + off, sizeof *ph);
        return true;
    }
    memcpy(&e32, k, sizeof e32);
    struct elf32_phdr p;
    uint64_t off = e32.e_phoff + (uint64_t)i * e32.e_phentsize;
    if (i >= e32.e_phnum || e32.e_phentsize < sizeof p || off > len || len - off < sizeof p)
        return false;
    memcpy(&p, k + off, sizeof p);
    *ph = (struct elf64_phdr){ .p_type = p.p_type, .p_flags = p.p_flags, .p_offset = p.p_offset, .p_vaddr = p.p_vaddr, .p_paddr = p.p_paddr,
                               .p_filesz = p.p_filesz, .p_memsz = p.p_memsz, .p_align = p.p_align };
    return true;
}

static unsigned elf_phnum(const uint8_t *k)
{
    return k[4] == ELF_CLASS_64 ? ((const struct elf64_ehdr *)(const void *)k)->e_phnum : ((const struct elf32_ehdr *)(const void *)k)->e_phnum;
}

bool load_elf_is(const uint8_t *k, size_t len)
{
    return len >= sizeof(struct elf64_ehdr) && !memcmp(k, "\177ELF", 4) && (k[4] == ELF_CLASS_32 || k[4] == ELF_CLASS_64) && k[5] == ELF_DATA_LSB;
}

static bool note_in(const uint8_t *at, uint64_t left, uint64_t align, const char *name, uint32_t type, const uint8_t **desc, uint32_t *desc_len)
{
    uint32_t name_len = (uint32_t)strlen(name) + 1;
    while (left >= sizeof(struct elf_note)) {
        struct elf_note n;
        memcpy(&n, at, sizeof n);
        uint64_t name_room = ALIGN_UP((uint64_t)n.n_namesz, align), desc_room = ALIGN_UP((uint64_t)n.n_descsz, align);
        uint64_t body = sizeof n + name_room;
        if (body > left || n.n_descsz > left - body)
            return false;
        if (n.n_type == type && n.n_namesz == name_len && !memcmp(at + sizeof n, name, name_len)) {
            *desc = at + body;
            *desc_len = n.n_descsz;
            return true;
        }
        if (desc_room > left - body)
            return false;
        at += body + desc_room;
        left -= body + desc_room;
    }
    return false;
}

bool load_elf_note(const uint8_t *k, size_t len, const char *name, uint32_t type, const uint8_t **desc, uint32_t *desc_len)
{
    if (!load_elf_is(k, len))
        return false;
    for (unsigned i = 0; i < elf_phnum(k); i++) {
        struct elf64_phdr ph;
        if (!elf_phdr(k, len, i, &ph))
            return false;
        if (ph.p_type != ELF_PT_NOTE || ph.p_offset > len || ph.p_filesz > len - ph.p_offset)
            continue;
        if (note_in(k + ph.p_offset, ph.p_filesz, ph.p_align == 8 ? 8 : 4, name, type, desc, desc_len))
            return true;
    }
    return false;
}

static int elf_add_segment(struct load *l, struct elf_image *img, const struct elf64_phdr *ph)
{
    if (ph->p_offset > l->kernel_len || ph->p_filesz > l->kernel_len - ph->p_offset)
        return load_fail(l, -EINVAL, "the kernel's ELF segment at file offset %llx ends beyond the file", (unsigned long long)ph->p_offset);
    if (ph->p_filesz > ph->p_memsz)
        return load_fail(l, -EINVAL, "the kernel's ELF segment at %llx is larger in the file than in memory", (unsigned long long)ph->p_paddr);
    if (img->nsegs == LOAD_MAX_SEGS)
        return load_fail(l, -EINVAL, "the kernel has more than %d ELF segments", LOAD_MAX_SEGS);
    if (!load_place_ok(l, ph->p_paddr, ph->p_memsz))
        return load_fail(l, -ENOSPC, "the kernel's segment at %llx (%llu KiB) does not lie in the VM's RAM: give it more memory or another kernel",
                         (unsigned long long)ph->p_paddr, (unsigned long long)(ph->p_memsz >> 10));
    img->seg[img->nsegs++] = (struct elf_seg){ ph->p_paddr, ph->p_vaddr, ph->p_memsz, ph->p_filesz, ph->p_offset };
    img->lowest = MIN(img->lowest, ph->p_paddr);
    img->end = MAX(img->end, ph->p_paddr + ph->p_memsz);
    return 0;
}

static bool in_segment(uint64_t at, uint64_t base, uint64_t len)
{
    return at >= base && at - base < len;
}

/* e_entry is physical where it can be; a kernel linked high gives a virtual address, which its segment translates. */
static int elf_find_entry(struct load *l, struct elf_image *img, uint64_t entry)
{
    for (int i = 0; i < img->nsegs; i++)
        if (in_segment(entry, img->seg[i].paddr, img->seg[i].memsz)) {
            img->entry = entry;
            return 0;
        }
    for (int i = 0; i < img->nsegs; i++)
        if (in_segment(entry, img->seg[i].vaddr, img->seg[i].memsz)) {
            img->entry = entry - img->seg[i].vaddr + img->seg[i].paddr;
            return 0;
        }
    return load_fail(l, -EINVAL, "the kernel's entry point %llx is in none of its segments", (unsigned long long)entry);
}

int load_elf_parse(struct load *l, struct elf_image *img)
{
    memset(img, 0, sizeof *img);
    img->lowest = UINT64_MAX;
    if (!load_elf_is(l->kernel, l->kernel_len))
        return load_fail(l, -EINVAL, "the kernel is not an ELF file");
    img->is64 = l->kernel[4] == ELF_CLASS_64;
    for (unsigned i = 0; i < elf_phnum(l->kernel); i++) {
        struct elf64_phdr ph;
        if (!elf_phdr(l->kernel, l->kernel_len, i, &ph))
            return load_fail(l, -EINVAL, "the kernel's ELF program headers lie outside the file");
        if (ph.p_type != ELF_PT_LOAD || !ph.p_memsz)
            continue;
        int err = elf_add_segment(l, img, &ph);
        if (err)
            return err;
    }
    if (!img->nsegs)
        return load_fail(l, -EINVAL, "the kernel's ELF file has nothing to load");
    uint64_t entry;
    if (img->is64)
        memcpy(&entry, l->kernel + offsetof(struct elf64_ehdr, e_entry), 8);
    else
        entry = ((const struct elf32_ehdr *)(const void *)l->kernel)->e_entry;
    return elf_find_entry(l, img, entry);
}

static int write_segments(struct load *l, const struct elf_seg *seg, int n)
{
    for (int i = 0; i < n; i++)
        if (gmem_write(l->gmem, seg[i].paddr, l->kernel + seg[i].off, seg[i].filesz) ||
            gmem_zero(l->gmem, seg[i].paddr + seg[i].filesz, seg[i].memsz - seg[i].filesz))
            return load_fail(l, -EFAULT, "guest memory at %llx cannot be written", (unsigned long long)seg[i].paddr);
    return 0;
}

/* A hole in conventional memory, clear of all segments; 0: none. */
static gpa_t info_place(const struct elf_seg *seg, int n)
{
    enum { len = LOAD_INFO_BYTES };
    static const gpa_t places[] = { 0x10000, 0x40000, 0x70000 };
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        bool clear = places[i] + len <= CONV_MEM_END;
        for (int k = 0; clear && k < n; k++)
            clear = places[i] + len <= seg[k].paddr || seg[k].paddr + seg[k].memsz <= places[i];
        if (clear)
            return places[i];
    }
    return 0;
}

int load_with_info(struct load *l, const struct elf_image *img, uint64_t entry, uint64_t module, int (*write)(struct load *, gpa_t, uint64_t))
{
    gpa_t info = info_place(img->seg, img->nsegs);
    if (!info || strlen(l->cmdline) >= LOAD_INFO_BYTES - LOAD_INFO_CMDLINE)
        return load_fail(l, -ENOSPC, "no room for the boot information below 640 KiB");
    if (l->check_only)
        return 0;
    int err = write_segments(l, img->seg, img->nsegs);
    if (err)
        return err;
    err = load_string(l, info + LOAD_INFO_STRING, l->initrd_name, LOAD_INFO_CMDLINE - LOAD_INFO_STRING);
    err = err ? err : load_string(l, info + LOAD_INFO_CMDLINE, l->cmdline, LOAD_INFO_BYTES - LOAD_INFO_CMDLINE);
    if (!err && module)
        err = gmem_write(l->gmem, module, l->initrd, l->initrd_len);
    err = err ? err : write(l, info, module);
    if (err)
        return load_fail(l, -EFAULT, "guest memory for boot information cannot be written");
    l->gpr[LOAD_RBX] = info + LOAD_INFO_START;
    return load_flat32(l, info + LOAD_INFO_GDT, entry);
}

/* ---- CPU state ---- */

/* Segment attributes as in struct cpu_seg: type, S, DPL, P, AVL, L, D/B, G. */
enum {
    ATTR_CODE64 = 0xa9b, ATTR_CODE32 = 0xc9b, ATTR_DATA = 0xc93, ATTR_LDT = 0x82, ATTR_TSS = 0x8b,
    SEL_CODE = 0x10, SEL_DATA = 0x18, SEL_TSS = 0x20,           /* as Linux and PVH loaders have them */
};

static void flat_segments(struct load *l, uint16_t code_attr)
{
    for (unsigned i = SEG_ES; i <= SEG_GS; i++)
        l->cpu.seg[i] = (struct cpu_seg){ 0, 0xffffffff, SEL_DATA, ATTR_DATA };
    l->cpu.seg[SEG_CS] = (struct cpu_seg){ 0, 0xffffffff, SEL_CODE, code_attr };
    l->cpu.seg[SEG_LDTR] = (struct cpu_seg){ 0, 0, 0, ATTR_LDT };
    l->cpu.seg[SEG_TR] = (struct cpu_seg){ 0, 0x67, SEL_TSS, ATTR_TSS };
}

static int common_state(struct load *l, gpa_t gdt_at, uint64_t entry, bool long_mode)
{
    const uint64_t gdt[] = { 0, 0, long_mode ? 0x00af9b000000ffffull : 0x00cf9b000000ffffull, 0x00cf93000000ffffull, 0x00008b0000000067ull };
    if (gmem_write(l->gmem, gdt_at, gdt, sizeof gdt))
        return load_fail(l, -EFAULT, "guest memory at %llx cannot be written", (unsigned long long)gdt_at);
    flat_segments(l, long_mode ? ATTR_CODE64 : ATTR_CODE32);
    l->cpu.gdt = (struct cpu_dtab){ gdt_at, sizeof gdt - 1 };
    l->cpu.idt = (struct cpu_dtab){ 0, 0 };
    l->cpu.cr0 = 0x11;                          /* PE, ET */
    l->cpu.dr6 = 0xffff0ff0;
    l->cpu.dr7 = 0x400;
    l->cpu.pat = 0x0007040600070406ull;
    l->rip = entry;
    return 0;
}

int load_flat32(struct load *l, gpa_t work, uint64_t entry)
{
    return common_state(l, work, entry, false);
}

int load_long64(struct load *l, gpa_t work, uint64_t entry)
{
    enum { P_W = 3, PS = 0x80 };
    uint64_t table[512] = { 0 };
    gpa_t pml4 = work + 0x1000, pdpt = work + 0x2000, pd = work + 0x3000;
    int err = common_state(l, work, entry, true);
    if (err)
        return err;
    table[0] = pdpt | P_W;
    err = gmem_write(l->gmem, pml4, table, sizeof table);
    for (unsigned i = 0; i < 4; i++)
        table[i] = (pd + i * PAGE_SIZE) | P_W;
    err = err ? err : gmem_write(l->gmem, pdpt, table, sizeof table);
    for (unsigned i = 0; !err && i < 4; i++) {
        for (unsigned k = 0; k < 512; k++)
            table[k] = i * PAGE_1G + k * PAGE_2M + (P_W | PS);
        err = gmem_write(l->gmem, pd + i * PAGE_SIZE, table, sizeof table);
    }
    if (err)
        return load_fail(l, -EFAULT, "guest memory at %llx cannot be written", (unsigned long long)work);
    l->cpu.cr0 |= 0x80000000u;                  /* PG */
    l->cpu.cr3 = pml4;
    l->cpu.cr4 = 0x20;                          /* PAE */
    l->cpu.efer = 0x500;                        /* LME, LMA */
    return 0;
}
