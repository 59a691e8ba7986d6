/* Settings of panic(); the call itself is in kernel/lib/port.h. */
#pragma once
#include "kernel/lib/base.h"

void panic_set_timeout(unsigned seconds);       /* until the reset; 0: stay */
bool panic_in_progress(void);
