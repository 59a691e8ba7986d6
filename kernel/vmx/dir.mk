core += kernel/vmx/vmx.c kernel/vmx/vmcs.c kernel/vmx/explain.c kernel/vmx/exit.c kernel/vmx/apic.c kernel/vmx/msr.c kernel/vmx/enter.S
hosted += kernel/vmx/caps.c kernel/vmx/check.c
