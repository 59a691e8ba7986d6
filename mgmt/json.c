#include <string.h>
#include "kernel/lib/port.h"
#include "mgmt/json.h"
#include "mgmt/units.h"

void json_begin(struct json *j, struct buf *out)
{
    *j = (struct json){ .out = out };
}

static void quote(struct buf *b, const char *s)
{
    size_t len = strlen(s);
    buf_byte(b, '"');
    for (size_t i = 0; i < len;) {
        uint8_t c = (uint8_t)s[i];
        unsigned n = utf8_char(s + i, len - i, NULL);
        if (c == '"' || c == '\\')
            buf_byte(b, '\\'), buf_byte(b, (char)c);
        else if (c == '\n')
            buf_str(b, "\\n");
        else if (c < 0x20 || c == 0x7f)
            buf_fmt(b, "\\u%04x", c);
        else if (!n)
            buf_str(b, "\\ufffd");
        else
            buf_add(b, s + i, n);
        i += n ? n : 1;
    }
    buf_byte(b, '"');
}

static void lead(struct json *j, const char *key)
{
    if (j->more & 1u << j->depth)
        buf_byte(j->out, ',');
    j->more |= 1u << j->depth;
    if (key) {
        quote(j->out, key);
        buf_byte(j->out, ':');
    }
}

void json_open(struct json *j, const char *key, char bracket)
{
    lead(j, key);
    buf_byte(j->out, bracket);
    ASSERT(j->depth < 31);
    j->more &= ~(1u << ++j->depth);
}

void json_close(struct json *j, char bracket)
{
    buf_byte(j->out, bracket);
    j->depth--;
}

void json_str(struct json *j, const char *key, const char *val)
{
    lead(j, key);
    quote(j->out, val);
}

void json_num(struct json *j, const char *key, uint64_t val)
{
    lead(j, key);
    buf_fmt(j->out, "%lu", (unsigned long)val);
}

void json_raw(struct json *j, const char *key, const char *text)
{
    lead(j, key);
    buf_str(j->out, text);
}

void json_bool(struct json *j, const char *key, bool val) { json_raw(j, key, val ? "true" : "false"); }
void json_null(struct json *j, const char *key) { json_raw(j, key, "null"); }
