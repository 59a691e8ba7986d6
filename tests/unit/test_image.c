/*
 * Image formats where things go wrong: disk errors and lack of memory at every point of opening, reading, writing, discarding, flushing,
 * resizing, checking and making; what a guest may do to a raw image; who may have a backing file.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <zlib.h>
#include <zstd.h>

#include "kernel/block/codec.h"
#include "kernel/block/image.h"
#include "kernel/block/split.h"
#include "tests/host/mem_blk.h"
#include "tests/host/port_host.h"

#define SECTORS_MAX 8192u
#define CAPACITY (16u << 20)
#define BACKING_VERSION 63

/* ---- Disks that outlive the images on them ---- */

static struct blk_ops kept_ops;
static void stays(struct blk *b) { }

static struct mem_blk *kept_disk(uint64_t size, uint64_t capacity)
{
    struct mem_blk *m = mem_blk_create(size, capacity, MEM_INLINE, 1);
    kept_ops = *m->blk.ops;
    kept_ops.close = stays;
    m->blk.ops = &kept_ops;
    return m;
}

/* ---- Kinds of images ---- */

struct kind { const char *name; enum image_format format; struct image_opts opts; bool backing; };

static const struct kind kinds[] = {
    { "qcow2", IMAGE_QCOW2, { .size = 640 << 10, .cluster_size = 4096 }, false },
    { "qcow2, 512-byte clusters, 1-bit counts", IMAGE_QCOW2, { .size = 200 << 10, .cluster_size = 512, .refcount_bits = 1 }, false },
    { "qcow2 v2", IMAGE_QCOW2, { .size = 640 << 10, .cluster_size = 1024, .version = 2 }, false },
    { "qcow2 with a backing file", IMAGE_QCOW2, { .size = 640 << 10, .cluster_size = 4096, .backing = "base", .backing_format = IMAGE_RAW }, true },
    { "vdi", IMAGE_VDI, { .size = 3 << 20 }, false },
    { "vmdk", IMAGE_VMDK, { .size = 640 << 10 }, false },
    { "vmdk flat", IMAGE_VMDK, { .size = 640 << 10, .fixed = true, .flat_name = "flat" }, false },
};

/* Everything of one run. */
struct world {
    const struct kind *k;
    struct mem_blk *disk, *other;       /* other: the backing file, or the flat extent */
    struct blk *img;
    uint64_t cur[SECTORS_MAX], since[SECTORS_MAX];      /* versions that a sector may show now; and after the next opening */
    int version;
    uint64_t seed;
};

static int open_other(void *arg, const char *name, bool write, struct blk **out)
{
    struct world *w = arg;
    if (!w->other->blk.split && blk_ready(&w->other->blk))
        return -ENOMEM;
    *out = &w->other->blk;
    return 0;
}

static int open_image(struct world *w, unsigned flags)
{
    struct image_env env = { .open = open_other, .arg = w };
    if (!w->disk->blk.split && blk_ready(&w->disk->blk))
        return -ENOMEM;
    int err = image_open(w->k->format, &w->disk->blk, flags, &env, &w->img);
    if (err)
        w->img = NULL;
    return err;
}

static void world_init(struct world *w, const struct kind *k, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    w->k = k, w->seed = seed;
    w->disk = kept_disk(4096, CAPACITY);
    w->other = kept_disk(k->backing ? 400 << 10 : 4096, CAPACITY);
    struct image_env env = { .open = open_other, .arg = w };
    assert_int_equal(image_create(k->format, &w->disk->blk, &k->opts, &env), 0);
    if (k->backing)
        memset(w->other->data, BACKING_VERSION, 400 << 10);
    for (unsigned s = 0; s < SECTORS_MAX; s++)
        w->cur[s] = w->since[s] = k->backing && s < (400 << 10) / 512 ? BIT(BACKING_VERSION) : 1;
}

/* Drops what the disks themselves have reserved, so that memory can be counted. */
static void unready(struct world *w) { blk_split_close(&w->disk->blk), blk_split_close(&w->other->blk); }

static void world_fini(struct world *w)
{
    mem_blk_free(w->disk);
    mem_blk_free(w->other);
}

/* ---- Random work that keeps account of what may be seen ---- */

static void account(struct world *w, uint64_t first, uint64_t n, uint64_t versions, bool certain)
{
    for (uint64_t s = first; s < first + n; s++) {
        w->cur[s] = certain ? versions : w->cur[s] | versions;
        w->since[s] |= versions;
    }
}

static void flushed(struct world *w) { memcpy(w->since, w->cur, sizeof w->since); }

/* The sectors of buf must show what they may. */
static void judge(struct world *w, const uint8_t *buf, uint64_t first, uint64_t n, const uint64_t *may, const char *when)
{
    for (uint64_t s = 0; s < n; s++) {
        const uint8_t *p = buf + 512 * s;
        if (p[0] > 63 || memcmp(p, p + 1, 511) || !(may[first + s] >> p[0] & 1))
            fail_msg("%s, %s: sector %llu shows %d, may show %llx", w->k->name, when, (unsigned long long)(first + s), p[0], (unsigned long long)may[first + s]);
    }
}

static int one_write(struct world *w, uint64_t first, uint64_t n, unsigned flags)
{
    static uint8_t buf[64 * 512];
    int v = w->version = w->version % 60 + 1;
    memset(buf, v, n * 512);
    int err = blk_write(w->img, first * 512, buf, n * 512, flags);
    account(w, first, n, BIT(v), !err);
    return err;
}

static int one_read(struct world *w, uint64_t first, uint64_t n)
{
    static uint8_t buf[64 * 512];
    int err = blk_read(w->img, first * 512, buf, n * 512);
    if (!err)
        judge(w, buf, first, n, w->cur, "reading");
    return err;
}

static int one_step(struct world *w)
{
    uint64_t k = mem_rand(&w->seed), n = 1 + k % 64, first = (k >> 32) % (w->img->size / 512 - n);
    struct image_check c = { .say = NULL };
    struct image_env env = { .open = NULL };
    int err;
    switch (k >> 8 & 15) {
    default:    return one_write(w, first, n, 0);
    case 1:     return one_write(w, first, n, BLK_FUA);
    case 2: case 3:
        err = blk_write_zeroes(w->img, first * 512, n * 512, k & 1 << 20 ? BLK_UNMAP_OK : 0);
        account(w, first, n, 1, !err);
        return err;
    case 4:
        err = blk_discard(w->img, first * 512, n * 512);
        account(w, first, n, 1, false);         /* or what it was */
        return err;
    case 5: case 6: case 7:
        return one_read(w, first, n);
    case 8: case 9:
        err = blk_flush(w->img);
        if (!err)
            flushed(w);
        return err;
    case 10:
        err = image_check(w->img, 0, &c);
        assert_true(err || !c.corruptions);
        return err == -ENOTSUP ? 0 : err;
    case 11:
        err = image_resize(w->img, w->img->size + 70 * 512, false, &env);
        return err == -ENOTSUP ? 0 : err;
    }
}

static int some_steps(struct world *w, int steps)
{
    int first = 0;
    for (int i = 0; i < steps; i++) {
        int err = one_step(w);
        first = first ? first : err;
    }
    return first;
}

/* ---- Afterwards ---- */

static void by_qemu_img(struct world *w)
{
    static unsigned nth;
    char path[] = "/tmp/joist-image-XXXXXX", cmd[192];
    if (nth++ % 40 || access("/usr/bin/qemu-img", X_OK) || w->k->opts.fixed)
        return;
    int fd = mkstemp(path);
    assert_true(write(fd, w->disk->data, w->disk->blk.size) == (ssize_t)w->disk->blk.size);
    close(fd);
    snprintf(cmd, sizeof cmd, "qemu-img check -q 'json:{\"driver\":\"%s\",\"file.filename\":\"%s\"%s}' > /dev/null 2>&1", image_format_name(w->k->format), path,
             w->k->backing ? ",\"backing\":null" : "");
    int status = system(cmd);
    if (status && WEXITSTATUS(status) != 3)             /* leaks are no harm */
        fail_msg("%s: qemu-img check: status %d, %s is kept", w->k->name, WEXITSTATUS(status), path);
    unlink(path);
}

/* Opens, is sound, shows what it must; goes on being written. */
static void survives(struct world *w, const char *when)
{
    struct image_check c = { .say = NULL };
    static uint8_t buf[SECTORS_MAX * 512];
    int err = open_image(w, IMAGE_WRITE);
    if (err)
        fail_msg("%s, %s: does not open: %d", w->k->name, when, err);
    uint64_t size = MIN(w->img->size, (uint64_t)sizeof buf);
    err = image_check(w->img, 0, &c);
    if ((err && err != -ENOTSUP) || c.corruptions)
        fail_msg("%s, %s: check: %d, %llu corruptions", w->k->name, when, err, (unsigned long long)c.corruptions);
    assert_int_equal(image_pread(w->img, 0, buf, size), 0);
    judge(w, buf, 0, size / 512, w->since, when);
    for (uint64_t s = 0; s < size / 512; s++)
        w->cur[s] = w->since[s] = BIT(buf[512 * s]);
    assert_int_equal(some_steps(w, 20), 0);
    assert_int_equal(blk_flush(w->img), 0);
    c.corruptions = 0;
    image_check(w->img, 0, &c);
    assert_int_equal(c.corruptions, 0);
    blk_close(w->img);
    by_qemu_img(w);
}

enum fault { DISK_DIES, DISK_FAILS_ONCE, DISK_FULL, NO_MEMORY, FAULTS };
static const char *const fault_names[] = { "the disk dies", "the disk fails once", "the disk is full", "no memory" };

static int budget;
static int fail_once(struct mem_blk *m, struct blk_req *r, void *arg) { return budget-- == 0 ? -EIO : 0; }

static void arm(struct world *w, enum fault f, int n)
{
    struct mem_blk *disks[] = { w->disk, w->other };
    budget = n;
    for (int i = 0; i < 2; i++) {
        if (f == DISK_DIES && i == (w->k->opts.fixed ? 1 : 0))
            disks[i]->fail_after = n;
        if (f == DISK_FAILS_ONCE)
            disks[i]->fail = fail_once;
        if (f == DISK_FULL)
            disks[i]->capacity = disks[i]->blk.size + n * 16384;
    }
    if (f == NO_MEMORY)
        port_fail_alloc_after(n);
}

static void disarm(struct world *w)
{
    port_fail_alloc_after(-1);
    w->disk->fail_after = w->other->fail_after = -1;
    w->disk->fail = w->other->fail = NULL;
    w->disk->capacity = w->other->capacity = CAPACITY;
}

/* One run with a fault at point n of work that begins with opening; returns whether the fault was met. */
static bool one_fault(const struct kind *k, enum fault f, int n)
{
    static struct world w;
    world_init(&w, k, 77 + n % 3);
    unready(&w);
    unsigned long before = port_alloc_count();
    arm(&w, f, n);
    int err = open_image(&w, IMAGE_WRITE);
    if (!err) {
        err = some_steps(&w, 40);
        if (f == DISK_FULL) {                           /* hurts nothing, and goes on when there is room again */
            assert_int_equal(blk_flush(w.img), 0);
            flushed(&w);
            disarm(&w);
            assert_int_equal(some_steps(&w, 40), 0);
        }
        if (n % 2)
            disarm(&w);                                 /* before closing, or after */
        blk_close(w.img);
    }
    disarm(&w);
    if (err && err != (f == NO_MEMORY ? -ENOMEM : f == DISK_FULL ? -ENOSPC : -EIO))
        fail_msg("%s, %s at %d: error %d", k->name, fault_names[f], n, err);
    unready(&w);
    assert_int_equal(port_alloc_count(), before);
    survives(&w, fault_names[f]);
    unready(&w);
    assert_int_equal(port_alloc_count(), before);
    world_fini(&w);
    return err != 0;
}

static void faults_at_every_point(void **state)
{
    for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
        for (enum fault f = 0; f < FAULTS; f++) {
            if (f == DISK_FULL && kinds[k].opts.fixed)
                continue;                               /* it has all its space */
            int met = 0, last = 0;
            for (int n = 0; n < 2500 && n - last < 12; n += n < 150 ? 1 : 7)
                if (one_fault(&kinds[k], f, n))
                    met++, last = n;
            print_message("%s, %s: %d faults met\n", kinds[k].name, fault_names[f], met);
            assert_true(met > 10);
        }
}

/* ---- Making ---- */

static void making_fails_at_every_point(void **state)
{
    for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
        for (enum fault f = 0; f < FAULTS; f++)
            for (int n = 0; ; n++) {
                struct world w = { .k = &kinds[k], .disk = kept_disk(4096, CAPACITY), .other = kept_disk(4096, CAPACITY) };
                struct image_env env = { .open = open_other, .arg = &w };
                struct image_opts o = kinds[k].opts;
                o.prealloc = kinds[k].format == IMAGE_QCOW2 && k < 2 ? PREALLOC_METADATA : PREALLOC_OFF;
                unsigned long before = port_alloc_count();
                arm(&w, f, n);
                int err = image_create(w.k->format, &w.disk->blk, &o, &env);
                disarm(&w);
                if (err && err != -EIO && err != -ENOMEM && err != -ENOSPC)
                    fail_msg("%s, %s at %d: error %d", w.k->name, fault_names[f], n, err);
                if (!w.other->blk.split)
                    assert_int_equal(blk_ready(&w.other->blk), 0);
                assert_int_equal(port_alloc_count(), before);
                world_fini(&w);
                if (!err)
                    break;
                assert_true(n < 3000);
            }
}

/* ---- What may not grow without end ---- */

/* Each round gives a cluster back, which is free when that is durable. */
static void a_guest_that_never_flushes_fills_nothing(void **state)
{
    static struct world w;
    static uint8_t buf[4096];
    world_init(&w, &kinds[0], 1);
    assert_int_equal(open_image(&w, IMAGE_WRITE), 0);
    for (int i = 0; i < 8000; i++) {
        assert_int_equal(blk_write(w.img, 8192, buf, 4096, 0), 0);
        assert_int_equal(blk_discard(w.img, 8192, 4096), 0);
    }
    assert_true(w.disk->blk.size < CAPACITY / 2);
    blk_close(w.img);
    world_fini(&w);
}

/* A small file whose 5000 snapshots say that their tables have 64 MiB each. */
static void snapshots_larger_than_the_file_are_not_read(void **state)
{
    enum { AT = 1 << 20, ENTRY = 40, N = 5000, NSNAPSHOTS = 60, SNAPSHOTS_OFF = 64 };
    static struct world w;
    struct image_check c = { .say = NULL };
    world_init(&w, &kinds[0], 1);
    assert_int_equal(blk_resize(&w.disk->blk, AT + N * ENTRY / 4096 * 4096 + 4096), 0);
    for (int i = 0; i < N; i++)
        memcpy(w.disk->data + AT + i * ENTRY, "\0\0\0\0\0\0\x10\0\0\x80\0\0", 12);       /* place and length of the table */
    memcpy(w.disk->data + NSNAPSHOTS, "\0\0\x13\x88", 4);
    memcpy(w.disk->data + SNAPSHOTS_OFF, "\0\0\0\0\0\x10\0\0", 8);
    alarm(60);
    assert_int_equal(open_image(&w, 0), 0);
    assert_int_equal(image_check(w.img, 0, &c), 0);
    assert_true(c.corruptions >= N);
    alarm(0);
    blk_close(w.img);
    world_fini(&w);
}

/* ---- Formats are stated, never guessed ---- */

static void a_guest_cannot_turn_its_raw_disk_into_something_else(void **state)
{
    struct mem_blk *evil = kept_disk(4096, 1 << 20), *raw = kept_disk(1 << 20, 1 << 20);
    struct image_env env = { .open = NULL };
    struct image_opts o = { .size = 1 << 20, .backing = "secret", .backing_format = IMAGE_RAW };
    struct blk *img;
    struct image_info info;
    assert_int_equal(image_create(IMAGE_QCOW2, &evil->blk, &o, &env), 0);
    assert_int_equal(image_open(IMAGE_RAW, &raw->blk, IMAGE_WRITE, &env, &img), 0);
    assert_int_equal(blk_write(img, 0, evil->data, evil->blk.size, 0), 0);      /* the guest */
    blk_close(img);
    assert_int_equal(image_probe(&raw->blk), IMAGE_QCOW2);                      /* so whoever guesses is fooled */
    assert_int_equal(blk_ready(&raw->blk), 0);
    assert_int_equal(image_open(IMAGE_RAW, &raw->blk, IMAGE_WRITE, &env, &img), 0);
    image_info(img, &info);
    assert_int_equal(info.format, IMAGE_RAW);
    assert_int_equal(img->size, 1 << 20);
    uint8_t head[4096];
    assert_int_equal(blk_read(img, 0, head, sizeof head), 0);
    assert_memory_equal(head, evil->data, sizeof head);
    assert_int_equal(image_open(IMAGE_NONE, &evil->blk, 0, &env, &img), -EINVAL);
    assert_non_null(strstr(env.error, "must be stated"));
    mem_blk_free(evil), mem_blk_free(raw);
}

static void an_iso_is_only_read(void **state)
{
    struct mem_blk *m = mem_blk_create(64 << 10, 64 << 10, MEM_INLINE, 1);
    struct image_env env = { .open = NULL };
    struct blk *img;
    uint8_t b[512] = { 0 };
    memcpy(m->data + 32768, "\1CD001\1", 7);
    assert_int_equal(image_probe(&m->blk), IMAGE_ISO);
    assert_int_equal(image_open(IMAGE_ISO, &m->blk, IMAGE_WRITE, &env, &img), 0);
    assert_int_equal(blk_read(img, 32768, b, 512), 0);
    assert_memory_equal(b, "\1CD001\1", 7);
    assert_int_equal(blk_write(img, 0, b, 512, 0), -EROFS);
    assert_int_equal(image_resize(img, 128 << 10, false, &env), -EROFS);
    blk_close(img);
}

/* ---- One writer ---- */

static struct mem_blk *base_disk;

/* A view of the disk, as a partition or a volume is one. */
struct view { struct blk blk; };
static void view_submit(struct blk *b, struct blk_req *r) { blk_submit(b->below, r); }
static void view_close(struct blk *b) { kfree(b); }
static const struct blk_ops view_ops = { .submit = view_submit, .close = view_close };

static int open_view(void *arg, const char *name, bool write, struct blk **out)
{
    struct view *v = kzalloc(sizeof *v);
    v->blk = (struct blk){ .ops = &view_ops, .kind = "view", .size = base_disk->blk.size, .limits = base_disk->blk.limits, .below = &base_disk->blk };
    *out = &v->blk;
    return blk_ready(&v->blk);
}

static void nobody_writes_a_backing_file_in_use(void **state)
{
    struct image_env env = { .open = open_view };
    struct image_opts o = { .size = 1 << 20, .backing = "base", .backing_format = IMAGE_RAW };
    struct mem_blk *top[2] = { mem_blk_create(4096, 1 << 20, MEM_INLINE, 1), mem_blk_create(4096, 1 << 20, MEM_INLINE, 1) };
    struct blk *img[2];
    base_disk = mem_blk_create(1 << 20, 1 << 20, MEM_INLINE, 1);
    for (int i = 0; i < 2; i++)
        assert_int_equal(image_create(IMAGE_QCOW2, &top[i]->blk, &o, &env), 0);
    for (int i = 0; i < 2; i++)                 /* two may share it */
        assert_int_equal(image_open(IMAGE_QCOW2, &top[i]->blk, IMAGE_WRITE, &env, &img[i]), 0);
    assert_int_equal(blk_claim(&base_disk->blk, true), -EBUSY);
    assert_int_equal(blk_claim(&base_disk->blk, false), 0);
    blk_release(&base_disk->blk, false);
    blk_close(img[0]);
    assert_int_equal(blk_claim(&base_disk->blk, true), -EBUSY);
    blk_close(img[1]);
    assert_int_equal(blk_claim(&base_disk->blk, true), 0);
    struct mem_blk *third = mem_blk_create(4096, 1 << 20, MEM_INLINE, 1);
    assert_int_equal(image_create(IMAGE_QCOW2, &third->blk, &o, &env), 0);
    assert_int_equal(image_open(IMAGE_QCOW2, &third->blk, IMAGE_WRITE, &env, &img[0]), -EBUSY);
    assert_non_null(strstr(env.error, "being written"));
    blk_release(&base_disk->blk, true);
    blk_close(&base_disk->blk);
}

/* ---- Compressed data ---- */

static void hostile_streams(void **state)
{
    static uint8_t plain[65536], packed[70000], out[65536];
    uint64_t seed = 5;
    for (size_t i = 0; i < sizeof plain; i++)
        plain[i] = i % 512 ? plain[i - 1] + 1u : (uint8_t)mem_rand(&seed);
    for (enum codec c = CODEC_DEFLATE; c <= CODEC_ZSTD; c++) {
        size_t n;
        if (c == CODEC_ZSTD) {
            n = ZSTD_compress(packed, sizeof packed, plain, sizeof plain, 3);
        } else {
            z_stream z = { .next_in = plain, .avail_in = sizeof plain, .next_out = packed, .avail_out = sizeof packed };
            assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, c == CODEC_ZLIB ? 15 : -12, 9, 0), Z_OK);
            assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
            n = z.total_out;
            deflateEnd(&z);
        }
        unsigned long before = port_alloc_count();
        assert_int_equal(codec_expand(c, packed, n + 300, out, sizeof out), 0);         /* a tail is ignored */
        assert_memory_equal(out, plain, sizeof out);
        assert_int_equal(codec_expand(c, packed, n / 2, out, sizeof out), -EILSEQ);
        assert_int_equal(codec_expand(c, packed, 0, out, sizeof out), -EILSEQ);
        port_fail_alloc_after(0);
        assert_int_equal(codec_expand(c, packed, n, out, sizeof out), -ENOMEM);
        port_fail_alloc_after(-1);
        for (int i = 0; i < 3000; i++) {
            size_t at = mem_rand(&seed) % n;
            uint8_t old = packed[at];
            packed[at] = mem_rand(&seed);
            int err = codec_expand(c, packed, n, out, sizeof out);
            assert_true(!err || err == -EILSEQ);
            packed[at] = old;
        }
        assert_int_equal(port_alloc_count(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(faults_at_every_point),
        cmocka_unit_test(making_fails_at_every_point),
        cmocka_unit_test(a_guest_that_never_flushes_fills_nothing),
        cmocka_unit_test(snapshots_larger_than_the_file_are_not_read),
        cmocka_unit_test(a_guest_cannot_turn_its_raw_disk_into_something_else),
        cmocka_unit_test(an_iso_is_only_read),
        cmocka_unit_test(nobody_writes_a_backing_file_in_use),
        cmocka_unit_test(hostile_streams),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
