# Joist.  Each folder names its sources in dir.mk:
#   core    += kernel only, general registers only
#   hosted  += the same, and also compiled for Linux (unit tests, sanitizers, fuzzers)
#   service += kernel only, may use SSE (network, SSH, crypto)
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDARY:
# make DEBUG=1: everything in build/debug; nothing of kernel/lib/port.h is inline, and torture=N on the command line preempts at random.
B := $(if $(DEBUG),build/debug,build)
DEPS ?= build/deps
NEWLIB := $(DEPS)/newlib/x86_64-elf
LIBS := $(NEWLIB)/lib/libc.a $(DEPS)/zlib/lib/libz.a $(DEPS)/libzstd/lib/libzstd.a

core :=
hosted :=
service :=
include $(wildcard boot/dir.mk kernel/dir.mk kernel/*/dir.mk drivers/dir.mk guestdev/dir.mk mgmt/dir.mk)

all: $(B)/joist.elf
#: make run                the demo: Joist in QEMU on this terminal, with a Linux VM (run-vtx: the same on VT-x, in Bochs)
#: make test [ONLY=REGEX]  all tests, or those whose name matches; the last line counts
#: make iso [IMAGES=DIR]   build/joist.iso for a stick or CD, with the files of DIR as image store
#: make efi-image          build/joist.efi, our own UEFI loader, and a FAT image with it
#: make tools              host tools for pools and disk images
#: make fuzz [SECONDS=N]   every fuzzer for so long
#: make bench              what things cost (bench-vtx: only exits on VT-x; bench-peer: the same under Linux KVM; bench-storage)
#: make test-long          tests that take too long for every day
#: make clean
help:
	@sed -n 's/^#: //p' Makefile

# ---- Kernel ----
CC := gcc
WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wno-unused-parameter -Werror
LANG_FLAGS := -std=gnu11 -O2 -g -I. -fno-strict-aliasing -fwrapv
KERNEL_FLAGS := $(LANG_FLAGS) $(WARN) -I$(if $(DEBUG),tests/host/inline,kernel/sched/inline) -ffreestanding -fbuiltin -nostdinc -isystem $(shell $(CC) -print-file-name=include) -isystem $(NEWLIB)/include \
  -isystem $(DEPS)/zlib/include -isystem $(DEPS)/libzstd/include \
  -mno-red-zone -fno-pic -fno-pie -mcmodel=kernel -fcf-protection=none -fno-asynchronous-unwind-tables -fno-omit-frame-pointer -momit-leaf-frame-pointer \
  -mstack-protector-guard=tls -mstack-protector-guard-reg=gs -mstack-protector-guard-offset=40 -fstack-protector-strong \
  -ffunction-sections -fdata-sections -U__linux__ -U__gnu_linux__ -U__linux -Ulinux -U__unix__ -U__unix -Uunix
CORE_FLAGS := -mgeneral-regs-only -mcrc32 -include kernel/lib/intio.h

core_obj := $(patsubst %,$(B)/core/%.o,$(basename $(core) $(hosted)))
service_obj := $(patsubst %,$(B)/service/%.o,$(basename $(service)))

$(B)/core/%.o: %.c $(LIBS) Makefile
	@mkdir -p $(@D)
	$(Q)$(CC) $(KERNEL_FLAGS) $(CORE_FLAGS) -MMD -MP -c $< -o $@
$(B)/core/%.o: %.S
	@mkdir -p $(@D)
	$(Q)$(CC) -I. -g -ffreestanding -D__ASSEMBLY__ -MMD -MP -c $< -o $@
$(B)/service/%.o: %.c $(LIBS) Makefile
	@mkdir -p $(@D)
	$(Q)$(CC) $(KERNEL_FLAGS) -MMD -MP -c $< -o $@

$(B)/joist.elf: linker.ld $(core_obj) $(service_obj) $(LIBS)
	$(Q)scripts/link-kernel $@ linker.ld $(core_obj) $(service_obj) $(LIBS)

# ---- The same sources on Linux ----
HOST_FLAGS := $(LANG_FLAGS) $(WARN) -Itests/host/inline -O1 -fno-omit-frame-pointer -pthread -D_GNU_SOURCE -Wno-missing-prototypes
ASAN := -fsanitize=address,undefined -fno-sanitize-recover=all
host_src := $(filter %.c,$(hosted)) $(wildcard tests/host/*.c)
host_obj := $(patsubst %.c,$(B)/host/%.o,$(host_src))
fuzz_obj := $(patsubst %.c,$(B)/fuzzlib/%.o,$(host_src))

$(B)/host/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(HOST_FLAGS) $(ASAN) -msse4.2 -MMD -MP -c $< -o $@
$(B)/host/lib.a: $(host_obj)
	@rm -f $@
	$(Q)ar rcs $@ $^
$(B)/fuzzlib/%.o: %.c
	@mkdir -p $(@D)
	$(Q)clang $(filter-out -Werror,$(HOST_FLAGS)) $(ASAN) -fsanitize=fuzzer-no-link -msse4.2 -Wno-unknown-warning-option -Wno-gnu-variable-sized-type-not-at-end -MMD -MP -c $< -o $@
$(B)/fuzzlib/lib.a: $(fuzz_obj)
	@rm -f $@
	$(Q)ar rcs $@ $^

unit_tests := $(patsubst tests/unit/%.c,$(B)/unit/%,$(wildcard tests/unit/test_*.c))
fuzzers := $(patsubst tests/fuzz/%.c,$(B)/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
$(B)/unit/%: tests/unit/%.c $(B)/host/lib.a
	@mkdir -p $(@D)
	$(Q)$(CC) $(HOST_FLAGS) $(ASAN) -msse4.2 -MMD -MP $< $(B)/host/lib.a -lcmocka -lz -lzstd -o $@
$(B)/fuzz/%: tests/fuzz/%.c $(B)/fuzzlib/lib.a
	@mkdir -p $(@D)
	$(Q)clang $(filter-out -Werror,$(HOST_FLAGS)) $(ASAN) -fsanitize=fuzzer -msse4.2 -Wno-unknown-warning-option -Wno-gnu-variable-sized-type-not-at-end -MMD -MP $< $(B)/fuzzlib/lib.a -lz -lzstd -o $@
unit: $(unit_tests)
	@for t in $^; do $$t 2>&1 | tail -n 3 || exit 1; done
# One test: make unit-test_bus
unit-%: $(B)/unit/%
	$<

clean:
	rm -rf $(filter-out $(B)/deps,$(wildcard $(B)/*))

include $(wildcard scripts/*.mk tests/*.mk)
-include $(shell find $(B) -path $(B)/deps -prune -o -name '*.d' -print 2>/dev/null)
.PHONY: all help unit clean
