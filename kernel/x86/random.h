/* Entropy for random_bytes() (kernel/lib/port.h). */
#pragma once
#include "kernel/lib/base.h"

void random_init(void);         /* boot CPU, after time_init(): seeds from RDSEED, RDRAND and timing jitter */
/* More entropy from whoever has some (loader, device timing); thread or atomic context. */
void random_add(const void *bytes, size_t len);
const char *random_sources(void);
