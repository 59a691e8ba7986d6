/* Instruction emulator; see emulate.h.  Operand access, arithmetic, strings and vector moves are in emulate_*.c. */
#include "kernel/vmm/emulate.h"

#include <errno.h>
#include <string.h>

#include "kernel/vmm/emulate_priv.h"

enum { RAX, RCX, RDX, RBX, RSP, CMPXCHG_TRIES = 16 };

/* ---- Moves. ---- */

static enum emu_result read_rm(struct emu_ctx *c, unsigned size, uint64_t *val)
{
    gva_t gva;

    if (!c->insn.mem) {
        *val = emu_reg(c, c->insn.rm, size);
        return EMU_OK;
    }
    *val = 0;
    TRY(emu_operand(c, size, false, 0, &gva));
    return emu_read(c, gva, val, size);
}

static enum emu_result write_rm(struct emu_ctx *c, unsigned size, uint64_t val)
{
    gva_t gva;

    if (!c->insn.mem) {
        emu_reg_set(c, c->insn.rm, size, val);
        return EMU_OK;
    }
    TRY(emu_operand(c, size, true, 0, &gva));
    return emu_write(c, gva, &val, size);
}

static uint64_t source(const struct emu_ctx *c)
{
    return c->insn.imm_valid ? (uint64_t)c->insn.imm & size_mask(c->insn.opsize) : emu_reg(c, c->insn.reg, c->insn.opsize);
}

static enum emu_result do_mov(struct emu_ctx *c)
{
    const struct insn *i = &c->insn;
    uint64_t val;

    if (i->to_mem)
        return write_rm(c, i->opsize, source(c));
    TRY(read_rm(c, i->opsize, &val));
    emu_reg_set(c, i->reg, i->opsize, val);
    return EMU_OK;
}

static enum emu_result do_movx(struct emu_ctx *c)
{
    const struct insn *i = &c->insn;
    unsigned unused = 64 - 8 * i->src_size;
    uint64_t val;

    TRY(read_rm(c, i->src_size, &val));
    if (i->op != INSN_MOVZX)
        val = (int64_t)(val << unused) >> unused;
    /* The destination is never a byte, so the AH..BH rule of src_size 1 does not reach it. */
    emu_reg_set(c, i->reg, i->opsize, val);
    return EMU_OK;
}

static uint64_t swap(uint64_t v, unsigned size)
{
    return __builtin_bswap64(v) >> (64 - 8 * size);
}

static enum emu_result do_movbe(struct emu_ctx *c)
{
    const struct insn *i = &c->insn;
    uint64_t val;

    if (i->to_mem)
        return write_rm(c, i->opsize, swap(source(c), i->opsize));
    TRY(read_rm(c, i->opsize, &val));
    emu_reg_set(c, i->reg, i->opsize, swap(val, i->opsize));
    return EMU_OK;
}

/* ---- Read-modify-write of the r/m operand. ---- */

struct rmw {
    uint64_t old, new, flags;   /* flags: RFLAGS as they will be */
    uint64_t src;
};
typedef void rmw_fn(const struct emu_ctx *, struct rmw *);

/* Atomic with LOCK: computed anew from what is there until nobody came between, a bounded number of times.  A locked operand that crosses a page cannot be
 * had atomically through two translations; it is written like an unlocked one, which only a guest that races split locks could tell. */
static enum emu_result rmw_memory(struct emu_ctx *c, struct rmw *w, rmw_fn *fn, bool atomic, int64_t extra)
{
    unsigned size = c->insn.opsize;
    enum emu_result r;
    gva_t gva;

    TRY(emu_operand(c, size, true, extra, &gva));
    w->old = 0;
    c->write_intent = true;
    r = emu_read(c, gva, &w->old, size);
    c->write_intent = false;
    if (r != EMU_OK)
        return r;
    for (unsigned tries = 0; tries < CMPXCHG_TRIES; tries++) {
        w->flags = c->rflags;
        fn(c, w);
        if (!atomic || emu_crosses(gva, size))
            return emu_write(c, gva, &w->new, size);
        r = c->ops->cmpxchg(c, gva, &w->old, &w->new, size);
        if (r != EMU_AGAIN)
            return r;
    }
    return EMU_AGAIN;
}

static enum emu_result rmw(struct emu_ctx *c, struct rmw *w, rmw_fn *fn)
{
    if (c->insn.mem)
        return rmw_memory(c, w, fn, c->insn.lock, 0);
    w->old = emu_reg(c, c->insn.rm, c->insn.opsize);
    w->flags = c->rflags;
    fn(c, w);
    emu_reg_set(c, c->insn.rm, c->insn.opsize, w->new);
    return EMU_OK;
}

static void alu_rmw(const struct emu_ctx *c, struct rmw *w)
{
    w->new = emu_alu(c->insn.op, w->old, w->src, c->insn.opsize, &w->flags);
}

static enum emu_result do_alu(struct emu_ctx *c)
{
    const struct insn *i = &c->insn;
    struct rmw w = { .src = source(c), .flags = c->rflags };

    if (i->op == INSN_CMP || i->op == INSN_TEST || !i->to_mem) {
        uint64_t rm, reg = w.src, r;
        TRY(read_rm(c, i->opsize, &rm));
        r = i->to_mem ? emu_alu(i->op, rm, reg, i->opsize, &w.flags) : emu_alu(i->op, reg, rm, i->opsize, &w.flags);
        if (i->op != INSN_CMP && i->op != INSN_TEST)
            emu_reg_set(c, i->reg, i->opsize, r);
    } else {
        TRY(rmw(c, &w, alu_rmw));
    }
    c->rflags = w.flags;
    return EMU_OK;
}

static void xchg_rmw(const struct emu_ctx *c, struct rmw *w) { w->new = w->src; }

static enum emu_result do_xchg(struct emu_ctx *c)
{
    struct rmw w = { .src = emu_reg(c, c->insn.reg, c->insn.opsize) };

    if (c->insn.mem)
        TRY(rmw_memory(c, &w, xchg_rmw, true, 0));      /* locked with or without the prefix */
    else
        TRY(rmw(c, &w, xchg_rmw));
    emu_reg_set(c, c->insn.reg, c->insn.opsize, w.old);
    return EMU_OK;
}

static enum emu_result do_xadd(struct emu_ctx *c)
{
    const struct insn *i = &c->insn;
    struct rmw w = { .src = emu_reg(c, i->reg, i->opsize) };

    if (i->mem) {
        TRY(rmw(c, &w, alu_rmw));
        emu_reg_set(c, i->reg, i->opsize, w.old);
    } else {                    /* XADD of a register with itself leaves the sum */
        w.flags = c->rflags;
        w.old = emu_reg(c, i->rm, i->opsize);
        alu_rmw(c, &w);
        emu_reg_set(c, i->reg, i->opsize, w.old);
        emu_reg_set(c, i->rm, i->opsize, w.new);
    }
    c->rflags = w.flags;
    return EMU_OK;
}

/* The memory operand is written in either case, with its own value when the comparison fails. */
static void cmpxchg_rmw(const struct emu_ctx *c, struct rmw *w)
{
    uint64_t acc = emu_reg(c, RAX, c->insn.opsize);

    emu_alu(INSN_CMP, acc, w->old, c->insn.opsize, &w->flags);
    w->new = w->flags & FLAG_ZF ? w->src : w->old;
}

static enum emu_result do_cmpxchg(struct emu_ctx *c)
{
    const struct insn *i = &c->insn;
    struct rmw w = { .src = emu_reg(c, i->reg, i->opsize) };

    if (i->mem) {
        TRY(rmw(c, &w, cmpxchg_rmw));
    } else {                    /* a failed comparison writes the accumulator only */
        w.flags = c->rflags;
        w.old = emu_reg(c, i->rm, i->opsize);
        cmpxchg_rmw(c, &w);
        if (w.flags & FLAG_ZF)
            emu_reg_set(c, i->rm, i->opsize, w.new);
    }
    if (!(w.flags & FLAG_ZF))
        emu_reg_set(c, RAX, i->opsize, w.old);
    c->rflags = w.flags;
    return EMU_OK;
}

struct pair { uint64_t lo, hi; };

static struct pair reg_pair(const struct emu_ctx *c, unsigned lo, unsigned hi)
{
    if (c->insn.opsize == 16)
        return (struct pair){ c->gpr[lo], c->gpr[hi] };
    return (struct pair){ (uint32_t)c->gpr[lo] | c->gpr[hi] << 32, 0 };
}

/* CMPXCHG8B, CMPXCHG16B: RDX:RAX is compared, RCX:RBX stored. */
static enum emu_result do_cmpxchg_pair(struct emu_ctx *c)
{
    unsigned size = c->insn.opsize;
    struct pair want = reg_pair(c, RAX, RDX), new = reg_pair(c, RBX, RCX), old = { 0 };
    enum emu_result r = EMU_AGAIN;
    bool equal = false;
    gva_t gva;

    TRY(emu_operand(c, size, true, 0, &gva));
    if (size == 16 && (gva & 15))
        return emu_raise(c, VEC_GP);
    c->write_intent = true;
    r = emu_read(c, gva, &old, size);
    c->write_intent = false;
    if (r != EMU_OK)
        return r;
    r = EMU_AGAIN;
    for (unsigned tries = 0; r == EMU_AGAIN && tries < CMPXCHG_TRIES; tries++) {
        equal = old.lo == want.lo && old.hi == want.hi;
        const struct pair *val = equal ? &new : &old;
        r = c->insn.lock && !emu_crosses(gva, size) ? c->ops->cmpxchg(c, gva, &old, val, size) : emu_write(c, gva, val, size);
    }
    TRY(r);
    if (!equal) {
        emu_reg_set(c, RAX, size / 2, size == 16 ? old.lo : (uint32_t)old.lo);
        emu_reg_set(c, RDX, size / 2, size == 16 ? old.hi : old.lo >> 32);
    }
    c->rflags = (c->rflags & ~(uint64_t)FLAG_ZF) | (equal ? FLAG_ZF : 0);
    return EMU_OK;
}

/* w->src: bit number within the operand. */
static void bit_rmw(const struct emu_ctx *c, struct rmw *w)
{
    uint64_t bit = BIT(w->src);

    w->flags = (w->flags & ~(uint64_t)FLAG_CF) | (w->old & bit ? FLAG_CF : 0);
    switch (c->insn.op) {
    case INSN_BTS: w->new = w->old | bit; break;
    case INSN_BTR: w->new = w->old & ~bit; break;
    case INSN_BTC: w->new = w->old ^ bit; break;
    default: w->new = w->old;
    }
}

/* With a register as bit offset and memory as bit base, the offset is signed and reaches beyond the operand. */
static enum emu_result do_bit(struct emu_ctx *c)
{
    const struct insn *i = &c->insn;
    unsigned bits = 8 * i->opsize, unused = 64 - bits;
    struct rmw w = { .src = source(c) & (bits - 1), .flags = c->rflags };
    int64_t extra = 0;

    if (i->mem && !i->imm_valid)
        extra = (((int64_t)(c->gpr[i->reg] << unused) >> unused) & ~(int64_t)(bits - 1)) / 8;
    if (i->op == INSN_BT) {
        gva_t gva;
        if (i->mem) {
            TRY(emu_operand(c, i->opsize, false, extra, &gva));
            TRY(emu_read(c, gva, &w.old, i->opsize));
        } else {
            w.old = emu_reg(c, i->rm, i->opsize);
        }
        bit_rmw(c, &w);
    } else if (i->mem) {
        TRY(rmw_memory(c, &w, bit_rmw, i->lock, extra));
    } else {
        TRY(rmw(c, &w, bit_rmw));
    }
    c->rflags = w.flags;
    return EMU_OK;
}

/* ---- Stack. ---- */

static unsigned stack_size(struct emu_ctx *c)
{
    gva_t unused;

    if (c->mode == MODE_64)
        return 8;
    if (!(c->seg_valid & BIT(SEG_SS)))
        (void)emu_linear_slow(c, SEG_SS, 0, 1, false, &unused);         /* for its loading only */
    return c->seg[SEG_SS].attr & BIT(10) ? 4 : 2;
}

static enum emu_result do_push(struct emu_ctx *c)
{
    const struct insn *i = &c->insn;
    unsigned ss = stack_size(c);
    uint64_t sp = (c->gpr[RSP] - i->opsize) & size_mask(ss), val;
    gva_t gva;

    if (i->imm_valid)
        val = (uint64_t)i->imm;
    else
        TRY(read_rm(c, i->opsize, &val));
    TRY(emu_linear(c, SEG_SS, sp, i->opsize, true, &gva));
    TRY(emu_write(c, gva, &val, i->opsize));
    emu_reg_set(c, RSP, ss, sp);
    return EMU_OK;
}

/* The address of a memory operand is computed with RSP already moved. */
static enum emu_result do_pop(struct emu_ctx *c)
{
    unsigned ss = stack_size(c), size = c->insn.opsize;
    uint64_t rsp = c->gpr[RSP], val = 0;
    enum emu_result r;
    gva_t gva;

    TRY(emu_linear(c, SEG_SS, rsp & size_mask(ss), size, false, &gva));
    TRY(emu_read(c, gva, &val, size));
    emu_reg_set(c, RSP, ss, rsp + size);
    r = write_rm(c, size, val);
    if (r != EMU_OK)
        c->gpr[RSP] = rsp;
    return r;
}

/* ---- Ports, and the rest. ---- */

/* Real mode: always; virtual-8086 mode: by the bitmap; protected mode: by IOPL, else by the bitmap. */
enum emu_result emu_port_check(struct emu_ctx *c, uint16_t port, unsigned size)
{
    if (!(c->cr0 & CR0_PE) || (!c->real && c->cpl <= c->iopl))
        return EMU_OK;
    return c->ops->port_allowed && c->ops->port_allowed(c, port, size) ? EMU_OK : emu_raise(c, VEC_GP);
}

static enum emu_result do_io(struct emu_ctx *c)
{
    const struct insn *i = &c->insn;
    uint16_t port = i->imm_valid ? (uint64_t)i->imm : c->gpr[RDX];
    uint32_t val = 0;

    TRY(emu_port_check(c, port, i->opsize));
    if (i->op == INSN_OUT)
        return c->ops->port_out(c, port, i->opsize, c->gpr[RAX] & size_mask(i->opsize));
    TRY(c->ops->port_in(c, port, i->opsize, &val));
    emu_reg_set(c, RAX, i->opsize, val);
    return EMU_OK;
}

static enum emu_result do_smsw(struct emu_ctx *c)
{
    if ((c->cr4 & CR4_UMIP) && c->cpl)
        return emu_raise(c, VEC_GP);
    return write_rm(c, c->insn.mem ? 2 : c->insn.opsize, c->cr0);
}

static enum emu_result do_nothing(struct emu_ctx *c) { return EMU_OK; }

static enum emu_result (*const semantics[INSN_OPS])(struct emu_ctx *) = {
    [INSN_MOV] = do_mov, [INSN_MOVNTI] = do_mov, [INSN_MOVZX] = do_movx, [INSN_MOVSX] = do_movx, [INSN_MOVSXD] = do_movx, [INSN_MOVBE] = do_movbe,
    [INSN_MOVS] = emu_string, [INSN_STOS] = emu_string, [INSN_LODS] = emu_string, [INSN_CMPS] = emu_string, [INSN_SCAS] = emu_string,
    [INSN_INS] = emu_string, [INSN_OUTS] = emu_string,
    [INSN_ADD] = do_alu, [INSN_OR] = do_alu, [INSN_ADC] = do_alu, [INSN_SBB] = do_alu, [INSN_AND] = do_alu, [INSN_SUB] = do_alu, [INSN_XOR] = do_alu,
    [INSN_CMP] = do_alu, [INSN_TEST] = do_alu, [INSN_INC] = do_alu, [INSN_DEC] = do_alu, [INSN_NOT] = do_alu, [INSN_NEG] = do_alu,
    [INSN_XCHG] = do_xchg, [INSN_XADD] = do_xadd, [INSN_CMPXCHG] = do_cmpxchg, [INSN_CMPXCHG8B] = do_cmpxchg_pair,
    [INSN_BT] = do_bit, [INSN_BTS] = do_bit, [INSN_BTR] = do_bit, [INSN_BTC] = do_bit,
    [INSN_PUSH] = do_push, [INSN_POP] = do_pop, [INSN_IN] = do_io, [INSN_OUT] = do_io, [INSN_SMSW] = do_smsw,
    [INSN_SSE_MOV] = emu_sse_mov, [INSN_NOP] = do_nothing, [INSN_PAUSE] = do_nothing,
};

enum emu_result emu_execute(struct emu_ctx *c)
{
    static const uint64_t rip_mask[] = { [MODE_16] = 0xffff, [MODE_32] = 0xffffffff, [MODE_64] = ~0ull };
    enum emu_result r;

    c->trap_db = false;
    if (unlikely(!semantics[c->insn.op]))
        return EMU_UNHANDLED;
    r = semantics[c->insn.op](c);
    if (likely(r == EMU_OK)) {
        c->trap_db = c->rflags & FLAG_TF;
        c->rflags &= ~(uint64_t)FLAG_RF;
        c->rip = (c->rip + c->insn.len) & rip_mask[c->mode];
    }
    return r;
}

/* Up to 15 bytes at CS:RIP, the second page only when the first does not hold the whole instruction. */
static enum emu_result fetch(struct emu_ctx *c)
{
    uint8_t bytes[INSN_MAX_LEN];
    unsigned n = INSN_MAX_LEN, first;
    gva_t gva = c->rip;
    int r;

    if (c->mode != MODE_64) {
        uint64_t left = (uint64_t)c->seg[SEG_CS].limit + 1 - c->rip;
        if (c->rip > c->seg[SEG_CS].limit)
            return emu_raise(c, VEC_GP);
        gva = (uint32_t)(c->seg[SEG_CS].base + c->rip);
        n = MIN(left, (uint64_t)INSN_MAX_LEN);
    } else {
        TRY(emu_linear(c, SEG_DS, gva, 1, false, &gva));        /* canonical */
    }
    first = MIN(n, PAGE_SIZE - (gva & (PAGE_SIZE - 1)));
    TRY(c->ops->fetch(c, gva, bytes, first));
    r = insn_decode(&c->insn, c->mode, bytes, first);
    if (r == -ENODATA && first < n) {
        TRY(c->ops->fetch(c, c->mode == MODE_64 ? gva + first : (uint32_t)(gva + first), bytes + first, n - first));
        r = insn_decode(&c->insn, c->mode, bytes, n);
    }
    if (r)
        return emu_raise(c, r == -EILSEQ ? VEC_UD : VEC_GP);    /* too long, or beyond the limit of CS */
    c->insn_valid = true;
    return EMU_OK;
}

enum emu_result emu_step(struct emu_ctx *c)
{
    if (!c->insn_valid)
        TRY(fetch(c));
    return emu_execute(c);
}
