/* Completion and help in place, from the same tables as the parser. */
#include <stdio.h>
#include <string.h>
#include "guestdev/machine.h"
#include "kernel/host.h"
#include "kernel/lib/port.h"
#include "mgmt/cmd.h"
#include "mgmt/guest.h"

struct choices {
    const char *prefix;         /* what is typed of the word */
    unsigned n;
    char first[160], common[160];       /* the only candidate; what all share */
    bool help;                  /* everything that can come; completion leaves flags out while an object is missing */
    struct report *list;        /* where help in place and lists go, or NULL */
};

static void offer(void *arg, const char *word, const char *help)
{
    struct choices *ch = arg;
    if (!has_prefix(word, ch->prefix))
        return;
    if (!ch->n++) {
        snprintf(ch->first, sizeof ch->first, "%s", word);
        snprintf(ch->common, sizeof ch->common, "%s", word);
    }
    size_t i = 0;
    while (ch->common[i] && ch->common[i] == word[i])
        i++;
    ch->common[i] = 0;
    if (ch->list) {
        rep_str(ch->list, word);
        rep_str(ch->list, help ? help : "");
    }
}

static void offer_vms(struct choices *ch)
{
    struct fail f;
    unsigned n;
    struct guest_status st;
    struct guest **all = guest_all(&n, &f);
    for (unsigned i = 0; i < n; i++) {
        guest_status(all[i], &st);
        offer(ch, st.name, guest_state_names[st.state]);
        guest_put(all[i]);
    }
    kfree(all);
}

static void offer_images(struct choices *ch)
{
    struct host_image img;
    for (unsigned i = 0; host_image(i, &img); i++)
        offer(ch, img.name, NULL);
}

static void offer_value(struct choices *ch, const struct flag_spec *f)
{
    for (unsigned i = 0; f->words && f->words[i]; i++)
        offer(ch, f->words[i], NULL);
    if (f->kind == VAL_IMAGE)
        offer_images(ch);
    if (f->kind == VAL_BOOL)
        offer(ch, "true", NULL), offer(ch, "false", NULL);
    if (!ch->n && ch->list && f->metavar) {
        rep_str(ch->list, f->metavar);
        rep_str(ch->list, f->help);
    }
}

static bool given(const struct cmd *cmd, const char *name, char *const *w, unsigned n)
{
    struct flag_spec f;
    struct fail fail;
    for (unsigned i = 0; i < n; i++)
        if (w[i][0] == '-' && w[i][1] && cmd_find_flag(cmd, w[i], &f, &fail) && !strcmp(f.name, name))
            return true;
    return false;
}

static void offer_flags(struct choices *ch, const struct cmd *cmd, char *const *w, unsigned n)
{
    struct flag_spec f;
    char word[60];
    for (unsigned i = 0; cmd_flag(cmd, i, &f); i++) {
        if (!f.repeat && given(cmd, f.name, w, n - 1))
            continue;
        snprintf(word, sizeof word, "--%s", f.name);
        offer(ch, word, f.help);
    }
}

static void offer_topics(struct choices *ch, char *const *w, unsigned n)
{
    if (n == 1)
        cmd_each_word(NULL, offer, ch);
    else if (n == 2)
        cmd_each_word(w[0], offer, ch);
}

/* Words before the last are complete; w[0..n-1] are the command's own, the last being typed. */
static void offer_words(struct choices *ch, const struct cmd *cmd, char *const *w, unsigned n)
{
    struct flag_spec f;
    struct fail fail;
    unsigned nargs = 0, i;
    bool flags = true;
    for (i = 0; i + 1 < n; i++) {
        if (flags && !strcmp(w[i], "--")) {
            flags = false;
        } else if (flags && w[i][0] == '-' && w[i][1]) {
            bool takes = cmd_find_flag(cmd, w[i], &f, &fail) && f.kind != VAL_NONE && f.kind != VAL_BOOL && !strchr(w[i], '=');
            if (takes && i + 2 == n) {
                offer_value(ch, &f);
                return;
            }
            i += takes;
        } else {
            nargs++;
        }
    }
    const struct arg_spec *a = &cmd->args[0];
    while (nargs && a->kind && !a->many && a + 1 < cmd->args + ARRAY_SIZE(cmd->args))
        a++, nargs--;
    if (ch->prefix[0] != '-' && (!nargs || a->many) && a->kind) {
        if (a->kind == ARG_VM)
            offer_vms(ch);
        else if (a->kind == ARG_TOPIC)
            offer_topics(ch, w, n);
        else if (ch->list && !ch->prefix[0])
            rep_str(ch->list, a->name), rep_str(ch->list, "a word of your choice");
    }
    if (flags && (ch->prefix[0] == '-' || ch->help || !a->kind || a->optional || (a->many && nargs && !ch->n)))
        offer_flags(ch, cmd, w, n);
}

/* --flag=val: the part behind = is completed. */
static bool offer_inline_value(struct choices *ch, const struct cmd *cmd, const char *word)
{
    struct flag_spec f;
    struct fail fail;
    const char *eq = strchr(word, '=');
    if (!has_prefix(word, "--") || !eq || !cmd_find_flag(cmd, word, &f, &fail))
        return false;
    ch->prefix = eq + 1;
    offer_value(ch, &f);
    return true;
}

static void find_choices(struct choices *ch, struct words *ws)
{
    struct fail f;
    unsigned used = 0, n = ws->n;
    char *const *w = ws->w;
    ch->prefix = w[n - 1];
    if (n == 1) {
        cmd_each_word(NULL, offer, ch);
        return;
    }
    const struct cmd *cmd = cmd_resolve(w, n - 1, &used, &f);
    if (cmd && used < n) {
        if (!offer_inline_value(ch, cmd, w[n - 1]))
            offer_words(ch, cmd, w + used, n - used);
        return;
    }
    /* a noun, and its verb is being typed */
    struct choices noun = { .prefix = w[0] };
    cmd_each_word(NULL, offer, &noun);
    if (n == 2 && (noun.n == 1 || !strcmp(noun.first, w[0])))
        cmd_each_word(noun.first, offer, ch);
}

/* Words up to the cursor, of the command the cursor is in; the last one is the one being typed (maybe empty). */
static bool words_at_cursor(struct words *ws, const struct editor *e)
{
    size_t from = 0, used;
    while ((used = words_split(ws, e->line + from, e->cur - from)) && from + used < e->cur)
        from += used;
    if (from + used == e->cur && used && e->line[from + used - 1] == ';' && !ws->quote)
        ws->n = 0, ws->blank_end = true;
    if (ws->too_many || ws->n == CMD_WORDS)
        return false;
    if (ws->blank_end) {
        ws->w[ws->n++] = ws->text + ED_LINE_MAX;
        ws->text[ED_LINE_MAX] = 0;
    }
    return ws->n > 0;
}

/* What the line needs so that the typed prefix becomes `whole`, quoted as the word is. */
static void insert_rest(struct editor *e, const struct words *ws, const char *prefix, const char *whole, bool end)
{
    char text[340];
    size_t n = 0;
    for (const char *s = whole + strlen(prefix); *s && n < sizeof text - 4; s++) {
        if (ws->quote ? *s == ws->quote || (*s == '\\' && ws->quote == '"') : strchr(" \t\\'\";#", *s) != NULL)
            text[n++] = '\\';
        text[n++] = *s;
    }
    if (end && ws->quote)
        text[n++] = ws->quote;
    if (end)
        text[n++] = ' ';
    if (n)
        ed_insert(e, text, n);
}

static const struct column choice_columns[] = { COL("word", TEXT), COL("help", TEXT) };

static void print_choices(struct session *s, struct editor *e, struct report *list)
{
    static const struct rep_style style = { NULL, false };
    struct buf out;
    struct fail f;
    buf_init(&out, 64 << 10);
    session_raw(s, "\r\n", 2);
    if (!rep_text(list, &style, &out, &f) && out.len) {
        const char *body = strchr(out.p, '\n');       /* without the header */
        session_print(s, body + 1, strlen(body + 1));
    }
    buf_free(&out);
    ed_show(e);
}

static void help_or_complete(struct session *s, struct editor *e, bool help)
{
    struct words *ws = kmalloc(sizeof *ws);
    struct report *list = kmalloc(sizeof *list);
    struct choices ch = { .help = help, .list = list };
    if (ws && list && words_at_cursor(ws, e)) {
        rep_init(list);
        rep_table(list, "choices", choice_columns, ARRAY_SIZE(choice_columns));
        find_choices(&ch, ws);
        bool more = strlen(ch.common) > strlen(ch.prefix);
        if (!help && ch.n == 1)
            insert_rest(e, ws, ch.prefix, ch.first, true);
        else if (!help && ch.n && more)
            insert_rest(e, ws, ch.prefix, ch.common, false);
        else if (help || ch.n > 1)
            print_choices(s, e, list);
        else
            session_raw(s, "\a", 1);
        rep_free(list);
    }
    kfree(ws);
    kfree(list);
}

void cmd_complete(struct session *s, struct editor *e) { help_or_complete(s, e, false); }
void cmd_help_here(struct session *s, struct editor *e) { help_or_complete(s, e, true); }
