#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "kernel/lib/port.h"
#include "mgmt/report.h"
#include "mgmt/units.h"

struct cell { uint64_t val; bool set; };       /* text cells: val is the offset of the string in report.text */

void rep_init(struct report *r)
{
    memset(r, 0, sizeof *r);
    buf_init(&r->cells, REP_MAX_BYTES);
    buf_init(&r->text, REP_MAX_BYTES);
}

void rep_free(struct report *r)
{
    buf_free(&r->cells);
    buf_free(&r->text);
}

static struct section *begin(struct report *r, const char *name)
{
    ASSERT(r->n < REP_SECTIONS);
    struct section *s = &r->sections[r->n++];
    *s = (struct section){ .name = name, .first = r->cells.len / sizeof(struct cell) };
    return s;
}

void rep_table(struct report *r, const char *name, const struct column *cols, unsigned ncols)
{
    struct section *s = begin(r, name);
    s->cols = cols, s->ncols = ncols;
}

void rep_record(struct report *r, const char *name, const struct column *cols, unsigned ncols)
{
    rep_table(r, name, cols, ncols);
    r->sections[r->n - 1].record = true;
}

void rep_lines(struct report *r, const char *name)
{
    static const struct column line = COL("line", TEXT);
    rep_table(r, name, &line, 1);
    r->sections[r->n - 1].text = true;
}

void rep_raw(struct report *r, const char *name, const char *json)
{
    rep_lines(r, name);
    r->sections[r->n - 1].raw = true;
    rep_str(r, json);
}

void rep_title(struct report *r, const char *title) { r->sections[r->n - 1].title = title; }

static void add(struct report *r, uint64_t val, bool set)
{
    struct cell c = { val, set };
    ASSERT(r->n);
    buf_add(&r->cells, &c, sizeof c);
    r->sections[r->n - 1].count += !r->cells.failed;
}

void rep_num(struct report *r, uint64_t v) { add(r, v, true); }
void rep_none(struct report *r) { add(r, 0, false); }

void rep_str(struct report *r, const char *s)
{
    if (!s) {
        rep_none(r);
        return;
    }
    size_t at = r->text.len;
    buf_add(&r->text, s, strlen(s) + 1);
    add(r, at, !r->text.failed);
}

void rep_fmt(struct report *r, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    rep_str(r, text);
}

static const struct cell *cell_at(const struct report *r, const struct section *s, size_t i)
{
    static const struct cell none;
    return i < s->count ? (const struct cell *)r->cells.p + s->first + i : &none;
}

static size_t rows_of(const struct section *s) { return (s->count + s->ncols - 1) / s->ncols; }

/* Control characters and broken UTF-8 never reach a terminal. */
static void add_clean(struct buf *out, const char *s)
{
    size_t len = strlen(s);
    for (size_t i = 0; i < len;) {
        unsigned n = utf8_char(s + i, len - i, NULL);
        if (!n || (uint8_t)s[i] < 0x20 || s[i] == 0x7f)
            buf_byte(out, '?'), n = 1;
        else
            buf_add(out, s + i, n);
        i += n;
    }
}

static void add_cell(const struct report *r, enum cell_kind kind, const struct cell *c, struct buf *out)
{
    char num[32];
    if (!c->set) {
        buf_byte(out, '-');
        return;
    }
    switch (kind) {
    case CELL_TEXT: add_clean(out, r->text.p + c->val); break;
    case CELL_NUM: buf_fmt(out, "%lu", (unsigned long)c->val); break;
    case CELL_SIZE: buf_str(out, format_size(num, c->val)); break;
    case CELL_TIME: buf_str(out, format_duration(num, c->val)); break;
    case CELL_STAMP:
        buf_fmt(out, "%lu.%06lu", (unsigned long)(c->val / 1000000000), (unsigned long)(c->val / 1000 % 1000000));
        break;
    case CELL_UTC: buf_str(out, format_utc(num, c->val)); break;
    case CELL_BOOL: buf_str(out, c->val ? "yes" : "no"); break;
    case CELL_HEX: buf_fmt(out, "0x%lx", (unsigned long)c->val); break;
    }
}

static void add_padded(struct buf *out, const struct buf *word, size_t width, bool right, bool last)
{
    size_t cols = utf8_columns(buf_text(word), word->len), pad = width > cols ? width - cols : 0;
    if (right)
        buf_pad(out, ' ', pad);
    buf_str(out, buf_text(word));
    if (!right && !last)
        buf_pad(out, ' ', pad);
    buf_str(out, last ? "\n" : "  ");
}

static void capitals(struct buf *out, const char *name)
{
    for (; *name; name++)
        buf_byte(out, *name >= 'a' && *name <= 'z' ? (char)(*name - 32) : *name);
}

/* Which columns, in which order; -1 ends. */
enum { MAX_COLS = 40 };

static int choose(const struct section *s, const char *wanted, int *pick, struct fail *f)
{
    int n = 0;
    for (unsigned i = 0; !wanted && i < s->ncols && n < MAX_COLS; i++)
        if (!s->cols[i].extra)
            pick[n++] = (int)i;
    while (wanted && *wanted && n < MAX_COLS) {
        size_t len = strcspn(wanted, ",");
        unsigned i = 0;
        while (i < s->ncols && (strlen(s->cols[i].name) != len || memcmp(s->cols[i].name, wanted, len)))
            i++;
        if (i == s->ncols) {
            char all[200] = "";
            for (i = 0; i < s->ncols; i++)
                snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i ? "," : "", s->cols[i].name);
            fail_set(f, EX_USAGE, "there is no column \"%.*s\" here", (int)MIN(len, (size_t)40), wanted);
            fail_hint(f, "columns: %s", all);
            return -1;
        }
        pick[n++] = (int)i;
        wanted += len + (wanted[len] == ',');
    }
    return n;
}

static int print_table(const struct report *r, const struct section *s, const struct rep_style *style, struct buf *out,
                       struct fail *f)
{
    int pick[MAX_COLS], n = choose(s, style->columns, pick, f);
    size_t width[MAX_COLS] = { 0 };
    struct buf word;
    if (n < 0)
        return f->code;
    buf_init(&word, REP_MAX_BYTES);
    if (style->quiet && !style->columns)
        n = 1, pick[0] = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (size_t row = style->quiet; row <= rows_of(s); row++)      /* row 0 is the header */
            for (int c = 0; c < n; c++) {
                const struct column *col = &s->cols[pick[c]];
                buf_clear(&word);
                if (row)
                    add_cell(r, col->kind, cell_at(r, s, (row - 1) * s->ncols + (size_t)pick[c]), &word);
                else
                    capitals(&word, col->name);
                if (pass)
                    add_padded(out, &word, width[c], col->kind != CELL_TEXT && col->kind != CELL_BOOL && col->kind != CELL_UTC,
                               c == n - 1);
                else
                    width[c] = MAX(width[c], utf8_columns(buf_text(&word), word.len));
            }
    }
    out->failed |= word.failed;
    buf_free(&word);
    return EX_DONE;
}

static void print_record(const struct report *r, const struct section *s, const struct rep_style *style, struct buf *out)
{
    size_t width = 0;
    for (unsigned i = 0; i < s->ncols; i++)
        if (cell_at(r, s, i)->set)
            width = MAX(width, strlen(s->cols[i].name));
    for (unsigned i = 0; i < (style->quiet ? 1 : s->ncols); i++) {
        const struct cell *c = cell_at(r, s, i);
        if (!c->set)
            continue;
        if (!style->quiet) {
            buf_str(out, s->cols[i].name);
            buf_byte(out, ':');
            buf_pad(out, ' ', width + 2 - strlen(s->cols[i].name));
        }
        add_cell(r, s->cols[i].kind, c, out);
        buf_byte(out, '\n');
    }
}

int rep_text(struct report *r, const struct rep_style *style, struct buf *out, struct fail *f)
{
    struct rep_style plain = { NULL, style->quiet };
    for (unsigned i = 0; i < r->n; i++) {
        const struct section *s = &r->sections[i];
        if (i && (style->quiet || style->columns))
            break;
        if (s->raw)
            continue;
        if (s->title && !style->quiet && s->count)
            buf_fmt(out, "%s%s\n", i ? "\n" : "", s->title);
        if (s->text) {
            for (size_t k = 0; k < s->count; k++) {
                add_cell(r, CELL_TEXT, cell_at(r, s, k), out);
                buf_byte(out, '\n');
            }
        } else if (s->record && !style->columns) {
            print_record(r, s, style, out);
        } else if (s->count || !i) {
            int err = print_table(r, s, i ? &plain : style, out, f);
            if (err)
                return err;
        }
    }
    if (r->cells.failed || r->text.failed || out->failed)
        return fail_set(f, EX_RESOURCE, "the answer does not fit in the memory that is free");
    return EX_DONE;
}

static void json_cell(const struct report *r, const struct column *col, const struct cell *c, struct json *j)
{
    char key[40], num[32];
    snprintf(key, sizeof key, "%s", col->name);
    for (char *p = key; *p; p++)
        *p = *p == '-' ? '_' : *p;
    if (!c->set)
        json_null(j, key);
    else if (col->kind == CELL_TEXT)
        json_str(j, key, r->text.p + c->val);
    else if (col->kind == CELL_BOOL)
        json_bool(j, key, c->val);
    else if (col->kind == CELL_HEX)
        snprintf(num, sizeof num, "0x%lx", (unsigned long)c->val), json_str(j, key, num);
    else
        json_num(j, key, c->val);
}

static void json_row(const struct report *r, const struct section *s, size_t row, const char *key, struct json *j)
{
    json_open(j, key, '{');
    for (unsigned i = 0; i < s->ncols; i++)
        json_cell(r, &s->cols[i], cell_at(r, s, row * s->ncols + i), j);
    json_close(j, '}');
}

void rep_json(struct report *r, struct json *j)
{
    for (unsigned i = 0; i < r->n; i++) {
        const struct section *s = &r->sections[i];
        if (s->raw && s->count) {
            json_raw(j, s->name, r->text.p + cell_at(r, s, 0)->val);
            continue;
        }
        if (s->record) {
            json_row(r, s, 0, s->name, j);
            continue;
        }
        json_open(j, s->name, '[');
        for (size_t row = 0; row < rows_of(s); row++) {
            if (s->text)
                json_str(j, NULL, cell_at(r, s, row)->set ? r->text.p + cell_at(r, s, row)->val : "");
            else
                json_row(r, s, row, NULL, j);
        }
        json_close(j, ']');
    }
    j->out->failed |= r->cells.failed || r->text.failed;
}
