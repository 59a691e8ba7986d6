hosted += guestdev/pci.c
hosted += guestdev/pcihost.c
hosted += guestdev/msix.c
