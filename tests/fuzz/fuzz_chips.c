/*
 * Every register of every chip, time, interrupts taken, console traffic; on the way save → load into a fresh board → save must give the same bytes, and the
 * two boards must go on giving the same answers.  The last third of the inputs also tries streams with damage.
 *
 * Input: records of 8 bytes {op, where, offset lo, offset hi, data[4]}.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/host/chipset.h"
#include "tests/host/port_host.h"

enum { CAP = 64 << 10, RECORD = 8, OPS = 10 };

static uint64_t access(struct chipset *c, const uint8_t *r, bool write)
{
    const struct chipset_region *g = &c->region[r[1] % c->nregions];
    static const uint8_t sizes[] = { 1, 2, 4, 8 };
    unsigned size = sizes[r[0] >> 6], off = (r[2] | r[3] << 8) % g->len;
    uint32_t data;
    memcpy(&data, r + 4, 4);
    if (g->len < 64)
        size = MIN(size, g->len - off), size = size == 3 ? 2 : size > 4 ? 4 : size;
    struct io io = { .off = off, .size = size, .write = write, .data = data };
    g->fn(g->dev, &io);
    return write ? 0 : io.data & (~0ull >> (64 - 8 * size));
}

static uint64_t msr(struct chipset *c, const uint8_t *r, bool write)
{
    struct vcpu_irqchip *chip = &c->irqchip[r[1] % CHIPSET_CPUS];
    uint32_t index = r[2] == 0xff ? 0x1b : r[2] == 0xfe ? 0x6e0 : 0x800 + r[2] % 0x42;
    uint64_t v = 0;
    memcpy(&v, r + 4, 4);
    v |= index == 0x1b ? 0xfee00000 : (uint64_t)r[3] << 32;
    return write ? chip->msr_write(chip->apic, index, v) : chip->msr_read(chip->apic, index, &v) ? v : 1;
}

/* As a vCPU does: whatever is offered is taken. */
static uint64_t interrupt(struct chipset *c, const uint8_t *r)
{
    struct vcpu_irqchip *chip = &c->irqchip[r[1] % CHIPSET_CPUS];
    int v = chip->pending(chip->apic);
    if (v != IRQ_NONE)
        chip->accept(chip->apic, v);
    return v;
}

static uint64_t run(struct chipset *c, const uint8_t *r)
{
    uint32_t arg;
    char buf[32] = "typed at the console, some text";
    memcpy(&arg, r + 4, 4);
    switch (r[0] % OPS) {
    case 0: case 1: case 2:
        return access(c, r, true);
    case 3: case 4:
        return access(c, r, false);
    case 5:
        return msr(c, r, r[0] & 0x40);
    case 6:
        return interrupt(c, r);
    case 7:
        return chan_write(c->chan, CHAN_USER, buf, arg % sizeof buf);
    case 8:
        return chan_read(c->chan, CHAN_USER, buf, sizeof buf);
    default:
        apic_msi(&c->fabric, 0xfee00000 | r[2] << 12 | (r[3] & 0xc), arg);
        return 0;
    }
}

static void drain(struct chipset *c, bool resume)
{
    for (unsigned i = 0; i < c->ndevs; i++) {
        const struct gdev_ops *ops = c->dev[i].ops;
        if (resume && ops->resume)
            ops->resume(c->dev[i].dev);
        else if (!resume && ops->drain)
            ops->drain(c->dev[i].dev, 0);
    }
}

/* A second board from the first one's stream: equal bytes again. */
static struct chipset *twin(struct chipset *c, uint8_t *buf, long *len)
{
    static uint8_t again[CAP];
    *len = chipset_save(c, buf, CAP);
    if (*len < 0)
        abort();
    struct chipset *d = chipset_create();
    drain(d, false);
    vmclock_set(&d->clock, vmclock_now(&c->clock));
    int err = chipset_load(d, buf, *len);
    long len2 = chipset_save(d, again, CAP), i = 0;
    while (i < *len && buf[i] == again[i])
        i++;
    if (err || len2 != *len || i < *len) {
        fprintf(stderr, "load %d, %ld and %ld bytes, first difference at %ld, after: ", err, *len, len2, i);
        for (long k = MAX(i - 60, 0); k < i; k++)
            fputc(buf[k] >= ' ' && buf[k] < 127 ? buf[k] : '.', stderr);
        fputc('\n', stderr);
        abort();
    }
    return d;
}

static void damaged(const uint8_t *good, long len, const uint8_t *r)
{
    uint8_t *bad = malloc(len);
    memcpy(bad, good, len);
    for (unsigned i = 0; i < 4; i++)
        bad[(r[i] * 257u + r[7 - i]) % len] ^= r[i + 4];
    struct chipset *d = chipset_create();
    chipset_load(d, bad, len);
    vmclock_start(&d->clock);
    for (unsigned i = 0; i < 40; i++) {
        uint8_t probe[RECORD] = { 3 + (i << 6), i, r[2] * i, r[3], r[4] };
        run(d, probe);
        host_clock_advance(100000);
    }
    chipset_destroy(d);
    free(bad);
}

/* Small steps run every timer on the way; a big one is a jump, as when the host was suspended: all timers are late. */
static void jump(struct chipset *c, uint64_t ns)
{
    vmclock_stop(&c->clock);
    vmclock_set(&c->clock, vmclock_now(&c->clock) + ns);
    vmclock_start(&c->clock);
}

static void pass_time(struct chipset *a, struct chipset *b, uint64_t ns)
{
    if (ns > 5000000) {
        jump(a, ns);
        if (b)
            jump(b, ns);
        ns = 100;
    }
    host_clock_advance(ns);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t buf[CAP];
    size_t n = size / RECORD, at = n ? data[0] % n : 0;
    host_clock_manual(true);
    struct chipset *a = chipset_create(), *b = NULL;
    vmclock_start(&a->clock);
    for (size_t i = 0; i < n; i++) {
        const uint8_t *r = data + i * RECORD;
        if (i == at) {
            vmclock_stop(&a->clock);
            drain(a, false);
            long len;
            b = twin(a, buf, &len);
            if (r[0] > 170)
                damaged(buf, len, r);
            char waiting[64];
            size_t in = chan_readable(a->chan, CHAN_DEV);
            chan_read(a->chan, CHAN_USER, waiting, sizeof waiting);
            chan_read(a->chan, CHAN_DEV, waiting, sizeof waiting);
            chan_write(b->chan, CHAN_USER, waiting, in);
            chan_write(a->chan, CHAN_USER, waiting, in);
            drain(a, true), drain(b, true);
            vmclock_start(&a->clock), vmclock_start(&b->clock);
        }
        uint64_t x = run(a, r), y = b ? run(b, r) : x;
        if (x != y)
            abort();
        if (r[0] & 0x20)
            pass_time(a, b, (uint64_t)r[4] << (r[5] & 31));
    }
    if (b)
        chipset_destroy(b);
    chipset_destroy(a);
    return 0;
}
