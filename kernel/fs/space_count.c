/* Reference counts of blocks in use. */
#include "kernel/fs/space_int.h"

#include <errno.h>
#include <string.h>

static bool in_pool(struct space *s, uint64_t start, uint64_t len)
{
    return start < s->blocks && len <= s->blocks - start;
}

/* A whole chunk that is uniform and needs no counts of its own. */
static struct space_ent *whole_ent(struct space *s, uint64_t start, unsigned n, struct group **gr, int *err)
{
    uint64_t c = start / FS_CHUNK;
    *err = space_group_load(s, c / FS_FAN, gr);
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
    return space_chunk_load(s, start / FS_CHUNK, &c);
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
        space_soil(s, gr, c);
        c->npinned -= n, s->pinned -= n;
        gr->ent[start / FS_CHUNK % FS_FAN].free -= n;
        gr->free -= n, s->free -= n;
    }
    mutex_unlock(&s->lock);
    return err;
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
        space_soil(s, gr, c);
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
    space_soil(s, gr, c);
    c->npinned += dead, s->pinned += dead;
    gr->ent[c->index % FS_FAN].free += dead;
    gr->free += dead, s->free += dead;
    *died += dead;
}

static void sub_whole(struct space *s, struct group *gr, struct space_ent *e, uint64_t *died)
{
    space_soil(s, gr, NULL);
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
    int ref = in_pool(s, blk, 1) ? space_chunk_load(s, blk / FS_CHUNK, &c) : -EILSEQ;
    if (!ref)
        ref = c->ref[blk % FS_CHUNK];
    mutex_unlock(&s->lock);
    return ref;
}

int space_count(struct fs *fs, uint64_t index, uint16_t *ref, bool *damaged)
{
    struct chunk *c;
    mutex_lock(&fs->space.lock);
    int err = space_chunk_load(&fs->space, index, &c);
    if (!err) {
        memcpy(ref, c->ref, sizeof c->ref);
        *damaged = c->doubtful;
    }
    mutex_unlock(&fs->space.lock);
    return err;
}
