/* The first console. */
#pragma once
#include "kernel/lib/base.h"

void early_uart_init(void);     /* COM1, if there is one, becomes a console */

