/* Vector moves between memory, XMM and general registers. */
#include <string.h>

#include "kernel/vmm/emulate_priv.h"

struct xmm { uint64_t lo, hi; };

static bool must_align(const struct insn *i)
{
    switch (i->opcode) {
    case 0x0f28: case 0x0f29: case 0x0f2b: case 0x0fe7: case 0x382a: return true;
    case 0x0f6f: case 0x0f7f: return i->pfx == 0x66;
    }
    return false;
}

/* Puts `v` (opsize bytes from memory or a register) into register n the way the opcode says. */
static void load(struct emu_ctx *c, unsigned n, const struct xmm *v)
{
    const struct insn *i = &c->insn;
    struct xmm x = *v, old;

    c->ops->vec_get(c, n, &old);
    switch (i->opcode) {
    case 0x0f12: case 0x0f13:           /* low half; MOVHLPS takes the high half of its source */
        x = (struct xmm){ i->mem ? v->lo : v->hi, old.hi };
        break;
    case 0x0f16: case 0x0f17:           /* high half */
        x = (struct xmm){ old.lo, v->lo };
        break;
    case 0x0f10: case 0x0f11:           /* MOVSS, MOVSD between registers keep the rest; from memory they clear it */
        if (i->opsize == 4)
            x = i->mem ? (struct xmm){ (uint32_t)v->lo, 0 } : (struct xmm){ (old.lo & ~0xffffffffull) | (uint32_t)v->lo, old.hi };
        else if (i->opsize == 8)
            x = (struct xmm){ v->lo, i->mem ? 0 : old.hi };
        break;
    default:
        if (i->opsize < 16)
            x = (struct xmm){ v->lo & size_mask(i->opsize), 0 };
    }
    c->ops->vec_set(c, n, &x);
}

enum emu_result emu_sse_mov(struct emu_ctx *c)
{
    const struct insn *i = &c->insn;
    bool gpr = i->opcode == 0x0f6e || (i->opcode == 0x0f7e && i->pfx == 0x66);
    struct xmm v = { 0 };
    gva_t gva = 0;

    if ((c->cr0 & CR0_EM) || !(c->cr4 & CR4_OSFXSR))
        return emu_raise(c, VEC_UD);
    if (c->cr0 & CR0_TS)
        return emu_raise(c, VEC_NM);
    if (!c->ops->vec_get || !c->ops->vec_set)
        return EMU_UNHANDLED;
    if (i->mem) {
        TRY(emu_operand(c, i->opsize, i->to_mem, 0, &gva));
        if (must_align(i) && (gva & 15))
            return emu_raise(c, VEC_GP);
    }
    if (i->to_mem) {
        c->ops->vec_get(c, i->reg, &v);
        if (i->opcode == 0x0f17)
            v.lo = v.hi;
        if (i->mem)
            return emu_write(c, gva, &v, i->opsize);
        if (gpr)
            emu_reg_set(c, i->rm, i->opsize, v.lo);
        else
            load(c, i->rm, &v);
        return EMU_OK;
    }
    if (i->mem)
        TRY(emu_read(c, gva, &v, i->opsize));
    else if (gpr)
        v.lo = emu_reg(c, i->rm, i->opsize);
    else
        c->ops->vec_get(c, i->rm, &v);
    load(c, i->reg, &v);
    return EMU_OK;
}
