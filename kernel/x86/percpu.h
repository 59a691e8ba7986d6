/*
 * Per-CPU data, reached by GS.  Assembly and the compiler (stack canary) use fixed offsets; the rest are slots for the subsystems.
 * A pointer from this_cpu() stays right only while preemption is off.
 */
#pragma once
#include "kernel/hw/x86.h"
#include "kernel/lib/port.h"

/* preempt_count: bits 15:0 nesting of preempt_disable and spinlocks; PREEMPT_IRQ per hard interrupt handler. */
#define PREEMPT_IRQ     0x10000u
#define PREEMPT_NMI     0x1000000u

/* softwork: why the interrupt return path and preempt_enable() call sched_irq_exit() / sched_preempt_point(). */
#define SOFT_RESCHED    1u      /* another thread should run here */
#define SOFT_TIMER      2u      /* timer callbacks are due */
#define SOFT_WORK       4u      /* free for the scheduler's other deferred jobs */

struct irq_desc;

struct percpu {
    struct percpu *self;                /* 0 */
    uint32_t preempt_count;             /* 8: only this CPU touches it */
    uint32_t softwork;                  /* 12: SOFT_ bits; other CPUs may set bits (atomic_or) */
    struct thread *current;             /* 16 */
    uint32_t cpu;                       /* 24: index, 0 = boot CPU */
    uint32_t apic_id;                   /* 28 */
    uint64_t kstack;                    /* 32: top of the current thread's kernel stack */
    uint64_t canary;                    /* 40: the same on all CPUs, because a preempted function may return on another */
    uint64_t spec_ctrl_guest;           /* 48: not 0: SPEC_CTRL has a guest's value during the guest entry that is under way */

    /* One pointer per subsystem; allocated and freed by its owner, reached by other CPUs through percpu_of(). */
    void *sched, *timers, *work, *fpu_owner, *fpu;
    void *hv, *vcpu, *page_cache, *console;
    void *spare[7];

    /* Owned by kernel/x86. */
    uint64_t last_vm;                   /* mitigations_vm_switch() */
    bool online;                        /* takes interrupts and threads */
    bool tsc_deadline;                  /* clock event by TSC_DEADLINE, else by count */
    bool nmi_expected;                  /* a back-end or test asked for an NMI on this CPU */
    uint32_t acpi_uid;
    uint64_t tsc_offset;                /* added to RDTSC for clock_ns: 0 unless TSCs differ and TSC_ADJUST is missing */
    uint64_t irqs, ipis, timer_irqs, spurious, nmis, nmi_unknown;
    uint64_t nmi_where;                 /* RIP that the last expected NMI interrupted */
    uint32_t watchdog_unanswered;       /* kicks by the CPU that watches this one since the last sign of life */
    uint32_t watchdog_undone;           /* rounds that found soft work waiting since this CPU's own timers ran */
    bool watchdog_said;
    struct timer watchdog;
    uint64_t armed_ns;                  /* deadline programmed into the clock event; ~0: none */
    struct irq_desc *vectors[256];      /* interrupt handlers by vector, changed under the IRQ lock */
    uint64_t gdt[8] __aligned_to(16);
    struct x86_tss tss __aligned_to(64);
} __aligned_to(64);

_Static_assert(offsetof(struct percpu, preempt_count) == 8, "asm");
_Static_assert(offsetof(struct percpu, softwork) == 12, "asm");
_Static_assert(offsetof(struct percpu, current) == 16, "asm");
_Static_assert(offsetof(struct percpu, cpu) == 24, "asm");
_Static_assert(offsetof(struct percpu, apic_id) == 28, "asm");
_Static_assert(offsetof(struct percpu, kstack) == 32, "asm");
_Static_assert(offsetof(struct percpu, canary) == 40, "-mstack-protector-guard-offset");
_Static_assert(offsetof(struct percpu, spec_ctrl_guest) == 48, "entry stubs");

extern struct percpu *percpu_table[MAX_CPUS];
extern unsigned percpu_count;           /* CPUs with a percpu area; indexes are dense */

static inline struct percpu *this_cpu(void)
{
    struct percpu *p;
    __asm__ volatile("movq %%gs:0, %0" : "=r"(p));
    return p;
}
static inline struct percpu *percpu_of(unsigned cpu) { return percpu_table[cpu]; }
static inline unsigned cpu_index(void)
{
    uint32_t v;
    __asm__ volatile("movl %%gs:24, %0" : "=r"(v));
    return v;
}
static inline struct thread *cpu_current(void)
{
    struct thread *t;
    __asm__ volatile("movq %%gs:16, %0" : "=r"(t));
    return t;
}
/* One instruction each, so that an interrupt or migration between load and use cannot hit the wrong CPU. */
static inline void preempt_count_add(uint32_t n) { __asm__ volatile("addl %0, %%gs:8" :: "ri"(n) : "memory", "cc"); }
static inline bool preempt_count_sub(uint32_t n)        /* true: the count is now zero */
{
    bool zero;
    __asm__ volatile("subl %1, %%gs:8" : "=@ccz"(zero) : "ri"(n) : "memory");
    return zero;
}
static inline uint32_t preempt_count(void)
{
    uint32_t v;
    __asm__ volatile("movl %%gs:8, %0" : "=r"(v));
    return v;
}
static inline uint32_t cpu_softwork(void)
{
    uint32_t v;
    __asm__ volatile("movl %%gs:12, %0" : "=r"(v) :: "memory");
    return v;
}
static inline bool in_irq(void) { return preempt_count() >= PREEMPT_IRQ; }

/* Boot CPU: GS and canary, before the first function with a stack guard runs. */
void percpu_init_boot(void);
/* Area for one more CPU (boot CPU's thread): next index, or NULL: no memory or MAX_CPUS reached. */
struct percpu *percpu_create(uint32_t apic_id, uint32_t acpi_uid);
void percpu_drop_last(void);            /* takes back the last percpu_create(): its CPU did not start; the memory stays, the CPU might still use it */
/* Makes p this CPU's area (GS base); assembly-free part of AP start. */
void percpu_load(struct percpu *p);
