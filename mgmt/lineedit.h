/*
 * Line editor for terminals from a dumb serial line up.  Pure: bytes in, bytes out through a callback, an event back.  It
 * repaints with printable characters, backspace, space and CR only; what lies beyond the screen's width scrolls sideways.
 * UTF-8; invalid bytes are dropped.
 *
 * Keys: arrows, Home, End, Delete, Ctrl-A E B F P N D H K U W Y T L, Alt-B F D Backspace, Ctrl-arrows, Ctrl-R, Ctrl-G, Ctrl-C.
 */
#pragma once
#include "kernel/lib/base.h"

enum { ED_LINE_MAX = 4095, ED_HISTORY = 200, ED_SHOWN_MAX = 1200, ED_QUERY_MAX = 63 };

enum ed_event {
    ED_NONE,
    ED_LINE,            /* Enter: the text is in line[] until ed_start */
    ED_INTR,            /* Ctrl-C */
    ED_EOF,             /* Ctrl-D on an empty line */
    ED_TAB,             /* complete at cur, then ed_insert */
    ED_HELP,            /* '?' outside quotes */
};

struct history { char *line[ED_HISTORY]; unsigned n; };        /* oldest first; kmalloc'ed strings */
void history_add(struct history *, const char *line);           /* blank lines and repeats of the newest are left out */
void history_free(struct history *);

struct editor {
    void (*out)(void *arg, const char *, size_t);
    void *arg;
    struct history *history;
    const char *prompt;
    unsigned cols;
    char line[ED_LINE_MAX + 1];
    unsigned len, cur;          /* bytes; cur on a character boundary */
    /* private */
    unsigned win;               /* first byte in view */
    char shown[ED_SHOWN_MAX];   /* what the terminal shows in this row, prompt included */
    unsigned shown_len, shown_cols, at;         /* at: column of the terminal's cursor */
    char stash[ED_LINE_MAX + 1], killed[ED_LINE_MAX + 1];
    unsigned back;              /* how far back in history; 0: the line being written, kept in stash meanwhile */
    bool searching, soft, after_cr;
    char query[ED_QUERY_MAX + 1];
    unsigned found;             /* history index + 1 of the match, 0: none */
    uint8_t esc, nparam, nrune;
    char param[8], rune[4];
};

void ed_init(struct editor *, struct history *, unsigned cols, void (*out)(void *, const char *, size_t), void *arg);
void ed_start(struct editor *, const char *prompt);     /* prints the prompt; empty line; prompt must stay valid */
enum ed_event ed_feed(struct editor *, uint8_t byte);
void ed_insert(struct editor *, const char *, size_t);
/* Print something else between: hide, print whole lines, show.  The prompt that show prints looks the same, but a script waiting
 * for the exact prompt
 * does not take it for a new one (the '>' is written twice with a backspace between). */
void ed_hide(struct editor *);
void ed_show(struct editor *);
