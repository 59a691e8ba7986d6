# Which lines of the hosted sources the unit tests execute: built without sanitizers, so that it takes seconds.
COV_FLAGS := $(filter-out -O1 -O2 -Werror,$(HOST_FLAGS)) -O0 --coverage -fprofile-abs-path -msse4.2
cov_fakes := $(patsubst %.c,$(B)/cov/%.o,$(wildcard tests/mgmt/fake_*.c))
$(B)/cov/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(COV_FLAGS) -MMD -MP -c $< -o $@
$(B)/cov/lib.a: $(patsubst %.c,$(B)/cov/%.o,$(host_src))
	@rm -f $@
	$(Q)ar rcs $@ $^
$(B)/cov/unit/%: $(B)/cov/tests/unit/%.o $(B)/cov/lib.a
	@mkdir -p $(@D)
	$(Q)$(CC) --coverage -pthread $(filter %.o,$^) $(B)/cov/lib.a -lcmocka -lz -lzstd -o $@
$(patsubst tests/unit/%.c,$(B)/cov/unit/%,$(wildcard tests/unit/test_mgmt_*.c)): $(cov_fakes)
$(B)/cov/storage/%: $(B)/cov/tests/storage/%.o $(B)/cov/tools/hostfile.o $(B)/cov/lib.a
	@mkdir -p $(@D)
	$(Q)$(CC) --coverage -pthread $^ -lz -lzstd -o $@
$(B)/cov/joistimg: $(patsubst %,$(B)/cov/tools/%.o,joistimg img imgcopy imginfo pack hostfile) $(B)/cov/lib.a
	$(Q)$(CC) --coverage -pthread $^ -lz -lzstd -o $@
# LVM and some of qcow2 are tested by these programs.
coverage: $(B)/cov/storage/volumes $(B)/cov/storage/crash_image $(B)/cov/joistimg $(patsubst tests/unit/%.c,$(B)/cov/unit/%,$(wildcard tests/unit/test_*.c))
	@tests/coverage $(B)/cov $(filter %.c,$(hosted))
.PHONY: coverage
