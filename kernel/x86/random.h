/* Entropy for random_bytes() (kernel/lib/port.h). */
#pragma once
#include "kernel/lib/base.h"

/* Boot CPU, after time_init(): seeds from RDSEED, RDRAND, timing jitter and `firmware`, len bytes that the loader got from the EFI RNG (0: none). */
void random_init(const void *firmware, size_t len);
/* More entropy from whoever has some (loader, device timing); thread or atomic context. */
void random_add(const void *bytes, size_t len);
const char *random_sources(void);
