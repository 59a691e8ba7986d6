/*
 * Every instruction form that kernels use on devices, as code that works on the operand at (%edi)/(%rdi) = (%esi)/(%rsi) with the registers of struct regs.
 * One table per program: include it once.
 */
#pragma once
#include "lib/guest.h"

enum { CF = 1, PF = 4, AF = 16, ZF = 64, SF = 128, DF = 0x400, OF = 0x800, ALL = CF | PF | AF | ZF | SF | OF, NOT_AF = ALL & ~AF };

struct regs { ulong ax, bx, cx, dx, flags; };
struct form { uint32_t fn, size, flags, name; };
extern const struct form __start_forms[], __stop_forms[];
void call_form(ulong fn, struct regs *, void *p);

#ifdef __x86_64__
#define P "(%rdi)"
#define P8 "8(%rdi)"
asm("call_form: push %rbx; push %rbp; push %r12; push %r13; push %r14; mov %rdi, %r10; mov %rsi, %rbp; mov %rdx, %rdi; mov %rdx, %rsi\n"
    "push 32(%rbp); popf; mov (%rbp), %rax; mov 8(%rbp), %rbx; mov 16(%rbp), %rcx; mov 24(%rbp), %rdx\n"
    "call *%r10\n"
    "mov %rax, (%rbp); mov %rbx, 8(%rbp); mov %rcx, 16(%rbp); mov %rdx, 24(%rbp); pushf; pop 32(%rbp); cld; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret");
#else
#define P "(%edi)"
asm("call_form: push %ebx; push %esi; push %edi; push %ebp; mov 20(%esp), %ebp; mov 28(%esp), %edi; mov %edi, %esi; push %ebp; mov 28(%esp), %ebp\n"
    "push 16(%ebp); popf; mov (%ebp), %eax; mov 4(%ebp), %ebx; mov 8(%ebp), %ecx; mov 12(%ebp), %edx\n"
    "xchg %ebp, (%esp); call *%ebp; xchg %ebp, (%esp)\n"
    "mov %eax, (%ebp); mov %ebx, 4(%ebp); mov %ecx, 8(%ebp); mov %edx, 12(%ebp); pushf; pop 16(%ebp); cld\n"
    "pop %eax; pop %ebp; pop %edi; pop %esi; pop %ebx; ret");
#endif

#define X(size, flags, insn) asm(".section .text\n771: " insn "\nret\n.section .rodata\n772: .asciz \"" insn "\"\n.section forms, \"a\"\n.long 771b, " #size ", " FSTR(flags) ", 772b\n.text");
#define FSTR(f) FSTR2(f)
#define FSTR2(f) #f
#define A 0x8d5         /* ALL */
#define L 0x8c5         /* NOT_AF */
#define C 0x1           /* CF */
#define N 0x8d5

/* Moves. */
X(1, N, "movb " P ", %al") X(1, N, "movb " P ", %ah") X(1, N, "movb %bl, " P) X(1, N, "movb %bh, " P) X(1, N, "movb $0x5a, " P)
X(2, N, "movw " P ", %ax") X(2, N, "movw %bx, " P) X(2, N, "movw $0x1234, " P)
X(4, N, "movl " P ", %eax") X(4, N, "movl %ebx, " P) X(4, N, "movl $0x12345678, " P) X(4, N, "movnti %ebx, " P)
X(1, N, "movzbw " P ", %ax") X(1, N, "movzbl " P ", %eax") X(2, N, "movzwl " P ", %eax") X(1, N, "movsbl " P ", %eax") X(2, N, "movswl " P ", %eax") X(1, N, "movsbw " P ", %ax")
/* Arithmetic, both directions. */
#define ALU(op, f) X(1, f, op "b %bl, " P) X(1, f, op "b " P ", %al") X(1, f, op "b $0x81, " P) X(2, f, op "w %bx, " P) X(2, f, op "w " P ", %ax") X(2, f, op "w $0x8123, " P) X(2, f, op "w $-3, " P) \
    X(4, f, op "l %ebx, " P) X(4, f, op "l " P ", %eax") X(4, f, op "l $0x80001234, " P) X(4, f, op "l $-3, " P)
ALU("add", A) ALU("adc", A) ALU("sub", A) ALU("sbb", A) ALU("cmp", A) ALU("and", L) ALU("or", L) ALU("xor", L)
X(1, L, "testb %bl, " P) X(1, L, "testb $0x81, " P) X(2, L, "testw %bx, " P) X(4, L, "testl %ebx, " P) X(4, L, "testl $0x80000001, " P)
X(1, A, "incb " P) X(2, A, "incw " P) X(4, A, "incl " P) X(1, A, "decb " P) X(2, A, "decw " P) X(4, A, "decl " P)
X(1, A, "negb " P) X(4, A, "negl " P) X(1, A, "notb " P) X(4, A, "notl " P)
X(4, A, "lock addl %ebx, " P) X(4, L, "lock orl $0x100, " P) X(4, L, "lock andl %ebx, " P) X(4, A, "lock incl " P) X(4, A, "lock decl " P) X(4, L, "lock xorl %ebx, " P)
/* Exchanges. */
X(1, N, "xchgb %bl, " P) X(2, N, "xchgw %bx, " P) X(4, N, "xchgl %ebx, " P) X(4, A, "xaddl %ebx, " P) X(4, A, "lock xaddl %ebx, " P) X(1, A, "xaddb %bl, " P)
X(4, A, "cmpxchgl %ebx, " P) X(4, A, "movl " P ", %eax; cmpxchgl %ebx, " P) X(4, A, "movl " P ", %eax; lock cmpxchgl %ebx, " P) X(2, A, "movw " P ", %ax; cmpxchgw %cx, " P)
X(8, N, "cmpxchg8b " P) X(8, N, "movl " P ", %eax; movl 4" P ", %edx; lock cmpxchg8b " P)
/* Bits. */
X(4, C, "btl $7, " P) X(4, C, "btsl $8, " P) X(4, C, "btrl $9, " P) X(4, C, "btcl $31, " P) X(4, C, "andl $31, %ebx; btsl %ebx, " P) X(4, C, "lock btsl $3, " P) X(2, C, "btrw $5, " P)
/* Strings, one element and REP. */
X(1, N, "lodsb") X(2, N, "lodsw") X(4, N, "lodsl") X(1, N, "stosb") X(2, N, "stosw") X(4, N, "stosl") X(4, N, "mov $1, %ecx; rep stosl") X(1, A, "scasb") X(4, A, "scasl") X(4, A, "cmpsl") X(1, A, "cmpsb")
#ifdef __x86_64__
X(4, N, "push %rdi; push $0; mov %rsp, %rdi; movsl; pop %rax; pop %rdi") X(4, N, "push %rbx; mov %rsp, %rsi; movsl; pop %rbx") X(4, N, "push %rbx; mov %rsp, %rsi; mov $1, %ecx; rep movsl; pop %rbx")
X(8, N, "movq " P ", %rax") X(8, N, "movq %rbx, " P) X(8, N, "movq $0x12345678, " P) X(8, A, "addq %rbx, " P) X(8, L, "orq %rbx, " P) X(8, L, "andq $-5, " P) X(8, N, "xchgq %rbx, " P) X(8, A, "cmpq %rbx, " P)
X(8, A, "lock xaddq %rbx, " P) X(8, N, "push " P "; pop %rax") X(8, N, "push %rbx; pop " P) X(8, N, "stosq") X(8, N, "lodsq") X(4, N, "movslq " P ", %rax") X(8, C, "btsq $40, " P) X(8, N, "movnti %rbx, " P)
X(4, N, "movl " P ", %r9d; movl %r9d, %eax") X(4, N, "movl %ebx, %r10d; movl %r10d, " P) X(1, N, "movb " P ", %sil; movzbl %sil, %eax") X(4, N, "mov %rdi, %r13; movl (%r13), %eax") X(4, N, "mov %rdi, %r12; movl %ebx, (%r12)")
X(4, N, "addr32 movl (%edi), %eax") X(4, N, "xor %r8d, %r8d; movl 0(%rdi,%r8,4), %eax") X(4, N, "lea -0x1234(%rdi), %r9; movl 0x1234(%r9), %eax") X(4, N, "mov $-8, %r8; movl 16(%rdi,%r8,2), %eax")
#else
X(4, N, "push %edi; push $0; mov %esp, %edi; movsl; pop %eax; pop %edi") X(4, N, "push %ebx; mov %esp, %esi; movsl; pop %ebx") X(4, N, "push " P "; pop %eax") X(4, N, "push %ebx; pop " P)
X(4, N, "xor %edx, %edx; movl (%edi,%edx,8), %eax") X(4, N, "mov %edi, %edx; sub $0x1234, %edx; movl 0x1234(%edx), %eax; xor %edx, %edx") X(4, N, "mov $-8, %edx; movl 16(%edi,%edx,2), %eax")
X(4, N, "push %ebp; mov %edi, %ebp; movl %ss:(%ebp), %eax; pop %ebp") X(4, N, "movl %es:(%edi), %eax") X(4, N, "movl %ebx, %fs:(%edi)")
#endif
/* Vector moves. */
X(4, N, "movd " P ", %xmm0; movd %xmm0, %eax") X(4, N, "movd %ebx, %xmm1; movd %xmm1, " P) X(4, N, "movss " P ", %xmm0; movd %xmm0, %eax") X(8, N, "movq " P ", %xmm0; movd %xmm0, %eax") X(8, N, "movd %ebx, %xmm1; movq %xmm1, " P)

#undef A
#undef L
#undef C
#undef N
