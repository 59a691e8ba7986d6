/* Tables of reference counts: from the disk into memory, and what those that were never written mean. */
#include "kernel/fs/space_int.h"

#include <errno.h>
#include <string.h>
#include "kernel/lib/crc.h"

static uint64_t group_base(uint64_t g) { return g * FS_GROUP; }

/* ---- Defaults: what tables that were never written mean ---- */

static uint16_t default_ref(struct space *s, uint64_t blk)
{
    return blk >= s->blocks ? FS_REF_NONE : blk % FS_GROUP < FS_HEADER;
}

uint32_t space_default_free(uint64_t blocks, uint64_t c)
{
    uint64_t start = c * FS_CHUNK, end = MIN(start + FS_CHUNK, blocks);
    if (c % FS_FAN == 0)
        start += FS_HEADER;
    return end > start ? end - start : 0;
}

uint64_t space_default_group_free(struct space *s, uint64_t g)
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

struct space_ent *space_group_ent(struct space *s, uint64_t g)
{
    struct space_ent *l2 = s->l2[g / FS_FAN];
    return l2 ? &l2[g % FS_FAN] : NULL;
}

/* A damaged page is as good as one never written, when all is counted anew; what is in memory then differs from the disk. */
static bool forgive(struct space *s, int err, void *page, size_t len, bool *dirty)
{
    if (!s->salvage || err == -ENOMEM)
        return false;
    memset(page, 0, len);
    *dirty = true;
    s->forgiven++;
    return true;
}

static int group_fill(struct space *s, uint64_t g, struct group *gr)
{
    struct space_ent *e = space_group_ent(s, g);
    if (e && e->state == SPACE_PAGE) {
        int err = read_page(s, l1_blk(g, e->slot), e->crc, gr->ent);
        if (err && !forgive(s, err, gr->ent, sizeof gr->ent, &gr->dirty))
            return err;
    }
    for (unsigned i = 0; i < FS_FAN; i++) {
        struct space_ent *l0 = &gr->ent[i];
        if (!ent_sane(l0, FS_CHUNK, true) && !forgive(s, -EILSEQ, l0, sizeof *l0, &gr->dirty))
            return -EILSEQ;
        if (l0->state == SPACE_DEFAULT)
            l0->free = space_default_free(s->blocks, g * FS_FAN + i);
        else if (l0->state == SPACE_UNIFORM)
            l0->free = l0->value ? 0 : FS_CHUNK;
        gr->free += l0->free;
    }
    return 0;
}

int space_group_load(struct space *s, uint64_t g, struct group **out)
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

int space_chunk_load(struct space *s, uint64_t index, struct chunk **out)
{
    struct group *gr;
    unsigned i = index % FS_FAN;
    int err = space_group_load(s, index / FS_FAN, &gr);
    if (err)
        return err;
    struct chunk *c = gr->chunk[i];
    if (!c) {
        c = kzalloc(sizeof *c);
        if (!c)
            return -ENOMEM;
        c->index = index;
        err = chunk_fill(s, c, &gr->ent[i]);
        if (err && forgive(s, err, c->ref, sizeof c->ref, &c->doubtful))
            err = 0;
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

void space_soil(struct space *s, struct group *gr, struct chunk *c)
{
    if (c && !c->dirty)
        c->dirty = true, s->ndirty++;
    gr->dirty = true;
}

void space_chunk_forget(struct space *s, struct chunk *c)
{
    s->group[c->index / FS_FAN]->chunk[c->index % FS_FAN] = NULL;
    list_del(&c->lru);
    atomic_store_relaxed(&s->nchunks, s->nchunks - 1);
    kfree(c);
}

int space_l2_need(struct space *s, unsigned j)
{
    if (!s->l2[j])
        s->l2[j] = kzalloc(FS_BLOCK);
    return s->l2[j] ? 0 : -ENOMEM;
}

void space_set_keep(struct space *s)
{
    uint64_t part = MIN(s->blocks / 200, 16384ull);
    s->keep = MAX(part, 48ull);
}

/* ---- Opening ---- */

static int load_l2(struct space *s, unsigned j)
{
    int err = space_l2_need(s, j);
    if (err)
        return err;
    if (s->l3[j].state == SPACE_PAGE)
        err = read_page(s, l2_blk(j, s->l3[j].slot), s->l3[j].crc, s->l2[j]);
    for (unsigned i = 0; !err && i < FS_FAN; i++)
        if (!ent_sane(&s->l2[j][i], FS_GROUP, false))
            err = -EILSEQ;
    return err && forgive(s, err, s->l2[j], FS_BLOCK, &s->l2_dirty[j]) ? 0 : err;
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
    s->salvage = fs->flags & FS_SALVAGE;
    s->meta_cursor = FS_HEADER;
    s->cursor = FS_HEADER + MIN(s->blocks / 32, 16384ull);
    space_set_keep(s);
    s->group = kzalloc(s->ngroups * sizeof *s->group);
    if (!s->group)
        return -ENOMEM;
    int err = ent_sane(&s->top, 0, false) ? 0 : -EILSEQ;
    bool dirty;                         /* level 3 is written by every commit */
    if (!err && s->top.state == SPACE_PAGE)
        err = read_page(s, FS_L3 + s->top.slot, s->top.crc, s->l3);
    if (err && forgive(s, err, s->l3, sizeof s->l3, &dirty))
        err = 0;
    for (unsigned j = 0; !err && j <= (s->ngroups - 1) / FS_FAN; j++) {
        if (!ent_sane(&s->l3[j], 0, false) && !forgive(s, -EILSEQ, &s->l3[j], sizeof s->l3[j], &s->l2_dirty[j]))
            return -EILSEQ;
        err = load_l2(s, j);
    }
    return err;
}

void space_fini(struct fs *fs)
{
    struct space *s = &fs->space;
    while (s->chunks.next && !list_empty(&s->chunks))
        space_chunk_forget(s, list_first(&s->chunks, struct chunk, lru));
    for (uint64_t g = 0; s->group && g < s->ngroups; g++)
        kfree(s->group[g]);
    kfree(s->group);
    for (unsigned j = 0; j < FS_FAN; j++)
        kfree(s->l2[j]);
}
