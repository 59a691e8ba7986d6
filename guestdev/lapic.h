/*
 * Local APIC, xAPIC and x2APIC.  Intel SDM vol. 3 "Advanced Programmable Interrupt Controller (APIC)".
 *
 * The state is the architectural 4 KiB register page itself (x2APIC mode: register n of MSR 800h + n at offset 16n, ICR as one 64-bit word at 300h), so
 * that a CPU's TPR shadow or APICv can work on it.  Who writes what: IRR and TMR any CPU, by atomics; everything else the own vCPU's thread only.  The timer
 * callback touches IRR and one atomic deadline.  There is no lock.  With `virt` the guest's CPU itself reads the page and changes IRR, ISR, PPR and what the guest
 * writes: then others leave their requests in a set beside the page, and the own thread moves them into IRR (lapic_virt.c).
 *
 * Not offered: EOI-broadcast suppression, CMCI, extended destination IDs.  The APIC ID is read-only, as in newer CPUs.
 * The timer counts 1 ns ticks (1 GHz) before its divider.  A periodic timer keeps its phase; ticks closer than LAPIC_MIN_PERIOD_NS to the present are merged.
 */
#pragma once
#include "guestdev/apic.h"
#include "kernel/vmm/event.h"
#include "kernel/vmm/gdev.h"
#include "kernel/vmm/vmclock.h"

struct vcpu;
enum { LAPIC_TIMER_HZ = 1000000000, LAPIC_MIN_PERIOD_NS = 20000 };

struct lapic_config {
    uint32_t apic_id;           /* below 255; unique */
    bool bsp;
    bool x2apic;                /* CPUID offers it */
    bool tsc_deadline;          /* CPUID offers it */
    bool virt;                  /* the CPU delivers from the page (struct apic_virt) */
    unsigned phys_bits;         /* MAXPHYADDR, for the reserved bits of APIC_BASE */
    struct vmclock *clock;
    struct vcpu_wires wires;
    /* Optional: the guest moved or disabled the register page (base 0).  On the vCPU's thread. */
    void (*moved)(void *arg, uint32_t apic_id, uint64_t base);
    void *moved_arg;
};

/* Adds itself to the fabric.  NULL: no memory or the fabric is full. */
struct lapic *lapic_create(const struct lapic_config *, struct apic_fabric *);
extern const struct gdev_ops lapic_ops;

/* The state that firmware leaves (MultiProcessor Specification 1.4, "Virtual Wire Mode"): enabled, LINT0 = ExtINT on the boot CPU, LINT1 = NMI.  For loaders that
 * start a kernel without firmware; after reset. */
void lapic_virtual_wire(struct lapic *);

/* What the vCPU needs, kernel/vmm/event.h. */
void lapic_irqchip(struct lapic *, struct vcpu_irqchip *);

/* struct irqline.set: arg is the lapic, pin 0 (LINT0: the PIC's output) or 1 (LINT1: NMI). */
void lapic_lint(void *lapic, unsigned pin, bool level);

/* Bus form of the MMIO page for the CPU that owns this LAPIC; io->off is the offset in the page. */
int lapic_io(void *lapic, struct io *);
int lapic_virt_io(void *lapic, struct io *);    /* one created with `virt` */

/* For the fabric.  Any context but irq, any CPU. */
void lapic_deliver(struct lapic *, unsigned delivery, uint8_t vector, bool level);
bool lapic_match_logical(const struct lapic *, uint32_t dest, bool wide);
unsigned lapic_priority(const struct lapic *);          /* TPR class, for lowest-priority arbitration */
bool lapic_hw_enabled(const struct lapic *);
bool lapic_sw_enabled(const struct lapic *);
