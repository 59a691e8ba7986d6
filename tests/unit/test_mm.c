/* Page allocator, heap and page-table walker over an arena. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>

#include "kernel/mm/heap.h"
#include "kernel/mm/page.h"
#include "kernel/mm/ptab.h"
#include "tests/host/fake_hv.h"

#define MIB (1ull << 20)

static int setup(void **state) { fake_hv_setup(64 * MIB, 2); return 0; }
static int teardown(void **state) { fake_hv_teardown(); return 0; }

static uint64_t free_bytes(void)
{
    struct mem_stats s;
    mem_stats(&s);
    return s.free;
}

static void pages_are_aligned_and_come_back(void **state)
{
    uint64_t before = free_bytes();
    hpa_t p[11];
    for (unsigned o = 0; o <= 10; o++) {
        p[o] = page_alloc(o, PAGE_ZERO);
        assert_true(p[o] && IS_ALIGNED(p[o], PAGE_SIZE << o));
        for (uint64_t i = 0; i < PAGE_SIZE << o; i += 512)
            assert_int_equal(((char *)pa_to_va(p[o]))[i], 0);
        memset(pa_to_va(p[o]), 0xa5, PAGE_SIZE << o);
    }
    for (unsigned o = 0; o <= 10; o++)
        page_free(p[o], o);
    assert_int_equal(free_bytes(), before);
}

static void random_pages_never_overlap(void **state)
{
    enum { N = 400 };
    struct { hpa_t pa; unsigned order; } held[N] = { { 0, 0 } };
    uint64_t before = free_bytes();
    srand(1);
    for (int round = 0; round < 20000; round++) {
        int i = rand() % N;
        if (held[i].pa) {
            assert_int_equal(*(uint64_t *)pa_to_va(held[i].pa), held[i].pa);
            assert_int_equal(*(uint64_t *)pa_to_va(held[i].pa + (PAGE_SIZE << held[i].order) - 8), held[i].pa);
            page_free(held[i].pa, held[i].order);
            held[i].pa = 0;
            continue;
        }
        held[i].order = (unsigned)rand() % 6;
        held[i].pa = page_alloc(held[i].order, 0);
        if (!held[i].pa)
            continue;
        *(uint64_t *)pa_to_va(held[i].pa) = held[i].pa;
        *(uint64_t *)pa_to_va(held[i].pa + (PAGE_SIZE << held[i].order) - 8) = held[i].pa;
    }
    for (int i = 0; i < N; i++)
        page_free(held[i].pa, held[i].order);
    assert_int_equal(free_bytes(), before);
}

static void promises_keep_memory_back(void **state)
{
    struct mem_stats s;
    mem_stats(&s);
    assert_int_equal(mem_reserve(s.free + PAGE_SIZE), -ENOMEM);
    assert_int_equal(mem_reserve(s.free - 4 * MIB), 0);
    assert_int_equal(mem_reserve(8 * MIB), -ENOMEM);
    uint64_t got = 0;
    hpa_t first = 0;
    for (hpa_t p; (p = page_alloc(ORDER_2M, 0)); got += PAGE_2M) {      /* the unpromised cannot take what is promised */
        *(hpa_t *)pa_to_va(p) = first;
        first = p;
    }
    assert_true(got <= 4 * MIB);
    hpa_t own = page_alloc(ORDER_2M, PAGE_RESERVED_OK);
    assert_true(own != 0);
    page_free(own, ORDER_2M);
    while (first) {
        hpa_t next = *(hpa_t *)pa_to_va(first);
        page_free(first, ORDER_2M);
        first = next;
    }
    mem_unreserve(s.free);
}

static void pool_is_zeroed_bounded_and_given_back(void **state)
{
    unsigned steps = 0;
    while (page_pool_refill_step())
        assert_true(++steps < 100000);
    struct mem_stats s;
    mem_stats(&s);
    assert_true(s.zero_pool >= PAGE_2M && s.zero_pool <= s.total / 8);
    hpa_t p = page_take_zeroed_2m(0);
    for (uint64_t i = 0; i < PAGE_2M; i += 8)
        assert_int_equal(*(uint64_t *)((char *)pa_to_va(p) + i), 0);
    page_free(p, ORDER_2M);
    assert_int_equal(mem_reserve(s.free - 2 * MIB), 0);         /* more than is free outside the pool */
    mem_unreserve(s.free - 2 * MIB);
}

static void references_free_at_zero(void **state)
{
    uint64_t before = free_bytes();
    hpa_t p = page_alloc(ORDER_2M, 0);
    page_get(p);
    page_put(p, ORDER_2M);
    assert_int_equal(free_bytes(), before - PAGE_2M);
    page_put(p, ORDER_2M);
    assert_int_equal(free_bytes(), before);
}

static void heap_blocks_hold_their_bytes(void **state)
{
    enum { N = 300 };
    unsigned char *p[N] = { NULL };
    size_t len[N] = { 0 };
    srand(2);
    for (int round = 0; round < 30000; round++) {
        int i = rand() % N;
        if (p[i]) {
            for (size_t k = 0; k < len[i]; k += 37)
                assert_int_equal(p[i][k], (unsigned char)i);
            heap_free(p[i]);
            p[i] = NULL;
            continue;
        }
        size_t align = (size_t)1 << (4 + rand() % 9);
        len[i] = (size_t)rand() % (rand() % 16 ? 3000 : 70000) + 1;
        p[i] = heap_alloc(len[i], align);
        if (!p[i])
            continue;
        assert_true(IS_ALIGNED((uintptr_t)p[i], align));
        memset(p[i], i, len[i]);
    }
    for (int i = 0; i < N; i++)
        heap_free(p[i]);
}

/* ---- Page tables ---- */

static hpa_t table_alloc(void *arg) { return page_alloc(ORDER_4K, PAGE_ZERO); }
static void table_free(void *arg, hpa_t pa) { page_free(pa, ORDER_4K); }

static void walker_maps_with_the_largest_leaves(void **state)
{
    static const struct pt_format *const formats[] = { &pt_host, &pt_npt, &pt_ept };
    for (unsigned i = 0; i < ARRAY_SIZE(formats); i++) {
        struct ptab pt;
        unsigned order;
        assert_int_equal(ptab_init(&pt, formats[i], ORDER_1G, table_alloc, table_free, NULL), 0);
        assert_int_equal(ptab_map(&pt, PAGE_1G - PAGE_2M - PAGE_SIZE, PAGE_1G - PAGE_2M - PAGE_SIZE, 2 * PAGE_1G, PT_R | PT_W, PT_WB), 0);
        assert_true(ptab_lookup(&pt, PAGE_1G - PAGE_2M - PAGE_SIZE, &order) != 0);
        assert_int_equal(order, ORDER_4K);
        assert_true(ptab_lookup(&pt, PAGE_1G - 1, &order) != 0);
        assert_int_equal(order, ORDER_2M);
        uint64_t e = ptab_lookup(&pt, PAGE_1G + 12345, &order);
        assert_int_equal(order, ORDER_1G);
        assert_int_equal(e & pt.fmt->addr_mask & ~(PAGE_1G - 1), PAGE_1G);
        assert_int_equal(pt.fmt->prot(e) & (PT_R | PT_W | PT_X), PT_R | PT_W);
        assert_int_equal(ptab_protect(&pt, PAGE_1G + 5 * PAGE_SIZE, PAGE_SIZE, PT_R), 0);       /* splits 1G → 2M → 4K */
        e = ptab_lookup(&pt, PAGE_1G + 5 * PAGE_SIZE, &order);
        assert_int_equal(order, ORDER_4K);
        assert_int_equal(e & BITS(51, 12), PAGE_1G + 5 * PAGE_SIZE);
        assert_int_equal(pt.fmt->prot(e) & PT_W, 0);
        e = ptab_lookup(&pt, PAGE_1G + 6 * PAGE_SIZE, &order);
        assert_int_equal(e & BITS(51, 12), PAGE_1G + 6 * PAGE_SIZE);
        assert_int_equal(pt.fmt->prot(e) & PT_W, PT_W);
        ptab_unmap(&pt, PAGE_1G, PAGE_2M);
        assert_int_equal(ptab_lookup(&pt, PAGE_1G + PAGE_2M - 1, &order), 0);
        assert_true(ptab_lookup(&pt, PAGE_1G + PAGE_2M, &order) != 0);
        ptab_destroy(&pt);
        assert_int_equal(pt.tables, 0);
    }
}

static void single_leaves_respect_what_is_there(void **state)
{
    struct ptab pt;
    assert_int_equal(ptab_init(&pt, &pt_npt, ORDER_2M, table_alloc, table_free, NULL), 0);
    assert_int_equal(ptab_set_leaf(&pt, PAGE_2M, 3 * PAGE_2M, ORDER_2M, PT_R | PT_W | PT_X, PT_WB), 0);
    assert_int_equal(ptab_set_leaf(&pt, PAGE_2M, 3 * PAGE_2M, ORDER_2M, PT_R, PT_WB), -EEXIST);
    assert_int_equal(ptab_set_leaf(&pt, PAGE_2M + PAGE_SIZE, PAGE_SIZE, ORDER_4K, PT_R, PT_WB), -EEXIST);
    assert_int_equal(ptab_set_leaf(&pt, 0, PAGE_SIZE, ORDER_4K, PT_R, PT_WB), 0);
    assert_int_equal(ptab_set_leaf(&pt, 0, 0, ORDER_2M, PT_R, PT_WB), -EEXIST);
    ptab_destroy(&pt);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pages_are_aligned_and_come_back, setup, teardown),
        cmocka_unit_test_setup_teardown(random_pages_never_overlap, setup, teardown),
        cmocka_unit_test_setup_teardown(promises_keep_memory_back, setup, teardown),
        cmocka_unit_test_setup_teardown(pool_is_zeroed_bounded_and_given_back, setup, teardown),
        cmocka_unit_test_setup_teardown(references_free_at_zero, setup, teardown),
        cmocka_unit_test_setup_teardown(heap_blocks_hold_their_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(walker_maps_with_the_largest_leaves, setup, teardown),
        cmocka_unit_test_setup_teardown(single_leaves_respect_what_is_there, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
