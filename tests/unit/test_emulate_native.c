/*
 * The emulator against the CPU that the test runs on: random instruction forms with random registers, flags and memory, once natively in a small stub,
 * once by emu_step; registers, memory and every defined flag must agree.  64-bit mode only: other modes are in test_emulate.c.
 * ROUNDS and SEED (odd numbers, say) in the environment: more of it, and others.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "kernel/vmm/emulate.h"

enum { DATA_PAGES = 3, DATA_LEN = DATA_PAGES * 4096 };
enum { CF = 1, PF = 4, AF = 16, ZF = 64, SF = 128, DF = 0x400, OF = 0x800, ARITH = CF | PF | AF | ZF | SF | OF };

struct state {
    uint64_t gpr[16], flags;
    uint8_t xmm[16][16];
};

static uint8_t *code, *data;            /* both below 2 GiB, so that every addressing form reaches the data */
static uint64_t host_rsp, scratch[64];
static struct state in, out;
static uint64_t rng_state = 0x2545f4914f6cdd1dull;

static uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    return rng_state ^= rng_state << 17;
}

/* ---- The stub.  Written by hand: load everything from `in`, the instruction, store everything to `out`. ---- */
static uint8_t *emit(uint8_t *p, unsigned n, ...)
{
    va_list ap;

    va_start(ap, n);
    while (n--)
        *p++ = va_arg(ap, int);
    va_end(ap);
    return p;
}

static uint8_t *emit64(uint8_t *p, const void *v)
{
    memcpy(p, &v, 8);
    return p + 8;
}

static uint8_t *emit_reg_move(uint8_t *p, unsigned reg, bool store, unsigned off)      /* mov reg, [rax+off] or back */
{
    p = emit(p, 3, 0x48 | (reg >> 3) << 2, store ? 0x89 : 0x8b, 0x80 | (reg & 7) << 3);
    memcpy(p, &off, 4);
    return p + 4;
}

static uint8_t *emit_xmm_move(uint8_t *p, unsigned reg, bool store, unsigned off)      /* movups */
{
    p = emit(p, 4, 0x40 | (reg >> 3) << 2, 0x0f, store ? 0x11 : 0x10, 0x80 | (reg & 7) << 3);
    memcpy(p, &off, 4);
    return p + 4;
}

/* Returns where the instruction starts. */
static uint8_t *emit_before(uint8_t *p)
{
    p = emit(p, 10, 0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57);        /* push rbx rbp r12-r15 */
    p = emit64(emit(p, 2, 0x48, 0xb8), &host_rsp);                                      /* mov rax, &host_rsp */
    p = emit(p, 3, 0x48, 0x89, 0x20);                                                   /* mov [rax], rsp */
    p = emit64(emit(p, 2, 0x48, 0xb8), &in);
    for (unsigned n = 0; n < 16; n++)
        p = emit_xmm_move(p, n, false, offsetof(struct state, xmm) + 16 * n);
    p = emit64(emit(p, 2, 0x48, 0xbc), scratch + 32);                                   /* mov rsp, scratch */
    p = emit(p, 7, 0xff, 0xb0, offsetof(struct state, flags), 0, 0, 0, 0x9d);           /* push [rax+flags]; popf */
    for (unsigned n = 1; n < 16; n++)
        p = emit_reg_move(p, n, false, 8 * n);
    return emit_reg_move(p, 0, false, 0);
}

static void emit_after(uint8_t *p)
{
    p = emit64(emit(p, 2, 0x48, 0xa3), &out);                                           /* mov [out.rax], rax */
    p = emit64(emit(p, 2, 0x48, 0xb8), &out);
    for (unsigned n = 1; n < 16; n++)
        p = emit_reg_move(p, n, true, 8 * n);
    p = emit64(emit(p, 2, 0x48, 0xbc), scratch + 32);
    p = emit(p, 7, 0x9c, 0x8f, 0x80, offsetof(struct state, flags), 0, 0, 0);           /* pushf; pop [rax+flags] */
    for (unsigned n = 0; n < 16; n++)
        p = emit_xmm_move(p, n, true, offsetof(struct state, xmm) + 16 * n);
    p = emit64(emit(p, 2, 0x48, 0xb8), &host_rsp);
    p = emit(p, 4, 0x48, 0x8b, 0x20, 0xfc);                                             /* mov rsp, [rax]; cld */
    emit(p, 11, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3);
}
_Static_assert(offsetof(struct state, flags) == 0x80, "one byte of displacement above is sign-extended by hand");

/* ---- Emulator side: linear addresses are the test's own. ---- */
static struct state emu;

static bool inside(gva_t a, unsigned len)
{
    return a >= (uintptr_t)data && a + len <= (uintptr_t)data + DATA_LEN && (a & 4095) + len <= 4096;
}

static enum emu_result op_read(struct emu_ctx *c, gva_t a, void *buf, unsigned len)
{
    if (!inside(a, len))
        return EMU_UNHANDLED;
    memcpy(buf, (void *)a, len);
    return EMU_OK;
}

static enum emu_result op_write(struct emu_ctx *c, gva_t a, const void *buf, unsigned len)
{
    if (!inside(a, len))
        return EMU_UNHANDLED;
    memcpy((void *)a, buf, len);
    return EMU_OK;
}

static enum emu_result op_cmpxchg(struct emu_ctx *c, gva_t a, void *old, const void *val, unsigned len)
{
    static unsigned calls;

    if (!inside(a, len))
        return EMU_UNHANDLED;
    if (++calls % 5 == 0 || memcmp((void *)a, old, len)) {      /* every fifth loses its race */
        memcpy(old, (void *)a, len);
        return EMU_AGAIN;
    }
    memcpy((void *)a, val, len);
    return EMU_OK;
}

static enum emu_result op_fetch(struct emu_ctx *c, gva_t a, void *buf, unsigned len)
{
    memcpy(buf, (void *)a, len);
    return EMU_OK;
}

static enum emu_result op_probe(struct emu_ctx *c, gva_t a, unsigned len, bool write, bool *ram)
{
    if (!inside(a, len))
        return EMU_UNHANDLED;
    *ram = (rng() & 3) != 0;
    return EMU_OK;
}

static void op_vec_get(struct emu_ctx *c, unsigned n, void *v) { memcpy(v, emu.xmm[n], 16); }
static void op_vec_set(struct emu_ctx *c, unsigned n, const void *v) { memcpy(emu.xmm[n], v, 16); }

static const struct emu_ops ops = {
    .read = op_read, .write = op_write, .cmpxchg = op_cmpxchg, .fetch = op_fetch, .probe = op_probe, .vec_get = op_vec_get, .vec_set = op_vec_set,
};

/* ---- Making instructions. ---- */
static const uint16_t forms[] = {       /* as struct insn.opcode */
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d,
    0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d,
    0x50, 0x53, 0x54, 0x58, 0x5c, 0x5f, 0x63, 0x68, 0x6a, 0x80, 0x81, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8f,
    0x90, 0x91, 0x97, 0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf, 0xb0, 0xb5, 0xb8, 0xbf,
    0xc6, 0xc7, 0xf6, 0xf7, 0xfe, 0xff,
    0x0fa3, 0x0fab, 0x0fb0, 0x0fb1, 0x0fb3, 0x0fb6, 0x0fb7, 0x0fba, 0x0fbb, 0x0fbe, 0x0fbf, 0x0fc0, 0x0fc1, 0x0fc3, 0x0fc7, 0x0f1f, 0x38f0, 0x38f1,
    0x0f10, 0x0f11, 0x0f12, 0x0f13, 0x0f16, 0x0f17, 0x0f28, 0x0f29, 0x0f2b, 0x0f6e, 0x0f6f, 0x0f7e, 0x0f7f, 0x0fd6, 0x0fe7, 0x0ff0, 0x382a,
};
static unsigned done_by_op[INSN_OPS];

static bool is_string(enum insn_op op) { return op >= INSN_MOVS && op <= INSN_SCAS; }

static void make_bytes(uint8_t b[15], uint16_t form)
{
    unsigned k = 0;

    if (rng() % 4 == 0)
        b[k++] = 0x66;
    if (rng() % 8 == 0)
        b[k++] = 0x67;
    if (rng() % 4 == 0)
        b[k++] = rng() & 1 ? 0xf3 : 0xf2;
    if (rng() % 8 == 0)
        b[k++] = 0xf0;
    if (rng() & 1)
        b[k++] = 0x40 | (rng() & 15);
    if (form >> 8)
        b[k++] = 0x0f;
    if (form >> 8 == 0x38)
        b[k++] = 0x38;
    b[k++] = form;
    while (k < 15)
        b[k++] = rng() >> 16;
}

/* Moves the memory operand to `target` by changing the base register or the displacement bytes.  false: not possible for this form. */
static bool aim(uint8_t *b, struct insn *i, uint64_t target, uint64_t next_rip)
{
    uint64_t index = i->index == INSN_NO_REG ? 0 : in.gpr[i->index] * i->scale;
    unsigned imm_len = 0;

    if (i->opcode >= 0xa0 && i->opcode <= 0xa3) {
        memcpy(b + i->len - i->addr_size, &target, i->addr_size);
        return true;
    }
    if (i->base < 16) {
        if (i->base == i->index)
            return false;
        in.gpr[i->base] = target - i->disp - index;
        return true;
    }
    /* RIP-relative or displacement only: the four bytes before the immediate. */
    if (i->imm_valid)
        imm_len = i->opcode == 0x80 || i->opcode == 0x83 || i->opcode == 0xc6 || i->opcode == 0xf6 || i->opcode == 0x0fba ? 1 : i->opsize == 2 ? 2 : 4;
    int64_t disp = (int64_t)(target - (i->base == INSN_BASE_RIP ? next_rip : index));
    if (i->addr_size == 8 && disp != (int32_t)disp)
        return false;
    memcpy(b + i->len - imm_len - 4, &disp, 4);
    return true;
}

static uint64_t undefined_flags(enum insn_op op)
{
    switch (op) {
    case INSN_AND: case INSN_OR: case INSN_XOR: case INSN_TEST: return AF;
    case INSN_BT: case INSN_BTS: case INSN_BTR: case INSN_BTC: return PF | AF | SF | OF;
    default: return 0;
    }
}

static bool prepare(uint8_t *b, struct insn *i, uint8_t *at)
{
    unsigned room = 64 + (rng() & 1 ? rng() % 32 : 4096 - 64 - 16 + rng() % 32);        /* often near a page boundary */
    uint64_t target = (uintptr_t)data + 4096 + (rng() % 4 ? room : room & ~15ull);

    for (unsigned n = 0; n < 16; n++)
        in.gpr[n] = rng() % 4 ? rng() : rng() % 2 ? rng() & 0xff : -(rng() & 3);
    for (unsigned n = 0; n < 16 * 16; n++)
        in.xmm[n / 16][n % 16] = rng();
    in.flags = 0x202 | (rng() & ARITH);
    if (insn_decode(i, MODE_64, b, 15) || i->op == INSN_OTHER || i->seg >= SEG_FS)
        return false;
    if (is_string(i->op)) {
        in.flags |= rng() & DF;
        in.gpr[6] = target;
        in.gpr[7] = (uintptr_t)data + 4096 + rng() % 4000;
        if (rng() % 4 == 0)
            in.gpr[7] = target + rng() % 20 - 10;               /* overlapping */
        in.gpr[1] = rng() % 20;
        if (i->op == INSN_CMPS || i->op == INSN_SCAS)
            memset(data, rng() & 3 ? 0 : 1, DATA_LEN), in.gpr[0] = 0, data[4096 + rng() % 4096] = 1;
        return true;
    }
    if (i->op == INSN_PUSH || i->op == INSN_POP)
        in.gpr[4] = target;
    if (i->op >= INSN_BT && i->op <= INSN_BTC && i->mem && !i->imm_valid)
        in.gpr[i->reg] = (in.gpr[i->reg] & ~0xffffffffull) | (uint32_t)(rng() % 8000 - 4000), in.gpr[i->reg] = i->opsize == 8 ? (uint64_t)(int32_t)in.gpr[i->reg] : in.gpr[i->reg];
    if (i->op >= INSN_BT && i->op <= INSN_BTC && i->mem && !i->imm_valid && (i->reg == i->base || i->reg == i->index))
        return false;
    if (i->op == INSN_CMPXCHG8B && i->opsize == 16)
        target &= ~15ull;
    if (i->op == INSN_SSE_MOV && i->opsize == 16 && rng() % 8)
        target &= ~15ull;
    if (i->mem && i->op != INSN_NOP) {
        if ((i->op == INSN_POP && i->base == 4) || !aim(b, i, target, (uintptr_t)at + i->len))
            return false;
    }
    if ((i->op == INSN_PUSH || i->op == INSN_POP) && !inside(in.gpr[4], 16))
        return false;
    /* Half of the comparisons shall hold. */
    if (i->op == INSN_CMPXCHG && rng() & 1)
        memcpy(&in.gpr[0], i->mem ? (void *)target : &in.gpr[i->rm], 8);
    if (i->op == INSN_CMPXCHG8B && rng() & 1) {
        if (i->opsize == 16)
            memcpy(&in.gpr[0], (void *)target, 8), memcpy(&in.gpr[2], (void *)(target + 8), 8);
        else
            memcpy(&in.gpr[0], (void *)target, 4), memcpy(&in.gpr[2], (void *)(target + 4), 4);
        if (i->base == 0 || i->base == 2 || i->index == 0 || i->index == 2)
            return false;
    }
    if (i->op == INSN_CMPXCHG && i->mem && (i->base == 0 || i->index == 0))
        return false;
    if (insn_decode(i, MODE_64, b, 15))
        return false;
    /* Where does it point now?  The index may be the same register as another that was changed. */
    if (i->mem && i->op != INSN_NOP && i->base != INSN_BASE_RIP) {
        uint64_t ea = i->disp + (i->base < 16 ? in.gpr[i->base] : 0) + (i->index < 16 ? in.gpr[i->index] * i->scale : 0);
        if (i->addr_size == 4)
            ea = (uint32_t)ea;
        if (ea < (uintptr_t)data + 1024 || ea > (uintptr_t)data + DATA_LEN - 1024)
            return false;
    }
    return true;
}

static sigjmp_buf fault;
static void on_fault(int sig) { siglongjmp(fault, sig); }

static bool run_native(void)
{
    int sig = sigsetjmp(fault, 1);

    if (sig)
        return false;
    ((void (*)(void))(uintptr_t)code)();
    return true;
}

static void describe(const uint8_t *b, const struct insn *i)
{
    print_message("opcode %x op %d len %d size %d mem %d:", i->opcode, i->op, i->len, i->opsize, i->mem);
    for (unsigned k = 0; k < i->len; k++)
        print_message(" %02x", b[k]);
    print_message("\n");
}

static void compare(const uint8_t *b, const struct insn *i, const uint8_t *native_data)
{
    uint64_t mask = ~undefined_flags(i->op) & (ARITH | DF);
    bool same = ((emu.flags ^ out.flags) & mask) == 0 && !memcmp(emu.gpr, out.gpr, sizeof emu.gpr) && !memcmp(emu.xmm, out.xmm, sizeof emu.xmm) &&
        !memcmp(native_data, data, DATA_LEN);

    if (same)
        return;
    describe(b, i);
    print_message("flags in %lx native %lx emulated %lx\n", in.flags, out.flags, emu.flags);
    for (unsigned n = 0; n < 16; n++)
        if (emu.gpr[n] != out.gpr[n])
            print_message("gpr %u: in %lx native %lx emulated %lx\n", n, in.gpr[n], out.gpr[n], emu.gpr[n]);
    for (unsigned n = 0; n < 16; n++)
        if (memcmp(emu.xmm[n], out.xmm[n], 16))
            print_message("xmm %u differs\n", n);
    for (unsigned n = 0; n < DATA_LEN; n++)
        if (native_data[n] != data[n])
            print_message("data+%x: native %02x emulated %02x\n", n, native_data[n], data[n]);
    fail();
}

static void every_form_as_the_cpu_does_it(void **state)
{
    static uint8_t before[DATA_LEN], after[DATA_LEN];
    unsigned compared = 0;
    unsigned long rounds = getenv("ROUNDS") ? strtoul(getenv("ROUNDS"), NULL, 0) : 200000;

    if (getenv("SEED"))
        rng_state ^= strtoull(getenv("SEED"), NULL, 0) * 0x9e3779b97f4a7c15ull;
    code = mmap((void *)0x10000000, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    data = mmap((void *)0x20000000, DATA_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    assert_true(code != MAP_FAILED && data != MAP_FAILED);
    uint8_t *at = emit_before(code);
    static uint8_t stack[65536];        /* RSP is random when a fault comes */
    const stack_t alt = { .ss_sp = stack, .ss_size = sizeof stack };
    const struct sigaction sa = { .sa_handler = on_fault, .sa_flags = SA_ONSTACK | SA_NODEFER };
    assert_int_equal(sigaltstack(&alt, NULL), 0);
    sigaction(SIGSEGV, &sa, NULL);
    sigaction(SIGILL, &sa, NULL);
    for (unsigned long round = 0; round < rounds; round++) {
        uint8_t b[15];
        struct insn i;
        make_bytes(b, forms[round % ARRAY_SIZE(forms)]);
        for (unsigned n = 0; n < DATA_LEN; n += 8)
            *(uint64_t *)(data + n) = rng();
        if (!prepare(b, &i, at))
            continue;
        memcpy(before, data, DATA_LEN);
        memcpy(at, b, i.len);
        emit_after(at + i.len);
        bool ran = run_native();
        memcpy(after, data, DATA_LEN);
        memcpy(data, before, DATA_LEN);

        emu = in;
        struct emu_ctx c = { .ops = &ops, .mode = MODE_64, .cpl = 3, .gpr = emu.gpr, .rip = (uintptr_t)at, .rflags = in.flags, .cr0 = 0x80050033, .cr4 = 0x6f0, .efer = 0xd01 };
        enum emu_result r = emu_step(&c);
        emu.flags = c.rflags;
        if (!ran) {             /* a misaligned MOVAPS: we must have seen it too */
            if (r != EMU_EXCEPTION || c.exc.vector != 13)
                describe(b, &i);
            assert_int_equal(r, EMU_EXCEPTION);
            assert_int_equal(c.exc.vector, 13);
            assert_memory_equal(&emu, &in, sizeof in);
            continue;
        }
        if (r != EMU_OK)
            describe(b, &i);
        assert_int_equal(r, EMU_OK);
        assert_int_equal(c.rip, (uintptr_t)at + i.len);
        compare(b, &i, after);
        compared++;
        done_by_op[i.op]++;
    }
    signal(SIGSEGV, SIG_DFL);
    signal(SIGILL, SIG_DFL);
    print_message("%u instructions compared\n", compared);
    for (enum insn_op op = INSN_MOV; op <= INSN_MOVNTI; op++)
        if (op != INSN_INS && op != INSN_OUTS && done_by_op[op] < 20)
            print_message("op %d only %u times\n", op, done_by_op[op]);
    munmap(code, 4096);
    munmap(data, DATA_LEN);
}

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(every_form_as_the_cpu_does_it) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
