hosted += kernel/vmm/snap.c kernel/vmm/vmclock.c
