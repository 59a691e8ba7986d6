#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/vmm/snap.h"

struct chip { uint8_t mode; bool on; uint32_t count[3]; uint64_t big, added; };

static int chip_snap(struct chip *c, struct snap *s)
{
    snap_begin(s, "chip", 2);
    SNAP(s, c->mode);
    SNAP(s, c->on);
    SNAP(s, c->count);
    SNAP(s, c->big);
    return snap_end(s);
}

static const struct chip sample = { 7, true, { 1, 2, 0xffffffff }, 0x123456789abcdef0, 42 };

static size_t save(uint8_t *buf, size_t cap)
{
    struct snap s;
    struct chip c = sample;
    snap_init_save(&s, buf, cap);
    assert_int_equal(chip_snap(&c, &s), 0);
    assert_int_equal(chip_snap(&c, &s), 0);
    return s.pos;
}

static void round_trip(void **state)
{
    uint8_t buf[512];
    size_t len = save(buf, sizeof buf);
    struct snap s;
    struct chip a = { .added = 42 }, b = { .added = 42 };
    snap_init_load(&s, buf, len);
    assert_int_equal(chip_snap(&a, &s), 0);
    assert_int_equal(s.version, 2);
    assert_int_equal(chip_snap(&b, &s), 0);
    assert_int_equal(s.pos, len);
    assert_memory_equal(&a, &sample, sizeof a);
    assert_memory_equal(&b, &sample, sizeof b);
    assert_int_equal(chip_snap(&b, &s), -EINVAL);
}

static void a_new_field_keeps_its_reset_value_and_an_unknown_one_is_skipped(void **state)
{
    uint8_t buf[512];
    size_t len = save(buf, sizeof buf);
    struct snap s;
    struct chip x = { 0 }, *c = &x;
    x.added = 9;
    snap_init_load(&s, buf, len);
    snap_begin(&s, "chip", 2);
    SNAP(&s, c->big);           /* other order, some fields not asked for */
    SNAP(&s, c->added);
    SNAP(&s, c->mode);
    assert_int_equal(snap_end(&s), 0);
    assert_int_equal(x.big, sample.big);
    assert_int_equal(x.added, 9);
    assert_int_equal(x.mode, 7);
    assert_int_equal(chip_snap(c, &s), 0);
}

static void a_bool_is_0_or_1(void **state)
{
    uint8_t buf[64];
    struct snap s;
    struct { bool b[2]; } room = { { true, false } }, *c = &room;
    snap_init_save(&s, buf, sizeof buf);
    snap_begin(&s, "x", 1);
    SNAP(&s, c->b);
    assert_int_equal(snap_end(&s), 0);
    buf[s.pos - 1] = 2;
    snap_init_load(&s, buf, s.pos);
    snap_begin(&s, "x", 1);
    SNAP(&s, c->b);
    assert_int_equal(snap_end(&s), -EINVAL);
}

static void refuses(void **state)
{
    uint8_t buf[512];
    size_t len = save(buf, sizeof buf);
    struct snap s;
    struct chip c;
    snap_init_load(&s, buf, len);
    snap_begin(&s, "other", 2);
    assert_int_equal(snap_end(&s), -EINVAL);
    snap_init_load(&s, buf, len);
    snap_begin(&s, "chip", 1);
    assert_int_equal(snap_end(&s), -EINVAL);
    snap_init_load(&s, buf, len);
    snap_begin(&s, "chip", 2);
    snap_bytes(&s, "c->mode", &c, 2);
    assert_int_equal(snap_end(&s), -EINVAL);
}

static void full_buffer(void **state)
{
    uint8_t all[512];
    size_t len = save(all, sizeof all) / 2;
    for (size_t cap = 0; cap < len; cap++) {
        uint8_t *buf = malloc(cap + !cap);
        struct snap s;
        struct chip c = sample;
        snap_init_save(&s, buf, cap);
        assert_int_equal(chip_snap(&c, &s), -ENOSPC);
        free(buf);
    }
}

/* ASan is the judge: every cut and every flipped byte, in a heap block of exactly that size. */
static void damage(void **state)
{
    uint8_t all[512];
    size_t len = save(all, sizeof all) / 2;
    for (size_t cut = 0; cut < len; cut++) {
        uint8_t *buf = malloc(cut + !cut);
        struct snap s;
        struct chip c;
        memcpy(buf, all, cut);
        snap_init_load(&s, buf, cut);
        assert_int_equal(chip_snap(&c, &s), -EINVAL);
        free(buf);
    }
    for (size_t i = 0; i < len; i++)
        for (unsigned flip = 1; flip < 256; flip++) {
            uint8_t *buf = malloc(len);
            struct snap s;
            uint64_t room[8];
            memcpy(buf, all, len);
            buf[i] ^= flip;
            snap_init_load(&s, buf, len);
            chip_snap((struct chip *)room, &s);
            free(buf);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(a_new_field_keeps_its_reset_value_and_an_unknown_one_is_skipped),
        cmocka_unit_test(a_bool_is_0_or_1),
        cmocka_unit_test(refuses),
        cmocka_unit_test(full_buffer),
        cmocka_unit_test(damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
