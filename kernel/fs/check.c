/* The full check: everything is read and counted, nothing else runs. */
#include "kernel/fs/check_int.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "kernel/lib/crc.h"

void finding(struct check *c, unsigned what, const char *fmt, ...)
{
    char msg[200];
    va_list ap;
    c->bad |= what;
    if (what & BAD_FILE && c->now)
        c->now->bad_extents = true;
    c->rep->errors++;
    if (!c->rep->say)
        return;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    for (char *p = msg; *p; p++)        /* names may be anything; a terminal must not obey them */
        if ((*p > 0 && *p < ' ') || *p == 127)
            *p = '?';
    c->rep->say(c->rep->arg, msg);
}

/* ---- Counting blocks ---- */

/* Counts one more user of each; true: the first user of the (single) block. */
static bool count(struct check *c, uint64_t start, uint64_t len, const char *what)
{
    bool first = true, in_tables = false;
    if (!start || start >= fs_blocks(c->fs) || len > fs_blocks(c->fs) - start) {
        finding(c, BAD_FILE, "%s at block %llu reaches beyond the pool", what, ull(start));
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
        if (b % FS_GROUP < FS_HEADER && !in_tables) {
            finding(c, BAD_FILE, "%s at block %llu lies in the tables", what, ull(b));
            in_tables = true;
        }
        uint16_t *n = &(*chunk)[b % FS_CHUNK];
        first &= !*n;
        if (*n < FS_REF_MAX)
            ++*n;
    }
    return first;
}

/* ---- Extent trees ---- */

void check_data_blocks(struct check *c, uint64_t ino, uint64_t lblk, const struct ext_rec *e)
{
    for (uint32_t i = 0; i < e->len && !c->err; i++) {
        int err = blk_read(c->fs->dev, (e->pblk + i) << FS_BLOCK_SHIFT, c->buf, FS_BLOCK);
        c->rep->data_blocks++;
        if (!err && crc32c(c->fs->seed, c->buf, FS_BLOCK) == e->csum[i])
            continue;
        c->rep->bad_data++;
        finding(c, BAD_DATA, err ? "inode %llu: block %llu cannot be read" : "inode %llu: block %llu does not match its checksum",
                ull(ino), ull(lblk + i));
    }
}

bool check_extent_place(struct fs *fs, const struct ext_rec *e)
{
    uint64_t in = e->pblk % FS_GROUP;
    return e->pblk < fs_blocks(fs) && e->len <= fs_blocks(fs) - e->pblk && in >= FS_HEADER && in + e->len <= FS_GROUP;
}

struct ext_walk { struct check *c; uint64_t ino, end, mapped; bool repeat; };

static void ext_leaf(struct ext_walk *w, struct node *n)
{
    union { struct ext_rec rec; uint8_t bytes[sizeof(struct ext_rec) + 4 * EXT_MAX_CSUM]; } e;
    for (int i = 0; i < n->hdr.nitems; i++) {
        struct node_item *it = node_item(n, i);
        memcpy(&e, n->buf + it->off, it->len);
        if (it->key.a < w->end)
            finding(w->c, BAD_FILE, "inode %llu: extents overlap at %llu", ull(w->ino), ull(it->key.a));
        w->end = it->key.a + e.rec.len;
        w->mapped += e.rec.len;
        if (w->repeat)
            continue;
        count(w->c, e.rec.pblk, e.rec.len, "an extent");
        if (e.rec.flags & EXT_CSUM && w->c->flags & FS_CHECK_DATA)
            check_data_blocks(w->c, w->ino, it->key.a, &e.rec);
    }
}

/* A node that several files share is counted once per parent, its children once. */
static void ext_node(struct ext_walk *w, struct fs_ptr ptr, int above, struct key_range keys)
{
    struct check *c = w->c;
    struct node *n;
    bool repeat = w->repeat;
    int err = node_get(c->fs, ptr, NODE_EXT, &n);
    if (err == -ENOMEM)
        c->err = err;
    if (err) {
        finding(c, BAD_FILE, "inode %llu: tree node at block %llu is damaged (%d)", ull(w->ino), ull(ptr.blk), -err);
        return;
    }
    c->rep->nodes++;
    if (!w->repeat && !count(c, ptr.blk, 1, "a tree node"))
        w->repeat = true;
    if ((above >= 0 && n->hdr.level != above - 1) || !in_range(n, keys))
        finding(c, BAD_FILE, "inode %llu: tree levels or keys do not match", ull(w->ino));
    else if (!n->hdr.level)
        ext_leaf(w, n);
    else
        for (int i = 0; i < n->hdr.nitems && !c->err; i++)
            ext_node(w, node_child(n, i)->ptr, n->hdr.level, child_range(n, i, keys));
    w->repeat = repeat;
    node_put(c->fs, n);
}

/* ---- The name tree ---- */

/* Where the inode is, or would be. */
static size_t seen_at(struct check *c, uint64_t ino)
{
    size_t lo = 0, hi = c->nseen;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (c->seen[mid].ino < ino)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

struct seen *check_seen(struct check *c, uint64_t ino)
{
    size_t at = seen_at(c, ino);
    return at < c->nseen && c->seen[at].ino == ino ? &c->seen[at] : NULL;
}

struct seen *check_see(struct check *c, const struct seen *s)
{
    if (c->nseen == c->seen_cap) {
        size_t cap = c->seen_cap ? 2 * c->seen_cap : 256;
        struct seen *bigger = kmalloc(cap * sizeof *bigger);
        if (!bigger) {
            c->err = -ENOMEM;
            return NULL;
        }
        if (c->seen)
            memcpy(bigger, c->seen, c->nseen * sizeof *bigger);
        kfree(c->seen);
        c->seen = bigger, c->seen_cap = cap;
    }
    struct seen *at = c->seen + seen_at(c, s->ino);
    memmove(at + 1, at, (c->seen + c->nseen - at) * sizeof *at);
    *at = *s;
    c->nseen++;
    return at;
}

static void check_inode(struct check *c, uint64_t ino, const struct inode_rec *r)
{
    struct seen new = { .ino = ino, .parent = r->parent, .nentries = r->nentries, .type = r->type };
    if (c->nseen && ino <= c->seen[c->nseen - 1].ino) {
        finding(c, BAD_NAMES, "inode %llu: its record is not where it belongs", ull(ino));
        return;
    }
    c->now = check_see(c, &new);
    if (!c->now)
        return;
    if (r->size >= BIT(62) || ino >= c->fs->next_ino)
        finding(c, BAD_NAMES, "inode %llu: impossible size or number", ull(ino));
    if (r->type == FS_TYPE_DIR) {
        c->rep->dirs++;
    } else {
        c->rep->files++;
        struct ext_walk w = { .c = c, .ino = ino };
        if (r->ext.blk)
            ext_node(&w, r->ext, -1, ALL_KEYS);
        if (w.mapped != r->blocks)
            finding(c, BAD_FILE, "inode %llu: %llu blocks mapped, %llu recorded", ull(ino), ull(w.mapped), ull(r->blocks));
    }
    c->now = NULL;
}

static void inodes_pass(struct check *c, struct node *n, void *arg)
{
    for (int i = 0; i < n->hdr.nitems && !c->err; i++) {
        struct node_item *it = node_item(n, i);
        struct inode_rec r;
        if (it->key.b >> 56 != ITEM_INODE)
            continue;
        memcpy(&r, n->buf + it->off, MIN(sizeof r, (size_t)it->len));
        if (it->len != sizeof r || it->key.b << 8 || (r.type != FS_TYPE_FILE && r.type != FS_TYPE_DIR) ||
            (it->key.a < FS_FIRST_INO && (it->key.a != FS_ROOT || r.type != FS_TYPE_DIR)))
            finding(c, BAD_NAMES, "inode %llu: its record makes no sense", ull(it->key.a));
        else
            check_inode(c, it->key.a, &r);
        if (c->rep->progress && c->fs->ninodes)
            c->rep->progress(c->rep->arg, MIN(c->nseen, c->fs->ninodes), c->fs->ninodes);
    }
}

static void check_dirent(struct check *c, uint64_t dir, const struct dirent_rec *d)
{
    struct seen *s = check_seen(c, d->ino), *p = check_seen(c, dir);
    if (!p || p->type != FS_TYPE_DIR)
        finding(c, BAD_NAMES, "a name in directory %llu, which does not exist", ull(dir));
    else
        p->entries++;
    if (!s || s->type != d->type) {
        finding(c, BAD_NAMES, "'%.*s' in directory %llu leads nowhere", d->len, d->name, ull(dir));
        return;
    }
    s->names++;
    if (s->type == FS_TYPE_DIR && s->parent != dir)
        finding(c, BAD_NAMES, "directory %llu does not know its parent %llu", ull(d->ino), ull(dir));
}

bool check_dirent_ok(struct node *n, int i, union dirent_buf *d)
{
    const struct node_item *it = node_item(n, i);
    memcpy(d, n->buf + it->off, it->len);
    return it->len >= sizeof d->rec && it->len == sizeof d->rec + d->rec.len && d->rec.len && !memchr(d->rec.name, '/', d->rec.len) &&
        !memchr(d->rec.name, 0, d->rec.len) && (it->key.b & BITS(55, 0)) >> 8 == dir_hash(d->rec.name, d->rec.len);
}

static void names_pass(struct check *c, struct node *n, void *arg)
{
    for (int i = 0; i < n->hdr.nitems && !c->err; i++) {
        struct node_item *it = node_item(n, i);
        unsigned type = it->key.b >> 56;
        if (type == ITEM_DIRENT) {
            union dirent_buf d;
            if (!check_dirent_ok(n, i, &d))
                finding(c, BAD_NAMES, "a name in directory %llu makes no sense", ull(it->key.a));
            else
                check_dirent(c, it->key.a, &d.rec);
        } else if (type == ITEM_ORPHAN && it->key.a == FS_ORPHANS) {
            struct seen *s = check_seen(c, it->key.b & BITS(55, 0));
            c->rep->orphans++;
            if (s)
                s->orphan = true;
            else
                finding(c, BAD_NAMES, "inode %llu waits to be freed but does not exist", ull(it->key.b & BITS(55, 0)));
        } else if (type != ITEM_INODE) {
            finding(c, BAD_NAMES, "an item of unknown type %u", type);
        }
    }
}

struct leaf_walk { struct check *c; void (*leaf)(struct check *, struct node *, void *); void *arg; bool counts; };

static void fs_tree(struct leaf_walk *w, struct fs_ptr ptr, int above, struct key_range keys)
{
    struct check *c = w->c;
    struct node *n;
    int err = node_get(c->fs, ptr, NODE_FS, &n);
    if (err == -ENOMEM)
        c->err = err;
    if (err) {
        if (w->counts)
            finding(c, BAD_NAMES, "name tree node at block %llu is damaged (%d)", ull(ptr.blk), -err);
        return;
    }
    bool again = false;
    if (w->counts) {
        c->rep->nodes++;
        again = !count(c, ptr.blk, 1, "a name tree node");
    }
    if (again || (above >= 0 && n->hdr.level != above - 1) || !in_range(n, keys)) {
        if (w->counts)
            finding(c, BAD_NAMES, "name tree node at block %llu is used twice or at the wrong place", ull(ptr.blk));
    } else if (!n->hdr.level) {
        w->leaf(c, n, w->arg);
    } else {
        for (int i = 0; i < n->hdr.nitems && !c->err; i++)
            fs_tree(w, node_child(n, i)->ptr, n->hdr.level, child_range(n, i, keys));
    }
    node_put(c->fs, n);
}

void check_each_leaf(struct check *c, void (*leaf)(struct check *, struct node *, void *), void *arg)
{
    struct leaf_walk w = { c, leaf, arg, false };
    if (!c->err)
        fs_tree(&w, c->fs->tree.root, -1, ALL_KEYS);
}

/* Follows the parents up, marking what leads to the root. */
static void check_reach(struct check *c, struct seen *s)
{
    struct seen *up = s;
    for (size_t steps = 0; up && !up->reached && up->ino != FS_ROOT && steps <= c->nseen; steps++)
        up = check_seen(c, up->parent);
    bool reached = up && (up->reached || up->ino == FS_ROOT);
    if (!reached)
        finding(c, BAD_NAMES, "directory %llu cannot be reached", ull(s->ino));
    for (; reached && s && !s->reached && s->ino != FS_ROOT; s = check_seen(c, s->parent))
        s->reached = true;
}

static void check_links(struct check *c)
{
    for (size_t i = 0; i < c->nseen; i++) {
        const struct seen *s = &c->seen[i];
        uint32_t want = s->ino == FS_ROOT || s->orphan ? 0 : 1;
        if (s->names != want)
            finding(c, BAD_NAMES, "inode %llu has %u names", ull(s->ino), s->names);
        if (s->type == FS_TYPE_DIR && s->entries != s->nentries)
            finding(c, BAD_NAMES, "directory %llu has %u entries, %u recorded", ull(s->ino), s->entries, s->nentries);
        if (s->type == FS_TYPE_DIR && s->ino != FS_ROOT)
            check_reach(c, &c->seen[i]);
    }
    if (!check_seen(c, FS_ROOT))
        finding(c, BAD_NAMES, "there is no root directory");
    if (c->nseen != c->fs->ninodes)
        finding(c, BAD_NAMES, "%llu inodes, %llu recorded", ull(c->nseen), ull(c->fs->ninodes));
}

/* ---- The space tables ---- */

static uint16_t should_be(struct check *c, uint64_t b)
{
    if (b >= fs_blocks(c->fs))
        return FS_REF_NONE;
    if (b % FS_GROUP < FS_HEADER)
        return 1;
    return c->count[b / FS_CHUNK] ? c->count[b / FS_CHUNK][b % FS_CHUNK] : 0;
}

static void compare_chunk(struct check *c, uint64_t index, uint16_t *real, uint64_t *free)
{
    bool damaged = false;
    int err = space_count(c->fs, index, real, &damaged);
    bool differs = err || damaged;
    if (differs)
        finding(c, BAD_SPACE, "space table of chunk %llu is damaged", ull(index));
    for (unsigned i = 0; i < FS_CHUNK; i++) {
        uint64_t b = index * FS_CHUNK + i;
        uint16_t want = should_be(c, b);
        *free += !want;
        if (want > 1 && want < FS_REF_MAX)
            c->rep->shared++;
        if (!err && real[i] != want) {
            c->rep->leaked += !want;
            if (!differs)
                finding(c, BAD_SPACE, "block %llu is counted %u times and used %u times", ull(b), real[i], want);
            differs = true;
        }
        real[i] = want;
    }
    if (differs && c->flags & FS_CHECK_REPAIR) {
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
                uint64_t end = MIN((i + FS_FAN) * FS_CHUNK, fs_blocks(c->fs));
                free += end - i * FS_CHUNK - FS_HEADER;
                i += FS_FAN - 1;
                continue;
            }
        }
        compare_chunk(c, i, real, &free);
    }
    if (free != c->fs->space.free) {
        finding(c, BAD_SPACE, "%llu blocks are free, %llu recorded", ull(free), ull(c->fs->space.free));
        if (c->flags & FS_CHECK_REPAIR) {
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

static int check_once(struct fs *fs, unsigned flags, struct fs_report *rep, bool repair)
{
    struct check c = { .fs = fs, .rep = rep, .flags = flags, .nchunks = (fs_blocks(fs) + FS_CHUNK - 1) / FS_CHUNK };
    c.count = kzalloc(c.nchunks * sizeof *c.count);
    c.buf = kmalloc_aligned(FS_BLOCK, 4096);
    if (!c.count || !c.buf)
        c.err = -ENOMEM;
    struct leaf_walk w = { &c, inodes_pass, NULL, true };
    if (!c.err)
        fs_tree(&w, fs->tree.root, -1, ALL_KEYS);
    check_each_leaf(&c, names_pass, NULL);
    if (!c.err) {
        check_links(&c);
        compare_space(&c);
    }
    if (!c.err && fs->space.forgiven) {
        finding(&c, BAD_SPACE, "%u pages or entries of the space tables are damaged", fs->space.forgiven);
        rep->fixed++;
        fs->space.forgiven = 0;
        atomic_store_relaxed(&fs->changed, true);
    }
    if (!c.err && rep->fixed)
        c.err = fs_commit(fs);
    if (!c.err && repair && c.bad & (BAD_NAMES | BAD_FILE)) {
        c.err = repair_trees(&c);
        rep->fixed++;
    }
    check_free(&c);
    return c.err;
}

/*
 * Repair: count the blocks of all that can be read; build the trees anew from it; count again, which frees the old trees; look whether
 * anything is left.
 */
static int check_and_repair(struct fs *fs, unsigned flags, struct fs_report *rep)
{
    struct fs_report again = { .say = NULL }, last = { .say = rep->say, .arg = rep->arg };
    fs->space.salvage = true;
    int err = check_once(fs, flags, rep, true);
    fs->space.salvage = false;
    if (!err && rep->fixed)
        err = check_once(fs, FS_CHECK_REPAIR, &again, false);
    if (!err && rep->fixed)
        err = check_once(fs, 0, &last, false);
    rep->left = rep->fixed ? last.errors : rep->errors - rep->bad_data;
    return err;
}

int fs_check(struct fs *fs, unsigned flags, struct fs_report *rep)
{
    int err = fs_sync(fs);
    if (err)
        return err;
    if (flags & FS_CHECK_REPAIR && !fs_writable(fs))
        return check_and_repair(fs, flags, rep);
    err = check_once(fs, flags & ~FS_CHECK_REPAIR, rep, false);
    rep->left = rep->errors;
    return err;
}
