/* Ports that PC software touches although nothing has to be there: claimed so that they cost no log line and count as known. */
#pragma once
#include "kernel/vmm/bus.h"

/* Adds them all, quiet, reading as all ones.  Ports a device has claimed already are left to it.  0 or -ENOMEM. */
int legacy_add(struct bus *ports);
