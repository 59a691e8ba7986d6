/* Loads the kernel at a 2 MiB boundary below 4 GiB.  System V ABI, AMD64 supplement: "Object files". */
#include "boot/boot.h"
#include "boot/uefi/loader.h"

#define ALIGN_2M (2ull << 20)
enum { PT_LOAD = 1, PT_NOTE = 4, EM_X86_64 = 62, MAX_SEGMENTS = 16 };

struct elf_header {
    uint8_t ident[16];
    uint16_t type, machine;
    uint32_t version;
    uint64_t entry, phoff, shoff;
    uint32_t flags;
    uint16_t ehsize, phentsize, phnum, shentsize, shnum, shstrndx;
};
struct elf_segment { uint32_t type, flags; uint64_t offset, vaddr, paddr, filesz, memsz, align; };
struct elf_note { uint32_t namesz, descsz, type; };
_Static_assert(sizeof(struct elf_header) == 64 && sizeof(struct elf_segment) == 56 && sizeof(struct elf_note) == 12, "ELF64");

struct elf { struct elf_header h; struct elf_segment seg[MAX_SEGMENTS]; uint64_t low, high /* physical, as linked */; };

static EFI_STATUS read_headers(EFI_FILE_HANDLE file, const CHAR16 *path, uint64_t size, struct elf *e)
{
    static const uint8_t ident[] = { 0x7f, 'E', 'L', 'F', 2, 1 };       /* 64-bit, little endian */
    const CHAR16 *bad = L"%s is not a Joist kernel. Copy build/joist.elf there again.";

    if (size < sizeof(e->h))
        return fail(EFI_LOAD_ERROR, bad, path);
    EFI_STATUS s = file_read(file, path, 0, &e->h, sizeof(e->h));
    if (EFI_ERROR(s))
        return s;
    uint64_t table = (uint64_t)e->h.phnum * sizeof(e->seg[0]);
    if (CompareMem(e->h.ident, ident, sizeof(ident)) || e->h.machine != EM_X86_64 || e->h.phentsize != sizeof(e->seg[0]) ||
        e->h.phnum > MAX_SEGMENTS || e->h.phoff > size || table > size - e->h.phoff)
        return fail(EFI_LOAD_ERROR, bad, path);
    s = file_read(file, path, e->h.phoff, e->seg, table);
    if (EFI_ERROR(s))
        return s;
    e->low = ~0ull;
    for (int i = 0; i < e->h.phnum; i++) {
        const struct elf_segment *g = &e->seg[i];
        if (g->offset > size || g->filesz > size - g->offset || g->filesz > g->memsz || g->memsz > 1ull << 30 || g->paddr > 1ull << 32)
            return fail(EFI_LOAD_ERROR, bad, path);
        if (g->type == PT_LOAD) {
            e->low = g->paddr < e->low ? g->paddr : e->low;
            e->high = g->paddr + g->memsz > e->high ? g->paddr + g->memsz : e->high;
        }
    }
    return e->low < e->high ? EFI_SUCCESS : fail(EFI_LOAD_ERROR, bad, path);
}

/* Pages for the image, aligned to 2 MiB.  Loader code: firmware that protects its memory keeps that executable. */
static EFI_STATUS place(const struct elf *e, uint64_t *base)
{
    UINTN pages = (e->high - e->low + EFI_PAGE_SIZE - 1) / EFI_PAGE_SIZE, spare = ALIGN_2M / EFI_PAGE_SIZE;
    EFI_PHYSICAL_ADDRESS at = BELOW_4G;
    EFI_STATUS s = BS->AllocatePages(AllocateMaxAddress, EfiLoaderCode, pages + spare, &at);

    if (EFI_ERROR(s))
        return fail(s, L"there is no room for the kernel, %ld KiB, in the memory below 4 GiB.", (e->high - e->low) >> 10);
    *base = (at + ALIGN_2M - 1) & ~(ALIGN_2M - 1);
    UINTN before = (*base - at) / EFI_PAGE_SIZE;
    if (before)
        BS->FreePages(at, before);
    if (spare > before)
        BS->FreePages(*base + pages * EFI_PAGE_SIZE, spare - before);
    return s;
}

/* The link address that our note holds, among the notes of one loaded segment. */
static uint64_t find_entry64(const uint8_t *note, uint64_t len)
{
    struct elf_note n;
    for (uint64_t off = 0; off + sizeof(n) <= len;) {
        CopyMem(&n, (void *)(note + off), sizeof(n));
        uint64_t name = off + sizeof(n), desc = name + ((n.namesz + 3ull) & ~3ull), next = desc + ((n.descsz + 3ull) & ~3ull);
        if (next > len)
            break;
        if (n.type == BOOT_NOTE_ENTRY64 && n.namesz == 6 && n.descsz == 8 && CompareMem((void *)(note + name), "Joist", 6) == 0) {
            uint64_t entry;
            CopyMem(&entry, (void *)(note + desc), sizeof(entry));
            return entry;
        }
        off = next;
    }
    return 0;
}

EFI_STATUS kernel_load(EFI_FILE_HANDLE root, const CHAR16 *path, struct kernel *k)
{
    EFI_FILE_HANDLE file;
    struct elf e = { 0 };
    uint64_t size, entry = 0;
    EFI_STATUS s = file_open(root, path, &file, &size);

    if (s == EFI_NOT_FOUND)
        return fail(s, L"%s is missing. Copy the whole folder \\joist onto this volume.", path);
    if (!EFI_ERROR(s))
        s = read_headers(file, path, size, &e);
    if (!EFI_ERROR(s))
        s = place(&e, &k->base);
    if (EFI_ERROR(s))
        return s;
    for (int i = 0; i < e.h.phnum; i++) {
        const struct elf_segment *g = &e.seg[i];
        uint8_t *at = (uint8_t *)(k->base + (g->paddr - e.low));
        if (g->type != PT_LOAD)
            continue;
        s = file_read(file, path, g->offset, at, g->filesz);
        if (EFI_ERROR(s))
            return s;
        ZeroMem(at + g->filesz, g->memsz - g->filesz);
    }
    for (int i = 0; i < e.h.phnum && !entry; i++)       /* notes lie inside a loaded segment */
        if (e.seg[i].type == PT_NOTE && e.seg[i].paddr >= e.low && e.seg[i].paddr + e.seg[i].memsz <= e.high)
            entry = find_entry64((uint8_t *)(k->base + (e.seg[i].paddr - e.low)), e.seg[i].memsz);
    k->entry64 = entry - KERNEL_VIRT + k->base;
    file->Close(file);
    if (entry < KERNEL_VIRT || k->entry64 >= k->base + (e.high - e.low))
        return fail(EFI_LOAD_ERROR, L"%s has no 64-bit entry. Use the kernel that was built together with this loader.", path);
    return EFI_SUCCESS;
}
