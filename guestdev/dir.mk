hosted += guestdev/pci.c
hosted += guestdev/pcihost.c
hosted += guestdev/msix.c
hosted += guestdev/virtq.c
hosted += guestdev/virtio_pci.c
