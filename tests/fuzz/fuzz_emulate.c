/*
 * Any bytes in any mode with any registers, and callbacks that fail, lie and race as the input says.  Checked: no access beyond what the contract allows,
 * an exception changes nothing but REP progress, and a step ends.
 */
#include <stdlib.h>
#include <string.h>

#include "kernel/vmm/emulate.h"

struct input { const uint8_t *p, *end; };
static struct input in;
static unsigned calls;
static volatile uint8_t sink;

static uint8_t next(void) { return in.p < in.end ? *in.p++ : 0; }

static uint64_t next64(void)
{
    static const uint64_t liked[] = { 0, 1, 0xfff, 0x7fffffff, 0xffffffff, 0x7fffffffffff, 0x800000000000, ~0ull };
    uint8_t how = next();
    uint64_t v = liked[how & 7];

    if (how & 0x80)
        for (unsigned n = 0; n < 8; n++)
            v = v << 8 | next();
    return v + (how >> 3 & 15);
}

static enum emu_result verdict(struct emu_ctx *c)
{
    if (++calls > 100000)
        abort();
    switch (next() & 15) {
    case 1:
        c->exc = (struct emu_exc){ .vector = 14, .has_error = true };
        return EMU_EXCEPTION;
    case 2: return EMU_UNHANDLED;
    }
    return EMU_OK;
}

static void one_page(gva_t a, unsigned len)
{
    if (!len || len > 4096 || (a & 4095) + len > 4096)
        abort();
}

static enum emu_result op_read(struct emu_ctx *c, gva_t a, void *buf, unsigned len)
{
    one_page(a, len);
    memset(buf, next(), len);
    return verdict(c);
}

static enum emu_result op_write(struct emu_ctx *c, gva_t a, const void *buf, unsigned len)
{
    one_page(a, len);
    for (unsigned n = 0; n < len; n++)
        sink += ((const uint8_t *)buf)[n];
    return verdict(c);
}

static enum emu_result op_cmpxchg(struct emu_ctx *c, gva_t a, void *old, const void *val, unsigned len)
{
    one_page(a, len);
    if (len > 16)
        abort();
    for (unsigned n = 0; n < len; n++)
        sink += ((const uint8_t *)val)[n];
    if (next() & 1) {
        memset(old, next(), len);
        return EMU_AGAIN;
    }
    return verdict(c);
}

static enum emu_result op_fetch(struct emu_ctx *c, gva_t a, void *buf, unsigned len)
{
    one_page(a, len);
    for (unsigned n = 0; n < len; n++)
        ((uint8_t *)buf)[n] = next();
    return next() % 64 == 1 ? EMU_EXCEPTION : EMU_OK;
}

static enum emu_result op_probe(struct emu_ctx *c, gva_t a, unsigned len, bool write, bool *ram)
{
    one_page(a, len);
    *ram = next() & 1;
    return verdict(c);
}

static enum emu_result op_in(struct emu_ctx *c, uint16_t port, unsigned size, uint32_t *val)
{
    if (size != 1 && size != 2 && size != 4)
        abort();
    *val = next() * 0x01010101u;
    return verdict(c);
}

static enum emu_result op_out(struct emu_ctx *c, uint16_t port, unsigned size, uint32_t val)
{
    if ((size != 1 && size != 2 && size != 4) || (size < 4 && val >> (8 * size)))
        abort();
    return verdict(c);
}

static bool op_allowed(struct emu_ctx *c, uint16_t port, unsigned size) { return next() & 1; }
static void op_vec_get(struct emu_ctx *c, unsigned n, void *v) { if (n > 15) abort(); memset(v, next(), 16); }
static void op_vec_set(struct emu_ctx *c, unsigned n, const void *v) { if (n > 15) abort(); }

static void op_load_seg(struct emu_ctx *c, enum seg s)
{
    if (s > SEG_GS)
        abort();
    c->seg[s] = (struct emu_seg){ .base = next64(), .limit = next64(), .attr = next() | next() << 8 };
    if (c->mode != MODE_64)
        c->seg[s].base = (uint32_t)c->seg[s].base;
}

static bool is_string(enum insn_op op) { return op >= INSN_MOVS && op <= INSN_OUTS; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct emu_ops all = { op_read, op_write, op_cmpxchg, op_fetch, op_in, op_out, op_probe, op_allowed, op_load_seg, op_vec_get, op_vec_set };
    static const struct emu_ops few = { .read = op_read, .write = op_write, .cmpxchg = op_cmpxchg, .fetch = op_fetch, .port_in = op_in, .port_out = op_out };
    uint64_t gpr[16], before[16];

    in = (struct input){ data, data + size };
    calls = 0;
    uint8_t how = next();
    struct emu_ctx c = { .ops = how & 0x80 ? &few : &all, .mode = how % 3, .real = how % 3 == MODE_16 && (how & 0x40), .cpl = how >> 4 & 3, .iopl = how >> 2 & 3, .gpr = gpr };
    for (unsigned n = 0; n < 16; n++)
        before[n] = gpr[n] = next64();
    c.rip = next64(), c.rflags = (next64() & 0x50dd5) | 2, c.cr0 = next64(), c.cr4 = next64(), c.rep_budget = next();
    op_load_seg(&c, SEG_CS);
    c.seg_valid = BIT(SEG_CS);
    uint64_t rip = c.rip, rflags = c.rflags;

    enum emu_result r = emu_step(&c);
    if (c.write_intent)
        abort();
    if (r == EMU_EXCEPTION || r == EMU_UNHANDLED) {
        if (c.rip != rip)
            abort();
        if (!(c.insn_valid && is_string(c.insn.op)) && (memcmp(gpr, before, sizeof gpr) || c.rflags != rflags))
            abort();
    }
    if (r == EMU_OK && !c.insn_valid)
        abort();
    return 0;
}
