/* The line editor, judged by what a terminal shows: a tiny terminal interprets its output. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "mgmt/lineedit.h"
#include "mgmt/units.h"

/* One row of cells; a wide character fills its second cell with an empty string. */
enum { COLS = 40 };
struct term { char cell[COLS + 1][8]; unsigned col, rows; bool overflow; char all[65536]; size_t nall; };
static struct term term;
static struct editor ed;
static struct history history;

static void term_out(void *arg, const char *s, size_t n)
{
    struct term *t = arg;
    if (t->nall + n < sizeof t->all)
        memcpy(t->all + t->nall, s, n), t->nall += n, t->all[t->nall] = 0;
    for (size_t i = 0; i < n;) {
        unsigned w = 1, k = utf8_char(s + i, n - i, &w);
        assert_true(k);
        if (s[i] == '\r') {
            t->col = 0;
        } else if (s[i] == '\n') {
            t->rows++;
            memset(t->cell, 0, sizeof t->cell);
        } else if (s[i] == '\b') {
            assert_true(t->col > 0);
            t->col--;
        } else if (s[i] != '\a') {
            if (t->col + w > COLS) {
                t->overflow = true;
                return;
            }
            memset(t->cell[t->col], 0, 8);
            memcpy(t->cell[t->col], s + i, k);
            if (w == 2)
                memset(t->cell[t->col + 1], 0, 8);
            t->col += w;
        }
        i += k;
    }
}

static const char *row(void)
{
    static char text[COLS * 8 + 1];
    text[0] = 0;
    for (unsigned i = 0; i < COLS; i++)
        strcat(text, term.cell[i]);
    for (size_t n = strlen(text); n && text[n - 1] == ' ';)
        text[--n] = 0;
    return text;
}

static void begin(void)
{
    memset(&term, 0, sizeof term);
    ed_init(&ed, &history, COLS, term_out, &term);
    ed_start(&ed, "joist> ");
}

static enum ed_event type(const char *s)
{
    enum ed_event e = ED_NONE;
    for (; *s; s++)
        e = ed_feed(&ed, (uint8_t)*s);
    assert_false(term.overflow);
    return e;
}

static void basics(void **state)
{
    begin();
    assert_string_equal(term.all, "joist> ");
    type("vm lst");
    assert_string_equal(term.all, "joist> vm lst");        /* plain echo: nothing a dumb line would show as rubbish */
    type("\x1b[D\x1b[Di");
    assert_string_equal(row(), "joist> vm list");
    assert_int_equal(term.col, 7 + 5);
    assert_int_equal(type("\r"), ED_LINE);
    assert_string_equal(ed.line, "vm list");
    assert_int_equal(ed_feed(&ed, '\n'), ED_NONE);          /* CR LF is one Enter */
    ed_start(&ed, "joist> ");
    assert_int_equal(type("x\n"), ED_LINE);
    ed_start(&ed, "joist> ");
    assert_int_equal(type("abc\x03"), ED_INTR);
    ed_start(&ed, "joist> ");
    assert_int_equal(type("\x04"), ED_EOF);
}

static void keys(void **state)
{
    static const struct { const char *typed, *line; unsigned cur; } k[] = {
        { "abc\x01X", "Xabc", 1 }, { "abc\x01\x05X", "abcX", 4 }, { "abc\x1b[HX\x1b[FY", "XabcY", 5 },
        { "abc\x1bOHX", "Xabc", 1 }, { "abc\x1b[1~X\x1b[4~Y", "XabcY", 5 },
        { "abc\x7f\x08", "a", 1 }, { "abc\x1b[D\x1b[3~", "ab", 2 }, { "abc\x02\x04", "ab", 2 },
        { "one two three\x17", "one two ", 8 },
        { "one two\x15x\x19", "xone two", 8 }, { "one two\x01\x06\x06\x0b\x19\x19", "one twoe two", 12 },
        { "one two\x1b" "b\x1b" "d", "one ", 4 },
        { "one two\x1b" "b\x1b" "bX", "Xone two", 1 }, { "one two\x01\x1b" "fX", "oneX two", 4 },
        { "one two\x1b\x7f", "one ", 4 }, { "one two\x1b[1;5DX", "one Xtwo", 5 },
        { "ab\x14", "ba", 2 }, { "abc\x02\x14", "acb", 3 }, { "\xc3\xbc\xc3\xa4\x7f", "\xc3\xbc", 2 },
        { "a\xff\xc3(b", "a(b", 3 }, { "\xe6\x97\xa5\x14", "\xe6\x97\xa5", 3 },
        { "a\x1b[200~b", "ab", 2 }, { "a\x1b[999;999;999;999Zb", "ab", 2 }, { "a\x1b\x1b[Db", "ba", 1 },
        { "\x7f\x17\x15\x0b\x14\x1b[3~\x1b[D\x1b[C", "", 0 },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(k); i++) {
        begin();
        type(k[i].typed);
        if (strcmp(ed.line, k[i].line) || ed.cur != k[i].cur)
            fail_msg("case %u gave \"%s\" at %u", i, ed.line, ed.cur);
    }
}

static void question_mark(void **state)
{
    begin();
    assert_int_equal(type("vm ?"), ED_HELP);
    assert_string_equal(ed.line, "vm ");
    assert_int_equal(type("\"what?"), ED_NONE);
    assert_string_equal(ed.line, "vm \"what?");
    assert_int_equal(type("\" ?"), ED_HELP);
    assert_int_equal(type("\\\" ?"), ED_HELP);
    assert_int_equal(type("\t"), ED_TAB);
}

static void recall(void **state)
{
    history_add(&history, "first");
    history_add(&history, "second");
    history_add(&history, "second");
    history_add(&history, "   ");
    assert_int_equal(history.n, 2);
    begin();
    type("draft\x1b[A");
    assert_string_equal(ed.line, "second");
    type("\x10\x10");
    assert_string_equal(ed.line, "first");
    type("\x0e\x1b[B\x1b[B");
    assert_string_equal(ed.line, "draft");
    assert_string_equal(row(), "joist> draft");
    for (unsigned i = 0; i < 2 * ED_HISTORY; i++) {
        char line[20];
        snprintf(line, sizeof line, "line %u", i);
        history_add(&history, line);
    }
    assert_int_equal(history.n, ED_HISTORY);
    assert_string_equal(history.line[0], "line 200");
    history_free(&history);
}

static void search(void **state)
{
    history_add(&history, "vm create web1");
    history_add(&history, "vm list");
    history_add(&history, "vm create db");
    begin();
    type("dr\x12" "crea");
    assert_string_equal(row(), "(search 'crea'): vm create db");
    type("\x12");
    assert_string_equal(row(), "(search 'crea'): vm create web1");
    type("\x12");
    assert_non_null(strstr(row(), "(search failed"));
    type("\x7f\x7f");
    assert_string_equal(ed.line, "vm create db");
    type("\x07");
    assert_string_equal(row(), "joist> dr");
    type("\x12list\x1b[D!");
    assert_string_equal(row(), "joist> vm lis!t");
    begin();
    type("\x12web");
    assert_int_equal(type("\r"), ED_LINE);
    assert_string_equal(ed.line, "vm create web1");
    history_free(&history);
}

static void scrolling(void **state)
{
    begin();
    type("0123456789abcdefghijklmnopqrstuvwxyz0123456789");
    assert_true(strstr(row(), "joist> <") && strstr(row(), "6789"));
    type("\x01");
    assert_string_equal(row(), "joist> 0123456789abcdefghijklmnopqrstu>");
    assert_int_equal(term.col, 7);
    assert_null(strstr(term.all + 8, "joist> "));          /* a script that waits for the prompt is not misled */
}

static void other_output(void **state)
{
    begin();
    type("vm li");
    ed_hide(&ed);
    assert_string_equal(row(), "");
    term_out(&term, "log line\r\n", 10);
    size_t before = term.nall;
    ed_show(&ed);
    assert_string_equal(row(), "joist> vm li");
    assert_int_equal(term.col, 12);
    assert_null(strstr(term.all + before, "joist> "));
    type("st");
    assert_string_equal(row(), "joist> vm list");
}

static void full_line(void **state)
{
    begin();
    for (unsigned i = 0; i < ED_LINE_MAX + 100; i++)
        ed_feed(&ed, 'a' + i % 26);
    assert_int_equal(ed.len, ED_LINE_MAX);
    type("\x15\x19\x19");
    assert_int_equal(ed.len, ED_LINE_MAX);
}

/* What row and column must be, from line and cursor alone: everything fits in view here. */
static void check_row(void)
{
    char want[600];
    snprintf(want, sizeof want, "%s%.500s", ed.prompt, ed.line);
    for (size_t n = strlen(want); n && want[n - 1] == ' ';)
        want[--n] = 0;
    assert_string_equal(row(), want);
    assert_int_equal(term.col, utf8_columns(ed.prompt, strlen(ed.prompt)) + utf8_columns(ed.line, ed.cur));
}

static void random_typing(void **state)
{
    static const char *const keys[] = {
        "a", "b ", " ", "\xc3\xbc", "\xe6\x97\xa5", "x", "\x01", "\x05", "\x02", "\x06", "\x04x", "\x7f", "\x7f", "\x0b", "\x15",
        "\x17", "\x19", "\x14", "\x1b" "b", "\x1b" "f",
        "\x1b" "d", "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D", "\x1b[3~", "\x10", "\x0e",
    };
    history_add(&history, "vm \xe6\x97\xa5\xe6\x9c\xac x");
    history_add(&history, "short");
    srandom(1);
    begin();
    for (unsigned i = 0; i < 60000; i++) {
        type(keys[(unsigned)random() % ARRAY_SIZE(keys)]);
        assert_true(ed.cur <= ed.len && ed.len == strlen(ed.line));
        assert_true(term.col < COLS);
        if (utf8_columns(ed.line, ed.len) < COLS - 9)
            check_row();
        else if (ed.len > 200)
            type("\x05\x15");
        term.nall = 0;
    }
    history_free(&history);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(basics),       cmocka_unit_test(keys),      cmocka_unit_test(question_mark),
        cmocka_unit_test(recall),       cmocka_unit_test(search),    cmocka_unit_test(scrolling),
        cmocka_unit_test(other_output), cmocka_unit_test(full_line), cmocka_unit_test(random_typing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
