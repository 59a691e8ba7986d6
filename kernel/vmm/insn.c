/* The emulator's view of a vCPU: instruction fetch, the decode cache, and the callbacks of emulate.h. */
#include <errno.h>
#include <string.h>

#include "kernel/hw/x86.h"
#include "kernel/lib/log.h"
#include "kernel/sched/fpu.h"
#include "kernel/vmm/vcpu.h"

enum { PAGE_LEFT_MIN = 16 };

static unsigned user(const struct vcpu *v) { return v->st.cpl == 3 ? PF_U : 0; }

static struct vcpu *vcpu_of(struct emu_ctx *c) { return c->arg; }

static enum emu_result page_fault(struct emu_ctx *c, gva_t va, uint32_t error)
{
    c->exc = (struct emu_exc){ .vector = 14, .has_error = true, .error = error, .cr2 = va };
    return EMU_EXCEPTION;
}

static enum emu_result translate(struct emu_ctx *c, gva_t va, unsigned access, gpa_t *gpa)
{
    struct vcpu *v = vcpu_of(c);
    uint32_t error;
    int err = gwalk(v, va, access | user(v), gpa, &error);
    if (likely(!err))
        return EMU_OK;
    if (err == -EFAULT)
        return page_fault(c, va, error);
    vcpu_crash(v, "its page tables for %llx lie outside memory", (unsigned long long)va);
    return EMU_AGAIN;
}

static inline void copy_small(void *to, const void *from, unsigned n)
{
    switch (n) {
    case 1: memcpy(to, from, 1); break;
    case 2: memcpy(to, from, 2); break;
    case 4: memcpy(to, from, 4); break;
    default: memcpy(to, from, 8); break;
    }
}

/* Device memory is accessed in naturally sized pieces; a guest that uses odd lengths gets them split from the largest down. */
static void mmio(struct vcpu *v, gpa_t gpa, void *buf, unsigned len, bool write)
{
    uint8_t *at = buf;
    struct io *io = &v->io;
    while (len) {
        unsigned n = len >= 8 ? 8 : len >= 4 ? 4 : len >= 2 ? 2 : 1;
        io->size = (uint8_t)n, io->write = write, io->data = 0;
        if (write)
            copy_small(&io->data, at, n);
        bus_access(v->vm->mmio, v->index, gpa, io);
        if (!write)
            copy_small(at, &io->data, n);
        at += n, gpa += n, len -= n;
    }
}

static enum emu_result mem_read(struct emu_ctx *c, gva_t va, void *buf, unsigned len)
{
    gpa_t gpa;
    struct vcpu *v = vcpu_of(c);
    enum emu_result r = translate(c, va, c->write_intent ? PF_W : 0, &gpa);
    if (r != EMU_OK)
        return r;
    const void *ram = gmem_peek(&v->vm->gmem, gpa);     /* one page: the emulator splits */
    if (ram)
        memcpy(buf, ram, len);
    else
        mmio(v, gpa, buf, len, false);
    return EMU_OK;
}

static enum emu_result mem_write(struct emu_ctx *c, gva_t va, const void *buf, unsigned len)
{
    gpa_t gpa;
    struct vcpu *v = vcpu_of(c);
    enum emu_result r = translate(c, va, PF_W, &gpa);
    if (r == EMU_OK && gmem_write(&v->vm->gmem, gpa, buf, len))
        mmio(v, gpa, (void *)(uintptr_t)buf, len, true);
    return r;
}

/* Devices, unaligned words and 16-byte operands are read, compared and written: no bus gives more. */
static enum emu_result slow_cmpxchg(struct vcpu *v, gpa_t gpa, void *old, const void *val, unsigned len)
{
    uint8_t now[16];
    bool ram = !gmem_read(&v->vm->gmem, gpa, now, len);
    if (!ram)
        mmio(v, gpa, now, len, false);
    if (memcmp(now, old, len)) {
        memcpy(old, now, len);
        return EMU_AGAIN;
    }
    if (!ram || gmem_write(&v->vm->gmem, gpa, val, len))
        mmio(v, gpa, (void *)(uintptr_t)val, len, true);
    return EMU_OK;
}

static enum emu_result mem_cmpxchg(struct emu_ctx *c, gva_t va, void *old, const void *val, unsigned len)
{
    gpa_t gpa;
    struct vcpu *v = vcpu_of(c);
    enum emu_result r = translate(c, va, PF_W, &gpa);
    if (r != EMU_OK)
        return r;
    uint64_t o = 0, n = 0;
    if (len > 8)
        return slow_cmpxchg(v, gpa, old, val, len);
    memcpy(&o, old, len);
    memcpy(&n, val, len);
    int err = gmem_cmpxchg(&v->vm->gmem, gpa, len, &o, n);
    if (err == -EFAULT)
        return slow_cmpxchg(v, gpa, old, val, len);
    memcpy(old, &o, len);
    return err ? EMU_AGAIN : EMU_OK;
}

static enum emu_result mem_fetch(struct emu_ctx *c, gva_t va, void *buf, unsigned len)
{
    gpa_t gpa;
    struct vcpu *v = vcpu_of(c);
    enum emu_result r = translate(c, va, PF_I, &gpa);
    if (r == EMU_OK && gmem_read(&v->vm->gmem, gpa, buf, len))
        memset(buf, 0xff, len);
    return r;
}

static enum emu_result port_in(struct emu_ctx *c, uint16_t port, unsigned size, uint32_t *val)
{
    struct vcpu *v = vcpu_of(c);
    struct io io = { .size = (uint8_t)size, .cpu = v };
    bus_access(v->vm->ports, v->index, port, &io);
    *val = (uint32_t)io_value(&io);
    return EMU_OK;
}

static enum emu_result port_out(struct emu_ctx *c, uint16_t port, unsigned size, uint32_t val)
{
    struct vcpu *v = vcpu_of(c);
    struct io io = { .size = (uint8_t)size, .write = true, .data = val, .cpu = v };
    bus_access(v->vm->ports, v->index, port, &io);
    return EMU_OK;
}

static enum emu_result probe(struct emu_ctx *c, gva_t va, unsigned len, bool write, bool *ram)
{
    gpa_t gpa;
    enum emu_result r = translate(c, va, write ? PF_W : 0, &gpa);
    if (r == EMU_OK)
        *ram = gmem_is_ram(&vcpu_of(c)->vm->gmem, gpa, len);
    return r;
}

/*
 * Vector registers are the guest's own while it runs: they are put into its XSAVE area for the access, which vector moves to devices are rare enough for.
 * Intel SDM vol. 1 "Legacy Region of an XSAVE Area", "XSAVE Header".
 */
enum { XSAVE_XMM = 160, XSTATE_SSE = 2 };

static uint64_t *xstate_bv(const struct vcpu *v)
{
    return sched_fpu_size() > FPU_LEGACY_SIZE ? (uint64_t *)((uint8_t *)v->fpu + FPU_HEADER) : NULL;
}

static void vec_get(struct emu_ctx *c, unsigned n, void *v16)
{
    struct vcpu *v = vcpu_of(c);
    fpu_detach();
    const uint64_t *bv = xstate_bv(v);
    if (bv && !(*bv & XSTATE_SSE))      /* in its initial state: the bytes may be stale */
        memset(v16, 0, 16);
    else
        memcpy(v16, (const uint8_t *)v->fpu + XSAVE_XMM + 16 * n, 16);
    fpu_attach();
}

static void vec_set(struct emu_ctx *c, unsigned n, const void *v16)
{
    struct vcpu *v = vcpu_of(c);
    fpu_detach();
    uint64_t *bv = xstate_bv(v);
    if (bv && !(*bv & XSTATE_SSE)) {
        memset((uint8_t *)v->fpu + XSAVE_XMM, 0, 16 * 16);
        *bv |= XSTATE_SSE;
    }
    memcpy((uint8_t *)v->fpu + XSAVE_XMM + 16 * n, v16, 16);
    fpu_attach();
}

static void load_seg(struct emu_ctx *c, enum seg s)
{
    struct vcpu *v = vcpu_of(c);
    hv->get_seg(v, s, &v->seg_scratch);
    const struct cpu_seg *from = &v->seg_scratch;
    c->seg[s] = (struct emu_seg){ .base = from->base, .limit = from->limit, .attr = from->attr, .sel = from->sel };
    c->seg_valid |= (uint8_t)(1u << s);
}

static const struct emu_ops ops = {
    .read = mem_read, .write = mem_write, .cmpxchg = mem_cmpxchg, .fetch = mem_fetch,
    .port_in = port_in, .port_out = port_out, .probe = probe, .load_seg = load_seg, .vec_get = vec_get, .vec_set = vec_set,
};

static void setup(struct vcpu *v)
{
    struct emu_ctx *c = &v->emu;
    const struct cpu_state *st = vcpu_code(v);
    unsigned mode = vcpu_cpu_mode(v);
    c->ops = &ops, c->arg = v, c->gpr = v->gpr;
    c->mode = (enum cpu_mode)(mode & MODE_MASK), c->real = mode & MODE_REAL;
    c->cpl = st->cpl, c->iopl = (uint8_t)(v->rflags >> 12 & 3);
    c->rip = v->rip, c->rflags = v->rflags;
    c->cr0 = st->cr0, c->cr4 = st->cr4, c->efer = st->efer;
    c->seg_valid = 0;
    c->insn_valid = true;
}

static void raise(struct vcpu *v, const struct emu_exc *x)
{
    if (x->vector == 14)
        vcpu_raise_pf(v, x->error, x->cr2);
    else
        vcpu_raise(v, x->vector, x->has_error, x->error);
}

/* Address of code under paging; false: #PF raised, or the VM stopped. */
static bool gwalk_code(struct vcpu *v, gva_t va, gpa_t *gpa)
{
    uint32_t error;
    int err = gwalk(v, va, PF_I | user(v), gpa, &error);
    if (err == -EFAULT)
        vcpu_raise_pf(v, error, va);
    else if (err)
        vcpu_crash(v, "its page tables for %llx lie outside memory", (unsigned long long)va);
    return !err;
}

static const struct insn *undefined(struct vcpu *v)
{
    vcpu_raise(v, EXC_UD, false, 0);
    return NULL;
}

/* Instruction bytes at a linear address, none beyond its page; false: #PF raised, or the VM stopped. */
static bool fetch(struct vcpu *v, gva_t va, void *buf, unsigned len)
{
    struct emu_ctx *c = &v->emu;
    c->arg = v;
    enum emu_result r = mem_fetch(c, va, buf, len);
    if (r == EMU_EXCEPTION)
        raise(v, &c->exc);
    return r == EMU_OK;
}

/* An instruction that ends on the next page, or near the end of this one; or code outside RAM. */
static __attribute__((noinline)) const struct insn *decode_slow(struct vcpu *v, gva_t va, enum cpu_mode mode)
{
    uint8_t bytes[15];
    unsigned left = (unsigned)(PAGE_SIZE - (va & (PAGE_SIZE - 1))), n = MIN(left, 15u);
    if (!fetch(v, va, bytes, n))
        return NULL;
    int err = insn_decode(&v->insn, mode, bytes, n);
    if (err == -ENODATA && n < 15) {
        if (!fetch(v, mode == MODE_64 ? va + n : (uint32_t)(va + n), bytes + n, 15 - n))
            return NULL;
        err = insn_decode(&v->insn, mode, bytes, 15);
    }
    return err ? undefined(v) : &v->insn;
}

/* Not in the cache yet. */
static __attribute__((noinline)) const struct insn *decode_new(struct vcpu *v, struct decoded *d, enum cpu_mode mode, uint64_t lo, uint64_t hi)
{
    uint64_t copy[2] = { lo, hi };
    v->stats.decodes++;
    if (insn_decode(&d->insn, mode, (const uint8_t *)copy, 15)) {
        d->mode = 0;
        return undefined(v);
    }
    d->lo = lo, d->hi = hi, d->mode = (uint8_t)(mode + 1);
    return &d->insn;
}

static inline __attribute__((always_inline)) const struct insn *decode_at(struct vcpu *v, gva_t va, gpa_t gpa, enum cpu_mode mode)
{
    const uint8_t *b = gmem_peek(&v->vm->gmem, gpa);
    uint64_t lo, hi;
    if (unlikely(!b))
        return decode_slow(v, va, mode);
    memcpy(&lo, b, 8);
    memcpy(&hi, b + 8, 8);
    hi &= BITS(55, 0);
    struct decoded *d = &v->decode[(va ^ va >> 6) % DECODE_CACHE];
    __asm__("" : "+r"(d));      /* else GCC computes the entry's address twice */
    if (unlikely(d->lo != lo || d->hi != hi || d->mode != mode + 1))
        return decode_new(v, d, mode, lo, hi);
    return &d->insn;
}

static __attribute__((noinline)) const struct insn *decode_paged(struct vcpu *v, gva_t va, enum cpu_mode mode)
{
    gpa_t gpa;
    return gwalk_code(v, va, &gpa) ? decode_at(v, va, gpa, mode) : NULL;
}

static inline __attribute__((always_inline)) const struct insn *decode(struct vcpu *v)
{
    const struct cpu_state *st = vcpu_code(v);
    enum cpu_mode mode = (enum cpu_mode)(vcpu_cpu_mode(v) & MODE_MASK);
    gva_t va = mode == MODE_64 ? v->rip : (uint32_t)(st->seg[SEG_CS].base + v->rip);
    if (unlikely((va & (PAGE_SIZE - 1)) > PAGE_SIZE - PAGE_LEFT_MIN))
        return decode_slow(v, va, mode);
    if (st->cr0 & CR0_PG)
        return decode_paged(v, va, mode);
    return decode_at(v, va, va, mode);
}

const struct insn *vcpu_decode(struct vcpu *v) { return decode(v); }

bool vcpu_skip(struct vcpu *v)
{
    const struct insn *i = decode(v);
    if (unlikely(!i))
        return false;
    vcpu_advance(v, i->len);
    return true;
}

/* ---- Plain loads and stores on devices: nearly every MMIO exit ---- */

/* Bits 11:0 of the memory operand's linear address. */
static unsigned operand_offset(struct vcpu *v, const struct insn *i)
{
    uint64_t at = (uint64_t)i->disp;
    if (i->base == 16)
        at += v->rip + i->len;
    else if (i->base != 0xff)
        at += v->gpr[i->base];
    if (i->index != 0xff)
        at += v->gpr[i->index] * i->scale;
    if (vcpu_cpu_mode(v) != MODE_64 || i->seg >= SEG_FS) {
        hv->get_seg(v, i->seg, &v->seg_scratch);
        at += v->seg_scratch.base;
    }
    return at & (PAGE_SIZE - 1);
}

/*
 * MOV and MOVZX between a register or immediate and one location.  The CPU has checked segment and page rights and told the physical address, so no guest
 * table is walked; what cannot be decided by that goes the long way: an access across pages (its second half faults at offset 0), AH..BH, single step.
 */
static bool mov_device(struct vcpu *v, gpa_t gpa, const struct insn *i)
{
    static const uint64_t mask[] = { [1] = 0xff, [2] = 0xffff, [4] = 0xffffffff, [8] = ~0ull };
    unsigned n = i->src_size;
    if ((i->op != INSN_MOV && i->op != INSN_MOVZX) || !i->mem || i->rep || n > 8 || (v->rflags & RFLAGS_TF))
        return false;
    if ((gpa & (PAGE_SIZE - 1)) + n > PAGE_SIZE || operand_offset(v, i) != (gpa & (PAGE_SIZE - 1)))
        return false;
    if (i->opsize == 1 && !i->rex && !i->imm_valid && (i->reg & 4))
        return false;
    struct io *io = &v->io;
    io->size = (uint8_t)n, io->write = i->to_mem;
    io->data = (i->imm_valid ? (uint64_t)i->imm : v->gpr[i->reg]) & mask[n];
    bus_access(v->vm->mmio, v->index, gpa, io);
    if (!i->to_mem)
        v->gpr[i->reg] = (i->opsize >= 4 ? 0 : v->gpr[i->reg] & ~mask[i->opsize]) | (io->data & mask[n]);
    v->rflags &= ~RFLAGS_RF;
    vcpu_advance(v, i->len);
    return true;
}

void vcpu_emulate(struct vcpu *v, struct exit *e)
{
    const struct insn *insn = vcpu_decode(v);
    if (!insn || (e->kind == EXIT_MMIO && mov_device(v, e->u.mmio.gpa, insn)))
        return;
    setup(v);
    v->emu.insn = *insn;
    switch (emu_execute(&v->emu)) {
    case EMU_OK:
        v->rflags = v->emu.rflags;
        v->rip = v->emu.rip;
        if (v->shadow || v->emu.trap_db)
            vcpu_advance(v, 0);
        break;
    case EMU_AGAIN:
        v->rflags = v->emu.rflags;
        if (v->emu.trap_db)
            vcpu_advance(v, 0);
        break;
    case EMU_EXCEPTION:
        v->rflags = v->emu.rflags;
        raise(v, &v->emu.exc);
        break;
    case EMU_UNHANDLED:
        vcpu_crash(v, "an instruction this emulator does not know touches a device at %llx (opcode class %u, %u bytes)",
                   (unsigned long long)e->u.mmio.gpa, insn->op, insn->len);
        break;
    }
}
