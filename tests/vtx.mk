# What takes minutes in Bochs: make test-vtx, make test-svm.  ONLY=REGEX picks by name.
test-vtx test-svm: test-%: all $(B)/tools/crc32c guests
	@tests/run --build $(B) --only '$(ONLY)' --slow tests/$*.slow
.PHONY: test-vtx test-svm
