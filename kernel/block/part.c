#include "kernel/block/part.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "kernel/block/linear.h"
#include "kernel/lib/crc.h"
#include "kernel/lib/port.h"

struct gpt_header {
    char magic[8];
    uint32_t revision, size, crc, zero;
    uint64_t lba, other_lba, first, last;
    uint8_t guid[16];
    uint64_t entries_lba;
    uint32_t entries, entry_size, entries_crc;
} __packed;
_Static_assert(sizeof(struct gpt_header) == 92, "GPT header");

struct gpt_entry { uint8_t type[16], guid[16]; uint64_t first, last, flags; uint16_t name[36]; };
_Static_assert(sizeof(struct gpt_entry) == 128, "GPT entry");

struct mbr_entry { uint8_t status, chs1[3], type, chs2[3]; uint32_t first, sectors; } __packed;
_Static_assert(sizeof(struct mbr_entry) == 16, "MBR entry");
struct mbr { uint8_t code[446]; struct mbr_entry e[4]; uint16_t magic; } __packed;
_Static_assert(sizeof(struct mbr) == 512, "MBR");

#define MBR_MAGIC 0xaa55
#define ENTRIES_BYTES_MAX (1u << 20)

const uint8_t part_guid_linux[16] = { 0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4 };
const uint8_t part_guid_esp[16] = { 0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b };
const uint8_t part_guid_lvm[16] = { 0x79, 0xd3, 0xd6, 0xe6, 0x07, 0xf5, 0xc2, 0x44, 0xa2, 0x3c, 0x23, 0x8f, 0x2a, 0x3d, 0xf9, 0x28 };
const uint8_t part_guid_joist[16] = { 0x4a, 0x6f, 0x69, 0x73, 0x74, 0x50, 0x6f, 0x4f, 0x8c, 0x11, 0x2e, 0x9d, 0x51, 0x07, 0x3b, 0x6a };

static bool is_extended(uint8_t type) { return type == 5 || type == 0xf || type == 0x85; }
static uint64_t lbas(const struct blk *d) { return d->size / d->limits.block; }
static uint64_t bytes(const struct blk *d, uint64_t lba) { return lba * d->limits.block; }

static struct part *add(struct part_table *t)
{
    return t->n < PART_MAX ? &t->part[t->n++] : NULL;
}

/* ---- GPT ---- */

static int read_header(struct blk *d, uint64_t lba, struct gpt_header *h)
{
    uint8_t *block = kmalloc_aligned(d->limits.block, 512);
    int err = block ? blk_read(d, bytes(d, lba), block, d->limits.block) : -ENOMEM;
    if (!err) {
        memcpy(h, block, sizeof *h);
        uint32_t crc = h->crc;
        memset(block + offsetof(struct gpt_header, crc), 0, 4);
        if (memcmp(h->magic, "EFI PART", 8) || h->size < sizeof *h || h->size > d->limits.block || crc32_ieee(0, block, h->size) != crc ||
            h->lba != lba || h->entry_size < sizeof(struct gpt_entry) || h->entry_size % 8 || !h->entries ||
            h->entries > ENTRIES_BYTES_MAX / h->entry_size || h->entries_lba >= lbas(d) || h->first > h->last || h->last >= lbas(d))
            err = -EILSEQ;
    }
    kfree(block);
    return err;
}

static void take_entry(struct blk *d, const struct gpt_header *h, const struct gpt_entry *e, int number, struct part_table *t)
{
    static const uint8_t none[16];
    if (!memcmp(e->type, none, 16) || e->first > e->last || e->first < h->first || e->last > h->last)
        return;
    struct part *p = add(t);
    if (!p)
        return;
    *p = (struct part){ .number = number, .off = bytes(d, e->first), .len = bytes(d, e->last - e->first + 1) };
    memcpy(p->type_guid, e->type, 16);
    memcpy(p->guid, e->guid, 16);
    for (int i = 0; i < 36 && e->name[i]; i++)
        p->name[i] = e->name[i] < 0x80 ? e->name[i] : '?';
}

static int read_gpt(struct blk *d, uint64_t lba, struct part_table *t)
{
    struct gpt_header h;
    int err = read_header(d, lba, &h);
    if (err)
        return err;
    size_t len = (size_t)h.entries * h.entry_size;
    uint8_t *list = kmalloc(len);
    if (!list)
        return -ENOMEM;
    err = len > d->size - bytes(d, h.entries_lba) ? -EILSEQ : blk_pread(d, bytes(d, h.entries_lba), list, len);
    if (!err && crc32_ieee(0, list, len) != h.entries_crc)
        err = -EILSEQ;
    t->scheme = PART_GPT, t->n = 0;
    memcpy(t->guid, h.guid, 16);
    for (uint32_t i = 0; !err && i < h.entries; i++) {
        struct gpt_entry e;
        memcpy(&e, list + (size_t)i * h.entry_size, sizeof e);
        take_entry(d, &h, &e, i + 1, t);
    }
    kfree(list);
    return err;
}

/* ---- MBR ---- */

static int read_mbr(struct blk *d, uint64_t lba, struct mbr *m)
{
    int err = blk_pread(d, bytes(d, lba), m, sizeof *m);
    return err ? err : m->magic == MBR_MAGIC ? 0 : -ENOENT;
}

/* A boot sector of a file system has the magic too, but no sensible entries. */
static bool looks_partitioned(struct blk *d, const struct mbr *m)
{
    bool any = false;
    for (int i = 0; i < 4; i++) {
        const struct mbr_entry *e = &m->e[i];
        if (e->status & 0x7f || (e->type && (!e->sectors || !e->first || (uint64_t)e->first + e->sectors > lbas(d) + 63)))
            return false;
        any |= e->type != 0;
    }
    return any;
}

static void take_mbr(struct blk *d, const struct mbr_entry *e, uint64_t base, int number, struct part_table *t)
{
    uint64_t first = base + e->first, n = e->sectors;
    if (first >= lbas(d))
        return;
    struct part *p = add(t);
    if (p)
        *p = (struct part){ .number = number, .type = e->type, .active = e->status & 0x80, .off = bytes(d, first), .len = bytes(d, MIN(n, lbas(d) - first)) };
}

/* A chain of tables, each with one partition and the place of the next table relative to the extended partition. */
static void read_logical(struct blk *d, const struct mbr_entry *ext, struct part_table *t)
{
    uint64_t at = ext->first, end = (uint64_t)ext->first + ext->sectors;
    for (int number = 5; number < 5 + PART_MAX; number++) {
        struct mbr m;
        if (at >= lbas(d) || read_mbr(d, at, &m))
            return;
        if (m.e[0].type && m.e[0].sectors && at + m.e[0].first < end)
            take_mbr(d, &m.e[0], at, number, t);
        if (!is_extended(m.e[1].type) || !m.e[1].first || (uint64_t)ext->first + m.e[1].first <= at)
            return;             /* going forward only: no loops */
        at = (uint64_t)ext->first + m.e[1].first;
    }
}

int part_read(struct blk *d, struct part_table *t)
{
    struct mbr m;
    memset(t, 0, sizeof *t);
    if (lbas(d) < 34)
        return -ENOENT;
    int err = read_mbr(d, 0, &m);
    bool protective = false;
    for (int i = 0; !err && i < 4; i++)
        protective |= m.e[i].type == 0xee;
    if (err && err != -ENOENT)
        return err;
    if (protective || err) {
        int gpt = read_gpt(d, 1, t);
        if (gpt == -EILSEQ || gpt == -EIO) {
            gpt = read_gpt(d, lbas(d) - 1, t);
            t->from_backup = !gpt;
        }
        return gpt && err ? -ENOENT : gpt;
    }
    if (!looks_partitioned(d, &m))
        return -ENOENT;
    t->scheme = PART_MBR;
    memcpy(t->guid, m.code + 440, 4);
    for (int i = 0; i < 4; i++)
        if (m.e[i].type && !is_extended(m.e[i].type))
            take_mbr(d, &m.e[i], 0, i + 1, t);
    for (int i = 0; i < 4; i++)
        if (is_extended(m.e[i].type))
            read_logical(d, &m.e[i], t);
    return 0;
}

/* ---- Writing ---- */

static void new_guid(uint8_t *g)        /* RFC 4122, version 4 */
{
    random_bytes(g, 16);
    g[7] = (g[7] & 0x0f) | 0x40, g[8] = (g[8] & 0x3f) | 0x80;
}

static int check_parts(struct blk *d, const struct part_table *t, uint64_t first, uint64_t end)
{
    for (unsigned i = 0; i < t->n; i++) {
        const struct part *p = &t->part[i];
        if (p->off % d->limits.block || p->len % d->limits.block || !p->len || p->off < first || p->off > end || p->len > end - p->off ||
            p->number < 1 || p->number > PART_MAX)
            return -EINVAL;
        for (unsigned k = 0; k < i; k++)
            if (t->part[k].number == p->number || (p->off < t->part[k].off + t->part[k].len && t->part[k].off < p->off + p->len))
                return -EINVAL;
    }
    return 0;
}

static int write_gpt_at(struct blk *d, struct gpt_header *h, const struct gpt_entry *list, uint64_t lba, uint64_t other, uint64_t entries)
{
    uint8_t *block = kzalloc(d->limits.block);
    if (!block)
        return -ENOMEM;
    h->lba = lba, h->other_lba = other, h->entries_lba = entries, h->crc = 0;
    h->crc = crc32_ieee(0, h, sizeof *h);
    memcpy(block, h, sizeof *h);
    int err = blk_pwrite(d, bytes(d, entries), list, PART_MAX * sizeof *list);
    if (!err)
        err = blk_write(d, bytes(d, lba), block, d->limits.block, 0);
    kfree(block);
    return err ? err : blk_flush(d);
}

static int write_protective(struct blk *d)
{
    struct mbr m;
    uint64_t n = lbas(d) - 1;
    int err = blk_pread(d, 0, &m, sizeof m);
    memset(m.e, 0, sizeof m.e);
    m.e[0] = (struct mbr_entry){ .chs1 = { 0, 2, 0 }, .type = 0xee, .chs2 = { 0xff, 0xff, 0xff }, .first = 1, .sectors = MIN(n, 0xffffffffull) };
    m.magic = MBR_MAGIC;
    return err ? err : blk_pwrite(d, 0, &m, sizeof m);
}

/* The backup first: with the power gone in between, one of the two is whole. */
static int write_gpt(struct blk *d, const struct part_table *t)
{
    uint64_t space = (PART_MAX * sizeof(struct gpt_entry) + d->limits.block - 1) / d->limits.block, last = lbas(d) - 1;
    struct gpt_header h = { .magic = { 'E', 'F', 'I', ' ', 'P', 'A', 'R', 'T' }, .revision = 0x10000, .size = sizeof h, .first = 2 + space,
                            .last = last - 1 - space, .entries = PART_MAX, .entry_size = sizeof(struct gpt_entry) };
    static const uint8_t none[16];
    int err = lbas(d) < 4 + 2 * space ? -ENOSPC : check_parts(d, t, bytes(d, h.first), bytes(d, h.last + 1));
    struct gpt_entry *list = err ? NULL : kzalloc(PART_MAX * sizeof *list);
    if (!list)
        return err ? err : -ENOMEM;
    memcpy(h.guid, t->guid, 16);
    if (!memcmp(h.guid, none, 16))
        new_guid(h.guid);
    for (unsigned i = 0; i < t->n; i++) {
        const struct part *p = &t->part[i];
        struct gpt_entry *e = &list[p->number - 1];
        memcpy(e->type, memcmp(p->type_guid, none, 16) ? p->type_guid : part_guid_linux, 16);
        memcpy(e->guid, p->guid, 16);
        if (!memcmp(e->guid, none, 16))
            new_guid(e->guid);
        e->first = p->off / d->limits.block, e->last = e->first + p->len / d->limits.block - 1;
        for (int k = 0; k < 36 && p->name[k]; k++)
            e->name[k] = (uint8_t)p->name[k];
    }
    h.entries_crc = crc32_ieee(0, list, PART_MAX * sizeof *list);
    err = write_gpt_at(d, &h, list, last, 1, last - space);
    if (!err)
        err = write_gpt_at(d, &h, list, 1, last, 2);
    kfree(list);
    if (!err)
        err = write_protective(d);
    return err ? err : blk_flush(d);
}

static struct mbr_entry entry_for(struct blk *d, uint8_t type, bool active, uint64_t base, uint64_t off, uint64_t len)
{
    return (struct mbr_entry){ .status = active ? 0x80 : 0, .chs1 = { 0xfe, 0xff, 0xff }, .type = type, .chs2 = { 0xfe, 0xff, 0xff },
                               .first = (off - base) / d->limits.block, .sectors = len / d->limits.block };
}

#define EBR_GAP (1u << 20)

/* Logical partitions in order of their place: the table of each lies EBR_GAP before it. */
static int write_logical(struct blk *d, const struct part_table *t, struct mbr *m)
{
    const struct part *order[PART_MAX];
    unsigned n = 0;
    int err = 0, slot = 0;
    for (unsigned i = 0; i < t->n; i++) {
        unsigned k = n;
        if (t->part[i].number < 5)
            continue;
        for (; k && order[k - 1]->off > t->part[i].off; k--)
            order[k] = order[k - 1];
        order[k] = &t->part[i];
        n++;
    }
    while (slot < 4 && m->e[slot].type)
        slot++;
    if (!n)
        return 0;
    if (slot == 4)
        return -EINVAL;
    uint64_t base = order[0]->off - EBR_GAP;
    for (unsigned i = 0; !err && i < n; i++) {
        struct mbr link = { .magic = MBR_MAGIC };
        uint64_t at = order[i]->off - EBR_GAP;
        for (unsigned k = 0; k < t->n; k++)
            if (t->part[k].off <= at && at < t->part[k].off + t->part[k].len)
                return -EINVAL;
        link.e[0] = entry_for(d, order[i]->type ? order[i]->type : 0x83, false, at, order[i]->off, order[i]->len);
        if (i + 1 < n)
            link.e[1] = entry_for(d, 5, false, base, order[i + 1]->off - EBR_GAP, order[i + 1]->len + EBR_GAP);
        err = blk_pwrite(d, at, &link, sizeof link);
    }
    m->e[slot] = entry_for(d, 0xf, false, 0, base, order[n - 1]->off + order[n - 1]->len - base);
    return err;
}

static int write_mbr(struct blk *d, const struct part_table *t)
{
    struct mbr m;
    int err = check_parts(d, t, EBR_GAP, MIN(d->size, bytes(d, 0xffffffffull)));
    if (!err)
        err = blk_pread(d, 0, &m, sizeof m);
    memset(m.e, 0, sizeof m.e);
    for (unsigned i = 0; !err && i < t->n; i++)
        if (t->part[i].number < 5)
            m.e[t->part[i].number - 1] = entry_for(d, t->part[i].type ? t->part[i].type : 0x83, t->part[i].active, 0, t->part[i].off, t->part[i].len);
    m.magic = MBR_MAGIC;
    if (!err)
        err = write_logical(d, t, &m);
    if (!err && bytes(d, lbas(d) - 1) > 0) {    /* no GPT of before may be found again */
        err = blk_write_zeroes(d, bytes(d, 1), d->limits.block, 0);
        if (!err)
            err = blk_write_zeroes(d, bytes(d, lbas(d) - 1), d->limits.block, 0);
    }
    if (!err)
        err = blk_pwrite(d, 0, &m, sizeof m);
    return err ? err : blk_flush(d);
}

int part_write(struct blk *d, const struct part_table *t)
{
    return t->scheme == PART_GPT ? write_gpt(d, t) : write_mbr(d, t);
}

int part_repair(struct blk *d)
{
    struct part_table *t = kmalloc(sizeof *t);
    int err = t ? part_read(d, t) : -ENOMEM;
    if (!err)
        err = t->scheme == PART_GPT ? write_gpt(d, t) : -ENOTSUP;
    kfree(t);
    return err;
}

int part_open(struct blk *d, const struct part *p, bool read_only, struct blk **out)
{
    char name[80];
    struct linear_seg s = { d, p->off, p->len };
    snprintf(name, sizeof name, "%.60sp%d", d->name, p->number);
    return linear_open("partition", name, &s, 1, read_only, out);
}
