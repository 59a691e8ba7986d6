/*
 * The interrupt messages of a PC and the fabric that routes them: from IOAPIC pins, MSI writes and ICRs to local APICs.
 * Intel SDM vol. 3 "Determining IPI Destination", "Message Signalled Interrupts".
 *
 * The fabric is immutable once the machine is wired.  Sending takes no lock: it sets IRR bits with atomics and kicks vCPUs through their wires.
 * Any context but irq.
 */
#pragma once
#include "kernel/lib/base.h"
#include "kernel/hw/apic.h"

enum { APIC_MAX_CPUS = 32 };
struct lapic;

struct apic_msg {
    uint32_t dest;
    uint16_t delivery;          /* APIC_FIXED … APIC_EXTINT */
    uint8_t vector;
    bool logical;
    bool level;                 /* trigger mode: the EOI comes back to the IOAPIC */
    bool wide;                  /* dest has 32 bits (x2APIC ICR); otherwise 8, and FFh is everyone */
};
struct apic_wire { void (*send)(void *arg, const struct apic_msg *); void *arg; };

struct apic_fabric {
    struct lapic *cpu[APIC_MAX_CPUS];
    unsigned ncpus;
    int8_t by_id[256];          /* APIC ID → index, -1 none */
    /* EOI of a level-triggered vector; called on the vCPU's thread, no lock held. */
    struct { void (*eoi)(void *arg, uint8_t vector); void *arg; } ioapic;
    /* The 8259 pair behind ExtINT: vector it would give, or -1; acknowledge of that vector. */
    struct { int (*pending)(void *arg); void (*intack)(void *arg, int vector); void *arg; } pic;
};

void apic_fabric_init(struct apic_fabric *);
void apic_send(void *fabric, const struct apic_msg *);                  /* fits struct apic_wire */
void apic_msi(void *fabric, uint64_t addr, uint32_t data);              /* fits struct msi_wire; an address outside FEExxxxxh is dropped */
/* A local APIC's ICR: shorthands (ICR_SELF …) are bits 19:18 of icr. */
void apic_send_ipi(struct apic_fabric *, struct lapic *from, uint32_t icr, uint32_t dest, bool wide);
