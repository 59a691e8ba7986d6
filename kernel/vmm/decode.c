/* x86 instruction decoder; see decode.h.  Opcode maps: Intel SDM vol 2 "Opcode Map", AMD APM vol 3 "Opcode and Operand Encodings". */
#include "kernel/vmm/decode.h"

#include <errno.h>
#include <string.h>

/*
 * One opcode = one word: bits 7:0 enum insn_op (with F_GROUP: index into groups[]), bits 11:8 immediate, flags above.  0 = no such instruction.
 */
enum {
    I_NONE, I_B = 1 << 8 /* byte, sign-extended */, I_Z = 2 << 8 /* 2 or 4 by operand size */, I_V = 3 << 8 /* 2, 4 or 8 */, I_W = 4 << 8 /* 2 */,
    I_O = 5 << 8 /* offset of address size */, I_P = 6 << 8 /* far pointer */, I_WB = 7 << 8 /* ENTER */, I_BB = 8 << 8 /* EXTRQ */,
    I_D = 9 << 8 /* 4 */, I_U = 10 << 8 /* byte, zero-extended */, I_MASK = 15 << 8,

    M        = 1 << 12,         /* ModRM follows */
    F_BYTE   = 1 << 13,         /* byte operands */
    F_TO     = 1 << 14,         /* r/m is the destination */
    F_LOCK   = 1 << 15,         /* LOCK allowed when r/m is memory */
    F_D64    = 1 << 16,         /* operand size 8 by default in 64-bit mode */
    F_F64    = 1 << 17,         /* operand size 8 in 64-bit mode, 4 elsewhere */
    F_NO64   = 1 << 18,         /* #UD in 64-bit mode */
    F_ACC    = 1 << 19,         /* r/m is the accumulator */
    F_OPREG  = 1 << 20,         /* r/m is the register in the opcode */
    F_GROUP  = 1 << 21,         /* ModRM.reg chooses from groups[] */
    F_FIXUP  = 1 << 22,         /* fixup() refines */
    F_ESC    = 1 << 23,         /* escape(): leads to another map */
    F_PREFIX = 1 << 24,
    F_MEM    = 1 << 25,         /* r/m must be memory */
    F_REG    = 1 << 26,         /* r/m is a register whatever ModRM.mod says */
    F_SRC1   = 1 << 27, F_SRC2 = 1 << 28,       /* r/m operand size 1 or 2 */
    F_IO     = 1 << 29,         /* operand size at most 4 */
};
#define O(op) INSN_##op
#define X     INSN_OTHER

enum { G1_B, G1_V, G1_BS, G2_C, G2_1, G3_B, G3_V, G4, G5, G6, G7, G8, G9, G11_B, G11_V, G1A, G12, G14, G15, G_SREG_ST, G_SREG_LD, G_UD };

#define ALU_GROUP(f) { \
    O(ADD) | (f) | F_LOCK, O(OR) | (f) | F_LOCK, O(ADC) | (f) | F_LOCK, O(SBB) | (f) | F_LOCK, \
    O(AND) | (f) | F_LOCK, O(SUB) | (f) | F_LOCK, O(XOR) | (f) | F_LOCK, O(CMP) | (f) }
#define ALL8(e) { e, e, e, e, e, e, e, e }

/* Entries keep M so that a group member needs nothing from its parent. */
static const uint32_t groups[][8] = {
    [G1_B]  = ALU_GROUP(M | F_BYTE | F_TO | I_B),
    [G1_V]  = ALU_GROUP(M | F_TO | I_Z),
    [G1_BS] = ALU_GROUP(M | F_TO | I_B),
    [G2_C]  = ALL8(X | M | I_B),
    [G2_1]  = ALL8(X | M),
    [G3_B]  = { O(TEST) | M | F_BYTE | F_TO | I_B, O(TEST) | M | F_BYTE | F_TO | I_B, O(NOT) | M | F_BYTE | F_TO | F_LOCK, O(NEG) | M | F_BYTE | F_TO | F_LOCK,
                X | M, X | M, X | M, X | M },
    [G3_V]  = { O(TEST) | M | F_TO | I_Z, O(TEST) | M | F_TO | I_Z, O(NOT) | M | F_TO | F_LOCK, O(NEG) | M | F_TO | F_LOCK, X | M, X | M, X | M, X | M },
    [G4]    = { O(INC) | M | F_BYTE | F_TO | F_LOCK, O(DEC) | M | F_BYTE | F_TO | F_LOCK },
    [G5]    = { O(INC) | M | F_TO | F_LOCK, O(DEC) | M | F_TO | F_LOCK, X | M | F_D64, X | M | F_MEM, X | M | F_D64, X | M | F_MEM, O(PUSH) | M | F_D64 },
    [G6]    = { X | M, X | M, X | M, X | M, X | M, X | M },
    [G7]    = { X | M | F_FIXUP, X | M | F_FIXUP, X | M | F_FIXUP, X | M | F_FIXUP, O(SMSW) | M | F_TO, X | M | F_FIXUP, O(LMSW) | M, O(INVLPG) | M | F_FIXUP },
    [G8]    = { 0, 0, 0, 0, O(BT) | M | F_TO | I_U, O(BTS) | M | F_TO | I_U | F_LOCK, O(BTR) | M | F_TO | I_U | F_LOCK, O(BTC) | M | F_TO | I_U | F_LOCK },
    [G9]    = { 0, O(CMPXCHG8B) | M | F_TO | F_LOCK | F_MEM | F_FIXUP, 0, X | M | F_MEM, X | M | F_MEM, X | M | F_MEM, X | M, X | M },
    [G11_B] = { O(MOV) | M | F_BYTE | F_TO | I_B, 0, 0, 0, 0, 0, 0, X | M | I_B | F_FIXUP },
    [G11_V] = { O(MOV) | M | F_TO | I_Z, 0, 0, 0, 0, 0, 0, X | M | I_Z | F_FIXUP },
    [G1A]   = { O(POP) | M | F_TO | F_D64 },
    [G12]   = { 0, 0, X | M | I_B, 0, X | M | I_B, 0, X | M | I_B },
    [G14]   = { 0, 0, X | M | I_B, X | M | I_B, 0, 0, X | M | I_B, X | M | I_B },
    [G15]   = { X | M, X | M, X | M, X | M, X | M, X | M, X | M | F_FIXUP, X | M | F_FIXUP },
    [G_SREG_ST] = { X | M, X | M, X | M, X | M, X | M, X | M },
    [G_SREG_LD] = { X | M, 0, X | M, X | M, X | M, X | M },
    [G_UD]  = { 0 },
};

#define GRP(g) (M | F_GROUP | (g))
#define ALU(b, op, lock) \
    [b] = O(op) | M | F_BYTE | F_TO | (lock), [b + 1] = O(op) | M | F_TO | (lock), [b + 2] = O(op) | M | F_BYTE, [b + 3] = O(op) | M, \
    [b + 4] = O(op) | F_BYTE | F_TO | F_ACC | I_B, [b + 5] = O(op) | F_TO | F_ACC | I_Z

static const uint32_t map1[256] = {
    ALU(0x00, ADD, F_LOCK), ALU(0x08, OR, F_LOCK), ALU(0x10, ADC, F_LOCK), ALU(0x18, SBB, F_LOCK),
    ALU(0x20, AND, F_LOCK), ALU(0x28, SUB, F_LOCK), ALU(0x30, XOR, F_LOCK), ALU(0x38, CMP, 0),
    [0x06] = X | F_NO64, [0x07] = X | F_NO64, [0x0e] = X | F_NO64, [0x0f] = X | F_ESC, [0x16] = X | F_NO64, [0x17] = X | F_NO64,
    [0x1e] = X | F_NO64, [0x1f] = X | F_NO64, [0x27] = X | F_NO64, [0x2f] = X | F_NO64, [0x37] = X | F_NO64, [0x3f] = X | F_NO64,
    [0x26] = F_PREFIX, [0x2e] = F_PREFIX, [0x36] = F_PREFIX, [0x3e] = F_PREFIX,
    [0x40 ... 0x47] = O(INC) | F_OPREG | F_TO, [0x48 ... 0x4f] = O(DEC) | F_OPREG | F_TO,
    [0x50 ... 0x57] = O(PUSH) | F_OPREG | F_D64, [0x58 ... 0x5f] = O(POP) | F_OPREG | F_D64 | F_TO,
    [0x60] = X | F_NO64, [0x61] = X | F_NO64, [0x62] = X | M | F_MEM | F_ESC, [0x63] = X | M | F_FIXUP,
    [0x64 ... 0x67] = F_PREFIX,
    [0x68] = O(PUSH) | F_D64 | I_Z, [0x69] = X | M | I_Z, [0x6a] = O(PUSH) | F_D64 | I_B, [0x6b] = X | M | I_B,
    [0x6c] = O(INS) | F_BYTE, [0x6d] = O(INS) | F_IO, [0x6e] = O(OUTS) | F_BYTE, [0x6f] = O(OUTS) | F_IO,
    [0x70 ... 0x7f] = X | I_B,
    [0x80] = GRP(G1_B), [0x81] = GRP(G1_V), [0x82] = GRP(G1_B) | F_NO64, [0x83] = GRP(G1_BS),
    [0x84] = O(TEST) | M | F_BYTE | F_TO, [0x85] = O(TEST) | M | F_TO,
    [0x86] = O(XCHG) | M | F_BYTE | F_TO | F_LOCK, [0x87] = O(XCHG) | M | F_TO | F_LOCK,
    [0x88] = O(MOV) | M | F_BYTE | F_TO, [0x89] = O(MOV) | M | F_TO, [0x8a] = O(MOV) | M | F_BYTE, [0x8b] = O(MOV) | M,
    [0x8c] = GRP(G_SREG_ST), [0x8d] = X | M | F_MEM, [0x8e] = GRP(G_SREG_LD), [0x8f] = GRP(G1A) | F_ESC,
    [0x90] = O(XCHG) | F_OPREG | F_TO | F_FIXUP, [0x91 ... 0x97] = O(XCHG) | F_OPREG | F_TO,
    [0x98 ... 0x99] = X, [0x9a] = X | F_NO64 | I_P, [0x9b] = X, [0x9c ... 0x9d] = X | F_D64, [0x9e ... 0x9f] = X,
    [0xa0] = O(MOV) | F_BYTE | I_O, [0xa1] = O(MOV) | I_O, [0xa2] = O(MOV) | F_BYTE | F_TO | I_O, [0xa3] = O(MOV) | F_TO | I_O,
    [0xa4] = O(MOVS) | F_BYTE, [0xa5] = O(MOVS), [0xa6] = O(CMPS) | F_BYTE, [0xa7] = O(CMPS),
    [0xa8] = O(TEST) | F_BYTE | F_TO | F_ACC | I_B, [0xa9] = O(TEST) | F_TO | F_ACC | I_Z,
    [0xaa] = O(STOS) | F_BYTE, [0xab] = O(STOS), [0xac] = O(LODS) | F_BYTE, [0xad] = O(LODS), [0xae] = O(SCAS) | F_BYTE, [0xaf] = O(SCAS),
    [0xb0 ... 0xb7] = O(MOV) | F_BYTE | F_TO | F_OPREG | I_B, [0xb8 ... 0xbf] = O(MOV) | F_TO | F_OPREG | I_V,
    [0xc0] = GRP(G2_C), [0xc1] = GRP(G2_C), [0xc2] = X | F_D64 | I_W, [0xc3] = X | F_D64,
    [0xc4] = X | M | F_MEM | F_ESC, [0xc5] = X | M | F_MEM | F_ESC, [0xc6] = GRP(G11_B), [0xc7] = GRP(G11_V),
    [0xc8] = X | F_D64 | I_WB, [0xc9] = X | F_D64, [0xca] = X | I_W, [0xcb] = X, [0xcc] = X, [0xcd] = X | I_B, [0xce] = X | F_NO64, [0xcf] = X,
    [0xd0 ... 0xd3] = GRP(G2_1), [0xd4] = X | F_NO64 | I_B, [0xd5] = X | F_NO64 | I_B, [0xd6] = X | F_NO64, [0xd7] = X,
    [0xd8 ... 0xdf] = X | M,
    [0xe0 ... 0xe3] = X | I_B,
    [0xe4] = O(IN) | F_BYTE | I_U, [0xe5] = O(IN) | F_IO | I_U, [0xe6] = O(OUT) | F_BYTE | I_U, [0xe7] = O(OUT) | F_IO | I_U,
    [0xe8 ... 0xe9] = X | F_D64 | I_Z, [0xea] = X | F_NO64 | I_P, [0xeb] = X | I_B,
    [0xec] = O(IN) | F_BYTE, [0xed] = O(IN) | F_IO, [0xee] = O(OUT) | F_BYTE, [0xef] = O(OUT) | F_IO,
    [0xf0] = F_PREFIX, [0xf1] = X, [0xf2 ... 0xf3] = F_PREFIX, [0xf4] = O(HLT), [0xf5] = X, [0xf6] = GRP(G3_B), [0xf7] = GRP(G3_V),
    [0xf8 ... 0xfd] = X, [0xfe] = GRP(G4), [0xff] = GRP(G5),
};

#define SSE (INSN_SSE_MOV | M | F_FIXUP)

static const uint32_t map2[256] = {     /* 0F xx */
    [0x00] = GRP(G6), [0x01] = GRP(G7), [0x02 ... 0x03] = X | M, [0x05] = X, [0x06] = O(CLTS), [0x07] = X, [0x08] = O(INVD), [0x09] = O(WBINVD),
    [0x0d] = O(NOP) | M, [0x0e] = X, [0x0f] = X | M | I_B,
    [0x10 ... 0x13] = SSE, [0x14 ... 0x15] = X | M, [0x16 ... 0x17] = SSE, [0x18 ... 0x1f] = O(NOP) | M,
    [0x20] = O(MOV_CR) | M | F_REG | F_F64 | F_TO | F_FIXUP, [0x21] = O(MOV_DR) | M | F_REG | F_F64 | F_TO | F_FIXUP,
    [0x22] = O(MOV_CR) | M | F_REG | F_F64 | F_FIXUP, [0x23] = O(MOV_DR) | M | F_REG | F_F64 | F_FIXUP,
    [0x28 ... 0x29] = SSE, [0x2a] = X | M, [0x2b] = SSE, [0x2c ... 0x2f] = X | M,
    [0x30] = O(WRMSR), [0x31] = O(RDTSC), [0x32] = O(RDMSR), [0x33] = O(RDPMC), [0x34 ... 0x35] = X, [0x37] = X, [0x38] = X | F_ESC, [0x3a] = X | F_ESC,
    [0x40 ... 0x4f] = X | M, [0x50 ... 0x6d] = X | M, [0x6e ... 0x6f] = SSE,
    [0x70] = X | M | I_B, [0x71 ... 0x72] = GRP(G12), [0x73] = GRP(G14), [0x74 ... 0x76] = X | M, [0x77] = X, [0x78] = X | M | F_FIXUP, [0x79] = X | M,
    [0x7c ... 0x7d] = X | M, [0x7e ... 0x7f] = SSE,
    [0x80 ... 0x8f] = X | F_D64 | I_Z, [0x90 ... 0x9f] = X | M | F_BYTE,
    [0xa0 ... 0xa1] = X | F_D64, [0xa2] = O(CPUID), [0xa3] = O(BT) | M | F_TO, [0xa4] = X | M | I_B, [0xa5] = X | M,
    [0xa8 ... 0xa9] = X | F_D64, [0xaa] = X, [0xab] = O(BTS) | M | F_TO | F_LOCK, [0xac] = X | M | I_B, [0xad] = X | M, [0xae] = GRP(G15), [0xaf] = X | M,
    [0xb0] = O(CMPXCHG) | M | F_BYTE | F_TO | F_LOCK, [0xb1] = O(CMPXCHG) | M | F_TO | F_LOCK, [0xb2] = X | M | F_MEM, [0xb3] = O(BTR) | M | F_TO | F_LOCK,
    [0xb4 ... 0xb5] = X | M | F_MEM, [0xb6] = O(MOVZX) | M | F_SRC1, [0xb7] = O(MOVZX) | M | F_SRC2, [0xb8] = X | M | F_FIXUP, [0xb9] = 0,
    [0xba] = GRP(G8), [0xbb] = O(BTC) | M | F_TO | F_LOCK, [0xbc ... 0xbd] = X | M, [0xbe] = O(MOVSX) | M | F_SRC1, [0xbf] = O(MOVSX) | M | F_SRC2,
    [0xc0] = O(XADD) | M | F_BYTE | F_TO | F_LOCK, [0xc1] = O(XADD) | M | F_TO | F_LOCK, [0xc2] = X | M | I_B, [0xc3] = O(MOVNTI) | M | F_TO | F_MEM | F_FIXUP,
    [0xc4 ... 0xc6] = X | M | I_B, [0xc7] = GRP(G9), [0xc8 ... 0xcf] = X,
    [0xd0 ... 0xd5] = X | M, [0xd6] = SSE, [0xd7 ... 0xe6] = X | M, [0xe7] = SSE, [0xe8 ... 0xef] = X | M, [0xf0] = SSE, [0xf1 ... 0xfe] = X | M,
};

static const uint32_t map38[256] = {    /* 0F 38 xx */
    [0x00 ... 0x0b] = X | M, [0x10] = X | M, [0x14 ... 0x15] = X | M, [0x17] = X | M, [0x1c ... 0x1e] = X | M, [0x20 ... 0x25] = X | M,
    [0x28 ... 0x29] = X | M, [0x2a] = SSE, [0x2b] = X | M, [0x30 ... 0x41] = X | M, [0x80 ... 0x82] = X | M | F_MEM,
    [0xc8 ... 0xcd] = X | M, [0xcf] = X | M, [0xd8] = X | M, [0xdb ... 0xdf] = X | M,
    [0xf0] = O(MOVBE) | M | F_FIXUP, [0xf1] = O(MOVBE) | M | F_TO | F_FIXUP, [0xf5 ... 0xf6] = X | M, [0xf8 ... 0xf9] = X | M | F_MEM,
    [0xfa ... 0xfc] = X | M,
};

static const uint32_t map3a[256] = {    /* 0F 3A xx */
    [0x08 ... 0x0f] = X | M | I_B, [0x14 ... 0x17] = X | M | I_B, [0x20 ... 0x22] = X | M | I_B, [0x40 ... 0x42] = X | M | I_B, [0x44] = X | M | I_B,
    [0x60 ... 0x63] = X | M | I_B, [0xcc] = X | M | I_B, [0xce ... 0xcf] = X | M | I_B, [0xdf] = X | M | I_B, [0xf0] = X | M | I_B,
};

/* 0F 01 with a register operand; /1 /2 /3 /5 /7 by ModRM. */
static uint32_t group7_reg(uint8_t modrm)
{
    switch (modrm) {
    case 0xc1: return O(VMCALL);
    case 0xc8: return O(MONITOR);
    case 0xc9: return O(MWAIT);
    case 0xd1: return O(XSETBV);
    case 0xd9: return O(VMMCALL);
    case 0xf9: return O(RDTSCP);
    case 0xc0: case 0xc2 ... 0xc5: case 0xca ... 0xcb: case 0xcf ... 0xd0: case 0xd4 ... 0xd8: case 0xda ... 0xdf: case 0xe8 ... 0xea:
    case 0xec ... 0xef: case 0xf8: case 0xfa ... 0xff:
        return X;
    }
    return 0;
}

/* Vector moves by opcode and mandatory prefix: bytes moved; 0 = not a move of this kind (another instruction, or MMX). */
static const struct sse_form { uint16_t opcode; uint8_t size[4] /* none 66 F3 F2 */; bool to, mem_only; } sse_forms[] = {
    { 0x0f10, { 16, 16, 4, 8 }, false, false }, { 0x0f11, { 16, 16, 4, 8 }, true, false },      /* MOVUPS MOVUPD MOVSS MOVSD */
    { 0x0f12, { 8, 8 }, false, false }, { 0x0f13, { 8, 8 }, true, true },                       /* MOVLPS MOVLPD, MOVHLPS */
    { 0x0f16, { 8, 8 }, false, false }, { 0x0f17, { 8, 8 }, true, true },                       /* MOVHPS MOVHPD, MOVLHPS */
    { 0x0f28, { 16, 16 }, false, false }, { 0x0f29, { 16, 16 }, true, false },                  /* MOVAPS MOVAPD */
    { 0x0f2b, { 16, 16 }, true, true }, { 0x0fe7, { 0, 16 }, true, true },                      /* MOVNTPS MOVNTPD MOVNTDQ */
    { 0x0f6e, { 0, 4 }, false, false }, { 0x0f7e, { 0, 4, 8 }, true, false },                   /* MOVD/MOVQ; F3 0F 7E loads: sse_move() */
    { 0x0f6f, { 0, 16, 16 }, false, false }, { 0x0f7f, { 0, 16, 16 }, true, false },            /* MOVDQA MOVDQU */
    { 0x0fd6, { 0, 8 }, true, false }, { 0x0ff0, { 0, 0, 0, 16 }, false, true },                /* MOVQ LDDQU */
    { 0x382a, { 0, 16 }, false, true },                                                         /* MOVNTDQA */
};

/*
 * What the prefixes said, in one word so that the hot path keeps it in a register: bits 3:0 index opsize_of[] (66, REX.W, mode), 4:2 addrsize_of[]
 * (mode, 67), 15:8 the REX byte, 23:16 segment override + 1.
 */
enum { S_66 = 1, S_W = 2, S_MODE = 2 /* shift */, S_67 = 16, S_REX = 8 /* shift */, S_SEG = 16 /* shift */ };

static const uint8_t opsize_of[16] = {
    [MODE_16 << 2] = 2, 4, 2, 4,
    [MODE_32 << 2] = 4, 2, 4, 2,
    [MODE_64 << 2] = 4, 2, 8, 8,
};
static const uint8_t addrsize_of[8] = { [MODE_16] = 2, [MODE_32] = 4, [MODE_64] = 8, [4 + MODE_16] = 4, [4 + MODE_32] = 2, [4 + MODE_64] = 4 };

static inline enum cpu_mode mode_of(uint32_t s) { return s >> S_MODE & 3; }
static inline bool rex_w(uint32_t s) { return s & S_W; }
static inline uint8_t ext_reg(uint32_t s) { return s >> (S_REX - 1) & 8; }     /* REX.R, X, B as bit 3 of a register number */
static inline uint8_t ext_index(uint32_t s) { return s >> (S_REX - 2) & 8; }
static inline uint8_t ext_base(uint32_t s) { return s >> (S_REX - 3) & 8; }

static uint32_t sse_move(uint32_t s, struct insn *i, bool mem)
{
    unsigned col = i->pfx == 0x66 ? 1 : i->pfx == 0xf3 ? 2 : i->pfx == 0xf2 ? 3 : 0;

    for (unsigned n = 0; n < ARRAY_SIZE(sse_forms); n++) {
        const struct sse_form *f = &sse_forms[n];
        if (f->opcode != i->opcode)
            continue;
        if (!f->size[col])
            return X | M;
        if (!mem && (f->mem_only || (col && (i->opcode == 0x0f12 || i->opcode == 0x0f16))))
            return i->opcode == 0x0fe7 || i->opcode == 0x0ff0 ? X | M : 0;
        i->opsize = f->size[col] == 4 && (i->opcode == 0x0f6e || i->opcode == 0x0f7e) && rex_w(s) ? 8 : f->size[col];
        return O(SSE_MOV) | M | (f->to && !(i->opcode == 0x0f7e && col == 2) ? F_TO : 0);
    }
    return X | M;
}

/* Opcodes that depend on ModRM, mode or mandatory prefix beyond the tables. */
static uint32_t fixup(uint32_t s, struct insn *i, uint32_t e, uint8_t modrm)
{
    uint8_t reg = modrm >> 3 & 7;
    bool mem = modrm < 0xc0;

    switch (i->opcode) {
    case 0x63:
        if (mode_of(s) != MODE_64)
            return X | M;       /* ARPL */
        i->src_size = i->opsize == 2 ? 2 : 4;
        return O(MOVSXD) | M;
    case 0x90:
        return ext_base(s) ? e : i->rep == REP_E ? O(PAUSE) : O(NOP);
    case 0xc6: case 0xc7:       /* XABORT, XBEGIN */
        return modrm == 0xf8 ? e : 0;
    case 0x0f01:
        if (mem)
            return reg != 5 ? e : i->pfx == 0xf3 ? X | M : 0;
        return group7_reg(modrm) ? group7_reg(modrm) | M : 0;
    case 0x0f20: case 0x0f22:
        if (i->lock && !i->reg) {       /* LOCK MOV CR0 is CR8 on AMD ("AltMovCr8") */
            i->lock = false;
            i->reg = 8;
        }
        return 0x11d >> i->reg & 1 ? e : 0;
    case 0x0f21: case 0x0f23:
        return i->reg < 8 ? e : 0;
    case 0x0f78:
        return i->pfx == 0x66 || i->pfx == 0xf2 ? X | M | I_BB : i->pfx ? 0 : X | M;
    case 0x0fae:                /* /6 and /7 with memory: XSAVEOPT, CLWB, CLFLUSH, CLFLUSHOPT */
        return mem && !(reg == 6 && !i->pfx) && i->pfx != 0xf3 ? O(NOP) | M : X | M;
    case 0x0fb8:
        return i->pfx == 0xf3 ? X | M : 0;
    case 0x0fc3:
        return i->pfx ? 0 : e;
    case 0x0fc7:
        i->opsize = rex_w(s) ? 16 : 8;
        return e;
    case 0x38f0: case 0x38f1:
        return i->pfx == 0xf2 ? X | M : i->pfx == 0xf3 ? 0 : e | F_MEM;
    }
    return (e & 0xff) == INSN_SSE_MOV ? sse_move(s, i, mem) : e;
}

static inline unsigned operand_size(uint32_t s, uint32_t e)
{
    unsigned size = opsize_of[s & 15];

    if (e & F_BYTE)
        return 1;
    if (unlikely(e & (F_D64 | F_F64 | F_IO))) {
        if (e & F_IO)
            return MIN(size, 4u);
        if (e & F_F64)
            return mode_of(s) == MODE_64 ? 8 : 4;
        if (mode_of(s) == MODE_64 && size == 4)
            return 8;
    }
    return size;
}

/* Little-endian reads, sign-extended; the buffer is long enough for any. */
static inline int64_t le16(const uint8_t *p) { int16_t v; memcpy(&v, p, 2); return v; }
static inline int64_t le32(const uint8_t *p) { int32_t v; memcpy(&v, p, 4); return v; }
static inline int64_t le64(const uint8_t *p) { int64_t v; memcpy(&v, p, 8); return v; }
static inline int64_t le_z(const uint8_t *p, unsigned size) { return size == 2 ? le16(p) : le32(p); }

static const uint8_t *immediate(struct insn *i, uint32_t e, const uint8_t *p)
{
    unsigned size = i->opsize, z = size == 2 ? 2 : 4;

    i->imm_valid = (e & I_MASK) != I_O;
    switch (e & I_MASK) {
    case I_B: i->imm = (int8_t)*p; return p + 1;
    case I_U: i->imm = *p; return p + 1;
    case I_Z: i->imm = le_z(p, size); return p + z;
    case I_V: i->imm = size == 8 ? le64(p) : le_z(p, size); return p + size;
    case I_W: i->imm = le16(p); return p + 2;
    case I_D: i->imm = le32(p); return p + 4;
    case I_O:
        i->mem = true;
        i->disp = i->addr_size == 8 ? le64(p) : i->addr_size == 4 ? (uint32_t)le32(p) : (uint16_t)le16(p);
        return p + i->addr_size;
    case I_P: return p + z + 2;
    case I_WB: return p + 3;
    case I_BB: return p + 2;
    }
    return p;
}

/* 16-bit forms: base and index by r/m; BP-based ones default to SS. */
static const uint8_t *modrm_16(struct insn *i, uint8_t mod, uint8_t rm, const uint8_t *p)
{
    static const uint8_t base[8] = { 3, 3, 5, 5, 6, 7, 5, 3 }, index[8] = { 6, 7, 6, 7, INSN_NO_REG, INSN_NO_REG, INSN_NO_REG, INSN_NO_REG };

    if (mod == 0 && rm == 6) {
        i->disp = (uint16_t)le16(p);
        return p + 2;
    }
    i->base = base[rm];
    i->index = index[rm];
    if (base[rm] == 5)
        i->seg = SEG_SS;
    if (mod)
        i->disp = mod == 1 ? (int8_t)*p : le16(p);
    return p + mod;
}

static inline const uint8_t *modrm_mem(uint32_t s, struct insn *i, uint8_t modrm, const uint8_t *p)
{
    uint8_t mod = modrm >> 6, rm = modrm & 7;

    i->mem = true;
    if (unlikely(i->addr_size == 2))
        return modrm_16(i, mod, rm, p);
    if (rm == 4) {
        uint8_t sib = *p++, index = (sib >> 3 & 7) | ext_index(s);
        i->scale = 1 << (sib >> 6);
        if (index != 4)
            i->index = index;
        rm = sib & 7;
    } else if (rm == 5 && mod == 0 && mode_of(s) == MODE_64) {
        i->base = INSN_BASE_RIP;
    }
    if (rm == 5 && mod == 0) {
        i->disp = le32(p);
        return p + 4;
    }
    i->base = rm | ext_base(s);
    if ((i->base & ~1) == 4)
        i->seg = SEG_SS;
    if (mod == 1)
        i->disp = (int8_t)*p++;
    else if (mod == 2)
        i->disp = le32(p), p += 4;
    return p;
}

/* VEX, EVEX and XOP: only their length matters here.  `op` is the opcode byte. */
static uint32_t vector_map(uint32_t s, struct insn *i, unsigned map, unsigned kind, uint8_t op)
{
    i->opcode = kind << 8 | op;
    if ((s & S_66) || (s >> S_REX & 0xff) || i->rep || i->lock)
        return 0;
    switch (map) {
    case 1:
        if (op == 0x77)
            return kind == 0x62 ? 0 : X;
        return X | M | ((op >= 0x70 && op <= 0x73) || op == 0xc2 || (op >= 0xc4 && op <= 0xc6) ? I_B : 0);
    case 2: return X | M;
    case 3: return X | M | I_B;
    case 5: case 6: return kind == 0x62 ? X | M : 0;
    case 8: return X | M | I_B;         /* XOP maps */
    case 9: return X | M;
    case 10: return X | M | I_D;
    }
    return 0;
}

/* From an escape or prefix-like opcode `b`, with *pp behind it, to the entry of the instruction. */
static uint32_t escape(uint32_t s, struct insn *i, uint32_t e, uint8_t b, const uint8_t **pp)
{
    const uint8_t *p = *pp;
    uint8_t map = *p & 0x1f;

    switch (b) {
    case 0x0f:
        i->pfx = i->rep == REP_E ? 0xf3 : i->rep == REP_NE ? 0xf2 : s & S_66 ? 0x66 : 0;
        if (*p == 0x38 || *p == 0x3a) {
            *pp = p + 2;
            i->opcode = *p << 8 | p[1];
            return *p == 0x38 ? map38[p[1]] : map3a[p[1]];
        }
        *pp = p + 1;
        i->opcode = 0x0f00 | *p;
        return map2[*p];
    case 0xc4: case 0xc5:
        if (mode_of(s) != MODE_64 && *p < 0xc0)
            return e;           /* LES, LDS */
        p += b == 0xc4 ? 2 : 1;
        *pp = p + 1;
        return vector_map(s, i, b == 0xc5 ? 1 : map >= 1 && map <= 3 ? map : 0, 0xc4, *p);
    case 0x62:
        if (mode_of(s) != MODE_64 && *p < 0xc0)
            return e;           /* BOUND */
        *pp = p + 4;
        return (*p & 8) || !(p[1] & 4) ? 0 : vector_map(s, i, *p & 7, 0x62, p[3]);
    case 0x8f:
        if (map < 8)
            return e;           /* POP */
        *pp = p + 3;
        return vector_map(s, i, map <= 10 ? map : 0, 0x8f, p[2]);
    }
    return e;
}

static uint32_t legacy_prefix(uint32_t s, struct insn *i, uint8_t b)
{
    s &= ~(0xffu << S_REX | S_W);       /* REX counts only right before the opcode */
    switch (b) {
    case 0x66: return s | S_66;
    case 0x67: return s | S_67;
    case 0xf0: i->lock = true; return s;
    case 0xf2: i->rep = REP_NE; return s;
    case 0xf3: i->rep = REP_E; return s;
    case 0x64: return (s & ~(0xffu << S_SEG)) | (SEG_FS + 1) << S_SEG;
    case 0x65: return (s & ~(0xffu << S_SEG)) | (SEG_GS + 1) << S_SEG;
    }
    /* 26 2E 36 3E: null prefixes in 64-bit mode. */
    return mode_of(s) == MODE_64 ? s : (s & ~(0xffu << S_SEG)) | ((b >> 3 & 3) + 1) << S_SEG;
}

static int bad(unsigned used, unsigned n)
{
    return used <= n ? -EILSEQ : n < INSN_MAX_LEN ? -ENODATA : -E2BIG;
}

static __attribute__((noinline)) int decode_any(struct insn *i, enum cpu_mode mode, const uint8_t *bytes, unsigned n)
{
    uint8_t buf[32], b, m = 0;          /* no bound check per byte: the longest reach is 28, and the end decides */
    const uint8_t *p = buf;
    uint32_t s = mode << S_MODE, e;

    *i = (struct insn){ .seg = SEG_DS, .base = INSN_NO_REG, .index = INSN_NO_REG, .scale = 1 };
    memset(buf + 15, 0, sizeof buf - 15);
    if (likely(n >= INSN_MAX_LEN)) {
        n = INSN_MAX_LEN;
        memcpy(buf, bytes, INSN_MAX_LEN);
    } else {
        memset(buf, 0, 15);
        memcpy(buf, bytes, n);
    }
    for (;;) {
        b = *p++;
        e = map1[b];
        if (unlikely(e & F_PREFIX))
            s = legacy_prefix(s, i, b);
        else if (mode == MODE_64 && (b & 0xf0) == 0x40)
            s = (s & ~(0xffu << S_REX | S_W)) | b << S_REX | (b >> 2 & S_W);
        else
            break;
        if (p >= buf + n)
            return bad(n + 1, n);
    }
    i->opcode = b;
    if (unlikely(e & (F_ESC | F_NO64))) {
        if (e & F_ESC)
            e = escape(s, i, e, b, &p);
        if ((e & F_NO64) && mode == MODE_64)
            e = 0;
    }
    if (unlikely(!e))
        return bad(p - buf, n);
    i->rex = s >> S_REX & 0xff;
    i->addr_size = addrsize_of[s >> S_MODE & 7];
    if (e & M) {
        m = *p++;
        i->reg = (m >> 3 & 7) | ext_reg(s);
        if (e & F_GROUP)
            e = groups[e & 0xff][m >> 3 & 7];
    }
    i->opsize = operand_size(s, e);
    if (unlikely(e & (F_FIXUP | F_OPREG))) {
        if (e & F_FIXUP)
            e = fixup(s, i, e, m);
        if (e & F_OPREG)
            i->rm = (b & 7) | ext_base(s);
    }
    if (e & M) {
        if (m < 0xc0 && !(e & F_REG))
            p = modrm_mem(s, i, m, p);
        else
            i->rm = (m & 7) | ext_base(s);
    }
    if (e & I_MASK)
        p = immediate(i, e, p);
    i->len = p - buf;
    i->op = e & 0xff;
    i->to_mem = e & F_TO;
    if (i->src_size == 0)
        i->src_size = e & F_SRC1 ? 1 : e & F_SRC2 ? 2 : i->opsize;
    if (unlikely(s >> S_SEG))
        i->seg = (s >> S_SEG) - 1;
    if (unlikely(!i->op || i->len > n || ((e & F_MEM) && !i->mem) || (i->lock && !((e & F_LOCK) && i->mem))))
        return bad(i->len, n);
    return 0;
}

/*
 * The forms that cause exits by the million, without legacy prefixes (so 15 bytes always suffice): MOV between register and memory, IN, OUT, CPUID, RDMSR,
 * WRMSR, HLT.  Same result as the tables at half the price; false: not one of them.
 */
static inline bool decode_quick(struct insn *i, enum cpu_mode mode, const uint8_t *bytes)
{
    const uint8_t *p = bytes;
    uint32_t s = mode << S_MODE;
    unsigned op = INSN_MOV;
    uint8_t b = *p++;

    if (mode == MODE_64 && (b & 0xf0) == 0x40) {
        s |= b << S_REX | (b >> 2 & S_W);
        b = *p++;
    }
    *i = (struct insn){ .seg = SEG_DS, .base = INSN_NO_REG, .index = INSN_NO_REG, .scale = 1 };
    i->opcode = b;
    i->rex = s >> S_REX;
    i->addr_size = addrsize_of[mode];
    i->opsize = i->src_size = b & 1 ? opsize_of[s & 15] : 1;
    if (likely((b & 0xfc) == 0x88)) {
        uint8_t m = *p++;
        if (unlikely(m >= 0xc0 || mode == MODE_16))
            return false;
        i->reg = (m >> 3 & 7) | ext_reg(s);
        i->to_mem = !(b & 2);
        p = modrm_mem(s, i, m, p);
    } else if (b == 0x0f) {
        b = *p++;
        op = b == 0xa2 ? INSN_CPUID : b == 0x32 ? INSN_RDMSR : b == 0x30 ? INSN_WRMSR : INSN_NONE;
        if (!op)
            return false;
        i->opcode = 0x0f00 | b;
        i->opsize = i->src_size = opsize_of[s & 15];
    } else if ((b & 0xf4) == 0xe4) {
        op = b & 2 ? INSN_OUT : INSN_IN;
        i->opsize = i->src_size = MIN(i->opsize, 4);
        if (!(b & 8)) {
            i->imm = *p++;
            i->imm_valid = true;
        }
    } else if (b == 0xf4) {
        op = INSN_HLT;
        i->opsize = i->src_size = opsize_of[s & 15];
    } else {
        return false;
    }
    i->op = op;
    i->len = p - bytes;
    return true;
}

int insn_decode(struct insn *i, enum cpu_mode mode, const uint8_t *bytes, unsigned n)
{
    if (likely(n >= INSN_MAX_LEN) && likely(decode_quick(i, mode, bytes)))
        return 0;
    return decode_any(i, mode, bytes, n);
}
