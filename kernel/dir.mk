core += kernel/main.c
core += kernel/host.c
core += kernel/virt.c
