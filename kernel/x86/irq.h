/*
 * Interrupts of the host: exceptions, vectors, device interrupts.  One allocator for all vectors; handlers run in irq context (kernel/lib/port.h) on the CPU
 * the vector was given.  A handler gets its own argument; spurious and shared interrupts are normal and cost a return value.
 */
#pragma once
#include "kernel/x86/percpu.h"

/* Fixed vectors; 0x30 .. VEC_DEVICE_LAST are allocated per CPU.  0x20-0x2f catch what a badly masked PIC still delivers. */
enum {
    VEC_PIC = 0x20, VEC_DEVICE_FIRST = 0x30, VEC_DEVICE_LAST = 0xef,
    VEC_CALL = 0xf8, VEC_RESCHED = 0xf9, VEC_KICK = 0xfa, VEC_TIMER = 0xfb, VEC_THERMAL = 0xfc, VEC_CMCI = 0xfd, VEC_APIC_ERROR = 0xfe, VEC_SPURIOUS = 0xff,
};

/* What entry.S leaves on the stack. */
struct trap_frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
};
_Static_assert(sizeof(struct trap_frame) == 22 * 8, "entry.S");

/* Return path of every interrupt: when preempt_count is 0 and softwork is not, calls this with interrupts off on the interrupted thread's stack.  It may enable
 * interrupts, run timers and switch threads; it returns with interrupts off.  Implemented by kernel/sched. */
void sched_irq_exit(void);

/* Run one pending host interrupt as the IDT would (back-ends whose hardware acknowledges on exit).  Interrupts off. */
void irq_dispatch_vector(uint8_t vector);

/* ---- Device interrupts.  Thread context unless said otherwise. ---- */
enum irq_result { IRQ_NOT_MINE, IRQ_HANDLED };
typedef enum irq_result irq_fn(void *arg);
enum { IRQ_ANY_CPU = -1 };

/* A vector of the device range on one CPU (IRQ_ANY_CPU: the one with the fewest).  Returns the vector, CPU in *cpu_out; -ENOSPC. */
int  irq_vector_alloc(int cpu, irq_fn *fn, void *arg, const char *name, unsigned *cpu_out);
void irq_vector_free(unsigned cpu, unsigned vector);    /* after it the handler does not run; the device must be silent */
/* What an MSI or MSI-X entry writes to reach vector on cpu.  -ERANGE: that CPU's APIC ID needs interrupt remapping (pick another). */
int  irq_msi_address(unsigned cpu, unsigned vector, uint64_t *addr, uint32_t *data);

/* INTx and ISA lines.  Polarity and trigger: IRQ_ISA takes the MADT's override or edge/high for an ISA number, IRQ_PCI level/low for a GSI. */
enum irq_line { IRQ_ISA, IRQ_PCI };
struct irq_handle;
struct irq_handle *irq_request(enum irq_line, unsigned number, irq_fn *fn, void *arg, const char *name);   /* NULL: no such line or no memory; logged */
void irq_release(struct irq_handle *);
/* For handlers that leave the work to a thread: mask before EOI, unmask from the thread. */
void irq_mask(struct irq_handle *);     /* irq context too */
void irq_unmask(struct irq_handle *);
uint64_t irq_count(const struct irq_handle *);

void irq_each(void (*fn)(void *arg, unsigned cpu, unsigned vector, const char *name, uint64_t count), void *arg);

/* ---- Boot ---- */
void irq_init(void);
void trap_init(void);                   /* build the IDT; boot CPU */
void trap_init_cpu(struct percpu *);     /* GDT, TSS with interrupt stacks, IDT, GS of this CPU */
