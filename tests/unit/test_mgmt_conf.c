/* Definition files, sizes and times, options. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "mgmt/option.h"
#include "mgmt/units.h"
#include "mgmt/vmdef.h"

static struct vmdef def;
static struct fail fail;

static int read_text(const char *text)
{
    vmdef_init(&def);
    memset(&fail, 0, sizeof fail);
    return vmdef_read(&def, text, strlen(text), "f.toml", &fail);
}

static void sizes(void **state)
{
    static const struct { const char *text; uint64_t bytes; } good[] = {
        { "0", 0 }, { "4096", 4096 }, { "512M", 512ull << 20 }, { "4G", 4ull << 30 }, { "1.5T", 3ull << 39 }, { "1k", 1024 },
        { "2GiB", 2ull << 30 },
        { "0x1000", 4096 }, { "1_000", 1000 }, { "15E", 15ull << 60 }, { "0.5K", 512 }, { "12B", 12 },
    };
    static const char *const bad[] = { "", "M", "-1", "1Q", "1.M", "16E", "99999999999999999999", "1 G", "1GG", "0x", "1e3", "18014398509481984K", "2 M", "2 ", ".5G", "1_" };
    uint64_t v;
    for (unsigned i = 0; i < ARRAY_SIZE(good); i++) {
        assert_true(parse_size(good[i].text, &v));
        assert_int_equal(v, good[i].bytes);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
        if (parse_size(bad[i], &v))
            fail_msg("\"%s\" was taken as %lu", bad[i], (unsigned long)v);
}

static void size_text(void **state)
{
    char b[32];
    uint64_t v;
    assert_string_equal(format_size(b, 1023), "1023");
    assert_string_equal(format_size(b, 1536), "1.5K");
    assert_string_equal(format_size(b, 3ull << 39), "1.5T");
    assert_string_equal(format_size_exact(b, 1536ull << 20), "1536M");
    for (unsigned i = 0; i < 2000; i++) {
        uint64_t n = ((uint64_t)random() << 31 ^ (uint64_t)random()) << (random() % 20) & (UINT64_MAX >> (random() % 60));
        assert_true(parse_size(format_size_exact(b, n), &v));
        assert_int_equal(v, n);
    }
}

static void durations(void **state)
{
    uint64_t v;
    char b[32];
    assert_true(parse_duration("60", &v) && v == 60000000000ull);
    assert_true(parse_duration("500ms", &v) && v == 500000000);
    assert_true(parse_duration("1.5h", &v) && v == 5400000000000ull);
    assert_true(parse_duration("2m", &v) && v == 120000000000ull);
    assert_true(parse_duration("7us", &v) && v == 7000);
    assert_false(parse_duration("5 m", &v) || parse_duration("", &v) || parse_duration("5w", &v) ||
                 parse_duration("999999999999d", &v));
    assert_string_equal(format_duration(b, 273600000000000ull), "3d 4h");
    assert_string_equal(format_duration(b, 725000000000ull), "12m 5s");
    assert_string_equal(format_duration(b, 1240000000), "1.24s");
    assert_string_equal(format_duration(b, 350000), "350us");
    assert_string_equal(format_utc(b, 0), "1970-01-01T00:00:00Z");
    assert_string_equal(format_utc(b, 951782400ull * 1000000000), "2000-02-29T00:00:00Z");
    assert_string_equal(format_utc(b, 1798761599ull * 1000000000), "2026-12-31T23:59:59Z");
}

static void distance(void **state)
{
    assert_int_equal(name_distance("vmlinuz", "vmlinux", 3), 1);
    assert_int_equal(name_distance("web1", "wbe1", 3), 1);
    assert_int_equal(name_distance("", "abc", 9), 3);
    assert_int_equal(name_distance("abcdef", "uvwxyz", 3), 4);
}

static void utf8(void **state)
{
    unsigned w;
    assert_int_equal(utf8_char("\xc3\xbc", 2, &w), 2);
    assert_int_equal(utf8_char("\xe6\x97\xa5", 3, &w), 3);
    assert_int_equal(w, 2);
    static const char *const bad[] = { "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\x80", "\xc3", "\xc2\x9b", "\xff" };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(utf8_char(bad[i], strlen(bad[i]), &w), 0);
}

static const char full[] =
    "# a web server\r\n"
    "name = \"web1\"   # its name\n"
    "cpus = 2\n"
    "mem = \"2G\"\n"
    "firmware = 'kernel'\n"
    "kernel = \"debian/vmlinuz\"\n"
    "\"initrd\" = \"debian/initrd\"\n"
    "cmdline = \"console=ttyS0 a=\\\"b c\\\" \\u00fc\\\\\"\n"
    "autostart = true\n"
    "on-crash = \"stop\"\n"
    "cpu-weight = 1_000\n"
    "cpu-cap = 0x32\n"
    "\n"
    "[[disk]]\n"
    "image = \"debian/root.img\"\n"
    "bus = \"virtio\"\n"
    "[[ disk ]]\n"
    "image = 'b\\c.img'\n"
    "read-only = true\n"
    "serial = \"S1\"";

static void toml(void **state)
{
    assert_int_equal(read_text(full), 0);
    assert_string_equal(def.name, "web1");
    assert_int_equal(def.cpus, 2);
    assert_int_equal(def.mem, 2ull << 30);
    assert_string_equal(def.initrd, "debian/initrd");
    assert_string_equal(def.cmdline, "console=ttyS0 a=\"b c\" \xc3\xbc\\");
    assert_true(def.autostart);
    assert_int_equal(def.on_crash, 1);
    assert_int_equal(def.weight, 1000);
    assert_int_equal(def.cap, 50);
    assert_int_equal(def.ndisks, 2);
    assert_string_equal(def.disks[1].image, "b\\c.img");
    assert_true(def.disks[1].read_only && !def.disks[0].read_only);
}

static void round_trip(void **state)
{
    struct buf b;
    struct json j;
    struct vmdef first;
    assert_int_equal(read_text(full), 0);
    first = def;
    buf_init(&b, 1 << 16);
    vmdef_toml(&first, &b);
    assert_int_equal(read_text(b.p), 0);
    assert_memory_equal(&def, &first, sizeof def);
    buf_free(&b);
    json_begin(&j, &b);
    vmdef_json(&first, &j, NULL);
    assert_int_equal(read_text(b.p), 0);
    assert_memory_equal(&def, &first, sizeof def);
    buf_free(&b);
}

static void json_in(void **state)
{
    assert_int_equal(read_text(" { \"name\": \"j\", \"cpus\" : 3,\n \"mem\":1073741824, \"hpet\": false, \"cmdline\": "
                               "\"\\ud83d\\ude00\\/\",\n"
                               "\"disk\": [ {\"image\":\"a\"}, {\"image\":\"b\",\"read-only\":true} ] , \"kernel\":\"k\" }\n"),
                     0);
    assert_string_equal(def.cmdline, "\xf0\x9f\x98\x80/");
    assert_int_equal(def.ndisks, 2);
    assert_true(!def.hpet && def.disks[1].read_only);
    assert_string_equal(def.kernel, "k");
    assert_int_equal(read_text("{}"), 0);
}

static void errors(void **state)
{
    static const struct { const char *text; int code; const char *says; } bad[] = {
        { "name = \"a\"\ncpus = 1\nmemory = 3\n", EX_USAGE, "f.toml line 3: there is no key \"memory\"; did you mean mem?" },
        { "\n\ncpus = \"2\"", EX_USAGE, "line 3: cpus takes a whole number" },
        { "cpus = 33", EX_USAGE, "line 1: cpus must be from 1 to 32" },
        { "cpus = -1", EX_USAGE, "line 1: \"-1\" is no whole number" },
        { "cpus = 1.5", EX_USAGE, "no whole number" },
        { "mem = \"100K\"", EX_USAGE, "mem must be from 1M to 16T" },
        { "mem = 1048577", EX_USAGE, "whole MiB" },
        { "autostart = \"yes\"", EX_USAGE, "autostart takes true or false" },
        { "on-crash = \"explode\"", EX_USAGE, "possible: reset, stop" },
        { "firmware = \"uefi\"", EX_UNSUPPORTED, "not there yet" },
        { "name = \"1x\"", EX_USAGE, "no name for a VM" },
        { "name = \"a\"\nname = \"b\"", EX_USAGE, "line 2: name is given twice" },
        { "name = \"a", EX_USAGE, "no closing" },
        { "name = \"a\" x", EX_USAGE, "unexpected text" },
        { "name", EX_USAGE, "needs = and a value" },
        { "name = web", EX_USAGE, "text needs quotes" },
        { "name = ", EX_USAGE, "has no value" },
        { "[vm]\n", EX_USAGE, "[table] is not used" },
        { "[[disk]\n", EX_USAGE, "needs ]]" },
        { "[[net]]\nnet = \"lan\"", EX_UNSUPPORTED, "[[net]] is not there yet" },
        { "[[dsik]]\n", EX_USAGE, "no section [[dsik]]" },
        { "[[disk]]\nbus = \"virtio\"", EX_USAGE, "last disk has no image" },
        { "[[disk]]\n[[disk]]\n", EX_USAGE, "line 2: the disk above has no image" },
        { "[[disk]]\nimage = \"a\"\nbus = \"nvme\"", EX_UNSUPPORTED, "not there yet" },
        { "cmdline = [1]", EX_USAGE, "arrays" },
        { "cmdline = \"\\q\"", EX_USAGE, "unknown escape" },
        { "cmdline = \"\\ud800\"", EX_USAGE, "names no character" },
        { "cmdline = \"\x01\"", EX_USAGE, "byte 0x01" },
        { "cmdline = \"\xff\"", EX_USAGE, "byte 0xff" },
        { "cmdline = \"a\\nb\"", EX_USAGE, "control characters" },
        { "= 3", EX_USAGE, "a key is missing" },
        { "{\"name\" \"x\"}", EX_USAGE, "needs :" },
        { "{\"name\": \"x\",}", EX_USAGE, "key in double quotes" },
        { "{\"name\": \"x\"} {", EX_USAGE, "after the closing" },
        { "{\"disk\": {}}", EX_USAGE, "object is not used" },
        { "{\"disk\": [1]}", EX_USAGE, "array of objects" },
        { "{\"disk\": [{\"image\": [] }]}", EX_USAGE, "array is not used" },
        { "{\"name\":\n\n'x'}", EX_USAGE, "line 3: JSON strings" },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        int code = read_text(bad[i].text);
        if (code != bad[i].code || !strstr(fail.message, bad[i].says))
            fail_msg("%s\ngave %d: %s", bad[i].text, code, fail.message);
    }
}

static void long_things(void **state)
{
    char text[6000];
    memset(text, 'a', sizeof text);
    memcpy(text, "cmdline = \"", 11);
    text[11 + 2047] = '"', text[11 + 2048] = 0;
    assert_int_equal(read_text(text), 0);
    assert_int_equal(strlen(def.cmdline), 2047);
    text[11 + 2047] = 'a', text[11 + 2048] = '"', text[11 + 2049] = 0;
    assert_int_equal(read_text(text), EX_USAGE);
    assert_non_null(strstr(fail.message, "cmdline is too long: at most 2047 bytes"));
    text[11 + 2048] = 'a', text[11 + 2049] = 'a', text[5998] = '"', text[5999] = 0;
    assert_int_equal(read_text(text), EX_USAGE);
    assert_non_null(strstr(fail.message, "string too long"));
    char disks[17 * 40] = "";
    for (unsigned i = 0; i < 17; i++)
        strcat(disks, "[[disk]]\nimage = \"x\"\n");
    assert_int_equal(read_text(disks), EX_USAGE);
    assert_non_null(strstr(fail.message, "line 33: a VM has at most 16 disks"));
}

static void flags(void **state)
{
    vmdef_init(&def);
    assert_int_equal(vmdef_flag(&def, "mem", "1.5G", &fail), 0);
    assert_int_equal(def.mem, 1536ull << 20);
    assert_int_equal(vmdef_flag(&def, "cpus", "4", &fail), 0);
    assert_int_equal(vmdef_flag(&def, "hpet", "off", &fail), 0);
    assert_false(def.hpet);
    assert_int_equal(vmdef_flag(&def, "disk", "a/b.img", &fail), 0);
    assert_int_equal(vmdef_flag(&def, "disk", "image=c.img,read-only,serial=X,bus=virtio", &fail), 0);
    assert_int_equal(vmdef_flag(&def, "disk", "d.img,read-only=false", &fail), 0);
    assert_int_equal(def.ndisks, 3);
    assert_true(def.disks[1].read_only && !def.disks[2].read_only);
    assert_string_equal(def.disks[2].image, "d.img");
    assert_int_equal(vmdef_flag(&def, "disk", "read-only=true", &fail), EX_USAGE);
    assert_int_equal(vmdef_flag(&def, "disk", "", &fail), EX_USAGE);
    assert_int_equal(vmdef_flag(&def, "disk", "x,colour=red", &fail), EX_USAGE);
    assert_int_equal(vmdef_flag(&def, "disk", "x,serial=123456789012345678901", &fail), EX_USAGE);
    assert_int_equal(def.ndisks, 3);
    assert_int_equal(vmdef_check(&def, &fail), EX_USAGE);
    assert_non_null(strstr(fail.message, "no name"));
}

static void options(void **state)
{
    char v[32];
    const char *line = " demo  run=\"vm list; vm show 'a b'\" loglevel=2 x=\"a b\"c notdemo=1 last";
    assert_true(option_get(line, "demo", v, sizeof v) && !*v);
    assert_true(option_get(line, "run", v, sizeof v));
    assert_string_equal(v, "vm list; vm show 'a b'");
    assert_true(option_get(line, "loglevel", v, sizeof v));
    assert_string_equal(v, "2");
    assert_true(option_get(line, "x", v, sizeof v));
    assert_string_equal(v, "a bc");
    assert_true(option_get(line, "last", v, sizeof v));
    assert_false(option_get(line, "list", v, sizeof v) || option_get(line, "log", v, sizeof v) ||
                 option_get("", "a", v, sizeof v));
    assert_true(option_get(line, "run", v, 4));
    assert_string_equal(v, "vm ");
    line = "loglevel=2 \"run=vm list; console \\\"a\\\" \\'b\\'\" \"demo\" last";    /* as GRUB hands words with blanks over */
    assert_true(option_get(line, "run", v, sizeof v));
    assert_string_equal(v, "vm list; console \"a\" 'b'");
    assert_true(option_get(line, "demo", v, sizeof v) && !*v);
    assert_true(option_get(line, "last", v, sizeof v) && !*v);
    assert_false(option_get(line, "console", v, sizeof v));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),  cmocka_unit_test(size_text),   cmocka_unit_test(durations),  cmocka_unit_test(distance),
        cmocka_unit_test(utf8),   cmocka_unit_test(toml),        cmocka_unit_test(round_trip), cmocka_unit_test(json_in),
        cmocka_unit_test(errors), cmocka_unit_test(long_things), cmocka_unit_test(flags),      cmocka_unit_test(options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
