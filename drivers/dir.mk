core += drivers/uart16550.c
core += drivers/pci.c drivers/pci_irq.c drivers/dma.c drivers/drivers.c
core += drivers/edu.c drivers/pci_selftest.c
core += drivers/fbcon.c
core += drivers/ps2.c
hosted += drivers/ps2_keys.c

# The console font as a C array, from Debian's package.
FONT ?= /usr/share/consolefonts/Unifont-APL8x16.psf.gz
$(B)/gen/drivers/font8x16.h: scripts/mkfont $(FONT)
	@mkdir -p $(@D)
	$(Q)scripts/mkfont $(FONT) > $@
$(B)/core/drivers/fbcon.o: $(B)/gen/drivers/font8x16.h
