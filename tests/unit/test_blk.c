#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/block/split.h"
#include "tests/host/mem_blk.h"
#include "tests/host/port_host.h"

struct job { struct blk_req r; int ended; struct blk *b; int more; };

static void count_done(struct blk_req *r) { ((struct job *)r->arg)->ended++; }

static void start(struct blk *b, struct job *j, enum blk_op op, uint64_t off, struct iov *v, int n, size_t len, unsigned flags)
{
    j->r = (struct blk_req){ .op = op, .flags = flags, .off = off, .len = len, .iov = v, .niov = n, .done = count_done, .arg = j };
    j->ended = 0, j->b = b;
    blk_submit(b, &j->r);
}

static void the_door_refuses_what_breaks_the_limits(void **state)
{
    struct mem_blk *m = mem_blk_create(1 << 20, 0, MEM_INLINE, 1);
    uint8_t buf[8192];
    struct iov v = { buf, sizeof buf };
    struct { enum blk_op op; uint64_t off; size_t len; int err; } t[] = {
        { BLK_READ, 0, 512, 0 }, { BLK_READ, 1, 512, -EINVAL }, { BLK_READ, 0, 511, -EINVAL }, { BLK_READ, 1 << 20, 512, -EINVAL },
        { BLK_READ, (1 << 20) - 512, 1024, -EINVAL }, { BLK_READ, -512ull, 1024, -EINVAL }, { BLK_READ, 0, 8192 + 512, -EINVAL },
        { BLK_READ, 1 << 20, 0, 0 }, { BLK_FLUSH, 512, 0, -EINVAL }, { BLK_FLUSH, 0, 0, 0 }, { (enum blk_op)77, 0, 512, -EINVAL },
        { BLK_DISCARD, 0, 1 << 20, 0 }, { BLK_WRITE_ZEROES, 512, 1 << 19, 0 },
    };
    for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
        struct job j;
        start(&m->blk, &j, t[i].op, t[i].off, &v, 1, t[i].len, 0);
        assert_int_equal(j.ended, 1);
        assert_int_equal(j.r.err, t[i].err);
    }
    m->blk.limits.read_only = true;
    assert_int_equal(blk_write(&m->blk, 0, buf, 512, 0), -EROFS);
    assert_int_equal(blk_discard(&m->blk, 0, 512), -EROFS);
    blk_close(&m->blk);
}

/* ---- The trampoline ---- */

static int depth, deepest;

static void chain_done(struct blk_req *r)
{
    struct job *j = r->arg;
    deepest = MAX(deepest, ++depth);
    assert_int_equal(host_atomic_depth() > 0, 1);
    j->ended++;
    if (j->more-- > 0)
        blk_submit(j->b, r);
    depth--;
}

static void dones_that_submit_do_not_nest(void **state)
{
    struct mem_blk *m = mem_blk_create(1 << 20, 0, MEM_INLINE, 1);
    uint8_t buf[512];
    struct iov v = { buf, 512 };
    struct job j = { .b = &m->blk, .more = 100000 };
    j.r = (struct blk_req){ .op = BLK_READ, .len = 512, .iov = &v, .niov = 1, .done = chain_done, .arg = &j };
    blk_submit(&m->blk, &j.r);
    assert_int_equal(j.ended, 100001);
    assert_int_equal(deepest, 1);
    blk_close(&m->blk);
}

/* ---- Splitting against a model, on a disk that reorders ---- */

static void narrow(struct mem_blk *m, uint32_t align, uint32_t segs, uint64_t len, bool zeroes, bool fua)
{
    m->blk.limits.mem_align = align, m->blk.limits.max_segs = segs, m->blk.limits.max_len = len;
    m->blk.limits.write_zeroes = zeroes, m->blk.limits.fua = fua;
    mem_blk_relimit(m);
}

static int obeys(struct mem_blk *m, struct blk_req *r, void *arg)
{
    const struct blk_limits *l = &m->blk.limits;
    assert_true(r->len <= l->max_len);
    if (r->op == BLK_READ || r->op == BLK_WRITE) {
        assert_true((uint32_t)r->niov <= l->max_segs && iov_len(r->iov, r->niov) >= r->len);
        for (int i = 0; i < r->niov; i++)
            assert_true(!((uintptr_t)r->iov[i].base & (l->mem_align - 1)));
    }
    assert_true(l->write_zeroes || r->op != BLK_WRITE_ZEROES);
    assert_true(l->fua || !(r->flags & BLK_FUA));
    return 0;
}

static int random_iov(uint64_t *seed, uint8_t *buf, size_t len, struct iov *v, int max)
{
    int n = 0;
    size_t at = 0;
    uint64_t shape = mem_rand(seed) % 4;
    while (at < len && n < max - 1) {
        size_t k = shape == 0 ? len : shape == 1 ? 512 * (1 + mem_rand(seed) % 8) : 1 + mem_rand(seed) % 3000;
        k = MIN(k, len - at);
        v[n++] = (struct iov){ buf + at, k };
        at += k;
    }
    if (at < len)
        v[n++] = (struct iov){ buf + at, len - at };
    return n;
}

static void split_round(uint32_t align, uint32_t segs, uint64_t max_len, bool zeroes, bool fua, uint64_t seed)
{
    enum { SIZE = 1 << 20, MAXLEN = 200 << 10 };
    struct mem_blk *m = mem_blk_create(SIZE, 0, MEM_QUEUED, seed);
    uint8_t *model = calloc(1, SIZE), *buf = malloc(MAXLEN + 4096);
    m->fail = obeys;
    narrow(m, align, segs, max_len, zeroes, fua);
    for (int i = 0; i < 300; i++) {
        struct iov v[64];
        struct job j;
        size_t len = 512 * (1 + mem_rand(&seed) % (MAXLEN / 512)), off = 512 * (mem_rand(&seed) % ((SIZE - len) / 512 + 1));
        uint8_t *at = buf + mem_rand(&seed) % 4096;
        int n = random_iov(&seed, at, len, v, 64);
        enum blk_op op = (enum blk_op[]){ BLK_READ, BLK_WRITE, BLK_WRITE_ZEROES }[mem_rand(&seed) % 3];
        if (op == BLK_WRITE)
            for (size_t k = 0; k < len; k++)
                at[k] = model[off + k] = mem_rand(&seed);
        if (op == BLK_WRITE_ZEROES)
            memset(model + off, 0, len);
        uint64_t flushes = m->count[BLK_FLUSH];
        start(&m->blk, &j, op, off, v, n, len, op == BLK_WRITE && i % 4 == 0 ? BLK_FUA : 0);
        mem_blk_drain(m);
        assert_int_equal(j.ended, 1);
        assert_int_equal(j.r.err, 0);
        if (op == BLK_READ)
            assert_memory_equal(at, model + off, len);
        if (!fua && j.r.flags & BLK_FUA)
            assert_int_equal(m->count[BLK_FLUSH], flushes + 1);
    }
    assert_memory_equal(m->data, model, SIZE);
    blk_close(&m->blk);
    free(model), free(buf);
}

static void requests_are_cut_to_the_limits(void **state)
{
    split_round(1, 1 << 20, 1 << 30, true, true, 1);
    split_round(1, 2, 4096, true, false, 2);
    split_round(512, 4, 64 << 10, false, true, 3);
    split_round(4096, 126, 128 << 10, false, false, 4);
    split_round(4, 1, 512, true, true, 5);
}

static void more_split_requests_than_slots_wait_their_turn(void **state)
{
    enum { N = 40, LEN = 64 << 10 };
    struct mem_blk *m = mem_blk_create(N * LEN, 0, MEM_QUEUED, 9);
    narrow(m, 512, 8, 8192, false, false);
    uint8_t *buf = malloc(N * LEN + 1);
    struct job j[N];
    struct iov v[N];
    for (int i = 0; i < N; i++) {
        memset(buf + 1 + i * LEN, i + 1, LEN);
        v[i] = (struct iov){ buf + 1 + i * LEN, LEN };
        start(&m->blk, &j[i], BLK_WRITE, (uint64_t)i * LEN, &v[i], 1, LEN, i & 1 ? BLK_FUA : 0);
    }
    mem_blk_drain(m);
    for (int i = 0; i < N; i++)
        assert_int_equal(j[i].ended, 1);
    assert_memory_equal(m->data, buf + 1, N * LEN);
    blk_close(&m->blk);
    free(buf);
}

static void a_failed_piece_fails_the_request_once(void **state)
{
    for (int after = 0; after < 20; after++) {
        struct mem_blk *m = mem_blk_create(1 << 20, 0, MEM_QUEUED, after);
        narrow(m, 1, 1, 4096, true, true);
        uint8_t *buf = calloc(1, 64 << 10);
        struct iov v = { buf, 64 << 10 };
        struct job j;
        m->fail_after = after;
        start(&m->blk, &j, BLK_WRITE, 0, &v, 1, 64 << 10, 0);
        mem_blk_drain(m);
        assert_int_equal(j.ended, 1);
        assert_int_equal(j.r.err, after < 16 ? -EIO : 0);
        blk_close(&m->blk);
        free(buf);
    }
}

static void waiting_helpers_work_beside_a_completing_thread(void **state)
{
    for (int i = 0; i < 50; i++) {
        struct mem_blk *m = mem_blk_create(1 << 20, 0, MEM_THREADED, i);
        narrow(m, 512, 2, 4096, false, false);
        uint8_t out[9000], in[9000];
        memset(out, i + 1, sizeof out);
        assert_int_equal(blk_pwrite(&m->blk, 777 + i, out, sizeof out), 0);
        assert_int_equal(blk_flush(&m->blk), 0);
        assert_int_equal(blk_pread(&m->blk, 777 + i, in, sizeof in), 0);
        assert_memory_equal(in, out, sizeof in);
        assert_int_equal(m->data[776 + i] | m->data[777 + i + 9000], 0);
        blk_close(&m->blk);
    }
}

static void open_without_memory_fails_and_leaks_nothing(void **state)
{
    struct mem_blk *m = mem_blk_create(1 << 20, 0, MEM_INLINE, 1);
    struct blk b = { .ops = m->blk.ops, .size = 4096, .limits = blk_limits_any() };
    b.limits.ctx_size = 32;
    unsigned long before = port_alloc_count();
    for (int n = 0; ; n++) {
        port_fail_alloc_after(n);
        int err = blk_ready(&b);
        port_fail_alloc_after(-1);
        if (!err)
            break;
        assert_int_equal(err, -ENOMEM);
        assert_int_equal(port_alloc_count(), before);
    }
    blk_split_close(&b);
    b.limits.block = 513;
    assert_int_equal(blk_ready(&b), -EINVAL);
    blk_close(&m->blk);
}

/* ---- One writer ---- */

static void nop_close(struct blk *b) { }

static void one_writer(void **state)
{
    static const struct blk_ops ops = { .close = nop_close };
    struct blk disk = { .ops = &ops, .size = 1000 }, p1 = { .ops = &ops, .below = &disk, .below_off = 100, .below_len = 200 };
    struct blk p2 = { .ops = &ops, .below = &disk, .below_off = 300, .below_len = 100 }, sub = { .ops = &ops, .below = &p1, .below_off = 50, .below_len = 100 };
    struct blk image = { .ops = &ops, .below = &p2 };
    assert_int_equal(blk_claim(&p1, true), 0);
    assert_int_equal(blk_claim(&p1, true), -EBUSY);
    assert_int_equal(blk_claim(&p1, false), -EBUSY);
    assert_int_equal(blk_claim(&disk, true), -EBUSY);
    assert_int_equal(blk_claim(&disk, false), -EBUSY);
    assert_int_equal(blk_claim(&sub, false), -EBUSY);
    assert_int_equal(blk_claim(&image, false), 0);
    assert_int_equal(blk_claim(&image, false), 0);
    assert_int_equal(blk_claim(&p2, true), -EBUSY);
    assert_int_equal(blk_claim(&p2, false), 0);
    blk_release(&p1, true);
    assert_int_equal(blk_claim(&disk, true), -EBUSY);
    blk_release(&image, false), blk_release(&image, false), blk_release(&p2, false);
    assert_int_equal(disk.writers + disk.readers + image.readers, 0);
    assert_int_equal(blk_claim(&disk, true), 0);
    assert_int_equal(blk_claim(&image, false), -EBUSY);
    blk_release(&disk, true);
    disk.limits.read_only = true;
    assert_int_equal(blk_claim(&disk, true), -EROFS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_door_refuses_what_breaks_the_limits),
        cmocka_unit_test(dones_that_submit_do_not_nest),
        cmocka_unit_test(requests_are_cut_to_the_limits),
        cmocka_unit_test(more_split_requests_than_slots_wait_their_turn),
        cmocka_unit_test(a_failed_piece_fails_the_request_once),
        cmocka_unit_test(waiting_helpers_work_beside_a_completing_thread),
        cmocka_unit_test(open_without_memory_fails_and_leaks_nothing),
        cmocka_unit_test(one_writer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
