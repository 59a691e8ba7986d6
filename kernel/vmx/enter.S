/*
 * void vmx_enter(struct vcpu *, bool launched, uint64_t *host_rsp)
 *
 * The middle of vmx_run(): entered by a jump, left by a jump to vmx_exited(vcpu), or to vmx_refused(vcpu) when nothing of the guest has run.  The GPRs are at the
 * start of struct vcpu.
 *
 * Interrupts are off from before the entry until C has looked at the exit.  The CPU loads the host's segments, GS base, RSP and RIP from the VMCS, so C may run at
 * once after an exit: the stack guard lives behind GS.  VMCS_HOST_RSP is written only when the stack is at another place than last time.
 */
#include "kernel/x86/rsb_fill.h"
#define VMCS_HOST_RSP 0x6c14
#define MSR_SPEC_CTRL 0x48
#define MSR_FLUSH_CMD 0x10b
#define SCRUB_BUFFERS 1
#define SCRUB_L1D 2
#define SCRUB_IBRS 4
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
1:  testb $(SCRUB_BUFFERS | SCRUB_L1D), vmx_scrub(%rip)
    jne 6f
5:  testb %sil, %sil            /* from here on only what the guest knows is loaded */
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
3:  popq %rdi
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    jmp vmx_refused
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
    cmpb $0, mitigations + 1(%rip)      /* rsb_fill: before the first RET, whose prediction the guest may have planted */
    jne 8f
9:  popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    jmp vmx_exited

6:  testb $SCRUB_L1D, vmx_scrub(%rip)
    je 7f
    movl $MSR_FLUSH_CMD, %ecx
    movl $1, %eax
    xorl %edx, %edx
    wrmsr
7:  verw data_selector(%rip)
    jmp 5b

8:  RSB_FILL
    testb $SCRUB_IBRS, vmx_scrub(%rip)
    je 9b
    movl $MSR_SPEC_CTRL, %ecx
    movl mitigations + 8(%rip), %eax    /* spec_ctrl_host */
    xorl %edx, %edx
    wrmsr
    jmp 9b
    .size vmx_enter, . - vmx_enter
    .section .rodata
data_selector:
    .word 0x10
    .section .note.GNU-stack, "", @progbits
