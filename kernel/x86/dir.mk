core += kernel/x86/entry.S kernel/x86/percpu.c kernel/x86/cpu.c kernel/x86/gdt.c kernel/x86/trap.c kernel/x86/panic.c kernel/x86/vmap.c \
  kernel/x86/lapic.c kernel/x86/ioapic.c kernel/x86/irq.c kernel/x86/time.c kernel/x86/cmos.c kernel/x86/smp.c \
  kernel/x86/mtrr.c kernel/x86/watchdog.c kernel/x86/power.c kernel/x86/mitigations.c kernel/x86/random.c kernel/x86/provoke.c kernel/x86/mce.c
hosted += kernel/x86/acpi.c kernel/x86/rtc.c kernel/x86/csprng.c
