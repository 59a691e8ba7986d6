/* Operand access: segmentation, page crossing, registers.  Intel SDM vol 3 "Limit Checking", "Type Checking", "Canonical Addressing". */
#include "kernel/vmm/emulate_priv.h"

enum { ATTR_TYPE_CODE = BIT(3), ATTR_TYPE_DOWN = BIT(2) /* data; conforming for code */, ATTR_TYPE_RW = BIT(1), ATTR_P = BIT(7), ATTR_DB = BIT(10) };

enum emu_result emu_raise(struct emu_ctx *c, uint8_t vector)
{
    c->exc = (struct emu_exc){ .vector = vector, .has_error = vector == VEC_SS || vector == VEC_GP || vector == VEC_AC };
    return EMU_EXCEPTION;
}

static bool canonical(const struct emu_ctx *c, uint64_t v)
{
    unsigned unused = c->cr4 & CR4_LA57 ? 7 : 16;

    return (uint64_t)((int64_t)(v << unused) >> unused) == v;
}

static bool seg_allows(const struct emu_ctx *c, const struct emu_seg *g, uint64_t off, unsigned len, bool write)
{
    uint64_t last = off + len - 1;      /* no wrap: off is below 2^32 here */
    bool code = g->attr & ATTR_TYPE_CODE;

    if (!c->real) {
        if (!(g->attr & ATTR_P))        /* null selector */
            return false;
        if (write ? code || !(g->attr & ATTR_TYPE_RW) : code && !(g->attr & ATTR_TYPE_RW))
            return false;
        if (!code && (g->attr & ATTR_TYPE_DOWN))
            return off > g->limit && last <= (g->attr & ATTR_DB ? 0xffffffff : 0xffff);
    }
    return last <= g->limit;
}

enum emu_result emu_linear_slow(struct emu_ctx *c, enum seg s, uint64_t off, unsigned len, bool write, gva_t *out)
{
    struct emu_seg *g = &c->seg[s];

    if ((c->mode != MODE_64 || s >= SEG_FS) && !(c->seg_valid & BIT(s))) {
        if (c->ops->load_seg)
            c->ops->load_seg(c, s);
        c->seg_valid |= BIT(s);
    }
    if (c->mode == MODE_64) {
        if (s >= SEG_FS)
            off += g->base;
        *out = off;
        if (canonical(c, off) && canonical(c, off + len - 1))
            return EMU_OK;
    } else {
        *out = (uint32_t)(g->base + off);
        if (seg_allows(c, g, off, len, write))
            return EMU_OK;
    }
    return emu_raise(c, s == SEG_SS ? VEC_SS : VEC_GP);
}

static gva_t second_page(const struct emu_ctx *c, gva_t gva, unsigned first)
{
    return c->mode == MODE_64 ? gva + first : (uint32_t)(gva + first);
}

enum emu_result emu_read_slow(struct emu_ctx *c, gva_t gva, void *buf, unsigned len)
{
    unsigned first = PAGE_SIZE - (gva & (PAGE_SIZE - 1));

    TRY(c->ops->read(c, gva, buf, first));
    return c->ops->read(c, second_page(c, gva, first), (char *)buf + first, len - first);
}

enum emu_result emu_write_slow(struct emu_ctx *c, gva_t gva, const void *buf, unsigned len)
{
    unsigned first = PAGE_SIZE - (gva & (PAGE_SIZE - 1));
    gva_t second = second_page(c, gva, first);
    bool ram;

    if (c->ops->probe) {
        TRY(c->ops->probe(c, gva, first, true, &ram));
        TRY(c->ops->probe(c, second, len - first, true, &ram));
    }
    TRY(c->ops->write(c, gva, buf, first));
    return c->ops->write(c, second, (const char *)buf + first, len - first);
}

void emu_reg_set(struct emu_ctx *c, unsigned n, unsigned size, uint64_t val)
{
    uint64_t mask = size_mask(size);

    if (size == 4)
        c->gpr[n] = (uint32_t)val;
    else if (size == 1 && n >= 4 && n < 8 && !c->insn.rex)
        c->gpr[n - 4] = (c->gpr[n - 4] & ~0xff00ull) | (val & 0xff) << 8;
    else
        c->gpr[n] = (c->gpr[n] & ~mask) | (val & mask);
}

enum emu_result emu_operand(struct emu_ctx *c, unsigned len, bool write, int64_t extra, gva_t *out)
{
    const struct insn *i = &c->insn;
    uint64_t off = i->disp + extra;

    if (i->base == INSN_BASE_RIP)
        off += c->rip + i->len;
    else if (i->base != INSN_NO_REG)
        off += c->gpr[i->base];
    if (i->index != INSN_NO_REG)
        off += c->gpr[i->index] * i->scale;
    if (i->addr_size != 8)
        off &= size_mask(i->addr_size);
    TRY(emu_linear(c, i->seg, off, len, write, out));
    if (unlikely(c->rflags & FLAG_AC) && c->cpl == 3 && (c->cr0 & CR0_AM) && len <= 8 && (*out & (len - 1)))
        return emu_raise(c, VEC_AC);
    return EMU_OK;
}
