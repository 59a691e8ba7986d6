/* Arithmetic and its flags.  Undefined flags (AF of logical operations) come out as 0, as CPUs do. */
#include "kernel/vmm/emulate_priv.h"

/* Bit n of 9669h: n has an even number of ones. */
static uint64_t parity_flag(uint64_t r)
{
    return 0x9669 >> ((r ^ r >> 4) & 15) & 1 ? FLAG_PF : 0;
}

uint64_t emu_alu(enum insn_op op, uint64_t a, uint64_t b, unsigned size, uint64_t *flags)
{
    const uint64_t mask = size_mask(size), sign = BIT(8 * size - 1);
    uint64_t r, f = 0, carry = *flags & FLAG_CF;

    switch (op) {
    case INSN_NOT:
        return ~a & mask;
    case INSN_AND: case INSN_TEST: r = a & b; break;
    case INSN_OR: r = a | b; break;
    case INSN_XOR: r = a ^ b; break;
    case INSN_ADD: case INSN_ADC: case INSN_INC: case INSN_XADD:
        if (op == INSN_INC)
            b = 1;
        r = a + b + (op == INSN_ADC ? carry : 0);
        if (((a & b) | ((a | b) & ~r)) & sign)
            f |= FLAG_CF;
        if ((a ^ r) & (b ^ r) & sign)
            f |= FLAG_OF;
        f |= (a ^ b ^ r) & FLAG_AF;
        break;
    default:                            /* SUB SBB CMP CMPXCHG DEC NEG */
        if (op == INSN_DEC)
            b = 1;
        if (op == INSN_NEG)
            b = a, a = 0;
        r = a - b - (op == INSN_SBB ? carry : 0);
        if (((~a & b) | ((~a | b) & r)) & sign)
            f |= FLAG_CF;
        if ((a ^ b) & (a ^ r) & sign)
            f |= FLAG_OF;
        f |= (a ^ b ^ r) & FLAG_AF;
    }
    r &= mask;
    if (!r)
        f |= FLAG_ZF;
    if (r & sign)
        f |= FLAG_SF;
    f |= parity_flag(r);
    if (op == INSN_INC || op == INSN_DEC)
        f = (f & ~(uint64_t)FLAG_CF) | carry;
    *flags = (*flags & ~(uint64_t)FLAG_ARITH) | f;
    return r;
}
