/*
 * A VT100-like terminal without a screen: bytes in, a grid of cells out.  ECMA-48 "Control Functions for Coded Character Sets", DEC VT100 User Guide; colours
 * as xterm has them (16 of them; 256-colour and RGB sequences are mapped to the nearest of these).  UTF-8.  H.
 *
 * No locks: the owner serialises.  The display compares cells with what it has drawn; vt itself keeps no damage list.
 */
#pragma once
#include "kernel/lib/base.h"

struct vt_cell { uint16_t ch; uint8_t fg, bg; };        /* code point in the BMP; colours 0 .. 15 */
_Static_assert(sizeof(struct vt_cell) == 4, "compared as one word");

enum { VT_MAX_PARAMS = 8, VT_MAX_COLS = 512 };

struct vt {
    unsigned cols, rows;
    struct vt_cell *cells;              /* rows * cols, the owner's */
    unsigned x, y;                      /* cursor; x == cols: the next character wraps */
    unsigned top, bottom;               /* scroll region: rows top .. bottom - 1 */
    uint8_t fg, bg;
    bool bold, reverse, cursor_off, no_wrap;
    struct { unsigned x, y; uint8_t fg, bg; bool bold, reverse; } saved;
    /* Parser. */
    enum { VT_TEXT, VT_ESC, VT_CSI, VT_STRING, VT_STRING_ESC, VT_SKIP } state;
    uint16_t param[VT_MAX_PARAMS];
    uint8_t nparams;
    char prefix;                        /* '?' or '>' after CSI; 0 none */
    uint32_t utf8;                      /* code point so far */
    uint8_t utf8_left;
    /* Answers to queries (cursor position, device attributes) go here; may be NULL. */
    void (*reply)(void *arg, const char *text, size_t len);
    void *reply_arg;
};

/* cells: rows * cols of the owner's; cols <= VT_MAX_COLS. */
void vt_init(struct vt *, struct vt_cell *cells, unsigned cols, unsigned rows);
void vt_write(struct vt *, const char *text, size_t len);
