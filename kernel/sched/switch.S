/* struct thread *switch_context(uint64_t *save_rsp, uint64_t load_rsp, struct thread *prev): interrupts off.  See kernel/sched/thread.h. */
        .text
        .globl switch_context, thread_entry_stub
        .type switch_context, @function
switch_context:
        pushq %rbp
        pushq %rbx
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        movq %rsp, (%rdi)
        movq %rsi, %rsp
        popq %r15
        popq %r14
        popq %r13
        popq %r12
        popq %rbx
        popq %rbp
        movq %rdx, %rax
        ret
        .size switch_context, . - switch_context

/* A new thread's stack makes switch_context return here, with the stack 16-byte aligned. */
        .type thread_entry_stub, @function
thread_entry_stub:
        xorl %ebp, %ebp
        movq %rax, %rdi
        call thread_begin
        ud2
        .size thread_entry_stub, . - thread_entry_stub

        .section .note.GNU-stack, "", @progbits
