/*
 * Entry of the tiny guests: multiboot header, descriptor tables, 64-bit ones their long mode with 4 GiB mapped one to one by 2 MiB pages; other CPUs
 * arrive through the trampoline; exceptions and interrupts arrive at trap().
 */
#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 3
#define STACK_SIZE 16384
#define MAX_CPUS 32
#define TRAMPOLINE 0x8000

    .section .multiboot, "a"
    .align 4
    .long MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

    .text
    .code32
    .globl _start
_start:
    cli
    cld
    movl $stacks + STACK_SIZE, %esp
    movl %eax, boot_magic
    movl %ebx, boot_info
#ifdef __x86_64__
    movl $pdpt + 0x003, pml4            /* tables: one PML4 entry, four PDPT entries, 2048 large pages */
    movl $pds + 0x003, %eax
    movl $pdpt, %edi
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    cmpl $pds + 4 * 4096, %eax
    jb 1b
    movl $0x83, %eax
    movl $pds, %edi
2:  movl %eax, (%edi)
    addl $8, %edi
    addl $0x200000, %eax
    cmpl $pds + 4 * 4096, %edi
    jb 2b
#endif
    xorl %ebp, %ebp                     /* CPU number */
    jmp cpu_start

/* Every CPU: protected mode, %esp set, %ebp = number. */
cpu_start:
    movl %cr0, %eax
    andl $~0x4, %eax                    /* EM */
    orl $0x22, %eax                     /* MP NE */
    movl %eax, %cr0
    movl %cr4, %eax
    orl $0x600, %eax                    /* OSFXSR OSXMMEXCPT */
    movl %eax, %cr4
    lgdt gdt_desc
#ifdef __x86_64__
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmp $0x18, $cpu_start_high
    .code64
cpu_start_high:
#else
    ljmp $0x08, $cpu_start_high
cpu_start_high:
#endif
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    lidt idt_desc
#ifdef __x86_64__
    movl %esp, %esp
    movl %ebp, %edi
    call cpu_main
#else
    pushl %ebp
    pushl %ebp
    pushl %ebp
    pushl %ebp                          /* the stack stays 16-byte aligned */
    call cpu_main
#endif
1:  cli
    hlt
    jmp 1b

/* Copied to TRAMPOLINE; SIPI vector 08h. */
    .code16
    .globl trampoline, trampoline_end
trampoline:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl TRAMPOLINE + tramp_gdt - trampoline
    movl %cr0, %eax
    andl $0x9fffffff, %eax              /* caches on: CD and NW are set after INIT */
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $ap_start
    .align 4
tramp_gdt:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

    .code32
ap_start:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %ss
    movl $1, %ebp
    lock xaddl %ebp, ap_next
    cmpl $MAX_CPUS, %ebp
    jae 1f
    movl %ebp, %eax
    incl %eax
    imull $STACK_SIZE, %eax
    leal stacks(%eax), %esp
    jmp cpu_start
1:  cli
    hlt
    jmp 1b

/* ---- Traps: 256 stubs of 16 bytes, each pushes the error code (or 0) and its vector. ---- */
#ifdef __x86_64__
    .code64
#endif
    .globl trap_stubs
    .align 16
trap_stubs:
    .set vector, 0
    .rept 256
    .align 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
#ifdef __x86_64__
    pushq $0
#else
    pushl $0
#endif
    .endif
#ifdef __x86_64__
    pushq $vector
#else
    pushl $vector
#endif
    jmp trap_common
    .set vector, vector + 1
    .endr

trap_common:
#ifdef __x86_64__
    pushq %rax; pushq %rcx; pushq %rdx; pushq %rbx; pushq %rbp; pushq %rsi; pushq %rdi
    pushq %r8; pushq %r9; pushq %r10; pushq %r11; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, %rdi
    movq %rsp, %rbx
    andq $-16, %rsp
    cld
    call trap
    movq %rbx, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %r11; popq %r10; popq %r9; popq %r8
    popq %rdi; popq %rsi; popq %rbp; popq %rbx; popq %rdx; popq %rcx; popq %rax
    addq $16, %rsp
    iretq
#else
    pushl %eax; pushl %ecx; pushl %edx; pushl %ebx; pushl %ebp; pushl %esi; pushl %edi
    movl %esp, %ebx
    andl $-16, %esp
    subl $12, %esp
    pushl %ebx
    cld
    call trap
    movl %ebx, %esp
    popl %edi; popl %esi; popl %ebp; popl %ebx; popl %edx; popl %ecx; popl %eax
    addl $8, %esp
    iretl
#endif

/* The bare interrupt handlers of the benchmark: count, end of interrupt, back. */
    .globl bench_irq, bench_irq_count
bench_irq:
#ifdef __x86_64__
    incl bench_irq_count(%rip)
    pushq %rax
    movl $0xfee000b0, %eax
    movl %eax, (%rax)
    popq %rax
    iretq
#else
    incl bench_irq_count
    movl %eax, 0xfee000b0
    iretl
#endif

    .data
    .align 16
    .globl gdt, gdt_tss
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            /* 08 code 32 */
    .quad 0x00cf93000000ffff            /* 10 data */
    .quad 0x00af9b000000ffff            /* 18 code 64 */
    .quad 0x00cffb000000ffff            /* 20 code 32, user */
    .quad 0x00cff3000000ffff            /* 28 data, user */
    .quad 0x00affb000000ffff            /* 30 code 64, user */
    .quad 0x00009b000000ffff            /* 38 code 16 */
    .quad 0x000093000000ffff            /* 40 data 16 */
    .quad 0x00cf93000000ffff            /* 48 spare, tests change it */
gdt_tss:
    .quad 0, 0                          /* 50 TSS */
gdt_end:
gdt_desc:
    .word gdt_end - gdt - 1
    .long gdt, 0
    .globl idt_desc
idt_desc:
    .word 256 * 8 * (1 + __SIZEOF_POINTER__ / 8) - 1
    .long idt, 0
    .globl ap_next
ap_next:
    .long 1

    .bss
    .align 4096
    .globl idt, stacks, boot_magic, boot_info, pml4, pdpt, pds
pml4: .skip 4096
pdpt: .skip 4096
pds:  .skip 4 * 4096
idt:  .skip 4096
stacks: .skip STACK_SIZE * (MAX_CPUS + 1)
boot_magic: .skip 4
boot_info: .skip 4
bench_irq_count: .skip 4
    .section .note.GNU-stack, "", @progbits
