/* Between the parts of the hosted port: absolute CLOCK_MONOTONIC time at which a waiter should look at clock_ns() again. */
#pragma once
#include <time.h>
#include "kernel/lib/base.h"

struct timespec host_clock_deadline(uint64_t deadline_ns);
