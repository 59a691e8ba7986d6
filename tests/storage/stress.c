/*
 * stress SECONDS [SEED]: several threads use files and a qcow2 image in one pool at once, as disks, by calls and by name, while it is trimmed
 * and grows, on a disk that ends requests late and out of order.  Each checks what it reads; the pool must check clean in the end.  Made for the thread sanitizer.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/block/image.h"
#include "kernel/fs/fs.h"
#include "kernel/lib/port.h"
#include "tests/host/mem_blk.h"

#define MB (1u << 20)
#define DISKS 4
#define SIZE (4 * MB)
#define DEPTH 8

static struct fs *fs;
static uint64_t deadline;
static unsigned long ops;

#define CHECK(c) do { if (!(c)) { printf("stress: %s:%d: %s\n", __FILE__, __LINE__, #c); abort(); } } while (0)

/* ---- A disk with several requests in flight, in ranges of their own ---- */

struct slot { struct blk_req r; struct iov v[3]; uint8_t *buf, *expect; struct event done; uint64_t off; size_t len; void *ctx; };

struct user { struct blk *b; uint64_t seed; uint8_t *model; const char *name; };

static void slot_done(struct blk_req *r) { event_post(r->arg); }

static void submit(struct user *u, struct slot *s, int i)
{
    static const enum blk_op what[] = { BLK_READ, BLK_WRITE, BLK_WRITE, BLK_WRITE_ZEROES, BLK_READ, BLK_DISCARD };
    uint64_t part = SIZE / DEPTH, block = 512, k = mem_rand(&u->seed);
    s->len = block * (1 + mem_rand(&u->seed) % 64);
    s->off = part * i + mem_rand(&u->seed) % ((part - s->len) / block) * block;
    enum blk_op op = k % 16 == 0 ? BLK_FLUSH : what[k % ARRAY_SIZE(what)];
    size_t cut = 1 + mem_rand(&u->seed) % (s->len - 1), len = op == BLK_FLUSH ? 0 : s->len;
    s->v[0] = (struct iov){ s->buf, cut }, s->v[1] = (struct iov){ s->buf + cut, s->len - cut };
    unsigned flags = op == BLK_WRITE && k % 64 == 1 ? BLK_FUA : op == BLK_WRITE_ZEROES && k & 32 ? BLK_UNMAP_OK : 0;
    s->r = (struct blk_req){ .op = op, .flags = flags, .off = len ? s->off : 0, .len = len, .iov = s->v, .niov = 2, .done = slot_done,
                             .arg = &s->done, .ctx = s->ctx };
    if (op == BLK_WRITE)
        for (size_t n = 0; n < s->len; n++)
            s->buf[n] = u->model[s->off + n] = k + n;
    else if (op == BLK_WRITE_ZEROES || op == BLK_DISCARD)
        memset(u->model + s->off, 0, s->len);
    blk_submit(u->b, &s->r);
}

static void finish(struct user *u, struct slot *s)
{
    event_wait(&s->done);
    CHECK(s->r.err == 0);
    if (s->r.op == BLK_READ)
        CHECK(!memcmp(s->buf, u->model + s->off, s->len));
    if (s->r.op == BLK_DISCARD)         /* contents are undefined now: make them known */
        CHECK(blk_write_zeroes(u->b, s->off, s->len, 0) == 0);
    atomic_add(&ops, 1ul);
}

static void use_disk(void *arg)
{
    struct user *u = arg;
    struct slot s[DEPTH];
    for (int i = 0; i < DEPTH; i++) {
        s[i].buf = malloc(64 * 512 + 512);
        s[i].ctx = aligned_alloc(16, ALIGN_UP(u->b->limits.ctx_size + 16, 16u));
        event_init(&s[i].done);
        submit(u, &s[i], i);
    }
    while (clock_ns() < deadline) {
        int i = mem_rand(&u->seed) % DEPTH;
        finish(u, &s[i]);
        submit(u, &s[i], i);
    }
    for (int i = 0; i < DEPTH; i++) {
        finish(u, &s[i]);
        free(s[i].buf), free(s[i].ctx);
    }
    uint8_t *all = malloc(SIZE);
    CHECK(blk_read(u->b, 0, all, SIZE) == 0);
    CHECK(!memcmp(all, u->model, SIZE));
    free(all);
}

/* ---- Names: copies of the disks in use come and go ---- */

static void use_names(void *arg)
{
    uint64_t seed = *(uint64_t *)arg;
    for (unsigned n = 0; clock_ns() < deadline; n++) {
        char from[16], to[32], again[40];
        struct fs_file *f;
        struct fs_stat st;
        uint8_t one[4096], two[4096];
        snprintf(from, sizeof from, "disk%u", (unsigned)(mem_rand(&seed) % DISKS));
        snprintf(to, sizeof to, "copy-%lx-%u", (long)(uintptr_t)arg & 0xffff, n);
        snprintf(again, sizeof again, "%s-2", to);
        int err = fs_reflink(fs, from, to);
        CHECK(err == 0 || err == -ENOSPC);
        if (err)
            continue;
        CHECK(fs_open(fs, to, 0, &f) == 0);
        uint64_t off = mem_rand(&seed) % (SIZE / 4096) * 4096;
        CHECK(fs_read(f, off, one, 4096) == 4096);
        thread_yield();
        CHECK(fs_read(f, off, two, 4096) == 4096);
        CHECK(!memcmp(one, two, 4096));         /* the copy stands still while its source is written to */
        CHECK(fs_stat(fs, to, &st) == 0 && st.size == SIZE);
        CHECK(fs_rename(fs, to, again) == 0);
        fs_close(f);
        CHECK(fs_unlink(fs, again) == 0);
        if (n % 16 == 0)
            CHECK(fs_sync(fs) == 0);
        if (n % 64 == 0) {
            struct fs_report r = { .say = NULL };
            CHECK(fs_scrub(fs, &r) == 0 && r.errors == 0);
        }
        atomic_add(&ops, 1ul);
    }
}

/* ---- Files by calls: a writer and a reader of one file, others of others ---- */

struct shared { char name[16]; uint64_t seed; struct fs_file *f; };

/* Each 4 KiB holds one byte value, or zeroes: a reader must never see two. */
static void write_file(void *arg)
{
    struct shared *w = arg;
    static _Thread_local uint8_t buf[32768];
    while (clock_ns() < deadline) {
        uint64_t at = mem_rand(&w->seed) % 256 * 4096, len = (1 + mem_rand(&w->seed) % 8) * 4096;
        for (uint64_t i = 0; i < len; i += 4096)
            memset(buf + i, mem_rand(&w->seed), 4096);
        switch (mem_rand(&w->seed) % 8) {
        default: CHECK(fs_write(w->f, at, buf, len) == 0); break;
        case 5:  CHECK(fs_punch(w->f, at, len) == 0); break;
        case 6:  CHECK(fs_allocate(w->f, at, len) == 0); break;
        case 7:  CHECK(fs_truncate(w->f, at) == 0); break;
        }
        atomic_add(&ops, 1ul);
    }
}

static void read_file(void *arg)
{
    struct shared *w = arg;
    uint64_t seed = (uintptr_t)w;
    uint8_t buf[8192];
    while (clock_ns() < deadline) {
        int64_t n = fs_read(w->f, mem_rand(&seed) % 256 * 4096, buf, sizeof buf);
        CHECK(n >= 0 && n % 4096 == 0);
        for (int64_t i = 0; i < n; i += 4096)
            CHECK(!memcmp(buf + i, buf + i + 1, 4095));
        fs_seek_data(w->f, 0);
        atomic_add(&ops, 1ul);
    }
}

/* ---- Care beside use ---- */

static void take_care(void *arg)
{
    struct mem_blk *m = arg;
    while (clock_ns() < deadline) {
        struct fs_usage u;
        CHECK(fs_trim(fs, NULL) == 0);
        fs_usage(fs, &u);
        CHECK(u.used + u.free + u.overhead == u.size && !u.failed);
        if (m->blk.size < 400ull * MB) {
            CHECK(blk_resize(&m->blk, m->blk.size + MB) == 0);
            CHECK(fs_grow(fs, 0) == 0);
        }
        thread_sleep_until(clock_ns() + 20000000);
    }
}

static void say(void *arg, const char *msg) { printf("fsck: %s\n", msg); }

static struct blk *make_disk(const char *name, bool qcow2)
{
    struct fs_file *f;
    struct blk *b;
    CHECK(fs_open(fs, name, FS_CREATE, &f) == 0);
    CHECK(fs_truncate(f, SIZE) == 0);
    CHECK(fs_file_blk(f, false, &b) == 0);
    if (qcow2) {
        struct image_env env = { .open = NULL };
        struct image_opts o = { .size = SIZE };
        CHECK(image_create(IMAGE_QCOW2, b, &o, &env) == 0);
        CHECK(image_open(IMAGE_QCOW2, b, IMAGE_WRITE, &env, &b) == 0);
    }
    return b;
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 5;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1, name_seed[2] = { seed + 100, seed + 200 };
    struct mem_blk *m = mem_blk_create(256 * MB, 400ull * MB, MEM_THREADED, seed);
    struct shared w[2];
    struct fs_mkfs_opts o = { .flags = 0 };
    struct user u[DISKS + 1];
    struct thread *t[DISKS + 8];
    int n = 0;
    CHECK(fs_mkfs(&m->blk, &o) == 0 && fs_mount(&m->blk, FS_DISCARD, &fs) == 0);
    for (int i = 0; i <= DISKS; i++) {
        char name[16];
        snprintf(name, sizeof name, i < DISKS ? "disk%d" : "image", i);
        u[i] = (struct user){ .b = make_disk(name, i == DISKS), .seed = seed + i, .model = calloc(1, SIZE) };
        CHECK(u[i].b->size == SIZE);
    }
    deadline = clock_ns() + (uint64_t)(seconds * 1e9);
    for (int i = 0; i <= DISKS; i++)
        t[n++] = thread_start("disk", use_disk, &u[i]);
    for (int i = 0; i < 2; i++)
        t[n++] = thread_start("names", use_names, &name_seed[i]);
    for (int i = 0; i < 2; i++) {
        w[i].seed = seed + 300 + i;
        snprintf(w[i].name, sizeof w[i].name, "file%d", i);
        CHECK(fs_open(fs, w[i].name, FS_CREATE | (i ? FS_CSUM : 0), &w[i].f) == 0);
        t[n++] = thread_start("write", write_file, &w[i]);
        t[n++] = thread_start("read", read_file, &w[i]);
    }
    t[n++] = thread_start("care", take_care, m);
    while (n)
        thread_join(t[--n]);
    fs_close(w[0].f), fs_close(w[1].f);
    for (int i = 0; i <= DISKS; i++) {
        blk_close(u[i].b);
        free(u[i].model);
    }
    struct fs_report r = { .say = say };
    CHECK(fs_check(fs, 0, &r) == 0 && r.errors == 0);
    CHECK(fs_unmount(fs) == 0);
    blk_close(&m->blk);
    printf("RESULT storage/stress ok %lu operations\n", ops);
    return 0;
}
