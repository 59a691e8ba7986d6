core += kernel/main.c
core += kernel/virt.c
