/*
 * A guest's PCI bus 0 and the functions on it: configuration space with write masks, BARs, capabilities, INTx, and the right to DMA.
 * PCI Local Bus Specification 3.0.
 *
 * A device embeds struct pci_func, describes itself (pci_func_init, pci_set_bar, pci_add_cap, …) and plugs it in with pci_plug.
 * Locks: the bus's mutex serialises configuration accesses and guards cfg[] and the mappings; hooks run under it.  INTx has a spinlock of its own,
 * which is taken inside device locks.  The command register may be read by anyone (pci_can_dma).
 */
#pragma once
#include "kernel/hw/pci.h"
#include "kernel/vmm/gdev.h"

struct pci_bus;
struct pci_func;

/* Where BARs may decode; anything outside is not mapped, whatever the guest writes. */
struct pci_windows {
    uint64_t mem32, mem32_end;      /* below 4 GiB */
    uint64_t mem64, mem64_end;      /* above guest RAM; equal: none */
    uint64_t io, io_end;
    uint64_t mem32_first, io_first; /* where firmware begins with BARs, clear of what else is there; 0: at the window's start */
};

struct pci_wires {
    struct bus *mem, *io;
    struct msi_wire msi;
    struct irqline gsi[8];          /* PIRQA..H at the IOAPIC, high = asserted */
    struct irqline pic[16];         /* ISA IRQs that PIRQs can be routed to, for a guest in PIC mode */
};

/* A part of a BAR with a handler; parts without read as all ones. */
struct pci_region { uint64_t off, len; io_fn *fn; void *dev; const char *name; };

struct pci_bar {
    uint64_t size;                      /* power of two; 0: no BAR, or the upper half of a 64-bit one */
    uint8_t flags;                      /* PCI_BAR_IO, PCI_BAR_64, PCI_BAR_PREFETCH */
    const struct pci_region *regions;   /* live as long as the function */
    unsigned nregions;
    uint64_t at;                        /* where its regions are on the bus now; PCI_UNMAPPED */
};
#define PCI_UNMAPPED (~0ull)

enum { PCI_CFG_BYTES = 256 };

struct pci_func {
    struct pci_bus *bus;                /* set by pci_plug */
    const char *name;
    void *dev;                          /* for the hooks */
    uint8_t devfn;
    uint8_t next_cap, last_cap;
    bool intx, intx_out;                /* level the device wants; level on the wire.  Under the bus's INTx lock. */
    uint8_t cfg[PCI_CFG_BYTES];
    uint8_t initial[PCI_CFG_BYTES];     /* value at reset; taken by pci_plug */
    uint8_t wmask[PCI_CFG_BYTES];       /* bits that the guest can write */
    uint8_t w1c[PCI_CFG_BYTES];         /* bits that it clears by writing 1 */
    struct pci_bar bar[6];
    /* Both optional, under the bus's mutex.  before_read fills cfg[] where it is not memory; written runs after bytes [off, off+size) changed. */
    void (*before_read)(void *dev, unsigned off, unsigned size);
    void (*written)(void *dev, unsigned off, unsigned size);
};

/* ---- Describing a function; before pci_plug. ---- */
struct pci_ids { uint16_t vendor, device, subsys_vendor, subsys; uint8_t revision; uint32_t class_code; };
void pci_func_init(struct pci_func *, const char *name, void *dev, const struct pci_ids *);
void pci_set_bar(struct pci_func *, unsigned n, uint64_t size, unsigned flags, const struct pci_region *, unsigned nregions);
/* Appends a capability of `len` bytes to the chain; returns its offset in cfg[].  Its bytes are read-only until wmask says otherwise. */
unsigned pci_add_cap(struct pci_func *, uint8_t id, unsigned len);
void pci_use_intx(struct pci_func *, unsigned pin /* 1 = INTA */);

/* ---- The bus. ---- */
struct pci_bus *pci_bus_create(const struct pci_wires *, const struct pci_windows *);       /* NULL: no memory */
void pci_bus_destroy(struct pci_bus *);                 /* after every function is unplugged */
int  pci_plug(struct pci_bus *, struct pci_func *, unsigned slot, unsigned fn);             /* 0; -EBUSY taken */
void pci_unplug(struct pci_func *);                     /* unmaps its BARs; idempotent */
const struct pci_wires *pci_wires(const struct pci_bus *);

/* Configuration access by bus/device/function as ECAM has it; size 1, 2, 4; not crossing a dword.  All ones where there is nothing. */
uint32_t pci_cfg_read(struct pci_bus *, uint32_t bdf, unsigned off, unsigned size);
void pci_cfg_write(struct pci_bus *, uint32_t bdf, unsigned off, unsigned size, uint32_t val);

/* What firmware does after a reset: gives every BAR an address, switches decoding on (bus mastering stays off), fills in interrupt lines. */
void pci_assign(struct pci_bus *);
/* 8259 input of each PIRQ, 0 = not routed (from the LPC bridge's PIRQ registers). */
void pci_route_pirq(struct pci_bus *, const uint8_t irq[8]);

/* ---- What a device calls at run time. ---- */
void pci_func_reset(struct pci_func *);                 /* configuration space to its initial value, BARs unmapped, INTx low */
void pci_func_snap(struct pci_func *, struct snap *);
void pci_set_intx(struct pci_func *, bool level);       /* any context but irq; under the device's lock */
static inline unsigned pci_command(const struct pci_func *f)
{
    return atomic_load_relaxed((const uint16_t *)(const void *)&f->cfg[PCI_COMMAND]);
}
static inline bool pci_can_dma(const struct pci_func *f) { return pci_command(f) & PCI_CMD_MASTER; }

/* For `written` hooks: do bytes [off, off+size) and [first, first+bytes) meet? */
static inline bool pci_touches(unsigned off, unsigned size, unsigned first, unsigned bytes)
{
    return off < first + bytes && first < off + size;
}

/* Little-endian fields of cfg[]. */
static inline uint16_t pci_get16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static inline uint32_t pci_get32(const uint8_t *p) { return pci_get16(p) | (uint32_t)pci_get16(p + 2) << 16; }
static inline void pci_put16(uint8_t *p, uint16_t v) { p[0] = (uint8_t)v, p[1] = (uint8_t)(v >> 8); }
static inline void pci_put32(uint8_t *p, uint32_t v) { pci_put16(p, (uint16_t)v), pci_put16(p + 2, (uint16_t)(v >> 16)); }
