/*
 * Damaged pools: the input is a list of 8-byte patches (which block, where in it, four bytes) to the metadata of a good pool, whose
 * checksums are made right again, so that the damage gets past them.  Mount, walk, read, write, check, repair, unmount.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/fs/format.h"
#include "kernel/fs/fs.h"
#include "kernel/lib/crc.h"
#include "kernel/lib/port.h"
#include "tests/host/fs_model.h"
#include "tests/host/mem_blk.h"

#define SIZE (6u << 20)
#define MAX_META 256

static uint8_t *good;
static uint64_t meta[MAX_META], nmeta;
static uint32_t seed;

static struct fs_super *super_of(uint8_t *disk, int i) { return (struct fs_super *)(disk + (uint64_t)(FS_SUPER + i) * FS_BLOCK); }

static void build(void)
{
    struct fs_mkfs_opts o = { .label = "fuzz" };
    struct mem_blk *m = mem_blk_create(SIZE, 0, MEM_INLINE, 1);
    struct model md;
    struct fs *fs;
    model_init(&md, 3);
    md.max_size = 80 << 10;
    if (fs_mkfs(&m->blk, &o) || fs_mount(&m->blk, 0, &fs) || fs_mkdir(fs, "dir"))
        abort();
    for (int i = 0; i < 150; i++)
        if (model_step(&md, fs, 0))
            abort();
    fs_unmount(fs);
    good = malloc(SIZE);
    memcpy(good, m->data, SIZE);
    seed = crc32c(0, super_of(good, 0)->uuid, 16);
    meta[nmeta++] = FS_SUPER, meta[nmeta++] = FS_SUPER + 1;
    for (uint64_t b = FS_HEADER; b < SIZE / FS_BLOCK && nmeta < MAX_META; b++) {
        struct node_hdr *h = (struct node_hdr *)(good + b * FS_BLOCK);
        if (h->blk == b && h->crc == crc32c(seed, (uint8_t *)h + 4, FS_BLOCK - 4))
            meta[nmeta++] = b;
    }
    model_fini(&md);
    blk_close(&m->blk);
}

static void patch(uint8_t *disk, const uint8_t *p)
{
    uint16_t which, off;
    memcpy(&which, p, 2), memcpy(&off, p + 2, 2);
    uint64_t b = meta[which % nmeta];
    uint8_t *at = disk + b * FS_BLOCK;
    memcpy(at + off % (FS_BLOCK - 3), p + 4, 4);
    if (b >= FS_HEADER) {
        ((struct node_hdr *)at)->crc = crc32c(seed, at + 4, FS_BLOCK - 4);
    } else {
        struct fs_super *s = (struct fs_super *)at;
        s->crc = 0;
        s->crc = crc32c(0, s, sizeof *s);
    }
}

static void walk(struct fs *fs, const char *dir, int depth)
{
    struct fs_dirent d = { .cookie = 0 };
    char path[600];
    static uint8_t buf[8192];
    for (int n = 0; n < 100 && !fs_readdir(fs, dir, d.cookie, &d); n++) {
        struct fs_file *f;
        snprintf(path, sizeof path, "%.300s/%.255s", dir, d.name);
        if (d.dir && depth < 4)
            walk(fs, path, depth + 1);
        if (fs_open(fs, path, 0, &f))
            continue;
        for (uint64_t o = 0; o < 100 << 10; o += sizeof buf)
            fs_read(f, o, buf, sizeof buf);
        fs_seek_data(f, 0), fs_seek_hole(f, 0);
        fs_write(f, 5000, buf, 6000);
        fs_punch(f, 20000, 20000);
        fs_truncate(f, 30000);
        fs_close(f);
    }
}

static void change(struct fs *fs)
{
    struct fs_file *f;
    fs_reflink(fs, "f0", "copy"), fs_reflink(fs, "f1", "dir/copy");
    fs_rename(fs, "f3", "f4"), fs_unlink(fs, "f6"), fs_mkdir(fs, "new"), fs_rename(fs, "dir", "new/dir");
    if (!fs_open(fs, "fresh", FS_CREATE, &f)) {
        fs_allocate(f, 0, 100000);
        fs_write(f, 50, "hello", 5);
        fs_close(f);
    }
    fs_unlink(fs, "copy");
    fs_sync(fs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct fs *fs;
    struct fs_report r = { .say = NULL };
    if (!good)
        build();
    struct mem_blk *m = mem_blk_create(SIZE, SIZE + (9u << 20), MEM_INLINE, 1);
    memcpy(m->data, good, SIZE);
    for (size_t i = 1; i + 8 <= len && i < 200; i += 8)
        patch(m->data, data + i);
    bool repair = len && (data[0] & 7) == 6;
    if (len && !fs_mount(&m->blk, data[0] & 1 ? FS_RDONLY : repair ? FS_SALVAGE : 0, &fs)) {
        if (data[0] & 2 && !fs_check(fs, FS_CHECK_DATA | (repair ? FS_CHECK_REPAIR : 0), &r) && repair && r.left)
            panic("the repair leaves %llu errors", (unsigned long long)r.left);
        walk(fs, "", 0);
        change(fs);
        if (data[0] & 8 && !blk_resize(&m->blk, SIZE + (9u << 20)))
            fs_grow(fs, 0);
        fs_trim(fs, NULL);
        fs_scrub(fs, &r);
        fs_unmount(fs);
    }
    blk_close(&m->blk);
    return 0;
}
