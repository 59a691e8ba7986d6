/*
 * The root of a guest's PCI: configuration ports CF8h/CFCh, ECAM, Q35 host bridge (00:00.0) and ICH9 LPC bridge (00:1f.0) with the PIRQ routers.
 * Intel 3 Series Express Chipset datasheet; Intel ICH9 datasheet, chapter 13.
 */
#pragma once
#include "guestdev/pci.h"

#define PCIHOST_ECAM_BASE 0xb0000000ull
#define PCIHOST_ECAM_LEN  (256ull << 20)

struct pcihost;

/* Claims CF8h-CFFh and the ECAM; plugs both bridges.  pm_base: I/O base of the ACPI block, shown in the LPC bridge. */
int  pcihost_create(const struct pci_wires *, const struct pci_windows *, uint16_t pm_base, struct pcihost **);
void pcihost_destroy(struct pcihost *);
/* Byte accesses to CF9h, the reset control register inside our ports, go to `fn` with offset 0.  Before the first run. */
void pcihost_set_reset_port(struct pcihost *, io_fn *fn, void *dev);
struct pci_bus *pcihost_bus(struct pcihost *);
extern const struct gdev_ops pcihost_ops;       /* dev = struct pcihost */
/* What firmware does between reset and the kernel: PIRQs to IRQ 10 and 11, BARs and interrupt lines assigned. */
void pcihost_firmware(struct pcihost *);
