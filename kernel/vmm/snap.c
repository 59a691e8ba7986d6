/*
 * Stream format, everything little-endian and unaligned:
 *     section = 'S', name length u8, name, version u32, body length u32, body = field*
 *     field   = name length u8, name, length u32, bytes
 * A section is checked as a whole when it is opened for loading, so that looking a field up cannot run out of it.
 */
#include "kernel/vmm/snap.h"

#include <errno.h>
#include <string.h>

enum { SECTION_MARK = 'S', NAME_MAX_LEN = 255 };

void snap_init_save(struct snap *s, void *buf, size_t cap)
{
    *s = (struct snap){ .buf = buf, .len = cap };
}

void snap_init_load(struct snap *s, const void *buf, size_t len)
{
    *s = (struct snap){ .loading = true, .buf = (uint8_t *)buf, .len = len };
}

static void put(struct snap *s, const void *p, size_t n)
{
    if (s->err)
        return;
    if (n > s->len - s->pos) {
        s->err = -ENOSPC;
        return;
    }
    memcpy(s->buf + s->pos, p, n);
    s->pos += n;
}

static void put_name(struct snap *s, const char *name)
{
    uint8_t n = MIN(strlen(name), (size_t)NAME_MAX_LEN);
    put(s, &n, 1);
    put(s, name, n);
}

static void put32(struct snap *s, uint32_t v) { put(s, &v, sizeof v); }

static uint32_t get32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

struct field { const uint8_t *name, *data; size_t namelen, len, next; };

/* The field at `pos`, which must end at or before `end`. */
static bool field_at(const struct snap *s, size_t pos, size_t end, struct field *f)
{
    if (pos >= end)
        return false;
    f->namelen = s->buf[pos++];
    if (end - pos < f->namelen + 4)
        return false;
    f->name = s->buf + pos;
    pos += f->namelen;
    f->len = get32(s->buf + pos);
    pos += 4;
    if (end - pos < f->len)
        return false;
    f->data = s->buf + pos;
    f->next = pos + f->len;
    return true;
}

static bool name_is(const uint8_t *name, size_t len, const char *want)
{
    return strlen(want) == len && !memcmp(name, want, len);
}

static int open_section(struct snap *s, const char *name, uint32_t version)
{
    const uint8_t *p = s->buf + s->pos;
    size_t left = s->len - s->pos;
    if (left < 2 || p[0] != SECTION_MARK || left - 2 < p[1] + 8u || !name_is(p + 2, p[1], name))
        return -EINVAL;
    size_t head = 2 + p[1] + 8;
    s->version = get32(p + head - 8);
    size_t body = get32(p + head - 4);
    if (s->version > version || body > left - head)
        return -EINVAL;
    s->section = s->pos += head;
    s->section_end = s->pos + body;
    struct field f;
    size_t at = s->section;
    while (field_at(s, at, s->section_end, &f))
        at = f.next;
    return at == s->section_end ? 0 : -EINVAL;
}

void snap_begin(struct snap *s, const char *section, uint32_t version)
{
    if (s->err)
        return;
    if (s->loading) {
        s->err = open_section(s, section, version);
        return;
    }
    s->version = version;
    put(s, &(uint8_t){ SECTION_MARK }, 1);
    put_name(s, section);
    put32(s, version);
    put32(s, 0);
    s->section = s->pos;
}

int snap_end(struct snap *s)
{
    if (s->err)
        return s->err;
    if (s->loading) {
        s->pos = s->section_end;
    } else {
        uint32_t body = s->pos - s->section;
        memcpy(s->buf + s->section - 4, &body, sizeof body);
    }
    return 0;
}

/* Fields nearly always come in stream order: the search goes on from the last hit and wraps once. */
static bool find_field(struct snap *s, const char *name, struct field *f)
{
    for (size_t at = s->pos; field_at(s, at, s->section_end, f); at = f->next)
        if (name_is(f->name, f->namelen, name))
            return true;
    for (size_t at = s->section; at < s->pos && field_at(s, at, s->section_end, f); at = f->next)
        if (name_is(f->name, f->namelen, name))
            return true;
    return false;
}

void snap_bytes(struct snap *s, const char *name, void *p, size_t len)
{
    struct field f;
    if (s->err)
        return;
    if (!s->loading) {
        put_name(s, name);
        put32(s, len);
        put(s, p, len);
    } else if (find_field(s, name, &f)) {
        s->pos = f.next;
        if (f.len == len)
            memcpy(p, f.data, len);
        else
            s->err = -EINVAL;
    }
}

void snap_bools(struct snap *s, const char *name, void *p, size_t count)
{
    struct field f;
    if (!s->err && s->loading && find_field(s, name, &f))
        for (size_t i = 0; i < f.len; i++)
            if (f.data[i] > 1)
                s->err = -EINVAL;
    snap_bytes(s, name, p, count);
}
