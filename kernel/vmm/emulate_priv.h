/* Inside of the emulator: shared by emulate*.c only. */
#pragma once
#include "kernel/vmm/emulate.h"

#define TRY(x) do { enum emu_result r_ = (x); if (unlikely(r_ != EMU_OK)) return r_; } while (0)

enum {
    FLAG_CF = 1 << 0, FLAG_PF = 1 << 2, FLAG_AF = 1 << 4, FLAG_ZF = 1 << 6, FLAG_SF = 1 << 7, FLAG_TF = 1 << 8, FLAG_DF = 1 << 10, FLAG_OF = 1 << 11,
    FLAG_RF = 1 << 16, FLAG_AC = 1 << 18, FLAG_ARITH = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF,
};
enum { VEC_DB = 1, VEC_UD = 6, VEC_NM = 7, VEC_SS = 12, VEC_GP = 13, VEC_AC = 17 };
enum { CR0_PE = 1 << 0, CR0_EM = 1 << 2, CR0_TS = 1 << 3, CR0_AM = 1 << 18, CR4_OSFXSR = 1 << 9, CR4_UMIP = 1 << 11, CR4_LA57 = 1 << 12 };

static inline uint64_t size_mask(unsigned size) { return ~0ull >> (64 - 8 * size); }

/* ---- emulate_operand.c ---- */
enum emu_result emu_raise(struct emu_ctx *, uint8_t vector);            /* with error code 0 where the vector has one */
/* Linear address of seg:off for `len` bytes, after segment limit, type and canonical checks.  `off` is already cut to the address size. */
enum emu_result emu_linear_slow(struct emu_ctx *, enum seg, uint64_t off, unsigned len, bool write, gva_t *out);
/* Memory by linear address, any page crossing. */
enum emu_result emu_read_slow(struct emu_ctx *, gva_t, void *buf, unsigned len);
enum emu_result emu_write_slow(struct emu_ctx *, gva_t, const void *buf, unsigned len);
void emu_reg_set(struct emu_ctx *, unsigned n, unsigned size, uint64_t val);
/* Address of the memory operand; `extra` is added before the cut to the address size. */
enum emu_result emu_operand(struct emu_ctx *, unsigned len, bool write, int64_t extra, gva_t *out);

static inline bool emu_crosses(gva_t gva, unsigned len)
{
    return (gva & (PAGE_SIZE - 1)) + len > PAGE_SIZE;
}

static inline enum emu_result emu_read(struct emu_ctx *c, gva_t gva, void *buf, unsigned len)
{
    return unlikely(emu_crosses(gva, len)) ? emu_read_slow(c, gva, buf, len) : c->ops->read(c, gva, buf, len);
}

static inline enum emu_result emu_write(struct emu_ctx *c, gva_t gva, const void *buf, unsigned len)
{
    return unlikely(emu_crosses(gva, len)) ? emu_write_slow(c, gva, buf, len) : c->ops->write(c, gva, buf, len);
}

static inline uint64_t emu_reg(const struct emu_ctx *c, unsigned n, unsigned size)
{
    if (size == 1 && n >= 4 && n < 8 && !c->insn.rex)
        return c->gpr[n - 4] >> 8 & 0xff;
    return c->gpr[n] & size_mask(size);
}

static inline enum emu_result emu_linear(struct emu_ctx *c, enum seg s, uint64_t off, unsigned len, bool write, gva_t *out)
{
    /* 64-bit mode without FS or GS: canonical is all there is to check; 47 bits do for either kind of paging. */
    if (likely(c->mode == MODE_64 && s < SEG_FS) && likely(off + len - 1 < BIT(47) && off < BIT(47))) {
        *out = off;
        return EMU_OK;
    }
    return emu_linear_slow(c, s, off, len, write, out);
}

/* ---- emulate_alu.c ---- */
/* ADD … CMP, TEST, INC, DEC, NOT, NEG: a OP b, arithmetic flags in *flags. */
uint64_t emu_alu(enum insn_op, uint64_t a, uint64_t b, unsigned size, uint64_t *flags);

/* ---- emulate_string.c ---- */
enum emu_result emu_string(struct emu_ctx *);
/* ---- emulate_sse.c ---- */
enum emu_result emu_sse_mov(struct emu_ctx *);
/* ---- emulate.c ---- */
enum emu_result emu_port_check(struct emu_ctx *, uint16_t port, unsigned size);
