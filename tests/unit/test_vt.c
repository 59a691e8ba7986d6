#include "tests/host/test.h"
#include <stdlib.h>
#include <string.h>
#include "drivers/ps2_keys.h"
#include "kernel/console/vt.h"

enum { COLS = 20, ROWS = 5 };
static struct vt v;
static struct vt_cell cells[COLS * ROWS];
static char replies[64];

static void reply(void *arg, const char *s, size_t n) { strncat(replies, s, n); }

static int setup(void **state)
{
    vt_init(&v, cells, COLS, ROWS);
    v.reply = reply;
    replies[0] = 0;
    return 0;
}

static void out(const char *s) { vt_write(&v, s, strlen(s)); }
static void row_is(unsigned y, const char *want)
{
    char got[COLS + 1];
    for (unsigned x = 0; x < COLS; x++)
        got[x] = (char)cells[y * COLS + x].ch;
    unsigned n = COLS;
    while (n && got[n - 1] == ' ')
        n--;
    got[n] = 0;
    assert_string_equal(got, want);
}

static void text_wraps_and_scrolls(void **state)
{
    out("hello\r\nworld");
    row_is(0, "hello"), row_is(1, "world");
    out("\r\n01234567890123456789");
    assert_int_equal(v.y, 2);                   /* the last column does not wrap yet */
    out("X\r\n\n");
    row_is(0, "world"), row_is(1, "01234567890123456789"), row_is(2, "X");
    out("a\tb\bc");
    row_is(4, "a       c");
}

static void cursor_and_erase(void **state)
{
    out("\033[2;3Habc\033[A^\033[10Cx\033[99;99HZ");
    row_is(0, "     ^          x"), row_is(1, "  abc");
    assert_int_equal(cells[ROWS * COLS - 1].ch, 'Z');
    out("\033[2;4H\033[K");
    row_is(1, "  a");
    out("\033[1;6H\033[1K");
    row_is(0, "                x");
    out("\033[H\033[J");
    for (unsigned i = 0; i < ROWS; i++)
        row_is(i, "");
    out("\033[3;1Habcdef\033[3;2H\033[2P");
    row_is(2, "adef");
    out("\033[3@");
    row_is(2, "a   def");
    out("\033[s\033[1;1H\033[u*");
    row_is(2, "a*  def");
    out("\033[2X");
    row_is(2, "a*  def");
}

static void colours(void **state)
{
    out("\033[31ma\033[1mb\033[0;7mc\033[0;94;45md\033[38;5;196me\033[48;2;0;0;255mf\033[mg\033[30;47;1;22mh");
    static const struct { uint8_t fg, bg; } want[] = { { 1, 0 }, { 9, 0 }, { 0, 7 }, { 12, 5 }, { 9, 5 }, { 9, 12 }, { 7, 0 }, { 0, 7 } };
    for (unsigned i = 0; i < ARRAY_SIZE(want); i++) {
        assert_int_equal(cells[i].fg, want[i].fg);
        assert_int_equal(cells[i].bg, want[i].bg);
    }
}

static void scroll_region(void **state)
{
    out("1\r\n2\r\n3\r\n4\r\n5\033[2;4r\033[4;1H\n");
    row_is(0, "1"), row_is(1, "3"), row_is(2, "4"), row_is(3, ""), row_is(4, "5");
    out("\033[2;1H\033M");
    row_is(1, ""), row_is(2, "3"), row_is(3, "4");
    out("\033[L");
    row_is(3, "3");
    out("\033[2M");
    row_is(1, "3"), row_is(2, "");
    out("\033[r\033[5;1H\n");
    row_is(3, "5");
}

static void unicode_and_strange_sequences(void **state)
{
    out("\xc3\xa4\xe2\x94\x80\xf0\x9f\x98\x80" "e\xcc\x81" "\xff\x80x");
    assert_int_equal(cells[0].ch, 0xe4);
    assert_int_equal(cells[1].ch, 0x2500);
    assert_int_equal(cells[2].ch, 0xfffd);
    assert_int_equal(cells[3].ch, 'e');
    assert_int_equal(cells[4].ch, 'x');
    out("\r\033]0;title\007\033]2;x\033\\\033(B\033[?2004h\033[>4;2m\033[3 q\033[1;2;3;4;5;6;7;8;9;10;11mok");
    assert_int_equal(cells[0].ch, 'o');
    assert_int_equal(cells[1].ch, 'k');
    out("\033[?25l");
    assert_true(v.cursor_off);
    out("\033[?25h\033[3;4H\033[6n\033[c");
    assert_string_equal(replies, "\033[3;4R\033[?6c");
    out("\033[4294967295;4294967295H\033[99999A\033[99999L\033[99999@\033[0;0r\033c");
    assert_int_equal(v.y, 0);
}

/* ASan is the judge. */
static void noise(void **state)
{
    srand(1);
    for (unsigned i = 0; i < 300000; i++) {
        static const char favourites[] = "\033\033\033[[[;;0123456789?HJKLMPX@mrABCDsu\n\r\b\t\xe2";
        char c = rand() % 4 ? favourites[rand() % (sizeof favourites - 1)] : (char)rand();
        vt_write(&v, &c, 1);
        assert_true(v.x <= COLS && v.y < ROWS && v.top < v.bottom && v.bottom <= ROWS);
        replies[0] = 0;
    }
}

static void keys(void **state)
{
    static const struct { uint8_t codes[6]; const char *text; } cases[] = {
        { { 0x1e, 0x9e }, "a" }, { { 0x2a, 0x1e, 0x9e, 0xaa }, "A" }, { { 0x3a, 0xba, 0x1e, 0x02 }, "A1" }, { { 0x2a, 0x02, 0xaa }, "!" },
        { { 0x1d, 0x2e, 0x9d }, "\003" }, { { 0x1d, 0x1b, 0x9d }, "\035" }, { { 0x38, 0x10, 0xb8 }, "\033q" }, { { 0x1c }, "\r" }, { { 0x0e }, "\177" },
        { { 0xe0, 0x48 }, "\033[A" }, { { 0xe0, 0x53 }, "\033[3~" }, { { 0x48 }, "8" }, { { 0x45, 0xc5, 0x48 }, "\033[A" }, { { 0xe0, 0x1d, 0x20, 0xe0, 0x9d }, "\004" },
        { { 0xe0, 0x2a, 0xe0, 0x4d, 0x1e }, "\033[Ca" }, { { 0x3b }, "\033OP" }, { { 0xe0, 0x35 }, "/" }, { { 0x2a, 0x0f }, "\033[Z" }, { { 0x39 }, " " },
        { { 0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5 }, "" }, { { 0x56, 0xe0, 0x5b, 0x7f }, "" },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct ps2_keys k = { 0 };
        char got[64], one[8];
        size_t n = 0;
        for (unsigned j = 0; j < 6 && cases[i].codes[j]; j++) {
            size_t m = ps2_key(&k, cases[i].codes[j], one);
            memcpy(got + n, one, m);
            n += m;
        }
        got[n] = 0;
        assert_string_equal(got, cases[i].text);
    }
    struct ps2_keys k = { 0 };
    char one[8];
    for (unsigned i = 0; i < 100000; i++)
        assert_true(ps2_key(&k, (uint8_t)rand(), one) <= 8);
}

#define T(f) cmocka_unit_test_setup(f, setup)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(text_wraps_and_scrolls), T(cursor_and_erase), T(colours), T(scroll_region), T(unicode_and_strange_sequences), T(noise), T(keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
