/* A generation of tables: what changed goes into the other slots; what was released is free when it is durable. */
#include "kernel/fs/space_int.h"

#include <errno.h>
#include <string.h>
#include "kernel/lib/crc.h"

/* ---- Commit ---- */

unsigned space_dirty_pages(struct fs *fs)
{
    struct space *s = &fs->space;
    mutex_lock(&s->lock);               /* a trim may be loading */
    unsigned n = s->ndirty + 1;
    for (uint64_t g = 0; g < s->ngroups; g++)
        n += s->group[g] && s->group[g]->dirty ? 2 : 0;
    mutex_unlock(&s->lock);
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

/* What was released in the generation that ends is released by the commit that is being written. */
static void age_pins(uint64_t *dead, uint64_t *dying, unsigned words)
{
    for (unsigned i = 0; i < words; i++) {
        dead[i] |= dying[i];
        dying[i] = 0;
    }
}

static void freeze_chunk(struct space *s, struct chunk *c, struct pagelist *pl)
{
    struct space_ent *e = &s->group[c->index / FS_FAN]->ent[c->index % FS_FAN];
    age_pins(c->pin[PIN_DEAD], c->pin[PIN_DYING], FS_CHUNK / 64);
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
    struct space_ent *e = space_group_ent(s, g);
    age_pins(gr->whole[PIN_DEAD], gr->whole[PIN_DYING], FS_FAN / 64);
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
            space_chunk_forget(s, c);
    }
    for (uint64_t g = 0; g < s->ngroups; g++)
        if (s->group[g])
            bury_whole(fs, g, s->group[g], discard);
    mutex_unlock(&s->lock);
}
