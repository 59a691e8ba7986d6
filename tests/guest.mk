# Tiny guest kernels: build/tests/guest/NAME32.elf and NAME64.elf from tests/guest/NAME.c, all multiboot ELF32 files; NAME64e.elf is the same as an ELF64 file,
# NAME64p.elf a PVH kernel.
GUEST := $(B)/tests/guest
guest_both := $(filter-out lib,$(basename $(notdir $(wildcard tests/guest/*.c))))
guest_elfs := $(foreach n,$(guest_both),$(GUEST)/$(n)32.elf $(GUEST)/$(n)64.elf) $(GUEST)/hello64e.elf $(GUEST)/module64e.elf $(GUEST)/module64p.elf
GUEST_FLAGS := -std=gnu11 -O2 -g -Itests/guest -Wall -Wextra -Wno-unused-parameter -Werror -ffreestanding -fno-pic -fno-pie -fno-stack-protector -fno-strict-aliasing -fwrapv \
  -fcf-protection=none -fno-asynchronous-unwind-tables -mno-red-zone -mgeneral-regs-only -fno-tree-loop-distribute-patterns
guest_lib := start.o lib.o apic.o

define guest_flavour
$(GUEST)/$(1)/%.o: tests/guest/%.c
	@mkdir -p $$(@D)
	$(Q)$(CC) -m$(1) $(GUEST_FLAGS) -MMD -MP -c $$< -o $$@
$(GUEST)/$(1)/%.o: tests/guest/lib/%.c
	@mkdir -p $$(@D)
	$(Q)$(CC) -m$(1) $(GUEST_FLAGS) -MMD -MP -c $$< -o $$@
$(GUEST)/$(1)/%.o: tests/guest/lib/%.S
	@mkdir -p $$(@D)
	$(Q)$(CC) -m$(1) -c $$< -o $$@
endef
$(eval $(call guest_flavour,32))
$(eval $(call guest_flavour,64))

$(GUEST)/%32.elf: $(GUEST)/32/%.o $(addprefix $(GUEST)/32/,$(guest_lib)) tests/guest/guest.ld
	$(Q)ld -m elf_i386 -z noexecstack --no-warn-rwx-segments -T tests/guest/guest.ld -o $@ $(filter %.o,$^)
$(GUEST)/%64e.elf: $(GUEST)/64/%.o $(addprefix $(GUEST)/64/,$(guest_lib)) tests/guest/guest.ld
	$(Q)ld -m elf_x86_64 -z noexecstack -z max-page-size=4096 --no-warn-rwx-segments -T tests/guest/guest.ld -o $@ $(filter %.o,$^)
$(GUEST)/%64p.elf: $(GUEST)/64/%.o $(addprefix $(GUEST)/64/,$(guest_lib) pvh.o) tests/guest/guest.ld
	$(Q)ld -m elf_x86_64 -z noexecstack -z max-page-size=4096 --no-warn-rwx-segments -T tests/guest/guest.ld -o $@ $(filter %.o,$^)
$(GUEST)/%64.elf: $(GUEST)/%64e.elf
	$(Q)objcopy -O elf32-i386 $< $@
guests: $(guest_elfs)
.PHONY: guests
.PRECIOUS: $(GUEST)/32/%.o $(GUEST)/64/%.o $(GUEST)/%64e.elf
