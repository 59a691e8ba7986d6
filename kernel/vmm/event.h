/*
 * The seam between a vCPU and its interrupt controller.  vcpu_irqchip: what the LAPIC model offers to the vCPU (filled by guestdev/machine.c).
 * vcpu_wires: what the vCPU offers to the LAPIC model.  Neither knows the other's inside.
 */
#pragma once
#include "kernel/lib/base.h"

struct snap;

/* An event to deliver on guest entry; values of `type` are those of VMCB EVENTINJ and of VM-entry interruption information. */
enum event_type { EVENT_INTR = 0, EVENT_NMI = 2, EVENT_EXCEPTION = 3, EVENT_SOFT_INTR = 4 };
struct event_info { enum event_type type; uint8_t vector; bool valid, has_error; uint32_t error; uint8_t insn_len; };

enum {
    IRQ_NONE = -1,
    IRQ_EXTINT = 0x100,         /* flag beside the vector: comes from the PIC, ignores TPR */
    IRQ_VIRT = 0x200,           /* flag: nothing to inject, the CPU delivers from the page (virtual-interrupt delivery); vector 0: nothing waits */
};

/* What a CPU with virtual-interrupt delivery must know beside the page.  SDM vol 3 "APIC Virtualization and Virtual Interrupts". */
struct apic_virt {
    bool xapic, x2apic;         /* how the guest reaches the registers; neither: disabled */
    uint8_t rvi, svi;           /* highest vector requested and in service, 0: none */
    uint64_t eoi_exit[4];       /* EOI of these vectors is of interest to others: bit per vector */
};

struct vcpu_irqchip {
    void *apic;
    /* Highest vector that would be delivered if the CPU could take it now, TPR left out of account (the back-end compares TPR), ISR taken into
     * account; IRQ_EXTINT | vector for the PIC's; IRQ_NONE.  A LAPIC created with `virt` never says IRQ_NONE but IRQ_VIRT | vector: its IRR and ISR may have
     * been changed by the CPU and by itself, so virt() is to be asked before the next entry.  Own vCPU thread only. */
    int  (*pending)(void *apic);
    /* The CPU has taken `vector` as `pending` returned it: IRR → ISR, or INTA to the PIC.  Own vCPU thread only. */
    void (*accept)(void *apic, int vector);
    /*
     * The vCPU notes here, before it enters the guest, what it was offered: a vector as `pending` returned it.  The CPU takes it without telling, so IRR keeps it
     * until `accept`; one that comes meanwhile must not be merged with one that the guest may have handled already.  Atomic.
     */
    uint32_t *offered;
    /* The architectural 4 KiB register page, page aligned; TPR at 0x80.  The back-end may give it to the CPU. */
    uint8_t *page;
    /* x2APIC register block, MSR 800h-8FFh, and IA32_APIC_BASE, IA32_TSC_DEADLINE.  false: #GP. */
    bool (*msr_read)(void *apic, uint32_t msr, uint64_t *val);
    bool (*msr_write)(void *apic, uint32_t msr, uint64_t val);
    /* xAPIC MMIO page access, offset 0 .. FFFh; also reached through the bus. */
    int  (*mmio)(void *apic, uint32_t off, bool write, uint32_t *val);
    /* With `virt` only, own vCPU thread: what to load before the entry; the guest has written the register at `off` into the page; the CPU has carried out
     * an EOI of this vector that others want to know of. */
    void (*virt)(void *apic, struct apic_virt *);
    void (*wrote)(void *apic, uint32_t off);
    void (*eoi)(void *apic, uint8_t vector);
    /* INIT at this CPU: LAPIC state back to reset values but for the APIC ID and APIC_BASE. */
    void (*init)(void *apic);
};

/* Any context but irq, any CPU.  All set an atomic request and kick the vCPU out of guest mode or out of HLT. */
struct vcpu_wires {
    void *vcpu;
    void (*irq)(void *vcpu);                    /* `pending` may have changed */
    void (*tpr)(void *vcpu);                    /* the page's TPR was written by other than the CPU; own vCPU thread, or vCPU stopped */
    void (*nmi)(void *vcpu);
    void (*smi)(void *vcpu);
    void (*init)(void *vcpu);
    void (*sipi)(void *vcpu, uint8_t vector);
    uint64_t (*tsc)(void *vcpu);                /* guest TSC now */
    uint64_t (*tsc_to_ns)(void *vcpu, uint64_t guest_tsc);      /* VM time at which the guest TSC reaches that value */
};
