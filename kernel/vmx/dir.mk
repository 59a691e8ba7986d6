core += kernel/vmx/vmx.c kernel/vmx/vmcs.c kernel/vmx/check.c kernel/vmx/exit.c kernel/vmx/msr.c kernel/vmx/enter.S
