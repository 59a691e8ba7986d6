core += kernel/x86/entry.S kernel/x86/percpu.c kernel/x86/cpu.c kernel/x86/gdt.c kernel/x86/trap.c kernel/x86/vmap.c kernel/x86/early_uart.c kernel/x86/panic.c
