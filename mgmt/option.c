#include <string.h>
#include "mgmt/option.h"

/* At a word: copies it without its quotes, returns what follows. */
static const char *take_word(const char *s, char *out, size_t len)
{
    size_t n = 0;
    for (char quote = 0; *s && (quote || (*s != ' ' && *s != '\t')); s++) {
        if (quote ? *s == quote : *s == '"')
            quote = quote ? 0 : *s;
        else if (n + 1 < len)
            out[n++] = *s;
    }
    out[n] = 0;
    return s;
}

bool option_get(const char *s, const char *key, char *val, size_t len)
{
    size_t n = strlen(key);
    while (*(s += strspn(s, " \t"))) {
        bool here = !strncmp(s, key, n) && (!s[n] || s[n] == '=' || s[n] == ' ' || s[n] == '\t');
        const char *value = here && s[n] == '=' ? s + n + 1 : s + (here ? n : 0);
        s = take_word(value, val, len);
        if (here)
            return true;
    }
    val[0] = 0;
    return false;
}
