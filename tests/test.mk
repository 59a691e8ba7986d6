# make test: all unit tests, then the steps that tests/*.steps name; the last line counts.  ONLY=REGEX picks by name.
# It starts from a bare Debian: what is missing is installed first, and make then reads everything anew.
test:
	@scripts/setup
	@$(MAKE) --no-print-directory Q=@ test-built
test-built: all $(unit_tests) $(fuzzers) $(B)/tools/crc32c guests
	@tests/run --build $(B) --only '$(ONLY)'

# Every fuzzer for a short while, from its corpus: make fuzz SECONDS=20
SECONDS ?= 20
fuzz: $(fuzzers)
	@for f in $^; do n=$${f##*/fuzz_}; mkdir -p $(B)/fuzz/corpus/$$n; echo "fuzz $$n"; \
	    $$f -max_total_time=$(SECONDS) -verbosity=0 $(B)/fuzz/corpus/$$n $(wildcard tests/fuzz/corpus)/$$n || exit 1; done

.PHONY: test test-built fuzz

# What takes long.  ONLY=REGEX picks by name.
test-long: test-load
test-load: all guests $(B)/tools/crc32c
	@tests/run --build $(B) --only '$(ONLY)' --slow tests/load.slow
.PHONY: test-load
