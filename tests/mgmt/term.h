/* For tests: a non-interactive session per command line (sh), and terminals with a session thread behind them (term_*). */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "kernel/lib/port.h"
#include "mgmt/guest.h"
#include "mgmt/session.h"
#include "tests/mgmt/fake_machine.h"

static char sh_out[1 << 20], sh_err[1 << 16];

/* Runs a line without a terminal; what it printed is in sh_out and sh_err. */
static inline int sh(const char *line)
{
    struct session_params p = { .tty = chan_create(1 << 20), .err = chan_create(1 << 16), .side = CHAN_USER };
    struct session *s = session_new(&p);
    int code = session_exec(s, line);
    sh_out[chan_read(p.tty, CHAN_DEV, sh_out, sizeof sh_out - 1)] = 0;
    sh_err[chan_read(p.err, CHAN_DEV, sh_err, sizeof sh_err - 1)] = 0;
    session_free(s);
    chan_destroy(p.tty);
    chan_destroy(p.err);
    return code;
}

#define assert_has(text, part) do { if (!strstr((text), (part))) fail_msg("no \"%s\" in:\n%s", (part), (text)); } while (0)
#define assert_lacks(text, part) do { if (strstr((text), (part))) fail_msg("\"%s\" in:\n%s", (part), (text)); } while (0)

/* ---- Terminals ---- */
struct term {
    struct chan *tty;
    struct session *s;
    struct thread *thread;
    struct event out;
    char *text;                 /* all that came */
    size_t len, cap, mark;      /* mark: behind the last match */
    bool ended;
};

static inline void term_notify(void *arg) { event_post(&((struct term *)arg)->out); }

static inline void term_run(void *arg)
{
    struct term *t = arg;
    session_run(t->s);
    atomic_store(&t->ended, true);
    event_post(&t->out);
}

static inline struct term *term_open_with(struct session_params p, size_t ring)
{
    struct term *t = calloc(1, sizeof *t);
    t->tty = chan_create(ring);
    event_init(&t->out);
    chan_set_notify(t->tty, CHAN_DEV, term_notify, t);
    p.tty = t->tty, p.side = CHAN_USER, p.interactive = true;
    t->s = session_new(&p);
    t->thread = thread_start("term", term_run, t);
    return t;
}

static inline struct term *term_open(void) { return term_open_with((struct session_params){ .cols = 100 }, 4096); }

static inline void term_take(struct term *t)
{
    char some[1024];
    size_t n;
    while ((n = chan_read(t->tty, CHAN_DEV, some, sizeof some)) > 0) {
        if (t->len + n + 1 > t->cap)
            t->text = realloc(t->text, t->cap = 2 * t->cap + n + 1);
        memcpy(t->text + t->len, some, n);
        t->text[t->len += n] = 0;
    }
}

/* Byte by byte, as keys come. */
static inline void term_type(struct term *t, const char *keys)
{
    for (; *keys; keys++)
        while (!chan_write(t->tty, CHAN_DEV, keys, 1)) {
            term_take(t);
            event_wait_until(&t->out, clock_ns() + 1000000);
        }
}

/* Waits until the text comes; fails the test after 20 s. */
static inline void term_expect(struct term *t, const char *text)
{
    uint64_t until = clock_ns() + 20000000000ull;
    for (;;) {
        term_take(t);
        char *at = t->text ? strstr(t->text + t->mark, text) : NULL;
        if (at) {
            t->mark = (size_t)(at - t->text) + strlen(text);
            return;
        }
        if (clock_ns() > until)
            fail_msg("\"%s\" did not come; since the last match:\n%s", text, t->text ? t->text + t->mark : "");
        event_wait_until(&t->out, until);
    }
}

static inline void term_command(struct term *t, const char *line)
{
    term_type(t, line);
    term_type(t, "\r");
}

static inline void term_close(struct term *t)
{
    session_close(t->s);
    while (!atomic_load(&t->ended)) {
        term_take(t);
        event_wait_until(&t->out, clock_ns() + 1000000);
    }
    thread_join(t->thread);
    session_free(t->s);
    chan_destroy(t->tty);
    free(t->text);
    free(t);
}

/* ---- Between tests ---- */
static inline void remove_all(void)
{
    struct fail f;
    unsigned n;
    struct guest **all = guest_all(&n, &f);
    char line[240];
    for (unsigned i = 0; i < n; i++) {
        snprintf(line, sizeof line, "vm kill %s; vm wait %s; vm rm %s -y", all[i]->def.name, all[i]->def.name, all[i]->def.name);
        guest_put(all[i]);
        sh(line);
    }
    kfree(all);
}

static inline int fresh(void **state)
{
    static bool once;
    if (!once)
        guest_table_init();
    once = true;
    fake_reset();
    fake_default_images();
    return 0;
}

static inline int clean(void **state)
{
    remove_all();
    assert_int_equal(fake_host.machines, 0);
    return 0;
}

/* ---- JSON ---- */
static inline const char *json_skip(const char *s);

static inline const char *json_items(const char *s, char close, bool pairs)
{
    if (*s == close)
        return s + 1;
    for (;;) {
        if (pairs && *s != '"')
            return NULL;
        if (pairs && (!(s = json_skip(s)) || *s++ != ':'))
            return NULL;
        if (!(s = json_skip(s)))
            return NULL;
        if (*s == close)
            return s + 1;
        if (*s++ != ',')
            return NULL;
    }
}

/* Past one value without blanks, or NULL. */
static inline const char *json_skip(const char *s)
{
    if (*s == '{' || *s == '[')
        return json_items(s + 1, *s == '{' ? '}' : ']', *s == '{');
    if (*s == '"') {
        for (s++; *s != '"'; s++) {
            if ((uint8_t)*s < 0x20)
                return NULL;
            s += *s == '\\';
        }
        return s + 1;
    }
    for (const char *const *w = (const char *const[]){ "true", "false", "null", NULL }; *w; w++)
        if (!strncmp(s, *w, strlen(*w)))
            return s + strlen(*w);
    size_t n = strspn(s, "0123456789");
    return n ? s + n : NULL;
}

/* Exactly one object with a schema number, then a newline. */
static inline void assert_json(const char *text)
{
    const char *end = *text == '{' ? json_skip(text) : NULL;
    if (!end || strcmp(end, "\n") || strncmp(text, "{\"schema\":1", 11))
        fail_msg("no JSON object: %s", text);
}
