/* host: facts, log, power. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "kernel/host.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/sched/sched.h"
#include "mgmt/cmd.h"
#include "mgmt/guest.h"
#include "mgmt/units.h"
#include "mgmt/version.h"

/* ---- info, cpu, mem, pci, time ---- */
int cmd_host_info(struct call *c)
{
    static const struct column cols[] = {
        COL("joist", TEXT), COL("cpu", TEXT), COL("vendor", TEXT), COL("cpus", NUM),
        COL("cpus-listed", NUM), COL("virtualization", TEXT), COL("why-not", TEXT), COL("ram", SIZE),
        COL("firmware", TEXT), COL("loader", TEXT), COL("clock", TEXT), COL("tsc-khz", NUM),
        COL("tsc-invariant", BOOL), COL("x2apic", BOOL), COL("uptime", TIME), COL("command-line", TEXT),
    };
    struct host_facts *f = kmalloc(sizeof *f);
    if (!f)
        return fail_set(&c->fail, EX_RESOURCE, "no memory for the figures");
    host_facts(f);
    rep_record(&c->rep, "host", cols, ARRAY_SIZE(cols));
    rep_str(&c->rep, JOIST_VERSION);
    rep_str(&c->rep, f->brand);
    rep_str(&c->rep, f->vendor);
    rep_num(&c->rep, f->cpus_online);
    rep_num(&c->rep, f->cpus_listed);
    rep_str(&c->rep, f->hv_name ? f->hv_name : "none");
    rep_str(&c->rep, f->hv_name ? NULL : f->hv_why);
    rep_num(&c->rep, f->ram);
    rep_str(&c->rep, f->uefi ? "UEFI" : "BIOS");
    rep_str(&c->rep, f->loader);
    rep_str(&c->rep, f->clock_source);
    rep_num(&c->rep, f->tsc_hz / 1000);
    rep_num(&c->rep, f->tsc_invariant);
    rep_num(&c->rep, f->x2apic);
    rep_num(&c->rep, clock_ns());
    rep_str(&c->rep, host_cmdline());
    kfree(f);
    return EX_DONE;
}

static void cpu_row(void *arg, const char *key, const char *value)
{
    rep_str(arg, key);
    rep_str(arg, value);
}

int cmd_host_cpu(struct call *c)
{
    static const struct column cols[] = { COL("item", TEXT), COL("value", TEXT) };
    rep_table(&c->rep, "cpu", cols, ARRAY_SIZE(cols));
    host_cpu_lines(cpu_row, &c->rep);
    return EX_DONE;
}

static uint64_t promised_to_vms(void)
{
    struct guest_status st;
    struct fail f;
    unsigned n;
    uint64_t sum = 0;
    struct guest **all = guest_all(&n, &f);
    for (unsigned i = 0; i < n; i++) {
        guest_status(all[i], &st);
        sum += st.ram + st.overhead;
        guest_put(all[i]);
    }
    kfree(all);
    return sum;
}

/* Of what the VMs were promised, vms-untouched has no page yet.  joist: all the rest. */
int cmd_host_mem(struct call *c)
{
    static const struct column cols[] = {
        COL("total", SIZE), COL("free", SIZE), COL("vms", SIZE), COL("vms-untouched", SIZE), COL("images", SIZE),
        COL("joist", SIZE), COL("heap", SIZE), COL("zero-pool", SIZE),
    };
    struct host_mem m;
    uint64_t vms = promised_to_vms();
    host_mem(&m);
    uint64_t other = m.free + vms + m.images;
    rep_record(&c->rep, "mem", cols, ARRAY_SIZE(cols));
    const uint64_t cells[] = { m.total, m.free, vms, m.promised, m.images, m.total > other ? m.total - other : 0, m.heap, m.zero_pool };
    for (unsigned i = 0; i < ARRAY_SIZE(cells); i++)
        rep_num(&c->rep, cells[i]);
    return EX_DONE;
}

static void pci_row(void *arg, const struct host_pci *p)
{
    rep_fmt(arg, "%04x:%02x:%02x.%x", p->seg, p->bus, p->dev, p->fn);
    rep_fmt(arg, "%04x:%04x", p->vendor, p->device);
    rep_fmt(arg, "%06x", p->class_code);
    rep_str(arg, p->driver);
    rep_str(arg, p->irq);
}

int cmd_host_pci(struct call *c)
{
    static const struct column cols[] = {
        COL("address", TEXT), COL("id", TEXT), COL("class", TEXT), COL("driver", TEXT), COL("irq", TEXT),
    };
    rep_table(&c->rep, "pci", cols, ARRAY_SIZE(cols));
    host_pci_each(pci_row, &c->rep);
    return EX_DONE;
}

int cmd_host_time(struct call *c)
{
    static const struct column cols[] = { COL("time", UTC), COL("uptime", TIME), COL("clock", TEXT) };
    struct host_facts *f = kmalloc(sizeof *f);
    if (!f)
        return fail_set(&c->fail, EX_RESOURCE, "no memory for the figures");
    host_facts(f);
    rep_record(&c->rep, "time", cols, ARRAY_SIZE(cols));
    rep_num(&c->rep, clock_utc_ns());
    rep_num(&c->rep, clock_ns());
    rep_str(&c->rep, f->clock_source);
    kfree(f);
    return EX_DONE;
}

/* ---- log ---- */
struct log_pick { struct report *r; int level; uint64_t seen, skip; };

static void log_count(void *arg, uint64_t ns, int level, const char *area, const char *text)
{
    struct log_pick *p = arg;
    p->seen += level <= p->level;
}

static void log_row(void *arg, uint64_t ns, int level, const char *area, const char *text)
{
    static const char *const names[] = { "error", "warning", "info", "debug" };
    struct log_pick *p = arg;
    if (level > p->level)
        return;
    if (p->skip) {
        p->skip--;
        return;
    }
    rep_num(p->r, ns);
    rep_str(p->r, names[level & 3]);
    rep_str(p->r, area);
    rep_str(p->r, text);
}

int cmd_host_log(struct call *c)
{
    static const struct column cols[] = {
        COL("time", STAMP), COL("level", TEXT), COL("area", TEXT), COL("text", TEXT),
    };
    struct log_pick p = { .r = &c->rep, .level = (int)call_num(c, "level", LOG_INFO) };
    bool previous = call_has(c, "previous");
    host_log_each(previous, log_count, &p);
    uint64_t lines = call_num(c, "lines", UINT64_MAX);
    p.skip = p.seen > lines ? p.seen - lines : 0;
    rep_table(&c->rep, "log", cols, ARRAY_SIZE(cols));
    host_log_each(previous, log_row, &p);
    if (!p.seen)
        call_note(c, previous ? "nothing was kept of the boot before" : "the log is empty");
    return EX_DONE;
}

/* ---- top ---- */
enum { TOP_THREADS = 512 };
struct sample { char name[32]; enum thread_class cls; unsigned cpu; char state; uint64_t run_ns, steal_ns; };
struct samples { struct sample t[TOP_THREADS]; unsigned n; uint64_t at; };

static void take_thread(void *arg, const struct thread_info *t)
{
    struct samples *s = arg;
    if (s->n == TOP_THREADS)
        return;
    struct sample *to = &s->t[s->n++];
    size_t i = 0;
    for (; i < sizeof to->name - 1 && t->name[i]; i++)
        to->name[i] = t->name[i];
    to->name[i] = 0;
    to->cls = t->cls, to->cpu = t->cpu, to->state = t->state, to->run_ns = t->run_ns, to->steal_ns = t->steal_ns;
}

static void take_samples(struct samples *s)
{
    s->n = 0;
    s->at = clock_ns();
    thread_each(take_thread, s);
}

/* Threads have no identity but name and order; those that ran before are found by both. */
static const struct sample *before(const struct samples *old, const struct sample *t, unsigned i)
{
    if (i < old->n && !strcmp(old->t[i].name, t->name) && old->t[i].run_ns <= t->run_ns)
        return &old->t[i];
    for (unsigned k = 0; k < old->n; k++)
        if (!strcmp(old->t[k].name, t->name) && old->t[k].run_ns <= t->run_ns)
            return &old->t[k];
    return NULL;
}

static void sort_by_use(unsigned *order, const uint64_t *used, unsigned n)
{
    for (unsigned i = 1; i < n; i++)
        for (unsigned k = i; k && used[order[k]] > used[order[k - 1]]; k--) {
            unsigned t = order[k];
            order[k] = order[k - 1], order[k - 1] = t;
        }
}

struct top { struct samples a, b; uint64_t used[TOP_THREADS]; unsigned order[TOP_THREADS]; };

static void top_table(struct report *r, struct top *t, const struct samples *old, const struct samples *new)
{
    static const struct column cols[] = {
        COL("thread", TEXT), COL("class", TEXT), COL("cpu", NUM), COL("state", TEXT), COL("use", TEXT),
        COL("run", TIME), COL("steal", TIME),
    };
    static const char *const classes[] = { "kernel", "service", "vcpu" };
    uint64_t span = new->at > old->at ? new->at - old->at : 1;
    for (unsigned i = 0; i < new->n; i++) {
        const struct sample *o = before(old, &new->t[i], i);
        t->used[i] = o ? new->t[i].run_ns - o->run_ns : 0;
        t->order[i] = i;
    }
    sort_by_use(t->order, t->used, new->n);
    rep_table(r, "threads", cols, ARRAY_SIZE(cols));
    for (unsigned i = 0; i < new->n; i++) {
        const struct sample *s = &new->t[t->order[i]];
        unsigned mille = (unsigned)(t->used[t->order[i]] * 1000 / span);
        rep_str(r, s->name);
        rep_str(r, classes[s->cls % ARRAY_SIZE(classes)]);
        rep_num(r, s->cpu);
        rep_fmt(r, "%c", s->state);
        rep_fmt(r, "%3u.%u%%", mille / 10, mille % 10);
        rep_num(r, s->run_ns);
        rep_num(r, s->steal_ns);
    }
}

static int pause_turn(struct session *s, uint64_t ns)
{
    uint64_t until = clock_ns() + ns;
    for (;;) {
        int err = session_wait(s, until);
        uint8_t key;
        if (err == -ETIMEDOUT)
            return 0;
        if (err || (s->p.interactive && session_read(s, &key, 1)))
            return -EINTR;
    }
}

static int top_turns(struct call *c, struct top *t, uint64_t turns, uint64_t interval)
{
    bool screen = c->s->p.interactive && !c->json && turns > 1;
    struct rep_style style = { NULL, c->quiet };
    struct samples *old = &t->a, *new = &t->b;
    take_samples(old);
    while (turns-- && !pause_turn(c->s, interval)) {
        take_samples(new);
        rep_free(&c->rep);
        rep_init(&c->rep);
        top_table(&c->rep, t, old, new);
        struct samples *swap = old;
        old = new, new = swap;
        if (!screen)
            continue;
        struct buf out;
        buf_init(&out, REP_MAX_BYTES);
        buf_str(&out, "\x1b[H\x1b[2J");
        int code = rep_text(&c->rep, &style, &out, &c->fail);
        session_print(c->s, buf_text(&out), out.len);
        buf_free(&out);
        if (code)
            return code;
        session_print(c->s, "any key ends\n", 13);
    }
    if (screen) {
        rep_free(&c->rep);
        rep_init(&c->rep);
    }
    return EX_DONE;
}

int cmd_host_top(struct call *c)
{
    struct top *t = kmalloc(sizeof *t);
    uint64_t interval = call_num(c, "interval", 1000000000),
             turns = call_num(c, "count", c->s->p.interactive && !c->json ? UINT64_MAX : 1);
    if (!t)
        return fail_set(&c->fail, EX_RESOURCE, "no memory for the figures");
    int code = interval < 10000000 || !turns
                   ? fail_set(&c->fail, EX_USAGE, "--interval must be 10ms at least, --count 1 at least")
                   : top_turns(c, t, turns, interval);
    kfree(t);
    return code;
}

/* ---- power ---- */
static unsigned still_running(struct guest **all, unsigned n)
{
    struct guest_status st;
    unsigned running = 0;
    for (unsigned i = 0; i < n; i++) {
        guest_status(all[i], &st);
        running += st.state > GUEST_CRASHED;
    }
    return running;
}

static void shut_down(struct call *c, struct guest **all, unsigned n, uint64_t timeout)
{
    uint64_t start = clock_ns(), until = timeout > UINT64_MAX - start ? UINT64_MAX : start + timeout;
    struct fail f;
    struct guest_status st;
    for (unsigned i = 0; i < n; i++) {
        guest_status(all[i], &st);
        if (st.state == GUEST_PAUSED)
            guest_kill(all[i], &f);
        else if (st.state > GUEST_CRASHED)
            guest_button(all[i], &f);
    }
    while (still_running(all, n) && clock_ns() < until && !c->s->interrupted && !atomic_load(&c->s->closed)) {
        if (c->s->p.interactive && clock_ns() - start > 1000000000)
            session_progress(c->s, "shutting VMs down", MIN(clock_ns() - start, timeout - 1), timeout);
        session_wait(c->s, MIN(clock_ns() + 100000000, until));
    }
}

static int stop_everything(struct call *c)
{
    unsigned n;
    struct fail f;
    struct guest **all = guest_all(&n, &f);
    if (n && still_running(all, n) && !call_has(c, "now")) {
        unsigned running = still_running(all, n);
        call_note(c, "shutting down %u VM%s", running, running == 1 ? "" : "s");
        shut_down(c, all, n, call_num(c, "timeout", 10000000000ull));
    }
    bool stay = c->s->interrupted;
    for (unsigned i = 0; i < n; i++) {
        struct guest_status st;
        guest_status(all[i], &st);
        if (!stay && st.state > GUEST_CRASHED) {
            call_note(c, "killing VM \"%s\"", st.name);
            guest_kill(all[i], &f);
        }
        guest_put(all[i]);
    }
    kfree(all);
    return stay ? fail_set(&c->fail, EX_INTERRUPTED, "interrupted; Joist stays up") : EX_DONE;
}

static int power(struct call *c, int (*fn)(void), const char *what)
{
    int code = stop_everything(c);
    if (code)
        return code;
    log_info("host", "%s by command", what);
    call_note(c, "%s", what);
    session_drain(c->s);
    int err = fn();
    fail_set(&c->fail, EX_FAILED, "the machine did not do it (error %d)", -err);
    fail_hint(&c->fail, "host log tells more; the power switch is safe to use now: no VM is running");
    return EX_FAILED;
}

int cmd_host_poweroff(struct call *c) { return power(c, host_poweroff, "power off"); }
int cmd_host_reboot(struct call *c) { return power(c, host_reboot, "reboot"); }
