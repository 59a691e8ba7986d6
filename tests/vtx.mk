# What takes minutes in Bochs: make test-vtx.  ONLY=REGEX picks by name.
test-vtx: all $(B)/tools/crc32c guests
	@tests/run --build $(B) --only '$(ONLY)' --slow tests/vtx.slow
.PHONY: test-vtx
