/* `host pci`: what drivers/pci.h knows, in the words of kernel/host.h. */
#include "drivers/pci.h"
#include "kernel/host.h"

#include <stdio.h>

void host_pci_each(void (*fn)(void *arg, const struct host_pci *), void *arg)
{
    for (struct pci_dev *d = NULL; (d = pci_next(d)) != NULL; ) {
        char irq[24];
        if (d->irq_mode == PCI_IRQ_INTX)
            snprintf(irq, sizeof irq, "INTx %u", d->irq_line);
        else
            snprintf(irq, sizeof irq, "%s", d->irq_mode ? pci_irq_name(d) : "-");
        const struct host_pci p = {
            .seg = d->seg, .bus = d->bus, .dev = PCI_DEV(d->devfn), .fn = PCI_FN(d->devfn), .vendor = d->vendor, .device = d->device,
            .class_code = d->class_code, .driver = d->driver, .irq = irq,
        };
        fn(arg, &p);
    }
}
