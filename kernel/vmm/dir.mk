hosted += kernel/vmm/bus.c
hosted += kernel/vmm/gmem.c
hosted += kernel/vmm/snap.c
hosted += kernel/vmm/vmclock.c
hosted += kernel/vmm/decode.c
hosted += kernel/vmm/cpuid.c
hosted += kernel/vmm/msr.c
