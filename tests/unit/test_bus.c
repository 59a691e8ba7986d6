#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>

#include "kernel/lib/port.h"
#include "kernel/vmm/bus.h"
#include "tests/host/port_host.h"

struct dev { uint8_t reg[64]; unsigned reads, writes; int answer; };

static int dev_io(void *p, struct io *io)
{
    struct dev *d = p;
    if (d->answer)
        return d->answer;
    if (io->write)
        d->writes++, memcpy(&d->reg[io->off], &io->data, io->size);
    else
        d->reads++, memcpy(&io->data, &d->reg[io->off], io->size);
    return 0;
}

static uint64_t get(struct bus *b, uint64_t at, uint8_t size)
{
    struct io io = { .size = size };
    bus_access(b, 0, at, &io);
    return io_value(&io);
}

static void put(struct bus *b, uint64_t at, uint8_t size, uint64_t val)
{
    struct io io = { .size = size, .write = true, .data = val };
    bus_access(b, 0, at, &io);
}

static void nothing_at_all(void **state)
{
    struct bus *b = bus_create("port", 0x10000, 1);
    assert_int_equal(get(b, 0x60, 4), 0xffffffff);
    put(b, 0xffff, 4, 0);
    assert_int_equal(bus_unclaimed(b), 2);
    assert_false(bus_claimed(b, 0));
    bus_destroy(b);
}

static void finds_regions_and_nothing(void **state)
{
    struct bus *b = bus_create("port", 0x10000, 1);
    struct dev d[3] = { 0 };
    assert_int_equal(bus_add(b, 0x60, 1, dev_io, &d[0], "a", 0), 0);
    assert_int_equal(bus_add(b, 0x3f8, 8, dev_io, &d[1], "b", 0), 0);
    assert_int_equal(bus_add(b, 0xffff, 1, dev_io, &d[2], "c", 0), 0);
    assert_int_equal(bus_add(b, 0x3ff, 4, dev_io, &d[2], "x", 0), -EEXIST);
    assert_int_equal(bus_add(b, 0xffff, 2, dev_io, &d[2], "x", 0), -EINVAL);
    put(b, 0x3f9, 2, 0xbeef);
    assert_int_equal(get(b, 0x3f8, 4), 0x00beef00);
    assert_int_equal(get(b, 0x61, 1), 0xff);
    assert_int_equal(get(b, 0x100, 4), 0xffffffff);
    assert_int_equal(get(b, 0x100, 8), ~0ull);
    assert_int_equal(bus_unclaimed(b), 3);
    put(b, 0x60, 2, 0x1234);                    /* straddles the end of a: byte by byte */
    assert_int_equal(d[0].reg[0], 0x34);
    assert_int_equal(get(b, 0x60, 2), 0xff34);
    d[1].answer = -ENODEV;
    assert_int_equal(get(b, 0x3f8, 1), 0xff);
    bus_destroy(b);
}

static void overlays_win_and_uncover(void **state)
{
    struct bus *b = bus_create("mmio", 1ull << 40, 1);
    struct dev low = { .reg = { 0 } }, top = { .reg = { 0 } };
    memset(low.reg, 1, sizeof low.reg);
    memset(top.reg, 2, sizeof top.reg);
    assert_int_equal(bus_add(b, 0x1000, 64, dev_io, &low, "low", 0), 0);
    assert_int_equal(bus_add(b, 0x1010, 4, dev_io, &top, "top", BUS_OVERLAY), 0);
    assert_int_equal(get(b, 0x100f, 1), 1);
    assert_int_equal(get(b, 0x1010, 4), 0x02020202);
    assert_int_equal(get(b, 0x1012, 4), 0x01010202);
    assert_int_equal(get(b, 0x1014, 1), 1);
    low.reg[0x20] = 7;
    assert_int_equal(get(b, 0x1020, 1), 7);     /* offsets are still those of the region */
    assert_int_equal(bus_remove(b, 0x1010, &top), 0);
    assert_int_equal(get(b, 0x1010, 1), 1);
    assert_int_equal(bus_remove(b, 0x1010, &top), -ENOENT);
    bus_destroy(b);
}

/* As a BAR move does it. */
static int move(struct bus *b, uint64_t from, uint64_t to, uint64_t len, io_fn *fn, void *dev)
{
    int err = bus_remove_later(b, from, dev);
    if (!err && (err = bus_add(b, to, len, fn, dev, "moved", BUS_LATER)))
        assert_int_equal(bus_add(b, from, len, fn, dev, "back", BUS_LATER), 0);
    int late = bus_publish(b);
    return err ? err : late;
}

/* What was noted shows with anybody's next change, not before. */
static void noted_changes_show_together(void **state)
{
    struct bus *b = bus_create("mmio", 1ull << 40, 1);
    struct dev d[2] = { 0 };
    assert_int_equal(bus_add(b, 0x1000, 16, dev_io, &d[0], "a", BUS_LATER), 0);
    assert_false(bus_claimed(b, 0x1000));
    assert_int_equal(bus_add(b, 0x1008, 16, dev_io, &d[1], "b", 0), -EEXIST);
    assert_int_equal(bus_add(b, 0x2000, 16, dev_io, &d[1], "b", 0), 0);
    assert_true(bus_claimed(b, 0x1000) && bus_claimed(b, 0x2000));
    assert_int_equal(bus_remove_later(b, 0x1000, &d[0]), 0);
    assert_true(bus_claimed(b, 0x1000));
    assert_int_equal(bus_publish(b), 0);
    assert_false(bus_claimed(b, 0x1000));
    assert_int_equal(bus_publish(b), 0);
    bus_destroy(b);
}

static void moves_are_refused_or_whole(void **state)
{
    struct bus *b = bus_create("mmio", 1ull << 40, 1);
    struct dev d[2] = { 0 };
    assert_int_equal(bus_add(b, 0x1000, 16, dev_io, &d[0], "a", 0), 0);
    assert_int_equal(bus_add(b, 0x2000, 16, dev_io, &d[1], "b", 0), 0);
    assert_int_equal(move(b, 0x1000, 0x2008, 16, dev_io, &d[0]), -EEXIST);
    assert_true(bus_claimed(b, 0x1000));
    assert_int_equal(move(b, 0x1000, 0x1008, 16, dev_io, &d[0]), 0);   /* over itself */
    assert_false(bus_claimed(b, 0x1000));
    assert_true(bus_claimed(b, 0x1017));
    assert_int_equal(move(b, 0x1008, (1ull << 40) - 8, 16, dev_io, &d[0]), -EINVAL);
    assert_int_equal(move(b, 0x9999, 0, 16, dev_io, &d[0]), -ENOENT);
    bus_destroy(b);
}

/* A device whose handler moves itself, as a BAR write does. */
static struct bus *self_bus;
static uint64_t self_at;
static int mover(void *p, struct io *io)
{
    uint64_t to = self_at ^ 0x10000;
    assert_int_equal(move(self_bus, self_at, to, 16, mover, p), 0);
    self_at = to;
    io->data = 5;
    return 0;
}

static void a_handler_may_move_its_region_for_ever(void **state)
{
    self_bus = bus_create("mmio", 1ull << 40, 4);
    self_at = 0x1000;
    int dev;
    assert_int_equal(bus_add(self_bus, self_at, 16, mover, &dev, "m", 0), 0);
    unsigned long before = 0;
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(get(self_bus, self_at, 1), 5);
        if (i == 10)
            before = port_alloc_count();
    }
    assert_true(port_alloc_count() <= before + 2);      /* retired maps do not pile up */
    bus_destroy(self_bus);
}

/* A vCPU that stays inside one dispatch while another changes the map for ever: the host's memory is not the guest's. */
static struct bus *held_bus;
static int holder(void *p, struct io *io)
{
    unsigned long before = port_alloc_count();
    int err = 0, changes = 0;
    while (!err && changes < 100000) {
        assert_int_equal(bus_remove_later(held_bus, 0x2000, p), 0);
        assert_int_equal(bus_add(held_bus, 0x2000, 16, dev_io, p, "h", BUS_LATER), 0);
        err = bus_publish(held_bus);
        changes++;
    }
    assert_int_equal(err, -ENOMEM);
    assert_true(port_alloc_count() - before < 300);
    return 0;
}

static void a_held_dispatch_keeps_few_maps(void **state)
{
    held_bus = bus_create("mmio", 1ull << 40, 2);
    struct dev d = { .reg = { 0 } };
    assert_int_equal(bus_add(held_bus, 0x1000, 16, holder, &d, "h", 0), 0);
    assert_int_equal(bus_add(held_bus, 0x2000, 16, dev_io, &d, "h", 0), 0);
    get(held_bus, 0x1000, 1);
    assert_int_equal(bus_remove(held_bus, 0x2000, &d), 0);      /* outside: all is well again */
    assert_false(bus_claimed(held_bus, 0x2000));
    bus_destroy(held_bus);
}

/* Readers on all sides while a writer moves regions about: each read hits the region whole or not at all. */
static struct bus *race_bus;
static uint32_t race_stop, race_seen;
static int constant(void *p, struct io *io) { io->data = 0x5a5a5a5a; return 0; }

static void reader(void *arg)
{
    unsigned me = (unsigned)(uintptr_t)arg;
    while (!atomic_load(&race_stop)) {
        struct io io = { .size = 4 };
        bus_access(race_bus, me, 0x1000, &io);
        ASSERT(io_value(&io) == 0x5a5a5a5a || io_value(&io) == 0xffffffff);
        atomic_or(&race_seen, io_value(&io) == 0xffffffff ? 1u : 2u);
    }
}

static void readers_race_with_moves(void **state)
{
    race_bus = bus_create("mmio", 1ull << 40, 3);
    struct thread *t[3];
    int dev;
    atomic_store(&race_stop, 0u);
    assert_int_equal(bus_add(race_bus, 0x1000, 16, constant, &dev, "c", 0), 0);
    for (unsigned i = 0; i < 3; i++)
        t[i] = thread_start("reader", reader, (void *)(uintptr_t)i);
    for (int i = 0; i < 3000 || atomic_load(&race_seen) != 3; i++) {
        int err = move(race_bus, i % 2 ? 0x5000 : 0x1000, i % 2 ? 0x1000 : 0x5000, 16, constant, &dev);
        assert_true(!err || err == -ENOMEM);            /* a reader that stands still inside holds all maps since */
    }
    atomic_store(&race_stop, 1u);
    for (unsigned i = 0; i < 3; i++)
        thread_join(t[i]);
    bus_destroy(race_bus);
}

/* New regions need memory, moving what is there does not. */
static void no_memory_changes_nothing(void **state)
{
    struct bus *b = bus_create("port", 0x10000, 1);
    struct dev d = { .reg = { 0 } };
    for (unsigned i = 0; i < 7; i++)                    /* the map's room is used up */
        assert_int_equal(bus_add(b, 0x100 + 4 * i, 4, dev_io, &d, "a", 0), 0);
    for (int n = 0; n < 2; n++) {
        port_fail_alloc_after(n);
        assert_int_equal(bus_add(b, 0x200, 4, dev_io, &d, "b", 0), -ENOMEM);
        port_fail_alloc_after(-1);
        assert_true(bus_claimed(b, 0x100) && !bus_claimed(b, 0x200));
    }
    port_fail_alloc_after(0);
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(move(b, i % 2 ? 0x300 : 0x100, i % 2 ? 0x100 : 0x300, 4, dev_io, &d), 0);
    assert_true(bus_claimed(b, 0x100) && !bus_claimed(b, 0x300));
    port_fail_alloc_after(-1);
    bus_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_at_all), cmocka_unit_test(finds_regions_and_nothing), cmocka_unit_test(overlays_win_and_uncover), cmocka_unit_test(noted_changes_show_together),
        cmocka_unit_test(moves_are_refused_or_whole),
        cmocka_unit_test(a_handler_may_move_its_region_for_ever), cmocka_unit_test(readers_race_with_moves), cmocka_unit_test(no_memory_changes_nothing),
        cmocka_unit_test(a_held_dispatch_keeps_few_maps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
