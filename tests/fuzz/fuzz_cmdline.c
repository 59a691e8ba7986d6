/*
 * Anything typed at a shell, over fake guests.  First byte even: the rest is one line of a non-interactive session; odd: keys at
 * a terminal.
 * Whatever waits is ended by the keys that follow for ever: leave a console, interrupt, end of file, Enter.
 */
#include <stdlib.h>
#include <string.h>
#include "kernel/lib/port.h"
#include "mgmt/guest.h"
#include "mgmt/session.h"
#include "tests/host/port_host.h"
#include "tests/mgmt/fake_machine.h"

struct typist { struct chan *tty; const uint8_t *keys; size_t len; unsigned turn; char drop[4096]; };

/* The session has read or written: take all output, type on. */
static void type_on(void *arg)
{
    static const char end[] = "\x1d\x03\x04\r";
    struct typist *t = arg;
    while (chan_read(t->tty, CHAN_DEV, t->drop, sizeof t->drop))
        ;
    size_t n = t->len ? chan_write(t->tty, CHAN_DEV, t->keys, t->len) : 0;
    t->keys += n, t->len -= n;
    if (!t->len && chan_readable(t->tty, CHAN_USER) < 8)
        chan_write(t->tty, CHAN_DEV, end, 4);
}

static void run(const uint8_t *data, size_t size, bool interactive)
{
    static const uint8_t intr[] = "\x03\x03\x03\x03";
    struct typist t = { .tty = chan_create(8192), .keys = interactive ? data : intr, .len = interactive ? size : 4 };
    struct session_params p = { .tty = t.tty, .side = CHAN_USER, .cols = 60, .interactive = interactive };
    struct session *s = session_new(&p);
    chan_set_notify(t.tty, CHAN_DEV, type_on, &t);
    type_on(&t);
    if (interactive) {
        session_run(s);
    } else {
        char *line = malloc(size + 1);
        memcpy(line, data, size);
        line[size] = 0;
        session_exec(s, line);
        free(line);
    }
    chan_set_notify(t.tty, CHAN_DEV, NULL, NULL);
    session_free(s);
    chan_destroy(t.tty);
}

static void remove_all(void)
{
    struct fail f;
    struct guest_status st;
    unsigned n;
    struct guest **all = guest_all(&n, &f);
    for (unsigned i = 0; i < n; i++) {
        guest_kill(all[i], &f);
        for (guest_status(all[i], &st); st.state > GUEST_CRASHED; guest_status(all[i], &st))
            thread_yield();
        ASSERT(!guest_remove(all[i], &f));
        guest_put(all[i]);
    }
    kfree(all);
    ASSERT(!fake_host.machines);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool once;
    if (!once) {
        guest_table_init();
        fake_reset();
        fake_default_images();
    }
    once = true;
    if (size) {
        static const char setup[] = "vm create a --kernel vmlinuz --start; vm create -f web2.toml";
        if (data[0] & 2)
            run((const uint8_t *)setup, sizeof setup - 1, false);
        run(data + 1, size - 1, data[0] & 1);
    }
    remove_all();
    return 0;
}
