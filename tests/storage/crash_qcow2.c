/*
 * Power cuts under qcow2: crash_qcow2 STATES [SEED].  As crash_fs: every moment of a recorded run of writes, zeroes, discards and
 * flushes is taken for a power cut; the image must open, its check may find leaks but no corruption, and each sector must show what it
 * held at the last flush that ended, or a later write to it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/block/image.h"
#include "kernel/lib/port.h"
#include "tests/host/mem_blk.h"

#define FILE_MAX (2u << 20)
#define SIZE (384u << 10)
#define SECTORS (SIZE / 512)
#define OPS 120

struct op { size_t log; uint32_t first, n, version; bool flush, zero, any; };

static struct mem_blk *disk, *crashed;
static uint8_t *stable;
static struct op ops[OPS];
static uint64_t seed, states;
static const char *kind_name;

static void die(const char *why, size_t at)
{
    printf("crash_qcow2: %s (%s, record %zu of %zu)\n", why, kind_name, at, disk->nlog);
    exit(1);
}

static void fill(uint8_t *buf, uint32_t sector, uint32_t n, uint32_t version)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < 64; k++)
            ((uint64_t *)(void *)(buf + 512 * i))[k] = (uint64_t)version << 32 | (sector + i + 1);
}

static void work(uint32_t cluster)
{
    struct image_env env = { .open = NULL };
    struct image_opts o = { .size = SIZE, .cluster_size = cluster };
    struct blk *img;
    static uint8_t buf[64 * 512];
    disk = mem_blk_create(4096, FILE_MAX, MEM_INLINE, seed);
    if (image_create(IMAGE_QCOW2, &disk->blk, &o, &env) || image_open(IMAGE_QCOW2, &disk->blk, IMAGE_WRITE, &env, &img))
        die("cannot make an image", 0);
    memcpy(stable, disk->data, FILE_MAX);
    disk->record = true;
    for (uint32_t i = 0; i < OPS; i++) {
        uint64_t k = mem_rand(&seed);
        struct op *p = &ops[i];
        *p = (struct op){ .n = 1 + k % 64, .version = i + 1, .flush = (k >> 8) % 6 == 0, .zero = (k >> 16) % 4 == 0, .any = (k >> 24) % 6 == 0 };
        p->first = (k >> 32) % (SECTORS - p->n);
        uint64_t off = p->first * 512ull, len = p->n * 512ull;
        int err;
        if (p->flush) {
            err = blk_flush(img);
        } else if (p->any || p->zero) {
            p->zero = true;
            err = p->any ? blk_discard(img, off, len) : blk_write_zeroes(img, off, len, k >> 40 & 1 ? BLK_UNMAP_OK : 0);
        } else {
            fill(buf, p->first, p->n, p->version);
            err = blk_write(img, off, buf, len, 0);
        }
        p->log = disk->nlog;
        if (err)
            die("an operation failed", i);
    }
    disk->record = false;
    blk_flush(img);
    /* the image owns the disk: its record is kept until the states are done, so only the engine goes */
    struct mem_blk *copy = mem_blk_create(4096, FILE_MAX, MEM_INLINE, 1);
    copy->log = disk->log, copy->nlog = disk->nlog, copy->log_cap = disk->log_cap;
    disk->log = NULL, disk->nlog = disk->log_cap = 0;
    blk_close(img);
    disk = copy;
}

/* Whether a sector's content may be seen after a cut at log position `at`. */
static bool allowed(uint32_t sector, uint32_t version, size_t at)
{
    uint32_t flushed = 0;
    bool zero_ok = true, version_ok = false, undefined = false;
    for (uint32_t i = 0; i < OPS && (!i || ops[i - 1].log <= at); i++)
        if (ops[i].flush && ops[i].log <= at)
            flushed = i + 1;
    for (uint32_t i = 0; i < OPS && (!i || ops[i - 1].log <= at); i++) {
        const struct op *p = &ops[i];
        if (p->flush || sector < p->first || sector >= p->first + p->n)
            continue;
        bool settled = i < flushed;     /* what came before is gone */
        if (settled)
            zero_ok = version_ok = undefined = false;
        zero_ok |= p->zero;
        undefined |= p->any;            /* a discard may leave anything of this sector's past */
        version_ok |= !p->zero && p->version == version;
    }
    if (!version)
        return zero_ok;
    return version_ok || undefined;
}

static void check_state(size_t at)
{
    struct image_env env = { .open = NULL };
    struct image_check c = { .say = NULL };
    struct blk *img;
    static uint8_t buf[SIZE];
    struct mem_blk *view = crashed;
    int err = image_open(IMAGE_QCOW2, &view->blk, 0, &env, &img);
    if (err)
        die(env.error[0] ? env.error : "the image does not open", at);
    if (image_check(img, 0, &c) || c.corruptions)
        die("the check finds corruption", at);
    if (image_pread(img, 0, buf, SIZE))
        die("the image cannot be read", at);
    for (uint32_t s = 0; s < SECTORS; s++) {
        uint64_t first = *(uint64_t *)(void *)(buf + 512 * s), last = *(uint64_t *)(void *)(buf + 512 * s + 504);
        if (first != last || (first && (uint32_t)first != s + 1) || !allowed(s, first >> 32, at)) {
            printf("sector %u shows %llx\n", s, (unsigned long long)first);
            die("a sector shows what it must not", at);
        }
    }
    img->below = NULL;
    states++;
    /* closing would free the disk: it is made anew */
    uint8_t *keep = malloc(FILE_MAX);
    memcpy(keep, crashed->data, FILE_MAX);
    blk_close(img);
    crashed = mem_blk_create(FILE_MAX, 0, MEM_INLINE, 1);
    memcpy(crashed->data, keep, FILE_MAX);
    free(keep);
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

static void one_state(size_t from, size_t at, int kind)
{
    kind_name = kind == 0 ? "all writes" : kind == 1 ? "some writes" : "some writes, torn";
    for (size_t i = from; i < at; i++)
        if (!kind || mem_rand(&seed) % 4)
            apply(crashed->data, &disk->log[i], kind == 2 && (i + 1 == at || mem_rand(&seed) % 4 == 0));
    check_state(at);
    for (size_t i = from; i < at; i++)
        if (disk->log[i].op != BLK_FLUSH)
            memcpy(crashed->data + disk->log[i].off, stable + disk->log[i].off, disk->log[i].len);
}

static void all_states(uint64_t limit)
{
    size_t from = 0;
    crashed = mem_blk_create(FILE_MAX, 0, MEM_INLINE, 1);
    memcpy(crashed->data, stable, FILE_MAX);
    for (size_t at = 0; at <= disk->nlog && states < limit; at++) {
        for (int kind = 0; kind < 3; kind++)
            one_state(from, at, kind);
        if (at < disk->nlog && disk->log[at].op == BLK_FLUSH) {
            for (size_t i = from; i <= at; i++) {
                apply(stable, &disk->log[i], false);
                apply(crashed->data, &disk->log[i], false);
            }
            from = at + 1;
        }
    }
    blk_close(&crashed->blk);
}

int main(int argc, char **argv)
{
    static const uint32_t clusters[] = { 4096, 65536, 512, 16384 };
    uint64_t want = argc > 1 ? strtoull(argv[1], NULL, 0) : 2000;
    seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    stable = calloc(1, FILE_MAX);
    for (unsigned round = 0; states < want; round++) {
        work(clusters[round % 4]);
        all_states(want);
        blk_close(&disk->blk);
    }
    printf("RESULT storage/crash_qcow2 ok %llu states\n", (unsigned long long)states);
    return 0;
}
