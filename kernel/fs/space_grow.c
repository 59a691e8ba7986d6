/* A pool that grows, and tables that are counted anew. */
#include "kernel/fs/space_int.h"

#include <errno.h>
#include <string.h>

/* ---- Growth ---- */

/* A disk may say that blocks are in use which are not there yet. */
static int check_absent(struct space *s, uint64_t index, uint64_t old)
{
    struct group *gr = s->group[index / FS_FAN];
    struct chunk *c = gr->chunk[index % FS_FAN];
    int err = 0;
    if (!c && gr->ent[index % FS_FAN].state == SPACE_DEFAULT)
        return 0;
    if (!c)
        err = space_chunk_load(s, index, &c);
    for (unsigned i = 0; !err && i < FS_CHUNK; i++)
        if (index * FS_CHUNK + i >= old && c->ref[i] != FS_REF_NONE)
            err = -EILSEQ;
    return err;
}

/* The counts of the blocks that appear between the old and the new end. */
static void grow_chunk(struct space *s, uint64_t index, uint64_t old, uint64_t end)
{
    struct group *gr = s->group[index / FS_FAN];
    struct space_ent *e = &gr->ent[index % FS_FAN];
    struct chunk *c = gr->chunk[index % FS_FAN];
    uint32_t had = e->free;
    if (!c) {
        e->free = space_default_free(end, index);
    } else {
        for (unsigned i = 0; i < FS_CHUNK; i++) {
            uint64_t blk = index * FS_CHUNK + i;
            if (blk >= old && blk < end) {
                c->ref[i] = 0;
                e->free++;
            }
        }
        space_soil(s, gr, c);
    }
    gr->free += e->free - had, s->free += e->free - had;
    gr->dirty = true;
}

/* The end of what grows in the group that has the old end. */
static uint64_t group_part(uint64_t old, uint64_t end) { return MIN(end, ALIGN_UP(old, (uint64_t)FS_GROUP)); }

static int grow_prepare(struct space *s, uint64_t old, uint64_t end, struct group ***grown)
{
    uint64_t ngroups = (end + FS_GROUP - 1) / FS_GROUP;
    struct group *gr;
    int err = 0;
    *grown = kzalloc(ngroups * sizeof **grown);
    if (!*grown)
        return -ENOMEM;
    for (uint64_t j = 0; !err && j <= (ngroups - 1) / FS_FAN; j++)
        err = space_l2_need(s, j);
    if (!err)
        err = space_group_load(s, (old - 1) / FS_GROUP, &gr);
    for (uint64_t c = old / FS_CHUNK; !err && c * FS_CHUNK < group_part(old, end); c++)
        err = check_absent(s, c, old);
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
        for (uint64_t c = old / FS_CHUNK; c * FS_CHUNK < group_part(old, end); c++)
            grow_chunk(s, c, old, end);
        atomic_store_relaxed(&s->blocks, end);
        for (uint64_t g = (old + FS_GROUP - 1) / FS_GROUP; g * FS_GROUP < end; g++)
            s->free += space_default_group_free(s, g);
        memcpy(grown, s->group, s->ngroups * sizeof *grown);
        kfree(s->group);
        s->group = grown;
        s->ngroups = (end + FS_GROUP - 1) / FS_GROUP;
        space_set_keep(s);
    }
    mutex_unlock(&s->lock);
    return err;
}

/* ---- Repair ---- */

int space_force(struct fs *fs, uint64_t index, const uint16_t *ref)
{
    struct space *s = &fs->space;
    struct group *gr = s->group[index / FS_FAN];
    struct chunk *c = gr ? gr->chunk[index % FS_FAN] : NULL;
    uint32_t free = 0;
    int err = gr ? 0 : space_group_load(s, index / FS_FAN, &gr);
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
    c->doubtful = false;
    space_soil(s, gr, c);
    return 0;
}
