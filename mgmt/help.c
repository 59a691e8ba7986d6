#include <stdio.h>
#include <string.h>
#include "kernel/lib/port.h"
#include "mgmt/cmd.h"
#include "mgmt/vmdef.h"
#include "mgmt/version.h"

static void title_of(const struct cmd *c, struct buf *out)
{
    buf_fmt(out, "%s%s%s", c->noun, c->verb ? " " : "", c->verb ? c->verb : "");
}

static void synopsis(const struct cmd *c, struct buf *out)
{
    struct flag_spec own;
    title_of(c, out);
    for (const struct arg_spec *a = c->args; a < c->args + ARRAY_SIZE(c->args) && a->kind; a++)
        buf_fmt(out, a->optional ? " [%s%s]" : " %s%s", a->name, a->many ? "..." : "");
    if (cmd_flag(c, 0, &own))
        buf_str(out, " [--flags]");
}

void help_usage(const struct cmd *c, struct buf *out)
{
    buf_str(out, "usage: ");
    synopsis(c, out);
}

static void flag_label(const struct flag_spec *f, char *label, size_t size)
{
    if (f->letter)
        snprintf(label, size, "-%c, --%s%s%s", f->letter, f->name, f->metavar ? " " : "", f->metavar ? f->metavar : "");
    else
        snprintf(label, size, "--%s%s%s", f->name, f->metavar ? " " : "", f->metavar ? f->metavar : "");
}

static void flag_words(const struct flag_spec *f, struct buf *out)
{
    for (unsigned i = 0; f->words && f->words[i]; i++)
        buf_fmt(out, "%s%s", i ? ", " : " (", f->words[i]);
    if (f->words)
        buf_byte(out, ')');
}

void help_command(const struct cmd *c, struct buf *out)
{
    struct flag_spec f;
    char label[80];
    buf_fmt(out, "%s\n\n", c->help);
    help_usage(c, out);
    buf_byte(out, '\n');
    for (unsigned i = 0; cmd_flag(c, i, &f); i++) {
        flag_label(&f, label, sizeof label);
        buf_fmt(out, "  %-26s %s", label, f.help);
        flag_words(&f, out);
        buf_byte(out, '\n');
    }
    if (c->example)
        buf_fmt(out, "\nexample: %s\n", c->example);
}

/* ---- The reference page ---- */
static void markdown_command(const struct cmd *c, struct buf *out)
{
    struct flag_spec f;
    char label[80];
    buf_str(out, "### ");
    title_of(c, out);
    buf_fmt(out, "\n\n%s. `", c->help);
    synopsis(c, out);
    buf_fmt(out, "`%s\n\n| flag | meaning |\n| --- | --- |\n", c->attrs & CMD_SHORT ? " The noun may be left out." : "");
    for (unsigned i = 0; cmd_flag(c, i, &f); i++) {
        flag_label(&f, label, sizeof label);
        buf_fmt(out, "| `%s` | %s", label, f.help);
        flag_words(&f, out);
        buf_str(out, " |\n");
    }
    if (c->example)
        buf_fmt(out, "\nExample: `%s`\n", c->example);
    buf_byte(out, '\n');
}

static void markdown_keys(const struct vmkey *k, unsigned n, struct buf *out)
{
    static const char *const kinds[] = { "name", "text", "image", "number", "size", "true or false", "word" };
    buf_str(out, "| key | value | meaning |\n| --- | --- | --- |\n");
    for (; n--; k++)
        buf_fmt(out, "| `%s` | %s | %s |\n", k->name, kinds[k->kind], k->help);
    buf_byte(out, '\n');
}

static void markdown(struct buf *out)
{
    unsigned n;
    buf_str(out, "# Commands\n\nMade by `help --markdown`. Grammar: `<noun> <verb> [object] [--flags]`; unambiguous prefixes are "
                 "accepted. "
                 "Every command takes `--json`.\n\n"
                 "Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 wrong state or exists, 5 permission, 6 no resource, 7 "
                 "timeout, 8 I/O or integrity, "
                 "9 unsupported by this CPU or host, 130 interrupted.\n\n");
    for (unsigned i = 0; i < cmd_table_size; i++) {
        const struct cmd *c = &cmd_table[i];
        if (!i || strcmp(c->noun, c[-1].noun))
            buf_fmt(out, "## %s\n\n", c->noun);
        markdown_command(c, out);
    }
    buf_str(out, "## VM definitions\n\nA TOML subset (or JSON with the same keys): `vm create -f FILE` reads it, `vm show NAME "
                 "--toml` writes it.\n\n");
    const struct vmkey *k = vmdef_keys(&n);
    markdown_keys(k, n, out);
    buf_str(out, "Each `[[disk]]`:\n\n");
    k = vmdef_disk_keys(&n);
    markdown_keys(k, n, out);
}

/* ---- help ---- */
static const struct column help_columns[] = { COL("command", TEXT), COL("help", TEXT) };

static void help_table(struct report *r, const char *noun)
{
    rep_table(r, "commands", help_columns, ARRAY_SIZE(help_columns));
    for (unsigned i = 0; i < cmd_table_size; i++) {
        const struct cmd *c = &cmd_table[i];
        if (noun && strcmp(noun, c->noun))
            continue;
        rep_fmt(r, "%s%s%s", c->noun, c->verb ? " " : "", c->verb ? c->verb : "");
        rep_str(r, c->help);
    }
}

static void print_page(struct call *c, struct buf *page)
{
    rep_lines(&c->rep, "help");
    for (char *line = page->p, *end; line && (end = strchr(line, '\n')); line = end + 1) {
        *end = 0;
        rep_str(&c->rep, line);
    }
}

static bool is_noun(const char *word)
{
    for (unsigned i = 0; i < cmd_table_size; i++)
        if (cmd_table[i].verb && !strcmp(cmd_table[i].noun, word))
            return true;
    return false;
}

int cmd_help(struct call *c)
{
    struct buf page;
    unsigned used;
    if (!call_has(c, "markdown") && (!c->nargs || (c->nargs == 1 && is_noun(c->args[0])))) {
        help_table(&c->rep, c->nargs ? c->args[0] : NULL);
        call_note(c,
                  c->nargs ? "help %s VERB tells more"
                           : "help COMMAND tells more; ? anywhere shows what can come next; Tab completes",
                  c->nargs ? c->args[0] : "");
        return EX_DONE;
    }
    buf_init(&page, 256 << 10);
    if (call_has(c, "markdown")) {
        markdown(&page);
    } else {
        const struct cmd *cmd = cmd_resolve((char *const *)c->args, c->nargs, &used, &c->fail);
        if (!cmd)
            return c->fail.code;
        help_command(cmd, &page);
    }
    print_page(c, &page);
    int code = page.failed ? fail_set(&c->fail, EX_RESOURCE, "no memory for the help page") : EX_DONE;
    buf_free(&page);
    return code;
}

/* ---- Small commands ---- */
int cmd_history(struct call *c)
{
    static const struct column cols[] = { COL("number", NUM), COL("line", TEXT) };
    rep_table(&c->rep, "history", cols, ARRAY_SIZE(cols));
    for (unsigned i = 0; i < c->s->history.n; i++) {
        rep_num(&c->rep, i + 1);
        rep_str(&c->rep, c->s->history.line[i]);
    }
    return EX_DONE;
}

int cmd_exit(struct call *c)
{
    if (c->s->p.console)
        call_note(c, "this console stays; host poweroff ends Joist");
    else
        c->s->leave = true;
    return EX_DONE;
}

int cmd_version(struct call *c)
{
    static const struct column cols[] = { COL("joist", TEXT) };
    rep_record(&c->rep, "version", cols, ARRAY_SIZE(cols));
    rep_str(&c->rep, JOIST_VERSION);
    return EX_DONE;
}
