/*
 * The command table and what a running command works with.  One table drives parsing, prefixes, help, completion and the
 * reference page.
 *
 * Grammar: <noun> <verb> [object…] [--flags], in any order after the verb; unambiguous prefixes; "…" '…' and \ quote; ';'
 * separates commands.
 */
#pragma once
#include "mgmt/report.h"
#include "mgmt/session.h"

enum { CMD_ARGS = 32, CMD_FLAGS = 64, CMD_WORDS = 128, JSON_SCHEMA = 1 };

enum arg_kind { ARG_END, ARG_VM, ARG_NAME /* a new one */, ARG_TEXT, ARG_TOPIC /* of help */ };
struct arg_spec { const char *name; enum arg_kind kind; bool optional, many; };

enum val_kind { VAL_NONE, VAL_TEXT, VAL_UINT, VAL_TIME, VAL_WORD, VAL_IMAGE, VAL_BOOL /* value may be left out: true */ };
struct flag_spec {
    const char *name;
    char letter;                /* 0: none */
    enum val_kind kind;
    const char *metavar, *help;
    const char *const *words;   /* VAL_WORD: NULL-terminated */
    bool repeat;
};

enum {
    CMD_SHORT = 1,              /* the noun may be left out */
    CMD_TABLE = 2,              /* -q and -o */
    CMD_ASKS = 4,               /* -y */
    CMD_VMKEYS = 8,             /* every key of a VM definition is a flag */
};

struct call;
struct cmd {
    const char *noun, *verb;    /* verb NULL: a command of one word */
    unsigned attrs;
    struct arg_spec args[3];
    const struct flag_spec *flags;      /* ends with a NULL name */
    int (*run)(struct call *);  /* exit code; the sentence in call->fail */
    const char *help, *example;
};
extern const struct cmd cmd_table[];
extern const unsigned cmd_table_size;

struct flag_value { const char *name, *text; uint64_t num; };

struct call {
    struct session *s;
    const struct cmd *cmd;
    unsigned nargs, nflags;
    const char *args[CMD_ARGS];
    struct flag_value flags[CMD_FLAGS];         /* in the order given */
    bool json, quiet, yes, help;
    const char *columns;
    char vm[64];                /* name of the VM at work, for messages: it may be renamed meanwhile */
    struct report rep;
    struct fail fail;
};

/* ---- For handlers ---- */
const struct flag_value *call_flag(const struct call *, const char *name);      /* NULL: not given */
bool call_has(const struct call *, const char *name);
uint64_t call_num(const struct call *, const char *name, uint64_t otherwise);
/* A message for people: not with --json or -q. */
void call_note(struct call *, const char *fmt, ...) __printf_like(2, 3);
/* Asks on a terminal; true with -y.  Otherwise sets fail (EX_USAGE without a terminal, EX_INTERRUPTED on no). */
bool call_ask(struct call *, const char *fmt, ...) __printf_like(2, 3);

/* ---- For the session ---- */
/* Runs the first command of line; *rest: behind its ';', NULL at the end. */
int  cmd_run(struct session *, const char *line, const char **rest);
void cmd_complete(struct session *, struct editor *);
void cmd_help_here(struct session *, struct editor *);

/* ---- Parsing (cmdline.c), shared with completion and help ---- */
struct words {
    char text[ED_LINE_MAX + 1];
    char *w[CMD_WORDS];
    unsigned n, start[CMD_WORDS];       /* start: byte in the line */
    char quote;                 /* the line ends inside this quote, 0: no */
    bool blank_end;             /* the line ends behind a word, not in it */
    bool too_many;
};
/* Splits line up to len or an unquoted ';'; returns the bytes used (past the ';'). */
size_t words_split(struct words *, const char *line, size_t len);
/* Command of the first words; *used: 1 or 2.  NULL: fail set. */
const struct cmd *cmd_resolve(char *const *w, unsigned n, unsigned *used, struct fail *);
/* The i-th flag this command takes, global ones last; false: no more. */
bool cmd_flag(const struct cmd *, unsigned i, struct flag_spec *);
const struct flag_spec *cmd_find_flag(const struct cmd *, const char *word, struct flag_spec *out, struct fail *);
int  cmd_parse(const struct cmd *, char *const *w, unsigned n, struct call *);
bool has_prefix(const char *word, const char *prefix);
/* Calls fn for every noun and one-word command, or for the verbs of a noun. */
void cmd_each_word(const char *noun, void (*fn)(void *arg, const char *word, const char *help), void *arg);

/* ---- Help (help.c) ---- */
void help_command(const struct cmd *, struct buf *);
void help_usage(const struct cmd *, struct buf *);
int  cmd_help(struct call *);
int  cmd_history(struct call *);
int  cmd_exit(struct call *);
int  cmd_version(struct call *);

/* ---- Handlers: cmd_vm.c, cmd_show.c, cmd_console.c, cmd_host.c ---- */
int cmd_vm_list(struct call *);
int cmd_vm_create(struct call *);
int cmd_vm_show(struct call *);
int cmd_vm_set(struct call *);
int cmd_vm_rename(struct call *);
int cmd_vm_rm(struct call *);
int cmd_vm_start(struct call *);
int cmd_vm_stop(struct call *);
int cmd_vm_kill(struct call *);
int cmd_vm_reboot(struct call *);
int cmd_vm_reset(struct call *);
int cmd_vm_pause(struct call *);
int cmd_vm_resume(struct call *);
int cmd_vm_wait(struct call *);
int cmd_vm_console(struct call *);
int cmd_vm_log(struct call *);
int cmd_vm_stats(struct call *);
int cmd_vm_dump(struct call *);
int cmd_image_list(struct call *);
int cmd_host_info(struct call *);
int cmd_host_cpu(struct call *);
int cmd_host_mem(struct call *);
int cmd_host_pci(struct call *);
int cmd_host_log(struct call *);
int cmd_host_top(struct call *);
int cmd_host_time(struct call *);
int cmd_host_reboot(struct call *);
int cmd_host_poweroff(struct call *);
