/* For chips with byte-wide registers: a wider access is what the bus makes of it, byte cycles at rising addresses. */
#pragma once
#include "kernel/vmm/bus.h"

static inline int port8(void *dev, struct io *io, uint8_t (*read)(void *dev, unsigned reg), void (*write)(void *dev, unsigned reg, uint8_t val))
{
    uint64_t in = 0;
    if (likely(io->size == 1)) {
        if (io->write)
            write(dev, io->off, io->data);
        else
            io->data = read(dev, io->off);
        return 0;
    }
    for (unsigned i = 0; i < io->size; i++) {
        if (io->write)
            write(dev, io->off + i, io->data >> 8 * i);
        else
            in |= (uint64_t)read(dev, io->off + i) << 8 * i;
    }
    if (!io->write)
        io->data = in;
    return 0;
}
