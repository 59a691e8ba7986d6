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
