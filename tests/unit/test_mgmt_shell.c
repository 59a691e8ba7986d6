/* The shell as an operator or a script meets it: grammar, answers, exit codes, JSON, completion, help, prompts. */
#include "mgmt/cmd.h"
#include "tests/mgmt/term.h"

static void define_web1(void)
{
    assert_int_equal(sh("vm create web1 --kernel vmlinuz --initrd initrd --cpus 2 --mem 1G --disk debian/root.img"), 0);
}

static void grammar(void **state)
{
    static const struct { const char *line; int code; const char *says; } c[] = {
        { "", 0, "" }, { "   ", 0, "" }, { "# vm list", 0, "" }, { ";;;", 0, "" }, { "vm li", 0, "" }, { "list", 0, "" },
        { "li", 0, "" }, { "im li", 0, "" },
        { "vm", 2, "vm needs a verb" }, { "vm --json", 2, "" }, { "vmm list", 2, "did you mean vm?" },
        { "vm lost", 2, "did you mean list?" }, { "vm foo", 2, "help vm lists the vm commands" }, { "xyzzy", 2, "help lists the commands" },
        { "h", 2, "can mean host, help, history" }, { "vm st web1", 2, "can mean start, stop, stats" },
        { "disk list", 9, "disk commands are not there yet" },
        { "vm list extra", 2, "\"extra\" is too much here" }, { "vm show", 2, "vm show needs NAME" },
        { "vm show a b", 2, "too much" }, { "vm list --bogus", 2, "no flag \"bogus\"" },
        { "vm list -z", 2, "no flag -z" }, { "vm create x --kernl y", 2, "did you mean --kernel?" },
        { "vm create x --c 1", 2, "can mean cpus, cmdline, cpu-weight, cpu-cap, com2" },
        { "vm create x --cpus", 2, "--cpus needs a value: --cpus N" },
        { "vm create x --cpus 1 --cpus 2", 2, "--cpus is given twice" },
        { "vm list --json=1", 2, "" }, { "vm list \"open", 2, "quote \" is not closed" },
        { "vm list 'open", 2, "quote ' is not closed" },
        { "vm create x --hpet=maybe", 2, "--hpet takes true or false" },
        { "vm create x --no-hpet=1", 2, "--no-hpet takes no value" },
        { "vm wait x --timeout soon", 2, "takes a time" }, { "vm wait x --for ever", 2, "possible: stopped, running, paused" },
        { "host log -n x", 2, "whole number" },
        { "destroy", 2, "did you mean vm kill (power off) or vm rm (delete)?" },
        { "vm destroy web1", 2, "did you mean vm kill web1 (power off) or vm rm web1 (delete)?" },
        { "destroy web1", 2, "vm kill web1" }, { "vm list -o name,colour", 2, "no column \"colour\"" },
        { "vm list -o \"\"", 0, "" }, { "vm show nobody", 3, "vm list shows" },
        { "help nonsense", 2, "no command" }, { "help vm nonsense", 2, "no vm command" }, { "exit", 0, "" },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(c); i++) {
        int code = sh(c[i].line);
        if (code != c[i].code || !strstr(sh_err, c[i].says))
            fail_msg("\"%s\" gave %d: %s%s", c[i].line, code, sh_out, sh_err);
        if (code && !strstr(c[i].line, "--json"))
            assert_string_equal(sh_out, "");                /* data on stdout, messages on stderr */
    }
}

static void quoting(void **state)
{
    assert_int_equal(sh("vm create q1 --kernel=vmlinuz --cmdline 'a \"b\" ; c' ; vm create q2 --kernel vm\"lin\"uz --cmdline \"x "
                        "\\\" 'y' #z\" # end"),
                     0);
    sh("vm show q1 --toml");
    assert_has(sh_out, "cmdline = \"a \\\"b\\\" ; c\"\n");
    sh("vm show q2 --toml");
    assert_has(sh_out, "cmdline = \"x \\\" 'y' #z\"\n");
}

static void create(void **state)
{
    static const struct { const char *line; int code; const char *says; } c[] = {
        { "vm create web1 --kernel vmlinuz", 4, "VM \"web1\" exists already" }, { "vm create", 2, "no name" },
        { "vm create x", 2, "no kernel to boot" },
        { "vm create x --kernel vmlinux", 3, "did you mean \"vmlinuz\"?" },
        { "vm create x --kernel vmlinuz --initrd nope", 3, "no image \"nope\"" },
        { "vm create x --kernel vmlinuz --disk nope", 3, "no image" },
        { "vm create x --kernel vmlinuz --cpus 33", 2, "from 1 to 32" },
        { "vm create x --kernel vmlinuz --mem 1.2M", 2, "whole MiB" },
        { "vm create x --kernel vmlinuz --mem lots", 2, "size such as" },
        { "vm create 7up --kernel vmlinuz", 2, "no name for a VM" },
        { "vm create x --firmware uefi", 9, "not there yet" },
        { "vm create x --kernel vmlinuz --on-crash burn", 2, "possible: reset, stop" },
        { "vm create -f nope.toml", 3, "no image" },
        { "vm create -f bad.toml", 2, "bad.toml line 3: there is no key \"memory\"" },
        { "vm create -f broken.img", 8, "damaged" },
        { "vm create -f vmlinuz", 2, "vmlinuz line 1" },
    };
    define_web1();
    assert_has(sh_err, "VM \"web1\" defined");
    assert_has(sh_err, "writes to images of the store go to RAM");
    for (unsigned i = 0; i < ARRAY_SIZE(c); i++) {
        int code = sh(c[i].line);
        if (code != c[i].code || !strstr(sh_err, c[i].says))
            fail_msg("\"%s\" gave %d: %s%s", c[i].line, code, sh_out, sh_err);
    }
    assert_int_equal(sh("vm create -f web2.toml --cpus 7 --no-hpet"), 0);
    sh("vm show web2 --toml");
    assert_has(sh_out, "name = \"web2\"\ncpus = 7\nmem = \"1G\"\n");
    assert_has(sh_out, "hpet = false\n");
    assert_has(sh_out, "[[disk]]\nimage = \"debian/root.img\"\n");
    assert_int_equal(sh("vm create renamed -f web2.toml"), 0);
    assert_int_equal(sh("vm list -q"), 0);
    assert_string_equal(sh_out, "renamed\nweb1\nweb2\n");
}

/* What vm show --toml prints defines the same VM again. */
static void toml_round_trip(void **state)
{
    static char text[8192];
    assert_int_equal(sh("vm create a --kernel vmlinuz --cmdline 'x \"y\" \\ z' --cpus 3 --mem 1537M --on-crash stop --autostart "
                        "--cpu-cap 150 --debug-exit"
                        " --disk debian/root.img,read-only,serial=S1 --disk initrd"),
                     0);
    sh("vm show a --toml");
    strcpy(text, sh_out);
    sh("vm rm a -y");
    fake_image("again.toml", text, strlen(text), false);
    assert_int_equal(sh("vm create -f again.toml"), 0);
    sh("vm show a --toml");
    assert_string_equal(sh_out, text);
    /* and so does the JSON twin */
    assert_int_equal(sh("vm show a --json"), 0);
    char *config = strstr(sh_out, "\"config\":") + strlen("\"config\":");
    static char json[8192];
    snprintf(json, sizeof json, "%.*s", (int)(json_skip(config) - config), config);
    sh("vm rm a -y");
    fake_image("again.json", json, strlen(json), false);
    assert_int_equal(sh("vm create -f again.json"), 0);
    sh("vm show a --toml");
    assert_string_equal(sh_out, text);
}

static void set_and_rename(void **state)
{
    define_web1();
    assert_int_equal(sh("vm set web1"), 2);
    assert_int_equal(sh("vm set web1 --mem 2G --autostart --disk initrd,read-only"), 0);
    sh("vm show web1 --toml");
    assert_has(sh_out, "mem = \"2G\"\n");
    assert_has(sh_out, "autostart = true\n");
    assert_has(sh_out, "image = \"initrd\"");
    assert_lacks(sh_out, "root.img");
    assert_int_equal(sh("vm set web1 --mem 2G --kernel nope"), 3);      /* all or nothing */
    assert_int_equal(sh("vm set web1 --no-disks --no-autostart"), 0);
    sh("vm show web1 --toml");
    assert_lacks(sh_out, "[[disk]]");
    assert_has(sh_out, "kernel = \"vmlinuz\"");
    assert_int_equal(sh("vm rename web1 -x"), 2);
    assert_int_equal(sh("vm rename web1 9x"), 2);
    assert_int_equal(sh("vm create db --kernel vmlinuz; vm rename web1 db"), 4);
    assert_int_equal(sh("vm rename web1 web9"), 0);
    sh("vm list -q");
    assert_string_equal(sh_out, "db\nweb9\n");
    assert_int_equal(sh("start web9; vm set web9 --cpus 8"), 0);
    assert_has(sh_err, "in force when it is stopped and started again");
    assert_int_equal(fake_host.shares_set, 0);
    assert_int_equal(sh("vm set web9 --cpu-weight 300 --cpu-cap 50"), 0);       /* at once */
    assert_lacks(sh_err, "in force");
    assert_int_equal(fake_host.shares_set, 1);
    assert_int_equal(sh("vm rename web9 web1"), 4);
    assert_has(sh_err, "is running");
}

static void questions(void **state)
{
    define_web1();
    assert_int_equal(sh("vm rm web1"), 2);
    assert_has(sh_err, "add -y");
    assert_int_equal(sh("vm rm nope -y"), 3);
    struct term *t = term_open();
    term_command(t, "vm rm web1");
    term_expect(t, "Remove VM \"web1\" with its log? [y/N] ");
    term_command(t, "n");
    term_expect(t, "nothing was done\r\n");
    term_expect(t, "joist> ");
    term_command(t, "vm rm web1");
    term_expect(t, "[y/N] ");
    term_type(t, "\x03");
    term_expect(t, "joist> ");
    term_command(t, "vm rm web1");
    term_expect(t, "[y/N] ");
    term_command(t, "yes");
    term_expect(t, "VM \"web1\" removed\r\njoist> ");
    term_close(t);
    assert_int_equal(sh("vm show web1"), 3);
}

/* Every command answers --json with one object, whatever happens. */
static void json(void **state)
{
    static const char *const lines[] = {
        "vm list", "vm list -o nonsense", "vm show web1", "vm show web1 --toml", "vm show web1 --cpu", "vm show x", "vm create x",
        "vm create y --kernel vmlinuz", "vm set web1 --cpus 2",
        "vm set web1", "vm rename y z", "vm rm z -y", "vm rm web1", "vm start web1 nope", "vm start web1",
        "vm wait web1 --for running", "vm stats web1", "vm dump web1", "vm log web1", "vm pause web1",
        "vm resume web1", "vm reset web1", "vm console web1", "vm reboot web1", "vm stop web1", "vm kill web1", "image list",
        "host info", "host cpu", "host mem", "host pci", "host log",
        "host top --interval 10ms", "host time", "host poweroff", "host reboot", "help", "help vm", "help vm create",
        "help --markdown", "version", "history", "exit", "vm start --help", "vm", "bogus",
        "vm show 'a\"b\\c\td'", "vm create 'x\"\x01\xff'", "\"unclosed",
    };
    char line[200];
    define_web1();
    for (unsigned i = 0; i < ARRAY_SIZE(lines); i++) {
        snprintf(line, sizeof line, "--json");
        snprintf(line, sizeof line, lines[i][0] == '"' ? "--json %s" : "%s --json", lines[i]);
        int code = sh(line);
        if (!*sh_out)
            fail_msg("\"%s\" printed nothing; stderr: %s", line, sh_err);
        assert_json(sh_out);
        assert_string_equal(sh_err, "");
        char want[60];
        snprintf(want, sizeof want, "{\"schema\":1,\"error\":{\"code\":%d,\"message\":\"", code);
        if (code)
            assert_has(sh_out, want);
        else
            assert_lacks(sh_out, "\"error\":{");
    }
    sh("vm list --json");
    assert_has(sh_out, "\"name\":\"web1\",\"state\":\"stopped\",\"cpus\":2,\"mem\":1073741824,");
}

static void columns(void **state)
{
    define_web1();
    assert_int_equal(sh("vm list"), 0);
    assert_string_equal(sh_out, "NAME  STATE    CPUS  MEM  UPTIME\nweb1  stopped     2   1G       -\n");
    sh("vm list -o mem,name");
    assert_string_equal(sh_out, "MEM  NAME\n 1G  web1\n");
    sh("vm list -qo mem");
    assert_has(sh_err, "no flag -qo");
    sh("vm list -q -o mem,name");
    assert_string_equal(sh_out, "1G  web1\n");
    sh("image list");
    assert_has(sh_out, "debian/root.img    64K  ok\n");
    assert_has(sh_out, "broken.img          4K  damaged\n");
    sh("image list -q");
    assert_has(sh_out, "vmlinuz\ninitrd\n");
}

static void host(void **state)
{
    fake_log(0, "disk", "an error");
    fake_log(2, "net", "some news");
    fake_log(3, "net", "a detail");
    assert_int_equal(sh("host log"), 0);
    assert_has(sh_out, "error  disk  an error\n");
    assert_has(sh_out, "info   net   some news\n");
    assert_lacks(sh_out, "detail");
    sh("host log -n 1 --level debug");
    assert_has(sh_out, "a detail");
    assert_lacks(sh_out, "news");
    sh("host log --previous");
    assert_has(sh_err, "nothing was kept");
    sh("host info");
    assert_has(sh_out, "virtualization:  AMD-V\n");
    fake_host.no_hv = true;
    sh("host info");
    assert_has(sh_out, "why-not:         the firmware has switched AMD-V off; enable SVM in its setup\n");
    define_web1();
    assert_int_equal(sh("vm start web1"), 9);
    assert_has(sh_err, "enable SVM in its setup");
    sh("host top --interval 20ms");
    assert_has(sh_out, "web1/vcpu0");
    sh("host pci; host cpu; host mem; host time");
    assert_has(sh_out, "0000:00:03.0");
}

static void power(void **state)
{
    define_web1();
    assert_int_equal(sh("vm start web1; host poweroff"), 1);         /* the fake cannot; by then no VM runs */
    assert_int_equal(fake_host.poweroffs, 1);
    assert_int_equal(fake_host.machines, 0);
    assert_has(sh_err, "shutting down 1 VM\n");
    assert_int_equal(sh("vm start web1; host reboot --now"), 1);
    assert_int_equal(fake_host.reboots, 1);
    assert_has(sh_err, "killing VM \"web1\"");
    assert_int_equal(sh("vm wait web1 --timeout 5"), 0);
}

static void help(void **state)
{
    sh("help");
    assert_has(sh_out, "vm create      Define a VM\n");
    sh("help host");
    assert_lacks(sh_out, "vm create");
    sh("help vm create");
    static char first[8192];
    strcpy(first, sh_out);
    assert_has(first, "--cpu-weight N");
    assert_has(first, "example: vm create web1");
    sh("vm create --help");
    assert_string_equal(sh_out, first);
    sh("help start");
    assert_has(sh_out, "usage: vm start NAME... [--flags]");
    sh("help --markdown");
    for (unsigned i = 0; i < cmd_table_size; i++) {
        char title[60];
        snprintf(title, sizeof title, "### %s%s%s\n", cmd_table[i].noun, cmd_table[i].verb ? " " : "",
                 cmd_table[i].verb ? cmd_table[i].verb : "");
        assert_has(sh_out, title);
    }
    assert_has(sh_out, "| `cpu-cap` | number |");
}

static void completion(void **state)
{
    static const struct { const char *typed, *line; } c[] = {
        { "ve\t", "version " }, { "vm cr\t", "vm create " }, { "vm sta\tr\t", "vm start " }, { "start w\t1", "start web1" },
        { "vm show web1 --t\t", "vm show web1 --toml " },
        { "vm create x --kernel deb\tv\t", "vm create x --kernel debian/vmlinuz " },
        { "vm create x --kernel=vm\t", "vm create x --kernel=vmlinuz " },
        { "vm create x --on-c\tr\t", "vm create x --on-crash reset " },
        { "vm wait web1 --for st\t", "vm wait web1 --for stopped " }, { "list; host po\t", "list; host poweroff " },
        { "help vm cons\t", "help vm console " },
        { "vm create x --cmdline \"a b\" --mem 1G --init\t", "vm create x --cmdline \"a b\" --mem 1G --initrd " },
        { "vm create x --kernel \"deb\t", "vm create x --kernel \"debian/" }, { "image l\t", "image list " },
        { "vm show web1 \t\tcp\t", "vm show web1 --cpu " }, { "zzz\t", "zzz" },
        { "vm zzz\t", "vm zzz" }, { "\x03;ho\ti\t", ";host info " },
        { "vm create x --debug-exit --no-h\t", "vm create x --debug-exit --no-h" },
        { "host cp\t", "host cpu " }, { "vm console web1 --port v\t", "vm console web1 --port virtio " },
        { "vm kill web1 w\t", "vm kill web1 web" },
    };
    define_web1();
    assert_int_equal(sh("vm create web2 --kernel vmlinuz"), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(c); i++) {
        struct term *t = term_open();
        term_expect(t, "joist> ");
        term_type(t, c[i].typed);
        term_type(t, "\x1b[H!\r");      /* a line that the history shows */
        term_expect(t, "\njoist> ");
        term_command(t, "history");
        char want[120];
        snprintf(want, sizeof want, "1  !%s\r\n", c[i].line);
        for (size_t n = strlen(want) - 3; want[n] == ' '; n--)
            ;
        term_expect(t, "NUMBER");
        term_expect(t, "2  history");
        if (!strstr(t->text, want))
            fail_msg("\"%s\" became:\n%s", c[i].typed, t->text);
        term_close(t);
    }
}

static void help_in_place(void **state)
{
    define_web1();
    struct term *t = term_open_with((struct session_params){ .cols = 100, .banner = "Hello\n" }, 4096);
    term_expect(t, "Hello\r\njoist> ");
    term_type(t, "vm ?");
    term_expect(t, "create   Define a VM\r\n");
    term_expect(t, "joist>\b> vm ");
    term_type(t, "start ?");
    term_expect(t, "web1       stopped\r\n");
    term_type(t, "\x15vm create x --mem ?");
    term_expect(t, "SIZE  memory, whole MiB: 512M, 4G\r\n");
    term_type(t, "\x15\t");
    term_expect(t, "host     This machine\r\n");
    term_close(t);
}

static void typing(void **state)
{
    struct term *t = term_open();
    term_expect(t, "joist> ");
    term_command(t, "version");
    term_expect(t, "version\r\njoist:  0.1\r\njoist> ");
    term_command(t, "version; nonsense; vm list -q");
    term_expect(t, "joist:  0.1\r\nerror: there is no command \"nonsense\"\r\n");
    term_expect(t, "joist> ");
    term_type(t, "abc\x03");
    term_expect(t, "abc^C\r\njoist> ");
    term_command(t, "exit");
    while (!atomic_load(&t->ended))
        event_wait_until(&t->out, clock_ns() + 1000000);
    term_close(t);
    t = term_open_with((struct session_params){ .console = true }, 4096);
    term_command(t, "exit");
    term_expect(t, "this console stays");
    term_type(t, "\x04");
    term_expect(t, "this console stays");
    term_expect(t, "joist> ");
    assert_int_equal(t->s->code, 0);
    term_close(t);
}

/* Log lines come between prompt and typing, and the line typed so far comes back. */
static void log_lines(void **state)
{
    struct term *t = term_open_with((struct session_params){ .console = true, .log_level = 1 }, 4096);
    term_expect(t, "joist> ");
    term_type(t, "ver");
    term_expect(t, "ver");
    fake_log(2, "net", "too talkative");
    fake_log(1, "net", "link lost");
    event_post(&t->s->wake);
    term_expect(t, "warning: net: link lost\r\njoist>\b> ver");
    term_command(t, "sion");
    term_expect(t, "0.1\r\njoist> ");
    assert_null(strstr(t->text, "talkative"));
    term_close(t);
}

/* A terminal that does not read stalls its own session only; Ctrl-C drops what was still to come. */
static void stuck_terminal(void **state)
{
    struct term *t = term_open_with((struct session_params){ .cols = 80 }, 256);
    for (const char *k = "help --markdown\r"; *k;)
        k += chan_write(t->tty, CHAN_DEV, k, 1);
    uint64_t until = clock_ns() + 10000000000ull;
    while (chan_readable(t->tty, CHAN_DEV) < 256 && clock_ns() < until)
        thread_yield();
    assert_int_equal(sh("vm list"), 0);
    chan_write(t->tty, CHAN_DEV, "\x03", 1);
    term_expect(t, "^C\r\njoist> ");
    assert_true(t->len < 4096);
    term_close(t);
}

static void progress(void **state)
{
    struct session_params p = { .tty = chan_create(1 << 16), .err = chan_create(1 << 16), .side = CHAN_USER };
    struct session *s = session_new(&p);
    session_progress(s, "copy", 0, 200);
    session_progress(s, "copy", 24, 200);                          /* too soon after the first */
    session_progress(s, "copy", 200, 200);
    sh_err[chan_read(p.err, CHAN_DEV, sh_err, sizeof sh_err - 1)] = 0;
    assert_string_equal(sh_err, "copy 0 %\ncopy 100 %\n");
    s->p.interactive = true;
    session_progress(s, "copy", 1, 4);
    session_msg(s, "note\n");
    sh_err[chan_read(p.err, CHAN_DEV, sh_err, sizeof sh_err - 1)] = 0;
    assert_string_equal(sh_err, "\rcopy [##########                              ]  25 %\r\nnote\r\n");
    assert_int_equal(chan_readable(p.tty, CHAN_DEV), 0);
    session_free(s);
    chan_destroy(p.tty);
    chan_destroy(p.err);
}

/* Whatever allocation fails, a command ends with an answer. */
static void no_memory(void **state)
{
    void port_fail_alloc_after(int n);
    static const char *const lines[] = { "vm list", "vm create m --kernel vmlinuz --start", "vm show m", "vm show m --json", "vm stats m", "vm kill m", "vm rm m -y", "help --markdown", "host info --json", "host top --interval 10ms" };
    for (unsigned l = 0; l < ARRAY_SIZE(lines); l++)
        for (int n = 0; n < 40; n++) {
            struct session_params p = { .tty = chan_create(1 << 20), .side = CHAN_USER };
            struct session *s = session_new(&p);
            port_fail_alloc_after(n);
            int code = session_exec(s, lines[l]);
            port_fail_alloc_after(-1);
            sh_out[chan_read(p.tty, CHAN_DEV, sh_out, sizeof sh_out - 1)] = 0;
            if (code && !*sh_out)
                fail_msg("\"%s\" ended with %d and said nothing when allocation %d failed", lines[l], code, n);
            session_free(s);
            chan_destroy(p.tty);
        }
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fresh, clean)
    const struct CMUnitTest tests[] = {
        T(grammar), T(quoting), T(create), T(toml_round_trip), T(set_and_rename), T(questions), T(json), T(columns), T(host),
        T(power), T(help), T(completion),
        T(help_in_place), T(typing), T(log_lines), T(stuck_terminal), T(progress), T(no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
