# Third-party libraries: fetched by scripts/fetch-sources, built once into $(DEPS), which several trees may share.
# A stamp named after the hash of all that goes in says when to build anew; times would differ from tree to tree.
deps: $(LIBS)

newlib_stamp := .joist-$(shell { grep '^newlib ' scripts/deps.lock; cat scripts/build-newlib scripts/newlib-cc; } | sha256sum | cut -c1-16)
$(DEPS)/newlib/$(newlib_stamp):
	$(Q)scripts/build-newlib $(DEPS) $(newlib_stamp)
$(NEWLIB)/lib/libc.a: $(DEPS)/newlib/$(newlib_stamp)
	@test -f $@

# $(call library,PACKAGE,FILE): the rest, by scripts/build-lib.
define library
$(1)_stamp := .joist-$$(shell { grep '^$(1) \|^newlib ' scripts/deps.lock; cat scripts/build-lib; } | sha256sum | cut -c1-16)
$$(DEPS)/$(1)/$$($(1)_stamp): $$(NEWLIB)/lib/libc.a
	$$(Q)scripts/build-lib $(1) $$(DEPS) $$($(1)_stamp)
$$(DEPS)/$(1)/lib/$(2): $$(DEPS)/$(1)/$$($(1)_stamp)
	@test -f $$@
endef
$(eval $(call library,zlib,libz.a))
$(eval $(call library,libzstd,libzstd.a))

.PHONY: deps
