# The management layer on Linux, against fakes of the machine and the host (tests/mgmt/): its tests, fuzzers and a shell to try.
mgmt_fakes := $(wildcard tests/mgmt/fake_*.c)
$(B)/unit/test_mgmt_%: tests/unit/test_mgmt_%.c $(patsubst %.c,$(B)/host/%.o,$(mgmt_fakes)) $(B)/host/lib.a
	@mkdir -p $(@D)
	$(Q)$(CC) $(HOST_FLAGS) $(ASAN) -msse4.2 -MMD -MP $(filter %.c %.o %.a,$^) -lcmocka -lz -o $@
$(B)/fuzz/fuzz_cmdline: tests/fuzz/fuzz_cmdline.c $(patsubst %.c,$(B)/fuzzlib/%.o,$(mgmt_fakes)) $(B)/fuzzlib/lib.a
	@mkdir -p $(@D)
	$(Q)clang $(filter-out -Werror,$(HOST_FLAGS)) $(ASAN) -fsanitize=fuzzer -msse4.2 -Wno-unknown-warning-option -MMD -MP $(filter %.c %.o %.a,$^) -lz -o $@
# A shell on this terminal, with fake guests behind it.
$(B)/hosted-shell: tests/mgmt/hosted_shell.c $(patsubst %.c,$(B)/host/%.o,$(mgmt_fakes)) $(B)/host/lib.a
	@mkdir -p $(@D)
	$(Q)$(CC) $(HOST_FLAGS) $(ASAN) -msse4.2 -MMD -MP $(filter %.c %.o %.a,$^) -lz -o $@
# The reference page, from the command table.
docs/commands.md: $(B)/hosted-shell
	@mkdir -p $(@D)
	echo 'help --markdown' | ASAN_OPTIONS=detect_leaks=0 $< >$@
