# Boot images.  IMAGES=DIR: files for the image store.  CMDLINE=...: kernel command line.  TIMEOUT=N: seconds GRUB waits.
IMAGES ?=
CMDLINE ?=
TIMEOUT ?= 0

$(B)/tools/%: scripts/%.c
	@mkdir -p $(@D)
	$(Q)$(CC) -O2 -Wall -Wextra -std=gnu11 $< -o $@

# Always made anew: the store's contents and the command line are not files that make could watch.
iso: $(B)/joist.elf $(B)/tools/crc32c
	$(Q)scripts/mkimage iso $(B)/joist.iso --images '$(IMAGES)' --cmdline '$(CMDLINE)' --timeout $(TIMEOUT)

# A stock Debian kernel with a small file system: what tests and demo run as a guest.
guests: $(B)/guests/initrd
$(B)/guests/initrd: scripts/mkguest scripts/deps.lock $(wildcard tests/guest/linux/*)
	$(Q)scripts/mkguest $(DEPS) $(@D)

$(B)/demo.iso: $(B)/joist.elf $(B)/tools/crc32c $(B)/guests/initrd scripts/mkimage boot/grub/grub.cfg
	$(Q)scripts/mkimage iso $@ --images $(B)/guests --cmdline 'demo $(CMDLINE)'

# The demo: Joist with one Linux VM, on this terminal.  Ctrl-A X ends QEMU.
run: $(B)/demo.iso
	$(Q)scripts/run-qemu --iso $<
# The same on Intel's virtualization, in Bochs (slow: it is a software CPU too).
run-vtx: $(B)/demo.iso
	$(Q)scripts/run-bochs --iso $< --secs 100000

.PHONY: iso guests run run-vtx
