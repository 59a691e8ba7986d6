/* Life cycle and consoles of VMs, several operators at once. */
#include "mgmt/cmd.h"
#include "tests/mgmt/term.h"

static void make(const char *name, const char *more)
{
    char line[300];
    snprintf(line, sizeof line, "vm create %s --kernel vmlinuz --mem 64M %s", name, more);
    if (sh(line))
        fail_msg("%s", sh_err);
}

static void must(const char *line)
{
    if (sh(line))
        fail_msg("\"%s\": %s", line, sh_err);
}

static void life(void **state)
{
    make("a", "--disk debian/root.img --disk debian/root.img,read-only");
    must("start a");
    assert_has(sh_err, "VM \"a\" started");
    sh("vm list");
    assert_has(sh_out, "a     running");
    assert_int_equal(sh("start a"), 4);
    assert_has(sh_err, "is running");
    assert_int_equal(sh("vm rm a -y"), 4);
    must("vm pause a");
    assert_int_equal(sh("vm pause a"), 4);
    sh("vm show a");
    assert_has(sh_out, "state:       paused");
    assert_has(sh_out, "mmio  0xfed00000  0x400  hpet");
    assert_has(sh_out, "debian/root.img  virtio  no         -        64K\n");
    assert_int_equal(sh("stop a"), 4);
    assert_has(sh_err, "vm resume a first, or vm kill a");
    must("vm resume a; vm reset a; vm stats a");
    assert_int_equal(sh("vm resume a"), 4);
    must("stop a");
    assert_has(sh_err, "VM \"a\" stopped");
    sh("vm show a");
    assert_has(sh_out, "reason:      powered off by the guest");
    assert_int_equal(sh("stop a"), 4);
    assert_has(sh_err, "is not running");
    assert_int_equal(sh("vm stats a"), 4);
    must("start a; kill a");
    sh("vm list -o name,reason");
    assert_has(sh_out, "a     killed");
    must("start a; vm reboot a");
    assert_int_equal(fake_host.machines, 1);
    must("vm log a");
    static const char *const events[] = { "defined", "started", "paused", "resumed", "reset asked for", "power button pressed", "stopped: powered off by the guest", "kill asked for", "stopped: killed" };
    for (unsigned i = 0; i < ARRAY_SIZE(events); i++)
        assert_has(sh_out, events[i]);
}

static void start_failures(void **state)
{
    make("big", "");
    must("vm set big --mem 100G");
    assert_int_equal(sh("start big"), 6);
    assert_has(sh_err, "it needs 102400 MiB and 6144 MiB are free");
    make("odd", "--disk odd.img");
    assert_int_equal(sh("start odd"), 2);
    assert_has(sh_err, "truncate -s %512");
    make("broken", "--disk broken.img");
    assert_int_equal(sh("start broken"), 8);
    assert_has(sh_err, "damaged");
    fake_host.create_err = -95;         /* -EOPNOTSUPP is Linux's number for ENOTSUP */
    make("c", "");
    assert_int_equal(sh("start c"), 9);
    fake_host.create_err = 0;
    must("start c");
    assert_int_equal(sh("start c big nobody"), 4);
    assert_has(sh_err, "error: VM \"big\" cannot start");
    assert_has(sh_err, "error: there is no VM \"nobody\"");
    assert_int_equal(fake_host.machines, 1);
}

static void say(const char *vm, const char *what)
{
    struct term *t = term_open();
    char line[100];
    snprintf(line, sizeof line, "console %s", vm);
    term_command(t, line);
    term_expect(t, "# ");
    term_command(t, what);
    term_type(t, "\x1d");
    term_expect(t, "joist> ");
    term_close(t);
}

static void endings(void **state)
{
    make("a", "--debug-exit");
    must("start a");
    say("a", "exit 42");
    must("vm wait a --timeout 20");
    assert_has(sh_err, "debug exit with code 42");
    sh("vm show a");
    assert_has(sh_out, "debug-exit-code:  42\n");
    sh("vm wait a --json");
    assert_has(sh_out, "\"state\":\"stopped\",\"reason\":\"debug exit\",\"code\":42}");
    must("start a");
    say("a", "crash");
    must("vm wait a --timeout 20");
    sh("vm list");
    assert_has(sh_out, "crashed");
    sh("vm show a");
    assert_has(sh_out, "reason:      third triple fault within 10 s, RIP ffffffff81000000, CR2 0");
    sh("vm log a");
    assert_has(sh_out, "stopped: crashed: third triple fault");
    assert_has(sh_out, "  last exits: pio 3f8 out, hlt");
    must("start a");
    say("a", "deaf");
    assert_int_equal(sh("stop a --timeout 100ms"), 7);
    assert_has(sh_err, "vm kill a powers it off");
    must("stop a --timeout 100ms --kill");
    assert_has(sh_err, "did not shut down in time: killed");
    must("start a");
    assert_int_equal(sh("vm wait a --timeout 50ms"), 7);
    must("vm wait a --for running; stop a --no-wait; vm wait a");
}

static void interrupted(void **state)
{
    make("a", "");
    must("start a");
    struct term *t = term_open();
    term_command(t, "vm wait a");
    term_type(t, "\x03");
    term_expect(t, "^C\r\njoist> ");
    assert_int_equal(t->s->code, EX_INTERRUPTED);
    term_command(t, "vm wait a");
    must("stop a");
    term_expect(t, "VM \"a\" is stopped: powered off by the guest\r\n");
    term_close(t);
}

static void console(void **state)
{
    make("a", "");
    struct term *t = term_open(), *u, *watcher;
    assert_int_equal(sh("console a"), 2);
    assert_has(sh_err, "needs a terminal");
    term_command(t, "console a");
    term_expect(t, "never started");
    term_command(t, "start a --console");
    term_expect(t, "com1 of VM \"a\"; Ctrl-] leaves\r\nfake guest of a\r\n# ");
    term_command(t, "hello");
    term_expect(t, "hello\r\nhello: not found\r\n# ");
    u = term_open();
    term_command(u, "console a");
    term_expect(u, "leaves\r\nfake guest of a\r\n# hello\r\nhello: not found\r\n# ");     /* replay */
    watcher = term_open();
    term_command(watcher, "vm console a --ro");
    term_expect(watcher, "watching only");
    term_command(watcher, "poweroff");
    term_command(u, "both");
    term_expect(t, "both: not found\r\n# ");
    term_expect(watcher, "both: not found\r\n# ");
    term_type(t, "\x1dversion\r");
    term_expect(t, "left VM \"a\"\r\njoist> ");
    term_expect(t, "0.1\r\njoist> ");
    term_command(t, "console a --port com2");
    term_expect(t, "has no com2 port");
    term_command(u, "reboot");
    term_expect(u, "# fake guest of a\r\n# ");
    sh("vm log a; vm show a");
    assert_has(sh_out, "Z  reset\n");
    assert_has(sh_out, "resets:      1\n");
    term_command(u, "poweroff");
    term_expect(u, "VM \"a\" is stopped: powered off by the guest\r\njoist> ");
    term_expect(watcher, "VM \"a\" is stopped");
    term_command(t, "console a");           /* what was said stays readable */
    term_expect(t, "both: not found");
    term_expect(t, "VM \"a\" is stopped");
    term_close(t);
    term_close(u);
    term_close(watcher);
}

/* A guest that talks much, a terminal that reads nothing, another that reads all: neither waits for the slow one. */
static void slow_terminal(void **state)
{
    make("a", "");
    must("start a");
    struct term *slow = term_open_with((struct session_params){ 0 }, 128),
                *fast = term_open_with((struct session_params){ 0 }, 65536);
    for (const char *k = "console a\r"; *k;)
        k += chan_write(slow->tty, CHAN_DEV, k, 1);
    uint64_t until = clock_ns() + 10000000000ull;
    while (chan_readable(slow->tty, CHAN_DEV) < 60 && clock_ns() < until)
        thread_yield();
    term_command(fast, "console a");
    term_expect(fast, "# ");
    term_command(fast, "flood 20000");
    term_expect(fast, "line 019999 of the flood\r\n# ");
    term_expect(slow, "bytes were not shown]");
    term_expect(slow, "line 019999 of the flood\r\n# ");
    term_type(slow, "\x1d");
    term_expect(slow, "joist> ");
    term_close(fast);
    term_close(slow);
    struct term *late = term_open_with((struct session_params){ 0 }, 65536);
    term_command(late, "console a");
    term_expect(late, "line 019999");
    size_t replay = strlen(strstr(late->text, "leaves\r\n")) - 8;
    assert_true(replay > CONMUX_KEEP - 2000 && replay <= CONMUX_KEEP + 100);
    term_close(late);
}

/* A guest that does not read its port: typing is thrown away in the end, and Ctrl-] still works. */
static void deaf_guest(void **state)
{
    make("a", "");
    must("start a");
    struct term *t = term_open();
    term_command(t, "console a");
    term_expect(t, "# ");
    term_command(t, "deaf");
    term_expect(t, "deaf\r\n# ");
    static char much[CONMUX_CHAN + 3000];
    memset(much, 'x', sizeof much - 1);
    term_type(t, much);
    term_type(t, "\x1d");
    term_expect(t, "joist> ");
    term_close(t);
}

/* ---- Several operators at once ---- */
struct hammer { unsigned seed; unsigned rounds; };

static void hammer(void *arg)
{
    static const char *const lines[] = {
        "start a", "kill a", "vm reset a", "vm pause a", "vm resume a", "stop a --timeout 50ms --kill", "vm show a --cpu",
        "vm stats a", "vm list", "vm log a", "vm rm a -y",
        "vm create a --kernel vmlinuz --mem 64M --start", "vm rename a b", "vm rename b a", "vm set a --cpus 3",
        "vm reboot a --timeout 50ms --kill", "vm wait a --timeout 5ms", "kill a b",
        "vm dump b", "vm rm b -y", "start b", "vm show b --json",
    };
    struct hammer *h = arg;
    struct session_params p = { .tty = chan_create(1 << 16), .err = chan_create(1 << 16), .side = CHAN_USER };
    struct session *s = session_new(&p);
    char drop[4096];
    for (unsigned i = 0; i < h->rounds; i++) {
        h->seed = h->seed * 1103515245 + 12345;
        session_exec(s, lines[(h->seed >> 16) % ARRAY_SIZE(lines)]);
        while (chan_read(p.tty, CHAN_DEV, drop, sizeof drop) || chan_read(p.err, CHAN_DEV, drop, sizeof drop))
            ;
    }
    session_free(s);
    chan_destroy(p.tty);
    chan_destroy(p.err);
}

static void many_operators(void **state)
{
    struct hammer h[4];
    struct thread *t[4];
    for (unsigned i = 0; i < 4; i++) {
        h[i] = (struct hammer){ 7 + i, 400 };
        t[i] = thread_start("hammer", hammer, &h[i]);
    }
    for (unsigned i = 0; i < 4; i++)
        thread_join(t[i]);
    remove_all();
    assert_int_equal(fake_host.machines, 0);
    assert_int_equal(fake_host.ram_left, 6ull << 30);
}

static void remove_while_attached(void **state)
{
    make("a", "");
    must("start a");
    struct term *t = term_open(), *u = term_open();
    term_command(t, "console a");
    term_expect(t, "# ");
    term_command(u, "vm wait a");
    must("kill a; vm rm a -y; vm create a --kernel initrd");
    term_expect(t, "VM \"a\" is stopped: killed\r\njoist> ");
    term_expect(u, "joist> ");
    term_close(t);
    term_close(u);
}

/* The terminal goes away in the middle of everything. */
static void hang_up(void **state)
{
    static const char *const lines[] = { "vm wait a", "console a", "host top", "vm rm a", "stop a", "vm lis", "help --markdown" };
    make("a", "");
    must("start a");
    for (unsigned i = 0; i < ARRAY_SIZE(lines); i++) {
        struct term *t = term_open_with((struct session_params){ 0 }, 64);
        for (const char *k = lines[i]; *k; term_take(t))
            k += chan_write(t->tty, CHAN_DEV, k, 1);
        chan_write(t->tty, CHAN_DEV, "\r", 1);
        term_close(t);
    }
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fresh, clean)
    const struct CMUnitTest tests[] = {
        T(life), T(start_failures), T(endings), T(interrupted), T(console), T(slow_terminal), T(deaf_guest), T(many_operators),
        T(remove_while_attached), T(hang_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
