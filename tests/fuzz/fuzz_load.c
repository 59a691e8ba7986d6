/* Kernel files and initrds of any content: a sentence, or boot state whose entry point lies in RAM.  A check and the load itself agree. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "guestdev/load.h"
#include "kernel/vmm/gmem_core.h"
#include "tests/host/vguest.h"

static struct gmem *memory(void)
{
    static struct vguest *g;
    if (!g)
        g = vguest_create(8 << 20, 1);
    return &g->gmem;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char err[200];
    if (size < 4)
        return 0;
    /* First bytes: RAM in MiB, initrd size in KiB, command line length. */
    size_t cmd = data[2] * 16u;
    char *line = malloc(cmd + 1);
    memset(line, 'x', cmd);
    line[cmd] = 0;
    size_t n = size - 4, initrd = data[1] * 1024u;
    uint8_t *kernel = malloc(n ? n : 1), *ird = calloc(1, initrd + 1);
    memcpy(kernel, data + 4, n);
    struct load l = { .gmem = memory(), .kernel = kernel, .kernel_len = n, .initrd = ird, .initrd_len = initrd, .cmdline = line,
                      .ram = ((data[0] & 7) + 1) << 20, .rsdp = BIOS_AREA, .check_only = true, .err = err, .errlen = sizeof err };
    err[0] = 0;
    int check = load_kernel(&l);
    if (check && !err[0])
        abort();
    l.check_only = false;
    int real = load_kernel(&l);
    if (check != real || (!real && !gmem_is_ram(l.gmem, l.rip, 1)) || (!real && (l.rip >= l.ram || l.rip < 0x1000)))
        abort();
    free(line);
    free(kernel);
    free(ird);
    return 0;
}
