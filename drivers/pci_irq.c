/*
 * MSI-X, MSI, INTx.  Vectors come from the one allocator of kernel/x86/irq.h.  INTx without AML: the interrupt line register, which firmware fills for
 * the 8259, names an ISA number; the MADT says how that reaches the IOAPIC.
 */
#include <errno.h>

#include "drivers/pci.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/x86/acpi.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/vmap.h"

static void free_vectors(struct pci_dev *d)
{
    for (unsigned i = 0; i < d->nvectors; i++)
        if (d->vec[i].used)
            irq_vector_free(d->vec[i].cpu, d->vec[i].vector);
    d->nvectors = 0;
}

static int alloc_vector(struct pci_dev *d, unsigned i, irq_fn *fn, void *arg, const char *name, uint64_t *addr, uint32_t *data)
{
    int v = irq_vector_alloc(IRQ_ANY_CPU, fn, arg, name, &d->vec[i].cpu);
    if (v < 0)
        return v;
    d->vec[i].vector = (uint8_t)v;
    d->vec[i].used = true;
    d->nvectors = i + 1;
    return irq_msi_address(d->vec[i].cpu, (unsigned)v, addr, data);
}

static void intx_off(const struct pci_dev *d, bool off)
{
    uint16_t cmd = pci_read16(d, PCI_COMMAND);
    pci_write16(d, PCI_COMMAND, off ? cmd | PCI_CMD_INTX_DISABLE : cmd & ~PCI_CMD_INTX_DISABLE);
}

/* ---- MSI-X ---- */

static volatile struct pci_msix_entry *map_table(const struct pci_dev *d, unsigned cap, unsigned entries)
{
    uint32_t where = pci_read32(d, cap + PCI_MSIX_TABLE);
    unsigned bar = where & PCI_MSIX_BIR_MASK;
    uint64_t off = where & ~PCI_MSIX_BIR_MASK, len = (uint64_t)entries * sizeof(struct pci_msix_entry);
    if (bar >= PCI_BARS || d->bar[bar].io || !d->bar[bar].base || off + len > d->bar[bar].len)
        return NULL;
    return mmio_map(d->bar[bar].base + off, len, PT_UC);
}

static void write_entry(volatile struct pci_msix_entry *e, uint64_t addr, uint32_t data)
{
    mmio_write32(&e->ctrl, PCI_MSIX_ENTRY_MASKED);
    mmio_write32(&e->addr_lo, (uint32_t)addr);
    mmio_write32(&e->addr_hi, (uint32_t)(addr >> 32));
    mmio_write32(&e->data, data);
    mmio_write32(&e->ctrl, 0);
}

static int enable_msix(struct pci_dev *d, unsigned want, irq_fn *fn, void *const args[], const char *name)
{
    unsigned cap = pci_cap(d, PCI_CAP_ID_MSIX);
    if (!cap)
        return -ENODEV;
    uint16_t ctrl = pci_read16(d, cap + PCI_MSIX_CTRL);
    unsigned entries = (ctrl & PCI_MSIX_SIZE_MASK) + 1u, n = MIN(want, entries), i;
    n = MIN(n, (unsigned)PCI_MAX_VECTORS);
    if (!d->msix)
        d->msix = map_table(d, cap, entries);
    if (!d->msix)
        return -ENODEV;
    pci_write16(d, cap + PCI_MSIX_CTRL, (uint16_t)(ctrl | PCI_MSIX_ENABLE | PCI_MSIX_MASK_ALL));
    for (i = 0; i < entries; i++)
        mmio_write32(&d->msix[i].ctrl, PCI_MSIX_ENTRY_MASKED);
    for (i = 0; i < n; i++) {
        uint64_t addr;
        uint32_t data;
        if (alloc_vector(d, i, fn, args[i], name, &addr, &data))
            break;
        write_entry(&d->msix[i], addr, data);
    }
    if (!i) {
        pci_write16(d, cap + PCI_MSIX_CTRL, (uint16_t)(ctrl & ~PCI_MSIX_ENABLE));
        free_vectors(d);
        return -ENODEV;
    }
    intx_off(d, true);
    pci_write16(d, cap + PCI_MSIX_CTRL, (uint16_t)((ctrl | PCI_MSIX_ENABLE) & ~PCI_MSIX_MASK_ALL));
    d->irq_mode = PCI_IRQ_MSIX;
    return (int)i;
}

/* ---- MSI: one vector ---- */

static int enable_msi(struct pci_dev *d, irq_fn *fn, void *arg, const char *name)
{
    unsigned cap = pci_cap(d, PCI_CAP_ID_MSI);
    uint64_t addr;
    uint32_t data;
    if (!cap)
        return -ENODEV;
    if (alloc_vector(d, 0, fn, arg, name, &addr, &data)) {
        free_vectors(d);
        return -ENODEV;
    }
    uint16_t ctrl = (uint16_t)(pci_read16(d, cap + PCI_MSI_CTRL) & ~(7u << PCI_MSI_MME_SHIFT | PCI_MSI_ENABLE));
    bool wide = ctrl & PCI_MSI_64BIT;
    pci_write32(d, cap + PCI_MSI_ADDR_LO, (uint32_t)addr);
    if (wide)
        pci_write32(d, cap + PCI_MSI_ADDR_HI, (uint32_t)(addr >> 32));
    pci_write16(d, cap + (wide ? PCI_MSI_DATA_64 : PCI_MSI_DATA_32), (uint16_t)data);
    if (ctrl & PCI_MSI_MASKBITS)
        pci_write32(d, cap + (wide ? PCI_MSI_MASK_64 : PCI_MSI_MASK_32), 0);
    intx_off(d, true);
    pci_write16(d, cap + PCI_MSI_CTRL, (uint16_t)(ctrl | PCI_MSI_ENABLE));
    d->irq_mode = PCI_IRQ_MSI;
    return 1;
}

/* ---- INTx ---- */

static int enable_intx(struct pci_dev *d, irq_fn *fn, void *arg, const char *name)
{
    if (!d->irq_pin || d->irq_line >= ISA_IRQS || !d->irq_line)
        return -ENODEV;
    const struct acpi_line *isa = &acpi.isa[d->irq_line];
    d->intx = isa->overridden ? irq_request(IRQ_ISA, d->irq_line, fn, arg, name) : irq_request(IRQ_PCI, isa->gsi, fn, arg, name);
    if (!d->intx)
        return -ENODEV;
    intx_off(d, false);
    d->irq_mode = PCI_IRQ_INTX;
    return 1;
}

int pci_irq_enable(struct pci_dev *d, unsigned modes, unsigned want, irq_fn *fn, void *const args[], const char *name)
{
    int n = -ENODEV;
    if (d->irq_mode)
        return -EBUSY;
    if (modes & PCI_IRQ_MSIX)
        n = enable_msix(d, want, fn, args, name);
    if (n < 0 && modes & PCI_IRQ_MSI)
        n = enable_msi(d, fn, args[0], name);
    if (n < 0 && modes & PCI_IRQ_INTX)
        n = enable_intx(d, fn, args[0], name);
    return n;
}

void pci_irq_disable(struct pci_dev *d)
{
    unsigned cap = d->irq_mode == PCI_IRQ_MSIX ? pci_cap(d, PCI_CAP_ID_MSIX) : d->irq_mode == PCI_IRQ_MSI ? pci_cap(d, PCI_CAP_ID_MSI) : 0;
    intx_off(d, true);
    if (cap) {                          /* the control words share their place */
        uint16_t on = d->irq_mode == PCI_IRQ_MSIX ? PCI_MSIX_ENABLE : PCI_MSI_ENABLE;
        pci_write16(d, cap + PCI_MSI_CTRL, (uint16_t)(pci_read16(d, cap + PCI_MSI_CTRL) & ~on));
    }
    if (d->intx)
        irq_release(d->intx);
    d->intx = NULL;
    free_vectors(d);
    d->irq_mode = PCI_IRQ_NONE;
}

const char *pci_irq_name(const struct pci_dev *d)
{
    return d->irq_mode == PCI_IRQ_MSIX ? "MSI-X" : d->irq_mode == PCI_IRQ_MSI ? "MSI" : d->irq_mode == PCI_IRQ_INTX ? "INTx" : "none";
}
