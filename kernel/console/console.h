/*
 * The machine's own consoles as the shell finds them: COM1, the screen with its keyboard.  Each is a byte channel whose CHAN_DEV side belongs to the
 * console driver and whose CHAN_USER side belongs to the one reader (mgmt).  The driver takes output as a terminal would (CR LF, ESC [ K, ESC [ m).
 */
#pragma once
#include "kernel/console/chan.h"

struct console_info {
    const char *name;           /* "serial", "screen" */
    unsigned cols, rows;        /* of the screen; a serial line does not know and says 80, 24 */
};

/* Consoles are numbered from 0 without gaps; NULL: there is no console i.  The set is fixed once main.c starts mgmt. */
struct chan *console_chan(unsigned i);
bool console_info(unsigned i, struct console_info *);

/*
 * Log lines on a console.  At first the console prints each line as it is written.  After console_take_log the console stays silent (a panic always
 * prints) and `notify` is called instead, in any context but irq, when a line of level <= `level` was added; the owner fetches lines with log_read and
 * prints them between its prompt and the operator's typing.
 */
void console_take_log(unsigned i, int level, void (*notify)(void *arg), void *arg);

struct log_line { uint64_t seq, ns; int level; char area[16]; char text[240]; };
/* Copies the oldest kept line with seq >= *seq and advances *seq behind it; false: none.  *seq = 0 starts at the oldest; any context but irq. */
bool log_read(uint64_t *seq, struct log_line *);
uint64_t log_end(void);         /* seq that the next line will get */

/* ---- For console drivers and main.c ---- */
struct console {
    struct console_info info;
    struct chan *chan;          /* NULL: output only */
    /* Polled output for log lines before console_take_log and for a panic: any context, bounded, no locks that a stopped CPU could hold. */
    void (*write)(struct console *, const char *text, size_t len);
    int level;                  /* lines up to this level are printed */
    /* Owned by log.c. */
    uint64_t next_seq;
    bool taken;
    int take_level;
    void (*notify)(void *arg);
    void *notify_arg;
};
enum { CONSOLE_MAX = 4 };
/* Adds a console for the life of the kernel; lines already logged are printed on it. -ENOSPC. */
int  console_register(struct console *);

void log_init(void);                            /* before the first line; small static ring */
/* Moves the ring into memory that outlives a warm reset and keeps the lines of the boot before it, if they are there. */
void log_use_area(void *mem, size_t bytes, void *previous_copy);
void log_start_thread(void);                    /* from now on a thread prints; before, log_write does */
void log_panic_mode(void);                      /* no locks, everything printed at once */
bool log_has_previous(void);                    /* lines of the boot before the last warm reset were found */
bool log_read_previous(uint64_t *seq, struct log_line *);
