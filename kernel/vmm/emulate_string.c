/*
 * String instructions.  Registers follow every element, so that an exception or the end of the budget leaves a restartable state.  Runs of REP MOVS, STOS, INS
 * and OUTS within one page of plain RAM move by the block: one translation instead of one per element.
 */
#include <string.h>

#include "kernel/vmm/emulate_priv.h"

enum { RAX, RCX, RDX, RSI = 6, RDI = 7, BLOCK = 512, DEFAULT_BUDGET = 1024 };

static uint64_t index_get(const struct emu_ctx *c, unsigned n)
{
    return c->gpr[n] & size_mask(c->insn.addr_size);
}

static void index_add(struct emu_ctx *c, unsigned n, int64_t delta)
{
    emu_reg_set(c, n, c->insn.addr_size, c->gpr[n] + delta);     /* never a byte: no AH..BH */
}

static bool uses_src(enum insn_op op) { return op == INSN_MOVS || op == INSN_LODS || op == INSN_CMPS || op == INSN_OUTS; }
static bool uses_dst(enum insn_op op) { return op == INSN_MOVS || op == INSN_STOS || op == INSN_CMPS || op == INSN_SCAS || op == INSN_INS; }

/* `n` elements are done. */
static void advance(struct emu_ctx *c, unsigned n)
{
    int64_t delta = (int64_t)n * c->insn.opsize * (c->rflags & FLAG_DF ? -1 : 1);

    if (uses_src(c->insn.op))
        index_add(c, RSI, delta);
    if (uses_dst(c->insn.op))
        index_add(c, RDI, delta);
    if (c->insn.rep)
        index_add(c, RCX, -(int64_t)n);
}

static bool alignment_checked(const struct emu_ctx *c)
{
    return (c->rflags & FLAG_AC) && c->cpl == 3 && (c->cr0 & CR0_AM);
}

static enum emu_result address(struct emu_ctx *c, enum seg s, unsigned reg, unsigned len, bool write, gva_t *gva)
{
    TRY(emu_linear(c, s, index_get(c, reg), len, write, gva));
    if (unlikely(alignment_checked(c)) && (*gva & (c->insn.opsize - 1)))
        return emu_raise(c, VEC_AC);
    return EMU_OK;
}

/* INS must not take a value from the device that it then cannot store. */
static enum emu_result check_writable(struct emu_ctx *c, gva_t gva, unsigned len)
{
    unsigned first = emu_crosses(gva, len) ? PAGE_SIZE - (gva & (PAGE_SIZE - 1)) : len;
    bool ram;

    if (!c->ops->probe)
        return EMU_OK;
    TRY(c->ops->probe(c, gva, first, true, &ram));
    return first == len ? EMU_OK : c->ops->probe(c, c->mode == MODE_64 ? gva + first : (uint32_t)(gva + first), len - first, true, &ram);
}

static enum emu_result element(struct emu_ctx *c)
{
    const struct insn *i = &c->insn;
    unsigned size = i->opsize;
    uint16_t port = c->gpr[RDX];
    uint64_t a = 0, b = 0, f = c->rflags;
    uint32_t io = 0;
    gva_t src = 0, dst = 0;

    if (uses_src(i->op)) {
        TRY(address(c, i->seg, RSI, size, false, &src));
        TRY(emu_read(c, src, &a, size));
    }
    if (uses_dst(i->op))
        TRY(address(c, SEG_ES, RDI, size, i->op != INSN_CMPS && i->op != INSN_SCAS, &dst));
    switch (i->op) {
    case INSN_MOVS: return emu_write(c, dst, &a, size);
    case INSN_STOS: return emu_write(c, dst, &c->gpr[RAX], size);
    case INSN_LODS:
        emu_reg_set(c, RAX, size, a);
        return EMU_OK;
    case INSN_SCAS:
        a = c->gpr[RAX] & size_mask(size);
        /* fall through */
    case INSN_CMPS:
        TRY(emu_read(c, dst, &b, size));
        emu_alu(INSN_CMP, a, b, size, &f);
        c->rflags = f;
        return EMU_OK;
    case INSN_INS:
        TRY(check_writable(c, dst, size));
        TRY(c->ops->port_in(c, port, size, &io));
        return emu_write(c, dst, &io, size);
    default:
        return c->ops->port_out(c, port, size, a);
    }
}

/* How many elements from `reg` on lie in one page and below the wrap of the address size. */
static unsigned run_length(const struct emu_ctx *c, unsigned reg, gva_t gva)
{
    unsigned bytes = PAGE_SIZE - (gva & (PAGE_SIZE - 1));
    uint64_t to_wrap = size_mask(c->insn.addr_size) - index_get(c, reg);       /* less one, so that 2^64 fits */

    return MIN((uint64_t)bytes, to_wrap) / c->insn.opsize;
}

/* One side of a block: where it starts, whether `n` elements of it are plain RAM.  Shortens n; n = 0: no block here. */
static bool block_side(struct emu_ctx *c, enum seg s, unsigned reg, bool write, unsigned *n, gva_t *gva)
{
    struct emu_exc exc = c->exc;
    bool ram = false;

    if (emu_linear(c, s, index_get(c, reg), c->insn.opsize, write, gva) == EMU_OK) {
        *n = MIN(*n, run_length(c, reg, *gva));
        if (*n > 1 && emu_linear(c, s, index_get(c, reg), *n * c->insn.opsize, write, gva) == EMU_OK &&
            c->ops->probe(c, *gva, *n * c->insn.opsize, write, &ram) == EMU_OK && ram)
            return true;
    }
    c->exc = exc;                       /* whatever it was, the element finds it again */
    return false;
}

/* Ports between `buf` and the device, element by element; how many were done is left in *n. */
static enum emu_result block_ports(struct emu_ctx *c, uint8_t *buf, unsigned *n)
{
    unsigned size = c->insn.opsize, todo = *n;
    uint16_t port = c->gpr[RDX];
    uint32_t v = 0;

    for (*n = 0; *n < todo; ++*n, buf += size) {
        if (c->insn.op == INSN_INS) {
            TRY(c->ops->port_in(c, port, size, &v));
            memcpy(buf, &v, size);
        } else {
            memcpy(&v, buf, size);
            TRY(c->ops->port_out(c, port, size, v));
        }
    }
    return EMU_OK;
}

/*
 * Up to `n` elements at once; *done = how many were.  0 with EMU_OK: do an element instead.  Source and target of MOVS may be the same RAM under two
 * addresses: a block is no longer than their distance within the page, so that it reads nothing that it writes.
 */
static enum emu_result block(struct emu_ctx *c, unsigned n, unsigned *done)
{
    const enum insn_op op = c->insn.op;
    const unsigned size = c->insn.opsize;
    uint8_t buf[BLOCK];
    enum emu_result r = EMU_OK;
    gva_t src = 0, dst = 0;

    *done = 0;
    n = MIN(n, BLOCK / size);
    if (!c->ops->probe || (c->rflags & FLAG_DF) || n < 2 || op == INSN_LODS || op == INSN_CMPS || op == INSN_SCAS || alignment_checked(c))
        return EMU_OK;
    if (uses_src(op) && !block_side(c, c->insn.seg, RSI, false, &n, &src))
        return EMU_OK;
    if (uses_dst(op) && !block_side(c, SEG_ES, RDI, true, &n, &dst))
        return EMU_OK;
    if (op == INSN_MOVS) {
        unsigned distance = (dst - src) & (PAGE_SIZE - 1);
        if (distance)
            n = MIN(n, distance / size);
        if (n < 2)
            return EMU_OK;
    }
    if (uses_src(op))
        TRY(c->ops->read(c, src, buf, n * size));
    else if (op == INSN_STOS)
        for (unsigned k = 0; k < n; k++)
            memcpy(buf + k * size, &c->gpr[RAX], size);
    if (op == INSN_INS || op == INSN_OUTS)
        r = block_ports(c, buf, &n);
    if (uses_dst(op) && n)
        TRY(c->ops->write(c, dst, buf, n * size));
    *done = n;
    advance(c, n);
    return r;
}

static bool rep_ends(const struct emu_ctx *c)
{
    if (c->insn.op != INSN_CMPS && c->insn.op != INSN_SCAS)
        return false;
    return !(c->rflags & FLAG_ZF) == (c->insn.rep == REP_E);
}

enum emu_result emu_string(struct emu_ctx *c)
{
    const struct insn *i = &c->insn;
    unsigned budget = c->rep_budget ? c->rep_budget : DEFAULT_BUDGET, done;

    if (i->rep && !index_get(c, RCX))
        return EMU_OK;
    if (i->op == INSN_INS || i->op == INSN_OUTS)
        TRY(emu_port_check(c, c->gpr[RDX], i->opsize));
    if (!i->rep) {
        TRY(element(c));
        advance(c, 1);
        return EMU_OK;
    }
    if (c->rflags & FLAG_TF)
        budget = 1;
    while (budget) {
        TRY(block(c, MIN(index_get(c, RCX), budget), &done));
        if (!done) {
            TRY(element(c));
            advance(c, 1);
            done = 1;
        }
        budget -= done;
        if (!index_get(c, RCX) || rep_ends(c))
            return EMU_OK;
    }
    c->trap_db = c->rflags & FLAG_TF;
    return EMU_AGAIN;
}
