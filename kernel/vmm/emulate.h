/*
 * Instruction emulator behind callbacks: a library that tests and fuzzers run on Linux.  Semantics of everything that a guest uses on devices, with flags,
 * segment checks, page-crossing operands, REP with restart, and precise exceptions.  Intel SDM vol 2; AMD APM vol 3.
 *
 * No semantics here (EMU_UNHANDLED) for what belongs to the CPU model: CPUID, RDMSR, WRMSR, HLT, RDTSC(P), RDPMC, INVD, WBINVD, XSETBV, VMCALL, VMMCALL,
 * MOV CR/DR, CLTS, LMSW, INVLPG, MONITOR, MWAIT, and INSN_OTHER.
 */
#pragma once
#include "kernel/vmm/decode.h"

enum emu_result {
    EMU_OK,             /* done: registers, RIP and RFLAGS updated; look at trap_db */
    EMU_AGAIN,          /* REP made progress (registers updated, RIP unchanged) or a locked access lost its race too often: enter the guest again */
    EMU_EXCEPTION,      /* ctx->exc to be injected; registers unchanged but for REP progress */
    EMU_UNHANDLED,      /* no semantics for it here: ctx->insn tells which; the caller stops the VM with a reason or injects #UD */
};

struct emu_exc { uint8_t vector; bool has_error; uint32_t error; uint64_t cr2; };

struct emu_seg { uint64_t base; uint32_t limit; uint16_t attr; uint16_t sel; };  /* attr as in the VMCB: type:4 S DPL:2 P AVL L D/B G */

struct emu_ctx;
struct emu_ops {
    /* Memory by linear address; the callback walks the guest's page tables, tells RAM from MMIO, and on a guest fault fills ctx->exc (#PF) and
     * returns EMU_EXCEPTION.  A single call never crosses a page: the emulator splits. */
    enum emu_result (*read)(struct emu_ctx *, gva_t, void *buf, unsigned len);
    enum emu_result (*write)(struct emu_ctx *, gva_t, const void *buf, unsigned len);
    /* Atomic read-modify-write of RAM or MMIO, 1 .. 8 (16 for CMPXCHG16B) bytes; *old in/out. EMU_AGAIN: value had changed, *old updated. */
    enum emu_result (*cmpxchg)(struct emu_ctx *, gva_t, void *old, const void *val, unsigned len);
    enum emu_result (*fetch)(struct emu_ctx *, gva_t, void *buf, unsigned len);
    enum emu_result (*port_in)(struct emu_ctx *, uint16_t port, unsigned size, uint32_t *val);
    enum emu_result (*port_out)(struct emu_ctx *, uint16_t port, unsigned size, uint32_t val);
    /* Would an access of len bytes (within one page) fault?  Asked before what cannot be taken back: page-crossing writes, INS.  *ram: all of it is plain
     * RAM, so that one read or write of any length may cover it, as REP MOVS/STOS/INS/OUTS then do; elsewhere accesses are made operand by operand.
     * No side effect but accessed and dirty bits.  NULL: no batches, and page-crossing writes may be done in part when the second page faults. */
    enum emu_result (*probe)(struct emu_ctx *, gva_t, unsigned len, bool write, bool *ram);
    bool (*port_allowed)(struct emu_ctx *, uint16_t port, unsigned size);       /* TSS I/O bitmap when CPL > IOPL */
    void (*load_seg)(struct emu_ctx *, enum seg);       /* fill ctx->seg[s]; in 64-bit mode asked for FS and GS only.  NULL: all are filled */
    /* Guest vector registers (16 bytes each); NULL: vector moves are EMU_UNHANDLED. */
    void (*vec_get)(struct emu_ctx *, unsigned n, void *v16);
    void (*vec_set)(struct emu_ctx *, unsigned n, const void *v16);
};

struct emu_ctx {
    const struct emu_ops *ops;
    void *arg;
    enum cpu_mode mode;
    bool real;                  /* real or virtual-8086 mode: no descriptor checks beyond limit */
    uint8_t cpl, iopl;
    uint64_t *gpr;              /* [16] in encoding order: rax rcx rdx rbx rsp rbp rsi rdi r8 … r15 */
    uint64_t rip, rflags;       /* in/out */
    uint64_t cr0, cr4, efer;    /* in */
    struct emu_seg seg[6];
    uint8_t seg_valid;          /* bit per loaded seg; SEG_CS is always loaded by the caller */
    struct emu_exc exc;
    struct insn insn;
    bool insn_valid;            /* the caller already decoded it (cache) */
    unsigned rep_budget;        /* REP iterations before EMU_AGAIN; 0 = a default of 1024 */
    bool write_intent;          /* for `read`: the first half of a read-modify-write; check write permission and report a fault as a write's */
    bool trap_db;               /* out, with EMU_OK and EMU_AGAIN: RFLAGS.TF was set, the caller injects #DB with DR6.BS (after each REP iteration too) */
};

/* Fetch (unless insn_valid), decode, execute one instruction. */
enum emu_result emu_step(struct emu_ctx *);
/* Execute ctx->insn (already decoded) only. */
enum emu_result emu_execute(struct emu_ctx *);
