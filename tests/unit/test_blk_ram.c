/* RAM disk and copy-on-write overlay against a model, over bases that answer at once, late, and with errors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "kernel/block/blk.h"
#include "tests/host/mem_blk.h"
#include "tests/host/port_host.h"

enum { SIZE = 1 << 18 };

static void ram(void **state)
{
    static uint8_t mem[SIZE + 100], buf[8192], back[8192];
    memset(mem, 0, sizeof mem);
    struct blk *b = blk_ram_create("r", mem, sizeof mem, false);
    assert_int_equal(b->size, SIZE);
    for (unsigned i = 0; i < sizeof buf; i++)
        buf[i] = (uint8_t)(i * 7);
    assert_int_equal(blk_write(b, 30 * 1024, buf, sizeof buf, 0), 0);       /* crosses a stripe */
    assert_memory_equal(mem + 30 * 1024, buf, sizeof buf);
    assert_int_equal(blk_read(b, 30 * 1024, back, sizeof back), 0);
    assert_memory_equal(back, buf, sizeof buf);
    assert_int_equal(blk_flush(b), 0);
    assert_true(blk_write(b, SIZE, buf, 512, 0) < 0);
    blk_close(b);
    b = blk_ram_create("r", mem, SIZE, true);
    assert_int_equal(blk_write(b, 0, buf, 512, 0), -EROFS);
    blk_close(b);
}

static void done(struct blk_req *r) { atomic_store((bool *)r->arg, true); }

static int run(struct blk *o, struct mem_blk *base, enum blk_op op, uint64_t off, size_t len, void *buf)
{
    bool ended = false;
    struct iov v[2] = { { buf, len / 3 }, { (char *)buf + len / 3, len - len / 3 } };      /* unaligned pieces */
    struct blk_req r = { .op = op, .off = off, .len = len, .iov = buf ? v : NULL, .niov = buf ? 2 : 0, .done = done, .arg = &ended };
    r.ctx = aligned_alloc(16, ALIGN_UP(o->limits.ctx_size, 16u));
    list_init(&r.link);
    blk_submit(o, &r);
    mem_blk_drain(base);
    while (!atomic_load(&ended))        /* the reserve may be being refilled */
        thread_yield();
    free(r.ctx);
    return r.err;
}

static void overlay_model(enum mem_mode mode)
{
    static uint8_t model[SIZE], buf[65536];
    uint64_t seed = 5;
    struct mem_blk *base = mem_blk_create(SIZE, SIZE, mode, 3);
    for (unsigned i = 0; i < SIZE; i++)
        model[i] = base->data[i] = (uint8_t)(i >> 9 ^ i);
    struct blk *o = blk_overlay_create("o", &base->blk, 1 << 22);
    for (unsigned i = 0; i < 4000; i++) {
        uint64_t off = mem_rand(&seed) % (SIZE / 512) * 512;
        size_t len = MIN((size_t)(mem_rand(&seed) % 40 + 1) * 512, (size_t)(SIZE - off));
        switch (mem_rand(&seed) % 5) {
        case 0: case 1:
            for (size_t k = 0; k < len; k++)
                buf[k] = (uint8_t)mem_rand(&seed);
            assert_int_equal(run(o, base, BLK_WRITE, off, len, buf), 0);
            memcpy(model + off, buf, len);
            break;
        case 2:
            assert_int_equal(run(o, base, i & 1 ? BLK_DISCARD : BLK_WRITE_ZEROES, off, len, NULL), 0);
            memset(model + off, 0, len);
            break;
        default:
            assert_int_equal(run(o, base, BLK_READ, off, len, buf), 0);
            assert_memory_equal(buf, model + off, len);
        }
    }
    assert_int_equal(base->count[BLK_WRITE], 0);
    blk_close(o);
    for (unsigned i = 0; i < SIZE; i++)
        assert_int_equal(base->data[i], (uint8_t)(i >> 9 ^ i));
    blk_close(&base->blk);
}

static void overlay(void **state)
{
    overlay_model(MEM_INLINE);
    overlay_model(MEM_QUEUED);
}

static void overlay_limits(void **state)
{
    static uint8_t buf[65536];
    struct mem_blk *base = mem_blk_create(SIZE, SIZE, MEM_INLINE, 3);
    struct blk *o = blk_overlay_create("o", &base->blk, 40960);
    assert_int_equal(run(o, base, BLK_WRITE, 0, 65536, buf), -ENOSPC);
    assert_int_equal(run(o, base, BLK_WRITE_ZEROES, 0, 65536, NULL), 0);        /* gives the memory back */
    memset(buf, 7, 4096);
    assert_int_equal(run(o, base, BLK_WRITE, 8192, 4096, buf), 0);
    assert_int_equal(run(o, base, BLK_READ, 4096, 8192, buf), 0);
    assert_int_equal(buf[0], 0);
    assert_int_equal(buf[4096], 7);
    base->fail_after = 0;
    assert_int_equal(run(o, base, BLK_READ, 4096, 8192, buf), 0);               /* held entirely: the base is not asked */
    assert_int_equal(run(o, base, BLK_READ, 131072, 8192, buf), -EIO);
    blk_close(o);
    blk_close(&base->blk);
}

/* Larger than the reserve, and without any memory for a while: never a wait in submit, and a clear end. */
static void overlay_without_memory(void **state)
{
    enum { BIG = 4 << 20 };
    uint8_t *buf = malloc(BIG), *back = malloc(BIG);
    struct mem_blk *base = mem_blk_create(16 << 20, 0, MEM_INLINE, 3);
    struct blk *o = blk_overlay_create("o", &base->blk, 16 << 20);
    for (size_t i = 0; i < BIG; i++)
        buf[i] = (uint8_t)(i * 13 >> 4);
    assert_int_equal(run(o, base, BLK_WRITE, 0, BIG, buf), 0);
    assert_int_equal(run(o, base, BLK_READ, 0, BIG, back), 0);
    assert_memory_equal(buf, back, BIG);
    port_fail_alloc_after(0);
    bool ended = false;
    struct iov v = { buf, BIG };
    struct blk_req r = { .op = BLK_WRITE, .off = 8 << 20, .len = BIG, .iov = &v, .niov = 1, .done = done, .arg = &ended };
    r.ctx = aligned_alloc(16, ALIGN_UP(o->limits.ctx_size, 16u));
    blk_submit(o, &r);
    while (!atomic_load(&ended))
        thread_yield();
    free(r.ctx);
    port_fail_alloc_after(-1);
    assert_int_equal(r.err, -ENOSPC);
    assert_int_equal(run(o, base, BLK_READ, 0, BIG, back), 0);
    assert_memory_equal(buf, back, BIG);
    assert_int_equal(run(o, base, BLK_WRITE, 8 << 20, BIG, buf), 0);
    unsigned long held = port_alloc_count();
    assert_int_equal(run(o, base, BLK_WRITE_ZEROES, 0, BIG, NULL), 0);
    blk_close(o);
    assert_true(port_alloc_count() + BIG / 4096 < held);
    for (int n = 0; n < 100; n++) {
        port_fail_alloc_after(n);
        o = blk_overlay_create("o", &base->blk, 1 << 20);
        port_fail_alloc_after(-1);
        blk_close(o);
    }
    blk_close(&base->blk);
    free(buf), free(back);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(ram), cmocka_unit_test(overlay), cmocka_unit_test(overlay_limits),
                                        cmocka_unit_test(overlay_without_memory) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
