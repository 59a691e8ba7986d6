/* Free blocks: promised, searched for, given out, trimmed. */
#include "kernel/fs/space_int.h"

#include <errno.h>
#include <string.h>

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
    space_soil(s, gr, c);
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
        if (index % FS_FAN == 0 || space_chunk_load(s, index, &c))
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
    int err = space_group_load(s, index / FS_FAN, &gr);
    if (err)
        return err;
    if (chunk_left(gr, index % FS_FAN) < need)
        return -ENOSPC;
    err = space_chunk_load(s, index, &c);
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
    e = space_group_ent(s, g);
    return e && e->state == SPACE_PAGE ? e->free : space_default_group_free(s, g);
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
    if (!goal || goal >= s->blocks || space_chunk_load(s, goal / FS_CHUNK, &c))
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

/* ---- Giving back ---- */

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

/* Free runs are pinned while they are discarded, so that nobody writes into them meanwhile. */
static int trim_chunk(struct fs *fs, uint64_t index, uint64_t *trimmed)
{
    struct space *s = &fs->space;
    struct chunk *c;
    mutex_lock(&s->lock);
    int err = space_chunk_load(s, index, &c);
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
        if (!err)
            err = space_chunk_load(s, index, &c);       /* nothing pinned it for a moment: a commit may have dropped it */
        *trimmed += (uint64_t)n << FS_BLOCK_SHIFT;
        i += n;
    }
    if (!err && s->nchunks > CHUNKS_KEPT && !c->dirty && !c->npinned && c->touched + 1 < fs->gen)   /* no commit needs its marks */
        space_chunk_forget(s, c);
    mutex_unlock(&s->lock);
    return err;
}

int fs_trim(struct fs *fs, uint64_t *trimmed)
{
    uint64_t sum = 0, n = (fs_blocks(fs) + FS_CHUNK - 1) / FS_CHUNK;
    int err = fs_writable(fs);
    if (!err && !fs->dev->limits.discard)
        err = -ENOTSUP;
    for (uint64_t c = 0; !err && c < n; c++)
        err = trim_chunk(fs, c, &sum);
    if (trimmed)
        *trimmed = sum;
    return err;
}
