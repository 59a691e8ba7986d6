/* Definition files of any content: no crash; what is accepted comes back the same through TOML and through JSON. */
#include <stdlib.h>
#include <string.h>
#include "kernel/lib/port.h"
#include "mgmt/vmdef.h"

static void again(const struct buf *text, const struct vmdef *want)
{
    static struct vmdef d;
    struct fail f;
    vmdef_init(&d);
    ASSERT(!text->failed);
    if (text->len > VMDEF_MAX_FILE)
        return;
    ASSERT(!vmdef_read(&d, text->p, text->len, "again", &f));
    ASSERT(!memcmp(&d, want, sizeof d));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct vmdef d;
    struct fail f;
    struct buf b;
    struct json j;
    char *copy = malloc(size ? size : 1);        /* exact size: reading past the end is seen */
    if (size)
        memcpy(copy, data, size);
    vmdef_init(&d);
    int code = vmdef_read(&d, copy, size, "fuzz", &f);
    free(copy);
    if (code) {
        ASSERT(f.message[0] && f.code == code);
        return 0;
    }
    for (unsigned i = 0; i < VMDEF_DISKS; i++)          /* bytes behind a string's end do not count */
        for (size_t n = strlen(d.disks[i].image); n < sizeof d.disks[i].image; n++)
            ASSERT(i >= d.ndisks || !d.disks[i].image[n]);
    buf_init(&b, 1 << 20);
    vmdef_toml(&d, &b);
    again(&b, &d);
    buf_free(&b);
    json_begin(&j, &b);
    vmdef_json(&d, &j, NULL);
    again(&b, &d);
    buf_free(&b);
    return 0;
}
