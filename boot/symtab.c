#include "boot/boot.h"
#include "boot/symtab.h"

/* Written by scripts/link-kernel: `count` entries sorted by address, names behind them. */
struct symtab_entry { uint32_t addr /* from __text_start */, name /* from the first name */; };
extern const struct {
    uint32_t count;
    struct symtab_entry entry[];
} symtab_blob;

const char *symtab_lookup(uintptr_t addr, uintptr_t *offset)
{
    uintptr_t rel = addr - (uintptr_t)__text_start;
    if (addr < (uintptr_t)__text_start || addr >= (uintptr_t)__text_end || symtab_blob.count == 0 || rel < symtab_blob.entry[0].addr)
        return NULL;

    uint32_t lo = 0, hi = symtab_blob.count;        /* entry[lo] <= rel < entry[hi] */
    while (hi - lo > 1) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (symtab_blob.entry[mid].addr <= rel)
            lo = mid;
        else
            hi = mid;
    }
    *offset = rel - symtab_blob.entry[lo].addr;
    return (const char *)&symtab_blob.entry[symtab_blob.count] + symtab_blob.entry[lo].name;
}
