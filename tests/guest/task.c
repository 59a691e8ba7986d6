/* Hardware task switches: JMP, CALL, IRET, task gates, error codes, 16-bit tasks, faults of the new task.  Long mode has none: #GP. */
#include "lib/guest.h"

enum { SEL_A = 0x80, SEL_B = 0x88, SEL_C = 0x90, SEL_D = 0x98, SEL_E = 0xa0, SEL_F = 0xa8, ENTRIES = 32 };

static uint64_t table[ENTRIES];

static void use_own_gdt(void)
{
    struct { uint16_t limit; ulong base; } __attribute__((packed)) d;

    asm volatile("sgdt %0" : "=m"(d));
    memcpy(table, (void *)d.base, d.limit + 1);
    d.limit = sizeof table - 1, d.base = (ulong)table;
    asm volatile("lgdt %0" :: "m"(d));
}

#ifdef __x86_64__
int main(void)
{
    struct { uint32_t off; uint16_t sel; } __attribute__((packed)) far = { 0, SEL_B };

    use_own_gdt();
    table[SEL_B / 8] = 0x67 | 0x89ull << 40;
    TRY("ljmpl *%0", :: "m"(far) : "memory");
    EQUAL("jmp-to-tss-in-long-mode", TRAP.vector == 13 ? TRAP.error : ~0ul, SEL_B);
    TRY("lcalll *%0", :: "m"(far) : "memory");
    EQUAL("call-to-tss-in-long-mode", TRAP.vector == 13 ? TRAP.error : ~0ul, SEL_B);
    return 0;
}
#else

struct tss {
    uint32_t link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi, es, cs, ss, ds, fs, gs, ldt;
    uint16_t trap, iomap;
};
static struct { uint16_t link, stacks[6], ip, flags, gpr[8], es, cs, ss, ds, ldt; } tss_e;
struct tss tss_a, tss_b, tss_c, tss_d, tss_f;
static uint8_t stack_b[1024], stack_c[1024], stack_d[1024], stack_f[4096];
extern char task_b[], task_c[], task_d[], task_e[], task_e_end[];
extern struct { uint16_t off0, sel; uint8_t zero, type; uint16_t off1; } __attribute__((packed)) idt[256];
volatile uint32_t b_count, b_ebx, b_cr0, b_flags, b_tr, c_count, d_count, d_error, d_skip, e_count;

/* Each goes on behind its IRET or JMP when it is entered again. */
asm(".text\n"
    "task_b: movl %ebx, b_ebx; str %eax; movl %eax, b_tr; movl %cr0, %eax; movl %eax, b_cr0; pushfl; popl b_flags; incl b_count; iret; jmp task_b\n"
    "task_c: incl c_count; ljmp $0x80, $0; jmp task_c\n"
    "task_d: popl d_error; incl d_count; movl d_skip, %eax; addl %eax, tss_a + 32; iret; jmp task_d\n"
    "task_e: incl e_count; iret; jmp task_e; task_e_end:\n");

static void describe(unsigned sel, const void *tss, unsigned size, unsigned type)
{
    ulong a = (ulong)tss;

    table[sel / 8] = (size - 1) | (uint64_t)(a & 0xffffff) << 16 | (uint64_t)(0x80 | type) << 40 | (uint64_t)(a >> 24) << 56;
}

static bool busy(unsigned sel) { return table[sel / 8] >> 41 & 1; }

static void prepare(struct tss *t, unsigned sel, const void *entry, void *stack_end)
{
    *t = (struct tss){ .cr3 = read_cr3(), .eip = (ulong)entry, .eflags = 2, .ebx = 0xb0b0b0b0 + sel, .esp = (ulong)stack_end, .es = 0x10, .cs = 0x08, .ss = 0x10,
                       .ds = 0x10, .fs = 0x10, .gs = 0x10, .iomap = sizeof *t };
    describe(sel, t, sizeof *t, 9);
}

static uint32_t flags(void)
{
    uint32_t f;

    asm volatile("pushfl; popl %0" : "=r"(f));
    return f;
}

#define SWITCH(insn) asm volatile("movl $0x12345678, %%esi; movl $0x9abcdef0, %%edi; " insn "; movl %%esi, %0; movl %%edi, %1" : "=m"(esi), "=m"(edi) :: "eax", "esi", "edi", "memory", "cc")

static void switches(const char *mode)
{
    uint32_t esi, edi, n = b_count, ts;

    print("-- %s\n", mode);
    prepare(&tss_b, SEL_B, task_b, stack_b + sizeof stack_b);
    prepare(&tss_c, SEL_C, task_c, stack_c + sizeof stack_c);
    asm volatile("clts");
    SWITCH("lcall $0x88, $0");
    EQUAL("call-runs-the-task", b_count - n, 1);
    EQUAL("call-task-register", b_tr, SEL_B);
    EQUAL("call-registers", b_ebx, 0xb0b0b0b0 + SEL_B);
    EQUAL("call-sets-ts", b_cr0 >> 3 & 1, 1);
    EQUAL("call-sets-nt", b_flags >> 14 & 1, 1);
    EQUAL("call-link", tss_b.link & 0xffff, SEL_A);
    CHECK("return-registers", esi == 0x12345678 && edi == 0x9abcdef0);
    CHECK("return-busy", busy(SEL_A) && !busy(SEL_B));
    EQUAL("return-nt", flags() >> 14 & 1, 0);
    asm volatile("str %0" : "=r"(ts));
    EQUAL("return-task-register", ts & 0xffff, SEL_A);
    asm volatile("clts");
    SWITCH("lcall $0x88, $0");
    EQUAL("call-again", b_count - n, 2);

    n = c_count;
    SWITCH("ljmp $0x90, $0");
    EQUAL("jmp-runs-the-task", c_count - n, 1);
    CHECK("jmp-back-registers", esi == 0x12345678 && edi == 0x9abcdef0);
    CHECK("jmp-busy", busy(SEL_A) && !busy(SEL_C));
    SWITCH("ljmp $0x90, $0");
    EQUAL("jmp-again", c_count - n, 2);
}

static void task_gate(unsigned vector, unsigned sel)
{
    idt[vector].sel = sel;
    idt[vector].type = 0x85;
}

static void gates(void)
{
    uint32_t esi, edi, n = b_count;

    prepare(&tss_b, SEL_B, task_b, stack_b + sizeof stack_b);
    prepare(&tss_d, SEL_D, task_d, stack_d + sizeof stack_d);
    task_gate(0x60, SEL_B);
    SWITCH("int $0x60; nop");
    EQUAL("gate-of-int", b_count - n, 1);
    CHECK("gate-registers", esi == 0x12345678 && edi == 0x9abcdef0 && !busy(SEL_B));
    task_gate(13, SEL_D);
    d_skip = 2;
    SWITCH("movl $0x1f8, %%eax; movl %%eax, %%fs");      /* two bytes long */
    EQUAL("gate-of-gp", d_count, 1);
    EQUAL("gate-of-gp-error", d_error, 0x1f8);
    CHECK("gate-of-gp-registers", esi == 0x12345678 && edi == 0x9abcdef0);
}

/* An interrupt from the LAPIC through a task gate: the task sees it and nothing comes again. */
static void interrupt_gate(void)
{
    uint32_t n = b_count;

    prepare(&tss_b, SEL_B, task_b, stack_b + sizeof stack_b);
    apic_enable();
    task_gate(0x61, SEL_B);
    apic_ipi(apic_id(), 0x4061);
    asm volatile("sti; nop; nop; nop; nop; cli");
    EQUAL("gate-of-interrupt", b_count - n, 1);
    EQUAL("gate-of-interrupt-in-service", apic_read(APIC_ISR + 0x30) >> 1 & 1, 1);
    apic_write(APIC_EOI, 0);
    asm volatile("sti; nop; nop; nop; nop; cli");
    EQUAL("gate-of-interrupt-once", b_count - n, 1);
}

static void short_task(void)
{
    uint32_t esi, edi;

    memcpy((void *)0x9000, task_e, task_e_end - task_e);
    tss_e.ip = 0x9000, tss_e.flags = 2, tss_e.es = tss_e.ss = tss_e.ds = 0x10, tss_e.cs = 0x08;
    describe(SEL_E, &tss_e, 44, 1);
    SWITCH("lcall $0xa0, $0");
    EQUAL("16-bit-task", e_count, 1);
    EQUAL("16-bit-link", tss_e.link, SEL_A);
    CHECK("16-bit-registers", esi == 0x12345678 && edi == 0x9abcdef0);
}

/* The new task's FS cannot be loaded: #TS within it, at its first instruction. */
static volatile uint32_t ts_error, ts_ip;
static void on_ts(struct frame *f)
{
    ts_error = f->error;
    ts_ip = f->ip;
    asm volatile("ljmp $0x80, $0");
}

static void fault_of_the_new_task(void)
{
    uint32_t esi, edi;

    prepare(&tss_f, SEL_F, task_b, stack_f + sizeof stack_f);
    tss_f.fs = 0x1f8;
    set_handler(10, on_ts);
    SWITCH("ljmp $0xa8, $0");
    EQUAL("new-task-ts-error", ts_error, 0x1f8);
    if (cpuid_reg(0, 0, 1) == 0x756e6547)       /* "Genu"; QEMU's software CPU leaves the old task's EIP there */
        EQUAL("new-task-ts-ip", ts_ip, (ulong)task_b);
    CHECK("new-task-registers", esi == 0x12345678 && edi == 0x9abcdef0);
}

int main(void)
{
    pic_init();
    use_own_gdt();
    prepare(&tss_a, SEL_A, 0, 0);
    asm volatile("ltr %w0" :: "r"(SEL_A));
    switches("without paging");
    short_task();
    gates();
    interrupt_gate();
    fault_of_the_new_task();
    paging_on();
    tss_a.cr3 = read_cr3();
    switches("with paging");
    return 0;
}
#endif
