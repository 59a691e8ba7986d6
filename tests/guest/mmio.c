/*
 * Every instruction form that kernels use on devices, once on RAM and once on a device register with the same start values: what is read, what is written and
 * the flags must agree.  Registers that hold only some bits are learnt first.
 */
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

/* ---- Cells: a device register of 4 or 8 bytes; which bits it holds, and which access sizes it takes, is found out. ---- */
struct cell { const char *name; ulong addr; uint64_t mask; unsigned sizes /* bit per size */; };

static uint64_t load(ulong a, unsigned size)
{
    switch (size) {
    case 1: return *(volatile uint8_t *)a;
    case 2: return *(volatile uint16_t *)a;
    case 4: return *(volatile uint32_t *)a;
    }
    return *(volatile uint32_t *)a | (uint64_t)*(volatile uint32_t *)(a + 4) << 32;
}

static void store(ulong a, unsigned size, uint64_t v)
{
    switch (size) {
    case 1: *(volatile uint8_t *)a = v; break;
    case 2: *(volatile uint16_t *)a = v; break;
    case 4: *(volatile uint32_t *)a = v; break;
    default:
        *(volatile uint32_t *)a = v;
        *(volatile uint32_t *)(a + 4) = v >> 32;
    }
}

static unsigned run_cell(struct cell *c, unsigned *ran)
{
    static uint64_t ram[2] __attribute__((aligned(16)));
    static const uint64_t starts[] = { 0x8877665544332211, 0, ~0ull, 0x7fffffff80000000, 0x0102030480818283 };
    unsigned wrong = 0;

    for (const struct form *f = __start_forms; f < __stop_forms; f++) {
        if (!(c->sizes >> f->size & 1))
            continue;
        for (unsigned k = 0; k < ARRAY_SIZE(starts); k++) {
            uint64_t all = f->size == 8 ? ~0ull : (1ull << (8 * f->size)) - 1, start = starts[k], fixed, want;
            struct regs on_ram = { 0x11223344, 0xa5a5f00f + k, 0x01020304, 0x55667788, 2 | (k & 1 ? CF : 0) }, on_dev = on_ram;
            store(c->addr, f->size, start & c->mask);
            fixed = load(c->addr, f->size);             /* what it made of it is the start for RAM */
            ram[0] = fixed;
            ram[1] = 0;
            call_form(f->fn, &on_ram, ram);
            call_form(f->fn, &on_dev, (void *)c->addr);
            want = ((ram[0] & c->mask) | (fixed & ~c->mask)) & all;
            uint64_t got = load(c->addr, f->size) & all;
            ++*ran;
            if (got == want && on_ram.ax == on_dev.ax && on_ram.bx == on_dev.bx && on_ram.cx == on_dev.cx && on_ram.dx == on_dev.dx && !((on_ram.flags ^ on_dev.flags) & (f->flags | DF)))
                continue;
            if (wrong++ < 5)
                print("  %s: \"%s\" from %llx: got %llx want %llx; ax %lx/%lx bx %lx/%lx flags %lx/%lx\n", c->name, (const char *)(ulong)f->name, (unsigned long long)fixed,
                      (unsigned long long)got, (unsigned long long)want, on_dev.ax, on_ram.ax, on_dev.bx, on_ram.bx, on_dev.flags, on_ram.flags);
        }
    }
    return wrong;
}

static void test_cell(const char *name, ulong addr, unsigned sizes)
{
    struct cell c = { .name = name, .addr = addr, .sizes = sizes };
    unsigned widest = sizes & 0x100 ? 8 : sizes & 0x10 ? 4 : 1, ran = 0, wrong;
    uint64_t old = load(addr, widest), ones, zeros;

    store(addr, widest, ~0ull);
    ones = load(addr, widest);
    store(addr, widest, 0);
    zeros = load(addr, widest);
    c.mask = ones & ~zeros;
    wrong = run_cell(&c, &ran);
    store(addr, widest, old);
    report(name, c.mask && !wrong, "%u of %u wrong, bits held %llx", wrong, ran, (unsigned long long)c.mask);
}

/* PCI configuration space through ECAM: takes every access size. */
static uint32_t pci_read(unsigned dev, unsigned reg)
{
    outl(0xcf8, 0x80000000 | dev << 11 | reg);
    return inl(0xcfc);
}

static void ecam(void)
{
    ulong base = pci_read(0, 0x60) & 0xf0000000;
    uint32_t words[4], x[4];
    uint8_t bytes[64], header[64];

    if (pci_read(0, 0) != 0x29c08086 || !(pci_read(0, 0x60) & 1)) {
        print("  no ECAM here\n");
        return;
    }
    test_cell("ecam-interrupt-line", base + 0x3c, 1 << 1);
    for (unsigned n = 0; n < 4; n++)
        words[n] = mmio_read(base + 4 * n);
    EQUAL("ecam-id", words[0], 0x29c08086);
    asm volatile("movups (%0), %%xmm2; movups %%xmm2, (%1)" :: "r"(base), "r"(x) : "memory");
    CHECK("movups-from-device", !memcmp(x, words, 16));
    for (unsigned n = 0; n < 64; n++)
        header[n] = *(volatile uint8_t *)(base + n);
    CHECK("bytes-and-words-agree", !memcmp(header, words, 16));
    memcpy(bytes, (void *)base, 64);
    CHECK("rep-movsb-from-device", !memcmp(bytes, header, 64));
    memset(bytes, 0, 64);
    ulong s = base, d = (ulong)bytes, count = 16;
    asm volatile("rep movsl" : "+S"(s), "+D"(d), "+c"(count) :: "memory");
    CHECK("rep-movsl-from-device", !memcmp(bytes, header, 64) && s == base + 64 && d == (ulong)bytes + 64 && !count);
    s = base + 60, d = (ulong)bytes + 60, count = 16;
    memset(bytes, 0, 64);
    asm volatile("std; rep movsl; cld" : "+S"(s), "+D"(d), "+c"(count) :: "memory");
    CHECK("rep-movsl-downwards", !memcmp(bytes, header, 64));
    /* A word that straddles two registers, and a dword at an odd place. */
    CHECK("unaligned-word", *(volatile uint16_t *)(base + 3) == (header[3] | header[4] << 8));
    CHECK("unaligned-dword", *(volatile uint32_t *)(base + 1) == ((uint32_t)header[4] << 24 | header[3] << 16 | header[2] << 8 | header[1]));
    d = base, count = 64;
    s = (ulong)header;
    uint8_t below;
    asm volatile("repe cmpsb; setne %0" : "=r"(below), "+S"(s), "+D"(d), "+c"(count) :: "memory", "cc");
    CHECK("repe-cmpsb-with-device", !below && !count);
}

static void all(void)
{
    test_cell("hpet-comparator-0", HPET + 0x108, 1 << 4 | 1 << 8);
    test_cell("hpet-comparator-1", HPET + 0x128, 1 << 4 | 1 << 8);
    test_cell("lapic-lvt-error", LAPIC + APIC_LVTERR, 1 << 4);
    test_cell("lapic-spurious", LAPIC + APIC_SPIV, 1 << 4);
    test_cell("lapic-divide", LAPIC + APIC_TDCR, 1 << 4);
    test_cell("ioapic-index", IOAPIC, 1 << 4);
    ioapic_write(0x10 + 2 * 5, 0x10000);
    mmio_write(IOAPIC, 0x10 + 2 * 5);
    test_cell("ioapic-redirection", IOAPIC + 0x10, 1 << 4);
    ioapic_write(0x10 + 2 * 5, 0x10000);
    ecam();
    if (on_joist())
        EQUAL("unclaimed-reads-ones", mmio_read(0xfea00000), 0xffffffff);
    mmio_write(0xfea00000, 5);
}

int main(void)
{
    pic_mask_all();
    apic_enable();
    all();
    if (GUEST_BITS == 32) {             /* again through page tables */
        paging_on();
        all();
    }
    return 0;
}
