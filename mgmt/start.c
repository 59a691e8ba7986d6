/*
 * What Joist does by itself once everything is up: definitions of the stick, autostart, options of the kernel command line,
 * shells on the consoles.
 */
#include <stdio.h>
#include <string.h>
#include "kernel/console/console.h"
#include "kernel/host.h"
#include "kernel/lib/log.h"
#include "mgmt/guest.h"
#include "mgmt/mgmt.h"
#include "mgmt/option.h"
#include "mgmt/session.h"
#include "mgmt/units.h"
#include "mgmt/version.h"

enum { RUN_MAX = 1024, BANNER_MAX = 400 };
static const char definition_suffix[] = ".vm.toml";

static bool has_suffix(const char *s, const char *suffix)
{
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && !strcmp(s + n - m, suffix);
}

static bool get_option(const char *key, char *val, size_t len) { return option_get(host_cmdline(), key, val, len); }

/* ---- VMs that exist from the start ---- */
static void complain(const char *what, const struct fail *f)
{
    log_err("mgmt", "%s: %s%s%s", what, f->message, f->hint[0] ? "; " : "", f->hint);
}

static void define(const struct vmdef *d)
{
    struct fail f = { 0 };
    if (vmdef_check(d, &f) || guest_define(d, &f))
        complain(d->name, &f);
}

static bool read_definition(struct host_image *img, struct vmdef *d)
{
    struct fail f = { 0 };
    vmdef_init(d);
    bool sound = host_image_sound(img);
    if (!sound)
        fail_set(&f, EX_IO, "the file is damaged: its checksum is wrong");
    if (sound && !vmdef_read(d, img->data, img->len, img->name, &f))
        return true;
    complain(img->name, &f);
    return false;
}

static void define_from_store(const char *not_prefix)
{
    struct host_image img;
    struct vmdef *d = kmalloc(sizeof *d);
    for (unsigned i = 0; d && host_image(i, &img); i++)
        if (has_suffix(img.name, definition_suffix) && !(*not_prefix && !strncmp(img.name, not_prefix, strlen(not_prefix))) &&
            read_definition(&img, d))
            define(d);
    kfree(d);
}

static void define_demo(void)
{
    struct vmdef *d = kmalloc(sizeof *d);
    if (!d)
        return;
    vmdef_init(d);
    d->mem = 256ull << 20;
    strcpy(d->name, "demo");
    strcpy(d->kernel, "vmlinuz");
    strcpy(d->initrd, "initrd");
    strcpy(d->cmdline, "console=ttyS0 quiet joist=shell");
    d->autostart = true;
    define(d);
    kfree(d);
}

struct autostart { struct guest **all; unsigned n; struct vmdef def; };

static void autostart_thread(void *arg)
{
    struct autostart *a = arg;
    for (unsigned i = 0; i < a->n; i++) {
        struct fail f = { 0 };
        guest_def(a->all[i], &a->def);
        if (a->def.autostart && guest_start(a->all[i], &f))
            complain(a->def.name, &f);
        guest_put(a->all[i]);
    }
    kfree(a->all);
    kfree(a);
}

/* The prompt does not wait for it: a start waits until its images are checked. */
static void autostart(void)
{
    struct fail f = { 0 };
    struct autostart *a = kmalloc(sizeof *a);
    if (a && (a->all = guest_all(&a->n, &f)) && thread_start("autostart", autostart_thread, a))
        return;
    log_err("mgmt", "no memory to start VMs");
    for (unsigned i = 0; a && a->all && i < a->n; i++)
        guest_put(a->all[i]);
    kfree(a ? a->all : NULL);
    kfree(a);
}

/* ---- Test guests ---- */
enum { DEBUG_EXIT_PASS = 1 };       /* the guest wrote 0: guestdev/sysport.h counts as QEMU's isa-debug-exit does */
struct testrun { struct session *s; unsigned passed, failed; };

static bool testguest_definition(struct host_image *img, struct vmdef *d)
{
    if (has_suffix(img->name, definition_suffix)) {
        if (!read_definition(img, d))
            return false;
    } else {
        vmdef_init(d);
        d->mem = 64ull << 20;
        snprintf(d->kernel, sizeof d->kernel, "%s", img->name);
    }
    d->debug_exit = true;
    d->on_crash = 1;
    const char *base = strrchr(img->name, '/');
    snprintf(d->name, sizeof d->name, "t-%.60s", base ? base + 1 : img->name);
    return true;
}

/* Waits until the guest has stopped; false after a minute. */
static bool testguest_wait(struct session *s, struct guest *g, struct guest_status *st)
{
    struct watch me;
    uint64_t until = clock_ns() + 60000000000ull;
    watch_add(&g->watchers, &me, &s->wake);
    for (guest_status(g, st); st->state > GUEST_CRASHED && clock_ns() < until && !session_wait(s, until); guest_status(g, st))
        ;
    watch_del(&g->watchers, &me);
    return st->state <= GUEST_CRASHED;
}

static void testguest_one(struct testrun *t, const char *name, const struct vmdef *d)
{
    struct fail f = { 0 };
    struct guest_status st = { 0 };
    struct guest *g = NULL;
    bool ran = !guest_define(d, &f) && (g = guest_find(d->name, &f)) && !guest_start(g, &f),
         ended = ran && testguest_wait(t->s, g, &st);
    bool ok = ended && st.cause == STOP_DEBUG_EXIT && st.code == DEBUG_EXIT_PASS;
    ok ? t->passed++ : t->failed++;
    if (!ran)
        session_msg(t->s, "guest test %s: FAIL: %s\n", name, f.message);
    else if (!ended)
        session_msg(t->s, "guest test %s: FAIL: no end after 60 s\n", name), guest_kill(g, &f);
    else
        session_msg(t->s, "guest test %s: %s: %s, code %u\n", name, ok ? "ok" : "FAIL", st.reason, st.code);
    if (g)
        guest_put(g);
}

static void test_guests(struct session *s, const char *prefix)
{
    struct testrun t = { .s = s };
    struct host_image img;
    struct vmdef *d = kmalloc(sizeof *d);
    for (unsigned i = 0; d && host_image(i, &img); i++)
        if (!strncmp(img.name, prefix, strlen(prefix)) && testguest_definition(&img, d))
            testguest_one(&t, img.name, d);
    kfree(d);
    session_msg(s, "guest tests: %u passed, %u failed\n", t.passed, t.failed);
    session_exec(s, "host poweroff --now");
}

/* ---- Shells ---- */
struct shell { struct session *session; char run[RUN_MAX], testguests[64], banner[BANNER_MAX]; };

static void make_banner(char *out, size_t len)
{
    char ram[32];
    struct host_facts *f = kmalloc(sizeof *f);
    out[0] = 0;
    if (!f)
        return;
    host_facts(f);
    snprintf(out, len, "\nJoist " JOIST_VERSION ": %u CPUs, %s of RAM, %s.  help lists the commands.\n%s%s%s", f->cpus_online,
             format_size(ram, f->ram), f->hv_name ? f->hv_name : "no virtualization",
             f->hv_name ? "" : "VMs cannot start: ", f->hv_name || !f->hv_why ? "" : f->hv_why, f->hv_name ? "" : "\n");
    kfree(f);
}

static void shell_thread(void *arg)
{
    struct shell *sh = arg;
    struct session *s = sh->session;
    if (sh->run[0])
        session_exec(s, sh->run);
    if (sh->testguests[0])
        test_guests(s, sh->testguests);
    session_run(s);
    log_err("mgmt", "a console's shell ended");
}

static void wake(void *arg)
{
    struct session *s = arg;
    event_post(&s->wake);
}

static void start_shell(unsigned i, int log_level)
{
    struct console_info info = { "console", 80, 24 };
    struct shell *sh = kzalloc(sizeof *sh);
    console_info(i, &info);
    make_banner(sh ? sh->banner : (char[1]){ 0 }, sh ? sizeof sh->banner : 1);
    struct session_params p = { .tty = console_chan(i), .side = CHAN_USER, .cols = info.cols, .rows = info.rows, .interactive = true,
                                .console = true, .log_level = log_level, .banner = sh ? sh->banner : NULL };
    if (sh)
        sh->session = session_new(&p);
    if (!sh || !sh->session) {
        log_err("mgmt", "no memory for a shell on %s", info.name);
        kfree(sh);
        return;
    }
    if (!i) {
        get_option("run", sh->run, sizeof sh->run);
        get_option("testguests", sh->testguests, sizeof sh->testguests);
    }
    console_take_log(i, log_level, wake, sh->session);
    if (!thread_start("shell", shell_thread, sh))
        log_err("mgmt", "no memory for a shell on %s", info.name);
}

void mgmt_start(void)
{
    char val[64], prefix[64];
    uint64_t level = LOG_WARN;
    guest_table_init();
    if (get_option("loglevel", val, sizeof val))
        parse_uint(val, &level);
    get_option("testguests", prefix, sizeof prefix);
    define_from_store(prefix);
    if (get_option("demo", val, sizeof val))
        define_demo();
    autostart();
    for (unsigned i = 0; console_chan(i); i++)
        start_shell(i, (int)MIN(level, (uint64_t)LOG_DEBUG));
}
