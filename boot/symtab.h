/* Names for addresses, for backtraces: the kernel's own function symbols, put into the image by scripts/link-kernel.  Any context. */
#pragma once
#include "kernel/lib/base.h"

/* Name of the function that holds addr and, in *offset, the distance from its start; NULL (and offset untouched) when unknown. */
const char *symtab_lookup(uintptr_t addr, uintptr_t *offset);
