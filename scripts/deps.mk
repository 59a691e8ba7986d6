# Third-party libraries: fetched by scripts/fetch-sources, built once into $(DEPS), which several trees may share.
# A stamp named after the hash of all that goes in says when to build anew; times would differ from tree to tree.
deps: $(NEWLIB)/lib/libc.a

newlib_stamp := .joist-$(shell { grep '^newlib ' scripts/deps.lock; cat scripts/build-newlib scripts/newlib-cc; } | sha256sum | cut -c1-16)
$(DEPS)/newlib/$(newlib_stamp):
	$(Q)scripts/build-newlib $(DEPS) $(newlib_stamp)
$(NEWLIB)/lib/libc.a: $(DEPS)/newlib/$(newlib_stamp)
	@test -f $@

.PHONY: deps
