hosted += guestdev/apic.c
hosted += guestdev/lapic.c guestdev/lapic_timer.c guestdev/lapic_msr.c guestdev/lapic_virt.c
hosted += guestdev/ioapic.c
hosted += guestdev/pic.c
hosted += guestdev/pit.c
hosted += guestdev/uart.c
hosted += guestdev/hpet.c
hosted += guestdev/rtc.c
hosted += guestdev/pm.c
hosted += guestdev/sysport.c
hosted += guestdev/i8042.c
hosted += guestdev/legacy.c
hosted += guestdev/pci.c
hosted += guestdev/pcihost.c
hosted += guestdev/msix.c
hosted += guestdev/virtq.c
hosted += guestdev/virtio_pci.c
hosted += guestdev/virtio_blk.c
hosted += guestdev/virtio_console.c
hosted += guestdev/virtio_rng.c
hosted += guestdev/load.c
hosted += guestdev/load_linux.c
hosted += guestdev/load_multiboot.c
hosted += guestdev/load_pvh.c
hosted += guestdev/machine.c
hosted += guestdev/acpi_tables.c
# The DSDT as a C array.
.DEFAULT_GOAL := all
$(B)/gen/guestdev/dsdt.h: guestdev/dsdt.asl
	@mkdir -p $(@D)
	$(Q)iasl -vs -we -tc -p $(@D)/dsdt $< >$(@D)/dsdt.log 2>&1 || { cat $(@D)/dsdt.log; exit 1; }
	@mv $(@D)/dsdt.hex $@
$(foreach f,core host fuzzlib,$(B)/$(f)/guestdev/acpi_tables.o): $(B)/gen/guestdev/dsdt.h
