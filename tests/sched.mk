# The hosted port under the thread sanitizer, which the other unit tests' address sanitizer excludes.
$(B)/tsan/%: tests/unit/%.c $(wildcard tests/host/port_*.[ch] tests/host/log_stub.c)
	@mkdir -p $(@D)
	$(Q)clang $(filter-out -Werror,$(HOST_FLAGS)) -fsanitize=thread -msse4.2 -Wno-unknown-warning-option $(filter %.c,$^) -lcmocka -o $@
tsan: $(B)/tsan/test_port
	$<
.PHONY: tsan
