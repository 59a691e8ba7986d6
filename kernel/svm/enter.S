/*
 * void svm_enter(hpa_t vmcb, struct vcpu *, hpa_t host_vmcb)
 *
 * The middle of svm_run(): entered by a jump, left by a jump to svm_exited(vcpu), so that only these lines save the registers that C wants kept.  The GPRs
 * are at the start of struct vcpu.
 *
 * GIF is off from CLGI to STGI, so that neither NMI nor SMI sees half of a world.  With V_INTR_MASKING the host's RFLAGS.IF at VMRUN decides
 * whether physical interrupts reach us while the guest runs: STI before, CLI after.  VMLOAD of the host image brings back GS, TR and the syscall MSRs
 * before any C runs: the stack guard lives behind GS.
 */
#include "kernel/x86/rsb_fill.h"
    .text
    .globl svm_enter
    .type svm_enter, @function
svm_enter:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq %rdx
    pushq %rsi
    movq %rdi, %rax
    movq 8(%rsi), %rcx
    movq 16(%rsi), %rdx
    movq 24(%rsi), %rbx
    movq 40(%rsi), %rbp
    movq 56(%rsi), %rdi
    movq 64(%rsi), %r8
    movq 72(%rsi), %r9
    movq 80(%rsi), %r10
    movq 88(%rsi), %r11
    movq 96(%rsi), %r12
    movq 104(%rsi), %r13
    movq 112(%rsi), %r14
    movq 120(%rsi), %r15
    movq 48(%rsi), %rsi
    clgi
    sti
    vmload %rax
    vmrun %rax
    vmsave %rax
    cli
    xchgq %rsi, (%rsp)
    movq %rcx, 8(%rsi)
    movq %rdx, 16(%rsi)
    movq %rbx, 24(%rsi)
    movq %rbp, 40(%rsi)
    movq %rdi, 56(%rsi)
    movq %r8, 64(%rsi)
    movq %r9, 72(%rsi)
    movq %r10, 80(%rsi)
    movq %r11, 88(%rsi)
    movq %r12, 96(%rsi)
    movq %r13, 104(%rsi)
    movq %r14, 112(%rsi)
    movq %r15, 120(%rsi)
    popq %rcx
    movq %rcx, 48(%rsi)
    popq %rax
    vmload %rax
    cmpw $0, mitigations + 1(%rip)      /* rsb_fill, spec_ctrl_used: before the first RET, an NMI's too, whose prediction the guest may have planted */
    jne 2f
1:
    stgi
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    movq %rsi, %rdi
    jmp svm_exited

2:
    cmpq $0, %gs:48                     /* percpu.spec_ctrl_guest */
    je 8f
    movl $0x48, %ecx                    /* SPEC_CTRL = mitigations.spec_ctrl_host */
    movl mitigations + 8(%rip), %eax
    movl mitigations + 12(%rip), %edx
    wrmsr
    movq $0, %gs:48
8:
    cmpb $0, mitigations + 1(%rip)
    je 1b
    RSB_FILL
    jmp 1b
    .size svm_enter, . - svm_enter
    .section .note.GNU-stack, "", @progbits
