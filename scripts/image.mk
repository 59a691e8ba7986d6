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
run:
	@scripts/setup
	@$(MAKE) --no-print-directory Q=@ $(B)/demo.iso
	@echo 'Joist starts in QEMU on this terminal; "host poweroff" ends it, Ctrl-A X at once'
	@scripts/run-qemu --iso $(B)/demo.iso
# The same on Intel's virtualization, in Bochs (slow: it is a software CPU too).
run-vtx:
	@scripts/setup
	@$(MAKE) --no-print-directory Q=@ $(B)/demo.iso
	$(Q)scripts/run-bochs --iso $(B)/demo.iso --secs 100000

.PHONY: iso guests run run-vtx

# ---- Our own UEFI loader ----
EFI_FLAGS := -std=gnu11 -O2 -g -I. -isystem /usr/include/efi -isystem /usr/include/efi/x86_64 $(filter-out -Wstrict-prototypes,$(WARN)) \
  -ffreestanding -fpic -fshort-wchar -mno-red-zone -mno-avx -maccumulate-outgoing-args -fno-strict-aliasing -fwrapv -fcf-protection=none \
  -fno-asynchronous-unwind-tables -fstack-protector-strong -mstack-protector-guard=global -ftrivial-auto-var-init=zero -DGNU_EFI_USE_MS_ABI
efi_obj := $(patsubst %.c,$(B)/efi/%.o,$(wildcard boot/uefi/*.c))
$(B)/efi/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(EFI_FLAGS) -MMD -MP -c $< -o $@
$(B)/joist.efi: $(efi_obj)
	$(Q)ld -nostdlib -znocombreloc -znoexecstack -shared -Bsymbolic --no-undefined --warn-common -T /usr/lib/elf_x86_64_efi.lds \
	  /usr/lib/crt0-efi-x86_64.o $^ -o $@.so /usr/lib/libefi.a /usr/lib/libgnuefi.a
	$(Q)objcopy -j .text -j .sdata -j .data -j .rodata -j .dynamic -j .dynsym -j '.rel*' -j '.reloc' --target=efi-app-x86_64 --subsystem=10 $@.so $@

efi-image: $(B)/joist.elf $(B)/joist.efi $(B)/tools/crc32c
	$(Q)scripts/mkimage efi $(B)/joist-efi.img --images '$(IMAGES)' --cmdline '$(CMDLINE)'
.PHONY: efi-image
all: $(B)/joist.efi
