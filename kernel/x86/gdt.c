/* Segments, task state, interrupt stacks of one CPU, and the interrupt descriptor table that all CPUs share. */
#include "kernel/x86/cpu.h"
#include "kernel/x86/irq.h"
#include "kernel/x86/trap.h"

enum { IST_NMI = 1, IST_DF = 2, IST_MC = 3, IST_COUNT = 3, IST_SIZE = 8192 };

static struct x86_gate idt[256] __aligned_to(4096);
static uint8_t boot_ist[IST_COUNT][IST_SIZE] __aligned_to(16);

void trap_init(void)
{
    for (unsigned v = 0; v < 256; v++) {
        uint64_t entry = (uint64_t)trap_stubs[v];
        idt[v] = (struct x86_gate){ .offset_lo = (uint16_t)entry, .offset_mid = (uint16_t)(entry >> 16), .offset_hi = (uint32_t)(entry >> 32),
                                    .sel = KERNEL_CS, .attr = GATE_INTERRUPT };
    }
    idt[EXC_NMI].ist = IST_NMI;
    idt[EXC_DF].ist = IST_DF;
    idt[EXC_MC].ist = IST_MC;
}

static void load_segments(const struct percpu *p)
{
    struct x86_dtr gdtr = { sizeof(p->gdt) - 1, (uint64_t)p->gdt };
    __asm__ volatile("lgdt %0\n"
                     "pushq %1\n leaq 1f(%%rip), %%rax\n pushq %%rax\n lretq\n"
                     "1: movl %2, %%ds\n movl %2, %%es\n movl %2, %%ss\n movl %3, %%fs\n movl %3, %%gs\n"
                     :: "m"(gdtr), "i"(KERNEL_CS), "r"(KERNEL_DS), "r"(0) : "rax", "memory");
}

/* The stack guard reads GS, which is null between the segment loads and percpu_load(). */
__attribute__((optimize("no-stack-protector"))) void trap_init_cpu(struct percpu *p)
{
    uint64_t tss = (uint64_t)&p->tss, limit = sizeof(p->tss) - 1;
    p->gdt[KERNEL_CS / 8] = DESC_P | DESC_S | DESC_CODE | DESC_RW | DESC_ACCESSED | DESC_L;
    p->gdt[KERNEL_DS / 8] = DESC_P | DESC_S | DESC_RW | DESC_ACCESSED;
    p->gdt[KERNEL_TSS / 8] = DESC_P | DESC_TYPE_TSS | limit | (tss & BITS(23, 0)) << 16 | (tss >> 24 & 0xff) << 56;
    p->gdt[KERNEL_TSS / 8 + 1] = tss >> 32;
    p->tss.iomap = sizeof(p->tss);
    if (p == percpu_table[0])
        for (unsigned i = 0; i < IST_COUNT; i++)
            p->tss.ist[i] = (uint64_t)boot_ist[i] + IST_SIZE;
    load_segments(p);
    percpu_load(p);
    struct x86_dtr idtr = { sizeof(idt) - 1, (uint64_t)idt };
    __asm__ volatile("lidt %0\n ltr %w1" :: "m"(idtr), "r"(KERNEL_TSS) : "memory");
}

int trap_alloc_stacks(struct percpu *p)
{
    for (unsigned i = 0; i < IST_COUNT; i++) {
        uint8_t *s = kmalloc_aligned(IST_SIZE, 4096);
        if (!s)
            return -1;
        p->tss.ist[i] = (uint64_t)s + IST_SIZE;
    }
    return 0;
}
