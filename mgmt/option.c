#include <string.h>
#include "mgmt/option.h"

/* Inside a word, between quotes or not: copies its rest without quotes, returns what follows.  GRUB puts a backslash before quotes and backslashes. */
static const char *take_word(const char *s, bool quoted, char *out, size_t len)
{
    size_t n = 0;
    for (; *s && (quoted || (*s != ' ' && *s != '\t')); s++) {
        if (*s == '"') {
            quoted = !quoted;
            continue;
        }
        s += *s == '\\' && s[1] && strchr("\"'\\", s[1]);
        if (n + 1 < len)
            out[n++] = *s;
    }
    out[n] = 0;
    return s;
}

bool option_get(const char *s, const char *key, char *val, size_t len)
{
    size_t n = strlen(key);
    while (*(s += strspn(s, " \t"))) {
        bool quoted = *s == '"';            /* GRUB quotes the whole word: "key=a b" */
        s += quoted;
        bool here = !strncmp(s, key, n) && (!s[n] || strchr("= \t\"", s[n]));
        const char *value = here && s[n] == '=' ? s + n + 1 : s + (here ? n : 0);
        s = take_word(value, quoted, val, len);
        if (here)
            return true;
    }
    val[0] = 0;
    return false;
}
