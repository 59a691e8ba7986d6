/* Guest RAM that several CPUs touch for the first time at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>

#include "kernel/vmm/gmem_core.h"
#include "tests/host/fake_hv.h"

#define MIB (1ull << 20)
enum { THREADS = 4, ROUNDS = 20 };
#define RAM (48 * MIB)          /* from 1 MiB on: 2 MiB pages, and 4 KiB pages at both ends */

static struct gmem mem;
static uint32_t go;

static void count(gpa_t at)
{
    uint64_t old = 0;
    while (gmem_cmpxchg(&mem, at, 8, &old, old + 1) == -EAGAIN)
        ;
}

static void toucher(void *arg)
{
    bool down = (uintptr_t)arg & 1;
    while (!atomic_load(&go))
        ;
    for (gpa_t i = 0; i < RAM; i += MIB / 2)
        count(MIB + (down ? RAM - MIB / 2 - i : i));
}

/* Were two pages handed out for one place, or one zeroed after its first use, a count would be lost. */
static void first_touches_meet(void **state)
{
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct thread *t[THREADS];
        assert_int_equal(gmem_init(&mem, RAM, MIB), 0);
        assert_int_equal(gmem_add_range(&mem, MIB, RAM, false), 0);
        atomic_store(&go, 0u);
        for (uintptr_t i = 0; i < THREADS; i++)
            t[i] = thread_start("toucher", toucher, (void *)i);
        atomic_store(&go, 1u);
        for (unsigned i = 0; i < THREADS; i++)
            thread_join(t[i]);
        for (gpa_t at = MIB; at < MIB + RAM; at += MIB / 2) {
            uint64_t word[2];
            assert_int_equal(gmem_read(&mem, at, word, sizeof word), 0);
            assert_int_equal(word[0], THREADS);
            assert_int_equal(word[1], 0);
        }
        gmem_fini(&mem);
        fake_hv_teardown();
        fake_hv_setup(64 * MIB, 2);
    }
}

/* More pages are being zeroed than there is room to note. */
static void all_places_are_taken(void **state)
{
    uint64_t other;
    assert_int_equal(gmem_init(&mem, RAM, MIB), 0);
    assert_int_equal(gmem_add_range(&mem, MIB, RAM, false), 0);
    for (unsigned i = 0; i < GMEM_CLEARING; i++)
        mem.clearing[i] = &other;
    count(4 * MIB);
    uint64_t val = 0;
    assert_int_equal(gmem_load(&mem, 4 * MIB, 8, &val), 0);
    assert_int_equal(val, 1);
    for (unsigned i = 0; i < GMEM_CLEARING; i++)
        mem.clearing[i] = NULL;
    gmem_fini(&mem);
}

static int setup(void **state) { fake_hv_setup(64 * MIB, 2); return 0; }
static int teardown(void **state) { fake_hv_teardown(); return 0; }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(first_touches_meet, setup, teardown),
        cmocka_unit_test_setup_teardown(all_places_are_taken, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
