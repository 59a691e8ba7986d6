/* For chips with byte-wide registers. */
#pragma once
#include "kernel/vmm/bus.h"

typedef uint8_t read8_fn(void *dev, unsigned reg);
typedef void write8_fn(void *dev, unsigned reg, uint8_t val);

/* A wider access is what the bus makes of it, byte cycles at rising addresses. */
static __attribute__((noinline, unused)) int port8_cycles(void *dev, struct io *io, read8_fn *read, write8_fn *write)
{
    uint64_t in = 0;
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

static inline __attribute__((always_inline)) int port8(void *dev, struct io *io, read8_fn *read, write8_fn *write)
{
    if (unlikely(io->size != 1))
        return port8_cycles(dev, io, read, write);
    if (io->write)
        write(dev, io->off, io->data);
    else
        io->data = read(dev, io->off);
    return 0;
}
