/* The log ring: what a reader gets after wrapping, and after a warm reset that may have damaged memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "kernel/console/logring.h"

enum { SLOTS = 8, BYTES = sizeof(struct logring_area) + SLOTS * sizeof(struct logring_slot) };
static uint64_t memory[BYTES / 8];

static void add(struct logring *r, int n)
{
    struct log_line l = { .ns = (uint64_t)n, .level = 2, .area = "test" };
    snprintf(l.text, sizeof(l.text), "line %d", n);
    logring_add(r, &l);
}

static void expect(const struct logring *r, uint64_t *seq, int n)
{
    struct log_line l;
    char text[32];
    snprintf(text, sizeof(text), "line %d", n);
    assert_true(logring_read(r, seq, &l));
    assert_string_equal(l.text, text);
    assert_int_equal(l.ns, n);
}

static void test_order_and_wrap(void **state)
{
    struct logring r;
    struct log_line l;
    uint64_t seq = 0;
    assert_int_equal(logring_init(&r, memory, 64, 1), -EINVAL);
    assert_int_equal(logring_init(&r, memory, sizeof(memory), 1), 0);
    assert_false(logring_read(&r, &seq, &l));
    for (int i = 0; i < 3; i++)
        add(&r, i);
    expect(&r, &seq, 0), expect(&r, &seq, 1), expect(&r, &seq, 2);
    assert_false(logring_read(&r, &seq, &l));
    for (int i = 3; i < 20; i++)
        add(&r, i);
    expect(&r, &seq, 12);               /* 3 .. 11 are gone: the reader goes on with the oldest kept */
    seq = 19;
    expect(&r, &seq, 19);
    assert_false(logring_read(&r, &seq, &l));
}

static void test_recover(void **state)
{
    struct logring r, old;
    struct log_line l;
    uint64_t seq = 0, copy[BYTES / 8];
    logring_init(&r, memory, sizeof(memory), 7);
    for (int i = 0; i < 11; i++)
        add(&r, i);
    memcpy(copy, memory, sizeof(copy));
    assert_int_equal(logring_recover(&old, copy, sizeof(copy)), SLOTS);
    for (int i = 3; i < 11; i++)
        expect(&old, &seq, i);
    assert_false(logring_read(&old, &seq, &l));

    /* One flipped bit costs one line. */
    struct logring_area *a = (struct logring_area *)copy;
    a->slot[5].line.text[3] ^= 4;
    assert_int_equal(logring_recover(&old, copy, sizeof(copy)), SLOTS - 1);
    seq = 0;
    expect(&old, &seq, 3), expect(&old, &seq, 4), expect(&old, &seq, 6);
}

/* The next boot's ring over the same memory: lines of the one before do not come back. */
static void test_boots_do_not_mix(void **state)
{
    struct logring r, old;
    logring_init(&r, memory, sizeof(memory), 7);
    for (int i = 0; i < 8; i++)
        add(&r, i);
    struct logring_slot stale = r.area->slot[6];
    logring_init(&r, memory, sizeof(memory), 8);
    add(&r, 100);
    r.area->slot[6] = stale;
    assert_int_equal(logring_recover(&old, memory, sizeof(memory)), 1);
}

static void test_garbage(void **state)
{
    struct logring r;
    logring_init(&r, memory, sizeof(memory), 7);
    add(&r, 1);
    uint64_t copy[BYTES / 8];
    memcpy(copy, memory, sizeof(copy));
    assert_int_equal(logring_recover(&r, copy, sizeof(struct logring_area) - 1), 0);
    assert_int_equal(logring_recover(&r, copy, sizeof(copy) - 8), 0);          /* says more slots than fit */
    copy[2] = 3;                                                               /* slots, without its check word */
    assert_int_equal(logring_recover(&r, copy, sizeof(copy)), 0);
    memset(copy, 0xff, sizeof(copy));
    assert_int_equal(logring_recover(&r, copy, sizeof(copy)), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_wrap), cmocka_unit_test(test_recover), cmocka_unit_test(test_boots_do_not_mix), cmocka_unit_test(test_garbage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
