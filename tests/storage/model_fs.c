/* model_fs OPERATIONS [SEED]: random operations on a pool and on a model of it must agree, through remounts, checks, full pools, growth. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include "tests/host/fs_model.h"
#include "tests/host/mem_blk.h"

#define MB (1ull << 20)

static void say(void *arg, const char *msg) { printf("fsck: %s\n", msg); }

static void die(const char *why, unsigned long n, int err)
{
    printf("model_fs: operation %lu: %s (%d)\n", n, why, err);
    exit(1);
}

static void check(struct model *m, struct fs *fs, unsigned long n)
{
    struct fs_report r = { .say = say };
    const char *why = model_compare(m, fs);
    if (why)
        die(why, n, 0);
    int err = fs_check(fs, FS_CHECK_DATA, &r);
    if (err || r.errors)
        die("the check finds errors", n, err);
}

int main(int argc, char **argv)
{
    unsigned long want = argc > 1 ? strtoul(argv[1], NULL, 0) : 100000, n = 0, full = 0;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    for (; n < want; seed++) {
        struct fs_mkfs_opts o = { .flags = seed % 3 ? 0 : FS_CSUM_DATA };
        struct mem_blk *disk = mem_blk_create((seed % 2 ? 4 : 40) * MB, 100 * MB, MEM_INLINE, seed);
        struct model m;
        struct fs *fs;
        model_init(&m, seed);
        int err = fs_mkfs(&disk->blk, &o);
        if (err || (err = fs_mount(&disk->blk, FS_DISCARD, &fs)) || (err = fs_mkdir(fs, "dir")))
            die("cannot make a pool", n, err);
        for (unsigned long i = 1; i <= 20000 && n < want; i++, n++) {
            err = model_step(&m, fs, 0);
            full += err == -ENOSPC;
            if (err && err != -ENOSPC)
                die("failed", n, err);
            if (i % 500 == 0)
                check(&m, fs, n);
            if (i % 1500 == 0 && ((err = fs_unmount(fs)) || (err = fs_mount(&disk->blk, FS_DISCARD, &fs))))
                die("cannot mount again", n, err);
            if (i == 12000 && ((err = blk_resize(&disk->blk, disk->blk.size + 3 * MB)) || (err = fs_grow(fs, 0))))
                die("cannot grow", n, err);
        }
        check(&m, fs, n);
        fs_unmount(fs);
        blk_close(&disk->blk);
        model_fini(&m);
    }
    printf("RESULT storage/model_fs ok %lu operations, pool full %lu times\n", n, full);
    return 0;
}
