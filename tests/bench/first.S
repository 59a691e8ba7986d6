/* The smallest guest: its first instruction after the register loads stops the VM through the debug-exit port. */
    .section .multiboot, "a"
    .align 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)
    .text
    .globl _start
_start:
    movl $0xf4, %edx
    xorl %eax, %eax
    outl %eax, %dx
1:  cli
    hlt
    jmp 1b
    .section .note.GNU-stack, "", @progbits
