/*
 * scale [FILES [DELETE]]: a million files in one pool, a file of 16 TiB written all over, copies of files in constant time, mounts that do not
 * depend on how many files there are.  What must not grow is asserted in requests to the disk and instructions of metadata, not in time.
 */
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/fs/fs.h"
#include "kernel/lib/port.h"
#include "tests/host/mem_blk.h"

#define MB (1ull << 20)
#define GB (1ull << 30)
#define TB (1ull << 40)

#define must(e) do { long long r_ = (e); if (r_) { printf("scale: line %d: %s: %lld\n", __LINE__, #e, r_); exit(1); } } while (0)
#define expect(c) do { if (!(c)) { printf("scale: line %d: not so: %s\n", __LINE__, #c); exit(1); } } while (0)

static void say(void *arg, const char *msg) { printf("fsck: %s\n", msg); }

static uint64_t start_ns;
static unsigned ms(void)
{
    uint64_t now = clock_ns(), took = now - start_ns;
    start_ns = now;
    return took / 1000000;
}

static struct fs *pool(uint64_t size, struct mem_blk **disk)
{
    struct fs_mkfs_opts o = { .label = "scale" };
    struct fs *fs;
    *disk = mem_blk_create(size, 0, MEM_INLINE, 1);
    must(fs_mkfs(&(*disk)->blk, &o));
    must(fs_mount(&(*disk)->blk, 0, &fs));
    return fs;
}

static uint64_t requests(const struct mem_blk *m) { return m->count[BLK_READ] + m->count[BLK_WRITE]; }

static struct fs *again(struct fs *fs, struct mem_blk *disk, uint64_t *reads)
{
    must(fs_unmount(fs));
    *reads = disk->count[BLK_READ];
    must(fs_mount(&disk->blk, 0, &fs));
    *reads = disk->count[BLK_READ] - *reads;
    return fs;
}

static void check(struct fs *fs, uint64_t files)
{
    struct fs_report r = { .say = say };
    must(fs_check(fs, 0, &r));
    expect(!r.errors && r.files == files);
}

/* ---- Many files: half of them in one directory, the rest in a thousand ---- */

static const char *name_of(unsigned long i, char name[64])
{
    if (i % 2)
        snprintf(name, 64, "d%lu/image-%lu.qcow2", i / 2 % 1000, i);
    else
        snprintf(name, 64, "all/file-%lu", i);
    return name;
}

static unsigned long count_names(struct fs *fs, const char *dir)
{
    struct fs_dirent d = { .cookie = 0 };
    unsigned long n = 0;
    while (!fs_readdir(fs, dir, d.cookie, &d))
        n++;
    return n;
}

static void many_files(unsigned long n, unsigned long gone)
{
    struct mem_blk *disk;
    struct fs *fs = pool(8 * GB, &disk);
    struct fs_usage before, after;
    struct fs_file *f;
    struct fs_stat st;
    char name[64];
    uint64_t reads_few, reads_many, seed = 1;
    ms();
    must(fs_mkdir(fs, "all"));
    for (unsigned i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "d%u", i);
        must(fs_mkdir(fs, name));
    }
    fs = again(fs, disk, &reads_few);
    fs_usage(fs, &before);
    for (unsigned long i = 0; i < n; i++) {
        must(fs_open(fs, name_of(i, name), FS_CREATE | FS_EXCL, &f));
        if (i % 64 == 0)
            must(fs_write(f, 0, name, sizeof name));
        fs_close(f);
    }
    must(fs_sync(fs));
    printf("%lu files made in %u ms\n", n, ms());
    fs = again(fs, disk, &reads_many);
    printf("mounted in %u ms with %llu reads (%llu when it was empty)\n", ms(), (unsigned long long)reads_many, (unsigned long long)reads_few);
    expect(reads_many <= reads_few + 8);                /* table pages of the groups now in use */
    expect(count_names(fs, "all") == n / 2);
    expect(count_names(fs, "d7") == n / 2000);
    for (int i = 0; i < 20000; i++) {
        unsigned long k = mem_rand(&seed) % n;
        must(fs_stat(fs, name_of(k, name), &st));
        expect(st.size == (k % 64 ? 0 : 64));
    }
    printf("listed and looked up in %u ms\n", ms());
    check(fs, n);
    printf("checked in %u ms\n", ms());
    for (unsigned long i = 0; i < gone; i++)
        must(fs_unlink(fs, name_of(i * 7919 % n, name)));
    must(fs_sync(fs));
    printf("%lu deleted, scattered, in %u ms\n", gone, ms());
    check(fs, n - gone);
    fs_usage(fs, &after);
    expect(after.files == before.files + n - gone);
    expect(gone < n || after.free + 64 * 4096 >= before.free);  /* directories' tree nodes that are not full */
    must(fs_unmount(fs));
    blk_close(&disk->blk);
}

/* ---- A large file ---- */

static uint64_t mark(uint64_t at) { return at * 0x9e3779b97f4a7c15ull; }

static void large_file(void)
{
    enum { WRITES = 20000 };
    struct mem_blk *disk;
    struct fs *fs = pool(2 * GB, &disk);
    struct fs_file *f;
    struct fs_stat st;
    struct fs_usage before, after;
    static uint64_t buf[512];
    uint64_t seed = 3, reads;
    ms();
    fs_usage(fs, &before);
    must(fs_open(fs, "large", FS_CREATE, &f));
    must(fs_truncate(f, 16 * TB));
    for (int i = 0; i < WRITES; i++) {
        uint64_t at = i ? mem_rand(&seed) % (4 * GB) * 4096 : 16 * TB - 4096;
        for (int k = 0; k < 512; k++)
            buf[k] = mark(at + k);
        must(fs_write(f, at, buf, 4096));
    }
    fs_close(f);
    fs = again(fs, disk, &reads);
    must(fs_open(fs, "large", 0, &f));
    fs_fstat(f, &st);
    expect(st.size == 16 * TB && st.allocated == WRITES * 4096ull);
    uint64_t found = 0;
    for (int64_t at = 0; (at = fs_seek_data(f, at)) >= 0; found++, at += 4096) {
        expect(fs_read(f, at, buf, 4096) == 4096);
        expect(buf[0] == mark(at) && buf[511] == mark(at + 511));
    }
    expect(found == WRITES);
    check(fs, 1);
    must(fs_truncate(f, 8 * TB));
    check(fs, 1);
    fs_close(f);
    must(fs_unlink(fs, "large"));
    must(fs_sync(fs));
    fs_usage(fs, &after);
    expect(after.free == before.free);
    printf("16 TiB: %d blocks all over it written, found and given back in %u ms\n", WRITES, ms());
    must(fs_unmount(fs));
    blk_close(&disk->blk);
}

/* ---- Copies ---- */

/* Requests for a copy and the commit that makes it last. */
static uint64_t cost_of_copy(struct fs *fs, struct mem_blk *disk, const char *from, const char *to)
{
    must(fs_sync(fs));
    uint64_t before = requests(disk);
    must(fs_reflink(fs, from, to));
    must(fs_sync(fs));
    return requests(disk) - before;
}

static void make_file(struct fs *fs, const char *name, uint64_t size, uint64_t pieces)
{
    struct fs_file *f;
    must(fs_open(fs, name, FS_CREATE, &f));
    must(fs_allocate(f, 0, size));
    for (uint64_t i = 0; i < pieces; i++)               /* written blocks between unwritten ones: an extent each */
        must(fs_write(f, size / pieces * i / 4096 * 4096, name, 1));
    fs_close(f);
}

static void copies(void)
{
    struct mem_blk *disk;
    struct fs *fs = pool(40 * GB, &disk);
    struct fs_stat st;
    uint64_t reads;
    make_file(fs, "small", 4096, 1);
    make_file(fs, "10G", 10 * GB, 1);
    make_file(fs, "10G-in-pieces", 10 * GB, 20000);
    fs = again(fs, disk, &reads);                       /* nothing of the trees is cached */
    uint64_t first = cost_of_copy(fs, disk, "small", "small2");
    uint64_t small = cost_of_copy(fs, disk, "small", "small3"), large = cost_of_copy(fs, disk, "10G", "10G2");
    uint64_t pieces = cost_of_copy(fs, disk, "10G-in-pieces", "pieces2");
    printf("requests for a copy of 4 KiB (first, then) %llu, %llu, of 10 GiB %llu, of 10 GiB in 40,000 extents %llu\n", (unsigned long long)first,
           (unsigned long long)small, (unsigned long long)large, (unsigned long long)pieces);
    expect(large <= small + 2 && pieces <= small + 2);  /* a table page of another chunk, read and written */
    must(fs_stat(fs, "pieces2", &st));
    expect(st.size == 10 * GB && st.allocated == 10 * GB);
    check(fs, 7);
    must(fs_unmount(fs));
    blk_close(&disk->blk);
}

int main(int argc, char **argv)
{
    unsigned long n = argc > 1 ? strtoul(argv[1], NULL, 0) / 2000 * 2000 : 1000000;
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_TOP_PAD, 64 << 20);
    setvbuf(stdout, NULL, _IOLBF, 0);
    copies();
    large_file();
    many_files(n, argc > 2 ? strtoul(argv[2], NULL, 0) : n);
    printf("RESULT storage/scale ok\n");
    return 0;
}
