#include "kernel/image_selftest.h"

#include <errno.h>
#include <string.h>
#include "kernel/block/image.h"
#include "kernel/host.h"
#include "kernel/lib/crc.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"

#define STEP (256u << 10)

/* The other files that an image names are in the store, too. */
static int open_named(void *arg, const char *name, bool write, struct blk **out)
{
    struct host_image im;
    for (unsigned i = 0; host_image(i, &im); i++)
        if (!strcmp(im.name, name)) {
            *out = write ? NULL : blk_ram_create(name, (void *)(uintptr_t)im.data, im.len, true);
            return *out ? 0 : write ? -EROFS : -ENOMEM;
        }
    return -ENOENT;
}

static int sum(struct blk *b, uint32_t *crc)
{
    uint8_t *buf = kmalloc(STEP);
    int err = buf ? 0 : -ENOMEM;
    *crc = 0;
    for (uint64_t off = 0; !err && off < b->size; off += STEP) {
        size_t n = MIN((uint64_t)STEP, b->size - off);
        err = blk_read(b, off, buf, n);
        *crc = crc32c(*crc, buf, n);
    }
    kfree(buf);
    return err;
}

static void read_stored(const struct host_image *im, enum image_format f)
{
    struct image_env env = { .open = open_named };
    struct blk *file = blk_ram_create(im->name, (void *)(uintptr_t)im->data, im->len, true), *img;
    uint32_t crc;
    int err = file ? image_open(f, file, 0, &env, &img) : -ENOMEM;
    if (!err) {
        err = sum(img, &crc);
        if (!err)
            log_info("selftest", "RESULT image-%s ok %llu bytes, crc32c %08x", im->name, (unsigned long long)img->size, crc);
        blk_close(img);
    }
    if (err)
        log_info("selftest", "RESULT image-%s FAIL %d %s", im->name, err, env.error);
}

static int write_and_check(struct blk *img, uint8_t *buf)
{
    struct image_check c = { .say = NULL };
    int err = 0;
    for (uint64_t off = 0; !err && off < img->size; off += 3 * STEP) {
        memset(buf, (int)(off / STEP), STEP);
        err = blk_write(img, off, buf, STEP, 0);
    }
    if (!err)
        err = blk_discard(img, 3 * STEP, STEP);
    if (!err)
        err = blk_flush(img);
    if (!err)
        err = image_check(img, 0, &c);
    return err ? err : c.corruptions + c.leaks ? -EILSEQ : 0;
}

static int compare(struct blk *img, uint8_t *buf)
{
    int err = 0;
    for (uint64_t off = 0; !err && off < img->size; off += STEP) {
        uint8_t want = off % (3 * STEP) || off == 3 * STEP ? 0 : off / STEP;
        err = blk_read(img, off, buf, STEP);
        for (size_t i = 0; !err && i < STEP; i++)
            err = buf[i] == want ? 0 : -EDOM;
    }
    return err;
}

/* A qcow2 image in RAM: made, written, closed, opened again, read. */
static void write_own(void)
{
    enum { ROOM = 16 << 20, SIZE = 12 << 20 };
    struct image_env env = { .open = NULL };
    struct image_opts o = { .size = SIZE };
    uint8_t *room = kzalloc(ROOM), *buf = kmalloc(STEP);
    struct blk *img = NULL;
    int err = room && buf ? 0 : -ENOMEM;
    for (int round = 0; !err && round < 2; round++) {
        struct blk *file = blk_ram_create("ram", room, ROOM, false);
        err = file ? 0 : -ENOMEM;
        if (!err && !round)
            err = image_create(IMAGE_QCOW2, file, &o, &env);
        if (!err)
            err = image_open(IMAGE_QCOW2, file, IMAGE_WRITE, &env, &img);
        else
            blk_close(file);
        if (err)
            break;
        err = round ? compare(img, buf) : write_and_check(img, buf);
        blk_close(img);
    }
    log_info("selftest", "RESULT image-written %s %d %s", err ? "FAIL" : "ok", err, env.error);
    kfree(room);
    kfree(buf);
}

void image_selftest(void)
{
    struct host_image im;
    for (unsigned i = 0; host_image(i, &im); i++) {
        const char *dot = strrchr(im.name, '.');
        enum image_format f = dot ? image_format_named(dot + 1) : IMAGE_NONE;
        if (f != IMAGE_NONE && f != IMAGE_RAW)
            read_stored(&im, f);
    }
    write_own();
    log_info("selftest", "image: done");
}
