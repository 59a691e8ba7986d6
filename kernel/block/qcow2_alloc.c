/* qcow2: cached table pieces, reference counts, allocation, and the order of writing. */
#include "kernel/block/qcow2.h"

#include <errno.h>
#include <string.h>

#define CLEAN_MAX 1024u
#define DIRTY_MAX 1024u         /* of both so many wait for a flush, which a guest need not ask for */
#define FREED_MAX 1024u

bool sane_offset(const struct qcow2 *q, uint64_t off)
{
    return off && !(off & (cluster_size(q) - 1)) && off < q->img.file->size;
}

/* ---- Table pieces ---- */

static struct list *bucket(struct qcow2 *q, uint64_t off) { return &q->hash[off / q->piece % ARRAY_SIZE(q->hash)]; }

static void meta_drop(struct qcow2 *q, struct meta *p)
{
    q->nclean -= !p->dirty, q->ndirty -= p->dirty;
    list_del(&p->hash);
    list_del(&p->link);
    kfree(p);
}

int meta_get(struct qcow2 *q, uint64_t off, int kind, struct meta **out)
{
    struct meta *p;
    off = ALIGN_DOWN(off, (uint64_t)q->piece);
    list_for_each(p, bucket(q, off), hash)
        if (p->off == off) {
            *out = p;
            if (!p->dirty) {
                list_del(&p->link);
                list_append(&q->clean, &p->link);
            }
            return p->kind == kind ? 0 : -EILSEQ;
        }
    if (q->nclean >= CLEAN_MAX)
        meta_drop(q, list_first(&q->clean, struct meta, link));
    p = kmalloc(sizeof *p + q->piece);
    if (!p)
        return -ENOMEM;
    int err = file_read(q->img.file, off, p->buf, q->piece);
    if (err) {
        kfree(p);
        return err;
    }
    p->off = off, p->kind = kind, p->dirty = false;
    list_push(bucket(q, off), &p->hash);
    list_append(&q->clean, &p->link);
    q->nclean++;
    *out = p;
    return 0;
}

void meta_soil(struct qcow2 *q, struct meta *p)
{
    atomic_store(&q->img.dirty, true);
    if (p->dirty)
        return;
    p->dirty = true;
    q->nclean--, q->ndirty++;
    list_del(&p->link);
    list_append(&q->dirty[p->kind], &p->link);
}

void meta_forget(struct qcow2 *q, uint64_t off, uint64_t len)
{
    for (uint64_t o = off; o < off + len; o += q->piece) {
        struct meta *p, *tmp;
        list_for_each_safe(p, tmp, bucket(q, o), hash)
            if (p->off == o)
                meta_drop(q, p);
    }
}

void metas_fini(struct qcow2 *q)
{
    for (size_t i = 0; i < ARRAY_SIZE(q->hash); i++)
        while (q->hash[i].next && !list_empty(&q->hash[i]))
            meta_drop(q, list_first(&q->hash[i], struct meta, hash));
}

static int metas_write(struct qcow2 *q, int kind)
{
    while (!list_empty(&q->dirty[kind])) {
        struct meta *p = list_first(&q->dirty[kind], struct meta, link);
        int err = file_write(q->img.file, p->off, p->buf, q->piece);
        if (err)
            return err;
        list_del(&p->link);
        list_append(&q->clean, &p->link);
        p->dirty = false;
        q->nclean++, q->ndirty--;
    }
    return 0;
}

/* ---- Big-endian words ---- */

static int write_words(struct qcow2 *q, uint64_t off, const uint64_t *words, uint64_t n)
{
    uint64_t buf[512];
    int err = 0;
    for (uint64_t i = 0; !err && i < n; i += 512) {
        uint64_t k = MIN(n - i, 512ull);
        for (uint64_t j = 0; j < k; j++)
            buf[j] = __builtin_bswap64(words[i + j]);
        err = file_write(q->img.file, off + i * 8, buf, k * 8);
    }
    return err;
}

/* ---- Reference counts ---- */

static uint64_t count_max(const struct qcow2 *q) { return q->refcount_order == 6 ? INT64_MAX : BIT(1u << q->refcount_order) - 1; }

static uint64_t read_count(const struct qcow2 *q, const uint8_t *block, uint64_t i)
{
    switch (q->refcount_order) {
    case 3:  return block[i];
    case 4:  return be16(block + 2 * i);
    case 5:  return be32(block + 4 * i);
    case 6:  return be64(block + 8 * i);
    default: {
        unsigned width = 1u << q->refcount_order, per = 8 / width;
        return block[i / per] >> i % per * width & (BIT(width) - 1);
    }
    }
}

static void write_count(const struct qcow2 *q, uint8_t *block, uint64_t i, uint64_t v)
{
    switch (q->refcount_order) {
    case 3:  block[i] = v; break;
    case 4:  put_be16(block + 2 * i, v); break;
    case 5:  put_be32(block + 4 * i, v); break;
    case 6:  put_be64(block + 8 * i, v); break;
    default: {
        unsigned width = 1u << q->refcount_order, per = 8 / width, shift = i % per * width;
        block[i / per] = (block[i / per] & ~((BIT(width) - 1) << shift)) | v << shift;
    }
    }
}

/* The piece and the index in it of the cluster's count. */
static int count_place(struct qcow2 *q, uint64_t cluster, struct meta **p, uint64_t *i)
{
    uint64_t block = q->rt[cluster / counts_per_block(q)] & ~511ull;
    uint64_t bits_at = cluster % counts_per_block(q) << q->refcount_order;
    if (!sane_offset(q, block))
        return -EILSEQ;
    int err = meta_get(q, block + bits_at / 8, META_REF, p);
    *i = bits_at % (q->piece * 8ull) >> q->refcount_order;
    return err;
}

int refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *count)
{
    struct meta *p;
    uint64_t i;
    *count = 0;
    if (cluster / counts_per_block(q) >= q->rt_entries || !q->rt[cluster / counts_per_block(q)])
        return 0;
    int err = count_place(q, cluster, &p, &i);
    if (!err)
        *count = read_count(q, p->buf, i);
    return err;
}

/*
 * A larger table in memory; its new place is in use from now on, the old one until the header has changed.  The place is written to
 * first, so that a full disk changes nothing; a table whose own clusters could not be counted must not be used.
 */
static int grow_table(struct qcow2 *q, uint64_t need)
{
    uint64_t entries = ALIGN_UP(MAX(need, q->rt_entries * 3 / 2), cluster_size(q) / 8), clusters = entries * 8 >> q->bits, at = q->end;
    if (clusters > 0x7fffffff / cluster_size(q))
        return -EFBIG;
    uint64_t *rt = kzalloc(entries * 8);
    if (!rt)
        return -ENOMEM;
    memcpy(rt, q->rt, q->rt_entries * 8);
    int err = write_words(q, at << q->bits, rt, entries);
    if (err) {
        kfree(rt);
        return err;
    }
    kfree(q->rt);
    if (!q->rt_moved)
        q->rt_old = q->rt_off, q->rt_old_clusters = q->rt_clusters;
    else
        clusters_free(q, q->rt_off, (uint64_t)q->rt_clusters << q->bits);
    q->rt = rt, q->rt_entries = entries, q->rt_off = at << q->bits, q->rt_clusters = clusters;
    q->rt_dirty = q->rt_moved = true;
    q->end = at + clusters;
    for (uint64_t c = at; !err && c < at + clusters; c++)
        err = refcount_set(q, c, 1);
    if (err)
        q->img.failed = err;
    return err;
}

/* The block of counts for these clusters does not exist: take the first cluster that is certainly free. */
static int new_block(struct qcow2 *q, uint64_t index)
{
    uint64_t at = q->end++;
    static const uint8_t zero[4096];
    int err = file_extend(q->img.file, q->end << q->bits);
    for (uint64_t o = 0; !err && o < cluster_size(q); o += q->piece) {
        meta_forget(q, (at << q->bits) + o, q->piece);
        err = file_write(q->img.file, (at << q->bits) + o, zero, q->piece);
    }
    if (err)
        return err;
    q->rt[index] = at << q->bits;
    q->rt_dirty = true;
    return refcount_set(q, at, 1);
}

int refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
    uint64_t index = cluster / counts_per_block(q), i;
    struct meta *p;
    int err = 0;
    atomic_store(&q->img.dirty, true);
    q->end = MAX(q->end, cluster + 1);
    if (count > count_max(q))
        return -EFBIG;
    if (index >= q->rt_entries)
        err = grow_table(q, index + 1);
    if (!err && !q->rt[index])
        err = new_block(q, index);
    if (!err)
        err = count_place(q, cluster, &p, &i);
    if (err)
        return err;
    write_count(q, p->buf, i, count);
    meta_soil(q, p);
    if (!count)
        q->cursor = MIN(q->cursor, cluster);
    return 0;
}

/* ---- Allocation ---- */

static int find_free(struct qcow2 *q, uint64_t n, uint64_t *at)
{
    uint64_t run = 0, c = q->cursor;
    bool first = true;
    for (; run < n && c < q->end; c++) {
        uint64_t count;
        int err = refcount_get(q, c, &count);
        if (err)
            return err;
        if (count) {
            run = 0;
            continue;
        }
        if (first)
            q->cursor = c, first = false;
        run++;
    }
    *at = c - run;
    if (first)
        q->cursor = c;
    return 0;
}

/* What was counted before an error gets its count back at once: nothing uses it. */
static int count_new(struct qcow2 *q, uint64_t at, uint64_t n)
{
    int err = 0;
    uint64_t c = at;
    while (c < at + n && !(err = refcount_set(q, c, 1)))
        c++;
    while (err && c-- > at)
        if (refcount_set(q, c, 0))
            break;              /* it leaks */
    return err;
}

int clusters_alloc(struct qcow2 *q, uint64_t n, uint64_t *off)
{
    uint64_t at = 0;
    int err = find_free(q, n, &at);
    if (!err) {
        q->end = MAX(q->end, at + n);
        err = file_extend(q->img.file, ALIGN_UP(q->end << q->bits, MIN(1ull << 20, 16 * cluster_size(q))));
        if (err)
            err = file_extend(q->img.file, q->end << q->bits);
    }
    if (!err)
        err = count_new(q, at, n);
    if (!err && q->cursor == at)
        q->cursor = at + n;
    *off = err ? 0 : at << q->bits;
    return err;
}

/* Without memory for the note the cluster leaks, which hurts nobody. */
void clusters_free(struct qcow2 *q, uint64_t off, uint64_t bytes)
{
    uint64_t first = off >> q->bits, last = (off + bytes - 1) >> q->bits;
    if (q->nfreed == q->freed_cap) {
        unsigned cap = q->freed_cap ? 2 * q->freed_cap : 64;
        struct freed *f = kmalloc(cap * sizeof *f);
        if (!f)
            return;
        if (q->nfreed)
            memcpy(f, q->freed, q->nfreed * sizeof *f);
        kfree(q->freed);
        q->freed = f, q->freed_cap = cap;
    }
    q->freed[q->nfreed++] = (struct freed){ first, last - first + 1 };
    atomic_store(&q->img.dirty, true);
}

static int apply_freed(struct qcow2 *q, unsigned n)
{
    int err = 0;
    for (unsigned k = 0; !err && k < n; k++)
        for (uint64_t c = q->freed[k].cluster; !err && c < q->freed[k].cluster + q->freed[k].n; c++) {
            uint64_t count;
            err = refcount_get(q, c, &count);
            if (!err && !count)
                err = -EILSEQ;
            if (!err)
                err = refcount_set(q, c, count - 1);
            if (!err && count == 1 && c == q->packed >> q->bits)
                q->packed = 0;
        }
    if (n)
        memmove(q->freed, q->freed + n, (q->nfreed - n) * sizeof *q->freed);
    q->nfreed -= n;
    return err;
}

/* ---- Writing in order ---- */

int qcow2_write_header(struct qcow2 *q)
{
    uint8_t h[QH_V3_LEN];
    int len = q->version >= 3 ? QH_LEN : QH_V2_LEN;
    int err = file_read(q->img.file, 0, h, sizeof h);
    put_be64(h + QH_SIZE, q->img.blk.size);
    put_be32(h + QH_L1_SIZE, q->l1_size);
    put_be64(h + QH_L1_OFF, q->l1_off);
    put_be64(h + QH_RT_OFF, q->rt_off);
    put_be32(h + QH_RT_CLUSTERS, q->rt_clusters);
    if (q->version >= 3) {
        put_be64(h + QH_INCOMPAT, q->incompat);
        put_be64(h + QH_AUTOCLEAR, q->autoclear);
    }
    return err ? err : file_write(q->img.file, 0, h, len);
}

static int flush_counts(struct qcow2 *q)
{
    int err = metas_write(q, META_REF);
    if (!err && q->rt_dirty) {
        err = blk_flush(q->img.file);
        if (!err)
            err = write_words(q, q->rt_off, q->rt, q->rt_entries);
        q->rt_dirty = err != 0;
    }
    if (!err)
        err = blk_flush(q->img.file);
    if (!err && q->rt_moved) {
        err = qcow2_write_header(q);
        if (!err)
            err = blk_flush(q->img.file);
        if (!err) {
            q->rt_moved = false;
            clusters_free(q, q->rt_old, q->rt_old_clusters << q->bits);
        }
    }
    return err;
}

static int flush_tables(struct qcow2 *q)
{
    int err = metas_write(q, META_L2);
    if (!err && (q->l1_dirty || q->header_dirty))
        err = blk_flush(q->img.file);
    if (!err && q->l1_dirty) {
        err = write_words(q, q->l1_off, q->l1, q->l1_size);
        q->l1_dirty = err != 0;
    }
    if (!err && q->header_dirty) {
        err = blk_flush(q->img.file);
        if (!err)
            err = qcow2_write_header(q);
        q->header_dirty = err != 0;
    }
    return err ? err : blk_flush(q->img.file);
}

int qcow2_flush(struct image *img)
{
    struct qcow2 *q = qcow2_of(img);
    int err = 0;
    for (int round = 0; !err && (!round || q->nfreed || q->ndirty) && round < 8; round++) {
        unsigned n = q->nfreed;
        err = flush_counts(q);
        if (!err)
            err = flush_tables(q);
        if (!err)
            err = apply_freed(q, n);
    }
    if (err)
        img->failed = err;
    return err;
}

/* ---- Level 2 ---- */

static int fresh_table(struct qcow2 *q, uint64_t from, uint64_t *off)
{
    int err = clusters_alloc(q, 1, off);
    uint8_t *buf = err ? NULL : kzalloc(cluster_size(q));
    if (!err && !buf)
        err = -ENOMEM;
    if (!err && from) {                 /* a copy: the cached pieces of the old table are newer than the file */
        for (uint64_t o = 0; !err && o < cluster_size(q); o += q->piece) {
            struct meta *p;
            err = meta_get(q, from + o, META_L2, &p);
            if (!err)
                memcpy(buf + o, p->buf, q->piece);
        }
    }
    if (!err) {
        meta_forget(q, *off, cluster_size(q));
        err = file_write(q->img.file, *off, buf, cluster_size(q));
    }
    kfree(buf);
    return err;
}

int l2_place(struct qcow2 *q, uint64_t off, bool make, uint64_t *at)
{
    uint64_t i1 = off >> (2 * q->bits - 3), i2 = off >> q->bits & (cluster_size(q) / 8 - 1), table, fresh;
    *at = 0;
    if (i1 >= q->l1_size)
        return -EILSEQ;
    table = q->l1[i1] & QCOW_OFFSET;
    if (table && !sane_offset(q, table))
        return -EILSEQ;
    int err = make && (q->ndirty > DIRTY_MAX || q->nfreed > FREED_MAX) ? qcow2_flush(&q->img) : 0;
    if (!err && make && !(table && q->l1[i1] & QCOW_COPIED)) {
        err = fresh_table(q, table, &fresh);
        if (err)
            return err;
        q->l1[i1] = fresh | QCOW_COPIED;
        q->l1_dirty = true;
        if (table)
            clusters_free(q, table, cluster_size(q));
        table = fresh;
    }
    *at = table ? table + i2 * 8 : 0;
    return err;
}

int l2_get(struct qcow2 *q, uint64_t at, uint64_t *entry)
{
    struct meta *p;
    int err = meta_get(q, at, META_L2, &p);
    if (!err)
        *entry = be64(p->buf + at % q->piece);
    return err;
}

int l2_set(struct qcow2 *q, uint64_t at, uint64_t entry)
{
    struct meta *p;
    int err = meta_get(q, at, META_L2, &p);
    if (!err) {
        put_be64(p->buf + at % q->piece, entry);
        meta_soil(q, p);
    }
    return err;
}
