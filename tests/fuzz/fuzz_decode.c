/* Any bytes in any mode: the decoder reads no further than told, and its verdict on a prefix of the bytes is consistent. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernel/vmm/decode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct insn whole, part;

    if (size < 2 || size > 64)
        return 0;
    enum cpu_mode mode = data[0] % 3;
    unsigned n = size - 1;
    uint8_t *exact = malloc(n);         /* so that the sanitizer sees one byte too many */
    memcpy(exact, data + 1, n);
    int r = insn_decode(&whole, mode, exact, n);
    if (r == 0 && (whole.len < 1 || whole.len > 15 || whole.len > n || whole.op == INSN_NONE || whole.op >= INSN_OPS))
        abort();
    if (r == 0 && (whole.reg > 15 || whole.rm > 15 || (whole.base > 16 && whole.base != INSN_NO_REG) || (whole.index > 15 && whole.index != INSN_NO_REG) || whole.seg > SEG_GS))
        abort();
    free(exact);
    for (unsigned k = 0; k < n && k <= 15; k++) {
        exact = malloc(k + 1);
        memcpy(exact, data + 1, k);
        int p = insn_decode(&part, mode, exact, k);
        free(exact);
        if (r == 0 && k < whole.len && p != -ENODATA)
            abort();
        if (r == 0 && k >= whole.len && (p != 0 || memcmp(&part, &whole, sizeof part)))
            abort();
        if (r != 0 && p == 0)
            abort();
        if (r == -ENODATA && p != -ENODATA)
            abort();
    }
    return 0;
}
