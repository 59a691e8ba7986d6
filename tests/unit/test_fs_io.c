/* The way of data through a pool: what reaches the disk, what waits for what. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "kernel/block/linear.h"
#include "kernel/block/split.h"
#include "kernel/fs/fs.h"
#include "tests/host/mem_blk.h"
#include "tests/host/port_host.h"

#define MB (1ull << 20)

/* ---- A disk that keeps requests back which touch one block ---- */

struct holder {
    struct blk blk;
    struct mem_blk *m;
    struct spinlock lock;
    uint64_t block;             /* UINT64_MAX: none */
    struct list held;
    int nheld;
};

static void holder_submit(struct blk *b, struct blk_req *r)
{
    struct holder *h = container_of(b, struct holder, blk);
    spin_lock(&h->lock);
    bool hold = r->op != BLK_FLUSH && r->off / 4096 <= h->block && (r->off + r->len - 1) / 4096 >= h->block;
    if (hold)
        list_append(&h->held, &r->link), atomic_store(&h->nheld, h->nheld + 1);
    spin_unlock(&h->lock);
    if (!hold)
        blk_submit(&h->m->blk, r);
}

static void let_go(struct holder *h)
{
    struct list *l;
    spin_lock(&h->lock);
    h->block = UINT64_MAX;
    spin_unlock(&h->lock);
    while ((l = list_pop(&h->held)))
        blk_submit(&h->m->blk, list_entry(l, struct blk_req, link));
    h->nheld = 0;
}

static const struct blk_ops holder_ops = { .submit = holder_submit };

static struct fs *make(struct holder *h, uint64_t size)
{
    struct fs_mkfs_opts o = { .label = "io" };
    struct fs *fs;
    *h = (struct holder){ .block = UINT64_MAX, .m = mem_blk_create(size, 0, MEM_INLINE, 1) };
    list_init(&h->held);
    h->blk = h->m->blk;
    h->blk.ops = &holder_ops;
    assert_int_equal(blk_ready(&h->blk), 0);
    assert_int_equal(fs_mkfs(&h->blk, &o), 0);
    assert_int_equal(fs_mount(&h->blk, 0, &fs), 0);
    return fs;
}

static void done_with(struct holder *h, struct fs *fs)
{
    struct fs_report r = { .say = NULL };
    assert_int_equal(fs_check(fs, FS_CHECK_DATA, &r), 0);
    assert_int_equal(r.errors, 0);
    assert_int_equal(fs_unmount(fs), 0);
    struct blk *m = &h->m->blk;
    blk_split_close(&h->blk);
    blk_close(m);
}

/* ---- Requests ---- */

struct job { struct blk_req r; struct iov v; int ended; void *ctx; };

static void ended(struct blk_req *r) { atomic_store((int *)r->arg, 1); }

static void begin(struct job *j, struct blk *b, enum blk_op op, uint64_t off, void *buf, size_t len)
{
    j->ended = 0;
    j->v = (struct iov){ buf, len };
    j->ctx = aligned_alloc(16, ALIGN_UP(b->limits.ctx_size + 16, 16u));
    j->r = (struct blk_req){ .op = op, .off = off, .len = len, .iov = &j->v, .niov = 1, .done = ended, .arg = &j->ended, .ctx = j->ctx };
    blk_submit(b, &j->r);
}

static int end(struct job *j)
{
    while (!atomic_load(&j->ended))
        thread_yield();
    free(j->ctx);
    return j->r.err;
}

static struct fs_file *file(struct fs *fs, const char *name, uint64_t size, int fill)
{
    struct fs_file *f;
    uint8_t *buf = malloc(size);
    memset(buf, fill, size);
    assert_int_equal(fs_open(fs, name, FS_CREATE, &f), 0);
    assert_int_equal(fs_write(f, 0, buf, size), 0);
    free(buf);
    return f;
}

/* ---- Overwriting ---- */

static void overwrites_touch_no_metadata(void **state)
{
    enum { SIZE = 8 * MB, N = 3000 };
    struct holder h;
    struct fs *fs = make(&h, 64 * MB);
    struct fs_file *f = file(fs, "disk", SIZE, 1);
    struct blk *b;
    struct job j;
    static uint8_t buf[16384], model[SIZE];
    uint64_t seed = 1, written = 0;
    memset(model, 1, SIZE);
    assert_int_equal(fs_sync(fs), 0);
    assert_int_equal(fs_file_blk(f, false, &b), 0);
    for (uint64_t off = 0; off < SIZE; off += MB) {     /* the map is learnt: the first write of a range asks a thread where it is */
        begin(&j, b, BLK_WRITE, off, model + off, MB);
        assert_int_equal(end(&j), 0);
    }
    mem_blk_log_reset(h.m);
    h.m->record = true;
    for (int i = 0; i < N; i++) {
        size_t len = 512 * (1 + mem_rand(&seed) % 32), off = mem_rand(&seed) % ((SIZE - len) / 512) * 512;
        memset(buf, i, len);
        memcpy(model + off, buf, len);
        preempt_disable();                              /* as a vCPU's doorbell: nothing may sleep, and it has ended when submit returns */
        host_alloc_forbid(true);
        begin(&j, b, BLK_WRITE, off, buf, len);
        host_alloc_forbid(false);
        preempt_enable();
        assert_int_equal(atomic_load(&j.ended), 1);
        assert_int_equal(end(&j), 0);
        written += len;
    }
    uint64_t reached = 0;
    for (size_t i = 0; i < h.m->nlog; i++) {
        assert_int_equal(h.m->log[i].op, BLK_WRITE);
        reached += h.m->log[i].len;
    }
    assert_int_equal(reached, written);                 /* the data and not a byte more */
    size_t n = h.m->nlog;
    begin(&j, b, BLK_FLUSH, 0, NULL, 0);
    assert_int_equal(end(&j), 0);
    assert_int_equal(fs_sync(fs), 0);
    for (size_t i = n; i < h.m->nlog; i++)
        assert_int_equal(h.m->log[i].op, BLK_FLUSH);    /* nothing to commit either */
    h.m->record = false;
    struct fs_file *again;
    assert_int_equal(fs_open(fs, "disk", 0, &again), 0);
    uint8_t *back = malloc(SIZE);
    assert_int_equal(fs_read(again, 0, back, SIZE), SIZE);
    assert_memory_equal(back, model, SIZE);
    free(back);
    fs_close(again);
    blk_close(b);
    done_with(&h, fs);
}

/* ---- One writer ---- */

static struct blk *disk_on(struct fs *fs, const char *name)
{
    struct fs_file *f;
    struct blk *b;
    assert_int_equal(fs_open(fs, name, 0, &f), 0);
    assert_int_equal(fs_file_blk(f, false, &b), 0);
    return b;
}

static void one_disk_writes_a_file(void **state)
{
    struct holder h;
    struct fs *fs = make(&h, 64 * MB);
    fs_close(file(fs, "a", MB, 1)), fs_close(file(fs, "b", MB, 2));
    struct blk *first = disk_on(fs, "a"), *second, *other = disk_on(fs, "b"), *half[2];
    assert_int_equal(fs_rename(fs, "a", "was-a"), 0);
    second = disk_on(fs, "was-a");
    struct linear_seg seg[2] = { { first, 0, MB / 2 }, { second, MB / 2, MB / 2 } };
    for (int i = 0; i < 2; i++)
        assert_int_equal(linear_open("test", "half", &seg[i], 1, false, &half[i]), 0);
    assert_int_equal(blk_claim(first, true), 0);
    assert_int_equal(blk_claim(second, true), -EBUSY);
    assert_int_equal(blk_claim(second, false), -EBUSY);
    assert_int_equal(blk_claim(half[1], false), -EBUSY);
    assert_int_equal(blk_claim(other, true), 0);
    blk_release(first, true);
    assert_int_equal(blk_claim(half[0], true), 0);      /* parts of it may have a writer each */
    assert_int_equal(blk_claim(half[1], true), 0);
    assert_int_equal(blk_claim(second, false), -EBUSY);
    blk_release(half[0], true), blk_release(half[1], true), blk_release(other, true);
    assert_int_equal(blk_claim(first, false), 0);
    assert_int_equal(blk_claim(second, false), 0);
    blk_release(first, false), blk_release(second, false);
    blk_close(half[0]), blk_close(half[1]);
    blk_close(first), blk_close(second), blk_close(other);
    done_with(&h, fs);
}

/* ---- One file's slow disk is not another's ---- */

struct stuck { struct fs_file *f; int err, ended; };

static void write_one(void *arg)
{
    struct stuck *s = arg;
    uint8_t buf[4096];
    memset(buf, 7, sizeof buf);
    s->err = fs_write(s->f, 0, buf, sizeof buf);
    atomic_store(&s->ended, 1);
}

static void files_do_not_wait_for_each_other(void **state)
{
    struct holder h;
    struct fs *fs = make(&h, 64 * MB);
    struct fs_file *a = file(fs, "a", MB, 1), *b = file(fs, "b", MB, 2), *c;
    struct stuck s = { .f = a };
    struct job ja, jb;
    struct blk *da, *db;
    struct fs_stat st;
    static uint8_t buf[MB], one[4096];
    assert_int_equal(fs_sync(fs), 0);
    assert_int_equal(fs_open(fs, "a", 0, &c), 0);
    assert_int_equal(fs_file_blk(c, false, &da), 0);
    assert_int_equal(fs_open(fs, "b", 0, &c), 0);
    assert_int_equal(fs_file_blk(c, false, &db), 0);
    assert_int_equal(blk_write(da, 0, memset(buf, 1, MB), MB, 0), 0);   /* learnt */
    assert_int_equal(blk_write(db, 0, memset(buf, 2, MB), MB, 0), 0);
    h.m->record = true;
    assert_int_equal(fs_write(a, 0, memset(one, 1, 4096), 4096), 0);
    h.m->record = false;
    h.block = h.m->log[h.m->nlog - 1].off / 4096;       /* where a's first block is */
    struct thread *t = thread_start("stuck", write_one, &s);            /* holds a's lock, waiting for the disk */
    while (!atomic_load(&h.nheld))
        thread_yield();
    /* The same file elsewhere, by requests. */
    assert_int_equal(blk_read(da, 8192, buf, 4096), 0);
    assert_int_equal(blk_write(da, 8192, buf, 4096, 0), 0);
    begin(&ja, da, BLK_READ, 0, one, 4096);             /* this one has to wait */
    /* Another file in every way, and the names. */
    assert_int_equal(blk_read(db, 0, buf, MB), 0);
    assert_int_equal(blk_write(db, 4096, buf, 8192, 0), 0);
    begin(&jb, db, BLK_WRITE_ZEROES, 0, NULL, 65536);
    assert_int_equal(end(&jb), 0);
    assert_int_equal(fs_write(b, 3 * MB, buf, MB), 0);
    assert_int_equal(fs_read(b, 3 * MB, buf, MB), MB);
    assert_int_equal(fs_truncate(b, 2 * MB), 0);
    assert_int_equal(fs_allocate(b, 0, 5 * MB), 0);
    assert_int_equal(fs_punch(b, 0, MB), 0);
    assert_int_equal(fs_reflink(fs, "b", "b2"), 0);
    fs_close(file(fs, "new", MB, 3));
    assert_int_equal(fs_mkdir(fs, "d"), 0);
    assert_int_equal(fs_rename(fs, "a", "d/a"), 0);
    assert_int_equal(fs_stat(fs, "b", &st), 0);
    assert_int_equal(fs_unlink(fs, "new"), 0);
    assert_int_equal(fs_sync(fs), 0);                   /* a commit does not wait for data that nothing points to */
    assert_int_equal(blk_flush(db), 0);
    assert_int_equal(atomic_load(&s.ended), 0);
    assert_int_equal(atomic_load(&ja.ended), 0);
    let_go(&h);
    thread_join(t);
    assert_int_equal(s.err, 0);
    assert_int_equal(end(&ja), 0);
    blk_close(da);
    blk_close(db);
    fs_close(a);
    fs_close(b);
    done_with(&h, fs);
}

/* ---- Nor is one file's work ---- */

struct busy { struct job job; struct blk *b; bool *stop; int *count; };

/* Each end is a new begin, so that the file's queue never becomes empty. */
static void go_on(struct blk_req *r)
{
    struct busy *w = r->arg;
    atomic_add(w->count, 1);
    if (atomic_load(w->stop))
        atomic_store(&w->job.ended, 1);
    else
        blk_submit(w->b, r);
}

/* The other file's requests, one behind the other: how many of the busy ones ended during each. */
enum { TURNS = 31 };
struct patient { struct job job; struct blk *b; int *count, last, n, during[TURNS]; };

static void its_turn(struct blk_req *r)
{
    struct patient *p = r->arg;
    int now = atomic_load(p->count);
    p->during[p->n++] = now - p->last;
    p->last = now;
    if (p->n < TURNS)
        blk_submit(p->b, r);
    else
        atomic_store(&p->job.ended, 1);
}

static int by_value(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

static void busy_files_leave_the_threads_to_others(void **state)
{
    enum { FILES = 4, N = 16 * FILES };
    struct holder h;
    struct fs *fs = make(&h, 64 * MB);
    struct busy w[N];
    bool stop = false;
    int count = 0;
    struct blk *b[N];
    char name[8];
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "f%d", i % FILES);
        fs_close(file(fs, name, MB, i));
        b[i] = disk_on(fs, name);
    }
    struct blk *other = (fs_close(file(fs, "other", MB, 1)), disk_on(fs, "other"));
    alarm(60);
    for (int i = 0; i < N; i++) {                       /* sixteen requests in flight on each of four files, for two threads */
        w[i] = (struct busy){ .b = b[i], .stop = &stop, .count = &count };
        w[i].job.ctx = malloc(b[i]->limits.ctx_size);
        w[i].job.r = (struct blk_req){ .op = BLK_WRITE_ZEROES, .off = i / FILES * 4096, .len = 4096, .done = go_on, .arg = &w[i], .ctx = w[i].job.ctx };
        blk_submit(b[i], &w[i].job.r);
    }
    struct patient p = { .b = other, .count = &count };
    p.job.ctx = malloc(other->limits.ctx_size);
    p.job.r = (struct blk_req){ .op = BLK_WRITE_ZEROES, .len = 4096, .done = its_turn, .arg = &p, .ctx = p.job.ctx };
    blk_submit(other, &p.job.r);
    assert_int_equal(end(&p.job), 0);
    qsort(p.during, TURNS, sizeof p.during[0], by_value);
    print_message("%d requests of the others between two turns\n", p.during[TURNS / 2]);
    atomic_store(&stop, true);
    for (int i = 0; i < N; i++) {
        while (!atomic_load(&w[i].job.ended))
            thread_yield();
        free(w[i].job.ctx);
    }
    alarm(0);
    assert_true(p.during[TURNS / 2] < 1500);            /* the median: a thread may lose its CPU */
    for (int i = 0; i < N; i++)
        blk_close(b[i]);
    blk_close(other);
    done_with(&h, fs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(overwrites_touch_no_metadata),
        cmocka_unit_test(one_disk_writes_a_file),
        cmocka_unit_test(files_do_not_wait_for_each_other),
        cmocka_unit_test(busy_files_leave_the_threads_to_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
