/*
 * Entry of the kernel.  Three ways in, one way on:
 *   _start     32-bit, from a multiboot2 loader       EAX = magic, EBX = information block
 *   _pvh       32-bit, from a PVH loader              EBX = hvm_start_info
 *   _start64   64-bit, from boot/uefi                 EDI = magic, RSI = information block below 4 GiB
 * _start64 drops to 32-bit mode first: that sheds 5-level paging, PCIDs and whatever else the firmware had switched on.
 *
 * The image may sit at any 2 MiB boundary below 4 GiB, so code that runs before paging addresses everything relative to
 * EBP = physical address of __image_start.
 *
 * Multiboot2 Specification 2.0; x86/HVM direct boot ABI; Intel SDM vol. 3, "Initializing IA-32e Mode".
 */
#include "boot/boot.h"

#define OFF(sym)    ((sym) - KERNEL_VIRT)       /* offset from the start of the image */
#define PHYS(sym)   OFF(sym)(%ebp)

#define CR0_PE_MP_ET_NE_WP  0x10033
#define CR0_PG              0x80000000
#define CR4_PAE             0x20
#define MSR_MISC_ENABLE     0x1a0
#define MISC_XD_DISABLE_HI  (1 << (34 - 32))
#define MSR_EFER            0xc0000080
#define EFER_LME            0x100
#define EFER_NXE            0x800
#define MSR_GS_BASE         0xc0000101
#define PTE_P               0x1
#define PTE_RW              0x2
#define PTE_PS              0x80
#define SEL_CODE32          0x08
#define SEL_CODE64          0x10
#define SEL_DATA            0x18
#define PAGE_2M             0x200000

/* ---- What loaders look for ---- */
    .section .boot.header, "a"
    .balign 8
mb2_header:
    .long   0xe85250d6, 0, mb2_end - mb2_header
    .long   -(0xe85250d6 + 0 + (mb2_end - mb2_header))
    .balign 8
    .short  1, 1                                /* information request, optional */
    .long   8 + 7 * 4
    .long   1, 3, 6, 8, 12, 14, 15              /* command line, modules, memory map, framebuffer, EFI system table, RSDP old and new */
    .balign 8
    .short  5, 1                                /* framebuffer, optional, any size */
    .long   20, 0, 0, 0
    .balign 8
    .short  6, 0, 8, 0                          /* modules page aligned */
    .balign 8
    .short  10, 0                               /* relocatable; lowest fit */
    .long   24, KERNEL_LOAD, 0xfffff000, PAGE_2M, 1
    .balign 8
    .short  0, 0, 8, 0
mb2_end:

    .section .note.Xen, "a", @note
    .balign 4
    .long   4, 8, 18                            /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz  "Xen"
    .quad   _pvh - KERNEL_BASE

    .section .note.Joist, "a", @note
    .balign 4
    .long   6, 8, BOOT_NOTE_ENTRY64
    .asciz  "Joist"
    .balign 4
    .quad   _start64

/* ---- 64-bit entry: back to 32 bits ---- */
    .section .boot.text, "ax"
    .code64
    .globl _start64
_start64:
    cli
    cld
    mov     %edi, %eax
    mov     %esi, %ebx
    lea     boot_gdt(%rip), %rcx
    mov     %rcx, boot_gdtr + 2(%rip)
    lgdt    boot_gdtr(%rip)
    lea     boot_stack_top(%rip), %rsp          /* below 4 GiB, identity mapped by the firmware */
    lea     1f(%rip), %rcx
    pushq   $SEL_CODE32
    push    %rcx
    lretq
    .code32
1:  mov     $SEL_DATA, %ecx
    mov     %ecx, %ds
    mov     %ecx, %es
    mov     %ecx, %ss
    mov     %eax, %edi
    mov     %cr0, %ecx
    and     $~CR0_PG, %ecx
    mov     %ecx, %cr0
    mov     $MSR_EFER, %ecx
    rdmsr
    and     $~EFER_LME, %eax
    wrmsr
    mov     %edi, %eax
    jmp     _start

/* ---- 32-bit entries ---- */
_pvh:
    mov     $BOOT_KIND_PVH, %eax
    .globl _start
_start:
    cli
    cld
    /*
     * Where are we?  A call tells, but there is no stack yet: borrow the second word of the information block, which
     * both protocols have (reserved, version), and put it back.
     */
    mov     4(%ebx), %edx
    lea     8(%ebx), %esp
    call    1f
1:  pop     %ebp
    mov     %edx, 4(%ebx)
    sub     $OFF(1b), %ebp
    lea     PHYS(boot_stack_top), %esp

    mov     %eax, %esi                          /* ESI = kind, EBX = information block from here on */
    xor     %eax, %eax
    lea     PHYS(__bss_start), %edi
    mov     $(__bss_end - KERNEL_VIRT), %ecx
    sub     $OFF(__bss_start), %ecx
    shr     $2, %ecx
    rep stosl
    mov     %ebp, PHYS(kernel_phys)

    call    check_cpu
    call    build_tables

    mov     $CR4_PAE, %eax
    mov     %eax, %cr4
    lea     PHYS(boot_pml4), %eax
    mov     %eax, PHYS(boot_cr3)
    mov     %eax, %cr3
    mov     $MSR_EFER, %ecx
    rdmsr
    or      $(EFER_LME | EFER_NXE), %eax
    wrmsr
    mov     $(CR0_PG | CR0_PE_MP_ET_NE_WP), %eax
    mov     %eax, %cr0

    lea     PHYS(boot_gdt), %eax
    mov     %eax, PHYS(boot_gdtr + 2)
    movl    $0, PHYS(boot_gdtr + 6)
    lgdt    PHYS(boot_gdtr)
    lea     PHYS(long_mode), %eax
    push    $SEL_CODE64
    push    %eax
    lret

/*
 * Long mode and no-execute, or a sentence and the end.  Intel firmware can hide no-execute by IA32_MISC_ENABLE bit 34;
 * every Intel CPU with long mode has that MSR.
 */
check_cpu:
    push    %ebx
    mov     $0x80000000, %eax
    cpuid
    cmp     $0x80000001, %eax
    jb      no_long_mode
    mov     $0x80000001, %eax
    cpuid
    bt      $29, %edx
    jnc     no_long_mode
    bt      $20, %edx
    jc      1f
    xor     %eax, %eax
    cpuid
    cmp     $0x6c65746e, %ecx                   /* "ntel" */
    jne     no_nx
    mov     $MSR_MISC_ENABLE, %ecx
    rdmsr
    and     $~MISC_XD_DISABLE_HI, %edx
    wrmsr
    mov     $0x80000001, %eax
    cpuid
    bt      $20, %edx
    jnc     no_nx
1:  pop     %ebx
    ret

no_long_mode:
    lea     PHYS(msg_long_mode), %esi
    jmp     stop
no_nx:
    lea     PHYS(msg_nx), %esi
/* Says the sentence at ESI on COM1 (115200 8N1) and on a VGA text screen, and halts. */
stop:
    mov     $0x3fb, %dx
    mov     $0x83, %al                          /* divisor latch, 8N1 */
    out     %al, %dx
    mov     $0x3f8, %dx
    mov     $1, %al
    out     %al, %dx
    inc     %dx
    xor     %al, %al
    out     %al, %dx
    mov     $0x3fb, %dx
    mov     $0x03, %al
    out     %al, %dx
    mov     $0xb8000, %edi
1:  lodsb
    test    %al, %al
    jz      4f
    mov     $0x4f, %ah                          /* white on red */
    stosw
    mov     %al, %bl
    mov     $100000, %ecx                       /* an absent UART never gets ready */
    mov     $0x3fd, %dx
2:  in      %dx, %al
    test    $0x20, %al
    jnz     3f
    loop    2b
3:  mov     $0x3f8, %dx
    mov     %bl, %al
    out     %al, %dx
    jmp     1b
4:  cli
    hlt
    jmp     4b

/*
 * boot_pml4[0]   -> boot_pdpt    -> 4 directories of 2 MiB pages: identity, 4 GiB
 * boot_pml4[511] -> boot_pdpt_hi[510] -> boot_pd_hi: the image; the 2 MiB that hold the boot stack by 4 KiB pages, without the guard
 * Clobbers EAX, ECX, EDX, EDI.
 */
build_tables:
    lea     PHYS(boot_pd), %edi
    mov     $(PTE_P | PTE_RW | PTE_PS), %eax
    mov     $(4 * 512), %ecx
1:  mov     %eax, (%edi)
    add     $PAGE_2M, %eax
    add     $8, %edi
    loop    1b

    lea     PHYS(boot_pd + (PTE_P | PTE_RW)), %eax
    lea     PHYS(boot_pdpt), %edi
    mov     $4, %ecx
1:  mov     %eax, (%edi)
    add     $4096, %eax
    add     $8, %edi
    loop    1b

    lea     PHYS(boot_pdpt + (PTE_P | PTE_RW)), %eax
    mov     %eax, PHYS(boot_pml4)
    lea     PHYS(boot_pdpt_hi + (PTE_P | PTE_RW)), %eax
    mov     %eax, PHYS(boot_pml4 + 511 * 8)
    lea     PHYS(boot_pd_hi + (PTE_P | PTE_RW)), %eax
    mov     %eax, PHYS(boot_pdpt_hi + 510 * 8)

    lea     (PTE_P | PTE_RW | PTE_PS)(%ebp), %eax
    lea     PHYS(boot_pd_hi + (KERNEL_LOAD / PAGE_2M) * 8), %edi
    mov     $OFF(__image_end + PAGE_2M - 1), %ecx
    shr     $21, %ecx
1:  mov     %eax, (%edi)
    add     $PAGE_2M, %eax
    add     $8, %edi
    loop    1b

    mov     $OFF(boot_stack_guard), %edx
    and     $~(PAGE_2M - 1), %edx               /* offset of the 2 MiB around the guard */
    lea     (PTE_P | PTE_RW)(%ebp, %edx), %eax
    lea     PHYS(boot_pt_stack), %edi
    mov     $512, %ecx
1:  mov     %eax, (%edi)
    add     $4096, %eax
    add     $8, %edi
    loop    1b
    shr     $(21 - 3), %edx
    lea     PHYS(boot_pt_stack + (PTE_P | PTE_RW)), %eax
    mov     %eax, OFF(boot_pd_hi) + (KERNEL_LOAD / PAGE_2M) * 8(%ebp, %edx)
    mov     $OFF(boot_stack_guard), %edx
    shr     $(12 - 3), %edx
    and     $(511 * 8), %edx
    movl    $0, OFF(boot_pt_stack)(%ebp, %edx)
    ret

/* ---- 64 bits ---- */
    .code64
long_mode:
    mov     $higher_half, %rax
    jmp     *%rax
higher_half:
    movq    $boot_gdt, boot_gdtr + 2(%rip)
    lgdt    boot_gdtr(%rip)
    mov     $SEL_DATA, %eax
    mov     %eax, %ss
    xor     %eax, %eax
    mov     %eax, %ds
    mov     %eax, %es
    mov     %eax, %fs
    mov     %eax, %gs
    lldt    %ax
    mov     $boot_stack_top, %rsp
    xor     %ebp, %ebp                          /* end of every backtrace */

    mov     $boot_percpu, %rdi
    mov     %rdi, %rax
    mov     %rdi, %rdx
    shr     $32, %rdx
    mov     $MSR_GS_BASE, %ecx
    wrmsr
    rdtsc                                       /* a canary that is not a constant; the kernel's own CPU area gets a random one */
    shl     $32, %rdx
    or      %rdx, %rax
    mov     $0x9e3779b97f4a7c15, %rcx
    imul    %rcx, %rax
    xor     %al, %al                            /* a zero byte stops string functions */
    mov     %rax, BOOT_PERCPU_CANARY(%rdi)

    mov     %esi, %edi
    mov     %ebx, %esi
    call    kernel_main
    ud2

    .section .rodata.boot, "a"
msg_long_mode:
    .asciz  "Joist: this CPU has no 64-bit mode. Joist needs a 64-bit AMD or Intel CPU."
msg_nx:
    .asciz  "Joist: no-execute pages are missing. Switch on NX or XD (Execute Disable) in the firmware setup."

    .data
    .balign 64
    .globl boot_percpu, kernel_phys, boot_cr3
boot_percpu:
    .quad   boot_percpu
    .fill   BOOT_PERCPU_SIZE - 8
kernel_phys:
    .quad   0
boot_cr3:
    .quad   0
    .balign 8
boot_gdt:
    .quad   0
    .quad   0x00cf9b000000ffff                  /* 32-bit code, flat, accessed */
    .quad   0x00af9b000000ffff                  /* 64-bit code */
    .quad   0x00cf93000000ffff                  /* data, flat */
boot_gdt_end:
    .balign 8
    .short  0, 0, 0                             /* align the base in the pseudo descriptor */
boot_gdtr:
    .short  boot_gdt_end - boot_gdt - 1
    .quad   boot_gdt

    .section .bss.boot, "aw", @nobits
    .balign 4096
boot_pml4:      .skip 4096
boot_pdpt:      .skip 4096
boot_pd:        .skip 4 * 4096
boot_pdpt_hi:   .skip 4096
boot_pd_hi:     .skip 4096
boot_pt_stack:  .skip 4096
    .globl boot_stack_guard, boot_stack, boot_stack_top
boot_stack_guard: .skip 4096
boot_stack:     .skip BOOT_STACK_SIZE
boot_stack_top:

    .section .note.GNU-stack, "", @progbits
