#include <errno.h>
#include <string.h>
#include "kernel/console/logring.h"

#define LOGRING_MAGIC 0x31676f4c74736f4aull     /* "JostLog1" */

/* FNV-1a over words: torn and stale slots must be seen, no adversary writes here. */
static uint64_t check_of(const void *p, size_t len, uint64_t seed)
{
    uint64_t h = 0xcbf29ce484222325ull ^ seed, w;
    for (size_t i = 0; i + 8 <= len; i += 8) {
        memcpy(&w, (const char *)p + i, 8);
        h = (h ^ w) * 0x100000001b3ull;
        h ^= h >> 29;
    }
    return h;
}
_Static_assert(sizeof(struct log_line) % 8 == 0, "checked in words");

int logring_init(struct logring *r, void *mem, size_t bytes, uint64_t boot)
{
    if (bytes < sizeof(struct logring_area) + 2 * sizeof(struct logring_slot))
        return -EINVAL;
    r->area = mem;
    r->slots = (unsigned)((bytes - sizeof(struct logring_area)) / sizeof(struct logring_slot));
    r->next = 0;
    memset(mem, 0, bytes);
    *r->area = (struct logring_area){ .magic = LOGRING_MAGIC, .boot = boot, .slots = r->slots };
    r->area->check = check_of(r->area, 24, 0);
    return 0;
}

void logring_add(struct logring *r, struct log_line *l)
{
    struct logring_slot *s = &r->area->slot[r->next % r->slots];
    l->seq = r->next;
    s->line = *l;
    s->check = check_of(&s->line, sizeof(s->line), r->area->boot);
    r->next++;
}

bool logring_read(const struct logring *r, uint64_t *seq, struct log_line *out)
{
    uint64_t oldest = r->next > r->slots ? r->next - r->slots : 0;
    for (uint64_t q = MAX(*seq, oldest); q < r->next; q++) {
        const struct logring_slot *s = &r->area->slot[q % r->slots];
        if (s->line.seq != q || s->check != check_of(&s->line, sizeof(s->line), r->area->boot))
            continue;
        *out = s->line;
        *seq = q + 1;
        return true;
    }
    return false;
}

unsigned logring_recover(struct logring *r, const void *mem, size_t bytes)
{
    const struct logring_area *a = mem;
    if (bytes < sizeof(*a) || a->magic != LOGRING_MAGIC || a->check != check_of(a, 24, 0) || !a->slots ||
        a->slots > (bytes - sizeof(*a)) / sizeof(a->slot[0]))
        return 0;
    *r = (struct logring){ .area = (struct logring_area *)mem, .slots = (unsigned)a->slots };
    unsigned good = 0;
    for (unsigned i = 0; i < r->slots; i++) {
        const struct logring_slot *s = &a->slot[i];
        if (s->line.seq % r->slots != i || s->check != check_of(&s->line, sizeof(s->line), a->boot))
            continue;
        good++;
        r->next = MAX(r->next, s->line.seq + 1);
    }
    return good;
}
