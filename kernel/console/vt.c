#include "kernel/console/vt.h"

#include <stdio.h>
#include <string.h>

enum { DEFAULT_FG = 7, DEFAULT_BG = 0, TAB = 8, UNKNOWN = 0xfffd };

static struct vt_cell blank(const struct vt *v) { return (struct vt_cell){ ' ', v->fg, v->bg }; }
static struct vt_cell *at(struct vt *v, unsigned x, unsigned y) { return v->cells + (size_t)y * v->cols + x; }

static void fill(struct vt *v, struct vt_cell *from, size_t n)
{
    struct vt_cell b = blank(v);
    while (n--)
        *from++ = b;
}

static void reset(struct vt *v)
{
    v->x = v->y = v->top = 0;
    v->bottom = v->rows;
    v->fg = DEFAULT_FG, v->bg = DEFAULT_BG;
    v->bold = v->reverse = v->cursor_off = v->no_wrap = false;
    v->saved = (__typeof__(v->saved)){ .fg = DEFAULT_FG, .bg = DEFAULT_BG };
    v->state = VT_TEXT;
    v->utf8_left = 0;
    fill(v, v->cells, (size_t)v->cols * v->rows);
}

void vt_init(struct vt *v, struct vt_cell *cells, unsigned cols, unsigned rows)
{
    *v = (struct vt){ .cols = MIN(cols, (unsigned)VT_MAX_COLS), .rows = rows, .cells = cells };
    reset(v);
}

/* ---- Moving lines ---- */

static void scroll_up(struct vt *v, unsigned top, unsigned bottom, unsigned n)
{
    n = MIN(n, bottom - top);
    size_t line = v->cols;
    memmove(at(v, 0, top), at(v, 0, top + n), (bottom - top - n) * line * sizeof(struct vt_cell));
    fill(v, at(v, 0, bottom - n), n * line);
}

static void scroll_down(struct vt *v, unsigned top, unsigned bottom, unsigned n)
{
    n = MIN(n, bottom - top);
    size_t line = v->cols;
    memmove(at(v, 0, top + n), at(v, 0, top), (bottom - top - n) * line * sizeof(struct vt_cell));
    fill(v, at(v, 0, top), n * line);
}

static void line_feed(struct vt *v)
{
    if (v->y + 1 == v->bottom)
        scroll_up(v, v->top, v->bottom, 1);
    else if (v->y + 1 < v->rows)
        v->y++;
}

static void reverse_line_feed(struct vt *v)
{
    if (v->y == v->top)
        scroll_down(v, v->top, v->bottom, 1);
    else if (v->y > 0)
        v->y--;
}

/* ---- Text ---- */

static void put(struct vt *v, uint16_t ch)
{
    if (v->x >= v->cols) {
        if (v->no_wrap) {
            v->x = v->cols - 1;
        } else {
            v->x = 0;
            line_feed(v);
        }
    }
    uint8_t fg = v->fg, bg = v->bg;
    if (v->bold && fg < 8)
        fg += 8;
    *at(v, v->x++, v->y) = v->reverse ? (struct vt_cell){ ch, bg, fg } : (struct vt_cell){ ch, fg, bg };
}

/* Zero-width code points would shift everything behind them: combining marks, joiners, byte order mark. */
static bool invisible(uint32_t c) { return (c >= 0x300 && c < 0x370) || (c >= 0x200b && c < 0x2010) || c == 0xfeff; }

static void text(struct vt *v, uint8_t byte)
{
    if (byte < 0x80) {
        v->utf8_left = 0;
        put(v, byte);
    } else if (byte < 0xc0) {
        if (!v->utf8_left)
            return;
        v->utf8 = v->utf8 << 6 | (byte & 0x3f);
        if (--v->utf8_left == 0 && !invisible(v->utf8))
            put(v, v->utf8 > 0xffff ? UNKNOWN : v->utf8);
    } else {
        v->utf8_left = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
        v->utf8 = byte & (byte < 0xe0 ? 0x1f : byte < 0xf0 ? 0x0f : 0x07);
    }
}

static void control(struct vt *v, uint8_t byte)
{
    switch (byte) {
    case '\b':
        v->x = v->x >= v->cols ? v->cols - 1 : v->x;
        v->x -= v->x > 0;
        break;
    case '\t':
        v->x = MIN((v->x / TAB + 1) * TAB, v->cols - 1);
        break;
    case '\n': case '\v': case '\f':
        line_feed(v);
        break;
    case '\r':
        v->x = 0;
        break;
    case 0x1b:
        v->state = VT_ESC;
        break;
    }
}

/* ---- CSI ---- */

static unsigned param(const struct vt *v, unsigned i, unsigned dflt)
{
    return i < v->nparams && v->param[i] ? v->param[i] : dflt;
}

static void move_to(struct vt *v, int x, int y)
{
    v->x = x < 0 ? 0 : MIN((unsigned)x, v->cols - 1);
    v->y = y < 0 ? 0 : MIN((unsigned)y, v->rows - 1);
}

static void erase_display(struct vt *v, unsigned how)
{
    size_t pos = (size_t)v->y * v->cols + MIN(v->x, v->cols - 1), all = (size_t)v->cols * v->rows;
    if (how == 0)
        fill(v, v->cells + pos, all - pos);
    else if (how == 1)
        fill(v, v->cells, pos + 1);
    else
        fill(v, v->cells, all);
}

static void erase_line(struct vt *v, unsigned how)
{
    unsigned x = MIN(v->x, v->cols - 1);
    unsigned from = how == 0 ? x : 0, to = how == 1 ? x + 1 : v->cols;
    fill(v, at(v, from, v->y), to - from);
}

static void insert_chars(struct vt *v, unsigned n, bool insert)
{
    unsigned x = MIN(v->x, v->cols - 1), left = v->cols - x;
    n = MIN(n, left);
    if (insert)
        memmove(at(v, x + n, v->y), at(v, x, v->y), (left - n) * sizeof(struct vt_cell));
    else
        memmove(at(v, x, v->y), at(v, x + n, v->y), (left - n) * sizeof(struct vt_cell));
    fill(v, at(v, insert ? x : v->cols - n, v->y), n);
}

static uint8_t nearest_rgb(unsigned r, unsigned g, unsigned b)
{
    unsigned top = MAX(r, g);
    top = MAX(top, b);
    unsigned half = top / 2 + 1, c = (r >= half) | (g >= half) << 1 | (b >= half) << 2;
    return top < 48 ? 0 : c == 7 ? (top > 212 ? 15 : top > 127 ? 7 : 8) : top > 200 ? c + 8 : c;
}

static uint8_t colour_256(unsigned n)
{
    if (n < 16)
        return n;
    if (n >= 232)
        return n < 236 ? 0 : n < 243 ? 8 : n < 250 ? 7 : 15;
    n -= 16;
    return nearest_rgb(n / 36 * 51, n / 6 % 6 * 51, n % 6 * 51);
}

/* 38;5;n and 38;2;r;g;b: returns the parameters used beyond the first. */
static unsigned extended_colour(const struct vt *v, unsigned i, uint8_t *colour)
{
    unsigned kind = param(v, i + 1, 0);
    if (kind == 5)
        *colour = colour_256(param(v, i + 2, 0) & 255);
    else if (kind == 2)
        *colour = nearest_rgb(param(v, i + 2, 0), param(v, i + 3, 0), param(v, i + 4, 0));
    return kind == 5 ? 2 : kind == 2 ? 4 : 0;
}

static void graphic_rendition(struct vt *v)
{
    for (unsigned i = 0; i < MAX(v->nparams, 1u); i++) {
        unsigned p = param(v, i, 0);
        switch (p) {
        case 0:
            v->fg = DEFAULT_FG, v->bg = DEFAULT_BG;
            v->bold = v->reverse = false;
            break;
        case 1: case 22:
            v->bold = p == 1;
            break;
        case 7: case 27:
            v->reverse = p == 7;
            break;
        case 30 ... 37: case 90 ... 97:
            v->fg = p < 90 ? p - 30 : p - 82;
            break;
        case 40 ... 47: case 100 ... 107:
            v->bg = p < 100 ? p - 40 : p - 92;
            break;
        case 38:
            i += extended_colour(v, i, &v->fg);
            break;
        case 48:
            i += extended_colour(v, i, &v->bg);
            break;
        case 39:
            v->fg = DEFAULT_FG;
            break;
        case 49:
            v->bg = DEFAULT_BG;
            break;
        }
    }
}

static void private_mode(struct vt *v, bool on)
{
    for (unsigned i = 0; i < v->nparams; i++) {
        if (v->param[i] == 25)
            v->cursor_off = !on;
        else if (v->param[i] == 7)
            v->no_wrap = !on;
    }
}

static void scroll_region(struct vt *v)
{
    unsigned top = param(v, 0, 1) - 1, bottom = MIN(param(v, 1, v->rows), v->rows);
    if (top + 1 < bottom) {
        v->top = top, v->bottom = bottom;
        move_to(v, 0, 0);
    }
}

static void save(struct vt *v) { v->saved = (__typeof__(v->saved)){ v->x, v->y, v->fg, v->bg, v->bold, v->reverse }; }

static void restore(struct vt *v)
{
    move_to(v, (int)v->saved.x, (int)v->saved.y);
    v->fg = v->saved.fg, v->bg = v->saved.bg, v->bold = v->saved.bold, v->reverse = v->saved.reverse;
}

static void answer(struct vt *v, const char *fmt, unsigned a, unsigned b)
{
    char buf[32];
    int n = snprintf(buf, sizeof buf, fmt, a, b);
    if (v->reply)
        v->reply(v->reply_arg, buf, (size_t)n);
}

static void report(struct vt *v, char final)
{
    if (final == 'c' && !v->prefix)
        answer(v, "\033[?6c", 0, 0);            /* VT102 */
    else if (final == 'n' && param(v, 0, 0) == 6)
        answer(v, "\033[%u;%uR", v->y + 1, MIN(v->x, v->cols - 1) + 1);
    else if (final == 'n' && param(v, 0, 0) == 5)
        answer(v, "\033[0n", 0, 0);
}

static void csi(struct vt *v, char final)
{
    int n = (int)param(v, 0, 1), x = (int)MIN(v->x, v->cols - 1), y = (int)v->y;
    unsigned how = param(v, 0, 0);
    bool in_region = v->y >= v->top && v->y < v->bottom;
    if (v->prefix == '?' && (final == 'h' || final == 'l'))
        private_mode(v, final == 'h');
    if (v->prefix && final != 'c')
        return;
    switch (final) {
    case '@': insert_chars(v, (unsigned)n, true); break;
    case 'A': move_to(v, x, MAX(y - n, in_region ? (int)v->top : 0)); break;
    case 'B': case 'e': move_to(v, x, MIN(y + n, in_region ? (int)v->bottom - 1 : (int)v->rows - 1)); break;
    case 'C': case 'a': move_to(v, x + n, y); break;
    case 'D': move_to(v, x - n, y); break;
    case 'E': move_to(v, 0, y + n); break;
    case 'F': move_to(v, 0, y - n); break;
    case 'G': case '`': move_to(v, n - 1, y); break;
    case 'd': move_to(v, x, n - 1); break;
    case 'H': case 'f': move_to(v, (int)param(v, 1, 1) - 1, n - 1); break;
    case 'J': erase_display(v, how); break;
    case 'K': erase_line(v, how); break;
    case 'L': if (in_region) scroll_down(v, v->y, v->bottom, (unsigned)n); break;
    case 'M': if (in_region) scroll_up(v, v->y, v->bottom, (unsigned)n); break;
    case 'P': insert_chars(v, (unsigned)n, false); break;
    case 'S': scroll_up(v, v->top, v->bottom, (unsigned)n); break;
    case 'T': scroll_down(v, v->top, v->bottom, (unsigned)n); break;
    case 'X': fill(v, at(v, (unsigned)x, v->y), MIN((unsigned)n, v->cols - (unsigned)x)); break;
    case 'm': graphic_rendition(v); break;
    case 'r': scroll_region(v); break;
    case 's': save(v); break;
    case 'u': restore(v); break;
    case 'c': case 'n': report(v, final); break;
    }
}

/* ---- Parser ---- */

static void csi_byte(struct vt *v, uint8_t b)
{
    if (b >= '0' && b <= '9') {
        v->nparams = MAX(v->nparams, 1);
        uint16_t *p = &v->param[v->nparams - 1];
        *p = MIN(*p * 10u + (b - '0'), 9999u);
    } else if (b == ';' || b == ':') {
        v->nparams = MAX(v->nparams, 1);
        if (v->nparams < VT_MAX_PARAMS)
            v->param[v->nparams++] = 0;
    } else if (b >= '<' && b <= '?') {
        v->prefix = (char)b;
    } else if (b >= 0x20 && b < 0x30) {
        v->prefix = '!';        /* intermediate bytes: none of ours */
    } else {
        v->state = VT_TEXT;
        if (b >= 0x40 && b < 0x7f)
            csi(v, (char)b);
    }
}

static void escape_byte(struct vt *v, uint8_t b)
{
    v->state = VT_TEXT;
    switch (b) {
    case '[':
        v->state = VT_CSI;
        v->nparams = 0;
        v->prefix = 0;
        memset(v->param, 0, sizeof v->param);
        break;
    case ']': case 'P': case '_': case '^': case 'X':
        v->state = VT_STRING;
        break;
    case ' ' ... '/':
        v->state = VT_SKIP;     /* character set designations: one more byte */
        break;
    case '7': save(v); break;
    case '8': restore(v); break;
    case 'D': line_feed(v); break;
    case 'E': v->x = 0; line_feed(v); break;
    case 'M': reverse_line_feed(v); break;
    case 'c': reset(v); break;
    }
}

static void byte_in(struct vt *v, uint8_t b)
{
    if (v->state == VT_STRING || v->state == VT_STRING_ESC) {   /* ends with BEL or ESC \ */
        bool end = b == 7 || b == 0x18 || v->state == VT_STRING_ESC;
        v->state = end ? VT_TEXT : b == 0x1b ? VT_STRING_ESC : VT_STRING;
    } else if (b < 0x20 || b == 0x7f) {
        if (b == 0x18 || b == 0x1a)
            v->state = VT_TEXT; /* CAN, SUB end any sequence */
        control(v, b);
    } else if (v->state == VT_ESC) {
        escape_byte(v, b);
    } else if (v->state == VT_CSI) {
        csi_byte(v, b);
    } else if (v->state == VT_SKIP) {
        v->state = VT_TEXT;
    } else {
        text(v, b);
    }
}

void vt_write(struct vt *v, const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++)
        byte_in(v, (uint8_t)s[i]);
}
