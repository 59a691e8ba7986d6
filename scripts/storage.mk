# The storage half as Linux programs: host tools (make tools) and the long tests, optimised and without sanitizers.
storage_src := $(filter kernel/block/% kernel/fs/%,$(hosted)) kernel/lib/crc.c kernel/lib/iov.c $(wildcard tests/host/port_*.c) tests/host/log_stub.c
storage_test_src := tests/host/mem_blk.c tests/host/fs_model.c tools/hostfile.c
storage_progs := $(patsubst tests/storage/%.c,$(B)/storage/%,$(wildcard tests/storage/*.c))
storage_tools := $(patsubst tools/%.c,$(B)/%,$(wildcard tools/joist*.c))
STORAGE_FLAGS := $(filter-out -O1,$(HOST_FLAGS)) -O2 -msse4.2
STORAGE_LIBS := -lz -lzstd

$(B)/opt/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(STORAGE_FLAGS) -MMD -MP -c $< -o $@
$(B)/opt/storage.a: $(patsubst %.c,$(B)/opt/%.o,$(storage_src))
	@rm -f $@
	$(Q)ar rcs $@ $^
$(B)/storage/%: $(B)/opt/tests/storage/%.o $(patsubst %.c,$(B)/opt/%.o,$(storage_test_src)) $(B)/opt/storage.a
	@mkdir -p $(@D)
	$(Q)$(CC) $(STORAGE_FLAGS) $^ $(STORAGE_LIBS) -o $@
$(B)/joistimg: $(patsubst %,$(B)/opt/tools/%.o,img imgcopy imginfo pack)
$(storage_tools): $(B)/%: $(B)/opt/tools/%.o $(B)/opt/tools/hostfile.o $(B)/opt/storage.a
	$(Q)$(CC) $(STORAGE_FLAGS) $^ $(STORAGE_LIBS) -o $@


# The same under the thread sanitizer.
TSAN := -fsanitize=thread -fno-omit-frame-pointer
storage_tsan := $(patsubst %.c,$(B)/tsan/%.o,$(storage_src) $(storage_test_src) tests/storage/stress.c)
$(B)/tsan/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(filter-out -Werror,$(STORAGE_FLAGS)) $(TSAN) -MMD -MP -c $< -o $@
$(B)/storage/stress_tsan: $(storage_tsan)
	@mkdir -p $(@D)
	$(Q)$(CC) $(STORAGE_FLAGS) $(TSAN) $^ $(STORAGE_LIBS) -o $@

tools: $(storage_tools)
test-built: $(B)/storage/stress_tsan
test-built: $(storage_progs) $(storage_tools)
bench-storage: $(B)/storage/bench $(B)/joistimg
	@tests/storage/bench_all $(B)
# The crash tests at length: hours.
test-long: $(B)/storage/scale $(B)/storage/model_dir $(B)/storage/model_fs $(B)/storage/crash_fs $(B)/storage/crash_image $(B)/storage/stress_tsan
	$(B)/storage/scale
	$(B)/storage/crash_fs 5000000 1000
	$(B)/storage/model_fs 20000000 1000
	$(B)/storage/model_dir 20000000 1000
	$(B)/storage/crash_image 1000000 1000
	tests/storage/diff_images $(B) 50 1000
	$(B)/storage/stress_tsan 120 1000
.PHONY: tools bench-storage test-long
