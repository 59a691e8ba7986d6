#include <stdio.h>
#include <string.h>
#include "kernel/lib/port.h"
#include "mgmt/lineedit.h"
#include "mgmt/units.h"

enum {
    CTRL_A = 1, CTRL_B, CTRL_C, CTRL_D, CTRL_E, CTRL_F, CTRL_G, CTRL_H, TAB, LF, CTRL_K, CTRL_L, CR, CTRL_N,
    CTRL_P = 16, CTRL_R = 18, CTRL_T = 20, CTRL_U, CTRL_W = 23, CTRL_Y = 25, ESC = 27, DEL = 127,
};
enum { ESC_NONE, ESC_SEEN, ESC_CSI, ESC_SS3 };

/* ---- History ---- */
void history_add(struct history *h, const char *line)
{
    size_t len = strlen(line);
    if (strspn(line, " \t") == len || (h->n && !strcmp(h->line[h->n - 1], line)))
        return;
    char *copy = kmalloc(len + 1);
    if (!copy)
        return;
    memcpy(copy, line, len + 1);
    if (h->n == ED_HISTORY) {
        kfree(h->line[0]);
        memmove(h->line, h->line + 1, sizeof h->line - sizeof h->line[0]);
        h->n--;
    }
    h->line[h->n++] = copy;
}

void history_free(struct history *h)
{
    while (h->n)
        kfree(h->line[--h->n]);
}

/* ---- Characters ---- */
static unsigned next(const char *s, unsigned len, unsigned i, unsigned *cols)
{
    unsigned n = utf8_char(s + i, len - i, cols);
    if (!n)
        *cols = 1;
    return i + (n ? n : 1);
}

static unsigned prev(const char *s, unsigned i)
{
    while (i && ((uint8_t)s[--i] & 0xc0) == 0x80)
        ;
    return i;
}

/* ---- Painting ---- */
struct view { char text[ED_SHOWN_MAX]; unsigned len, cols, cursor; };

static void emit(struct editor *e, const char *s, size_t n) { e->out(e->arg, s, n); }

static void emit_n(struct editor *e, char c, unsigned n)
{
    char some[32];
    memset(some, c, sizeof some);
    for (; n > sizeof some; n -= sizeof some)
        emit(e, some, sizeof some);
    emit(e, some, n);
}

static void view_add(struct view *v, const char *s, unsigned n)
{
    if (v->len + n >= sizeof v->text)
        return;
    memcpy(v->text + v->len, s, n);
    v->len += n;
    v->cols += (unsigned)utf8_columns(s, n);
}

static void scroll(struct editor *e, unsigned room)
{
    if (utf8_columns(e->line, e->len) < room)
        e->win = 0;
    if (e->cur < e->win)
        for (e->win = e->cur; e->win && utf8_columns(e->line + e->win, e->cur - e->win) < room / 2;)
            e->win = prev(e->line, e->win);
    while (utf8_columns(e->line + e->win, e->cur - e->win) + 2 > room) {
        unsigned skipped = 0, w;
        while (skipped < room / 2 && e->win < e->cur) {
            e->win = next(e->line, e->len, e->win, &w);
            skipped += w;
        }
    }
}

static void compose(struct editor *e, struct view *v)
{
    char head[ED_QUERY_MAX + 32];
    v->len = v->cols = v->cursor = 0;
    if (e->searching) {
        snprintf(head, sizeof head, "(search%s '%s'): ", e->found || !e->query[0] ? "" : " failed", e->query);
        view_add(v, head, (unsigned)strlen(head));
    } else {
        view_add(v, e->prompt, (unsigned)strlen(e->prompt));
    }
    unsigned room = e->cols > v->cols + 10 ? e->cols - v->cols - 1 : 10, end = v->cols + room;
    scroll(e, room);
    if (e->win)
        view_add(v, "<", 1);
    unsigned i = e->win, w;
    v->cursor = v->cols;
    while (i < e->len) {
        unsigned after = next(e->line, e->len, i, &w);
        if (v->cols + w + (after < e->len) > end)
            break;
        view_add(v, e->line + i, after - i);
        if ((i = after) <= e->cur)
            v->cursor = v->cols;
    }
    if (i < e->len)
        view_add(v, ">", 1);
}

/* Moves right by writing what is there already. */
static void move_to(struct editor *e, const char *text, unsigned len, unsigned col)
{
    unsigned c = 0, w;
    if (col < e->at)
        emit_n(e, '\b', e->at - col);
    for (unsigned i = 0; c < col && i < len; c += w) {
        unsigned after = next(text, len, i, &w);
        if (c >= e->at)
            emit(e, text + i, after - i);
        i = after;
    }
    e->at = col;
}

/* From column 0 after something else was printed. */
static void emit_soft(struct editor *e, const struct view *v)
{
    const char *gt = memchr(v->text, '>', v->len);
    size_t n = gt ? (size_t)(gt + 1 - v->text) : 0;
    if (gt) {
        emit(e, v->text, n);
        emit(e, "\b>", 2);
    }
    emit(e, v->text + n, v->len - n);
}

static void paint(struct editor *e)
{
    struct view *v = kmalloc(sizeof *v);
    if (!v)
        return;
    compose(e, v);
    unsigned same = 0, col = 0, w;
    while (same < v->len && same < e->shown_len) {
        unsigned a = next(v->text, v->len, same, &w), b = next(e->shown, e->shown_len, same, &w);
        if (a != b || memcmp(v->text + same, e->shown + same, a - same))
            break;
        same = a, col += w;
    }
    if (same < v->len || same < e->shown_len) {
        move_to(e, v->text, v->len, col);
        if (e->soft && !same)
            emit_soft(e, v);
        else
            emit(e, v->text + same, v->len - same);
        e->at = v->cols;
        if (e->shown_cols > v->cols) {
            emit_n(e, ' ', e->shown_cols - v->cols);
            emit_n(e, '\b', e->shown_cols - v->cols);
        }
    }
    move_to(e, v->text, v->len, v->cursor);
    memcpy(e->shown, v->text, v->len);
    e->shown_len = v->len, e->shown_cols = v->cols;
    kfree(v);
}

void ed_hide(struct editor *e)
{
    emit(e, "\r", 1);
    emit_n(e, ' ', e->shown_cols);
    emit(e, "\r", 1);
    e->shown_len = e->shown_cols = e->at = 0;
}

void ed_show(struct editor *e)
{
    e->shown_len = e->shown_cols = e->at = 0;
    e->soft = true;
    paint(e);
    e->soft = false;
}

/* ---- Editing ---- */
static void cut(struct editor *e, unsigned from, unsigned to, bool keep)
{
    if (from >= to)
        return;
    if (keep) {
        memcpy(e->killed, e->line + from, to - from);
        e->killed[to - from] = 0;
    }
    memmove(e->line + from, e->line + to, e->len - to + 1);
    e->len -= to - from;
    e->cur = from;
}

static void insert(struct editor *e, const char *s, size_t n)
{
    if (n > ED_LINE_MAX - e->len) {
        emit(e, "\a", 1);
        return;
    }
    memmove(e->line + e->cur + n, e->line + e->cur, e->len - e->cur + 1);
    memcpy(e->line + e->cur, s, n);
    e->len += (unsigned)n, e->cur += (unsigned)n;
}

void ed_insert(struct editor *e, const char *s, size_t n)
{
    insert(e, s, n);
    paint(e);
}

static bool in_word(char c) { return (uint8_t)c >= 0x80 || (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z'); }

static unsigned word_left(const struct editor *e)
{
    unsigned i = e->cur;
    while (i && !in_word(e->line[i - 1]))
        i--;
    while (i && in_word(e->line[i - 1]))
        i--;
    return i;
}

static unsigned word_right(const struct editor *e)
{
    unsigned i = e->cur;
    while (i < e->len && !in_word(e->line[i]))
        i++;
    while (i < e->len && in_word(e->line[i]))
        i++;
    return i;
}

static unsigned blank_left(const struct editor *e)
{
    unsigned i = e->cur;
    while (i && e->line[i - 1] == ' ')
        i--;
    while (i && e->line[i - 1] != ' ')
        i--;
    return i;
}

static void transpose(struct editor *e)
{
    unsigned w, b = e->cur < e->len ? e->cur : prev(e->line, e->cur), a = b ? prev(e->line, b) : 0;
    char both[8];
    if (!b)
        return;
    unsigned end = next(e->line, e->len, b, &w);
    memcpy(both, e->line + b, end - b);
    memcpy(both + (end - b), e->line + a, b - a);
    memcpy(e->line + a, both, end - a);
    e->cur = end;
}

static void set_line(struct editor *e, const char *s)
{
    size_t n = strlen(s);
    n = MIN(n, (size_t)ED_LINE_MAX);
    memmove(e->line, s, n);
    e->line[n] = 0;
    e->len = e->cur = (unsigned)n;
}

static void recall(struct editor *e, int step)
{
    unsigned to = e->back + (unsigned)step;
    if ((step < 0 && !e->back) || to > e->history->n)
        return;
    if (!e->back)
        memcpy(e->stash, e->line, e->len + 1);
    e->back = to;
    set_line(e, to ? e->history->line[e->history->n - to] : e->stash);
}

/* ---- Ctrl-R ---- */
static void search_from(struct editor *e, unsigned below)
{
    for (unsigned i = below; e->query[0] && i-- > 0;)
        if (strstr(e->history->line[i], e->query)) {
            e->found = i + 1;
            set_line(e, e->history->line[i]);
            return;
        }
    e->found = 0;
}

static void search_end(struct editor *e, bool accept)
{
    e->searching = false;
    if (!accept)
        set_line(e, e->stash);
}

/* True: the key was the search's own. */
static bool search_key(struct editor *e, uint8_t c)
{
    size_t n = strlen(e->query);
    if (c == CTRL_R) {
        search_from(e, e->found ? e->found - 1 : 0);
    } else if (c == CTRL_H || c == DEL) {
        if (n)
            e->query[prev(e->query, (unsigned)n)] = 0;
        search_from(e, e->history->n);
    } else if (c == CTRL_G || c == CTRL_C) {
        search_end(e, false);
    } else {
        search_end(e, true);
        return false;
    }
    return true;
}

static void search_type(struct editor *e, const char *s, size_t len)
{
    size_t n = strlen(e->query);
    if (n + len > ED_QUERY_MAX)
        return;
    memcpy(e->query + n, s, len);
    e->query[n + len] = 0;
    search_from(e, e->history->n);
}

static void search_start(struct editor *e)
{
    if (!e->back)
        memcpy(e->stash, e->line, e->len + 1);
    e->searching = true, e->query[0] = 0, e->found = 0;
}

/* ---- Keys ---- */
static bool quoted(const struct editor *e)
{
    char q = 0;
    for (unsigned i = 0; i < e->cur; i++) {
        char c = e->line[i];
        if (c == '\\' && q != '\'')
            i++;
        else if (q ? c == q : c == '"' || c == '\'')
            q = q ? 0 : c;
    }
    return q != 0;
}

static void type(struct editor *e, const char *s, unsigned n)
{
    if (e->searching)
        search_type(e, s, n);
    else
        insert(e, s, n);
}

/* Printable ASCII and UTF-8, byte by byte; what does not become a character is dropped. */
static enum ed_event printable(struct editor *e, uint8_t c)
{
    if (c < 0x80) {
        e->nrune = 0;
        if (c == '?' && !e->searching && !quoted(e))
            return ED_HELP;
        type(e, (const char[]){ (char)c }, 1);
        return ED_NONE;
    }
    if ((c & 0xc0) != 0x80)
        e->nrune = 0;
    e->rune[e->nrune++] = (char)c;
    uint8_t first = (uint8_t)e->rune[0];
    unsigned want = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 1;
    if (e->nrune == want) {
        if (want > 1 && utf8_char(e->rune, want, NULL) == want)
            type(e, e->rune, want);
        e->nrune = 0;
    }
    return ED_NONE;
}

static void csi(struct editor *e, char final)
{
    bool word = memchr(e->param, ';', e->nparam) != NULL;
    unsigned w;
    e->searching = false;
    switch (final) {
    case 'A': recall(e, 1); break;
    case 'B': recall(e, -1); break;
    case 'C': e->cur = word ? word_right(e) : e->cur < e->len ? next(e->line, e->len, e->cur, &w) : e->cur; break;
    case 'D': e->cur = word ? word_left(e) : prev(e->line, e->cur); break;
    case 'H': e->cur = 0; break;
    case 'F': e->cur = e->len; break;
    case '~':
        switch (e->nparam == 1 ? e->param[0] : 0) {
        case '1': case '7': e->cur = 0; break;
        case '4': case '8': e->cur = e->len; break;
        case '3':
            if (e->cur < e->len)
                cut(e, e->cur, next(e->line, e->len, e->cur, &w), false);
            break;
        }
    }
}

static void alt(struct editor *e, uint8_t c)
{
    switch (c) {
    case 'b': case 'B': e->cur = word_left(e); break;
    case 'f': case 'F': e->cur = word_right(e); break;
    case 'd': case 'D': {
        unsigned at = e->cur;
        cut(e, at, word_right(e), true);
        break;
    }
    case CTRL_H: case DEL: cut(e, word_left(e), e->cur, true); break;
    }
}

/* True: the byte belonged to an escape sequence. */
static bool escape(struct editor *e, uint8_t c)
{
    switch (e->esc) {
    case ESC_SEEN:
        e->esc = c == '[' ? ESC_CSI : c == 'O' ? ESC_SS3 : c == ESC ? ESC_SEEN : ESC_NONE;
        e->nparam = 0;
        if (e->esc)
            return true;
        if (c == CR || c == LF)
            return false;
        alt(e, c);
        return true;
    case ESC_CSI:
        if (c >= 0x20 && c < 0x40) {
            if (e->nparam < sizeof e->param)
                e->param[e->nparam++] = (char)c;
            return true;
        }
        e->esc = ESC_NONE;
        if (c < 0x40 || c >= 0x7f)
            return false;
        csi(e, (char)c);
        return true;
    case ESC_SS3:
        e->esc = ESC_NONE;
        csi(e, (char)c);
        return true;
    default:
        return false;
    }
}

static enum ed_event end_line(struct editor *e, enum ed_event what)
{
    e->searching = false;
    e->cur = e->len;
    if (what == ED_LINE)
        paint(e);
    emit(e, what == ED_INTR ? "^C\r\n" : "\r\n", what == ED_INTR ? 4 : 2);
    e->shown_len = e->shown_cols = e->at = 0;
    return what;
}

static enum ed_event control(struct editor *e, uint8_t c)
{
    unsigned w;
    switch (c) {
    case CR: case LF: return end_line(e, ED_LINE);
    case CTRL_C: return end_line(e, ED_INTR);
    case CTRL_D:
        if (!e->len)
            return end_line(e, ED_EOF);
        if (e->cur < e->len)
            cut(e, e->cur, next(e->line, e->len, e->cur, &w), false);
        break;
    case TAB: return ED_TAB;
    case CTRL_A: e->cur = 0; break;
    case CTRL_E: e->cur = e->len; break;
    case CTRL_B: csi(e, 'D'); break;
    case CTRL_F: csi(e, 'C'); break;
    case CTRL_P: recall(e, 1); break;
    case CTRL_N: recall(e, -1); break;
    case CTRL_H: case DEL: cut(e, prev(e->line, e->cur), e->cur, false); break;
    case CTRL_K: cut(e, e->cur, e->len, true); break;
    case CTRL_U: cut(e, 0, e->cur, true); break;
    case CTRL_W: cut(e, blank_left(e), e->cur, true); break;
    case CTRL_Y: insert(e, e->killed, strlen(e->killed)); break;
    case CTRL_T: transpose(e); break;
    case CTRL_R: search_start(e); break;
    case CTRL_L: emit(e, "\x1b[H\x1b[2J", 7); ed_show(e); break;
    case ESC: e->esc = ESC_SEEN, e->nparam = 0; break;
    }
    return ED_NONE;
}

enum ed_event ed_feed(struct editor *e, uint8_t c)
{
    bool lf_of_cr = e->after_cr && c == LF;
    enum ed_event what = ED_NONE;
    e->after_cr = c == CR;
    if (lf_of_cr)
        return ED_NONE;
    if (escape(e, c))
        ;
    else if (c >= 0x20 && c != DEL)
        what = printable(e, c);
    else if (!e->searching || !search_key(e, c))
        what = control(e, c);
    if (what == ED_NONE)
        paint(e);
    return what;
}

void ed_init(struct editor *e, struct history *h, unsigned cols, void (*out)(void *, const char *, size_t), void *arg)
{
    memset(e, 0, sizeof *e);
    e->history = h, e->cols = cols < 20 ? 20 : MIN(cols, 250u), e->out = out, e->arg = arg, e->prompt = "";
}

void ed_start(struct editor *e, const char *prompt)
{
    e->prompt = prompt;
    e->line[0] = 0;
    e->len = e->cur = e->win = e->back = 0;
    e->searching = false;
    e->shown_len = e->shown_cols = e->at = 0;
    e->esc = ESC_NONE, e->nrune = 0;
    paint(e);
}
