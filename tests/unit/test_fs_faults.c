/*
 * Each operation on a pool, with the failure of each allocation and of each disk request it makes, one after the other until it makes no
 * more.  Afterwards: the error is a sensible one, what was there before is there, the pool checks clean, and nothing leaks.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/fs/fs.h"
#include "tests/host/mem_blk.h"
#include "tests/host/port_host.h"

enum { MB = 1 << 20, SIZE = 8 * MB, BIG = 16 * MB };

enum how { NO_MEMORY, ONE_MISS /* one request fails */, DEAD_DISK /* it and all later ones */, HOWS };

struct state { struct mem_blk *m; struct fs *fs; struct fs_file *f; struct blk *b; int nth; };

static uint8_t *pool;           /* as every round begins */

static uint8_t byte_of(const char *name, uint64_t off) { return name[0] * 5 + name[1] + (off >> 12); }

static void fill(struct fs *fs, const char *name, unsigned flags, uint64_t size, uint64_t step)
{
    uint8_t block[4096];
    struct fs_file *f;
    assert_int_equal(fs_open(fs, name, FS_CREATE | flags, &f), 0);
    for (uint64_t off = 0; off < size; off += step) {
        memset(block, byte_of(name, off), sizeof block);
        assert_int_equal(fs_write(f, off, block, sizeof block), 0);
    }
    fs_close(f);
}

static const struct { const char *name; unsigned flags; uint64_t size, step; } old[] = {
    { "f1", FS_NOCSUM, 400 << 10, 8192 }, { "c1", FS_CSUM, 200 << 10, 4096 }, { "w1", FS_NOCSUM, 100 << 10, 4096 }, { "x1", 0, 12288, 4096 },
};

static int set_up(void **state)
{
    struct fs_mkfs_opts o = { .label = "faults" };
    struct mem_blk *m = mem_blk_create(SIZE, 0, MEM_INLINE, 1);
    struct fs *fs;
    char name[32];
    assert_int_equal(fs_mkfs(&m->blk, &o), 0);
    assert_int_equal(fs_mount(&m->blk, 0, &fs), 0);
    assert_int_equal(fs_mkdir(fs, "dir"), 0);
    for (size_t i = 0; i < ARRAY_SIZE(old); i++)
        fill(fs, old[i].name, old[i].flags, old[i].size, old[i].step);
    for (int i = 0; i < 60; i++) {              /* a tree of names with some height */
        snprintf(name, sizeof name, "dir/another-file-%d", i);
        fill(fs, name, 0, 0, 1);
    }
    assert_int_equal(fs_reflink(fs, "f1", "f2"), 0);
    assert_int_equal(fs_unmount(fs), 0);
    pool = malloc(SIZE);
    memcpy(pool, m->data, SIZE);
    blk_close(&m->blk);
    return 0;
}

static int tear_down(void **state)
{
    free(pool);
    return 0;
}

/* ---- The operations: what they touch is not among the files that are looked at afterwards, or keeps its contents ---- */

static uint8_t data[300 << 10];

static int op_mkdir(struct state *s) { return fs_mkdir(s->fs, "dir/new"); }
static int op_unlink(struct state *s) { return fs_unlink(s->fs, "x1"); }
static int op_rename(struct state *s) { return fs_rename(s->fs, "x1", "dir/another-file-7"); }
static int op_reflink(struct state *s) { return fs_reflink(s->fs, "f1", "dir/f3"); }
static int op_sync(struct state *s) { return fs_sync(s->fs); }
static int op_trim(struct state *s) { return fs_trim(s->fs, NULL); }
static int op_write(struct state *s) { return fs_write(s->f, 3000, data, sizeof data); }
static int op_write_far(struct state *s) { return fs_write(s->f, 3ull << 40, data, 9000); }
static int op_allocate(struct state *s) { return fs_allocate(s->f, 5000, MB); }
static int op_punch(struct state *s) { return fs_punch(s->f, 2000, 9000); }
static int op_zero(struct state *s) { return fs_zero(s->f, 2000, 9000); }
static int op_shrink(struct state *s) { return fs_truncate(s->f, 4097); }
static int op_empty(struct state *s) { return fs_truncate(s->f, 0); }
static int op_blk_write(struct state *s) { return blk_write(s->b, 512, data, 100 << 10, 0); }
static int op_blk_fua(struct state *s) { return blk_write(s->b, 512, data, 20 << 10, BLK_FUA); }
static int op_blk_zeroes(struct state *s) { return blk_write_zeroes(s->b, 4096, 20 << 10, BLK_UNMAP_OK); }
static int op_blk_discard(struct state *s) { return blk_discard(s->b, 0, 64 << 10); }

static int op_write_and_sync(struct state *s)
{
    int err = fs_write(s->f, 3000, data, sizeof data);
    return err ? err : fs_sync(s->fs);
}

static int op_create(struct state *s)
{
    struct fs_file *f;
    int err = fs_open(s->fs, "dir/created", FS_CREATE | FS_EXCL, &f);
    if (!err)
        fs_close(f);
    return err;
}

static int op_read(struct state *s)
{
    struct fs_file *f;
    static uint8_t buf[200 << 10];
    int err = fs_open(s->fs, "c1", 0, &f);
    if (err)
        return err;
    int64_t n = fs_read(f, 100, buf, sizeof buf - 200);
    fs_close(f);
    return n < 0 ? (int)n : 0;
}

static int op_list(struct state *s)
{
    struct fs_dirent d = { .cookie = 0 };
    int err;
    while (!(err = fs_readdir(s->fs, "dir", d.cookie, &d)))
        ;
    return err == -ENOENT ? 0 : err;
}

static int op_blk_flush(struct state *s)
{
    int err = blk_write(s->b, 0, data, 30 << 10, 0);
    return err ? err : blk_flush(s->b);
}

static int op_grow(struct state *s)
{
    return fs_grow(s->fs, BIG);
}

static int op_scrub(struct state *s)
{
    struct fs_report r = { .say = NULL };
    int err = fs_scrub(s->fs, &r);
    return err ? err : r.errors ? -EIO : 0;
}

static int op_check(struct state *s)
{
    struct fs_report r = { .say = NULL };
    int err = fs_check(s->fs, FS_CHECK_DATA, &r);
    return err ? err : r.errors ? -EIO : 0;
}

static const struct { const char *name; int (*fn)(struct state *); const char *file; } ops[] = {
    { "mkdir", op_mkdir, NULL }, { "create", op_create, NULL }, { "unlink", op_unlink, NULL }, { "rename", op_rename, NULL }, { "reflink", op_reflink, NULL }, { "sync", op_sync, NULL },
    { "trim", op_trim, NULL }, { "read", op_read, NULL }, { "list", op_list, NULL }, { "grow", op_grow, NULL }, { "scrub", op_scrub, NULL }, { "check", op_check, NULL },
    { "write", op_write, "x1" }, { "write over a shared file", op_write, "f2" }, { "write with checksums", op_write, "x2" },
    { "write and sync", op_write_and_sync, "x1" }, { "write far out", op_write_far, "x1" }, { "allocate", op_allocate, "x1" },
    { "punch", op_punch, "f2" }, { "zero", op_zero, "x1" }, { "shrink", op_shrink, "f2" }, { "empty", op_empty, "f2" },
    { "disk: write", op_blk_write, "x1" }, { "disk: write, shared", op_blk_write, "f2" }, { "disk: FUA", op_blk_fua, "x1" },
    { "disk: write zeroes", op_blk_zeroes, "f2" }, { "disk: discard", op_blk_discard, "x1" }, { "disk: flush", op_blk_flush, "x1" },
};

/* ---- A round ---- */

static int miss(struct mem_blk *m, struct blk_req *r, void *arg)
{
    struct state *s = arg;
    return s->nth-- == 0 ? -EIO : 0;
}

static void begin(struct state *s, const char *file)
{
    s->m = mem_blk_create(SIZE, BIG, MEM_INLINE, 1);
    memcpy(s->m->data, pool, SIZE);
    assert_int_equal(fs_mount(&s->m->blk, FS_DISCARD, &s->fs), 0);
    s->f = NULL, s->b = NULL, s->nth = -1;
    assert_int_equal(blk_resize(&s->m->blk, BIG), 0);
    assert_int_equal(fs_mkdir(s->fs, "just-made"), 0);          /* something for the sync */
    if (!file)
        return;
    assert_int_equal(fs_open(s->fs, file, file[1] == '2' && file[0] == 'x' ? FS_CREATE | FS_CSUM : 0, &s->f), 0);
    struct fs_file *again;
    assert_int_equal(fs_open(s->fs, file, 0, &again), 0);
    struct fs_stat st;
    fs_fstat(again, &st);
    if (st.size < 128 << 10)
        assert_int_equal(fs_truncate(again, 128 << 10), 0);
    assert_int_equal(fs_file_blk(again, false, &s->b), 0);
}

static void inject(struct state *s, enum how how, int n)
{
    if (how == NO_MEMORY)
        port_fail_alloc_after(n);
    else if (how == DEAD_DISK)
        s->m->fail_after = n;
    else
        s->nth = n, s->m->fail = miss, s->m->fail_arg = s;
}

/* Whether something has failed. */
static bool heal(struct state *s, enum how how)
{
    bool failed = how == ONE_MISS ? s->nth < 0 : how == DEAD_DISK ? s->m->fail_after == 0 : host_alloc_refused() > 0;
    port_fail_alloc_after(-1);
    s->m->fail_after = -1, s->m->fail = NULL;
    return failed;
}

static void check_old(struct fs *fs, const char *except, const char *what)
{
    static uint8_t buf[400 << 10];
    for (size_t i = 0; i < 3; i++) {
        struct fs_file *f;
        if (except && !strcmp(except, old[i].name))
            continue;
        if (fs_open(fs, old[i].name, 0, &f))
            fail_msg("%s: %s is gone", what, old[i].name);
        int64_t n = fs_read(f, 0, buf, old[i].size);
        fs_close(f);
        assert_int_equal(n, (old[i].size - 1) / old[i].step * old[i].step + 4096);
        for (int64_t k = 0; k < n; k++)
            if (buf[k] != (k % old[i].step < 4096 ? byte_of(old[i].name, k) : 0))
                fail_msg("%s: %s at %lld is %02x", what, old[i].name, (long long)k, buf[k]);
    }
}

static void say(void *arg, const char *msg) { print_message("fsck: %s\n", msg); }

static void end(struct state *s, const char *file, const char *what)
{
    struct fs_usage u;
    struct fs_report r = { .say = say };
    blk_close(s->b);
    fs_close(s->f);
    fs_usage(s->fs, &u);
    if (!u.failed)
        check_old(s->fs, file, what);
    int err = fs_unmount(s->fs);
    if (err != u.failed)
        fail_msg("%s: unmount %d after %d", what, err, u.failed);
    assert_int_equal(fs_mount(&s->m->blk, 0, &s->fs), 0);
    check_old(s->fs, file, what);
    assert_int_equal(fs_check(s->fs, FS_CHECK_DATA, &r), 0);
    if (r.errors)
        fail_msg("%s: the check finds %llu errors", what, (unsigned long long)r.errors);
    assert_int_equal(fs_unmount(s->fs), 0);
    blk_close(&s->m->blk);
}

static void every_operation(void **state)
{
    unsigned long points = 0;
    memset(data, 0x5a, sizeof data);
    for (size_t i = 0; i < ARRAY_SIZE(ops); i++)
        for (enum how how = 0; how < HOWS; how++)
            for (int n = 0, quiet = 0; quiet < 2; n++) {        /* the pool's threads may be late: twice without a failure is the end */
                struct state s;
                char what[80];
                snprintf(what, sizeof what, "%s, failure %d of kind %d", ops[i].name, n, how);
                begin(&s, ops[i].file);
                inject(&s, how, n);
                int err = ops[i].fn(&s);
                bool failed = heal(&s, how) || err;
                if (err && err != (how == NO_MEMORY ? -ENOMEM : -EIO) && err != -EROFS && err != -EILSEQ)
                    fail_msg("%s: %d", what, err);
                end(&s, ops[i].file, what);
                quiet = failed ? 0 : quiet + 1;
                points += failed;
                if (n > 5000)
                    fail_msg("%s: no end", what);
            }
    print_message("%lu points of failure\n", points);
    assert_true(points > 1000);
}

/* ---- Making and mounting ---- */

static void making_and_mounting(void **state)
{
    struct fs_mkfs_opts o = { .label = "new" };
    int failures = 0;
    for (enum how how = 0; how < HOWS; how++)
        for (int n = 0, ended = 0; !ended; n++) {
            struct state s = { .m = mem_blk_create(SIZE, 0, MEM_INLINE, 1) };
            unsigned long live = port_alloc_count();
            inject(&s, how, n);
            int err = fs_mkfs(&s.m->blk, &o);
            if (!err)
                err = fs_mount(&s.m->blk, 0, &s.fs);
            ended = !heal(&s, how) && !err;
            if (!err)
                fs_unmount(s.fs);
            failures += err != 0;
            assert_int_equal(port_alloc_count(), live);
            blk_close(&s.m->blk);
        }
    print_message("%d failures\n", failures);
    assert_true(failures > 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(making_and_mounting), cmocka_unit_test(every_operation) };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
