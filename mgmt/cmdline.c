#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "kernel/lib/port.h"
#include "mgmt/cmd.h"
#include "mgmt/units.h"
#include "mgmt/vmdef.h"

bool has_prefix(const char *word, const char *prefix) { return !strncmp(word, prefix, strlen(prefix)); }

/* ---- Words ---- */
static void word_begin(struct words *ws, size_t at, char *to)
{
    if (ws->n == CMD_WORDS) {
        ws->too_many = true;
        ws->n--;
    }
    ws->start[ws->n] = (unsigned)at;
    ws->w[ws->n++] = to;
}

size_t words_split(struct words *ws, const char *line, size_t len)
{
    char *to = ws->text;        /* never ahead of the input */
    bool in = false;
    size_t i = 0;
    ws->n = 0, ws->quote = 0, ws->too_many = false;
    for (; i < len; i++) {
        char c = line[i];
        if (i == ED_LINE_MAX) {
            ws->too_many = true;
            return len;
        }
        bool blank = !ws->quote && (c == ' ' || c == '\t' || c == '\n' || c == '\r');
        if (!ws->quote && (c == ';' || (c == '#' && !in)))
            break;
        if (blank) {
            if (in)
                *to++ = 0;
            in = false;
            continue;
        }
        if (!in)
            word_begin(ws, i, to);
        in = true;
        if (ws->quote ? c == ws->quote : c == '"' || c == '\'')
            ws->quote = ws->quote ? 0 : c;
        else if (c == '\\' && ws->quote != '\'' && i + 1 < len)
            *to++ = line[++i];
        else
            *to++ = c;
    }
    *to = 0;
    ws->blank_end = !in;
    if (i < len && line[i] == '#')
        i = len;
    return i < len ? i + 1 : len;
}

/* ---- Which command ---- */
static const char *const later[] = { "snap", "disk", "pool", "net", "user", "key", "job" };

static const char *noun_help(const char *noun)
{
    static const struct { const char *noun, *help; } helps[] = {
        { "vm", "Virtual machines" }, { "image", "The image store" }, { "host", "This machine" },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(helps); i++)
        if (!strcmp(helps[i].noun, noun))
            return helps[i].help;
    return NULL;
}

void cmd_each_word(const char *noun, void (*fn)(void *arg, const char *word, const char *help), void *arg)
{
    for (unsigned i = 0; i < cmd_table_size; i++) {
        const struct cmd *c = &cmd_table[i];
        if (noun) {
            if (c->verb && !strcmp(c->noun, noun))
                fn(arg, c->verb, c->help);
        } else if (!i || strcmp(c->noun, c[-1].noun)) {
            fn(arg, c->noun, c->verb ? noun_help(c->noun) : c->help);
        }
        if (!noun && (c->attrs & CMD_SHORT))
            fn(arg, c->verb, c->help);
    }
}

/* Finds one word of a set by exact match or unique prefix; remembers the nearest for the error. */
struct pick { const char *word, *found, *near; unsigned matches, best; bool exact; char all[160]; };

static void pick_add(void *arg, const char *word, const char *help)
{
    struct pick *p = arg;
    unsigned d = name_distance(word, p->word, p->best);
    if (d < p->best && 2 * d <= MAX(strlen(word), strlen(p->word)))     /* most of it alike: "foo" is not "log" */
        p->best = d, p->near = word;
    if (p->exact || !has_prefix(word, p->word))
        return;
    p->exact = !strcmp(word, p->word);
    p->matches = p->exact ? 1 : p->matches + 1;
    p->found = word;
    size_t n = strlen(p->all);
    snprintf(p->all + n, sizeof p->all - n, "%s%s", n ? ", " : "", word);
}

static const char *pick_done(struct pick *p, const char *what, struct fail *f)
{
    if (p->matches == 1)
        return p->found;
    if (p->matches) {
        fail_set(f, EX_USAGE, "\"%.40s\" can mean %s", p->word, p->all);
        return NULL;
    }
    fail_set(f, EX_USAGE, "there is no %s \"%.40s\"", what, p->word);
    if (p->near)
        fail_hint(f, "did you mean %s?", p->near);
    return NULL;
}

static const struct cmd *by_name(const char *noun, const char *verb)
{
    for (unsigned i = 0; i < cmd_table_size; i++) {
        const struct cmd *c = &cmd_table[i];
        if (!strcmp(c->noun, noun) && (verb ? c->verb && !strcmp(c->verb, verb) : !c->verb))
            return c;
    }
    return NULL;
}

static const struct cmd *no_destroy(const char *object, struct fail *f)
{
    fail_set(f, EX_USAGE, "there is no destroy: elsewhere it means power off, or delete");
    fail_hint(f, "did you mean vm kill%s%.63s (power off) or vm rm%s%.63s (delete)?", *object ? " " : "", object,
              *object ? " " : "", object);
    return NULL;
}

static const struct cmd *need_verb(const char *noun, struct fail *f)
{
    struct pick all = { .word = "", .best = 0 };
    cmd_each_word(noun, pick_add, &all);
    fail_set(f, EX_USAGE, "%s needs a verb", noun);
    fail_hint(f, "%s", all.all);
    return NULL;
}

const struct cmd *cmd_resolve(char *const *w, unsigned n, unsigned *used, struct fail *f)
{
    struct pick first = { .word = w[0], .best = 3 };
    if (!strcmp(w[0], "destroy"))
        return no_destroy(n > 1 ? w[1] : "", f);
    cmd_each_word(NULL, pick_add, &first);
    for (unsigned i = 0; !first.matches && i < ARRAY_SIZE(later); i++)
        if (!strcmp(w[0], later[i])) {
            fail_set(f, EX_UNSUPPORTED, "%s commands are not there yet", w[0]);
            return NULL;
        }
    const char *noun = pick_done(&first, "command", f);
    if (!noun) {
        if (!first.near && !first.matches)
            fail_hint(f, "help lists the commands");
        return NULL;
    }
    const struct cmd *single = by_name(noun, NULL), *brief = by_name("vm", noun);
    *used = 1;
    if (single || (brief && (brief->attrs & CMD_SHORT)))
        return single ? single : brief;
    if (n < 2 || w[1][0] == '-')
        return need_verb(noun, f);
    if (!strcmp(w[1], "destroy"))
        return no_destroy(n > 2 ? w[2] : "", f);
    struct pick second = { .word = w[1], .best = 3 };
    cmd_each_word(noun, pick_add, &second);
    char what[40];
    snprintf(what, sizeof what, "%s command", noun);
    const char *verb = pick_done(&second, what, f);
    if (!verb && !second.near && !second.matches)
        fail_hint(f, "help %s lists the %s commands", noun, noun);
    *used = 2;
    return verb ? by_name(noun, verb) : NULL;
}

/* ---- Flags ---- */
static const struct flag_spec global_flags[] = {
    { "json", 0, VAL_NONE, NULL, "one JSON object instead of text", NULL, false },
    { "help", 'h', VAL_NONE, NULL, "this page", NULL, false },
};
static const struct flag_spec table_flags[] = {
    { "quiet", 'q', VAL_NONE, NULL, "names only", NULL, false },
    { "columns", 'o', VAL_TEXT, "COLUMN,...", "these columns, in this order", NULL, false },
};
static const struct flag_spec ask_flags[] = { { "yes", 'y', VAL_NONE, NULL, "do not ask", NULL, false } };

static bool from(const struct flag_spec *set, unsigned n, unsigned *i, struct flag_spec *out)
{
    if (*i < n) {
        *out = set[*i];
        return true;
    }
    *i -= n;
    return false;
}

static bool vm_key_flag(unsigned *i, struct flag_spec *out)
{
    static const enum val_kind kinds[] = {
        [VMKEY_TEXT] = VAL_TEXT, [VMKEY_IMAGE] = VAL_IMAGE, [VMKEY_UINT] = VAL_TEXT,
        [VMKEY_SIZE] = VAL_TEXT, [VMKEY_BOOL] = VAL_BOOL,   [VMKEY_WORD] = VAL_WORD,
    };
    unsigned n;
    const struct vmkey *k = vmdef_keys(&n);
    ASSERT(k->kind == VMKEY_NAME);      /* the first key is the object of the command */
    if (*i >= n - 1) {
        *i -= n - 1;
        return false;
    }
    k += 1 + *i;
    *out = (struct flag_spec){ k->name, 0, kinds[k->kind], k->metavar, k->help, k->words, false };
    return true;
}

bool cmd_flag(const struct cmd *c, unsigned i, struct flag_spec *out)
{
    unsigned own = 0;
    while (c->flags && c->flags[own].name)
        own++;
    return from(c->flags, own, &i, out) || ((c->attrs & CMD_VMKEYS) && vm_key_flag(&i, out)) ||
           ((c->attrs & CMD_TABLE) && from(table_flags, ARRAY_SIZE(table_flags), &i, out)) ||
           ((c->attrs & CMD_ASKS) && from(ask_flags, ARRAY_SIZE(ask_flags), &i, out)) ||
           from(global_flags, ARRAY_SIZE(global_flags), &i, out);
}

static const struct flag_spec *flag_by_letter(const struct cmd *c, char letter, struct flag_spec *out)
{
    for (unsigned i = 0; cmd_flag(c, i, out); i++)
        if (out->letter == letter)
            return out;
    return NULL;
}

static const struct flag_spec *flag_by_name(const struct cmd *c, const char *name, struct flag_spec *out)
{
    for (unsigned i = 0; cmd_flag(c, i, out); i++)
        if (!strcmp(out->name, name))
            return out;
    return NULL;
}

/* word: "--name", "--name=…", "-x".  "--no-name" finds a VAL_BOOL. */
const struct flag_spec *cmd_find_flag(const struct cmd *c, const char *word, struct flag_spec *out, struct fail *f)
{
    char name[48];
    if (word[0] == '-' && word[1] != '-') {
        if (word[1] && !word[2] && flag_by_letter(c, word[1], out))
            return out;
        fail_set(f, EX_USAGE, "there is no flag %.40s here", word);
        fail_hint(f, "%s%s%s --help shows the flags", c->noun, c->verb ? " " : "", c->verb ? c->verb : "");
        return NULL;
    }
    snprintf(name, sizeof name, "%.*s", (int)MIN(strcspn(word + 2, "="), sizeof name - 1), word + 2);
    struct pick p = { .word = name, .best = 3 };
    struct flag_spec spec;
    for (unsigned i = 0; cmd_flag(c, i, &spec); i++)
        pick_add(&p, spec.name, NULL);
    if (!p.matches && has_prefix(name, "no-") && flag_by_name(c, name + 3, out) && out->kind == VAL_BOOL)
        return out;
    const char *found = pick_done(&p, "flag", f);
    if (!found && p.near)
        fail_hint(f, "did you mean --%s?", p.near);
    if (found)
        return flag_by_name(c, found, out);
    if (!p.near && !p.matches)
        fail_hint(f, "%s%s%s --help shows the flags", c->noun, c->verb ? " " : "", c->verb ? c->verb : "");
    return NULL;
}

static int check_value(const struct flag_spec *spec, struct flag_value *v, struct fail *f)
{
    bool b;
    char all[120] = "";
    switch (spec->kind) {
    case VAL_UINT:
        return parse_uint(v->text, &v->num)
                   ? EX_DONE
                   : fail_set(f, EX_USAGE, "--%s takes a whole number, not \"%.40s\"", spec->name, v->text);
    case VAL_TIME:
        return parse_duration(v->text, &v->num)
                   ? EX_DONE
                   : fail_set(f, EX_USAGE, "--%s takes a time such as 60, 500ms or 5m, not \"%.40s\"", spec->name, v->text);
    case VAL_BOOL:
        if (!parse_bool(v->text, &b))
            return fail_set(f, EX_USAGE, "--%s takes true or false, not \"%.40s\"", spec->name, v->text);
        v->num = b;
        return EX_DONE;
    case VAL_WORD:
        for (v->num = 0; spec->words[v->num]; v->num++) {
            if (!strcmp(spec->words[v->num], v->text))
                return EX_DONE;
            snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", v->num ? ", " : "", spec->words[v->num]);
        }
        if (spec->metavar && !strcmp(spec->name, "firmware"))
            return EX_DONE;     /* the definition has a better answer */
        fail_set(f, EX_USAGE, "--%s cannot be \"%.40s\"", spec->name, v->text);
        fail_hint(f, "possible: %s", all);
        return f->code;
    default:
        return EX_DONE;
    }
}

static void set_global(struct call *c, const struct flag_spec *spec, const char *text)
{
    c->json |= !strcmp(spec->name, "json");
    c->quiet |= !strcmp(spec->name, "quiet");
    c->yes |= !strcmp(spec->name, "yes");
    c->help |= !strcmp(spec->name, "help");
    if (!strcmp(spec->name, "columns"))
        c->columns = text;
}

/* One flag at w[*i]; *i moves on to its value if that is a word of its own. */
static int parse_flag(const struct cmd *cmd, char *const *w, unsigned n, unsigned *i, struct call *c)
{
    struct flag_spec spec;
    const char *word = w[*i];
    if (!cmd_find_flag(cmd, word, &spec, &c->fail))
        return c->fail.code;
    const char *eq = word[1] == '-' ? strchr(word, '=') : NULL;
    struct flag_value v = { .name = spec.name, .text = eq ? eq + 1 : NULL };
    bool negated = spec.kind == VAL_BOOL && has_prefix(word, "--no-") && !has_prefix(spec.name, "no-");
    if (negated && !eq)
        v.text = "false";
    else if ((spec.kind == VAL_NONE && eq) || negated)
        return fail_set(&c->fail, EX_USAGE, "--%s%s takes no value", negated ? "no-" : "", spec.name);
    else if (spec.kind == VAL_BOOL && !eq)
        v.text = "true";
    else if (spec.kind != VAL_NONE && !eq) {
        if (*i + 1 >= n)
            return fail_set(&c->fail, EX_USAGE, "--%s needs a value: --%s %s", spec.name, spec.name,
                            spec.metavar ? spec.metavar : "VALUE");
        v.text = w[++*i];
    }
    int code = v.text ? check_value(&spec, &v, &c->fail) : EX_DONE;
    if (code)
        return code;
    if (!spec.repeat && call_flag(c, spec.name))
        return fail_set(&c->fail, EX_USAGE, "--%s is given twice", spec.name);
    if (c->nflags == CMD_FLAGS)
        return fail_set(&c->fail, EX_USAGE, "too many flags (at most %d)", CMD_FLAGS);
    c->flags[c->nflags++] = v;
    set_global(c, &spec, v.text);
    return EX_DONE;
}

static int check_args(const struct cmd *cmd, struct call *c)
{
    unsigned least = 0, most = 0;
    struct buf usage;
    for (const struct arg_spec *a = cmd->args; a < cmd->args + ARRAY_SIZE(cmd->args) && a->kind; a++) {
        least += !a->optional;
        most = a->many ? CMD_ARGS : most + 1;
    }
    if (c->help || (c->nargs >= least && c->nargs <= most))
        return EX_DONE;
    if (c->nargs > most)
        fail_set(&c->fail, EX_USAGE, "\"%.60s\" is too much here", c->args[most]);
    else
        fail_set(&c->fail, EX_USAGE, "%s%s%s needs %s", cmd->noun, cmd->verb ? " " : "", cmd->verb ? cmd->verb : "",
                 cmd->args[c->nargs].name);
    buf_init(&usage, 400);
    help_usage(cmd, &usage);
    fail_hint(&c->fail, "%s", buf_text(&usage));
    buf_free(&usage);
    return c->fail.code;
}

int cmd_parse(const struct cmd *cmd, char *const *w, unsigned n, struct call *c)
{
    bool flags = true;
    c->cmd = cmd;
    for (unsigned i = 0; i < n; i++) {
        if (flags && !strcmp(w[i], "--")) {
            flags = false;
        } else if (flags && w[i][0] == '-' && w[i][1]) {
            int code = parse_flag(cmd, w, n, &i, c);
            if (code)
                return code;
        } else if (c->nargs == CMD_ARGS) {
            return fail_set(&c->fail, EX_USAGE, "too many words (at most %d)", CMD_ARGS);
        } else {
            c->args[c->nargs++] = w[i];
        }
    }
    return check_args(cmd, c);
}

/* ---- What handlers use ---- */
const struct flag_value *call_flag(const struct call *c, const char *name)
{
    for (unsigned i = 0; i < c->nflags; i++)
        if (!strcmp(c->flags[i].name, name))
            return &c->flags[i];
    return NULL;
}

bool call_has(const struct call *c, const char *name) { return call_flag(c, name) != NULL; }

uint64_t call_num(const struct call *c, const char *name, uint64_t otherwise)
{
    const struct flag_value *v = call_flag(c, name);
    return v ? v->num : otherwise;
}

void call_note(struct call *c, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    if (c->json || c->quiet)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    session_msg(c->s, "%s\n", text);
}

static bool read_answer(struct session *s)
{
    char first = 0;
    uint8_t k;
    for (;;) {
        if (!session_read(s, &k, 1)) {
            if (session_wait(s, UINT64_MAX))
                return false;
            continue;
        }
        if (k == '\r' || k == '\n') {
            s->ed.after_cr = k == '\r';
            session_raw(s, "\r\n", 2);
            return first == 'y' || first == 'Y';
        }
        if (k == 3 || k == 4) {
            session_raw(s, "\r\n", 2);
            return false;
        }
        if (k >= 0x20 && k < 0x7f) {
            first = first ? first : (char)k;
            session_raw(s, &k, 1);
        }
    }
}

bool call_ask(struct call *c, const char *fmt, ...)
{
    char text[300];
    va_list ap;
    if (c->yes)
        return true;
    if (!c->s->p.interactive || c->json) {
        fail_set(&c->fail, EX_USAGE, "%s %s loses data and there is nobody to ask", c->cmd->noun, c->cmd->verb);
        fail_hint(&c->fail, "add -y to confirm");
        return false;
    }
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    session_msg(c->s, "%s [y/N] ", text);
    if (read_answer(c->s))
        return true;
    fail_set(&c->fail, EX_INTERRUPTED, "nothing was done");
    return false;
}

/* ---- Running ---- */
static void answer_json(struct call *c, int code)
{
    struct buf out;
    struct json j;
    buf_init(&out, 2 * REP_MAX_BYTES);
    json_begin(&j, &out);
    json_open(&j, NULL, '{');
    json_num(&j, "schema", JSON_SCHEMA);
    if (code) {
        json_open(&j, "error", '{');
        json_num(&j, "code", (uint64_t)code);
        json_str(&j, "message", c->fail.message);
        json_str(&j, "hint", c->fail.hint);
        json_close(&j, '}');
    }
    rep_json(&c->rep, &j);
    json_close(&j, '}');
    buf_byte(&out, '\n');
    if (out.failed) {
        static const char sorry[] =
            "{\"schema\":1,\"error\":{\"code\":6,\"message\":\"the answer does not fit in the memory that is free\",\"hint\":\"\"}}\n";
        session_print(c->s, sorry, sizeof sorry - 1);
    } else {
        session_print(c->s, out.p, out.len);
    }
    buf_free(&out);
}

static int answer_text(struct call *c, int code)
{
    struct rep_style style = { c->columns, c->quiet };
    struct buf out;
    buf_init(&out, 2 * REP_MAX_BYTES);
    if (c->rep.n) {
        struct fail f;
        int err = rep_text(&c->rep, &style, &out, &f);
        if (err && !code)
            c->fail = f, code = err;
        session_print(c->s, buf_text(&out), out.len);
    }
    buf_free(&out);
    if (code && c->fail.message[0] && !(code == EX_INTERRUPTED && c->s->interrupted)) {
        session_msg(c->s, "error: %s\n", c->fail.message);
        if (c->fail.hint[0])
            session_msg(c->s, "hint: %s\n", c->fail.hint);
    }
    return code;
}

static int run_words(struct call *c, struct words *ws)
{
    unsigned used = 0;
    for (unsigned i = 0; i < ws->n; i++)
        c->json |= !strcmp(ws->w[i], "--json");         /* even when the rest cannot be read */
    if (ws->quote)
        return fail_set(&c->fail, EX_USAGE, "the quote %c is not closed", ws->quote);
    if (ws->too_many)
        return fail_set(&c->fail, EX_USAGE, "the command is too long (at most %d words, %d bytes)", CMD_WORDS, ED_LINE_MAX);
    const struct cmd *cmd = cmd_resolve(ws->w, ws->n, &used, &c->fail);
    if (!cmd)
        return c->fail.code;
    int code = cmd_parse(cmd, ws->w + used, ws->n - used, c);
    if (code)
        return code;
    if (c->help) {
        struct buf page;
        buf_init(&page, 16 << 10);
        help_command(cmd, &page);
        rep_lines(&c->rep, "help");
        for (char *line = page.p, *end; line && *line; line = end + 1) {
            if (!(end = strchr(line, '\n')))
                break;
            *end = 0;
            rep_str(&c->rep, line);
        }
        buf_free(&page);
        return EX_DONE;
    }
    return cmd->run(c);
}

int cmd_run(struct session *s, const char *line, const char **rest)
{
    struct words *ws = kmalloc(sizeof *ws);
    struct call *c = kzalloc(sizeof *c);
    int code = s->code;
    *rest = NULL;
    if (!ws || !c) {
        session_msg(s, "error: no memory to run a command\n");
        code = EX_RESOURCE;
    } else {
        size_t used = words_split(ws, line, strlen(line));
        *rest = line[used] ? line + used : NULL;
        c->s = s;
        rep_init(&c->rep);
        if (ws->n) {
            code = run_words(c, ws);
            if (c->json)
                answer_json(c, code);
            else
                code = answer_text(c, code);
        }
        rep_free(&c->rep);
    }
    kfree(ws);
    kfree(c);
    return code;
}
