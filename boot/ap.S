/* Start-up of application processors; contract in ap.h.  EBX = physical address of this page throughout. */
#include "boot/ap.h"

#define AT(sym)     (sym - ap_trampoline_start)
#define PARAM(n)    AT(ap_trampoline_params) + n

#define SEL_CODE32  0x08
#define SEL_CODE64  0x10
#define SEL_DATA    0x18
#define CR0_PE_MP_ET_NE_WP  0x10033     /* caches on: CD and NW are set after INIT */
#define CR0_PG      0x80000000
#define CR4_PAE     0x20
#define CR4_LA57    0x1000
#define MSR_PAT     0x277
#define MSR_EFER    0xc0000080
#define EFER_LME    0x100
#define EFER_LMA    0x400
#define MSR_GS_BASE 0xc0000101

    .section .rodata.ap, "a"
    .balign 16
    .globl ap_trampoline_start, ap_trampoline_params, ap_trampoline_end
    .code16
ap_trampoline_start:
    cli
    cld
    mov     %cs, %ax
    mov     %ax, %ds
    movzwl  %ax, %ebx
    shl     $4, %ebx
    lea     AT(gdt)(%ebx), %eax
    mov     %eax, AT(gdtr) + 2
    lea     AT(protected)(%ebx), %eax
    mov     %eax, AT(far32)
    lgdtl   AT(gdtr)
    mov     $CR0_PE_MP_ET_NE_WP, %eax
    mov     %eax, %cr0
    ljmpl   *AT(far32)

    .code32
protected:
    mov     $SEL_DATA, %eax
    mov     %eax, %ds
    mov     %eax, %es
    mov     %eax, %ss
    mov     PARAM(AP_CR4)(%ebx), %eax
    and     $CR4_LA57, %eax                     /* the rest of CR4 comes in 64-bit mode: PCIDE and CET demand it */
    or      $CR4_PAE, %eax
    mov     %eax, %cr4
    mov     PARAM(AP_CR3)(%ebx), %eax
    mov     %eax, %cr3
    mov     $MSR_EFER, %ecx
    mov     PARAM(AP_EFER)(%ebx), %eax
    mov     PARAM(AP_EFER + 4)(%ebx), %edx
    and     $~EFER_LMA, %eax
    or      $EFER_LME, %eax
    wrmsr
    mov     $MSR_PAT, %ecx
    mov     PARAM(AP_PAT)(%ebx), %eax
    mov     PARAM(AP_PAT + 4)(%ebx), %edx
    wrmsr
    mov     $(CR0_PG | CR0_PE_MP_ET_NE_WP), %eax
    mov     %eax, %cr0
    lea     AT(long_mode)(%ebx), %eax
    mov     %eax, AT(far32)(%ebx)
    movw    $SEL_CODE64, AT(far32) + 4(%ebx)
    ljmp    *AT(far32)(%ebx)

    .code64
long_mode:
    movw    $SEL_CODE32, AT(far32) + 4(%rbx)    /* as the next AP expects it */
    mov     PARAM(AP_CR4)(%rbx), %rax
    mov     %rax, %cr4
    mov     PARAM(AP_PERCPU)(%rbx), %rdi
    mov     %rdi, %rax
    mov     %rdi, %rdx
    shr     $32, %rdx
    xor     %ecx, %ecx
    mov     %ecx, %fs
    mov     %ecx, %gs
    mov     $MSR_GS_BASE, %ecx
    wrmsr
    mov     PARAM(AP_STACK)(%rbx), %rsp
    xor     %ebp, %ebp                          /* end of every backtrace */
    call    *PARAM(AP_ENTRY)(%rbx)
    ud2

    .balign 8
gdt:
    .quad   0
    .quad   0x00cf9b000000ffff                  /* 32-bit code, flat, accessed */
    .quad   0x00af9b000000ffff                  /* 64-bit code */
    .quad   0x00cf93000000ffff                  /* data, flat */
gdt_end:
    .balign 4
gdtr:
    .short  gdt_end - gdt - 1
    .long   0
    .balign 4
far32:
    .long   0
    .short  SEL_CODE32
    .balign 8
ap_trampoline_params:
    .skip   56
ap_trampoline_end:

    .section .note.GNU-stack, "", @progbits
