/* First byte: parser.  Whatever a loader hands over, the result is an error or a clean map. */
#include <stdlib.h>
#include <string.h>
#include "boot/bootinfo.h"

static const uint8_t *pvh_bytes;
static size_t pvh_len;

static void *pvh_at(uint64_t pa, size_t len)
{
    return pa >= 0x1000 && pa - 0x1000 <= pvh_len && len <= pvh_len - (pa - 0x1000) ? (void *)(pvh_bytes + (pa - 0x1000)) : NULL;
}

static void check(const struct bootinfo *b)
{
    bool ram = false;
    for (int i = 0; i < b->nmem; i++) {
        const struct bootmem *m = &b->mem[i];
        bool pages = m->type == BOOTMEM_RAM || m->type == BOOTMEM_LOADER;
        if (m->len == 0 || (i && m[-1].base + m[-1].len > m->base) || m->base + m->len > BIT(52))
            abort();
        if (pages && !IS_ALIGNED(m->base | m->len, PAGE_SIZE))
            abort();
        ram |= m->type == BOOTMEM_RAM;
    }
    if (!ram)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct bootinfo b;
    char err[160], val[16];

    if (size < 1)
        return 0;
    uint8_t *copy = malloc(size);
    memcpy(copy, data + 1, size - 1);
    pvh_bytes = copy;
    pvh_len = size - 1;
    int rc = data[0] & 1 ? bootinfo_pvh(&b, 0x1000, pvh_at, err, sizeof(err)) : bootinfo_multiboot2(&b, copy, size - 1, err, sizeof(err));
    if (rc == 0)
        check(&b);
    bootinfo_option(&b, "demo", val, sizeof(val));
    free(copy);
    return 0;
}
