/* Image formats: the first byte picks one, the rest is the file.  Open for writing, map, read, write, discard, check, resize, close. */
#include <stdlib.h>
#include <string.h>
#include "kernel/block/image.h"
#include "kernel/lib/port.h"
#include "tests/host/mem_blk.h"

static int no_file(void *arg, const char *name, bool write, struct blk **out)
{
    struct mem_blk *m = mem_blk_create(65536, 65536, MEM_INLINE, 1);
    memset(m->data, 0x42, 65536);
    *out = &m->blk;
    return 0;
}

static void use(struct blk *b, uint64_t seed)
{
    static uint8_t buf[70000];
    struct image_check c = { .say = NULL };
    struct image_info info;
    image_info(b, &info);
    for (int i = 0; i < 40; i++) {
        uint64_t sectors = MIN(b->size / 512, 1ull << 30), k = mem_rand(&seed);
        if (!sectors)
            break;
        uint64_t off = mem_rand(&seed) % sectors * 512, len = MIN(b->size - off, 512 * (1 + k % 130));
        unsigned what;
        uint64_t at, part = b->size - off;
        switch (k >> 32 & 7) {
        case 0: case 1: blk_read(b, off, buf, len); break;
        case 2: case 3: blk_write(b, off, buf, len, 0); break;
        case 4: blk_discard(b, off, len); break;
        case 5: blk_write_zeroes(b, off, len, k & 1 ? BLK_UNMAP_OK : 0); break;
        case 6: image_map(b, off, &part, &what, &at); break;
        case 7: blk_flush(b); break;
        }
    }
    image_check(b, seed & 1 ? CHECK_FIX_ALL : 0, &c);
    struct image_env env = { .open = NULL };
    image_resize(b, b->size + 512 * (mem_rand(&seed) % 4096), false, &env);
    image_check(b, 0, &c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const enum image_format formats[] = { IMAGE_QCOW2, IMAGE_VDI, IMAGE_VMDK };
    struct image_env env = { .open = no_file };
    struct blk *img;
    if (len < 2 || len > 1 << 20)
        return 0;
    struct mem_blk *m = mem_blk_create(ALIGN_UP(len - 1, 512ul), 16 << 20, MEM_INLINE, 1);
    memcpy(m->data, data + 1, len - 1);
    image_probe(&m->blk);
    bool write = data[0] & 0x80;
    if (!image_open(formats[(data[0] & 0x7f) % 3], &m->blk, write ? IMAGE_WRITE : 0, &env, &img)) {
        use(img, len);
        blk_close(img);
    }
    return 0;
}
