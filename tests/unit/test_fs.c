#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/fs/fs.h"
#include "tests/host/fs_model.h"
#include "tests/host/mem_blk.h"
#include "tests/host/port_host.h"

#define MB (1ull << 20)

static struct mem_blk *disk;

static struct fs *make(uint64_t size, uint64_t capacity, unsigned flags)
{
    struct fs *fs;
    struct fs_mkfs_opts o = { .label = "test", .flags = flags };
    disk = mem_blk_create(size, capacity, MEM_INLINE, 1);
    assert_int_equal(fs_mkfs(&disk->blk, &o), 0);
    assert_int_equal(fs_mount(&disk->blk, 0, &fs), 0);
    return fs;
}

static void say(void *arg, const char *msg) { print_message("fsck: %s\n", msg); }

static void assert_clean(struct fs *fs)
{
    struct fs_report r = { .say = say };
    assert_int_equal(fs_check(fs, FS_CHECK_DATA, &r), 0);
    assert_int_equal(r.errors, 0);
}

static struct fs *again(struct fs *fs)
{
    assert_int_equal(fs_unmount(fs), 0);
    assert_int_equal(fs_mount(&disk->blk, 0, &fs), 0);
    return fs;
}

static void done(struct fs *fs)
{
    assert_clean(fs);
    assert_int_equal(fs_unmount(fs), 0);
    blk_close(&disk->blk);
}

static void put(struct fs *fs, const char *path, const void *data, size_t len)
{
    struct fs_file *f;
    assert_int_equal(fs_open(fs, path, FS_CREATE, &f), 0);
    assert_int_equal(fs_write(f, 0, data, len), 0);
    fs_close(f);
}

static uint64_t free_now(struct fs *fs)
{
    struct fs_usage u;
    assert_int_equal(fs_sync(fs), 0);
    fs_usage(fs, &u);
    assert_int_equal(u.used + u.free + u.overhead, u.size);
    return u.free;
}

static void an_empty_pool(void **state)
{
    struct fs *fs = make(16 * MB, 0, 0);
    struct fs_stat st;
    struct fs_dirent d;
    assert_int_equal(fs_stat(fs, "/", &st), 0);
    assert_true(st.dir);
    assert_int_equal(fs_readdir(fs, "", 0, &d), -ENOENT);
    assert_int_equal(fs_stat(fs, "x", &st), -ENOENT);
    assert_clean(fs);
    fs = again(fs);
    done(fs);
}

static void names(void **state)
{
    struct fs *fs = make(16 * MB, 0, 0);
    struct fs_stat st;
    struct fs_file *f;
    char lng[300];
    assert_int_equal(fs_mkdir(fs, "a"), 0);
    assert_int_equal(fs_mkdir(fs, "a"), -EEXIST);
    assert_int_equal(fs_mkdir(fs, "x/y"), -ENOENT);
    assert_int_equal(fs_mkdir(fs, "a/b"), 0);
    assert_int_equal(fs_mkdir(fs, "/a//b/c/"), 0);
    put(fs, "a/f", "hello", 5);
    assert_int_equal(fs_mkdir(fs, "a/f/g"), -ENOTDIR);
    assert_int_equal(fs_open(fs, "a/b", 0, &f), -EISDIR);
    assert_int_equal(fs_open(fs, "a/f", FS_CREATE | FS_EXCL, &f), -EEXIST);
    assert_int_equal(fs_open(fs, "..", FS_CREATE, &f), -EINVAL);
    memset(lng, 'n', 299), lng[299] = 0;
    assert_int_equal(fs_mkdir(fs, lng), -ENAMETOOLONG);
    lng[255] = 0;
    assert_int_equal(fs_mkdir(fs, lng), 0);
    assert_int_equal(fs_unlink(fs, "a"), -ENOTEMPTY);
    assert_int_equal(fs_rename(fs, "a", "a/b/c/d"), -EINVAL);
    assert_int_equal(fs_rename(fs, "a/f", "a/b"), -EISDIR);
    assert_int_equal(fs_rename(fs, "a/b", "a/f"), -ENOTDIR);
    assert_int_equal(fs_rename(fs, "a/b/c", "c"), 0);
    assert_int_equal(fs_rename(fs, "c", "a/b"), 0);
    assert_int_equal(fs_rename(fs, "a/f", "a/b/f"), 0);
    assert_int_equal(fs_rename(fs, "a/b/f", "a/b/f"), 0);
    assert_int_equal(fs_unlink(fs, ""), -EBUSY);
    fs = again(fs);
    assert_int_equal(fs_stat(fs, "a/b/f", &st), 0);
    assert_int_equal(st.size, 5);
    assert_int_equal(fs_unlink(fs, "a/b/f"), 0);
    assert_int_equal(fs_unlink(fs, "a/b"), 0);
    assert_int_equal(fs_unlink(fs, "a"), 0);
    done(fs);
}

static void many_files(void **state)
{
    enum { N = 5000 };
    struct fs *fs = make(64 * MB, 0, 0);
    struct fs_dirent d = { .cookie = 0 };
    char name[40];
    int n = 0;
    uint64_t before = free_now(fs);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "file-with-a-name-%d", i);
        put(fs, name, name, i % 7 ? 0 : strlen(name));
    }
    fs = again(fs);
    while (!fs_readdir(fs, "", d.cookie, &d))
        n++;
    assert_int_equal(n, N);
    assert_clean(fs);
    for (int i = 0; i < N; i++) {
        int k = i * 1237 % N;
        snprintf(name, sizeof name, "file-with-a-name-%d", k);
        assert_int_equal(fs_unlink(fs, name), 0);
    }
    assert_int_equal(free_now(fs), before);
    done(fs);
}

static void a_copy_shares_until_written(void **state)
{
    struct fs *fs = make(64 * MB, 0, 0);
    struct fs_file *a, *b;
    uint8_t *buf = malloc(4 * MB), *in = malloc(4 * MB);
    memset(buf, 0x5a, 4 * MB);
    put(fs, "a", buf, 4 * MB);
    uint64_t before = free_now(fs);
    assert_int_equal(fs_reflink(fs, "a", "b"), 0);
    assert_int_equal(fs_reflink(fs, "a", "b"), -EEXIST);
    assert_true(before - free_now(fs) <= 4 * 4096);
    assert_int_equal(fs_open(fs, "a", 0, &a), 0);
    assert_int_equal(fs_open(fs, "b", 0, &b), 0);
    assert_int_equal(fs_write(b, MB + 100, "changed", 7), 0);
    assert_true(before - free_now(fs) <= 10 * 4096);
    assert_int_equal(fs_read(a, 0, in, 4 * MB), 4 * MB);
    assert_memory_equal(in, buf, 4 * MB);
    memcpy(buf + MB + 100, "changed", 7);
    assert_int_equal(fs_read(b, 0, in, 4 * MB), 4 * MB);
    assert_memory_equal(in, buf, 4 * MB);
    fs_close(a);
    assert_int_equal(fs_unlink(fs, "a"), 0);
    assert_clean(fs);
    assert_int_equal(fs_read(b, 0, in, 4 * MB), 4 * MB);
    assert_memory_equal(in, buf, 4 * MB);
    fs_close(b);
    free(buf), free(in);
    done(fs);
}

static void random_operations_match_the_model(void **state)
{
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct fs *fs = make(seed % 2 ? 24 * MB : 5 * MB, 0, seed % 3 == 0 ? FS_CSUM_DATA : 0);
        struct model m;
        model_init(&m, seed);
        assert_int_equal(fs_mkdir(fs, "dir"), 0);
        int full = 0;
        for (int i = 0; i < 2500; i++) {
            int err = model_step(&m, fs, 0);
            if (err == -ENOSPC)
                full++;
            else if (err)
                fail_msg("seed %d, step %d: %d", (int)seed, i, err);
            if (i % 250 == 249) {
                const char *why = model_compare(&m, fs);
                if (why)
                    fail_msg("seed %d, step %d: %s", (int)seed, i, why);
                assert_clean(fs);
                fs = again(fs);
            }
        }
        print_message("seed %d: pool full %d times\n", (int)seed, full);
        const char *why = model_compare(&m, fs);
        if (why)
            fail_msg("seed %d, end: %s", (int)seed, why);
        model_fini(&m);
        done(fs);
    }
}

static void a_full_pool_says_so_and_can_be_emptied(void **state)
{
    for (uint64_t size = 4; size <= 8; size++) {
        struct fs *fs = make(size * MB, 0, 0);
        struct fs_file *f;
        struct fs_usage u;
        uint8_t buf[8192];
        uint64_t at = 0, first = free_now(fs);
        int err = 0;
        memset(buf, 7, sizeof buf);
        assert_int_equal(fs_open(fs, "big", FS_CREATE, &f), 0);
        assert_int_equal(fs_allocate(f, 0, size * MB), -ENOSPC);
        assert_true(first - free_now(fs) <= 8 * 4096);
        while (!(err = fs_write(f, at, buf, sizeof buf)))
            at += sizeof buf;
        assert_int_equal(err, -ENOSPC);
        assert_true(at >= first - 20 * 4096);
        fs_usage(fs, &u);
        assert_true(u.free <= 24 * 4096);
        assert_clean(fs);
        fs_close(f);
        assert_int_equal(fs_unlink(fs, "big"), 0);
        assert_true(first - free_now(fs) <= 4096);
        done(fs);
    }
}

static void big_sparse_and_preallocated(void **state)
{
    struct fs *fs = make(40ull << 30, 0, 0);
    struct fs_file *f;
    struct fs_stat st;
    uint8_t buf[5000];
    memset(buf, 9, sizeof buf);
    uint64_t before = free_now(fs);
    assert_int_equal(fs_open(fs, "sparse", FS_CREATE, &f), 0);
    assert_int_equal(fs_truncate(f, 16ull << 40), 0);
    assert_int_equal(fs_write(f, (9ull << 40) + 123, buf, sizeof buf), 0);
    assert_int_equal(fs_seek_data(f, 0), 9ull << 40);
    assert_int_equal(fs_seek_hole(f, 9ull << 40), (9ull << 40) + 8192);
    fs_fstat(f, &st);
    assert_int_equal(st.allocated, 8192);
    fs_close(f);
    assert_int_equal(fs_open(fs, "pre", FS_CREATE, &f), 0);
    assert_int_equal(fs_allocate(f, 0, 30ull << 30), 0);
    fs_fstat(f, &st);
    assert_int_equal(st.allocated, 30ull << 30);
    assert_int_equal(fs_seek_data(f, 0), -ENXIO);
    assert_int_equal(fs_allocate(f, 0, 60ull << 30), -ENOSPC);
    assert_int_equal(fs_reflink(fs, "pre", "copy"), 0);
    assert_int_equal(fs_write(f, 12345678901ull, buf, sizeof buf), 0);
    assert_int_equal(fs_read(f, 12345678900ull, buf, 2), 2);
    assert_int_equal(buf[0] << 8 | buf[1], 9);
    assert_clean(fs);
    fs_close(f);
    assert_int_equal(fs_unlink(fs, "pre"), 0);
    assert_int_equal(fs_unlink(fs, "copy"), 0);
    assert_int_equal(fs_unlink(fs, "sparse"), 0);
    assert_int_equal(free_now(fs), before);
    done(fs);
}

static void growing_online(void **state)
{
    static const uint64_t sizes[] = { 10 * MB + 4096, 100 * MB, 2048 * MB, 2050 * MB, 2053 * MB, 5000 * MB, 700ull << 30 };
    struct fs *fs = make(8 * MB, 700ull << 30, 0);
    struct fs_file *f;
    char name[16];
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        uint64_t before = free_now(fs);
        assert_int_equal(blk_resize(&disk->blk, sizes[i]), 0);
        assert_int_equal(fs_grow(fs, 0), 0);
        assert_true(free_now(fs) >= before);
        snprintf(name, sizeof name, "f%d", (int)i);
        assert_int_equal(fs_open(fs, name, FS_CREATE, &f), 0);
        assert_int_equal(fs_allocate(f, 0, free_now(fs) * 3 / 4), 0);
        fs_close(f);
        assert_clean(fs);
        fs = again(fs);
        assert_clean(fs);
    }
    assert_int_equal(fs_grow(fs, 100 * MB), -EINVAL);
    done(fs);
}

static void trim_gives_back_all_free_space(void **state)
{
    struct fs *fs = make(64 * MB, 0, 0);
    uint8_t *buf = malloc(8 * MB);
    uint64_t trimmed = 0;
    memset(buf, 0xee, 8 * MB);
    put(fs, "a", buf, 8 * MB);
    put(fs, "b", buf, 8 * MB);
    assert_int_equal(fs_unlink(fs, "a"), 0);
    uint64_t free_bytes = free_now(fs);
    assert_int_equal(fs_trim(fs, &trimmed), 0);
    assert_true(trimmed >= free_bytes);
    size_t left = 0;
    for (uint64_t i = 0; i < disk->blk.size; i++)
        left += disk->data[i] == 0xee;
    assert_true(left < 9 * MB);
    free(buf);
    done(fs);
}

static void damaged_data_is_found(void **state)
{
    struct fs *fs = make(64 * MB, 0, FS_CSUM_DATA);
    struct fs_file *f;
    uint8_t *buf = malloc(MB);
    memset(buf, 0xc3, MB);
    put(fs, "a", buf, MB);
    assert_int_equal(fs_sync(fs), 0);
    struct fs_report ok = { .say = say };
    assert_int_equal(fs_scrub(fs, &ok), 0);
    assert_int_equal(ok.errors + ok.bad_data, 0);
    assert_int_equal(ok.data_blocks, 256);
    uint8_t *at = NULL;
    for (uint64_t b = 0; b < disk->blk.size; b += 4096)
        if (!memcmp(disk->data + b, buf, 4096))
            at = disk->data + b;
    at[300] ^= 1;
    assert_int_equal(fs_open(fs, "a", 0, &f), 0);
    assert_int_equal(fs_read(f, 0, buf, MB), -EILSEQ);
    assert_int_equal(fs_read(f, 0, buf, 4096), 4096);
    struct fs_report r = { 0 };
    assert_int_equal(fs_scrub(fs, &r), 0);
    assert_int_equal(r.bad_data, 1);
    at[300] ^= 1;
    fs_close(f);
    free(buf);
    done(fs);
}

static void an_open_file_outlives_its_name(void **state)
{
    struct fs *fs = make(16 * MB, 0, 0);
    struct fs_file *f;
    uint8_t buf[4096] = "still here";
    uint64_t before = free_now(fs);
    assert_int_equal(fs_open(fs, "f", FS_CREATE, &f), 0);
    assert_int_equal(fs_write(f, 0, buf, 4096), 0);
    assert_int_equal(fs_unlink(fs, "f"), 0);
    assert_int_equal(fs_unmount(fs), -EBUSY);
    assert_int_equal(fs_read(f, 0, buf, 10), 10);
    assert_string_equal((char *)buf, "still here");
    assert_clean(fs);
    fs_close(f);
    assert_int_equal(free_now(fs), before);
    done(fs);
}

/* ---- Failures at every point ---- */

static void stop_failing(void)
{
    port_fail_alloc_after(-1);
    disk->fail_after = -1;
}

static struct fs *begin_failing(struct model *m, uint64_t seed)
{
    struct fs *fs = make(8 * MB, 0, 0);
    model_init(m, seed);
    m->max_size = 60 << 10, m->on_error = stop_failing;
    assert_int_equal(fs_mkdir(fs, "dir"), 0);
    for (int i = 0; i < 20; i++)
        assert_int_equal(model_step(m, fs, 0), 0);
    return again(fs);
}

static int some_steps(struct model *m, struct fs *fs)
{
    int err = 0;
    for (int i = 0; i < 25 && !err; i++) {
        err = model_step(m, fs, 0);
        if (!err && i % 6 == 5)
            err = fs_sync(fs);
    }
    stop_failing();
    return err;
}

/* Without memory an operation fails, nothing is half-done, and the pool lives on. */
static void allocation_failures(void **state)
{
    int failures = 0;
    for (int n = 0; n < 300; n++) {
        struct model m;
        struct fs *fs = begin_failing(&m, 1 + n % 5);
        struct fs_usage u;
        port_fail_alloc_after(n);
        int err = some_steps(&m, fs);
        if (err && err != -ENOMEM)
            fail_msg("allocation %d: %d", n, err);
        failures += err != 0;
        fs_usage(fs, &u);
        assert_int_equal(u.failed, 0);
        const char *why = model_compare(&m, fs);
        if (why)
            fail_msg("allocation %d: %s", n, why);
        assert_clean(fs);
        assert_int_equal(some_steps(&m, fs), 0);
        fs = again(fs);
        why = model_compare(&m, fs);
        if (why)
            fail_msg("allocation %d, later: %s", n, why);
        model_fini(&m);
        done(fs);
    }
    print_message("%d failures\n", failures);
    assert_true(failures > 60);
}

/* A disk that fails may cost the changes since the last commit, never the pool. */
static void disk_failures(void **state)
{
    int failures = 0, gone = 0;
    for (int n = 0; n < 260; n++) {
        struct model m;
        struct fs *fs = begin_failing(&m, 1 + n % 5);
        struct fs_usage u;
        disk->fail_after = n;
        int err = some_steps(&m, fs);
        if (err && err != -EIO && err != -EROFS)
            fail_msg("request %d: %d", n, err);
        failures += err != 0;
        fs_usage(fs, &u);
        const char *why = u.failed ? NULL : model_compare(&m, fs);
        if (why)
            fail_msg("request %d: %s", n, why);
        gone += u.failed != 0;
        assert_int_equal(fs_unmount(fs), u.failed);
        assert_int_equal(fs_mount(&disk->blk, 0, &fs), 0);
        model_fini(&m);
        done(fs);
    }
    print_message("%d failures, %d made the pool read-only\n", failures, gone);
    assert_true(failures > 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_pool),
        cmocka_unit_test(names),
        cmocka_unit_test(many_files),
        cmocka_unit_test(a_copy_shares_until_written),
        cmocka_unit_test(random_operations_match_the_model),
        cmocka_unit_test(a_full_pool_says_so_and_can_be_emptied),
        cmocka_unit_test(big_sparse_and_preallocated),
        cmocka_unit_test(growing_online),
        cmocka_unit_test(trim_gives_back_all_free_space),
        cmocka_unit_test(damaged_data_is_found),
        cmocka_unit_test(an_open_file_outlives_its_name),
        cmocka_unit_test(allocation_failures),
        cmocka_unit_test(disk_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
