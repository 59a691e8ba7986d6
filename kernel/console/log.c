/* The kernel's log: one ring, printed to the consoles by whoever writes at first, later by a thread. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "kernel/console/logring.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"

static uint64_t boot_ring[(sizeof(struct logring_area) + 128 * sizeof(struct logring_slot)) / 8];

static struct {
    struct spinlock lock;               /* ring and console table */
    struct spinlock print_lock;         /* one CPU prints; taken by trylock only */
    struct logring ring, previous;
    bool have_previous, threaded, panic;
    struct event wake;
    struct console *console[CONSOLE_MAX];
    unsigned consoles;
} lg;

void log_init(void) { logring_init(&lg.ring, boot_ring, sizeof(boot_ring), 1); }

static unsigned long ring_lock(void) { return lg.panic ? 0 : spin_lock_irqsave(&lg.lock); }
static void ring_unlock(unsigned long f)
{
    if (!lg.panic)
        spin_unlock_irqrestore(&lg.lock, f);
}

bool log_read(uint64_t *seq, struct log_line *l)
{
    unsigned long f = ring_lock();
    bool ok = logring_read(&lg.ring, seq, l);
    ring_unlock(f);
    return ok;
}

uint64_t log_end(void)
{
    unsigned long f = ring_lock();
    uint64_t end = lg.ring.next;
    ring_unlock(f);
    return end;
}

static void print_line(struct console *c, const struct log_line *l)
{
    static const char *const tag[] = { [LOG_ERR] = "error: ", [LOG_WARN] = "warning: ", [LOG_INFO] = "", [LOG_DEBUG] = "" };
    char text[300];
    unsigned us = (unsigned)(l->ns % 1000000000 / 1000);
    int n = snprintf(text, sizeof(text), "[%5u.%06u] %s: %s%s\r\n", (unsigned)(l->ns / 1000000000), us, l->area, tag[l->level & 3], l->text);
    c->write(c, text, MIN((size_t)n, sizeof(text) - 1));
}

static void flush_console(struct console *c)
{
    struct log_line l;
    bool wanted = false;
    while (log_read(&c->next_seq, &l)) {
        if (c->taken && !lg.panic)
            wanted |= l.level <= c->take_level;
        else if (l.level <= c->level)
            print_line(c, &l);
    }
    if (wanted && c->notify)
        c->notify(c->notify_arg);
}

static bool behind(void)
{
    uint64_t end = log_end();
    for (unsigned i = 0; i < lg.consoles; i++)
        if (lg.console[i]->next_seq < end)
            return true;
    return false;
}

/* Whoever gets the lock prints until no line is left, also those that others added meanwhile without waiting. */
static void flush(void)
{
    while (behind() && (lg.panic || spin_trylock(&lg.print_lock))) {
        for (unsigned i = 0; i < lg.consoles; i++)
            flush_console(lg.console[i]);
        if (!lg.panic)
            spin_unlock(&lg.print_lock);
    }
}

void log_write(enum log_level level, const char *area, const char *fmt, ...)
{
    struct log_line l = { .ns = clock_ns(), .level = level };
    va_list ap;
    snprintf(l.area, sizeof(l.area), "%s", area);
    va_start(ap, fmt);
    vsnprintf(l.text, sizeof(l.text), fmt, ap);
    va_end(ap);
    unsigned long f = ring_lock();
    logring_add(&lg.ring, &l);
    ring_unlock(f);
    if (lg.threaded && !lg.panic)
        event_post(&lg.wake);
    else
        flush();
}

bool ratelimit_ok(struct ratelimit *r, uint32_t burst)
{
    uint64_t now = clock_ns() | 1, start = atomic_load(&r->window_start);
    if ((!start || now - start >= 1000000000) && atomic_cas(&r->window_start, &start, now)) {
        uint32_t lost = atomic_xchg(&r->suppressed, 0u);
        atomic_store(&r->count, 0u);
        if (lost)
            log_write(LOG_WARN, "log", "%u lines not shown", (unsigned)lost);
    }
    if (atomic_add(&r->count, 1u) <= burst)
        return true;
    atomic_add(&r->suppressed, 1u);
    return false;
}

int console_register(struct console *c)
{
    unsigned long f = ring_lock();
    int err = lg.consoles == CONSOLE_MAX ? -ENOSPC : 0;
    if (!err) {
        c->next_seq = 0;
        lg.console[lg.consoles] = c;
        atomic_store(&lg.consoles, lg.consoles + 1);
    }
    ring_unlock(f);
    if (!err)
        flush();
    return err;
}

/* Consoles as the shell numbers them: only those with input. */
static struct console *shell_console(unsigned i)
{
    for (unsigned k = 0; k < lg.consoles; k++)
        if (lg.console[k]->chan && i-- == 0)
            return lg.console[k];
    return NULL;
}

struct chan *console_chan(unsigned i)
{
    struct console *c = shell_console(i);
    return c ? c->chan : NULL;
}

bool console_info(unsigned i, struct console_info *out)
{
    struct console *c = shell_console(i);
    if (c)
        *out = c->info;
    return c;
}

void console_take_log(unsigned i, int level, void (*notify)(void *arg), void *arg)
{
    struct console *c = shell_console(i);
    if (!c)
        return;
    spin_lock(&lg.print_lock);
    flush_console(c);                   /* what the boot had to say comes before the prompt */
    c->take_level = level, c->notify = notify, c->notify_arg = arg, c->taken = true;
    spin_unlock(&lg.print_lock);
}

void log_use_area(void *mem, size_t bytes, void *previous_copy)
{
    struct logring old = lg.ring, r;
    struct log_line l;
    if (previous_copy) {
        memcpy(previous_copy, mem, bytes);
        lg.have_previous = logring_recover(&lg.previous, previous_copy, bytes) > 0;
    }
    uint64_t boot = lg.have_previous ? lg.previous.area->boot + 1 : clock_ns() | 1;
    if (logring_init(&r, mem, bytes, boot))
        return;
    for (uint64_t seq = 0; logring_read(&old, &seq, &l);)
        logring_add(&r, &l);
    unsigned long f = ring_lock();
    lg.ring = r;
    ring_unlock(f);
}

bool log_has_previous(void) { return lg.have_previous; }

bool log_read_previous(uint64_t *seq, struct log_line *l)
{
    return lg.have_previous && logring_read(&lg.previous, seq, l);
}

static void log_thread(void *arg)
{
    for (;;) {
        event_wait(&lg.wake);
        flush();
    }
}

void log_start_thread(void)
{
    event_init(&lg.wake);
    if (thread_start("log", log_thread, NULL))
        atomic_store(&lg.threaded, true);
    flush();
}

void log_panic_mode(void)
{
    lg.panic = true;
    for (unsigned i = 0; i < lg.consoles; i++)
        if (lg.console[i]->taken)               /* not behind somebody's prompt */
            lg.console[i]->write(lg.console[i], "\r\n", 2);
    flush();
}
