/* Shows the interrupt paths of drivers/pci_irq.c with a network card whose interrupt causes software can set: Intel 82574L (QEMU's e1000e). */
#pragma once

void pci_selftest(void);        /* thread context; takes the unclaimed cards, logs the result, gives them back */
