/* What main.c tells kernel/host.c. */
#pragma once
#include "boot/bootinfo.h"

void host_init(const struct bootinfo *);        /* kept; must stay */
/*
 * The image store: modules `image:NAME`, held against the module `manifest` ("crc32c size name" per line): lengths at once, checksums by a thread
 * that goes on afterwards.  Corrupt ones are named and marked.  Thread context.
 */
void host_find_images(void);
