#include "boot/boot.h"
#include "boot/uefi/loader.h"

enum { TAG_CMDLINE = 1, TAG_LOADER = 2, INFO_MAX = 256 << 10, MAP_SLACK = 32 /* descriptors */, MAX_FILES = 250, MAX_PATH = 160 };

/* ---- Failure ---- */

EFI_STATUS fail(EFI_STATUS status, const CHAR16 *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    Print(L"Joist: ");
    VPrint(fmt, args);
    Print(L"\n");
    va_end(args);
    return status;
}

uintptr_t __stack_chk_guard = 0x595e9fbd94fda700;       /* made unforeseeable in efi_main */
void __stack_chk_fail(void) __attribute__((noreturn));
void __stack_chk_fail(void)
{
    RT->ResetSystem(EfiResetCold, EFI_ABORTED, 0, NULL);
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* ---- Image store ---- */

static const char *skip_word(const char *s, const char *end)
{
    while (s < end && *s != ' ')
        s++;
    return s < end ? s + 1 : end;
}

static uint64_t number(const char *s)
{
    uint64_t n = 0;
    while (*s >= '0' && *s <= '9')
        n = n * 10 + (*s++ - '0');
    return n;
}

/* One manifest line, "crc32c size name": loads \joist\images\NAME.  The kernel checks the sum; a wrong size is told here. */
static EFI_STATUS load_image(EFI_FILE_HANDLE root, const char *line, const char *end, struct info *info)
{
    CHAR16 path[MAX_PATH] = L"\\joist\\images\\";
    const char *size_at = skip_word(line, end), *name = skip_word(size_at, end);
    UINTN n = StrLen(path);
    uint8_t *data;
    uint64_t size;

    if (name == end || (UINTN)(end - name) >= MAX_PATH - n)
        return fail(EFI_LOAD_ERROR, L"\\joist\\manifest is damaged. Copy the whole folder \\joist again.");
    for (const char *p = name; p < end; p++)
        path[n++] = *p == '/' ? '\\' : (CHAR16)*p;
    path[n] = 0;

    EFI_STATUS s = file_load(root, path, &data, &size);
    if (s == EFI_NOT_FOUND)
        return fail(s, L"%s is missing, but \\joist\\manifest names it. Copy the whole folder \\joist again.", path);
    if (EFI_ERROR(s))
        return s;
    if (size != number(size_at))
        return fail(EFI_LOAD_ERROR, L"%s has %ld bytes, \\joist\\manifest says %ld. Copy the whole folder \\joist again.", path, size,
                    number(size_at));
    info_module(info, (uint64_t)data, size, "image:", name, end - name);
    return s;
}

static EFI_STATUS load_store(EFI_FILE_HANDLE root, struct info *info)
{
    uint8_t *manifest;
    uint64_t size;
    int files = 0;
    EFI_STATUS s = file_load(root, L"\\joist\\manifest", &manifest, &size);

    if (s == EFI_NOT_FOUND || (!EFI_ERROR(s) && size == 0))
        return EFI_SUCCESS;
    if (EFI_ERROR(s))
        return s;
    info_module(info, (uint64_t)manifest, size, "", "manifest", 8);
    for (const char *line = (char *)manifest, *all = line + size; line < all && !EFI_ERROR(s);) {
        const char *end = line;
        while (end < all && *end != '\n')
            end++;
        if (++files > MAX_FILES)
            return fail(EFI_LOAD_ERROR, L"the image store has more than %d files.", MAX_FILES);
        s = load_image(root, line, end, info);
        line = end + 1;
    }
    return s;
}

static EFI_STATUS load_cmdline(EFI_FILE_HANDLE root, struct info *info)
{
    uint8_t *text;
    uint64_t size;
    EFI_STATUS s = file_load(root, L"\\joist\\cmdline", &text, &size);

    if (s == EFI_NOT_FOUND)
        return EFI_SUCCESS;
    if (EFI_ERROR(s))
        return s;
    uint32_t len = 0;
    while (len < size && len < 4096 && text[len] >= ' ')        /* up to the end of the line, whichever editor wrote it */
        len++;
    info_string(info, TAG_CMDLINE, (char *)text, len);
    return s;
}

/* ---- The firmware's last minute ---- */

static EFI_STATUS get_map(struct memory_map *m)
{
    m->size = m->max;
    return BS->GetMemoryMap(&m->size, (EFI_MEMORY_DESCRIPTOR *)m->buf, &m->key, &m->desc_size, &m->version);
}

/* Room for the map, with slack: allocating changes it, and so may any event until the exit. */
static EFI_STATUS alloc_map(struct memory_map *m)
{
    EFI_STATUS s = get_map(m);
    if (s != EFI_BUFFER_TOO_SMALL)
        return fail(s, L"the firmware gives no memory map (%r).", s);
    m->max = m->size + MAP_SLACK * m->desc_size;
    s = BS->AllocatePool(EfiLoaderData, m->max, (void **)&m->buf);
    return EFI_ERROR(s) ? fail(s, L"there is no memory for the memory map.") : s;
}

/* A timer event between the two calls makes the key stale: then the map is read again, which alone is still allowed. */
static EFI_STATUS exit_boot_services(EFI_HANDLE image, struct memory_map *m)
{
    EFI_STATUS s = EFI_INVALID_PARAMETER;
    for (int i = 0; i < 16 && s == EFI_INVALID_PARAMETER; i++) {
        s = get_map(m);
        if (!EFI_ERROR(s))
            s = BS->ExitBootServices(image, m->key);
    }
    return EFI_ERROR(s) ? fail(s, L"the firmware does not hand over the machine (%r).", s) : s;
}

__attribute__((noreturn)) static void enter(const struct kernel *k, const struct info *info)
{
    __asm__ volatile("cli; cld; jmp *%0" : : "r"(k->entry64), "D"(BOOT_KIND_MULTIBOOT2), "S"(info->at) : "memory");
    __builtin_unreachable();
}

static EFI_STATUS boot(EFI_HANDLE image, EFI_SYSTEM_TABLE *st)
{
    static const char name[] = "Joist UEFI loader";
    struct memory_map map = { 0 };
    struct kernel kernel;
    struct info info;
    EFI_FILE_HANDLE root;
    EFI_PHYSICAL_ADDRESS at = BELOW_4G;

    BS->SetWatchdogTimer(0, 0, 0, NULL);        /* reading a large store from a slow stick may take minutes */
    EFI_STATUS s = BS->AllocatePages(AllocateMaxAddress, EfiLoaderData, INFO_MAX / EFI_PAGE_SIZE, &at);
    if (EFI_ERROR(s))
        return fail(s, L"there is no free memory below 4 GiB.");
    info_begin(&info, (void *)at, INFO_MAX);
    info_string(&info, TAG_LOADER, name, sizeof(name) - 1);
    s = volume_open(image, &root);
    if (!EFI_ERROR(s))
        s = kernel_load(root, L"\\joist\\joist.elf", &kernel);
    if (!EFI_ERROR(s))
        s = load_cmdline(root, &info);
    if (!EFI_ERROR(s))
        s = load_store(root, &info);
    if (EFI_ERROR(s))
        return s;
    info_firmware(&info, st);
    s = alloc_map(&map);
    if (EFI_ERROR(s))
        return s;
    if (info.full || info.max - info.len < map.max / map.desc_size * 24 + 64)
        return fail(EFI_BUFFER_TOO_SMALL, L"the memory map and the names in the image store are too long.");
    s = exit_boot_services(image, &map);
    if (EFI_ERROR(s))
        return s;
    info_memory(&info, &map);
    info_end(&info);
    enter(&kernel, &info);
}

/* Called by gnu-efi's start code, in the System V convention. */
EFI_STATUS efi_main(EFI_HANDLE image, EFI_SYSTEM_TABLE *st);

__attribute__((optimize("no-stack-protector"))) EFI_STATUS efi_main(EFI_HANDLE image, EFI_SYSTEM_TABLE *st)
{
    uint32_t lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    __stack_chk_guard ^= ((uint64_t)lo << 40 | (uint64_t)hi << 24 | (uint64_t)lo << 8) & ~0xffull;
    InitializeLib(image, st);
    EFI_STATUS s = boot(image, st);
    BS->Stall(10 * 1000 * 1000);        /* time to read; then the firmware goes on with its boot order */
    return s;
}
