/* Force-included in core code: newlib's integer-only formatted output, because core code has no vector registers. */
#pragma once
#include <stdio.h>
#define snprintf  sniprintf
#define vsnprintf vsniprintf
#define sprintf   siprintf
