/* Which PCI drivers there are, in the order they are asked. */
#include "drivers/edu.h"
#include "drivers/pci.h"

const struct pci_driver *const pci_drivers[] = {
    &edu_driver,
    NULL,
};
