/*
 * build/hosted-shell: the shell on this terminal (or on a pipe: then without prompt, one command line per line), over fake
 * guests.  -l: emit log lines.
 */
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>
#include "kernel/lib/port.h"
#include "mgmt/guest.h"
#include "mgmt/session.h"
#include "tests/mgmt/fake_machine.h"

static struct termios saved;
static struct session *session;
static struct chan *tty;
static struct event readable;

static void restore(void) { tcsetattr(0, TCSANOW, &saved); }

static void terminal(unsigned *cols)
{
    struct termios raw;
    struct winsize w;
    tcgetattr(0, &saved);
    atexit(restore);
    raw = saved;
    cfmakeraw(&raw);
    tcsetattr(0, TCSANOW, &raw);
    if (!ioctl(1, TIOCGWINSZ, &w) && w.ws_col)
        *cols = w.ws_col;
}

static void from_terminal(void *arg)
{
    char some[256];
    ssize_t n;
    while ((n = read(0, some, sizeof some)) > 0)
        for (ssize_t i = 0; i < n;) {
            size_t k = chan_write(tty, CHAN_DEV, some + i, (size_t)(n - i));
            i += (ssize_t)k;
            if (!k)
                usleep(1000);
        }
    session_close(session);
}

static void out_ready(void *arg) { event_post(&readable); }

static void to_terminal(void *arg)
{
    char some[512];
    for (;;) {
        size_t n = chan_read(tty, CHAN_DEV, some, sizeof some);
        if (n && write(1, some, n) < 0)
            return;
        if (!n && atomic_load((bool *)arg))
            return;
        if (!n)
            event_wait_until(&readable, clock_ns() + 20000000);
    }
}

static void log_often(void *arg)
{
    for (unsigned i = 0; !atomic_load((bool *)arg); i++) {
        thread_sleep_until(clock_ns() + 3000000000ull);
        fake_log(i % 3, "test", "something happened that the operator should see");
        event_post(&session->wake);
    }
}

static int run_lines(void)
{
    char line[4096];
    size_t n = 0;
    char c;
    int code = 0;
    while (read(0, &c, 1) == 1) {
        if (c != '\n' && n < sizeof line - 1) {
            line[n++] = c;
            continue;
        }
        line[n] = 0;
        n = 0;
        code = session_exec(session, line);
    }
    return code;
}

int main(int argc, char **argv)
{
    struct session_params p = {
        .side = CHAN_USER, .cols = 80, .interactive = isatty(0), .log_level = 1, .banner = "Joist (hosted)\n"
    };
    bool done = false;
    fake_reset();
    fake_default_images();
    guest_table_init();
    if (p.interactive)
        terminal(&p.cols);
    p.console = argc > 1 && !strcmp(argv[1], "-l");
    p.tty = tty = chan_create(4096);
    event_init(&readable);
    chan_set_notify(tty, CHAN_DEV, out_ready, NULL);
    session = session_new(&p);
    struct thread *out = thread_start("out", to_terminal, &done);
    if (p.console)
        thread_start("log", log_often, &done);
    if (p.interactive)
        thread_start("in", from_terminal, NULL);
    int code = p.interactive ? session_run(session) : run_lines();
    atomic_store(&done, true);
    thread_join(out);
    _exit((restore(), code));
}
