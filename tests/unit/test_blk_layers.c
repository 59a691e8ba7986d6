/* What every layer and every stack of layers owes: submit allocates nothing, FLUSH and FUA mean the same above as below. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/block/image.h"
#include "kernel/block/linear.h"
#include "kernel/block/part.h"
#include "kernel/fs/fs.h"
#include "tests/host/mem_blk.h"
#include "tests/host/port_host.h"

enum { MB = 1 << 20, DISK = 16 * MB, AREA = 1 * MB };

enum shape { WHOLE, PARTITION, LINEAR, POOL_FILE, POOL_FILE_CSUM, QCOW2, QCOW2_LAZY, VDI, VMDK, QCOW2_IN_FILE, OVERLAY, SHAPES };

struct stack {
    enum shape shape;
    struct blk *bottom, *mid[3], *top;  /* mid: to be closed after top, last first */
    int nmid;
    struct fs *fs;
};

/* ---- A disk that whoever owns it does not close ---- */

struct lent { struct blk blk; struct blk *of; };

static void lent_submit(struct blk *b, struct blk_req *r) { blk_submit(container_of(b, struct lent, blk)->of, r); }

static int lent_resize(struct blk *b, uint64_t size)
{
    struct lent *l = container_of(b, struct lent, blk);
    int err = blk_resize(l->of, size);
    b->size = l->of->size;
    return err;
}

static void lent_close(struct blk *b) { kfree(container_of(b, struct lent, blk)); }

static struct blk *lend(struct blk *of)
{
    static const struct blk_ops ops = { lent_submit, lent_resize, lent_close };
    struct lent *l = kzalloc(sizeof *l);
    l->of = of;
    l->blk = *of;
    l->blk.ops = &ops, l->blk.writers = l->blk.readers = 0, l->blk.below = NULL;
    assert_int_equal(blk_ready(&l->blk), 0);
    return &l->blk;
}

/* ---- Building, and opening again what is on a disk ---- */

static struct blk *partition(struct stack *s, struct blk *disk, bool fresh)
{
    struct part_table t = { .scheme = PART_GPT, .n = 1 };
    struct blk *b;
    t.part[0] = (struct part){ .number = 1, .off = 1 * MB, .len = DISK - 2 * MB };
    memcpy(t.part[0].type_guid, part_guid_joist, 16);
    if (fresh)
        assert_int_equal(part_write(disk, &t), 0);
    assert_int_equal(part_read(disk, &t), 0);
    assert_int_equal(part_open(disk, &t.part[0], false, &b), 0);
    return b;
}

static struct blk *pool_file(struct stack *s, struct blk *disk, bool fresh, unsigned flags)
{
    struct fs_mkfs_opts o = { .flags = 0 };
    struct fs_file *f;
    struct blk *b;
    if (fresh)
        assert_int_equal(fs_mkfs(disk, &o), 0);
    assert_int_equal(fs_mount(disk, 0, &s->fs), 0);
    assert_int_equal(fs_open(s->fs, "disk", fresh ? FS_CREATE | flags : 0, &f), 0);
    if (fresh) {
        assert_int_equal(fs_truncate(f, 4 * MB), 0);
        assert_int_equal(fs_sync(s->fs), 0);
    }
    assert_int_equal(fs_file_blk(f, false, &b), 0);
    return b;
}

static struct blk *image(struct blk *file, bool fresh, enum image_format format, bool lazy)
{
    struct image_env env = { .open = NULL };
    struct image_opts o = { .size = 4 * MB, .lazy_refcounts = lazy };
    struct blk *b;
    if (fresh) {
        assert_int_equal(image_create(format, file, &o, &env), 0);
        assert_int_equal(blk_flush(file), 0);
    }
    assert_int_equal(image_open(format, file, IMAGE_WRITE, &env, &b), 0);
    return b;
}

static struct blk *linear(struct blk *disk)
{
    struct linear_seg seg[] = { { disk, 3 * MB, MB / 2 }, { disk, 1 * MB, 4096 }, { disk, 5 * MB, MB } };
    struct blk *b;
    assert_int_equal(linear_open("test", "row", seg, 3, false, &b), 0);
    return b;
}

static void build(struct stack *s, struct blk *disk, bool fresh)
{
    s->bottom = disk, s->nmid = 0, s->fs = NULL;
    switch (s->shape) {
    case WHOLE:          s->top = lend(disk); break;
    case PARTITION:      s->top = partition(s, disk, fresh); break;
    case LINEAR:         s->top = linear(disk); break;
    case POOL_FILE:      s->top = pool_file(s, disk, fresh, FS_NOCSUM); break;
    case POOL_FILE_CSUM: s->top = pool_file(s, disk, fresh, FS_CSUM); break;
    case QCOW2:          s->top = image(lend(disk), fresh, IMAGE_QCOW2, false); break;
    case QCOW2_LAZY:     s->top = image(lend(disk), fresh, IMAGE_QCOW2, true); break;
    case VDI:            s->top = image(lend(disk), fresh, IMAGE_VDI, false); break;
    case VMDK:           s->top = image(lend(disk), fresh, IMAGE_VMDK, false); break;
    case QCOW2_IN_FILE:
        s->mid[s->nmid++] = partition(s, disk, fresh);
        s->top = image(pool_file(s, s->mid[0], fresh, FS_NOCSUM), fresh, IMAGE_QCOW2, false);
        break;
    case OVERLAY:        s->top = blk_overlay_create("overlay", disk, 8 * MB); break;
    case SHAPES:         break;
    }
    assert_non_null(s->top);
    assert_true(s->top->size >= AREA);
}

static void drop(struct stack *s)
{
    blk_close(s->top);
    if (s->fs)
        assert_int_equal(fs_unmount(s->fs), 0);
    while (s->nmid)
        blk_close(s->mid[--s->nmid]);
}

/* Disks as they come: one that does all, and one that wants everything small, aligned and flushed by hand. */
static struct mem_blk *disk_create(bool narrow, enum mem_mode mode)
{
    struct mem_blk *m = mem_blk_create(DISK, 4 * DISK, mode, 1);
    if (narrow) {
        m->blk.limits.mem_align = 512, m->blk.limits.max_segs = 3, m->blk.limits.max_len = 16384;
        m->blk.limits.write_zeroes = m->blk.limits.fua = false;
        mem_blk_relimit(m);
    }
    return m;
}

/* ---- Requests ---- */

static void done(struct blk_req *r) { event_post(r->arg); }

/* Submits with allocation forbidden, and waits. */
static int run(struct blk *b, enum blk_op op, uint64_t off, struct iov *v, int n, size_t len, unsigned flags)
{
    struct event ended;
    event_init(&ended);
    bool data = op == BLK_READ || op == BLK_WRITE;
    void *ctx = aligned_alloc(16, ALIGN_UP(b->limits.ctx_size + 16, 16u));
    struct blk_req r = { .op = op, .flags = flags, .off = off, .len = len, .iov = data ? v : NULL, .niov = data ? n : 0,
                         .done = done, .arg = &ended, .ctx = ctx };
    host_alloc_forbid(true);
    blk_submit(b, &r);
    host_alloc_forbid(false);
    event_wait(&ended);
    free(ctx);
    return r.err;
}

static int one(struct blk *b, enum blk_op op, uint64_t off, void *buf, size_t len, unsigned flags)
{
    struct iov v = { buf, len };
    return run(b, op, off, &v, 1, len, flags);
}

/* ---- Submit never allocates ---- */

static void no_allocation(enum shape shape, bool narrow, enum mem_mode mode)
{
    static uint8_t model[AREA], buf[300 << 10], back[300 << 10];
    struct mem_blk *m = disk_create(narrow, mode);
    struct stack s = { .shape = shape };
    uint64_t seed = shape + 100 * narrow;
    build(&s, &m->blk, true);
    assert_int_equal(one(s.top, BLK_WRITE_ZEROES, 0, NULL, AREA, 0), 0);
    memset(model, 0, sizeof model);
    for (int i = 0; i < 250; i++) {
        struct iov v[9];
        uint64_t off = mem_rand(&seed) % (AREA / 512) * 512;
        size_t len = MIN((mem_rand(&seed) % (i % 4 ? 20 : 500) + 1) * 512, AREA - off), at = mem_rand(&seed) % 64, sum = 0;
        int n = 0;
        for (; n < 8 && sum < len; n++) {
            v[n] = (struct iov){ (i % 3 ? back : buf) + at + sum, MIN(i & 8 ? len : mem_rand(&seed) % 9000 + 1, len - sum) };
            sum += v[n].len;
        }
        v[n++] = (struct iov){ (i % 3 ? back : buf) + at + sum, len - sum };
        if (i % 3 == 0) {
            for (size_t k = 0; k < len; k++)
                model[off + k] = buf[at + k] = mem_rand(&seed);
            assert_int_equal(run(s.top, BLK_WRITE, off, v, n, len, i % 9 ? 0 : BLK_FUA), 0);
        } else if (i % 3 == 1) {
            assert_int_equal(run(s.top, BLK_READ, off, v, n, len, 0), 0);
            assert_memory_equal(back + at, model + off, len);
        } else if (i % 2) {
            assert_int_equal(run(s.top, BLK_WRITE_ZEROES, off, NULL, 0, len, mem_rand(&seed) % 4), 0);
            memset(model + off, 0, len);
        } else {
            assert_int_equal(run(s.top, BLK_FLUSH, 0, NULL, 0, 0, 0), 0);
        }
    }
    drop(&s);
    blk_close(&m->blk);
}

static void submit_never_allocates(void **state)
{
    for (enum shape shape = 0; shape < SHAPES; shape++)
        for (int narrow = 0; narrow < 2; narrow++)
            for (enum mem_mode mode = MEM_INLINE; mode <= MEM_THREADED; mode += MEM_THREADED - MEM_INLINE)
                no_allocation(shape, narrow, mode);
}

/* ---- FLUSH and FUA ---- */

/* What is certainly on the medium if the power goes now: all that a flush covered, and what went there by FUA. */
static struct mem_blk *after_power_cut(const struct mem_blk *m, bool narrow)
{
    struct mem_blk *cut = disk_create(narrow, MEM_INLINE);
    size_t flushed = 0;
    for (size_t i = 0; i < m->nlog; i++)
        if (m->log[i].op == BLK_FLUSH)
            flushed = i;
    cut->blk.size = m->blk.size;
    for (size_t i = 0; i < m->nlog; i++) {
        const struct mem_log *e = &m->log[i];
        if (e->op == BLK_FLUSH || (i > flushed && !(e->flags & BLK_FUA)))
            continue;
        if (e->op == BLK_WRITE)
            memcpy(cut->data + e->off, e->data, e->len);
        else
            memset(cut->data + e->off, 0, e->len);
    }
    return cut;
}

struct promise { uint8_t data[AREA]; bool kept[AREA / 512]; };          /* kept: the sector is known to be on the medium */

static void check_promise(const struct stack *s, const struct mem_blk *m, bool narrow, const struct promise *p)
{
    static uint8_t now[AREA];
    struct mem_blk *cut = after_power_cut(m, narrow);
    struct stack again = { .shape = s->shape };
    build(&again, &cut->blk, false);
    assert_int_equal(blk_read(again.top, 0, now, AREA), 0);
    for (int i = 0; i < AREA / 512; i++)
        if (p->kept[i])
            assert_memory_equal(now + 512 * i, p->data + 512 * i, 512);
    drop(&again);
    blk_close(&cut->blk);
}

static void flush_and_fua(enum shape shape, bool narrow)
{
    static struct promise p;
    static uint8_t buf[64 << 10];
    struct mem_blk *m = disk_create(narrow, MEM_INLINE);
    struct stack s = { .shape = shape };
    uint64_t seed = shape + 100 * narrow;
    m->record = true;
    build(&s, &m->blk, true);
    memset(&p, 0, sizeof p);
    for (int i = 0; i < 60; i++) {
        uint64_t off = mem_rand(&seed) % (AREA / 512) * 512;
        size_t len = MIN((mem_rand(&seed) % (i % 3 ? 9 : 128) + 1) * 512, AREA - off);
        bool zero = i % 5 == 4, fua = mem_rand(&seed) % 3 == 0;
        for (size_t k = 0; k < len; k++)
            buf[k] = zero ? 0 : mem_rand(&seed);
        assert_int_equal(one(s.top, zero ? BLK_WRITE_ZEROES : BLK_WRITE, off, buf, len, fua ? BLK_FUA : 0), 0);
        memcpy(p.data + off, buf, len);
        memset(p.kept + off / 512, fua, len / 512);
        if (mem_rand(&seed) % 4 == 0) {
            assert_int_equal(one(s.top, BLK_FLUSH, 0, NULL, 0, 0), 0);
            memset(p.kept, true, sizeof p.kept);
            fua = true;
        }
        if (i == 59 || fua)
            check_promise(&s, m, narrow, &p);
    }
    m->record = false;
    drop(&s);
    blk_close(&m->blk);
}

static void flush_and_fua_reach_the_medium(void **state)
{
    for (enum shape shape = 0; shape < OVERLAY; shape++)        /* an overlay is as lasting as the host's memory */
        for (int narrow = 0; narrow < 2; narrow++)
            flush_and_fua(shape, narrow);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(submit_never_allocates), cmocka_unit_test(flush_and_fua_reach_the_medium) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
