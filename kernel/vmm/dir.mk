hosted += kernel/vmm/bus.c
hosted += kernel/vmm/gmem.c
hosted += kernel/vmm/snap.c
hosted += kernel/vmm/vmclock.c
hosted += kernel/vmm/decode.c
hosted += kernel/vmm/cpuid.c
hosted += kernel/vmm/msr.c

hosted += kernel/vmm/vm.c kernel/vmm/vcpu.c kernel/vmm/exits.c kernel/vmm/event.c kernel/vmm/nested.c kernel/vmm/task.c kernel/vmm/insn.c kernel/vmm/gwalk.c
hosted += kernel/vmm/pvclock.c kernel/vmm/policy.c
hosted += kernel/vmm/emulate.c
hosted += kernel/vmm/emulate_alu.c
hosted += kernel/vmm/emulate_operand.c
hosted += kernel/vmm/emulate_sse.c
hosted += kernel/vmm/emulate_string.c
