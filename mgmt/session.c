#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "kernel/console/console.h"
#include "kernel/lib/port.h"
#include "mgmt/cmd.h"
#include "mgmt/session.h"

enum { CTRL_C = 3 };
static const char prompt[] = "joist> ";

static void notify(void *arg)
{
    struct session *s = arg;
    event_post(&s->wake);
}

static void ed_out(void *arg, const char *text, size_t len) { session_raw(arg, text, len); }

struct session *session_new(const struct session_params *p)
{
    struct session *s = kzalloc(sizeof *s);
    if (!s)
        return NULL;
    s->p = *p;
    event_init(&s->wake);
    ed_init(&s->ed, &s->history, p->cols ? p->cols : 80, ed_out, s);
    s->log_seq = p->console ? log_end() : 0;
    chan_set_notify(p->tty, p->side, notify, s);
    if (p->err)
        chan_set_notify(p->err, p->side, notify, s);
    return s;
}

void session_free(struct session *s)
{
    chan_set_notify(s->p.tty, s->p.side, NULL, NULL);
    if (s->p.err)
        chan_set_notify(s->p.err, s->p.side, NULL, NULL);
    history_free(&s->history);
    kfree(s);
}

void session_close(struct session *s)
{
    atomic_store(&s->closed, true);
    event_post(&s->wake);
}

/* ---- Input ---- */
static void poll_input(struct session *s)
{
    uint8_t some[64];
    size_t n;
    while (s->in_len + sizeof some <= sizeof s->in && (n = chan_read(s->p.tty, s->p.side, some, sizeof some)) > 0)
        for (size_t i = 0; i < n; i++)
            s->in[(s->in_head + s->in_len++) % sizeof s->in] = some[i];
}

/* Ctrl-C, typed ahead or now, ends the command and throws away what was typed before it. */
static void poll_interrupt(struct session *s)
{
    poll_input(s);
    for (unsigned i = s->in_len; i-- > 0;)
        if (s->in[(s->in_head + i) % sizeof s->in] == CTRL_C) {
            s->interrupted = true;
            s->in_head = (s->in_head + i + 1) % sizeof s->in;
            s->in_len -= i + 1;
            return;
        }
}

size_t session_read(struct session *s, uint8_t *buf, size_t len)
{
    size_t n = 0;
    poll_input(s);
    for (; n < len && s->in_len; n++, s->in_len--) {
        buf[n] = s->in[s->in_head];
        s->in_head = (s->in_head + 1) % sizeof s->in;
    }
    return n;
}

int session_wait(struct session *s, uint64_t deadline)
{
    poll_interrupt(s);
    if (s->interrupted || atomic_load(&s->closed))
        return -EINTR;
    if (deadline == UINT64_MAX)
        event_wait(&s->wake);
    else if (!event_wait_until(&s->wake, deadline))
        return -ETIMEDOUT;
    poll_interrupt(s);
    return s->interrupted || atomic_load(&s->closed) ? -EINTR : 0;
}

/* ---- Output ---- */
static void push(struct session *s, struct chan *c, const char *data, size_t len, bool droppable)
{
    bool waited = false;
    while (len && !atomic_load(&s->closed) && !(droppable && s->interrupted)) {
        size_t n = chan_write(c, s->p.side, data, len);
        data += n, len -= n;
        if (n || !len)
            continue;
        event_wait(&s->wake);
        waited = true;
        if (droppable)
            poll_interrupt(s);
    }
    if (waited)
        event_post(&s->wake);   /* the wake-up may have been meant for somebody who still has to look */
}

void session_raw(struct session *s, const void *data, size_t len) { push(s, s->p.tty, data, len, false); }

size_t session_room(struct session *s) { return chan_writable(s->p.tty, s->p.side); }

void session_drain(struct session *s)
{
    uint64_t until = clock_ns() + 500000000;
    while (chan_readable(s->p.tty, !s->p.side) && clock_ns() < until && !atomic_load(&s->closed))
        session_wait(s, MIN(clock_ns() + 5000000, until));
}

static void text_out(struct session *s, struct chan *c, const char *text, size_t len, bool droppable)
{
    while (len) {
        const char *nl = s->p.interactive ? memchr(text, '\n', len) : NULL;
        size_t n = nl ? (size_t)(nl - text) : len;
        push(s, c, text, n, droppable);
        if (nl) {
            push(s, c, "\r\n", 2, droppable);
            n++;
        }
        text += n, len -= n;
    }
}

static void end_progress_row(struct session *s)
{
    if (s->progress_open)
        text_out(s, s->p.err ? s->p.err : s->p.tty, "\n", 1, false);
    s->progress_open = false;
}

void session_print(struct session *s, const char *text, size_t len)
{
    end_progress_row(s);
    text_out(s, s->p.tty, text, len, true);
}

void session_msg(struct session *s, const char *fmt, ...)
{
    char text[640];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    end_progress_row(s);
    text_out(s, s->p.err ? s->p.err : s->p.tty, text, strlen(text), false);
}

void session_progress(struct session *s, const char *label, uint64_t done, uint64_t total)
{
    struct chan *c = s->p.err ? s->p.err : s->p.tty;
    unsigned percent = total ? (unsigned)(MIN(done, total) * 100 / total) : 100;
    uint64_t now = clock_ns();
    char bar[41], text[160];
    bool first = !s->progress_at;
    uint64_t pause = s->p.interactive ? 500000000 : 1000000000;
    if (!first && percent < 100 && (percent == s->progress_percent || now - s->progress_at < pause))
        return;
    s->progress_at = now, s->progress_percent = percent;
    memset(bar, ' ', 40);
    memset(bar, '#', percent * 40 / 100);
    bar[40] = 0;
    if (s->p.interactive)
        snprintf(text, sizeof text, "\r%.60s [%s] %3u %%", label, bar, percent);
    else
        snprintf(text, sizeof text, "%.60s %u %%\n", label, percent);
    text_out(s, c, text, strlen(text), false);
    s->progress_open = s->p.interactive;
    if (done >= total) {
        end_progress_row(s);
        s->progress_at = 0;
    }
}

/* ---- Running ---- */
int session_exec(struct session *s, const char *line)
{
    s->interrupted = false;
    while (line && !s->leave && !s->interrupted && !atomic_load(&s->closed))
        s->code = cmd_run(s, line, &line);
    end_progress_row(s);
    s->progress_at = 0;
    if (s->interrupted && s->p.interactive)
        session_raw(s, "^C\r\n", 4);
    return s->code;
}

static void show_log(struct session *s)
{
    static const char *const levels[] = { "error", "warning", "info", "debug" };
    struct log_line line;
    char text[360];
    bool hidden = false;
    while (s->p.console && log_read(&s->log_seq, &line)) {
        if (line.level > s->p.log_level)
            continue;
        if (!hidden)
            ed_hide(&s->ed);
        hidden = true;
        snprintf(text, sizeof text, "[%5lu.%06lu] %s: %s: %s\n", (unsigned long)(line.ns / 1000000000),
                 (unsigned long)(line.ns / 1000 % 1000000), levels[line.level & 3], line.area, line.text);
        text_out(s, s->p.tty, text, strlen(text), false);
    }
    if (hidden)
        ed_show(&s->ed);
}

static void end_of_input(struct session *s)
{
    if (s->p.console)
        session_msg(s, "this console stays; host poweroff ends Joist\n");
    else
        s->leave = true;
}

static void handle(struct session *s, enum ed_event what)
{
    switch (what) {
    case ED_NONE:
        return;
    case ED_TAB:
        cmd_complete(s, &s->ed);
        return;
    case ED_HELP:
        cmd_help_here(s, &s->ed);
        return;
    case ED_INTR:
        s->code = EX_INTERRUPTED;
        break;
    case ED_EOF:
        end_of_input(s);
        break;
    case ED_LINE:
        history_add(&s->history, s->ed.line);
        session_exec(s, s->ed.line);
        break;
    }
    if (!s->leave)
        ed_start(&s->ed, prompt);
}

int session_run(struct session *s)
{
    if (s->p.banner)
        text_out(s, s->p.tty, s->p.banner, strlen(s->p.banner), false);
    ed_start(&s->ed, prompt);
    while (!s->leave && !atomic_load(&s->closed)) {
        uint8_t c;
        show_log(s);
        if (session_read(s, &c, 1))
            handle(s, ed_feed(&s->ed, c));
        else
            event_wait(&s->wake);
    }
    return s->code;
}
