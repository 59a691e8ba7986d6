/*
 * One operator at one terminal: byte channel in and out, line editor, history, exit code.  Any number at once (serial, screen,
 * later ssh); a session belongs to the thread that runs it.  Everything a session can wait for posts `wake`.
 */
#pragma once
#include "kernel/console/chan.h"
#include "mgmt/lineedit.h"
#include "mgmt/watch.h"

struct session_params {
    struct chan *tty;           /* caller's; the session is its `side` */
    struct chan *err;           /* messages, when they go elsewhere; NULL: tty */
    int side;                   /* CHAN_USER on a console, CHAN_DEV when a transport such as ssh holds the user side */
    unsigned cols, rows;
    bool interactive;           /* a terminal: prompt, line editing, CR LF, questions */
    bool console;               /* the machine's own: cannot be left, shows log lines */
    int log_level;              /* console: most talkative level shown */
    const char *banner;         /* NULL: none */
};

struct session {
    struct session_params p;
    struct event wake;
    bool closed;                /* the terminal is gone; set by session_close from any thread */
    bool interrupted;           /* Ctrl-C during a command */
    bool leave;                 /* exit */
    int code;                   /* of the last command */
    struct history history;
    uint64_t log_seq;
    uint8_t in[4096];           /* typed ahead */
    unsigned in_head, in_len;
    bool progress_open;         /* a progress bar is on the current row */
    uint64_t progress_at;
    unsigned progress_percent;
    struct editor ed;
};

struct session *session_new(const struct session_params *);     /* NULL: no memory */
void session_free(struct session *);
void session_close(struct session *);
/* Interactive: prompt and commands until exit or close.  Returns the last exit code. */
int  session_run(struct session *);
/* Commands separated by ';', without a prompt. */
int  session_exec(struct session *, const char *line);

/* For commands. */
void session_print(struct session *, const char *, size_t);     /* data; \n becomes CR LF on terminals; dropped once interrupted */
void session_raw(struct session *, const void *, size_t);       /* bytes as they are */
void session_msg(struct session *, const char *fmt, ...) __printf_like(2, 3);     /* messages: the err channel */
size_t session_read(struct session *, uint8_t *, size_t);       /* what was typed; does not wait */
size_t session_room(struct session *);                          /* bytes that session_raw takes without waiting */
void session_drain(struct session *);                           /* waits, half a second at most, until the terminal has taken all output */
/*
 * Sleeps until something posts wake.  0; -EINTR on Ctrl-C or when the terminal is gone; -ETIMEDOUT.  Keeps other keys for
 * later.
 *
 */
int  session_wait(struct session *, uint64_t deadline_ns);
/* A bar on a terminal, "12 %" lines elsewhere; done == total ends it. */
void session_progress(struct session *, const char *label, uint64_t done, uint64_t total);
