# Byte channels under the thread sanitizer: two threads at full speed.
$(B)/tsan/test_chan: tests/unit/test_chan.c kernel/console/chan.c $(wildcard tests/host/port_*.[ch] tests/host/log_stub.c)
	@mkdir -p $(@D)
	$(Q)clang $(filter-out -Werror,$(HOST_FLAGS)) -fsanitize=thread -msse4.2 -Wno-unknown-warning-option $(filter %.c,$^) -lcmocka -o $@
tsan-chan: $(B)/tsan/test_chan
	$<
.PHONY: tsan-chan
