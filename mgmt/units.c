#include <stdio.h>
#include <string.h>
#include "mgmt/units.h"

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
}

static unsigned radix(const char **s)
{
    if (**s != '0')
        return 10;
    unsigned base = (*s)[1] == 'x' ? 16 : (*s)[1] == 'o' ? 8 : (*s)[1] == 'b' ? 2 : 10;
    if (base != 10)
        *s += 2;
    return base;
}

bool parse_uint(const char *s, uint64_t *val)
{
    unsigned base = radix(&s);
    uint64_t v = 0;
    bool any = false;
    for (; *s; s++) {
        if (*s == '_' && any && digit(s[1]) < (int)base)
            continue;
        if (digit(*s) >= (int)base || __builtin_mul_overflow(v, (uint64_t)base, &v) ||
            __builtin_add_overflow(v, (uint64_t)digit(*s), &v))
            return false;
        any = true;
    }
    *val = v;
    return any;
}

/* "12.5" followed by whatever: the value in thousandths.  Returns the rest, or NULL. */
static const char *parse_milli(const char *s, uint64_t *milli)
{
    uint64_t v = 0, scale = 100;
    if (*s < '0' || *s > '9')
        return NULL;
    for (; *s >= '0' && *s <= '9'; s++)
        if (__builtin_mul_overflow(v, 10ull, &v) || __builtin_add_overflow(v, (uint64_t)(*s - '0'), &v))
            return NULL;
    if (__builtin_mul_overflow(v, 1000ull, &v))
        return NULL;
    if (*s == '.') {
        if (s[1] < '0' || s[1] > '9')
            return NULL;
        for (s++; *s >= '0' && *s <= '9'; s++, scale /= 10)
            if (__builtin_add_overflow(v, (uint64_t)(*s - '0') * scale, &v))
                return NULL;
    }
    *milli = v;
    return s;
}

bool parse_size(const char *s, uint64_t *bytes)
{
    static const char units[] = "KMGTPE";
    uint64_t milli;
    if (parse_uint(s, bytes))
        return true;
    const char *u = parse_milli(s, &milli);
    if (!u || !*u)
        return false;
    *bytes = milli / 1000;
    if (!strcmp(u, "B"))
        return milli % 1000 == 0;
    const char *k = (*u & ~0x20) ? strchr(units, *u & ~0x20) : NULL;
    if (!k || (u[1] && strcmp(u + 1, "B") && strcmp(u + 1, "iB") && strcmp(u + 1, "ib")))
        return false;
    unsigned shift = 10 * (unsigned)(k - units + 1);
    uint64_t whole = milli / 1000, part = milli % 1000;
    if (whole >> (64 - shift))
        return false;
    uint64_t frac = shift < 50 ? (part << shift) / 1000 : (part << 50) / 1000 << (shift - 50);
    return !__builtin_add_overflow(whole << shift, frac, bytes);
}

bool parse_duration(const char *s, uint64_t *ns)
{
    static const struct { const char *name; uint64_t milli_ns; } units[] = {
        { "", 1000000 }, { "s", 1000000 }, { "ms", 1000 }, { "us", 1 }, { "m", 60000000 }, { "min", 60000000 },
        { "h", 3600000000ull }, { "d", 86400000000ull },
    };
    uint64_t milli;
    const char *u = parse_milli(s, &milli);
    for (unsigned i = 0; u && i < ARRAY_SIZE(units); i++)
        if (!strcmp(u, units[i].name))
            return !__builtin_mul_overflow(milli, units[i].milli_ns, ns);
    return false;
}

bool parse_bool(const char *s, bool *v)
{
    static const char *const words[] = { "false", "true", "no", "yes", "off", "on", "0", "1" };
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
        if (!strcmp(s, words[i])) {
            *v = i & 1;
            return true;
        }
    return false;
}

char *format_size(char *buf, uint64_t v)
{
    unsigned unit = 0;
    uint64_t whole = v;
    while (whole >= 1024 && unit < 6)
        whole >>= 10, unit++;
    if (!unit) {
        snprintf(buf, 32, "%lu", (unsigned long)v);
        return buf;
    }
    unsigned shift = 10 * unit;
    unsigned tenth = (unsigned)(((v >> (shift - 10) & 1023) * 10) >> 10);
    if (tenth && whole < 100)
        snprintf(buf, 32, "%lu.%u%c", (unsigned long)whole, tenth, "BKMGTPE"[unit]);
    else
        snprintf(buf, 32, "%lu%c", (unsigned long)whole, "BKMGTPE"[unit]);
    return buf;
}

char *format_size_exact(char *buf, uint64_t v)
{
    unsigned unit = 0;
    while (v && !(v & 1023) && unit < 6)
        v >>= 10, unit++;
    snprintf(buf, 32, unit ? "%lu%c" : "%lu", (unsigned long)v, "BKMGTPE"[unit]);
    return buf;
}

char *format_duration(char *buf, uint64_t ns)
{
    unsigned long s = (unsigned long)(ns / 1000000000);
    if (s >= 86400)
        snprintf(buf, 32, "%lud %luh", s / 86400, s / 3600 % 24);
    else if (s >= 3600)
        snprintf(buf, 32, "%luh %lum", s / 3600, s / 60 % 60);
    else if (s >= 60)
        snprintf(buf, 32, "%lum %lus", s / 60, s % 60);
    else if (s)
        snprintf(buf, 32, "%lu.%02lus", s, (unsigned long)(ns / 10000000 % 100));
    else if (ns >= 1000000)
        snprintf(buf, 32, "%lums", (unsigned long)(ns / 1000000));
    else
        snprintf(buf, 32, "%luus", (unsigned long)(ns / 1000));
    return buf;
}

/* Civil date from days since 1970-01-01 (the usual era arithmetic, years from March). */
static void civil(uint64_t days, unsigned *y, unsigned *m, unsigned *d)
{
    uint64_t z = days + 719468, era = z / 146097, doe = z % 146097;
    uint64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    uint64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
    *d = (unsigned)(doy - (153 * mp + 2) / 5 + 1);
    *m = (unsigned)(mp < 10 ? mp + 3 : mp - 9);
    *y = (unsigned)(yoe + era * 400 + (*m <= 2));
}

char *format_utc(char *buf, uint64_t utc_ns)
{
    uint64_t s = utc_ns / 1000000000;
    unsigned y, m, d, t = (unsigned)(s % 86400);
    civil(s / 86400, &y, &m, &d);
    snprintf(buf, 32, "%04u-%02u-%02uT%02u:%02u:%02uZ", y % 10000, m % 100, d % 100, t / 3600 % 24, t / 60 % 60, t % 60);
    return buf;
}

/* Optimal string alignment (insert, delete, replace, swap neighbours) over at most 63 bytes of each name. */
unsigned name_distance(const char *a, const char *b, unsigned limit)
{
    enum { MAXLEN = 63 };
    unsigned rows[3][MAXLEN + 1], n = (unsigned)MIN(strlen(a), (size_t)MAXLEN), m = (unsigned)MIN(strlen(b), (size_t)MAXLEN);
    unsigned *before = rows[0], *prev = rows[1], *row = rows[2];
    for (unsigned j = 0; j <= m; j++)
        prev[j] = j;
    for (unsigned i = 1; i <= n; i++) {
        row[0] = i;
        for (unsigned j = 1; j <= m; j++) {
            unsigned step = MIN(prev[j], row[j - 1]) + 1, swap = prev[j - 1] + (a[i - 1] != b[j - 1]);
            row[j] = MIN(step, swap);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = MIN(row[j], before[j - 2] + 1);
        }
        unsigned *spare = before;
        before = prev, prev = row, row = spare;
    }
    return MIN(prev[m], limit + 1);
}

static unsigned columns_of(uint32_t c)
{
    if ((c >= 0x300 && c < 0x370) || (c >= 0x200b && c <= 0x200f) || (c >= 0xfe00 && c <= 0xfe0f) || (c >= 0x20d0 && c <= 0x20ff))
        return 0;
    bool wide = (c >= 0x1100 && c <= 0x115f) || (c >= 0x2e80 && c <= 0xa4cf) || (c >= 0xac00 && c <= 0xd7a3) ||
                (c >= 0xf900 && c <= 0xfaff) || (c >= 0xfe30 && c <= 0xfe6f) || (c >= 0xff00 && c <= 0xff60) ||
                (c >= 0x1f300 && c <= 0x1faff) || (c >= 0x20000 && c <= 0x3fffd);
    return wide ? 2 : 1;
}

unsigned utf8_char(const char *str, size_t len, unsigned *columns)
{
    const uint8_t *s = (const uint8_t *)str;
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    if (!len)
        return 0;
    unsigned n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
    if (!n || n > len)
        return 0;
    uint32_t c = n == 1 ? s[0] : s[0] & (0x7fu >> n);
    for (unsigned i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3f);
    }
    if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) || (c >= 0x80 && c < 0xa0))
        return 0;
    if (columns)
        *columns = columns_of(c);
    return n;
}

size_t utf8_columns(const char *s, size_t len)
{
    size_t cols = 0;
    for (size_t i = 0; i < len;) {
        unsigned w = 1, n = utf8_char(s + i, len - i, &w);
        cols += n ? w : 1;
        i += n ? n : 1;
    }
    return cols;
}
