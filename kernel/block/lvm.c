#include "kernel/block/lvm.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/lib/crc.h"
#include "kernel/lib/port.h"

#define LVM_CRC_INIT 0xf597a6cfu
#define TEXT_MAX  (4u << 20)
#define NODES_MAX 200000u
#define DEPTH_MAX 16

static uint32_t lvm_crc(const void *buf, size_t len) { return ~crc32_ieee(~LVM_CRC_INIT, buf, len); }

struct pv_label { char id[8]; uint64_t sector; uint32_t crc, offset; char type[8]; };
_Static_assert(sizeof(struct pv_label) == 32, "label");
struct area { uint64_t off, size; };
struct mda_header { uint32_t crc; char magic[16]; uint32_t version; uint64_t start, size; struct { uint64_t off, size; uint32_t crc, flags; } raw[4]; } __packed;
_Static_assert(sizeof(struct mda_header) == 136, "metadata area");

/* ---- The text: sections, and keys with a number, a string or a list ---- */

struct cfg {
    struct cfg *next, *child;   /* child: of a section; of a list, its values */
    char *name, *str;           /* str: a string value */
    uint64_t num;
};

struct parser { char *p; unsigned nodes, depth; int err; };

static void cfg_free(struct cfg *c)
{
    while (c) {
        struct cfg *next = c->next;
        cfg_free(c->child);
        kfree(c);
        c = next;
    }
}

static void skip_space(struct parser *x)
{
    for (;; x->p++) {
        if (*x->p == '#')
            x->p += strcspn(x->p, "\n");
        if (!*x->p || !strchr(" \t\r\n,", *x->p))
            return;
    }
}

static struct cfg *new_cfg(struct parser *x)
{
    struct cfg *c = x->nodes++ < NODES_MAX ? kzalloc(sizeof *c) : NULL;
    if (!c)
        x->err = -ENOMEM;
    return c;
}

/* A number or a string; strings end where they stand (the text is ours). */
static void parse_scalar(struct parser *x, struct cfg *c)
{
    if (*x->p == '"') {
        c->str = ++x->p;
        while (*x->p && *x->p != '"')
            x->p += *x->p == '\\' && x->p[1] ? 2 : 1;
        if (*x->p)
            *x->p++ = 0;
        else
            x->err = -EILSEQ;
        return;
    }
    char *end;
    c->num = strtoull(x->p, &end, 10);
    if (end == x->p)
        x->err = -EILSEQ;
    x->p = end + strspn(end, ".0123456789");
}

static void parse_list(struct parser *x, struct cfg *c)
{
    struct cfg **tail = &c->child;
    for (skip_space(x); !x->err && *x->p && *x->p != ']'; skip_space(x)) {
        if ((*tail = new_cfg(x))) {
            parse_scalar(x, *tail);
            tail = &(*tail)->next;
        }
    }
    if (*x->p)
        x->p++;
    else
        x->err = -EILSEQ;
}

static struct cfg *parse_section(struct parser *x)
{
    struct cfg *first = NULL, **tail = &first;
    if (++x->depth > DEPTH_MAX)
        x->err = -EILSEQ;
    for (skip_space(x); !x->err && *x->p && *x->p != '}'; skip_space(x)) {
        struct cfg *c = new_cfg(x);
        if (!c)
            break;
        *tail = c, tail = &c->next;
        c->name = x->p;
        x->p += strcspn(x->p, " \t\r\n={}");
        char *end = x->p;
        skip_space(x);
        char what = *x->p;
        if (end == c->name || (what != '=' && what != '{')) {
            x->err = -EILSEQ;
            break;
        }
        x->p++;
        *end = 0;
        skip_space(x);
        if (what == '{') {
            c->child = parse_section(x);
            if (!x->err && *x->p++ != '}')
                x->err = -EILSEQ;
        } else if (*x->p == '[') {
            x->p++;
            parse_list(x, c);
        } else {
            parse_scalar(x, c);
        }
    }
    x->depth--;
    return first;
}

static const struct cfg *get(const struct cfg *section, const char *name)
{
    for (const struct cfg *c = section ? section->child : NULL; c; c = c->next)
        if (c->name && !strcmp(c->name, name))
            return c;
    return NULL;
}

static unsigned children(const struct cfg *section)
{
    unsigned n = 0;
    for (const struct cfg *c = section ? section->child : NULL; c; c = c->next)
        n++;
    return n;
}

static uint64_t get_num(const struct cfg *section, const char *name)
{
    const struct cfg *c = get(section, name);
    return c ? c->num : 0;
}

static const char *get_str(const struct cfg *section, const char *name)
{
    const struct cfg *c = get(section, name);
    return c && c->str ? c->str : "";
}

/* ---- A physical volume's label and its copy of the text ---- */

static int read_label(struct blk *d, uint8_t *sector, char uuid[33], struct area *mda)
{
    struct pv_label l;
    for (uint64_t s = 0; s < 4; s++) {
        int err = d->size < 4 * 512 ? -ENOENT : blk_pread(d, s * 512, sector, 512);
        if (err)
            return err;
        memcpy(&l, sector, sizeof l);
        if (memcmp(l.id, "LABELONE", 8) || memcmp(l.type, "LVM2 001", 8) || l.sector != s)
            continue;
        if (l.offset < 32 || l.offset > 512 - 40 || lvm_crc(sector + 20, 512 - 20) != l.crc)
            return -EILSEQ;
        memcpy(uuid, sector + l.offset, 32);
        uuid[32] = 0;
        unsigned at = l.offset + 40, lists = 0;         /* data areas, then metadata areas, each list ended by zeroes */
        for (; at + sizeof *mda <= 512; at += sizeof *mda) {
            memcpy(mda, sector + at, sizeof *mda);
            if (!mda->off && ++lists == 2)
                return -ENODATA;
            if (mda->off && lists == 1)
                return 0;
        }
        return -EILSEQ;
    }
    return -ENOENT;
}

/* The text lies in a ring behind the area's header. */
static int read_text(struct blk *d, const struct area *mda, char **out)
{
    struct mda_header h;
    uint8_t sector[512];
    if (mda->off > d->size || mda->size > d->size - mda->off || mda->size < 1024)
        return -EILSEQ;
    int err = blk_pread(d, mda->off, sector, sizeof sector);
    memcpy(&h, sector, sizeof h);
    if (err)
        return err;
    if (memcmp(h.magic, " LVM2 x[5A%r0N*>", 16) || lvm_crc(sector + 4, sizeof sector - 4) != h.crc || h.start != mda->off || h.size != mda->size)
        return -EILSEQ;
    uint64_t off = h.raw[0].off, len = h.raw[0].size;
    if (!off)
        return -ENODATA;
    if (off < 512 || off >= h.size || len > TEXT_MAX || len > h.size - 512)
        return -EILSEQ;
    char *text = kmalloc(len + 1);
    uint64_t first = MIN(len, h.size - off);
    err = text ? blk_pread(d, mda->off + off, text, first) : -ENOMEM;
    if (!err && first < len)
        err = blk_pread(d, mda->off + 512, text + first, len - first);
    if (!err && lvm_crc(text, len) != h.raw[0].crc)
        err = -EILSEQ;
    if (err) {
        kfree(text);
        return err;
    }
    text[len] = 0;
    *out = text;
    return 0;
}

struct pv { struct blk *disk; char uuid[33]; };

static bool same_uuid(const char *text, const char *raw)
{
    for (; *text; text++)
        if (*text != '-' && *text != *raw++)
            return false;
    return !*raw;
}

/* ---- Volumes ---- */

struct scan { const struct cfg *vg; struct pv *pvs; unsigned npvs; uint64_t extent; };

static void __printf_like(2, 3) problem(struct lvm_lv *lv, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(lv->problem, sizeof lv->problem, fmt, ap);
    va_end(ap);
}

static struct blk *find_pv(const struct scan *s, const struct cfg *pv)
{
    for (unsigned i = 0; i < s->npvs; i++)
        if (same_uuid(get_str(pv, "id"), s->pvs[i].uuid))
            return s->pvs[i].disk;
    return NULL;
}

static bool read_segment(const struct scan *s, const struct cfg *seg, uint64_t expect, struct lvm_lv *lv, struct linear_seg *out)
{
    const struct cfg *stripes = get(seg, "stripes"), *name = stripes ? stripes->child : NULL;
    const struct cfg *pv = name && name->str ? get(get(s->vg, "physical_volumes"), name->str) : NULL;
    uint64_t count = get_num(seg, "extent_count"), max = UINT64_MAX / 2 / s->extent;
    if (strcmp(get_str(seg, "type"), "striped") || get_num(seg, "stripe_count") != 1) {
        problem(lv, "it is not linear (%.20s)", get_str(seg, "type"));
        return false;
    }
    if (!pv || !name->next || name->next->num > max / 2 || count > max / 2 || !count || get_num(seg, "start_extent") != expect) {
        problem(lv, "its segments make no sense");
        return false;
    }
    *out = (struct linear_seg){ find_pv(s, pv), get_num(pv, "pe_start") * 512 + name->next->num * s->extent, count * s->extent };
    if (!out->to)
        problem(lv, "the physical volume %.32s is missing", name->str);
    else if (out->off > out->to->size || out->len > out->to->size - out->off)
        problem(lv, "it reaches beyond its physical volume");
    return !lv->problem[0];
}

static int read_lv(const struct scan *s, const struct cfg *c, struct lvm_lv *lv)
{
    uint64_t n = get_num(c, "segment_count"), extents = 0;
    snprintf(lv->name, sizeof lv->name, "%.127s", c->name);
    if (!n || n > children(c)) {        /* memory is taken for as many as the text really has */
        problem(lv, n ? "its segments are not all there" : "it has no segments");
        return 0;
    }
    lv->segs = kzalloc(n * sizeof *lv->segs);
    if (!lv->segs)
        return -ENOMEM;
    for (uint64_t i = 0; i < n; i++) {
        char name[32];
        snprintf(name, sizeof name, "segment%llu", (unsigned long long)i + 1);
        if (!read_segment(s, get(c, name), extents, lv, &lv->segs[i]))
            break;
        extents += lv->segs[i].len / s->extent;
        lv->size += lv->segs[i].len;
        lv->nsegs++;
    }
    return 0;
}

static int read_vg(struct scan *s, struct lvm_vg *vg)
{
    const struct cfg *lvs = get(s->vg, "logical_volumes");
    snprintf(vg->name, sizeof vg->name, "%.127s", s->vg->name);
    vg->seqno = get_num(s->vg, "seqno");
    s->extent = get_num(s->vg, "extent_size") * 512;
    if (!s->extent || s->extent > 1ull << 40)
        return -EILSEQ;
    vg->nlvs = children(lvs);
    vg->lvs = kzalloc(MAX(vg->nlvs, 1u) * sizeof *vg->lvs);
    if (!vg->lvs)
        return -ENOMEM;
    int err = 0;
    unsigned i = 0;
    for (const struct cfg *c = lvs ? lvs->child : NULL; !err && c; c = c->next)
        err = read_lv(s, c, &vg->lvs[i++]);
    return err;
}

void lvm_free(struct lvm_vg *vg)
{
    if (!vg)
        return;
    for (unsigned i = 0; vg->lvs && i < vg->nlvs; i++)
        kfree(vg->lvs[i].segs);
    kfree(vg->lvs);
    kfree(vg);
}

/* The section that has physical volumes is the volume group. */
static int parse_vg(char *text, struct scan *s, struct cfg **all)
{
    struct parser x = { .p = text };
    *all = parse_section(&x);
    if (!x.err && *x.p)
        x.err = -EILSEQ;
    s->vg = NULL;
    for (const struct cfg *c = *all; c; c = c->next)
        if (c->name && get(c, "physical_volumes"))
            s->vg = c;
    return x.err ? x.err : s->vg ? 0 : -EILSEQ;
}

static bool names_pv(const struct cfg *vg, const char *uuid)
{
    const struct cfg *pvs = get(vg, "physical_volumes");
    for (const struct cfg *c = pvs ? pvs->child : NULL; c; c = c->next)
        if (same_uuid(get_str(c, "id"), uuid))
            return true;
    return false;
}

/* Copies of different age may be around: the highest sequence number that names the first volume counts. */
static int newest(struct scan *s, struct area *mda, struct lvm_vg **out)
{
    int result = -ENOENT;
    for (unsigned i = 0; i < s->npvs; i++) {
        char *text = NULL;
        struct cfg *all = NULL;
        struct lvm_vg *vg = NULL;
        int err = mda[i].off ? read_text(s->pvs[i].disk, &mda[i], &text) : -ENODATA;
        if (!err)
            err = parse_vg(text, s, &all);
        if (!err && names_pv(s->vg, s->pvs[0].uuid) && (!*out || get_num(s->vg, "seqno") > (*out)->seqno)) {
            vg = kzalloc(sizeof *vg);
            err = vg ? read_vg(s, vg) : -ENOMEM;
            if (err) {
                lvm_free(vg);
            } else {
                lvm_free(*out);
                *out = vg;
            }
        }
        cfg_free(all);
        kfree(text);
        if (err && err != -ENODATA && !*out)
            result = err;
    }
    return *out ? 0 : result;
}

int lvm_scan(struct blk *const *disks, unsigned n, struct lvm_vg **out)
{
    struct pv *pvs = kzalloc(MAX(n, 1u) * sizeof *pvs);
    struct area *mda = kzalloc(MAX(n, 1u) * sizeof *mda);
    struct scan s = { .pvs = pvs };
    uint8_t sector[512];
    int err = pvs && mda ? 0 : -ENOMEM;
    *out = NULL;
    for (unsigned i = 0; !err && i < n; i++) {
        int found = read_label(disks[i], sector, pvs[s.npvs].uuid, &mda[s.npvs]);
        if (found == -ENOMEM)
            err = found;
        if (found == -ENODATA)
            mda[s.npvs].off = 0;        /* a volume without metadata of its own */
        else if (found)
            continue;
        pvs[s.npvs++].disk = disks[i];
    }
    if (!err)
        err = s.npvs ? newest(&s, mda, out) : -ENOENT;
    kfree(pvs);
    kfree(mda);
    return err;
}

int lvm_open(struct lvm_vg *vg, const struct lvm_lv *lv, bool read_only, struct blk **out)
{
    char name[260];
    if (lv->problem[0] || !lv->nsegs)
        return -ENOTSUP;
    snprintf(name, sizeof name, "%s/%s", vg->name, lv->name);
    return linear_open("volume", name, lv->segs, lv->nsegs, read_only, out);
}
