/*
 * Power cuts under image formats: crash_image STATES [SEED [KIND]].  As crash_fs: every moment of a recorded run of writes (some with FUA),
 * zeroes, discards and flushes is taken for a power cut; the image must open, its check may find leaks but no corruption, and each sector
 * must show what it held at the last flush (or FUA write of it) that ended, or a later write to it.  Now and then the image is written
 * after the cut, and must be as sound as before; and now and then qemu-img is asked.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kernel/block/image.h"
#include "kernel/block/split.h"
#include "kernel/lib/port.h"
#include "tests/host/mem_blk.h"

#define SECTORS_MAX 8192u
#define OPS 120
#define BACKING_SIZE (200u << 10)

struct kind { const char *name; enum image_format format; struct image_opts opts; uint64_t file_max; };

static const struct kind kinds[] = {
    { "qcow2-4096", IMAGE_QCOW2, { .size = 384 << 10, .cluster_size = 4096 }, 2 << 20 },
    { "vmdk", IMAGE_VMDK, { .size = 512 << 10 }, 2 << 20 },
    { "qcow2-64k", IMAGE_QCOW2, { .size = 384 << 10, .cluster_size = 65536, .lazy_refcounts = true }, 4 << 20 },
    { "vdi", IMAGE_VDI, { .size = 4 << 20 }, 6 << 20 },
    { "qcow2-512", IMAGE_QCOW2, { .size = 384 << 10, .cluster_size = 512, .refcount_bits = 1 }, 2 << 20 },
    { "qcow2-backing", IMAGE_QCOW2, { .size = 384 << 10, .cluster_size = 16384, .backing = "base", .backing_format = IMAGE_RAW }, 2 << 20 },
    { "qcow2-v2", IMAGE_QCOW2, { .size = 384 << 10, .cluster_size = 16384, .version = 2 }, 2 << 20 },
};

/* What op number i did: version i + 1 is in its sectors, or zeroes. */
struct op { size_t log; uint32_t first, n; enum blk_op op; bool fua; };
struct versions { uint64_t set[2]; bool zero; };        /* what a sector may show */

static const struct kind *kind;
static struct mem_blk *disk, *crashed;
static uint8_t *stable;
static struct op ops[OPS];
static struct versions may[SECTORS_MAX];
static uint64_t seed, states;
static const char *loss;

__attribute__((noreturn)) static void die(const char *why, size_t at)
{
    printf("RESULT storage/crash_image FAIL %s: %s (%s, record %zu of %zu)\n", kind->name, why, loss, at, disk->nlog);
    exit(1);
}

/* ---- Disks that stay when the image on them is closed ---- */

static struct blk_ops staying;
static void stay(struct blk *b) { }

static struct mem_blk *make_disk(uint64_t size, uint64_t capacity)
{
    struct mem_blk *m = mem_blk_create(size, capacity, MEM_INLINE, seed);
    staying = *m->blk.ops;
    staying.close = stay;
    m->blk.ops = &staying;
    return m;
}

static int open_base(void *arg, const char *name, bool write, struct blk **out)
{
    struct mem_blk *m = mem_blk_create(BACKING_SIZE, BACKING_SIZE, MEM_INLINE, 1);
    *out = &m->blk;                     /* all zeroes: what is not in the image reads as zeroes in any case */
    return 0;
}

static struct blk *open_on(struct mem_blk *m, unsigned flags, size_t at)
{
    struct image_env env = { .open = open_base };
    struct blk *img;
    if (!m->blk.split && blk_ready(&m->blk))
        die("no memory", at);
    if (image_open(kind->format, &m->blk, flags, &env, &img))
        die(env.error[0] ? env.error : "the image does not open", at);
    return img;
}

/* ---- The run ---- */

static void fill(uint8_t *buf, uint32_t sector, uint32_t n, uint32_t version)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < 64; k++)
            ((uint64_t *)(void *)(buf + 512 * i))[k] = (uint64_t)version << 32 | (sector + i + 1);
}

static void pick(struct op *p)
{
    uint64_t k = mem_rand(&seed);
    *p = (struct op){ .n = 1 + k % 64, .op = BLK_WRITE };
    p->first = (k >> 32) % (kind->opts.size / 512 - p->n);
    if ((k >> 8) % 6 == 0)
        p->op = BLK_FLUSH;
    else if ((k >> 16) % 4 == 0)
        p->op = (k >> 24) % 3 ? BLK_WRITE_ZEROES : BLK_DISCARD;
    else
        p->fua = (k >> 24) % 8 == 0;
}

static int carry_out(struct blk *img, const struct op *p, uint32_t version)
{
    static uint8_t buf[64 * 512];
    uint64_t off = p->first * 512ull, len = p->n * 512ull;
    switch (p->op) {
    case BLK_FLUSH:        return blk_flush(img);
    case BLK_DISCARD:      return blk_discard(img, off, len);
    case BLK_WRITE_ZEROES: return blk_write_zeroes(img, off, len, version % 2 ? BLK_UNMAP_OK : 0);
    default:               fill(buf, p->first, p->n, version); return blk_write(img, off, buf, len, p->fua ? BLK_FUA : 0);
    }
}

static void work(void)
{
    struct image_env env = { .open = open_base };
    disk = make_disk(4096, kind->file_max);
    if (image_create(kind->format, &disk->blk, &kind->opts, &env))
        die("cannot make an image", 0);
    memset(disk->data + disk->blk.size, 0xa5, kind->file_max - disk->blk.size);     /* what a disk held before; must never be seen */
    struct blk *img = open_on(disk, IMAGE_WRITE, 0);
    memcpy(stable, disk->data, kind->file_max);
    disk->record = true;
    for (uint32_t i = 0; i < OPS; i++) {
        pick(&ops[i]);
        if (carry_out(img, &ops[i], i + 1))
            die("an operation failed", i);
        ops[i].log = disk->nlog;
    }
    disk->record = false;
    blk_close(img);
}

/* ---- What may be seen ---- */

/* May be seen besides what was there before, or (certain) instead of it. */
static void allow(const struct op *p, int version, bool certain)
{
    for (uint32_t s = p->first; s < p->first + p->n; s++) {
        if (certain)
            may[s] = (struct versions){ .zero = false };
        if (version)
            may[s].set[version / 64] |= BIT(version % 64);
        else
            may[s].zero = true;
    }
}

static void expect(size_t at)
{
    int flushed = 0;
    for (int i = 0; i < OPS && ops[i].log <= at; i++)
        if (ops[i].op == BLK_FLUSH)
            flushed = i + 1;
    for (uint32_t s = 0; s < SECTORS_MAX; s++)
        may[s] = (struct versions){ .zero = true };
    for (int i = 0; i < OPS && (!i || ops[i - 1].log <= at); i++) {
        const struct op *p = &ops[i];
        bool settled = i < flushed || (p->fua && p->log <= at);
        if (p->op != BLK_FLUSH)
            allow(p, p->op == BLK_WRITE ? i + 1 : 0, settled && p->op != BLK_DISCARD);  /* a discard may leave what was there */
    }
}

static void judge(const uint8_t *buf, uint64_t sectors, size_t at)
{
    for (uint32_t s = 0; s < sectors; s++) {
        uint64_t first = *(const uint64_t *)(const void *)(buf + 512 * s), last = *(const uint64_t *)(const void *)(buf + 512 * s + 504);
        uint32_t v = first >> 32;
        bool ok = first ? first == last && (uint32_t)first == s + 1 && v <= OPS && may[s].set[v / 64] >> v % 64 & 1 : !last && may[s].zero;
        if (!ok) {
            printf("sector %u shows %llx\n", s, (unsigned long long)first);
            die("a sector shows what it must not", at);
        }
    }
}

/* ---- States ---- */

static uint8_t content[SECTORS_MAX * 512];

static void read_and_judge(struct blk *img, size_t at)
{
    struct image_check c = { .say = NULL };
    if (image_check(img, 0, &c) || c.corruptions)
        die("the check finds corruption", at);
    if (image_pread(img, 0, content, img->size))
        die("the image cannot be read", at);
    judge(content, img->size / 512, at);
}

/* Life goes on: written after the cut, every sector still shows what it may. */
static void write_after(size_t at)
{
    struct mem_blk *m = make_disk(kind->file_max, kind->file_max + (4 << 20));
    memcpy(m->data, crashed->data, kind->file_max);
    struct blk *img = open_on(m, IMAGE_WRITE, at);
    for (int i = 0; i < 4; i++) {
        struct op p;
        int version = 1 + mem_rand(&seed) % OPS;
        pick(&p);
        int err = carry_out(img, &p, version);
        if (err && err != -ENOSPC)
            die("cannot be written after the cut", at);
        if (p.op != BLK_FLUSH)
            allow(&p, p.op == BLK_WRITE ? version : 0, false);
    }
    if (blk_flush(img))
        die("cannot be flushed after the cut", at);
    read_and_judge(img, at);
    blk_close(img);
    mem_blk_free(m);
}

/* A VDI image's count of blocks may be ahead of its map after a crash; qemu-img calls that corruption. */
static void ask_qemu_img(size_t at)
{
    char path[] = "/tmp/joist-crash-XXXXXX", cmd[192];
    if (kind->format == IMAGE_VDI || access("/usr/bin/qemu-img", X_OK))
        return;
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, crashed->data, kind->file_max) != (ssize_t)kind->file_max)
        die("no room for a copy", at);
    close(fd);
    snprintf(cmd, sizeof cmd, "qemu-img check -q 'json:{\"driver\":\"%s\",\"file.filename\":\"%s\"%s}' >/dev/null 2>&1", image_format_name(kind->format), path,
             kind->opts.backing ? ",\"backing\":null" : "");
    int status = system(cmd);
    unlink(path);
    if (status && WEXITSTATUS(status) != 3)
        die("qemu-img check finds corruption", at);
}

static void check_state(size_t at)
{
    struct blk *img = open_on(crashed, 0, at);
    read_and_judge(img, at);
    blk_close(img);
    if (states % 300 == 7)
        ask_qemu_img(at);
    if (states % 10 == 3) {
        write_after(at);
        expect(at);
    }
    states++;
}

static void apply(uint8_t *to, const struct mem_log *e, bool torn)
{
    for (uint64_t o = 0; e->op != BLK_FLUSH && o < e->len; o += torn ? 512 : e->len) {
        uint64_t n = torn ? 512 : e->len;
        if (torn && mem_rand(&seed) % 2)
            continue;
        if (e->op == BLK_WRITE)
            memcpy(to + e->off + o, e->data + o, n);
        else
            memset(to + e->off + o, 0, n);
    }
}

/* What the disk ended since its last flush is there, or only some of it, or only some sectors of some; but FUA writes are there. */
static void one_state(size_t from, size_t at, int how)
{
    loss = how == 0 ? "all writes" : how == 1 ? "some writes" : "some writes, torn";
    for (size_t i = from; i < at; i++) {
        bool sure = !how || disk->log[i].flags & BLK_FUA;
        if (sure || mem_rand(&seed) % 4)
            apply(crashed->data, &disk->log[i], !sure && how == 2 && (i + 1 == at || mem_rand(&seed) % 4 == 0));
    }
    check_state(at);
    for (size_t i = from; i < at; i++)
        if (disk->log[i].op != BLK_FLUSH)
            memcpy(crashed->data + disk->log[i].off, stable + disk->log[i].off, disk->log[i].len);
}

static void all_states(uint64_t limit)
{
    size_t from = 0;
    crashed = make_disk(kind->file_max, 0);
    memcpy(crashed->data, stable, kind->file_max);
    for (size_t at = 0; at <= disk->nlog && states < limit; at++) {
        expect(at);
        for (int how = 0; how < 3; how++)
            one_state(from, at, how);
        if (at < disk->nlog && disk->log[at].op == BLK_FLUSH) {
            for (size_t i = from; i <= at; i++) {
                apply(stable, &disk->log[i], false);
                apply(crashed->data, &disk->log[i], false);
            }
            from = at + 1;
        }
    }
    mem_blk_free(crashed);
}

int main(int argc, char **argv)
{
    uint64_t want = argc > 1 ? strtoull(argv[1], NULL, 0) : 2000;
    seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    stable = calloc(1, 8 << 20);
    for (unsigned round = 0; states < want; round++) {
        kind = &kinds[argc > 3 ? strtoul(argv[3], NULL, 0) : round % ARRAY_SIZE(kinds)];
        loss = "no cut";
        work();
        all_states(want);
        mem_blk_free(disk);
    }
    printf("RESULT storage/crash_image ok %llu states\n", (unsigned long long)states);
    return 0;
}
