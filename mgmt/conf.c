#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "kernel/lib/port.h"
#include "mgmt/conf.h"
#include "mgmt/units.h"

enum { KEY_MAX = 64 };

struct reader {
    const char *p, *end;
    unsigned line;
    const struct conf_sink *sink;
    struct conf_error *err;
    char text[CONF_TEXT_MAX];   /* the string being read, decoded */
    size_t len;
    char section[KEY_MAX], key[KEY_MAX];
};

static int bad(struct reader *r, const char *fmt, ...) __printf_like(2, 3);
static int bad(struct reader *r, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(r->err->text, sizeof r->err->text, fmt, ap);
    va_end(ap);
    r->err->line = r->line;
    return -EINVAL;
}

static int peek(const struct reader *r) { return r->p < r->end ? (uint8_t)*r->p : -1; }

static bool accept(struct reader *r, char c)
{
    if (peek(r) != (uint8_t)c)
        return false;
    r->p++;
    return true;
}

static void skip(struct reader *r, bool lines)
{
    for (; r->p < r->end; r->p++) {
        if (*r->p == '\n' && lines)
            r->line++;
        else if (*r->p != ' ' && *r->p != '\t' && !(*r->p == '\r' && (lines || (r->p + 1 < r->end && r->p[1] == '\n'))))
            return;
    }
}

static int deliver(struct reader *r, const struct conf_value *v)
{
    char why[200] = "";
    int err = r->sink->put(r->sink->arg, r->section[0] ? r->section : NULL, r->key, v, why, sizeof why);
    if (err) {
        bad(r, "%s", why);
        return err;
    }
    return 0;
}

static bool put(struct reader *r, const char *s, size_t n)
{
    if (r->len + n >= sizeof r->text)
        return false;
    memcpy(r->text + r->len, s, n);
    r->text[r->len += n] = 0;
    return true;
}

static bool put_rune(struct reader *r, uint32_t c)
{
    char s[4];
    size_t n = 0;
    if (c < 0x80)
        s[n++] = (char)c;
    else if (c < 0x800)
        s[n++] = (char)(0xc0 | c >> 6), s[n++] = (char)(0x80 | (c & 63));
    else if (c < 0x10000)
        s[n++] = (char)(0xe0 | c >> 12), s[n++] = (char)(0x80 | (c >> 6 & 63)), s[n++] = (char)(0x80 | (c & 63));
    else
        s[n++] = (char)(0xf0 | c >> 18), s[n++] = (char)(0x80 | (c >> 12 & 63)), s[n++] = (char)(0x80 | (c >> 6 & 63)),
        s[n++] = (char)(0x80 | (c & 63));
    return put(r, s, n);
}

static bool hex(struct reader *r, unsigned digits, uint32_t *val)
{
    for (*val = 0; digits--; r->p++) {
        int c = peek(r) | 0x20;
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
            return false;
        *val = *val << 4 | (uint32_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    return true;
}

/* After the backslash.  JSON pairs surrogates; TOML has \U and forbids them. */
static int escape(struct reader *r)
{
    static const char from[] = "btnfr\"\\/", to[] = "\b\t\n\f\r\"\\/";
    int c = peek(r);
    const char *at = c > 0 ? strchr(from, c) : NULL;
    uint32_t rune, low;
    r->p += r->p < r->end;
    if (at)
        return put(r, &to[at - from], 1) ? 0 : bad(r, "string too long (at most %d bytes)", CONF_TEXT_MAX - 1);
    if ((c != 'u' && c != 'U') || !hex(r, c == 'u' ? 4 : 8, &rune))
        return bad(r, "unknown escape in a string; write \\\\ for a backslash");
    if (rune >= 0xd800 && rune < 0xdc00 && accept(r, '\\') && accept(r, 'u') && hex(r, 4, &low) && low >= 0xdc00 && low < 0xe000)
        rune = 0x10000 + ((rune - 0xd800) << 10) + (low - 0xdc00);
    if (!rune || rune > 0x10ffff || (rune >= 0xd800 && rune < 0xe000))
        return bad(r, "an escape in a string names no character");
    return put_rune(r, rune) ? 0 : bad(r, "string too long (at most %d bytes)", CONF_TEXT_MAX - 1);
}

/* At the opening quote. */
static int string(struct reader *r)
{
    char quote = *r->p++;
    r->len = 0, r->text[0] = 0;
    for (;;) {
        int c = peek(r);
        if (c < 0 || c == '\n' || c == '\r')
            return bad(r, "the string has no closing %c", quote);
        if (accept(r, quote))
            return 0;
        if (c == '\\' && quote == '"') {
            r->p++;
            int err = escape(r);
            if (err)
                return err;
            continue;
        }
        unsigned n = utf8_char(r->p, (size_t)(r->end - r->p), NULL);
        if (!n || (c < 0x20 && c != '\t') || c == 0x7f)
            return bad(r, "byte 0x%02x is not allowed in a string", c);
        if (!put(r, r->p, n))
            return bad(r, "string too long (at most %d bytes)", CONF_TEXT_MAX - 1);
        r->p += n;
    }
}

static bool word_byte(int c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_' || c == '-' || c == '+' ||
           c == '.' || c == ':';
}

static int scalar(struct reader *r)
{
    struct conf_value v = { .text = r->text };
    if (peek(r) == '"' || peek(r) == '\'') {
        int err = string(r);
        v.kind = CONF_STRING;
        return err ? err : deliver(r, &v);
    }
    r->len = 0, r->text[0] = 0;
    for (; word_byte(peek(r)) && r->len < 80; r->p++)
        put(r, r->p, 1);
    if (!r->len)
        return bad(r, "key \"%s\" has no value that can be read; text needs quotes", r->key);
    if (!strcmp(r->text, "true") || !strcmp(r->text, "false")) {
        v.kind = CONF_BOOL, v.flag = r->text[0] == 't';
        return deliver(r, &v);
    }
    v.kind = CONF_INT;
    if (!parse_uint(r->text + (r->text[0] == '+'), &v.num))
        return bad(r, "\"%s\" is no whole number of 0 or more; text needs quotes", r->text);
    return deliver(r, &v);
}

static int key(struct reader *r, char *out)
{
    r->len = 0, r->text[0] = 0;
    if (peek(r) == '"' || peek(r) == '\'') {
        int err = string(r);
        if (err)
            return err;
    } else {
        for (; word_byte(peek(r)) && peek(r) != '+' && peek(r) != ':' && peek(r) != '.' && r->len < KEY_MAX; r->p++)
            put(r, r->p, 1);
    }
    if (!r->len)
        return bad(r, "a key is missing");
    if (r->len >= KEY_MAX)
        return bad(r, "key too long (at most %d bytes)", KEY_MAX - 1);
    memcpy(out, r->text, r->len + 1);
    return 0;
}

/* ---- TOML ---- */
static int toml_section(struct reader *r)
{
    struct conf_value v = { .kind = CONF_SECTION };
    if (!accept(r, '['))
        return bad(r, "a [table] is not used here; write [[disk]]");
    skip(r, false);
    int err = key(r, r->section);
    if (err)
        return err;
    skip(r, false);
    if (!accept(r, ']') || !accept(r, ']'))
        return bad(r, "the section needs ]] at its end");
    r->key[0] = 0;
    return deliver(r, &v);
}

static int toml_pair(struct reader *r)
{
    int err = key(r, r->key);
    if (err)
        return err;
    skip(r, false);
    if (!accept(r, '='))
        return bad(r, "key \"%s\" needs = and a value", r->key);
    skip(r, false);
    if (peek(r) == '[' || peek(r) == '{')
        return bad(r, "key \"%s\": arrays and inline tables are not used here", r->key);
    return scalar(r);
}

static int toml_line_end(struct reader *r)
{
    skip(r, false);
    if (peek(r) == '#')
        while (r->p < r->end && *r->p != '\n') {
            if (((uint8_t)*r->p < 0x20 && *r->p != '\t' && *r->p != '\r') || *r->p == 0x7f)
                return bad(r, "byte 0x%02x is not allowed in a comment", (uint8_t)*r->p);
            r->p++;
        }
    return r->p == r->end || *r->p == '\n' ? 0 : bad(r, "unexpected text after the value");
}

int conf_parse_toml(const char *text, size_t len, const struct conf_sink *sink, struct conf_error *e)
{
    struct reader *r = kzalloc(sizeof *r);
    if (!r) {
        *e = (struct conf_error){ 0, "no memory to read the file" };
        return -ENOMEM;
    }
    r->p = text, r->end = text + len, r->line = 1, r->sink = sink, r->err = e;
    int err = 0;
    while (!err && (skip(r, true), r->p < r->end)) {
        if (*r->p == '[') {
            r->p++;
            err = toml_section(r);
        } else if (*r->p != '#') {
            err = toml_pair(r);
        }
        if (!err)
            err = toml_line_end(r);
    }
    kfree(r);
    return err;
}

/* ---- JSON ---- */
static int json_pairs(struct reader *r, bool top);

static int json_section(struct reader *r)
{
    struct conf_value v = { .kind = CONF_SECTION };
    memcpy(r->section, r->key, sizeof r->section);
    skip(r, true);
    if (accept(r, ']'))
        return 0;
    for (;;) {
        skip(r, true);
        if (!accept(r, '{'))
            return bad(r, "\"%s\" must be an array of objects", r->section);
        r->key[0] = 0;
        int err = deliver(r, &v);
        if (!err)
            err = json_pairs(r, false);
        if (err)
            return err;
        skip(r, true);
        if (accept(r, ']'))
            return 0;
        if (!accept(r, ','))
            return bad(r, "the array needs , or ]");
    }
}

static int json_value(struct reader *r, bool top)
{
    if (peek(r) == '{')
        return bad(r, "key \"%s\": an object is not used here", r->key);
    if (peek(r) == '\'')
        return bad(r, "JSON strings need double quotes");
    if (!accept(r, '['))
        return scalar(r);
    if (!top)
        return bad(r, "key \"%s\": an array is not used here", r->key);
    int err = json_section(r);
    r->section[0] = 0;
    return err;
}

/* After the {; depth is at most two because only the top level may hold arrays. */
static int json_pairs(struct reader *r, bool top)
{
    skip(r, true);
    if (accept(r, '}'))
        return 0;
    for (;;) {
        skip(r, true);
        if (peek(r) != '"')
            return bad(r, "a key in double quotes is missing");
        int err = key(r, r->key);
        if (err)
            return err;
        skip(r, true);
        if (!accept(r, ':'))
            return bad(r, "key \"%s\" needs : and a value", r->key);
        skip(r, true);
        if ((err = json_value(r, top)))
            return err;
        skip(r, true);
        if (accept(r, '}'))
            return 0;
        if (!accept(r, ','))
            return bad(r, "the object needs , or }");
    }
}

int conf_parse_json(const char *text, size_t len, const struct conf_sink *sink, struct conf_error *e)
{
    struct reader *r = kzalloc(sizeof *r);
    if (!r) {
        *e = (struct conf_error){ 0, "no memory to read the file" };
        return -ENOMEM;
    }
    r->p = text, r->end = text + len, r->line = 1, r->sink = sink, r->err = e;
    skip(r, true);
    int err = accept(r, '{') ? json_pairs(r, true) : bad(r, "JSON must begin with {");
    skip(r, true);
    if (!err && r->p != r->end)
        err = bad(r, "unexpected text after the closing }");
    kfree(r);
    return err;
}

int conf_parse(const char *text, size_t len, const struct conf_sink *sink, struct conf_error *e)
{
    size_t i = 0;
    while (i < len && (text[i] == ' ' || text[i] == '\t' || text[i] == '\n' || text[i] == '\r'))
        i++;
    return i < len && text[i] == '{' ? conf_parse_json(text, len, sink, e) : conf_parse_toml(text, len, sink, e);
}
