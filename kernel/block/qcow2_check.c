/* qcow2: recount all references and compare; repair. */
#include "kernel/block/qcow2.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct recount {
    struct qcow2 *q;
    struct image_check *c;
    uint32_t *count;
    uint64_t n;                 /* clusters of the file */
    uint64_t *table;            /* buffer for one L2 table */
    uint64_t last;              /* place of the table's last data cluster, for fragmentation */
    bool blind;                 /* something could not be read: counts are too low */
    unsigned fix;
};

__printf_like(2, 3) static void corrupt(struct recount *r, const char *fmt, ...)
{
    char msg[160];
    va_list ap;
    r->c->corruptions++;
    if (!r->c->say)
        return;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    r->c->say(r->c->arg, msg);
}

static bool count(struct recount *r, uint64_t off, uint64_t bytes, const char *what)
{
    uint64_t first = off >> r->q->bits, last = (off + bytes - 1) >> r->q->bits;
    if (!bytes)
        return true;
    if (last >= r->n || last < first) {
        corrupt(r, "%s at %llx is beyond the end of the file", what, (unsigned long long)off);
        return false;
    }
    for (uint64_t c = first; c <= last; c++)
        r->count[c]++;
    return true;
}

static bool count_aligned(struct recount *r, uint64_t off, uint64_t bytes, const char *what)
{
    if (!(off & (cluster_size(r->q) - 1)))
        return count(r, off, bytes, what);
    corrupt(r, "%s at %llx is not aligned", what, (unsigned long long)off);
    return false;
}

static void count_entry(struct recount *r, uint64_t e, bool active)
{
    struct qcow2 *q = r->q;
    uint64_t off = e & QCOW_OFFSET, len;
    if (e & QCOW_COMPRESSED) {
        compressed_place(q, e, &off, &len);
        count(r, off, off < q->img.file->size ? MIN(len, ALIGN_UP(q->img.file->size, cluster_size(q)) - off) : len, "compressed data");
        r->c->compressed += active, r->c->allocated += active, r->c->fragmented += active;
    } else if (off) {
        count_aligned(r, off, cluster_size(q), "data");
        if (active) {
            r->c->fragmented += r->last && off != r->last + cluster_size(q);
            r->c->allocated++;
            r->last = off;
        }
    }
}

static int count_l1(struct recount *r, const uint64_t *l1, uint64_t n, bool active)
{
    struct qcow2 *q = r->q;
    int err = 0;
    for (uint64_t i = 0; !err && i < n; i++) {
        uint64_t off = l1[i] & QCOW_OFFSET;
        if (!off)
            continue;
        if (!count_aligned(r, off, cluster_size(q), "level-2 table"))
            continue;
        err = file_read(q->img.file, off, r->table, cluster_size(q));
        r->last = 0;
        for (uint64_t k = 0; !err && k < cluster_size(q) / 8; k++)
            count_entry(r, be64(&r->table[k]), active);
    }
    return err;
}

static int count_snapshots(struct recount *r)
{
    struct qcow2 *q = r->q;
    uint64_t off = q->snapshots_off;
    int err = 0;
    for (uint32_t i = 0; !err && i < q->nsnapshots; i++) {
        struct snapshot s;
        uint64_t *l1 = NULL;
        err = snapshot_read(q, &off, &s);
        if (err == -EILSEQ) {
            corrupt(r, "snapshot %u makes no sense", i);
            r->blind = true;
            return 0;
        }
        if (err || !count_aligned(r, s.l1_off, s.l1_size * 8ull, "snapshot's level-1 table"))
            continue;
        err = read_words(q, s.l1_off, s.l1_size, &l1);
        if (!err)
            err = count_l1(r, l1, s.l1_size, false);
        kfree(l1);
    }
    if (!err && q->nsnapshots)
        count(r, q->snapshots_off, off - q->snapshots_off, "snapshot table");
    return err;
}

static void count_tables(struct recount *r)
{
    struct qcow2 *q = r->q;
    count(r, 0, 1, "header");
    count(r, q->rt_off, (uint64_t)q->rt_clusters << q->bits, "reference count table");
    for (uint64_t i = 0; i < q->rt_entries; i++)
        if (q->rt[i] && !count_aligned(r, q->rt[i], cluster_size(q), "reference count block"))
            q->rt[i] = r->fix & CHECK_FIX_ALL ? 0 : q->rt[i], q->rt_dirty |= r->fix & CHECK_FIX_ALL;
    if (q->l1_size)
        count(r, q->l1_off, q->l1_size * 8ull, "level-1 table");
}

/* Persistent bitmaps are kept by others; we know only that they are there. */
static bool has_bitmaps(struct qcow2 *q) { return q->autoclear & 1; }

static int compare(struct recount *r)
{
    struct qcow2 *q = r->q;
    int err = 0;
    bool hide = has_bitmaps(q) || r->blind;
    for (uint64_t c = 0; !err && c < r->n; c++) {
        uint64_t real;
        int bad = refcount_get(q, c, &real);
        uint64_t want = r->count[c];
        if (bad == -EILSEQ)
            real = 0;
        else if (bad)
            return bad;
        if (want || real)
            r->c->end = (c + 1) << q->bits;
        if (real == want || (real > want && hide))
            continue;
        bool leak = real > want;
        if (leak)
            r->c->leaks++;
        else
            corrupt(r, "cluster %llu: counted %llu times, used %llu times", (unsigned long long)c, (unsigned long long)real, (unsigned long long)want);
        if (!(r->fix & (leak ? CHECK_FIX_LEAKS | CHECK_FIX_ALL : CHECK_FIX_ALL)) || r->blind)
            continue;
        err = refcount_set(q, c, want);
        if (!err)
            *(leak ? &r->c->leaks_fixed : &r->c->errors_fixed) += 1;
    }
    return err;
}

/* Whether the entry's COPIED flag is wrong: it says that its cluster has exactly one reference. */
static bool wrong_copied(struct recount *r, uint64_t e)
{
    uint64_t cluster = (e & QCOW_OFFSET) >> r->q->bits, count;
    if (!cluster || cluster >= r->n || refcount_get(r->q, cluster, &count))
        return false;
    return (count == 1) != !!(e & QCOW_COPIED);
}

/* A table that a snapshot shares is not ours to change. */
static int check_copied_in(struct recount *r, uint64_t table)
{
    struct qcow2 *q = r->q;
    bool fix = r->fix & CHECK_FIX_ALL && r->count[table >> q->bits] == 1;
    int err = 0;
    for (uint64_t at = table; !err && at < table + cluster_size(q); at += 8) {
        uint64_t e;
        err = l2_get(q, at, &e);
        if (err || e & QCOW_COMPRESSED || !wrong_copied(r, e))
            continue;
        corrupt(r, "level-2 entry at %llx: wrong COPIED flag", (unsigned long long)at);
        if (fix && !(err = l2_set(q, at, e ^ QCOW_COPIED)))
            r->c->errors_fixed++;
    }
    return err;
}

static int check_copied(struct recount *r)
{
    struct qcow2 *q = r->q;
    int err = 0;
    for (uint64_t i = 0; !err && i < q->l1_size; i++) {
        uint64_t table = q->l1[i] & QCOW_OFFSET;
        if (!table || table >> q->bits >= r->n)
            continue;
        if (wrong_copied(r, q->l1[i])) {
            corrupt(r, "level-1 entry %llu: wrong COPIED flag", (unsigned long long)i);
            if (r->fix & CHECK_FIX_ALL)
                q->l1[i] ^= QCOW_COPIED, q->l1_dirty = true, r->c->errors_fixed++;
        }
        err = check_copied_in(r, table);
    }
    return err == -EILSEQ ? 0 : err;
}

int qcow2_check(struct image *img, unsigned fix, struct image_check *c)
{
    struct qcow2 *q = qcow2_of(img);
    struct recount r = { .q = q, .c = c, .fix = fix, .n = (img->file->size + cluster_size(q) - 1) >> q->bits };
    if (r.n > BIT(36))
        return -EFBIG;
    r.count = kzalloc(r.n * sizeof *r.count);
    r.table = kmalloc(cluster_size(q));
    int err = r.count && r.table ? 0 : -ENOMEM;
    c->total = (img->blk.size + cluster_size(q) - 1) >> q->bits;
    if (!err) {
        count_tables(&r);
        err = count_l1(&r, q->l1, q->l1_size, true);
    }
    if (!err)
        err = count_snapshots(&r);
    if (!err)
        err = compare(&r);
    if (!err)
        err = check_copied(&r);
    uint64_t marks = q->incompat & (INCOMPAT_CORRUPT | INCOMPAT_DIRTY);
    if (!err && fix && marks && !r.blind && c->corruptions == c->errors_fixed)
        q->incompat &= ~marks, q->header_dirty = true;
    if (!err && (c->leaks_fixed || c->errors_fixed || q->header_dirty))
        err = qcow2_flush(img);
    kfree(r.count);
    kfree(r.table);
    return err;
}
