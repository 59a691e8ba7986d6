/* Byte channels: limits, notification, and two threads at full speed (also built with -fsanitize=thread). */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <sched.h>
#include <string.h>
#include "kernel/console/chan.h"
#include "kernel/lib/port.h"

static void test_limits(void **state)
{
    char buf[32];
    assert_null(chan_create(0));
    assert_null(chan_create(12));
    struct chan *c = chan_create(16);
    assert_int_equal(chan_writable(c, CHAN_DEV), 16);
    assert_int_equal(chan_write(c, CHAN_DEV, "0123456789", 10), 10);
    assert_int_equal(chan_readable(c, CHAN_USER), 10);
    assert_int_equal(chan_readable(c, CHAN_DEV), 0);
    assert_int_equal(chan_write(c, CHAN_DEV, "abcdefghij", 10), 6);
    assert_int_equal(chan_write(c, CHAN_DEV, "x", 1), 0);
    assert_int_equal(chan_read(c, CHAN_USER, buf, 4), 4);
    assert_memory_equal(buf, "0123", 4);
    assert_int_equal(chan_write(c, CHAN_DEV, "XYZW", 4), 4);           /* around the end */
    assert_int_equal(chan_read(c, CHAN_USER, buf, 32), 16);
    assert_memory_equal(buf, "456789abcdefXYZW", 16);
    assert_int_equal(chan_read(c, CHAN_USER, buf, 32), 0);
    chan_destroy(c);
}

static void count(void *arg) { ++*(unsigned *)arg; }

/* Echoes from inside the callback; its own read and write notify both sides again. */
struct echo { struct chan *c; unsigned calls; };
static void echo(void *arg)
{
    struct echo *e = arg;
    char b[8];
    size_t n;
    e->calls++;
    while ((n = chan_read(e->c, CHAN_USER, b, sizeof(b))))
        chan_write(e->c, CHAN_USER, b, n);
}

static void test_notify(void **state)
{
    struct chan *c = chan_create(64);
    unsigned dev = 0, user = 0;
    chan_set_notify(c, CHAN_DEV, count, &dev);
    chan_set_notify(c, CHAN_USER, count, &user);
    char b[8];
    chan_write(c, CHAN_DEV, "a", 1);
    assert_true(dev == 0 && user == 1);
    chan_read(c, CHAN_USER, b, 8);
    assert_true(dev == 1 && user == 1);
    chan_read(c, CHAN_USER, b, 8);              /* nothing moved */
    assert_true(dev == 1 && user == 1);
    chan_set_notify(c, CHAN_USER, NULL, NULL);
    chan_write(c, CHAN_DEV, "b", 1);
    assert_true(user == 1);
    chan_read(c, CHAN_USER, b, 8);

    struct echo e = { .c = c };
    chan_set_notify(c, CHAN_USER, echo, &e);
    chan_write(c, CHAN_DEV, "hello", 5);
    assert_int_equal(chan_read(c, CHAN_DEV, b, 8), 5);
    assert_memory_equal(b, "hello", 5);
    assert_true(e.calls >= 1);
    chan_destroy(c);
}

/* ---- Two threads; the reader sleeps until it is notified, so a lost notification hangs the test. ---- */
enum { TOTAL = 1 << 20 };
struct stream { struct chan *c; struct event ready, room; bool ok; };

static void post(void *arg) { event_post(arg); }

static void *writer(void *arg)
{
    struct stream *s = arg;
    uint8_t b[61];
    for (uint32_t sent = 0; sent < TOTAL;) {
        uint32_t n = MIN((uint32_t)sizeof(b), TOTAL - sent);
        for (uint32_t i = 0; i < n; i++)
            b[i] = (uint8_t)((sent + i) * 7 >> 3);
        size_t done = chan_write(s->c, CHAN_DEV, b, n);
        sent += (uint32_t)done;
        if (!done)
            event_wait(&s->room);
    }
    return NULL;
}

static void *reader(void *arg)
{
    struct stream *s = arg;
    uint8_t b[47];
    s->ok = true;
    for (uint32_t got = 0; got < TOTAL;) {
        size_t n = chan_read(s->c, CHAN_USER, b, sizeof(b));
        for (size_t i = 0; i < n; i++)
            s->ok &= b[i] == (uint8_t)((got + i) * 7 >> 3);
        got += (uint32_t)n;
        if (!n)
            event_wait(&s->ready);
    }
    return NULL;
}

static void test_stream(void **state)
{
    struct stream s = { .c = chan_create(256) };
    pthread_t w, r;
    event_init(&s.ready), event_init(&s.room);
    chan_set_notify(s.c, CHAN_USER, post, &s.ready);
    chan_set_notify(s.c, CHAN_DEV, post, &s.room);
    pthread_create(&r, NULL, reader, &s);
    pthread_create(&w, NULL, writer, &s);
    pthread_join(w, NULL);
    pthread_join(r, NULL);
    assert_true(s.ok);
    assert_int_equal(chan_readable(s.c, CHAN_USER), 0);
    chan_destroy(s.c);
}

/* Several writers: every byte arrives once. */
static void *many(void *arg)
{
    struct stream *s = arg;
    for (unsigned i = 0; i < 20000; )
        if (chan_write(s->c, CHAN_DEV, "x", 1))
            i++;
        else
            sched_yield();
    return NULL;
}

static void test_writers(void **state)
{
    struct stream s = { .c = chan_create(64) };
    pthread_t w[3];
    uint8_t b[16];
    for (unsigned i = 0; i < 3; i++)
        pthread_create(&w[i], NULL, many, &s);
    for (unsigned got = 0; got < 60000;) {
        size_t n = chan_read(s.c, CHAN_USER, b, sizeof(b));
        for (size_t i = 0; i < n; i++)
            assert_int_equal(b[i], 'x');
        got += (unsigned)n;
        if (!n)
            sched_yield();
    }
    for (unsigned i = 0; i < 3; i++)
        pthread_join(w[i], NULL);
    assert_int_equal(chan_readable(s.c, CHAN_USER), 0);
    chan_destroy(s.c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limits), cmocka_unit_test(test_notify), cmocka_unit_test(test_stream), cmocka_unit_test(test_writers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
