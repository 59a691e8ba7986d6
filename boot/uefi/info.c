/* Builds what boot/bootinfo.c reads.  Multiboot2 Specification 2.0, "Boot information format". */
#include "boot/boot.h"
#include "boot/uefi/loader.h"

enum { TAG_END = 0, TAG_CMDLINE = 1, TAG_MODULE = 3, TAG_MMAP = 6, TAG_FRAMEBUFFER = 8, TAG_EFI64 = 12, TAG_RSDP_OLD = 14, TAG_RSDP_NEW = 15 };
enum { MB_RAM = 1, MB_RESERVED = 2, MB_ACPI = 3, MB_NVS = 4, MB_BAD = 5 };

static void put(struct info *b, const void *p, uint32_t len)
{
    if (len > b->max - b->len) {
        b->full = true;
        return;
    }
    for (uint32_t i = 0; i < len; i++)
        b->at[b->len + i] = ((const uint8_t *)p)[i];
    b->len += len;
}

static void put32(struct info *b, uint32_t v) { put(b, &v, sizeof(v)); }
static void put64(struct info *b, uint64_t v) { put(b, &v, sizeof(v)); }

static void tag(struct info *b, uint32_t type, uint32_t payload)
{
    static const uint8_t zero[8];
    put(b, zero, -b->len & 7);
    put32(b, type);
    put32(b, 8 + payload);
}

void info_begin(struct info *b, void *buf, uint32_t max)
{
    *b = (struct info){ .at = buf, .max = max };
    put64(b, 0);        /* total size: info_end */
}

void info_string(struct info *b, uint32_t type, const char *s, uint32_t len)
{
    tag(b, type, len + 1);
    put(b, s, len);
    put(b, "", 1);
}

void info_module(struct info *b, uint64_t base, uint64_t len, const char *prefix, const char *name, uint32_t name_len)
{
    uint32_t prefix_len = strlena((const CHAR8 *)prefix);
    tag(b, TAG_MODULE, 8 + prefix_len + name_len + 1);
    put32(b, base);
    put32(b, base + len);
    put(b, prefix, prefix_len);
    put(b, name, name_len);
    put(b, "", 1);
}

/* ---- Framebuffer ---- */

static void mask_to_field(uint32_t mask, uint8_t *pos, uint8_t *len)
{
    for (*pos = 0; mask && !(mask & 1); mask >>= 1)
        ++*pos;
    for (*len = 0; mask & 1; mask >>= 1)
        ++*len;
}

static void info_framebuffer(struct info *b, EFI_SYSTEM_TABLE *st)
{
    EFI_GUID guid = EFI_GRAPHICS_OUTPUT_PROTOCOL_GUID;
    EFI_GRAPHICS_OUTPUT_PROTOCOL *gop;
    uint8_t field[6] = { 0, 8, 8, 8, 16, 8 };           /* position and length of red, green, blue */

    /* The screen of the console first: with two graphics cards, that is the one somebody looks at. */
    if ((!st->ConsoleOutHandle || EFI_ERROR(BS->HandleProtocol(st->ConsoleOutHandle, &guid, (void **)&gop))) &&
        EFI_ERROR(BS->LocateProtocol(&guid, NULL, (void **)&gop)))
        return;
    if (!gop->Mode || !gop->Mode->Info || !gop->Mode->FrameBufferBase)
        return;
    const EFI_GRAPHICS_OUTPUT_MODE_INFORMATION *m = gop->Mode->Info;
    switch (m->PixelFormat) {
    case PixelRedGreenBlueReserved8BitPerColor:
        break;
    case PixelBlueGreenRedReserved8BitPerColor:
        field[0] = 16, field[4] = 0;
        break;
    case PixelBitMask:
        mask_to_field(m->PixelInformation.RedMask, &field[0], &field[1]);
        mask_to_field(m->PixelInformation.GreenMask, &field[2], &field[3]);
        mask_to_field(m->PixelInformation.BlueMask, &field[4], &field[5]);
        break;
    default:
        return;         /* only block transfers by the firmware: nothing the kernel could draw on */
    }
    tag(b, TAG_FRAMEBUFFER, 30);
    put64(b, gop->Mode->FrameBufferBase);
    put32(b, m->PixelsPerScanLine * 4);
    put32(b, m->HorizontalResolution);
    put32(b, m->VerticalResolution);
    put(b, (const uint8_t[]){ 32, 1, 0, 0 }, 4);        /* bits per pixel, RGB */
    put(b, field, 6);
}

/* ---- Tables ---- */

static void *config_table(EFI_SYSTEM_TABLE *st, EFI_GUID guid)
{
    for (UINTN i = 0; i < st->NumberOfTableEntries; i++)
        if (CompareGuid(&st->ConfigurationTable[i].VendorGuid, &guid) == 0)
            return st->ConfigurationTable[i].VendorTable;
    return NULL;
}

/* UEFI Specification "Random Number Generator Protocol": by the firmware's preferred algorithm; many have none. */
static void info_seed(struct info *b)
{
    EFI_GUID guid = EFI_RNG_PROTOCOL_GUID;
    EFI_RNG_PROTOCOL *rng;
    uint8_t seed[BOOT_SEED_BYTES];

    if (EFI_ERROR(BS->LocateProtocol(&guid, NULL, (void **)&rng)) || EFI_ERROR(rng->GetRNG(rng, NULL, sizeof(seed), seed)))
        return;
    tag(b, BOOT_TAG_SEED, sizeof(seed));
    put(b, seed, sizeof(seed));
}

void info_firmware(struct info *b, EFI_SYSTEM_TABLE *st)
{
    void *v2 = config_table(st, (EFI_GUID)ACPI_20_TABLE_GUID), *v1 = config_table(st, (EFI_GUID)ACPI_TABLE_GUID);

    info_framebuffer(b, st);
    if (v2 || v1) {
        tag(b, v2 ? TAG_RSDP_NEW : TAG_RSDP_OLD, v2 ? 36 : 20);
        put(b, v2 ? v2 : v1, v2 ? 36 : 20);
    }
    tag(b, TAG_EFI64, 8);
    put64(b, (uint64_t)st);
    info_seed(b);
}

/* ---- Memory map ---- */

static uint32_t memory_type(const EFI_MEMORY_DESCRIPTOR *d)
{
    switch (d->Type) {
    case EfiLoaderCode:
    case EfiLoaderData:
    case EfiBootServicesCode:
    case EfiBootServicesData:
    case EfiConventionalMemory:
        return MB_RAM;
    case EfiACPIReclaimMemory:
        return MB_ACPI;
    case EfiACPIMemoryNVS:
        return MB_NVS;
    case EfiUnusableMemory:
        return MB_BAD;
    default:
        return MB_RESERVED;
    }
}

void info_memory(struct info *b, const struct memory_map *map)
{
    uint64_t base = 0, end = 0;
    uint32_t type = 0, start;

    tag(b, TAG_MMAP, 8);
    start = b->len - 8;
    put32(b, 24);
    put32(b, 0);
    for (UINTN off = 0; off <= map->size; off += map->desc_size) {
        const EFI_MEMORY_DESCRIPTOR *d = (const void *)(map->buf + off);
        bool last = off + map->desc_size > map->size;
        if (!last && memory_type(d) == type && d->PhysicalStart == end) {
            end += d->NumberOfPages * EFI_PAGE_SIZE;
            continue;
        }
        if (end > base) {
            put64(b, base);
            put64(b, end - base);
            put32(b, type);
            put32(b, 0);
        }
        if (last)
            break;
        base = d->PhysicalStart;
        end = base + d->NumberOfPages * EFI_PAGE_SIZE;
        type = memory_type(d);
    }
    uint32_t size = b->len - start;
    if (!b->full)
        *(uint32_t *)(b->at + start + 4) = size;
}

bool info_end(struct info *b)
{
    tag(b, TAG_END, 0);
    *(uint32_t *)b->at = b->len;
    return !b->full;
}
