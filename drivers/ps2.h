/* The PS/2 keyboard behind an i8042. */
#pragma once
#include "kernel/console/chan.h"

/* Thread context: looks for a keyboard and from then on writes what is typed, as a terminal would send it, to the CHAN_DEV side.  -ENODEV: no controller or
 * it does not answer; every wait is bounded. */
int ps2_start(struct chan *);
