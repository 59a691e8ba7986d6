/* The host's ACPI parser over a memory image.  Checksums are repaired for every table that is asked for, so that the bytes behind them are reached. */
#include <stdlib.h>
#include <string.h>
#include "kernel/x86/acpi.h"

enum { BASE = 0xe0000, MAX_MAPS = 2048 };
static const uint8_t *image;
static size_t image_len;
static void *maps[MAX_MAPS];
static unsigned nmaps;

/* Exact-size copies; the checksum byte (9 of a table, 8 and 32 of the RSDP) makes the sum zero. */
static const void *map(hpa_t pa, size_t len)
{
    if (pa < BASE || pa - BASE > image_len || nmaps == MAX_MAPS)
        return NULL;
    size_t have = image_len - (pa - BASE);
    if (len > have && !(pa == BASE && len == 0x20000))
        return NULL;
    uint8_t *p = calloc(1, len ? len : 1), sum = 0;
    memcpy(p, image + (pa - BASE), len < have ? len : have);
    maps[nmaps++] = p;
    if (len > 9 && pa != BASE) {
        for (size_t i = 0; i < len; i++)
            sum += p[i];
        p[9] -= sum;
    }
    return p;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct acpi_info info;
    uint8_t rsdp[36] = "RSD PTR ";
    if (size < 64)
        return 0;
    image = data, image_len = size;
    rsdp[15] = 2, rsdp[20] = 36;
    uint32_t root = BASE + 16;
    memcpy(rsdp + 16, &root, 4);
    if (data[0] & 1)
        memcpy(rsdp + 24, &root, 4);
    uint8_t sum = 0;
    for (unsigned i = 0; i < 20; i++)
        sum += rsdp[i];
    rsdp[8] -= sum;
    sum = 0;
    for (unsigned i = 0; i < 36; i++)
        sum += rsdp[i];
    rsdp[32] -= sum;
    struct acpi_source src = { .map = map, .rsdp_copy = data[0] & 2 ? NULL : rsdp, .rsdp_copy_len = 36 };
    acpi_parse(&info, &src);
    if (info.cpus > MAX_CPUS || info.ioapics > ACPI_MAX_IOAPICS || info.mcfgs > ACPI_MAX_MCFG || info.lints > ACPI_MAX_LINT ||
        info.warnings > ACPI_MAX_WARN || info.iommus > ARRAY_SIZE(info.iommu_base) || (info.have_s5 && (info.s5_a > 7 || info.s5_b > 7)))
        abort();
    while (nmaps)
        free(maps[--nmaps]);
    return 0;
}
