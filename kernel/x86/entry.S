/* Interrupt and exception entry.  Builds struct trap_frame (kernel/x86/irq.h).  Kernel only: no SWAPGS, GS is this CPU's area at all times. */

    .section .text.entry, "ax", @progbits

trap_common:
    pushq   %rax
    pushq   %rbx
    pushq   %rcx
    pushq   %rdx
    pushq   %rsi
    pushq   %rdi
    pushq   %rbp
    pushq   %r8
    pushq   %r9
    pushq   %r10
    pushq   %r11
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    cld
    movq    %rsp, %rdi          /* the CPU aligned RSP before its 40 bytes; 136 more keep the ABI's 16 */
    call    trap_dispatch
    .globl  trap_return         /* the backtrace knows this address: below it lies a struct trap_frame */
trap_return:
    popq    %r15
    popq    %r14
    popq    %r13
    popq    %r12
    popq    %r11
    popq    %r10
    popq    %r9
    popq    %r8
    popq    %rbp
    popq    %rdi
    popq    %rsi
    popq    %rdx
    popq    %rcx
    popq    %rbx
    popq    %rax
    addq    $16, %rsp           /* vector, error code */
    iretq

/* 256 stubs of 16 bytes.  Vectors with an error code: EXC_HAS_ERROR_CODE in kernel/hw/x86.h. */
    .balign 16
    .globl  trap_stubs
trap_stubs:
    .set    v, 0
    .rept   256
    .balign 16
    .if !((v == 8) || (v >= 10 && v <= 14) || (v == 17) || (v == 21) || (v == 29) || (v == 30))
    pushq   $0
    .endif
    pushq   $v
    jmp     trap_common
    .set    v, v + 1
    .endr
    .balign 16

    .section .note.GNU-stack, "", @progbits
