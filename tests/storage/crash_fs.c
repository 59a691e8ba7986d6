/*
 * Power cuts: crash_fs STATES [SEED]
 *
 * Random operations run on a pool on a recording disk, which grows half-way.  Then every moment of that record is taken for the moment of a power cut: all
 * that was flushed is there, and of what came after, first all, then random selections with torn sectors among them.  Each such disk
 * must mount, pass the full check, and show the names and sizes of exactly the last commit that ended, or of one after it; each word
 * of each file must be of that commit, or of a later write into the very same file.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/lib/port.h"
#include "tests/host/fs_model.h"
#include "tests/host/mem_blk.h"

#define DISK (7u << 20)
#define OPS 160
#define MAX_SYNCS (OPS + 2)

struct sync { size_t log; uint64_t gen; struct model model; };

struct run {
    struct mem_blk *disk, *crashed;
    uint8_t *stable;            /* what is certainly on the disk at the current epoch's start */
    struct sync sync[MAX_SYNCS];
    int nsyncs;
    uint64_t seed, states, version_at[1 << 20];
    uint64_t zeroed[1 << 16];   /* by file id: version of the last punch or truncation */
    const char *what;
};

static void die(struct run *r, const char *why, size_t at)
{
    printf("crash_fs: %s (%s, record %zu of %zu)\n", why, r->what, at, r->disk->nlog);
    exit(1);
}

/* ---- The workload ---- */

/* Both end with a commit of what the model shows. */
static void do_sync(struct run *r, struct fs *fs, struct model *m, int (*commit)(struct fs *))
{
    struct fs_usage u;
    struct sync *s = &r->sync[r->nsyncs++];
    if (commit(fs))
        die(r, "sync failed", 0);
    fs_usage(fs, &u);
    s->log = r->disk->nlog, s->gen = u.gen;
    model_init(&s->model, 0);
    model_copy(&s->model, m);
}

static int grow(struct fs *fs) { return fs_grow(fs, 0); }

static void note_versions(struct run *r, const struct model *m, size_t *from)
{
    for (; *from < r->disk->nlog; ++*from)
        r->version_at[*from] = m->version + 1;
    for (int i = 0; i < MODEL_FILES; i++)
        r->zeroed[m->file[i].id] = m->file[i].zeroed;
}

static void work(struct run *r, uint64_t seed)
{
    struct fs *fs;
    struct fs_mkfs_opts o = { .label = "crash", .size = DISK - (1 << 20) };
    struct model m;
    size_t noted = 0;
    model_init(&m, seed);
    m.max_size = 96 << 10;
    r->disk = mem_blk_create(DISK, 0, MEM_INLINE, seed);
    if (fs_mkfs(&r->disk->blk, &o) || fs_mount(&r->disk->blk, FS_DISCARD, &fs) || fs_mkdir(fs, "dir"))
        die(r, "cannot make a pool", 0);
    if (fs_sync(fs))
        die(r, "sync failed", 0);
    memcpy(r->stable, r->disk->data, DISK);
    r->disk->record = true;
    do_sync(r, fs, &m, fs_sync);
    for (int i = 0; i < OPS; i++) {
        int err = model_step(&m, fs, MODEL_ALIGNED);
        if (err)
            die(r, "an operation failed", i);
        note_versions(r, &m, &noted);
        if (mem_rand(&r->seed) % 8 == 0)
            do_sync(r, fs, &m, fs_sync);
        if (i == OPS / 2)
            do_sync(r, fs, &m, grow);
        note_versions(r, &m, &noted);
    }
    r->disk->record = false;
    model_fini(&m);
    if (fs_unmount(fs))
        die(r, "unmount failed", 0);
}

/* ---- A crashed disk ---- */

/* Commits that had nothing to write but data share a generation: the last that had ended, or else the first that had not. */
static struct sync *sync_of(struct run *r, uint64_t gen, size_t at)
{
    struct sync *found = NULL;
    for (int i = 0; i < r->nsyncs; i++)
        if (r->sync[i].gen == gen && (!found || r->sync[i].log <= at))
            found = &r->sync[i];
    return found;
}

static void check_words(struct run *r, const struct model_file *mf, struct fs_file *f, uint64_t from, uint64_t to, size_t at)
{
    static uint8_t buf[MODEL_SIZE];
    if (fs_read(f, 0, buf, sizeof buf) != (int64_t)mf->size)
        die(r, "a file cannot be read whole", at);
    for (uint64_t i = 0; i + 8 <= mf->size; i += 8) {
        uint64_t word;
        if (!memcmp(buf + i, mf->data + i, 8))
            continue;
        memcpy(&word, buf + i, 8);
        if (!word && r->zeroed[mf->id] > from)
            continue;                   /* zeroed in place after the commit */
        uint64_t version = word >> 16 & 0xffffff;
        if (word >> 40 != i / 8 || (word & 0xffff) != mf->id || version <= from || version > to) {
            printf("word %016llx at %llu of file id %llu; commit version %llu, now %llu, expected %02x..\n", (unsigned long long)word,
                   (unsigned long long)i, (unsigned long long)mf->id, (unsigned long long)from, (unsigned long long)to, mf->data[i]);
            die(r, "a file shows what was never written to it", at);
        }
    }
}

static void check_files(struct run *r, struct fs *fs, struct sync *s, size_t at)
{
    uint64_t now = at ? r->version_at[at - 1] : 0;
    for (int i = 0; i < MODEL_FILES; i++) {
        const struct model_file *mf = &s->model.file[i];
        struct fs_file *f;
        struct fs_stat st;
        char name[32];
        int err = fs_open(fs, model_name(i, name), 0, &f);
        if (err != (mf->exists ? 0 : -ENOENT))
            die(r, mf->exists ? "a file is gone" : "a file came back", at);
        if (err)
            continue;
        fs_fstat(f, &st);
        if (st.size != mf->size) {
            printf("%s is %llu bytes, not %llu, at generation %llu\n", name, (unsigned long long)st.size, (unsigned long long)mf->size,
                   (unsigned long long)s->gen);
            die(r, "a size is wrong", at);
        }
        check_words(r, mf, f, s->model.version, now, at);
        fs_close(f);
    }
}

static void say(void *arg, const char *msg) { printf("fsck: %s\n", msg); }

/* told: the last record was seen to end before the power went, and with it a commit that it was the last act of. */
static void check_state(struct run *r, size_t at, bool told)
{
    struct fs *fs;
    struct fs_usage u;
    struct fs_report rep = { .say = say };
    struct sync *s, *last = &r->sync[0];
    int err = fs_mount(&r->crashed->blk, FS_RDONLY, &fs);
    if (err) {
        printf("mount: %d\n", err);
        die(r, "the pool does not mount", at);
    }
    for (int i = 0; i < r->nsyncs; i++)
        if (r->sync[i].log < at + told)
            last = &r->sync[i];
    fs_usage(fs, &u);
    s = sync_of(r, u.gen, at);
    if (!s)
        die(r, "the pool shows a commit that nobody asked for (was it too full for this test?)", at);
    if (s->gen < last->gen)
        die(r, "the pool fell back behind an acknowledged commit", at);
    if (fs_check(fs, 0, &rep) || rep.errors)
        die(r, "the check finds errors", at);
    check_files(r, fs, s, at);
    if (fs_unmount(fs))
        die(r, "unmount failed", at);
    r->states++;
}

/* ---- All moments ---- */

/* Part of the entry reaches the disk: whole, or random sectors of it. */
static void apply(struct run *r, uint8_t *to, const struct mem_log *e, bool torn)
{
    for (uint64_t o = 0; e->op != BLK_FLUSH && o < e->len; o += torn ? 512 : e->len) {
        uint64_t n = torn ? 512 : e->len;
        if (torn && mem_rand(&r->seed) % 2)
            continue;
        if (e->op == BLK_WRITE)
            memcpy(to + e->off + o, e->data + o, n);
        else
            memset(to + e->off + o, 0, n);
    }
}

static void revert(struct run *r, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++) {
        const struct mem_log *e = &r->disk->log[i];
        if (e->op != BLK_FLUSH)
            memcpy(r->crashed->data + e->off, r->stable + e->off, e->len);
    }
}

static void one_state(struct run *r, size_t from, size_t at, int kind)
{
    r->what = kind == 0 ? "all writes" : kind == 1 ? "some writes" : "some writes, torn";
    bool told = kind == 0 || mem_rand(&r->seed) % 2;
    for (size_t i = from; i < at; i++) {
        const struct mem_log *e = &r->disk->log[i];
        bool certain = e->flags & BLK_FUA && i + 1 < at + told;
        if (kind && !certain && mem_rand(&r->seed) % 4 == 0)
            continue;
        apply(r, r->crashed->data, e, kind == 2 && !certain && (i + 1 == at || mem_rand(&r->seed) % 4 == 0));
    }
    check_state(r, at, told);
    revert(r, from, at);
}

static void all_states(struct run *r, uint64_t limit)
{
    size_t from = 0;
    r->crashed = mem_blk_create(DISK, 0, MEM_INLINE, 1);
    memcpy(r->crashed->data, r->stable, DISK);
    for (size_t at = 0; at <= r->disk->nlog && r->states < limit; at++) {
        for (int kind = 0; kind < 3; kind++)
            one_state(r, from, at, kind);
        if (at < r->disk->nlog && r->disk->log[at].op == BLK_FLUSH) {
            for (size_t i = from; i <= at; i++) {
                apply(r, r->stable, &r->disk->log[i], false);
                apply(r, r->crashed->data, &r->disk->log[i], false);
            }
            from = at + 1;
        }
    }
    blk_close(&r->crashed->blk);
}

int main(int argc, char **argv)
{
    uint64_t want = argc > 1 ? strtoull(argv[1], NULL, 0) : 10000, seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    static struct run r;
    r.stable = malloc(DISK);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int round = 0; r.states < want; round++) {
        r.seed = seed + round;
        r.nsyncs = 0;
        memset(r.zeroed, 0, sizeof r.zeroed);
        work(&r, seed + round);
        all_states(&r, want);
        for (int i = 0; i < r.nsyncs; i++)
            model_fini(&r.sync[i].model);
        blk_close(&r.disk->blk);
    }
    printf("RESULT storage/crash_fs ok %llu states\n", (unsigned long long)r.states);
    return 0;
}
