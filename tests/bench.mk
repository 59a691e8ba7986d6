# make bench: what operations, boots and memory cost on the deterministic test bed; make bench-vtx: only the operations on VT-x;
# make bench-peer: the same guest under Linux KVM.
BENCH := $(B)/bench
$(BENCH)/count.so: tests/bench/count.c
	@mkdir -p $(@D)
	$(Q)$(CC) -std=gnu11 -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -fPIC -shared $< -o $@
$(BENCH)/init: tests/bench/init.c
	@mkdir -p $(@D)
	$(Q)$(CC) -std=gnu11 -Os -Wall -Wextra -Werror -ffreestanding -nostdlib -static -fno-pic -no-pie -fno-stack-protector -fcf-protection=none \
	  -fno-asynchronous-unwind-tables -mno-sse $< -o $@
$(BENCH)/first.elf: tests/bench/first.S tests/guest/guest.ld
	@mkdir -p $(@D)
	$(Q)$(CC) -m32 -c $< -o $(@:.elf=.o)
	$(Q)ld -m elf_i386 -z noexecstack -T tests/guest/guest.ld -o $@ $(@:.elf=.o)
bench_files := $(BENCH)/count.so $(BENCH)/init $(BENCH)/first.elf $(B)/tests/guest/bench32.elf $(B)/tests/guest/bench64.elf

bench: all $(bench_files) $(B)/tools/crc32c $(B)/guests/initrd $(B)/storage/bench $(B)/joistimg
	@scripts/setup valgrind
	@tests/bench/bench
	@echo; echo "Storage, as Linux programs"; tests/storage/bench_all $(B)
bench-vtx: all $(bench_files) $(B)/tools/crc32c
	@tests/bench/bench vtx
bench-peer: $(bench_files) $(B)/guests/initrd
	@tests/bench/peer
.PHONY: bench bench-vtx bench-peer
