/*
 * bench: instructions per 4 KiB request through a pool file and a qcow2 image down to a disk in memory, a constant-time copy of a
 * 10 GiB file, mounting a pool of 100,000 files.  Prints figures and targets; fails nothing.
 */
#include <linux/perf_event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "kernel/block/image.h"
#include "kernel/fs/fs.h"
#include "kernel/lib/port.h"
#include "tests/host/mem_blk.h"

#define AREA (8u << 20)

static int N = 200000, only = -1, figures;   /* only: run that figure alone, for an outside counter of instructions */

static int counter = -1;

static void counter_open(void)
{
    struct perf_event_attr a = { .type = PERF_TYPE_HARDWARE, .size = sizeof a, .config = PERF_COUNT_HW_INSTRUCTIONS, .exclude_kernel = 1 };
    counter = syscall(SYS_perf_event_open, &a, 0, -1, -1, 0);
}

static uint64_t instructions(void)
{
    uint64_t n = 0;
    return counter >= 0 && read(counter, &n, sizeof n) == sizeof n ? n : 0;
}

/* The bottom: ends at once and moves nothing, so that only the layers are counted. */
static void null_submit(struct blk *b, struct blk_req *r) { blk_complete(r, 0); }
static const struct blk_ops null_ops = { .submit = null_submit };

static void done(struct blk_req *r) { atomic_add((uint64_t *)r->arg, 1ull); }

static void figure(const char *what, struct blk *b, enum blk_op op, unsigned target)
{
    if (figures++ != only && only >= 0)
        return;
    static uint8_t buf[4096] __aligned_to(4096);
    struct iov v = { buf, sizeof buf };
    uint64_t ended = 0, late = 0, seed = 7;
    void *ctx = aligned_alloc(16, ALIGN_UP((b ? b->limits.ctx_size : 0) + 16, 16u));
    struct blk_req r;
    uint64_t ns = clock_ns(), start = instructions();
    for (int i = 0; i < N; i++) {
        r = (struct blk_req){ .op = op, .off = mem_rand(&seed) % (AREA / 4096) * 4096, .len = 4096, .iov = &v, .niov = 1, .done = done, .arg = &ended, .ctx = ctx };
        if (b)
            blk_submit(b, &r);
        else
            r.done(&r);
        while (atomic_load(&ended) != (uint64_t)i + 1)   /* another thread may be running dones on this CPU's trampoline */
            late++, thread_yield();
    }
    uint64_t used = instructions() - start;
    ns = clock_ns() - ns;
    if (late > (uint64_t)N / 100)
        printf("%-34s left the fast path\n", what);
    printf("%-34s %4llu ns", what, (unsigned long long)ns / N);
    if (used)
        printf(", %llu instructions (target %u)", (unsigned long long)used / N, target);
    printf("\n");
    free(ctx);
}

static struct fs *pool(uint64_t size, struct mem_blk **m)
{
    struct fs_mkfs_opts o = { .flags = 0 };
    struct fs *fs;
    *m = mem_blk_create(size, 0, MEM_INLINE, 1);
    if (fs_mkfs(&(*m)->blk, &o) || fs_mount(&(*m)->blk, 0, &fs))
        abort();
    return fs;
}

static void pool_end(struct fs *fs, struct mem_blk *m)
{
    fs_unmount(fs);
    blk_close(&m->blk);
}

static void fill(struct blk *b)
{
    uint8_t *buf = calloc(1, 1 << 20);
    for (uint64_t o = 0; o < AREA; o += 1 << 20)
        if (blk_write(b, o, buf, 1 << 20, 0))
            abort();
    if (blk_flush(b))
        abort();
    free(buf);
    uint8_t one[4096];
    for (uint64_t at = 0; at < AREA; at += 4096)        /* every map entry is learnt on all levels */
        blk_read(b, at, one, 4096);
}

static struct blk *file_in(struct fs *fs, const char *name)
{
    struct fs_file *f;
    struct blk *b;
    if (fs_open(fs, name, FS_CREATE, &f) || fs_truncate(f, AREA) || fs_file_blk(f, false, &b))
        abort();
    return b;
}

static struct blk *image_in(struct blk *file)
{
    struct image_env env = { .open = NULL };
    struct image_opts o = { .size = AREA };
    struct blk *image;
    if (image_create(IMAGE_QCOW2, file, &o, &env) || image_open(IMAGE_QCOW2, file, IMAGE_WRITE, &env, &image))
        abort();
    fill(image);
    return image;
}

/* The figure while the disk at the bottom moves nothing. */
static void figure_over(struct mem_blk *m, const char *what, struct blk *b, enum blk_op op, unsigned target)
{
    const struct blk_ops *real = m->blk.ops;
    m->blk.ops = &null_ops;
    figure(what, b, op, target);
    m->blk.ops = real;
}

static void requests(void)
{
    struct mem_blk *m, *q = mem_blk_create(1 << 20, 1ull << 30, MEM_INLINE, 1);
    struct fs *fs = pool(1ull << 30, &m);
    struct blk *file = file_in(fs, "file");
    fill(file);
    figure("the loop that makes the requests", NULL, BLK_READ, 0);
    figure_over(m, "nothing: door and done", &m->blk, BLK_READ, 0);
    figure_over(m, "pool file, overwrite", file, BLK_WRITE, 400);
    figure_over(m, "pool file, read", file, BLK_READ, 350);
    blk_close(file);
    struct blk *image = image_in(&q->blk);
    figure_over(q, "qcow2, read allocated", image, BLK_READ, 500);
    figure_over(q, "qcow2, overwrite allocated", image, BLK_WRITE, 500);
    blk_close(image);
    image = image_in(file_in(fs, "file.qcow2"));
    figure_over(m, "qcow2 in a pool file, read", image, BLK_READ, 500);
    blk_close(image);
    pool_end(fs, m);
}

static void copies(void)
{
    struct mem_blk *m;
    struct fs *fs = pool(64ull << 30, &m);
    struct fs_file *f;
    char name[32];
    for (uint64_t size = 10ull << 20; size <= 10ull << 30; size *= 32) {
        snprintf(name, sizeof name, "f%llu", (unsigned long long)size);
        fs_open(fs, name, FS_CREATE, &f);
        if (fs_allocate(f, 0, size))
            abort();
        fs_close(f);
        fs_sync(fs);
        uint64_t ns = clock_ns();
        for (int i = 0; i < 100; i++) {
            char to[48];
            snprintf(to, sizeof to, "%s-%d", name, i);
            if (fs_reflink(fs, name, to))
                abort();
        }
        printf("copy of a file of %5llu MiB          %6llu ns\n", (unsigned long long)size >> 20, (unsigned long long)(clock_ns() - ns) / 100);
    }
    pool_end(fs, m);
}

static void mounting(void)
{
    struct mem_blk *m;
    struct fs *fs = pool(4ull << 30, &m);
    struct fs_file *f;
    char name[32];
    uint64_t ns = clock_ns();
    for (int i = 0; i < 100000; i++) {
        snprintf(name, sizeof name, "file%d", i);
        if (fs_open(fs, name, FS_CREATE | FS_EXCL, &f))
            abort();
        fs_close(f);
    }
    printf("making 100,000 files: %llu ms\n", (unsigned long long)(clock_ns() - ns) / 1000000);
    fs_unmount(fs);
    ns = clock_ns();
    if (fs_mount(&m->blk, 0, &fs))
        abort();
    printf("mounting a pool of 100,000 files: %llu us\n", (unsigned long long)(clock_ns() - ns) / 1000);
    pool_end(fs, m);
}

int main(int argc, char **argv)
{
    if (argc > 2)
        only = atoi(argv[1]), N = atoi(argv[2]);
    counter_open();
    requests();
    if (argc > 2)
        return 0;
    copies();
    mounting();
    return 0;
}
