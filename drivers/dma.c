#include "drivers/dma.h"

#include <errno.h>
#include <string.h>

enum { TRIES = 16 };

static unsigned order_of(size_t size)
{
    unsigned order = 0;
    while ((PAGE_SIZE << order) < size)
        order++;
    return order;
}

/* Masks below 4 GiB have no pool of their own: such devices are rare, and pages that turn out too high are kept aside until one fits. */
void *dma_alloc(const struct pci_dev *d, size_t size, uint64_t *bus)
{
    hpa_t high[TRIES], pa = 0;
    unsigned n = 0, order = order_of(size), flags = PAGE_ZERO | (d->dma_mask < (1ull << 40) ? PAGE_DMA32 : 0);
    while (n < TRIES) {
        pa = page_alloc(order, flags);
        if (!pa || pa + size - 1 <= d->dma_mask)
            break;
        high[n++] = pa;
        pa = 0;
    }
    while (n)
        page_free(high[--n], order);
    *bus = pa;
    return pa ? pa_to_va(pa) : NULL;
}

void dma_free(const struct pci_dev *d, void *va, size_t size)
{
    if (va)
        page_free(va_to_pa(va), order_of(size));
}

int dma_map(const struct pci_dev *d, const void *va, size_t len, enum dma_dir dir, uint64_t *bus)
{
    *bus = va_to_pa(va);
    return *bus + len - 1 <= d->dma_mask ? 0 : -ERANGE;
}

void dma_unmap(const struct pci_dev *d, uint64_t bus, size_t len, enum dma_dir dir) { }
