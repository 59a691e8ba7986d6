/* QEMU's teaching device, as a test of the driver layer itself: MSI, INTx, DMA.  QEMU documentation, "EDU device". */
#pragma once
#include "drivers/pci.h"

extern const struct pci_driver edu_driver;
