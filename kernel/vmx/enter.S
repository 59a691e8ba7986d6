/*
 * bool vmx_enter(uint64_t gpr[16], bool launched, uint64_t *host_rsp)
 *
 * Interrupts are off from before the entry until C has looked at the exit.  The CPU loads the host's segments, GS base, RSP and RIP from the VMCS, so C may run at
 * once after an exit: the stack guard lives behind GS.  VMCS_HOST_RSP is written only when the stack is at another place than last time.
 */
#define VMCS_HOST_RSP 0x6c14
    .text
    .globl vmx_enter, vmx_exit_point
    .type vmx_enter, @function
vmx_enter:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq %rdi
    cmpq %rsp, (%rdx)
    je 1f
    movq %rsp, (%rdx)
    movl $VMCS_HOST_RSP, %eax
    vmwrite %rsp, %rax
1:  testb %sil, %sil
    movq (%rdi), %rax
    movq 8(%rdi), %rcx
    movq 16(%rdi), %rdx
    movq 24(%rdi), %rbx
    movq 40(%rdi), %rbp
    movq 48(%rdi), %rsi
    movq 64(%rdi), %r8
    movq 72(%rdi), %r9
    movq 80(%rdi), %r10
    movq 88(%rdi), %r11
    movq 96(%rdi), %r12
    movq 104(%rdi), %r13
    movq 112(%rdi), %r14
    movq 120(%rdi), %r15
    movq 56(%rdi), %rdi
    jz 2f
    vmresume
    jmp 3f
2:  vmlaunch
3:  popq %rdi                   /* refused: nothing of the guest has run */
    movl $1, %eax
    jmp 4f
vmx_exit_point:
    xchgq %rdi, (%rsp)
    movq %rax, (%rdi)
    movq %rcx, 8(%rdi)
    movq %rdx, 16(%rdi)
    movq %rbx, 24(%rdi)
    movq %rbp, 40(%rdi)
    movq %rsi, 48(%rdi)
    popq 56(%rdi)
    movq %r8, 64(%rdi)
    movq %r9, 72(%rdi)
    movq %r10, 80(%rdi)
    movq %r11, 88(%rdi)
    movq %r12, 96(%rdi)
    movq %r13, 104(%rdi)
    movq %r14, 112(%rdi)
    movq %r15, 120(%rdi)
    xorl %eax, %eax
4:  popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
    .size vmx_enter, . - vmx_enter
    .section .note.GNU-stack, "", @progbits
