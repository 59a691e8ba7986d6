/* Reading all metadata and checksummed data of the committed state beside normal use. */
#include "kernel/fs/check_int.h"

#include <errno.h>
#include <string.h>

/*
 * Holding commit_lock keeps every block of the committed state as it is: what is freed meanwhile is given out only after the next
 * commit.  So the trees are read from the disk, past the cache, in turns of one file; between turns commits may pass.
 */
struct scrub { struct fs *fs; struct fs_report *rep; struct check c; uint64_t next; };

static void scrub_ext(struct scrub *s, struct fs_ptr ptr, uint64_t ino, int depth, struct key_range keys)
{
    struct node *n = kmalloc(sizeof *n);
    int err = n ? node_read(s->fs, ptr, NODE_EXT, n->buf) : -ENOMEM;
    if (!err && (depth > NODE_MAX_LEVEL || !in_range(n, keys)))
        err = -EILSEQ;
    if (err == -ENOMEM)
        s->c.err = err;
    else if (err)
        finding(&s->c, BAD_NAMES, "inode %llu: tree node at block %llu is damaged (%d)", ull(ino), ull(ptr.blk), -err);
    s->rep->nodes += !err;
    for (int i = 0; !err && !s->c.err && i < n->hdr.nitems; i++) {
        if (n->hdr.level) {
            scrub_ext(s, node_child(n, i)->ptr, ino, depth + 1, child_range(n, i, keys));
            continue;
        }
        union { struct ext_rec rec; uint8_t bytes[sizeof(struct ext_rec) + 4 * EXT_MAX_CSUM]; } e;
        memcpy(&e, n->buf + node_item(n, i)->off, node_item(n, i)->len);
        if (e.rec.flags & EXT_CSUM)
            check_data_blocks(&s->c, ino, node_item(n, i)->key.a, &e.rec);
    }
    kfree(n);
}

/* The next inode at or after s->next, straight from the disk. */
static int scrub_find(struct scrub *s, struct fs_ptr ptr, uint64_t *ino, struct inode_rec *rec, int depth, struct key_range keys)
{
    struct node *n = kmalloc(sizeof *n);
    int err = n ? node_read(s->fs, ptr, NODE_FS, n->buf) : -ENOMEM;
    if (!err && (depth > NODE_MAX_LEVEL || !in_range(n, keys)))
        err = -EILSEQ;
    if (err && err != -ENOMEM)
        finding(&s->c, BAD_NAMES, "name tree node at block %llu is damaged (%d)", ull(ptr.blk), -err);
    int found = err ? err : -ENOENT;
    for (int i = 0; !err && i < n->hdr.nitems && found == -ENOENT; i++) {
        if (n->hdr.level) {
            if (i + 1 >= n->hdr.nitems || node_child(n, i + 1)->key.a >= s->next)
                found = scrub_find(s, node_child(n, i)->ptr, ino, rec, depth + 1, child_range(n, i, keys));
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
    while (!err && !s.c.err && s.next) {
        struct inode_rec rec;
        uint64_t ino = 0;
        mutex_lock(&fs->commit_lock);
        err = scrub_find(&s, fs->super.root, &ino, &rec, 0, ALL_KEYS);
        if (!err && rec.type == FS_TYPE_FILE && rec.ext.blk)
            scrub_ext(&s, rec.ext, ino, 0, ALL_KEYS);
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
