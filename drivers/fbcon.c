/*
 * A terminal (kernel/console/vt.c) drawn into the framebuffer.  The cell grid is the shadow: the framebuffer is mapped write-combining, only written, and
 * only where a cell differs from what was drawn last.  A scroll redraws the characters that changed, nothing is ever read back.
 */
#include "drivers/fbcon.h"

#include <errno.h>
#include <string.h>

#include "build/gen/drivers/font8x16.h"
#include "kernel/console/console.h"
#include "kernel/console/vt.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/mm/ptab.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/panic.h"
#include "kernel/x86/vmap.h"

enum { FONT_W = 8, FONT_H = 16, CHAN_BYTES = 16384, FALLBACK = '?' };
#define REDRAW_NS 20000000ull           /* while output streams: 50 pictures a second */

static struct {
    struct console console;
    struct fbcon_mode mode;
    uint8_t *fb;
    uint32_t palette[16];
    struct spinlock lock;               /* vt and shown; not taken in a panic */
    struct vt vt;
    struct vt_cell *shown;
    struct event event;
} scr;

static const uint32_t rgb[16] = {
    0x000000, 0xaa0000, 0x00aa00, 0xaa5500, 0x0000aa, 0xaa00aa, 0x00aaaa, 0xaaaaaa, 0x555555, 0xff5555, 0x55ff55, 0xffff55, 0x5555ff, 0xff55ff, 0x55ffff, 0xffffff,
};

/* ---- Pixels ---- */

static const uint8_t *glyph(uint16_t code)
{
    unsigned lo = 0, hi = ARRAY_SIZE(font_map);
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (font_map[mid].code == code)
            return font_glyph[font_map[mid].glyph];
        if (font_map[mid].code < code)
            lo = mid + 1;
        else
            hi = mid;
    }
    return code == FALLBACK ? font_glyph[0] : glyph(FALLBACK);
}

static uint32_t channel(uint32_t v8, unsigned len, unsigned pos) { return len > 8 ? v8 << (pos + len - 8) : v8 >> (8 - len) << pos; }

static uint32_t pixel(const struct fbcon_mode *m, uint32_t c)
{
    return channel(c >> 16, m->red_len, m->red_pos) | channel(c >> 8 & 0xff, m->green_len, m->green_pos) | channel(c & 0xff, m->blue_len, m->blue_pos);
}

/* Two pixels for each pair of bits, in the colours of one cell. */
struct pairs { uint16_t colours; uint64_t px[4]; };

static uint16_t colours(struct vt_cell c) { return (uint16_t)(c.fg << 8 | c.bg); }

static void make_pairs(struct pairs *p, struct vt_cell c)
{
    uint64_t fg = scr.palette[c.fg & 15], bg = scr.palette[c.bg & 15];
    *p = (struct pairs){ colours(c), { bg | bg << 32, bg | fg << 32, fg | bg << 32, fg | fg << 32 } };
}

/* A line of a run of cells, mostly of one colour; WC memory wants full, rising stores. */
static void put_line32(volatile uint64_t *p, const struct vt_cell *cells, const uint8_t *const *shape, unsigned n, unsigned line)
{
    struct pairs pair;
    make_pairs(&pair, cells[0]);
    for (unsigned i = 0; i < n; i++, p += 4) {
        unsigned bits = shape[i][line];
        if (unlikely(colours(cells[i]) != pair.colours))
            make_pairs(&pair, cells[i]);
        p[0] = pair.px[bits >> 6];
        p[1] = pair.px[bits >> 4 & 3];
        p[2] = pair.px[bits >> 2 & 3];
        p[3] = pair.px[bits & 3];
    }
}

static uint8_t *put_line(uint8_t *p, uint8_t bits, uint32_t fg, uint32_t bg)
{
    unsigned bytes = scr.mode.bpp / 8;
    for (unsigned i = 0; i < FONT_W; i++) {
        uint32_t c = bits & 0x80 >> i ? fg : bg;
        for (unsigned b = 0; b < bytes; b++)
            *(volatile uint8_t *)p++ = (uint8_t)(c >> 8 * b);
    }
    return p;
}

static void draw_run(unsigned x, unsigned y, const struct vt_cell *cells, unsigned n)
{
    uint8_t *at = scr.fb + (uint64_t)y * FONT_H * scr.mode.pitch + (uint64_t)x * FONT_W * (scr.mode.bpp / 8);
    const uint8_t *shape[VT_MAX_COLS];
    for (unsigned i = 0; i < n; i++)
        shape[i] = glyph(cells[i].ch);
    for (unsigned line = 0; line < FONT_H; line++, at += scr.mode.pitch) {
        uint8_t *p = at;
        if (scr.mode.bpp == 32)
            put_line32((volatile uint64_t *)at, cells, shape, n, line);
        else
            for (unsigned i = 0; i < n; i++)
                p = put_line(p, shape[i][line], scr.palette[cells[i].fg & 15], scr.palette[cells[i].bg & 15]);
    }
}

/* EGA attributes count colours as blue, green, red. */
static uint8_t ega(uint8_t c) { return (c & 0xa) | (c & 1) << 2 | (c >> 2 & 1); }

static void draw_text(unsigned x, unsigned y, const struct vt_cell *cells, unsigned n)
{
    volatile uint16_t *at = (volatile uint16_t *)(scr.fb + (uint64_t)y * scr.mode.pitch) + x;
    for (unsigned i = 0; i < n; i++)
        at[i] = (uint16_t)((cells[i].ch >= ' ' && cells[i].ch < 0x7f ? cells[i].ch : FALLBACK) | (ega(cells[i].bg) & 7) << 12 | ega(cells[i].fg) << 8);
}

/* ---- From cells to the screen ---- */

static bool same(struct vt_cell a, struct vt_cell b) { return a.ch == b.ch && a.fg == b.fg && a.bg == b.bg; }

/* What row y should look like: the cells, with the cursor in reverse. */
static void compose(struct vt_cell *line, unsigned y)
{
    const struct vt *v = &scr.vt;
    memcpy(line, v->cells + (size_t)y * v->cols, v->cols * sizeof *line);
    if (y == v->y && !v->cursor_off) {
        struct vt_cell *c = &line[MIN(v->x, v->cols - 1)];
        *c = (struct vt_cell){ c->ch, c->bg, c->fg };
    }
}

static void draw_row(unsigned y)
{
    struct vt_cell line[VT_MAX_COLS], *shown = scr.shown + (size_t)y * scr.vt.cols;
    compose(line, y);
    for (unsigned x = 0; x < scr.vt.cols; ) {
        unsigned end = x;
        while (end < scr.vt.cols && !same(line[end], shown[end]))
            end++;
        if (end > x && scr.mode.text)
            draw_text(x, y, line + x, end - x);
        else if (end > x)
            draw_run(x, y, line + x, end - x);
        memcpy(shown + x, line + x, (end - x) * sizeof *line);
        x = end + 1;
    }
}

static bool lock(void)
{
    bool take = !panic_in_progress();
    if (take)
        spin_lock(&scr.lock);
    return take;
}
static void unlock(bool taken)
{
    if (taken)
        spin_unlock(&scr.lock);
}

/* Row by row, so that the lock is held briefly. */
static void redraw(void)
{
    for (unsigned y = 0; y < scr.vt.rows; y++) {
        bool l = lock();
        draw_row(y);
        unlock(l);
    }
}

static void put_text(const char *text, size_t len)
{
    bool l = lock();
    vt_write(&scr.vt, text, len);
    unlock(l);
}

static void console_write(struct console *c, const char *text, size_t len)
{
    put_text(text, len);
    redraw();
}

/* ---- Start ---- */

static bool drawable(const struct fbcon_mode *m)
{
    if (m->text)
        return m->width >= 40 && m->width <= 132 && m->height >= 20 && m->height <= 60;
    unsigned bytes = m->bpp / 8;
    return (m->bpp == 16 || m->bpp == 24 || m->bpp == 32) && m->width >= 40 * FONT_W && m->height >= 10 * FONT_H && m->width <= 16384 && m->height <= 16384 &&
           m->pitch >= m->width * bytes && m->red_len && m->green_len && m->blue_len && m->red_len <= 16 && m->green_len <= 16 && m->blue_len <= 16 &&
           m->red_pos + m->red_len <= m->bpp && m->green_pos + m->green_len <= m->bpp && m->blue_pos + m->blue_len <= m->bpp;
}

int fbcon_init(const struct fbcon_mode *m)
{
    if (!drawable(m)) {
        log_warn("fbcon", "cannot draw in a mode of %ux%u with %u bits", (unsigned)m->width, (unsigned)m->height, m->bpp);
        return -ENOTSUP;
    }
    scr.mode = *m;
    unsigned cols = m->text ? m->width : MIN(m->width / FONT_W, (unsigned)VT_MAX_COLS), rows = m->text ? m->height : m->height / FONT_H;
    if (m->text && !scr.mode.pitch)
        scr.mode.pitch = 2 * m->width;
    size_t bytes = (size_t)cols * rows * sizeof(struct vt_cell);
    struct vt_cell *cells = kmalloc(bytes);
    scr.shown = kzalloc(bytes);         /* no cell has code 0: everything is drawn once */
    scr.fb = mmio_map(m->base, (size_t)m->height * scr.mode.pitch, m->text ? PT_UC : PT_WC);
    if (!cells || !scr.shown || !scr.fb) {
        kfree(cells);
        kfree(scr.shown);
        return -ENOMEM;
    }
    for (unsigned i = 0; i < 16; i++)
        scr.palette[i] = pixel(m, rgb[i]);
    if (m->text) {              /* VGA CRT controller, "Cursor Start": bit 5 hides the hardware's cursor, ours is a cell in reverse */
        outb(0x3d4, 0x0a);
        outb(0x3d5, 0x20);
    }
    vt_init(&scr.vt, cells, cols, rows);
    scr.console = (struct console){ .info = { "screen", cols, rows }, .write = console_write, .level = LOG_INFO };
    return console_register(&scr.console);
}

void fbcon_selftest(void)
{
    unsigned cells = scr.fb ? scr.vt.cols * scr.vt.rows : 0;
    if (!cells) {
        log_warn("fbcon", "selftest: there is no screen");
        return;
    }
    bool l = lock();
    memset(scr.shown, 0, cells * sizeof *scr.shown);
    unlock(l);
    uint64_t start = clock_ns();
    redraw();
    uint64_t drawn = clock_ns();
    redraw();
    uint64_t end = clock_ns();
    log_info("fbcon", "selftest: %u cells drawn in %llu ns, an unchanged screen looked through in %llu ns", cells, (unsigned long long)(drawn - start),
             (unsigned long long)(end - drawn));
}

static void reply(void *arg, const char *text, size_t len) { chan_write(scr.console.chan, CHAN_DEV, text, len); }
static void wake(void *arg) { event_post(&scr.event); }

static void screen_thread(void *arg)
{
    char buf[1024];
    for (;;) {
        event_wait(&scr.event);
        uint64_t next = clock_ns() + REDRAW_NS;
        for (size_t n; (n = chan_read(scr.console.chan, CHAN_DEV, buf, sizeof buf)) != 0; ) {
            put_text(buf, n);
            if (clock_ns() >= next) {
                redraw();
                next = clock_ns() + REDRAW_NS;
            }
        }
        redraw();
    }
}

struct chan *fbcon_start(void)
{
    struct chan *c = scr.fb ? chan_create(CHAN_BYTES) : NULL;
    if (!c)
        return NULL;
    event_init(&scr.event);
    bool l = lock();
    scr.vt.reply = reply;
    unlock(l);
    if (!thread_start("screen", screen_thread, NULL)) {
        chan_destroy(c);
        return NULL;
    }
    scr.console.chan = c;
    chan_set_notify(c, CHAN_DEV, wake, NULL);
    return c;
}
