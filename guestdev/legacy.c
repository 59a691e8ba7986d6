#include "guestdev/legacy.h"

#include <errno.h>

static const struct { uint16_t base, len; const char *name; } ignored[] = {
    { 0x000, 0x10, "DMA controller 1" },
    { 0x080, 0x10, "DMA pages, POST code" },    /* 80h also as Linux' I/O delay */
    { 0x0c0, 0x20, "DMA controller 2" },
    { 0x0ed, 1, "I/O delay" },                  /* Linux' other one */
    { 0x0f0, 2, "FPU error latch" },
    { 0x170, 8, "IDE channel 2" },
    { 0x1f0, 8, "IDE channel 1" },
    { 0x201, 1, "joystick" },
    { 0x278, 8, "parallel port 2" },            /* 279h also as ISA PnP address */
    { 0x2e8, 8, "COM4" },
    { 0x372, 4, "floppy 2" },
    { 0x376, 1, "IDE channel 2 control" },
    { 0x378, 8, "parallel port 1" },
    { 0x3b0, 0x30, "VGA, parallel port" },
    { 0x3e8, 8, "COM3" },
    { 0x3f0, 6, "floppy 1" },
    { 0x3f6, 2, "IDE channel 1 control" },
    { 0xa79, 1, "ISA PnP data" },
};

static int nothing(void *dev, struct io *io)
{
    if (!io->write)
        io->data = ~0ull;
    return 0;
}

int legacy_add(struct bus *ports)
{
    for (unsigned i = 0; i < ARRAY_SIZE(ignored); i++) {
        int err = bus_add(ports, ignored[i].base, ignored[i].len, nothing, NULL, ignored[i].name, BUS_QUIET);
        if (err && err != -EEXIST)
            return err;
    }
    return 0;
}
