/* The scheduler's test of itself, on the real machine: command line selftest=sched or selftest=sched,loaded.  Logs "RESULT sched-NAME ok|FAIL what was seen". */
#pragma once
#include "kernel/lib/base.h"

/* Thread context; true: all passed.  loaded: this is an emulator whose CPUs do not always run when they should, so judge shares of time by 20 %. */
bool sched_selftest(bool loaded);

/* selftest_fpu.c, the part that may use vector registers: fills them with a pattern of `seed`, burns `spins` loops or, with 0, calls `between`,
 * and counts the bytes that changed. */
unsigned fpu_pattern_run(unsigned seed, unsigned long spins, void (*between)(void));
