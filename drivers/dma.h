/*
 * Addresses for devices.  There is no IOMMU in use: a DMA address is the host physical one.  Drivers go through here all the same, so that one can come.
 */
#pragma once
#include "drivers/pci.h"
#include "kernel/mm/page.h"

enum dma_dir { DMA_TO_DEVICE, DMA_FROM_DEVICE, DMA_BOTH };

/* Zeroed memory for rings and tables, page aligned, within the device's mask; *bus gets its address.  NULL: none.  Thread context. */
void *dma_alloc(const struct pci_dev *, size_t size, uint64_t *bus);
void  dma_free(const struct pci_dev *, void *va, size_t size);

/* Direct-map memory of any kind for one transfer: 0, or -ERANGE when the device cannot reach it (the caller bounces).  Any context. */
int  dma_map(const struct pci_dev *, const void *va, size_t len, enum dma_dir, uint64_t *bus);
void dma_unmap(const struct pci_dev *, uint64_t bus, size_t len, enum dma_dir);
