/* Looking after a pool: the full check with recount (nothing else runs), and the scrub beside normal use. */
#include "kernel/fs/fs_int.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "kernel/lib/crc.h"

struct seen { uint64_t ino, parent; uint32_t names, entries, nentries; uint8_t type; bool orphan; };

struct check {
    struct fs *fs;
    struct fs_report *rep;
    unsigned flags;
    uint16_t **count;           /* by chunk; NULL: none counted */
    uint64_t nchunks;
    struct seen *seen;          /* ascending by ino */
    size_t nseen, seen_cap;
    uint8_t *buf;               /* data */
    int err;                    /* the check itself could not go on */
};

__printf_like(2, 3) static void finding(struct check *c, const char *fmt, ...)
{
    char msg[160];
    va_list ap;
    c->rep->errors++;
    if (!c->rep->say)
        return;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    c->rep->say(c->rep->arg, msg);
}

static unsigned long long ull(uint64_t v) { return v; }

/* ---- Counting blocks ---- */

/* Counts one more user of each; true: the first user of the (single) block. */
static bool count(struct check *c, uint64_t start, uint64_t len, const char *what)
{
    bool first = true;
    if (!start || start >= c->fs->space.blocks || len > c->fs->space.blocks - start) {
        finding(c, "%s at block %llu reaches beyond the pool", what, ull(start));
        return false;
    }
    for (uint64_t b = start; b < start + len; b++) {
        uint16_t **chunk = &c->count[b / FS_CHUNK];
        if (!*chunk)
            *chunk = kzalloc(FS_CHUNK * sizeof **chunk);
        if (!*chunk) {
            c->err = -ENOMEM;
            return false;
        }
        if (b % FS_GROUP < FS_HEADER)
            finding(c, "%s at block %llu lies in the tables", what, ull(b));
        uint16_t *n = &(*chunk)[b % FS_CHUNK];
        first &= !*n;
        if (*n < FS_REF_MAX)
            ++*n;
    }
    return first;
}

/* ---- Extent trees ---- */

static void check_data(struct check *c, uint64_t ino, uint64_t lblk, const struct ext_rec *e)
{
    for (uint32_t i = 0; i < e->len && !c->err; i++) {
        int err = blk_read(c->fs->dev, (e->pblk + i) << FS_BLOCK_SHIFT, c->buf, FS_BLOCK);
        c->rep->data_blocks++;
        if (!err && crc32c(c->fs->seed, c->buf, FS_BLOCK) == e->csum[i])
            continue;
        c->rep->bad_data++;
        finding(c, err ? "inode %llu: block %llu cannot be read" : "inode %llu: block %llu does not match its checksum",
                ull(ino), ull(lblk + i));
    }
}

struct ext_walk { struct check *c; uint64_t ino, end, mapped; bool repeat; };

static void ext_leaf(struct ext_walk *w, struct node *n)
{
    union { struct ext_rec rec; uint8_t bytes[sizeof(struct ext_rec) + 4 * EXT_MAX_CSUM]; } e;
    for (int i = 0; i < n->hdr.nitems; i++) {
        struct node_item *it = node_item(n, i);
        memcpy(&e, n->buf + it->off, it->len);
        if (it->key.a < w->end)
            finding(w->c, "inode %llu: extents overlap at %llu", ull(w->ino), ull(it->key.a));
        w->end = it->key.a + e.rec.len;
        w->mapped += e.rec.len;
        if (w->repeat)
            continue;
        count(w->c, e.rec.pblk, e.rec.len, "an extent");
        if (e.rec.flags & EXT_CSUM && w->c->flags & FS_CHECK_DATA)
            check_data(w->c, w->ino, it->key.a, &e.rec);
    }
}

/* A node that several files share is counted once per parent, its children once. */
static void ext_node(struct ext_walk *w, struct fs_ptr ptr, int above)
{
    struct check *c = w->c;
    struct node *n;
    bool repeat = w->repeat;
    int err = node_get(c->fs, ptr, NODE_EXT, &n);
    if (err) {
        finding(c, "inode %llu: tree node at block %llu is damaged (%d)", ull(w->ino), ull(ptr.blk), -err);
        return;
    }
    c->rep->nodes++;
    if (!w->repeat && !count(c, ptr.blk, 1, "a tree node"))
        w->repeat = true;
    if (above >= 0 && n->hdr.level != above - 1)
        finding(c, "inode %llu: tree levels do not match", ull(w->ino));
    else if (!n->hdr.level)
        ext_leaf(w, n);
    else
        for (int i = 0; i < n->hdr.nitems && !c->err; i++)
            ext_node(w, node_child(n, i)->ptr, n->hdr.level);
    w->repeat = repeat;
    node_put(c->fs, n);
}

/* ---- The name tree ---- */

static struct seen *see(struct check *c, uint64_t ino)
{
    size_t lo = 0, hi = c->nseen;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (c->seen[mid].ino < ino)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < c->nseen && c->seen[lo].ino == ino ? &c->seen[lo] : NULL;
}

static void check_inode(struct check *c, uint64_t ino, const struct inode_rec *r)
{
    if (c->nseen == c->seen_cap) {
        size_t cap = c->seen_cap ? 2 * c->seen_cap : 256;
        struct seen *bigger = kmalloc(cap * sizeof *bigger);
        if (!bigger) {
            c->err = -ENOMEM;
            return;
        }
        if (c->seen)
            memcpy(bigger, c->seen, c->nseen * sizeof *bigger);
        kfree(c->seen);
        c->seen = bigger, c->seen_cap = cap;
    }
    c->seen[c->nseen++] = (struct seen){ .ino = ino, .parent = r->parent, .nentries = r->nentries, .type = r->type };
    if (r->type == FS_TYPE_DIR) {
        c->rep->dirs++;
        return;
    }
    c->rep->files++;
    struct ext_walk w = { .c = c, .ino = ino };
    if (r->ext.blk)
        ext_node(&w, r->ext, -1);
    if (w.mapped != r->blocks)
        finding(c, "inode %llu: %llu blocks mapped, %llu recorded", ull(ino), ull(w.mapped), ull(r->blocks));
    if (r->size > BIT(62) || ino >= c->fs->next_ino)
        finding(c, "inode %llu: impossible size or number", ull(ino));
}

static void inodes_pass(struct check *c, struct node *n)
{
    for (int i = 0; i < n->hdr.nitems && !c->err; i++) {
        struct node_item *it = node_item(n, i);
        struct inode_rec r;
        if (it->key.b >> 56 != ITEM_INODE)
            continue;
        memcpy(&r, n->buf + it->off, sizeof r);
        if (it->len != sizeof r || it->key.b << 8 || (r.type != FS_TYPE_FILE && r.type != FS_TYPE_DIR))
            finding(c, "inode %llu: its record makes no sense", ull(it->key.a));
        else
            check_inode(c, it->key.a, &r);
        if (c->rep->progress && c->fs->ninodes)
            c->rep->progress(c->rep->arg, MIN(c->nseen, c->fs->ninodes), c->fs->ninodes);
    }
}

static void check_dirent(struct check *c, uint64_t dir, const struct dirent_rec *d)
{
    struct seen *s = see(c, d->ino), *p = see(c, dir);
    if (!p || p->type != FS_TYPE_DIR)
        finding(c, "a name in directory %llu, which does not exist", ull(dir));
    else
        p->entries++;
    if (!s || s->type != d->type) {
        finding(c, "'%.*s' in directory %llu leads nowhere", d->len, d->name, ull(dir));
        return;
    }
    s->names++;
    if (s->type == FS_TYPE_DIR && s->parent != dir)
        finding(c, "directory %llu does not know its parent %llu", ull(d->ino), ull(dir));
}

static void names_pass(struct check *c, struct node *n)
{
    for (int i = 0; i < n->hdr.nitems && !c->err; i++) {
        struct node_item *it = node_item(n, i);
        unsigned type = it->key.b >> 56;
        if (type == ITEM_DIRENT) {
            union { struct dirent_rec rec; uint8_t bytes[NODE_MAX_VALUE]; } d;
            memcpy(&d, n->buf + it->off, it->len);
            if (it->len < sizeof d.rec || it->len != sizeof d.rec + d.rec.len || !d.rec.len)
                finding(c, "a name in directory %llu makes no sense", ull(it->key.a));
            else
                check_dirent(c, it->key.a, &d.rec);
        } else if (type == ITEM_ORPHAN && it->key.a == FS_ORPHANS) {
            struct seen *s = see(c, it->key.b & BITS(55, 0));
            c->rep->orphans++;
            if (s)
                s->orphan = true;
            else
                finding(c, "inode %llu waits to be freed but does not exist", ull(it->key.b & BITS(55, 0)));
        } else if (type != ITEM_INODE) {
            finding(c, "an item of unknown type %u", type);
        }
    }
}

static void fs_tree(struct check *c, struct fs_ptr ptr, int above, void (*leaf)(struct check *, struct node *), bool counts)
{
    struct node *n;
    int err = node_get(c->fs, ptr, NODE_FS, &n);
    if (err) {
        if (counts)
            finding(c, "name tree node at block %llu is damaged (%d)", ull(ptr.blk), -err);
        return;
    }
    bool again = false;
    if (counts) {
        c->rep->nodes++;
        again = !count(c, ptr.blk, 1, "a name tree node");
    }
    if (again || (above >= 0 && n->hdr.level != above - 1))
        finding(c, "name tree node at block %llu is used twice or at the wrong level", ull(ptr.blk));
    else if (!n->hdr.level)
        leaf(c, n);
    else
        for (int i = 0; i < n->hdr.nitems && !c->err; i++)
            fs_tree(c, node_child(n, i)->ptr, n->hdr.level, leaf, counts);
    node_put(c->fs, n);
}

static void check_links(struct check *c)
{
    for (size_t i = 0; i < c->nseen; i++) {
        const struct seen *s = &c->seen[i];
        uint32_t want = s->ino == FS_ROOT || s->orphan ? 0 : 1;
        if (s->names != want)
            finding(c, "inode %llu has %u names", ull(s->ino), s->names);
        if (s->type == FS_TYPE_DIR && s->entries != s->nentries)
            finding(c, "directory %llu has %u entries, %u recorded", ull(s->ino), s->entries, s->nentries);
    }
    if (c->nseen != c->fs->ninodes)
        finding(c, "%llu inodes, %llu recorded", ull(c->nseen), ull(c->fs->ninodes));
}

/* ---- The space tables ---- */

static uint16_t should_be(struct check *c, uint64_t b)
{
    if (b >= c->fs->space.blocks)
        return FS_REF_NONE;
    if (b % FS_GROUP < FS_HEADER)
        return 1;
    return c->count[b / FS_CHUNK] ? c->count[b / FS_CHUNK][b % FS_CHUNK] : 0;
}

static void compare_chunk(struct check *c, uint64_t index, uint16_t *real, uint64_t *free)
{
    int err = space_count(c->fs, index, real);
    bool differs = err != 0;
    if (err)
        finding(c, "space table of chunk %llu is damaged (%d)", ull(index), -err);
    for (unsigned i = 0; i < FS_CHUNK; i++) {
        uint64_t b = index * FS_CHUNK + i;
        uint16_t want = should_be(c, b);
        *free += !want;
        if (want > 1 && want < FS_REF_MAX)
            c->rep->shared++;
        if (!err && real[i] != want) {
            c->rep->leaked += !want;
            if (!differs)
                finding(c, "block %llu is counted %u times and used %u times", ull(b), real[i], want);
            differs = true;
        }
        real[i] = want;
    }
    if (differs && c->flags & FS_CHECK_REPAIR && !fs_writable(c->fs)) {
        mutex_lock(&c->fs->space.lock);
        int bad = space_force(c->fs, index, real);
        mutex_unlock(&c->fs->space.lock);
        c->rep->fixed += !bad;
        atomic_store_relaxed(&c->fs->changed, true);
    }
}

static void compare_space(struct check *c)
{
    uint16_t *real = kmalloc(FS_CHUNK * sizeof *real);
    uint64_t free = 0;
    if (!real) {
        c->err = -ENOMEM;
        return;
    }
    for (uint64_t i = 0; i < c->nchunks; i++) {
        struct group *g = c->fs->space.group[i / FS_FAN];
        if (i % FS_FAN == 0 && !g && c->fs->space.l2[i / FS_FAN / FS_FAN][i / FS_FAN % FS_FAN].state == SPACE_DEFAULT) {
            bool used = false;
            for (unsigned k = 0; k < FS_FAN && i + k < c->nchunks; k++)
                used |= c->count[i + k] != NULL;
            if (!used) {                /* never touched: 2 GiB at a step */
                uint64_t end = MIN((i + FS_FAN) * FS_CHUNK, c->fs->space.blocks);
                free += end - i * FS_CHUNK - FS_HEADER;
                i += FS_FAN - 1;
                continue;
            }
        }
        compare_chunk(c, i, real, &free);
    }
    if (free != c->fs->space.free) {
        finding(c, "%llu blocks are free, %llu recorded", ull(free), ull(c->fs->space.free));
        if (c->flags & FS_CHECK_REPAIR && !fs_writable(c->fs)) {
            c->fs->space.free = free;
            c->rep->fixed++;
            atomic_store_relaxed(&c->fs->changed, true);
        }
    }
    kfree(real);
}

/* ---- The full check ---- */

static void check_free(struct check *c)
{
    for (uint64_t i = 0; c->count && i < c->nchunks; i++)
        kfree(c->count[i]);
    kfree(c->count);
    kfree(c->seen);
    kfree(c->buf);
}

int fs_check(struct fs *fs, unsigned flags, struct fs_report *rep)
{
    struct check c = { .fs = fs, .rep = rep, .flags = flags, .nchunks = (fs->space.blocks + FS_CHUNK - 1) / FS_CHUNK };
    int err = fs_sync(fs);
    if (err)
        return err;
    c.count = kzalloc(c.nchunks * sizeof *c.count);
    c.buf = kmalloc_aligned(FS_BLOCK, 4096);
    if (!c.count || !c.buf)
        c.err = -ENOMEM;
    if (!c.err)
        fs_tree(&c, fs->tree.root, -1, inodes_pass, true);
    if (!c.err)
        fs_tree(&c, fs->tree.root, -1, names_pass, false);
    if (!c.err) {
        check_links(&c);
        compare_space(&c);
    }
    check_free(&c);
    if (!c.err && rep->fixed)
        c.err = fs_commit(fs);
    return c.err;
}

/* ---- Scrub ---- */

/*
 * Holding commit_lock keeps every block of the committed state as it is: what is freed meanwhile is given out only after the next
 * commit.  So the trees are read from the disk, past the cache, in turns of one file; between turns commits may pass.
 */
struct scrub { struct fs *fs; struct fs_report *rep; struct check c; uint64_t next; };

static void scrub_ext(struct scrub *s, struct fs_ptr ptr, uint64_t ino, int depth)
{
    struct node *n = kmalloc(sizeof *n);
    int err = n ? node_read(s->fs, ptr, NODE_EXT, n->buf) : -ENOMEM;
    if (err == -ENOMEM)
        s->c.err = err;
    else if (err || depth > NODE_MAX_LEVEL)
        finding(&s->c, "inode %llu: tree node at block %llu is damaged (%d)", ull(ino), ull(ptr.blk), -err);
    s->rep->nodes += !err;
    for (int i = 0; !err && !s->c.err && depth <= NODE_MAX_LEVEL && i < n->hdr.nitems; i++) {
        if (n->hdr.level) {
            scrub_ext(s, node_child(n, i)->ptr, ino, depth + 1);
            continue;
        }
        union { struct ext_rec rec; uint8_t bytes[sizeof(struct ext_rec) + 4 * EXT_MAX_CSUM]; } e;
        memcpy(&e, n->buf + node_item(n, i)->off, node_item(n, i)->len);
        if (e.rec.flags & EXT_CSUM)
            check_data(&s->c, ino, node_item(n, i)->key.a, &e.rec);
    }
    kfree(n);
}

/* The next inode at or after s->next, straight from the disk. */
static int scrub_find(struct scrub *s, struct fs_ptr ptr, uint64_t *ino, struct inode_rec *rec, int depth)
{
    struct node *n = kmalloc(sizeof *n);
    int err = n ? node_read(s->fs, ptr, NODE_FS, n->buf) : -ENOMEM;
    if (err && err != -ENOMEM)
        finding(&s->c, "name tree node at block %llu is damaged (%d)", ull(ptr.blk), -err);
    int found = err ? err : -ENOENT;
    for (int i = 0; !err && depth <= NODE_MAX_LEVEL && i < n->hdr.nitems && found == -ENOENT; i++) {
        if (n->hdr.level) {
            if (i + 1 >= n->hdr.nitems || node_child(n, i + 1)->key.a >= s->next)
                found = scrub_find(s, node_child(n, i)->ptr, ino, rec, depth + 1);
        } else if (node_item(n, i)->key.a >= s->next && node_item(n, i)->key.b >> 56 == ITEM_INODE && node_item(n, i)->len == sizeof *rec) {
            *ino = node_item(n, i)->key.a;
            memcpy(rec, n->buf + node_item(n, i)->off, sizeof *rec);
            found = 0;
        }
    }
    kfree(n);
    return found;
}

int fs_scrub(struct fs *fs, struct fs_report *rep)
{
    struct scrub s = { .fs = fs, .rep = rep, .c = { .fs = fs, .rep = rep }, .next = 1 };
    s.c.buf = kmalloc_aligned(FS_BLOCK, 4096);
    int err = s.c.buf ? fs_sync(fs) : -ENOMEM;
    while (!err && !s.c.err) {
        struct inode_rec rec;
        uint64_t ino = 0;
        mutex_lock(&fs->commit_lock);
        err = scrub_find(&s, fs->super.root, &ino, &rec, 0);
        if (!err && rec.type == FS_TYPE_FILE && rec.ext.blk)
            scrub_ext(&s, rec.ext, ino, 0);
        mutex_unlock(&fs->commit_lock);
        rep->files += !err && rec.type == FS_TYPE_FILE;
        rep->dirs += !err && rec.type == FS_TYPE_DIR;
        s.next = ino + 1;
        if (rep->progress)
            rep->progress(rep->arg, rep->files + rep->dirs, fs->ninodes);
    }
    kfree(s.c.buf);
    if (err == -EILSEQ || err == -EIO)
        err = 0;                /* reported as a finding */
    return s.c.err ? s.c.err : err == -ENOENT ? 0 : err;
}
