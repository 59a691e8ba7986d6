/* Between smp.c and the rest of kernel/x86. */
#pragma once
#include "kernel/lib/base.h"

void smp_call_interrupt(void);          /* VEC_CALL */
