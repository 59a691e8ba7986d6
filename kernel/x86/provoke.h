/* Failures on request (kernel command line fault=KIND), so that tests can see how the kernel reports them. */
#pragma once
#include "kernel/lib/base.h"

/* Thread context.  Unknown kinds are named in the log.  Most do not return. */
void provoke(const char *kind);
