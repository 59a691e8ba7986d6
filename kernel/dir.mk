core += kernel/main.c
core += kernel/host.c
core += kernel/host_pci.c
core += kernel/virt.c
core += kernel/image_selftest.c
