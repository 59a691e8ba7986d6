/*
 * x86 instruction decoder: bytes → struct insn.  Pure, table driven, no memory, any input (hostile).  Intel SDM vol 2 "Instruction Format";
 * AMD APM vol 3 "Instruction Encoding".
 *
 * The length is right for every instruction of the legacy, VEX, EVEX and XOP maps.  Validity is exact for what has an op of its own and for the
 * integer maps; of vector instructions (INSN_OTHER) only the opcode is checked.  Where the vendors differ (66 before near branches in 64-bit mode)
 * AMD's rule is followed: such an instruction is never emulated.
 */
#pragma once
#include "kernel/lib/base.h"

enum cpu_mode { MODE_16, MODE_32, MODE_64 };    /* operand/address default: CS.L, CS.D; real and virtual-8086 mode are MODE_16 with real = true */

enum insn_op {
    INSN_NONE, INSN_MOV, INSN_MOVZX, INSN_MOVSX, INSN_MOVSXD, INSN_MOVS, INSN_STOS, INSN_LODS, INSN_CMPS, INSN_SCAS, INSN_INS, INSN_OUTS,
    INSN_ADD, INSN_OR, INSN_ADC, INSN_SBB, INSN_AND, INSN_SUB, INSN_XOR, INSN_CMP, INSN_TEST, INSN_XCHG, INSN_XADD, INSN_CMPXCHG, INSN_CMPXCHG8B,
    INSN_INC, INSN_DEC, INSN_NOT, INSN_NEG, INSN_BT, INSN_BTS, INSN_BTR, INSN_BTC, INSN_PUSH, INSN_POP, INSN_MOVBE, INSN_MOVNTI,
    INSN_IN, INSN_OUT, INSN_CPUID, INSN_RDMSR, INSN_WRMSR, INSN_HLT, INSN_RDTSC, INSN_RDTSCP, INSN_RDPMC, INSN_INVD, INSN_WBINVD, INSN_XSETBV,
    INSN_VMMCALL, INSN_VMCALL, INSN_MOV_CR, INSN_MOV_DR, INSN_CLTS, INSN_LMSW, INSN_SMSW, INSN_INVLPG, INSN_PAUSE, INSN_MONITOR, INSN_MWAIT,
    INSN_SSE_MOV,       /* 16-byte and smaller vector moves (MOVAPS/MOVUPS/MOVDQA/MOVDQU/MOVQ/MOVD/MOVSS/MOVLPS…): see opcode */
    INSN_NOP,           /* NOP, PREFETCH*, CLFLUSH*, CLWB: nothing that a device or the CPU model sees */
    INSN_OTHER,         /* decoded to its length, no semantics here */
    INSN_OPS
};

enum { REP_NONE, REP_E, REP_NE };       /* F3, F2 */
enum seg { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_LDTR, SEG_TR, SEG_COUNT };

/*
 * Operand forms: r/m is `mem` or register `rm`; to_mem: r/m is the destination, else `reg`.  imm_valid: the source is `imm`.  Forms with a fixed
 * register (accumulator, opcode register) come out as r/m forms with mem = false.  XCHG, XADD, CMPXCHG: r/m and reg.
 * IN/OUT: port is imm when imm_valid, else DX.  MOV_CR/MOV_DR: reg = control register, rm = general register, to_mem = read of the control register.
 * Byte operands (opsize or src_size 1): registers 4..7 are AH CH DH BH unless `rex`.
 */
struct insn {
    enum insn_op op;
    uint8_t len;                /* whole instruction, 1 .. 15 */
    uint8_t opsize;             /* operand bytes: 1, 2, 4, 8, 16; SSE_MOV: bytes moved */
    uint8_t src_size;           /* MOVZX/MOVSX/MOVSXD: bytes of the r/m operand; else = opsize */
    uint8_t addr_size;          /* 2, 4, 8 */
    uint8_t seg;                /* effective segment of the memory operand (of rSI for string instructions), overrides applied */
    uint8_t rep;
    uint8_t reg;                /* ModRM.reg with REX.R */
    uint8_t rm;                 /* register operand if !mem */
    uint8_t base, index, scale; /* 0xff = none; base 16 = RIP (of the next instruction); scale 1, 2, 4, 8 */
    bool mem, to_mem, lock, rex, imm_valid;
    uint8_t pfx;                /* mandatory prefix: 0, 0x66, 0xf3, 0xf2 */
    uint16_t opcode;            /* 00xx one-byte map, 0Fxx, 38xx and 3Axx for 0F 38 and 0F 3A, C4xx/62xx/8Fxx for VEX/EVEX/XOP */
    int64_t disp, imm;          /* imm sign-extended as the operation needs */
};
_Static_assert(sizeof(struct insn) == 40, "no padding: kept in caches and compared as a whole");

enum { INSN_NO_REG = 0xff, INSN_BASE_RIP = 16, INSN_MAX_LEN = 15 };

/*
 * 0: *out valid.  -ENODATA: more bytes needed than n gives (n < 15).  -EILSEQ: no such instruction (#UD).  -E2BIG: longer than 15 bytes (#GP).
 * Never reads beyond bytes[n-1].
 */
int insn_decode(struct insn *out, enum cpu_mode mode, const uint8_t *bytes, unsigned n);
