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

.PHONY: iso
