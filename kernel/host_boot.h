/* What main.c tells kernel/host.c. */
#pragma once
#include "boot/bootinfo.h"

void host_init(const struct bootinfo *);        /* kept; must stay */
/* The image store: modules `image:NAME`, checked against the module `manifest` ("crc32c size name" per line).  Corrupt ones are named and marked. */
void host_check_images(void);
