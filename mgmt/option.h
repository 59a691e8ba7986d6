/* Words of the kernel command line: `key`, key=value, key="value with spaces". */
#pragma once
#include "kernel/lib/base.h"

/* False: absent.  A bare key gives an empty value; a value that is too long is cut. */
bool option_get(const char *cmdline, const char *key, char *val, size_t len);
