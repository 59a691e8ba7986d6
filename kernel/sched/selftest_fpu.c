/* Service code (may use SSE): patterns in x87, XMM and YMM registers that must survive preemption. */
#include <string.h>
#include "kernel/sched/selftest.h"
#include "kernel/x86/cpu.h"

#define REGS(X, op) X(op, 0) X(op, 1) X(op, 2) X(op, 3) X(op, 4) X(op, 5) X(op, 6) X(op, 7) \
                    X(op, 8) X(op, 9) X(op, 10) X(op, 11) X(op, 12) X(op, 13) X(op, 14) X(op, 15)
#define XLOAD(op, n) "movdqu " #n "*32(%0), %%xmm" #n "\n"
#define XSTORE(op, n) "movdqu %%xmm" #n ", " #n "*32(%0)\n"
#define YLOAD(op, n) "vmovdqu " #n "*32(%0), %%ymm" #n "\n"
#define YSTORE(op, n) "vmovdqu %%ymm" #n ", " #n "*32(%0)\n"
#define ALL_XMM "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", \
                "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

/* One asm block, so that the compiler puts nothing of its own into the registers meanwhile; the callee is core code, which has none. */
#define PATTERN_RUN(LOAD_, STORE_) \
    __asm__ volatile(REGS(LOAD_, ) "fninit\n fldcw %[cw]\n" \
        "test %[spins], %[spins]\n jz 2f\n" \
        "1: pause\n dec %[spins]\n jnz 1b\n jmp 3f\n" \
        "2: movq %%rsp, %%r12\n andq $-16, %%rsp\n movq %0, %%r13\n call *%[fn]\n movq %%r12, %%rsp\n movq %%r13, %0\n" \
        "3: fnstcw %[cw]\n" REGS(STORE_, ) \
        : "+r"(p), [spins] "+r"(spins), [cw] "+m"(cw) : [fn] "r"(between) \
        : "memory", "cc", "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", ALL_XMM)

unsigned fpu_pattern_run(unsigned seed, unsigned long spins, void (*between)(void))
{
    uint8_t want[16 * 32], got[16 * 32];
    uint16_t control = 0x027f | (seed & 3) << 10, cw = control;         /* rounding mode by seed */
    for (unsigned i = 0; i < sizeof want; i++)
        want[i] = (uint8_t)(seed * 37 + i * 11 + (i >> 5));
    memcpy(got, want, sizeof got);
    uint8_t *p = got;
    bool wide = cpu_has(FEAT_AVX) && (cpu_info.xcr0 & XCR0_AVX);
    if (wide)
        PATTERN_RUN(YLOAD, YSTORE);
    else
        PATTERN_RUN(XLOAD, XSTORE);
    unsigned bad = cw != control;
    for (unsigned i = 0; i < sizeof want; i++)
        bad += got[i] != want[i];
    return bad;
}
