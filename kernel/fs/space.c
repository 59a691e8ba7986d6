/*
 * Reference counts of all blocks, and who gets the free ones.
 *
 * Tables live at fixed places in two slots each (format.h), so writing them needs no space; the entry above says which slot counts
 * and what its checksum is, up to the superblock.  In memory: all of the upper levels that were needed, and a cache of chunks.
 */
#include "kernel/fs/fs_int.h"

#include <errno.h>
#include <string.h>
#include "kernel/lib/crc.h"

#define CHUNKS_KEPT 1024u       /* clean chunks in memory after a commit (6 MiB) */

static struct fs *fs_of(struct space *s) { return container_of(s, struct fs, space); }
static uint64_t group_base(uint64_t g) { return g * FS_GROUP; }
static uint64_t l0_blk(uint64_t c, int slot) { return group_base(c / FS_FAN) + FS_L0 + 2 * (c % FS_FAN) + slot; }
static uint64_t l1_blk(uint64_t g, int slot) { return group_base(g) + FS_L1 + slot; }
static uint64_t l2_blk(unsigned j, int slot) { return group_base((uint64_t)j * FS_FAN) + FS_L2 + slot; }

static bool bit(const uint64_t *map, unsigned i) { return map[i / 64] >> (i % 64) & 1; }
static void bit_set(uint64_t *map, unsigned i) { map[i / 64] |= BIT(i % 64); }
static void bit_clear(uint64_t *map, unsigned i) { map[i / 64] &= ~BIT(i % 64); }

/* ---- Defaults: what tables that were never written mean ---- */

static uint16_t default_ref(struct space *s, uint64_t blk)
{
    return blk >= s->blocks ? FS_REF_NONE : blk % FS_GROUP < FS_HEADER;
}

static uint32_t default_free(struct space *s, uint64_t c)
{
    uint64_t start = c * FS_CHUNK, end = MIN(start + FS_CHUNK, s->blocks);
    if (c % FS_FAN == 0)
        start += FS_HEADER;
    return end > start ? end - start : 0;
}

static uint64_t default_group_free(struct space *s, uint64_t g)
{
    uint64_t end = MIN(group_base(g + 1), s->blocks), start = group_base(g) + FS_HEADER;
    return end > start ? end - start : 0;
}

/* ---- Loading ---- */

static int read_page(struct space *s, uint64_t blk, uint32_t crc, void *buf)
{
    struct fs *fs = fs_of(s);
    int err = blk_read(fs->dev, blk << FS_BLOCK_SHIFT, buf, FS_BLOCK);
    if (!err && crc32c(fs->seed, buf, FS_BLOCK) != crc)
        err = -EILSEQ;
    return err;
}

static bool ent_sane(const struct space_ent *e, uint64_t max_free, bool leaf)
{
    return e->state <= (leaf ? SPACE_UNIFORM : SPACE_PAGE) && e->slot <= 1 && e->free <= max_free &&
        (e->state != SPACE_UNIFORM || e->value <= FS_REF_MAX || e->value == FS_REF_NONE);
}

static struct space_ent *group_ent(struct space *s, uint64_t g)
{
    struct space_ent *l2 = s->l2[g / FS_FAN];
    return l2 ? &l2[g % FS_FAN] : NULL;
}

static int group_fill(struct space *s, uint64_t g, struct group *gr)
{
    struct space_ent *e = group_ent(s, g);
    if (e && e->state == SPACE_PAGE) {
        int err = read_page(s, l1_blk(g, e->slot), e->crc, gr->ent);
        if (err)
            return err;
    }
    for (unsigned i = 0; i < FS_FAN; i++) {
        struct space_ent *l0 = &gr->ent[i];
        if (!ent_sane(l0, FS_CHUNK, true))
            return -EILSEQ;
        if (l0->state == SPACE_DEFAULT)
            l0->free = default_free(s, g * FS_FAN + i);
        else if (l0->state == SPACE_UNIFORM)
            l0->free = l0->value ? 0 : FS_CHUNK;
        gr->free += l0->free;
    }
    return 0;
}

static int group_load(struct space *s, uint64_t g, struct group **out)
{
    *out = s->group[g];
    if (*out)
        return 0;
    struct group *gr = kzalloc(sizeof *gr);
    if (!gr)
        return -ENOMEM;
    int err = group_fill(s, g, gr);
    if (err) {
        kfree(gr);
        return err;
    }
    *out = s->group[g] = gr;
    return 0;
}

static int chunk_fill(struct space *s, struct chunk *c, const struct space_ent *e)
{
    uint32_t free = 0;
    if (e->state == SPACE_PAGE) {
        int err = read_page(s, l0_blk(c->index, e->slot), e->crc, c->ref);
        if (err)
            return err;
    } else {
        for (unsigned i = 0; i < FS_CHUNK; i++)
            c->ref[i] = e->state == SPACE_UNIFORM ? e->value : default_ref(s, c->index * FS_CHUNK + i);
    }
    for (unsigned i = 0; i < FS_CHUNK; i++)
        free += !c->ref[i];
    return free == e->free ? 0 : -EILSEQ;
}

static void split_whole_pins(struct group *gr, unsigned i, struct chunk *c)
{
    for (int k = 0; k < PINS; k++)
        if (bit(gr->whole[k], i)) {
            memset(c->pin[k], 0xff, sizeof c->pin[k]);
            c->npinned = gr->ent[i].value ? 0 : FS_CHUNK;
            bit_clear(gr->whole[k], i);
        }
}

static int chunk_load(struct space *s, uint64_t index, struct chunk **out)
{
    struct group *gr;
    unsigned i = index % FS_FAN;
    int err = group_load(s, index / FS_FAN, &gr);
    if (err)
        return err;
    struct chunk *c = gr->chunk[i];
    if (!c) {
        c = kzalloc(sizeof *c);
        if (!c)
            return -ENOMEM;
        c->index = index;
        err = chunk_fill(s, c, &gr->ent[i]);
        if (err) {
            kfree(c);
            return err;
        }
        split_whole_pins(gr, i, c);
        list_append(&s->chunks, &c->lru);
        atomic_store_relaxed(&s->nchunks, s->nchunks + 1);
        gr->chunk[i] = c;
    }
    c->touched = atomic_load_relaxed(&fs_of(s)->gen);
    *out = c;
    return 0;
}

static void soil(struct space *s, struct group *gr, struct chunk *c)
{
    if (c && !c->dirty)
        c->dirty = true, s->ndirty++;
    gr->dirty = true;
}

/* ---- Promises ---- */

uint64_t space_available(struct fs *fs)
{
    struct space *s = &fs->space;
    uint64_t out = s->pinned + s->reserved + s->keep;
    return s->free > out ? s->free - out : 0;
}

int space_promise(struct fs *fs, uint64_t blocks, bool frees)
{
    struct space *s = &fs->space;
    mutex_lock(&s->lock);
    uint64_t out = s->pinned + s->reserved + (frees ? 0 : s->keep);
    bool ok = s->free >= out && s->free - out >= blocks;
    if (ok)
        s->reserved += blocks;
    mutex_unlock(&s->lock);
    return ok ? 0 : -ENOSPC;
}

void space_overpromise(struct fs *fs, uint64_t blocks)
{
    mutex_lock(&fs->space.lock);
    fs->space.reserved += blocks;
    mutex_unlock(&fs->space.lock);
}

void space_unpromise(struct fs *fs, uint64_t blocks)
{
    struct space *s = &fs->space;
    mutex_lock(&s->lock);
    ASSERT(s->reserved >= blocks);
    s->reserved -= blocks;
    mutex_unlock(&s->lock);
}

/* ---- Allocation ---- */

static bool usable(const struct chunk *c, unsigned i)
{
    return !c->ref[i] && !((c->pin[PIN_DATA][i / 64] | c->pin[PIN_DYING][i / 64] | c->pin[PIN_DEAD][i / 64]) >> (i % 64) & 1);
}

static unsigned run_from(const struct chunk *c, unsigned i, unsigned max)
{
    unsigned n = 0;
    while (n < max && i + n < FS_CHUNK && usable(c, i + n))
        n++;
    return n;
}

static unsigned best_run(const struct chunk *c, unsigned want, unsigned *at)
{
    unsigned best = 0;
    for (unsigned i = 0; i < FS_CHUNK && best < want; ) {
        unsigned n = run_from(c, i, want);
        if (n > best)
            best = n, *at = i;
        i += n + 1;
    }
    return best;
}

static void take(struct space *s, struct chunk *c, unsigned at, unsigned n, int how)
{
    struct group *gr = s->group[c->index / FS_FAN];
    for (unsigned i = at; i < at + n; i++) {
        if (how == ALLOC_REF)
            c->ref[i] = 1;
        else
            bit_set(c->pin[PIN_DATA], i);
    }
    if (how == ALLOC_PIN) {
        c->npinned += n;
        s->pinned += n;
        return;
    }
    soil(s, gr, c);
    gr->ent[c->index % FS_FAN].free -= n;
    gr->free -= n;
    s->free -= n;
}

/* Go on taking whole runs in the following chunks while they begin free. */
static int extend(struct space *s, uint64_t start, uint64_t want, int how, uint64_t *got)
{
    while (*got < want && (start + *got) % FS_CHUNK == 0 && start + *got < s->blocks) {
        struct chunk *c;
        uint64_t index = (start + *got) / FS_CHUNK;
        if (index % FS_FAN == 0 || chunk_load(s, index, &c))
            break;
        unsigned n = run_from(c, 0, MIN(want - *got, (uint64_t)FS_CHUNK));
        take(s, c, 0, n, how);
        *got += n;
        if (n < FS_CHUNK)
            break;
    }
    return 0;
}

static uint32_t chunk_left(struct group *gr, unsigned i)
{
    if (bit(gr->whole[PIN_DYING], i) || bit(gr->whole[PIN_DEAD], i))
        return 0;
    return gr->ent[i].free - (gr->chunk[i] ? gr->chunk[i]->npinned : 0);
}

static int try_chunk(struct space *s, uint64_t index, unsigned need, uint64_t want, int how, uint64_t *start, uint64_t *got)
{
    struct group *gr;
    struct chunk *c;
    unsigned at = 0;
    int err = group_load(s, index / FS_FAN, &gr);
    if (err)
        return err;
    if (chunk_left(gr, index % FS_FAN) < need)
        return -ENOSPC;
    err = chunk_load(s, index, &c);
    if (err)
        return err;
    unsigned n = best_run(c, MIN(want, (uint64_t)FS_CHUNK), &at);
    if (n < need)
        return -ENOSPC;
    take(s, c, at, n, how);
    *start = index * FS_CHUNK + at, *got = n;
    return extend(s, *start, want, how, got);
}

static uint64_t group_left(struct space *s, uint64_t g)
{
    struct space_ent *e;
    if (s->group[g])
        return s->group[g]->free;
    e = group_ent(s, g);
    return e && e->state == SPACE_PAGE ? e->free : default_group_free(s, g);
}

static int search(struct space *s, uint64_t from, unsigned need, uint64_t want, int how, uint64_t *start, uint64_t *got)
{
    uint64_t nchunks = (s->blocks + FS_CHUNK - 1) / FS_CHUNK, c = from / FS_CHUNK % nchunks;
    int worst = -ENOSPC;
    for (uint64_t seen = 0; seen < nchunks; ) {
        if (!group_left(s, c / FS_FAN)) {
            uint64_t skip = MIN(FS_FAN - c % FS_FAN, nchunks - c);
            seen += skip, c = (c + skip) % nchunks;
            continue;
        }
        int err = try_chunk(s, c, need, want, how, start, got);
        if (!err)
            return 0;
        if (err != -ENOSPC)
            worst = err;                /* a damaged or unreadable table costs its chunk, not the pool */
        seen++, c = (c + 1) % nchunks;
    }
    return worst;
}

static int at_goal(struct space *s, uint64_t goal, uint64_t want, int how, uint64_t *start, uint64_t *got)
{
    struct chunk *c;
    if (!goal || goal >= s->blocks || chunk_load(s, goal / FS_CHUNK, &c))
        return -ENOSPC;
    unsigned n = run_from(c, goal % FS_CHUNK, MIN(want, (uint64_t)FS_CHUNK));
    if (!n)
        return -ENOSPC;
    take(s, c, goal % FS_CHUNK, n, how);
    *start = goal, *got = n;
    return extend(s, goal, want, how, got);
}

int space_alloc(struct fs *fs, uint64_t goal, uint64_t want, int how, bool meta, uint64_t *start, uint64_t *got)
{
    struct space *s = &fs->space;
    uint64_t *cursor = meta ? &s->meta_cursor : &s->cursor;
    mutex_lock(&s->lock);
    int err = at_goal(s, goal ? goal : meta ? *cursor : 0, want, how, start, got);
    if (err && want > 1)
        err = search(s, goal ? goal : *cursor, MIN(want, (uint64_t)FS_CHUNK), want, how, start, got);
    if (err && want > 32)
        err = search(s, goal ? goal : *cursor, 32, want, how, start, got);
    if (err)
        err = search(s, goal ? goal : *cursor, 1, want, how, start, got);
    if (!err && (meta || !goal))
        *cursor = *start + *got;
    mutex_unlock(&s->lock);
    return err;
}

/* ---- Counting ---- */

/* The part of [start, +len) in its first chunk. */
static unsigned piece(uint64_t start, uint64_t len) { return MIN(FS_CHUNK - start % FS_CHUNK, len); }

static bool in_pool(struct space *s, uint64_t start, uint64_t len)
{
    return start < s->blocks && len <= s->blocks - start;
}

/* A whole chunk that is uniform and needs no counts of its own. */
static struct space_ent *whole_ent(struct space *s, uint64_t start, unsigned n, struct group **gr, int *err)
{
    uint64_t c = start / FS_CHUNK;
    *err = group_load(s, c / FS_FAN, gr);
    if (*err || n != FS_CHUNK || (*gr)->chunk[c % FS_FAN])
        return NULL;
    struct space_ent *e = &(*gr)->ent[c % FS_FAN];
    if (e->state == SPACE_DEFAULT && e->free == FS_CHUNK)
        e->state = SPACE_UNIFORM, e->value = 0;
    return e->state == SPACE_UNIFORM ? e : NULL;
}

static int touch_piece(struct space *s, uint64_t start, unsigned n)
{
    struct group *gr;
    struct chunk *c;
    int err;
    if (whole_ent(s, start, n, &gr, &err) || err)
        return err;
    return chunk_load(s, start / FS_CHUNK, &c);
}

static int touch_locked(struct space *s, uint64_t start, uint64_t len)
{
    int err = in_pool(s, start, len) ? 0 : -EILSEQ;
    for (unsigned n; !err && len; start += n, len -= n) {
        n = piece(start, len);
        err = touch_piece(s, start, n);
    }
    return err;
}

int space_touch(struct fs *fs, uint64_t start, uint64_t len)
{
    mutex_lock(&fs->space.lock);
    int err = touch_locked(&fs->space, start, len);
    mutex_unlock(&fs->space.lock);
    return err;
}

/* All counts of the range are within [lo, hi]: damage shows here, before anything is changed. */
static int check_range(struct space *s, uint64_t start, uint64_t len, uint16_t lo, uint16_t hi, int too_high)
{
    for (unsigned n; len; start += n, len -= n) {
        struct group *gr;
        int err;
        n = piece(start, len);
        struct space_ent *e = whole_ent(s, start, n, &gr, &err);
        const struct chunk *c = e ? NULL : gr->chunk[start / FS_CHUNK % FS_FAN];
        for (unsigned i = 0; i < (e ? 1 : n); i++) {
            uint16_t ref = e ? e->value : c->ref[start % FS_CHUNK + i];
            if (ref < lo || ref > FS_REF_MAX)
                return -EILSEQ;
            if (ref > hi)
                return too_high;
        }
    }
    return 0;
}

int space_publish(struct fs *fs, uint64_t start, uint64_t len)
{
    struct space *s = &fs->space;
    mutex_lock(&s->lock);
    int err = touch_locked(s, start, len);
    for (unsigned n; !err && len; start += n, len -= n) {
        n = piece(start, len);
        struct group *gr = s->group[start / FS_GROUP];
        struct chunk *c = gr->chunk[start / FS_CHUNK % FS_FAN];
        for (unsigned i = start % FS_CHUNK; i < start % FS_CHUNK + n; i++) {
            ASSERT(bit(c->pin[PIN_DATA], i) && !c->ref[i]);
            bit_clear(c->pin[PIN_DATA], i);
            c->ref[i] = 1;
        }
        soil(s, gr, c);
        c->npinned -= n, s->pinned -= n;
        gr->ent[start / FS_CHUNK % FS_FAN].free -= n;
        gr->free -= n, s->free -= n;
    }
    mutex_unlock(&s->lock);
    return err;
}

void space_unpin(struct fs *fs, uint64_t start, uint64_t len)
{
    struct space *s = &fs->space;
    mutex_lock(&s->lock);
    for (unsigned n; len; start += n, len -= n) {
        n = piece(start, len);
        struct chunk *c = s->group[start / FS_GROUP]->chunk[start / FS_CHUNK % FS_FAN];
        for (unsigned i = start % FS_CHUNK; i < start % FS_CHUNK + n; i++)
            bit_clear(c->pin[PIN_DATA], i);
        c->npinned -= n, s->pinned -= n;
    }
    mutex_unlock(&s->lock);
}

int space_add(struct fs *fs, uint64_t start, uint64_t len)
{
    struct space *s = &fs->space;
    mutex_lock(&s->lock);
    int err = touch_locked(s, start, len);
    if (!err)
        err = check_range(s, start, len, 1, FS_REF_MAX - 1, -EMLINK);
    for (unsigned n; !err && len; start += n, len -= n) {
        struct group *gr;
        n = piece(start, len);
        struct space_ent *e = whole_ent(s, start, n, &gr, &err);
        struct chunk *c = e ? NULL : gr->chunk[start / FS_CHUNK % FS_FAN];
        for (unsigned i = 0; c && i < n; i++)
            c->ref[start % FS_CHUNK + i]++;
        if (e)
            e->value++;
        soil(s, gr, c);
    }
    mutex_unlock(&s->lock);
    return err;
}

static void sub_chunk(struct space *s, struct group *gr, struct chunk *c, unsigned at, unsigned n, uint64_t *died)
{
    unsigned dead = 0;
    for (unsigned i = at; i < at + n; i++) {
        dead += !--c->ref[i];
        bit_set(c->pin[PIN_DYING], i);
    }
    soil(s, gr, c);
    c->npinned += dead, s->pinned += dead;
    gr->ent[c->index % FS_FAN].free += dead;
    gr->free += dead, s->free += dead;
    *died += dead;
}

static void sub_whole(struct space *s, struct group *gr, struct space_ent *e, uint64_t *died)
{
    soil(s, gr, NULL);
    bit_set(gr->whole[PIN_DYING], e - gr->ent);
    if (--e->value)
        return;
    e->free = FS_CHUNK;
    gr->free += FS_CHUNK, s->free += FS_CHUNK, s->pinned += FS_CHUNK;
    *died += FS_CHUNK;
}

int space_sub(struct fs *fs, uint64_t start, uint64_t len, uint64_t *died)
{
    struct space *s = &fs->space;
    uint64_t dead = 0;
    mutex_lock(&s->lock);
    int err = touch_locked(s, start, len);
    if (!err)
        err = check_range(s, start, len, 1, FS_REF_MAX, -EILSEQ);
    for (unsigned n; !err && len; start += n, len -= n) {
        struct group *gr;
        n = piece(start, len);
        struct space_ent *e = whole_ent(s, start, n, &gr, &err);
        if (e)
            sub_whole(s, gr, e, &dead);
        else
            sub_chunk(s, gr, gr->chunk[start / FS_CHUNK % FS_FAN], start % FS_CHUNK, n, &dead);
    }
    mutex_unlock(&s->lock);
    if (died)
        *died += dead;
    return err;
}

static bool released(struct group *gr, const struct space_ent *e, const struct chunk *c, unsigned i)
{
    if (e)
        return bit(gr->whole[PIN_DYING], e - gr->ent) || bit(gr->whole[PIN_DEAD], e - gr->ent);
    return bit(c->pin[PIN_DYING], i) || bit(c->pin[PIN_DEAD], i);
}

int space_sole(struct fs *fs, uint64_t start, uint64_t len, bool *sole, uint64_t *prefix)
{
    struct space *s = &fs->space;
    uint64_t sum = 0;
    bool first = true, stop = false;
    mutex_lock(&s->lock);
    int err = touch_locked(s, start, len);
    for (unsigned n; !err && !stop && len; start += n, len -= n) {
        struct group *gr;
        n = piece(start, len);
        struct space_ent *e = whole_ent(s, start, n, &gr, &err);
        const struct chunk *c = e ? NULL : gr->chunk[start / FS_CHUNK % FS_FAN];
        for (unsigned i = 0; i < n && !stop; i++) {
            uint16_t ref = e ? e->value : c->ref[start % FS_CHUNK + i];
            if (!ref || ref > FS_REF_MAX)
                err = -EILSEQ, stop = true;
            bool mine = ref == 1 && !released(gr, e, c, start % FS_CHUNK + i);
            if (first)
                *sole = mine, first = false;
            if (mine != *sole)
                stop = true;
            else
                sum += e ? n : 1, i = e ? n : i;
        }
    }
    mutex_unlock(&s->lock);
    *prefix = sum;
    return err;
}

int space_ref(struct fs *fs, uint64_t blk)
{
    struct space *s = &fs->space;
    struct chunk *c;
    mutex_lock(&s->lock);
    int ref = in_pool(s, blk, 1) ? chunk_load(s, blk / FS_CHUNK, &c) : -EILSEQ;
    if (!ref)
        ref = c->ref[blk % FS_CHUNK];
    mutex_unlock(&s->lock);
    return ref;
}

int space_count(struct fs *fs, uint64_t index, uint16_t *ref)
{
    struct chunk *c;
    mutex_lock(&fs->space.lock);
    int err = chunk_load(&fs->space, index, &c);
    if (!err)
        memcpy(ref, c->ref, sizeof c->ref);
    mutex_unlock(&fs->space.lock);
    return err;
}

/* ---- Commit ---- */

unsigned space_dirty_pages(struct fs *fs)
{
    struct space *s = &fs->space;
    unsigned n = s->ndirty + 1;
    for (uint64_t g = 0; g < s->ngroups; g++)
        n += s->group[g] && s->group[g]->dirty ? 2 : 0;
    return n;
}

static bool uniform(const struct chunk *c)
{
    return !memcmp(c->ref, c->ref + 1, sizeof c->ref - sizeof c->ref[0]);
}

/* The next state of an entry whose page has new contents: the other slot. */
static void turn(struct space *s, struct space_ent *e, const void *page)
{
    e->slot = e->state == SPACE_PAGE ? !e->slot : 0;
    e->state = SPACE_PAGE;
    e->crc = crc32c(fs_of(s)->seed, page, FS_BLOCK);
}

static void freeze_chunk(struct space *s, struct chunk *c, struct pagelist *pl)
{
    struct space_ent *e = &s->group[c->index / FS_FAN]->ent[c->index % FS_FAN];
    for (unsigned i = 0; i < FS_CHUNK / 64; i++) {
        c->pin[PIN_DEAD][i] |= c->pin[PIN_DYING][i];
        c->pin[PIN_DYING][i] = 0;
    }
    if (!c->dirty)
        return;
    c->dirty = false;
    s->ndirty--;
    if (uniform(c)) {
        e->state = SPACE_UNIFORM, e->value = c->ref[0];
        return;
    }
    turn(s, e, c->ref);
    e->value = 0;
    page_add(pl, l0_blk(c->index, e->slot), c->ref);
}

static void freeze_group(struct space *s, uint64_t g, struct group *gr, struct pagelist *pl)
{
    struct space_ent *e = group_ent(s, g);
    for (unsigned i = 0; i < FS_FAN / 64; i++) {
        gr->whole[PIN_DEAD][i] |= gr->whole[PIN_DYING][i];
        gr->whole[PIN_DYING][i] = 0;
    }
    if (!gr->dirty)
        return;
    gr->dirty = false;
    turn(s, e, gr->ent);
    e->free = gr->free;
    page_add(pl, l1_blk(g, e->slot), gr->ent);
    s->l2_dirty[g / FS_FAN] = true;
}

void space_freeze(struct fs *fs, struct pagelist *pl)
{
    struct space *s = &fs->space;
    struct chunk *c;
    mutex_lock(&s->lock);
    list_for_each(c, &s->chunks, lru)
        freeze_chunk(s, c, pl);
    for (uint64_t g = 0; g < s->ngroups; g++)
        if (s->group[g])
            freeze_group(s, g, s->group[g], pl);
    for (unsigned j = 0; j < FS_FAN; j++)
        if (s->l2_dirty[j]) {
            s->l2_dirty[j] = false;
            turn(s, &s->l3[j], s->l2[j]);
            page_add(pl, l2_blk(j, s->l3[j].slot), s->l2[j]);
        }
    turn(s, &s->top, s->l3);
    page_add(pl, FS_L3 + s->top.slot, s->l3);
    mutex_unlock(&s->lock);
}

static void discard_run(struct fs *fs, uint64_t start, uint64_t len)
{
    if (len)
        blk_discard(fs->dev, start << FS_BLOCK_SHIFT, len << FS_BLOCK_SHIFT);   /* advice: its failure changes nothing */
}

static void bury_chunk(struct fs *fs, struct chunk *c, bool discard)
{
    uint64_t start = 0, len = 0;
    unsigned n = 0;
    for (unsigned i = 0; i < FS_CHUNK; i++) {
        if (!c->pin[PIN_DEAD][i / 64]) {
            i |= 63;
            continue;
        }
        if (!bit(c->pin[PIN_DEAD], i) || c->ref[i] || bit(c->pin[PIN_DYING], i))
            continue;           /* the latter: released again, of its last reference, since the freeze */
        n++;
        if (discard && start + len != c->index * FS_CHUNK + i) {
            discard_run(fs, start, len);
            start = c->index * FS_CHUNK + i, len = 0;
        }
        len++;
    }
    if (discard)
        discard_run(fs, start, len);
    memset(c->pin[PIN_DEAD], 0, sizeof c->pin[PIN_DEAD]);
    c->npinned -= n;
    fs->space.pinned -= n;
}

static void bury_whole(struct fs *fs, uint64_t g, struct group *gr, bool discard)
{
    for (unsigned i = 0; i < FS_FAN; i++)
        if (bit(gr->whole[PIN_DEAD], i)) {
            bit_clear(gr->whole[PIN_DEAD], i);
            if (gr->ent[i].value || bit(gr->whole[PIN_DYING], i))
                continue;
            if (discard)
                discard_run(fs, (g * FS_FAN + i) * FS_CHUNK, FS_CHUNK);
            fs->space.pinned -= FS_CHUNK;
        }
}

static void chunk_forget(struct space *s, struct chunk *c)
{
    s->group[c->index / FS_FAN]->chunk[c->index % FS_FAN] = NULL;
    list_del(&c->lru);
    atomic_store_relaxed(&s->nchunks, s->nchunks - 1);
    kfree(c);
}

/* The generation is durable: what it freed may be used again. */
void space_committed(struct fs *fs, bool discard)
{
    struct space *s = &fs->space;
    struct chunk *c, *tmp;
    discard = discard && fs->dev->limits.discard;
    mutex_lock(&s->lock);
    list_for_each_safe(c, tmp, &s->chunks, lru) {
        bury_chunk(fs, c, discard);
        if (s->nchunks > CHUNKS_KEPT && !c->dirty && !c->npinned && c->touched < fs->gen)
            chunk_forget(s, c);
    }
    for (uint64_t g = 0; g < s->ngroups; g++)
        if (s->group[g])
            bury_whole(fs, g, s->group[g], discard);
    mutex_unlock(&s->lock);
}

/* ---- Trim, growth, repair ---- */

/* Free runs are pinned while they are discarded, so that nobody writes into them meanwhile. */
static int trim_chunk(struct fs *fs, uint64_t index, uint64_t *trimmed)
{
    struct space *s = &fs->space;
    struct chunk *c;
    mutex_lock(&s->lock);
    int err = chunk_load(s, index, &c);
    for (unsigned i = 0; !err && i < FS_CHUNK; i++) {
        unsigned n = run_from(c, i, FS_CHUNK);
        if (!n)
            continue;
        take(s, c, i, n, ALLOC_PIN);
        mutex_unlock(&s->lock);
        uint64_t start = index * FS_CHUNK + i;
        err = blk_discard(fs->dev, start << FS_BLOCK_SHIFT, (uint64_t)n << FS_BLOCK_SHIFT);
        space_unpin(fs, start, n);
        mutex_lock(&s->lock);
        *trimmed += (uint64_t)n << FS_BLOCK_SHIFT;
        i += n;
    }
    if (!err && s->nchunks > CHUNKS_KEPT && !c->dirty && !c->npinned && c->touched + 1 < fs->gen)   /* no commit needs its marks */
        chunk_forget(s, c);
    mutex_unlock(&s->lock);
    return err;
}

int fs_trim(struct fs *fs, uint64_t *trimmed)
{
    uint64_t sum = 0, n = (fs->space.blocks + FS_CHUNK - 1) / FS_CHUNK;
    int err = fs_writable(fs);
    if (!err && !fs->dev->limits.discard)
        err = -ENOTSUP;
    for (uint64_t c = 0; !err && c < n; c++)
        err = trim_chunk(fs, c, &sum);
    if (trimmed)
        *trimmed = sum;
    return err;
}

static void set_keep(struct space *s)
{
    uint64_t part = MIN(s->blocks / 200, 16384ull);
    s->keep = MAX(part, 48ull);
}

static int l2_need(struct space *s, unsigned j)
{
    if (!s->l2[j])
        s->l2[j] = kzalloc(FS_BLOCK);
    return s->l2[j] ? 0 : -ENOMEM;
}

/* The counts of the blocks that appear between the old and the new end. */
static int grow_chunk(struct space *s, uint64_t index, uint64_t old, uint64_t end)
{
    struct group *gr = s->group[index / FS_FAN];
    struct space_ent *e = &gr->ent[index % FS_FAN];
    uint32_t had = e->free;
    if (e->state == SPACE_DEFAULT && !gr->chunk[index % FS_FAN]) {
        s->blocks = end;
        e->free = default_free(s, index);
        s->blocks = old;
    } else {
        struct chunk *c = gr->chunk[index % FS_FAN];
        for (unsigned i = 0; i < FS_CHUNK; i++) {
            uint64_t blk = index * FS_CHUNK + i;
            if (blk >= old && blk < end) {
                ASSERT(c->ref[i] == FS_REF_NONE);
                c->ref[i] = 0;
                e->free++;
            }
        }
        soil(s, gr, c);
    }
    gr->free += e->free - had, s->free += e->free - had;
    gr->dirty = true;
    return 0;
}

static int grow_prepare(struct space *s, uint64_t old, uint64_t end, struct group ***grown)
{
    uint64_t ngroups = (end + FS_GROUP - 1) / FS_GROUP;
    struct chunk *c;
    struct group *gr;
    int err = 0;
    *grown = kzalloc(ngroups * sizeof **grown);
    if (!*grown)
        return -ENOMEM;
    for (uint64_t j = 0; !err && j <= (ngroups - 1) / FS_FAN; j++)
        err = l2_need(s, j);
    if (!err)
        err = group_load(s, (old - 1) / FS_GROUP, &gr);
    if (!err && old % FS_CHUNK)
        err = chunk_load(s, old / FS_CHUNK, &c);
    if (err)
        kfree(*grown);
    return err;
}

int space_set_end(struct fs *fs, uint64_t end)
{
    struct space *s = &fs->space;
    struct group **grown;
    uint64_t old = s->blocks;
    mutex_lock(&s->lock);
    int err = grow_prepare(s, old, end, &grown);
    if (!err) {
        uint64_t last = MIN(end, ALIGN_UP(old, (uint64_t)FS_GROUP));
        for (uint64_t c = old / FS_CHUNK; c * FS_CHUNK < last; c++)
            grow_chunk(s, c, old, end);
        s->blocks = end;
        for (uint64_t g = (old + FS_GROUP - 1) / FS_GROUP; g * FS_GROUP < end; g++)
            s->free += default_group_free(s, g);
        memcpy(grown, s->group, s->ngroups * sizeof *grown);
        kfree(s->group);
        s->group = grown;
        s->ngroups = (end + FS_GROUP - 1) / FS_GROUP;
        set_keep(s);
    }
    mutex_unlock(&s->lock);
    return err;
}

int space_force(struct fs *fs, uint64_t index, const uint16_t *ref)
{
    struct space *s = &fs->space;
    struct group *gr = s->group[index / FS_FAN];
    struct chunk *c = gr ? gr->chunk[index % FS_FAN] : NULL;
    uint32_t free = 0;
    int err = gr ? 0 : group_load(s, index / FS_FAN, &gr);
    if (err)
        return err;
    if (!c) {
        c = kzalloc(sizeof *c);
        if (!c)
            return -ENOMEM;
        c->index = index;
        list_append(&s->chunks, &c->lru);
        atomic_store_relaxed(&s->nchunks, s->nchunks + 1);
        gr->chunk[index % FS_FAN] = c;
    }
    memcpy(c->ref, ref, sizeof c->ref);
    for (unsigned i = 0; i < FS_CHUNK; i++)
        free += !ref[i];
    struct space_ent *e = &gr->ent[index % FS_FAN];
    s->free += free - e->free, gr->free += free - e->free, e->free = free;
    c->touched = fs->gen;
    soil(s, gr, c);
    return 0;
}

/* ---- Opening ---- */

static int load_l2(struct space *s, unsigned j)
{
    int err = l2_need(s, j);
    if (!err && s->l3[j].state == SPACE_PAGE)
        err = read_page(s, l2_blk(j, s->l3[j].slot), s->l3[j].crc, s->l2[j]);
    for (unsigned i = 0; !err && i < FS_FAN; i++)
        if (!ent_sane(&s->l2[j][i], FS_GROUP, false))
            err = -EILSEQ;
    return err;
}

int space_init(struct fs *fs)
{
    struct space *s = &fs->space;
    mutex_init(&s->lock);
    list_init(&s->chunks);
    s->blocks = fs->super.blocks;
    s->ngroups = (s->blocks + FS_GROUP - 1) / FS_GROUP;
    s->free = fs->super.free;
    s->top = fs->super.space;
    s->meta_cursor = FS_HEADER;
    s->cursor = FS_HEADER + MIN(s->blocks / 32, 16384ull);
    set_keep(s);
    s->group = kzalloc(s->ngroups * sizeof *s->group);
    if (!s->group)
        return -ENOMEM;
    int err = 0;
    if (!ent_sane(&s->top, 0, false))
        return -EILSEQ;
    if (s->top.state == SPACE_PAGE)
        err = read_page(s, FS_L3 + s->top.slot, s->top.crc, s->l3);
    for (unsigned j = 0; !err && j <= (s->ngroups - 1) / FS_FAN; j++)
        err = ent_sane(&s->l3[j], 0, false) ? load_l2(s, j) : -EILSEQ;
    return err;
}

void space_fini(struct fs *fs)
{
    struct space *s = &fs->space;
    while (s->chunks.next && !list_empty(&s->chunks))
        chunk_forget(s, list_first(&s->chunks, struct chunk, lru));
    for (uint64_t g = 0; s->group && g < s->ngroups; g++)
        kfree(s->group[g]);
    kfree(s->group);
    for (unsigned j = 0; j < FS_FAN; j++)
        kfree(s->l2[j]);
}
