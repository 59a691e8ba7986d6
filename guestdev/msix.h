/*
 * MSI-X and MSI of an emulated PCI function.  PCI Local Bus Specification 3.0, sections 6.8.1 and 6.8.2.
 *
 * A message that may not leave now (vector or function masked, bus mastering off) stays pending and leaves when it may.
 */
#pragma once
#include "guestdev/pci.h"
#include "kernel/lib/port.h"

enum { MSIX_MAX = 64 };

struct msix {
    struct spinlock lock;               /* guards the rest; inside device locks */
    struct pci_func *f;
    uint8_t cap;
    unsigned n;
    uint64_t pending;                   /* bit per vector */
    struct pci_msix_entry table[MSIX_MAX];
};

/* Adds the capability: n vectors, table and pending bits in BAR `bar`.  The caller lays msix_table_io (n * 16 bytes) and msix_pba_io (8 bytes) there,
 * both with the struct msix as their device. */
void msix_init(struct msix *, struct pci_func *, unsigned n, unsigned bar, uint32_t table_off, uint32_t pba_off);
io_fn msix_table_io, msix_pba_io;
void msix_reset(struct msix *);
void msix_snap(struct msix *, struct snap *);
/* Call from the function's `written` hook. */
void msix_written(struct msix *, unsigned off, unsigned size);
bool msix_enabled(const struct msix *);
/* Any context but irq.  An out-of-range vector (guest-chosen) is ignored. */
void msix_send(struct msix *, unsigned vector);

/* MSI with per-vector masking and 64-bit addresses; all its registers are in configuration space. */
struct msi {
    struct spinlock lock;
    struct pci_func *f;
    uint8_t cap;
    unsigned n;
    uint32_t pending;
};
void msi_init(struct msi *, struct pci_func *, unsigned nlog2 /* 0..5 */);
void msi_reset(struct msi *);
void msi_snap(struct msi *, struct snap *);
void msi_written(struct msi *, unsigned off, unsigned size);
bool msi_enabled(const struct msi *);
/* Vectors beyond those the guest granted share the last one, as the specification has it. */
void msi_send(struct msi *, unsigned vector);
