/* The emulator in 16- and 32-bit modes, its faults, REP, ports, locks and devices: directed cases.  (64-bit semantics: test_emulate_native.c.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/vmm/emulate.h"

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };
enum { ZF = 0x40, CF = 1, TF = 0x100, DF = 0x400, OF = 0x800, RF = 0x10000, AC = 0x40000 };
enum { DATA32 = 0xc93, CODE32 = 0xc9b, CODE64 = 0xa9b, DATA16 = 0x93, CODE16 = 0x9b };

/* 64 KiB of RAM at 0, repeated every 64 KiB; pages may be marked as absent, read-only or device. */
enum { RAM = 0, ABSENT, READONLY, DEVICE };
static struct {
    struct emu_ctx c;
    uint64_t gpr[16];
    uint8_t ram[0x10000], kind[16];
    uint8_t xmm[16][16];
    unsigned reads, writes, fetches, probes, device_reads, device_writes, races;
    gva_t last_addr;
    uint32_t ports[64];
    uint8_t port_sizes[64];
    unsigned port_ins, port_outs;
    bool allow_ports, saw_write_intent;
} m;

static enum emu_result check(struct emu_ctx *c, gva_t a, unsigned len, bool write)
{
    unsigned kind = m.kind[a >> 12 & 15];

    assert_true(len > 0 && (a & 4095) + len <= 4096);
    m.last_addr = a;
    if (kind == ABSENT || (kind == READONLY && write)) {
        c->exc = (struct emu_exc){ .vector = 14, .has_error = true, .error = (write ? 2 : 0) | (kind == READONLY), .cr2 = a };
        return EMU_EXCEPTION;
    }
    return EMU_OK;
}

static enum emu_result op_read(struct emu_ctx *c, gva_t a, void *buf, unsigned len)
{
    m.reads++;
    m.saw_write_intent |= c->write_intent;
    if (check(c, a, len, c->write_intent))
        return EMU_EXCEPTION;
    m.device_reads += m.kind[a >> 12 & 15] == DEVICE;
    memcpy(buf, m.ram + (a & 0xffff), len);
    return EMU_OK;
}

static enum emu_result op_write(struct emu_ctx *c, gva_t a, const void *buf, unsigned len)
{
    m.writes++;
    if (check(c, a, len, true))
        return EMU_EXCEPTION;
    m.device_writes += m.kind[a >> 12 & 15] == DEVICE;
    memcpy(m.ram + (a & 0xffff), buf, len);
    return EMU_OK;
}

static enum emu_result op_cmpxchg(struct emu_ctx *c, gva_t a, void *old, const void *val, unsigned len)
{
    if (check(c, a, len, true))
        return EMU_EXCEPTION;
    if (m.races) {              /* another CPU adds one */
        m.races--;
        m.ram[a & 0xffff]++;
    }
    if (memcmp(m.ram + (a & 0xffff), old, len)) {
        memcpy(old, m.ram + (a & 0xffff), len);
        return EMU_AGAIN;
    }
    memcpy(m.ram + (a & 0xffff), val, len);
    return EMU_OK;
}

static enum emu_result op_fetch(struct emu_ctx *c, gva_t a, void *buf, unsigned len)
{
    m.fetches++;
    if (check(c, a, len, false))
        return EMU_EXCEPTION;
    memcpy(buf, m.ram + (a & 0xffff), len);
    return EMU_OK;
}

static enum emu_result op_in(struct emu_ctx *c, uint16_t port, unsigned size, uint32_t *val)
{
    *val = 0x11223344 + m.port_ins++;
    return EMU_OK;
}

static enum emu_result op_out(struct emu_ctx *c, uint16_t port, unsigned size, uint32_t val)
{
    m.port_sizes[m.port_outs % 64] = size;
    m.ports[m.port_outs++ % 64] = val;
    return EMU_OK;
}

static enum emu_result op_probe(struct emu_ctx *c, gva_t a, unsigned len, bool write, bool *ram)
{
    m.probes++;
    *ram = m.kind[a >> 12 & 15] != DEVICE;
    return check(c, a, len, write);
}

static bool op_allowed(struct emu_ctx *c, uint16_t port, unsigned size) { return m.allow_ports; }
static void op_vec_get(struct emu_ctx *c, unsigned n, void *v) { memcpy(v, m.xmm[n], 16); }
static void op_vec_set(struct emu_ctx *c, unsigned n, const void *v) { memcpy(m.xmm[n], v, 16); }

static const struct emu_ops ops = {
    .read = op_read, .write = op_write, .cmpxchg = op_cmpxchg, .fetch = op_fetch, .port_in = op_in, .port_out = op_out, .probe = op_probe,
    .port_allowed = op_allowed, .vec_get = op_vec_get, .vec_set = op_vec_set,
};

static void start(enum cpu_mode mode, bool real)
{
    memset(&m, 0, sizeof m);
    m.c = (struct emu_ctx){ .ops = &ops, .mode = mode, .real = real, .gpr = m.gpr, .rip = 0x100, .rflags = 2, .cr0 = real ? 0x10 : 0x80000011, .cr4 = 0x200, .seg_valid = 0x3f };
    for (unsigned s = 0; s < 6; s++)
        m.c.seg[s] = (struct emu_seg){ .limit = mode == MODE_16 ? 0xffff : 0xffffffff, .attr = mode == MODE_16 ? DATA16 : DATA32 };
    m.c.seg[SEG_CS].attr = mode == MODE_16 ? CODE16 : mode == MODE_32 ? CODE32 : CODE64;
}

/* Puts the bytes at CS:RIP and steps. */
static enum emu_result step(const char *bytes, unsigned len)
{
    memcpy(m.ram + ((m.c.seg[SEG_CS].base + m.c.rip) & 0xffff), bytes, len);
    m.c.insn_valid = false;
    return emu_step(&m.c);
}
#define STEP(bytes) step(bytes, sizeof(bytes) - 1)
#define EXPECT_EXC(bytes, vec) do { assert_int_equal(STEP(bytes), EMU_EXCEPTION); assert_int_equal(m.c.exc.vector, vec); } while (0)

static uint32_t ram32(unsigned a) { uint32_t v; memcpy(&v, m.ram + a, 4); return v; }
static void set32(unsigned a, uint32_t v) { memcpy(m.ram + a, &v, 4); }

static void real_mode_addresses_wrap(void **state)
{
    start(MODE_16, true);
    m.c.seg[SEG_DS].base = 0x1230;
    m.gpr[RBX] = 0xdead8000;            /* upper half does not count */
    m.gpr[RSI] = 0x9000;
    set32(0x1230 + 0x1000 + 0x10, 0xcafe);
    assert_int_equal(STEP("\x8b\x40\x10"), EMU_OK);             /* mov ax, [bx+si+10h] */
    assert_int_equal(m.gpr[RAX], 0xcafe);
    assert_int_equal(m.c.rip, 0x103);
    /* A word at FFFFh runs over the limit. */
    m.gpr[RBX] = 0xffff, m.gpr[RSI] = 0;
    EXPECT_EXC("\x8b\x00", 13);
    assert_int_equal(m.c.rip, 0x103);
    /* BP goes through SS. */
    m.c.seg[SEG_SS].base = 0x4000;
    m.gpr[RBP] = 0x20;
    set32(0x4020, 0x7788);
    assert_int_equal(STEP("\x8b\x46\x00"), EMU_OK);
    assert_int_equal(m.gpr[RAX], 0x7788);
    m.gpr[RBP] = 0xffff;
    EXPECT_EXC("\x8b\x46\x00", 12);
    /* 67: 32-bit address in real mode, over the limit. */
    m.gpr[RBX] = 0x12345;
    EXPECT_EXC("\x67\x8b\x03", 13);
    /* IP wraps. */
    m.c.rip = 0xffff;
    assert_int_equal(STEP("\x90"), EMU_OK);
    assert_int_equal(m.c.rip, 0);
}

static void partial_registers(void **state)
{
    start(MODE_32, false);
    m.gpr[RAX] = 0x11223344;
    set32(0x2000, 0xaabbccdd);
    m.gpr[RBX] = 0x2000;
    assert_int_equal(STEP("\x8a\x23"), EMU_OK);                 /* mov ah, [ebx] */
    assert_int_equal(m.gpr[RAX], 0x1122dd44);
    assert_int_equal(STEP("\x66\x8b\x03"), EMU_OK);             /* mov ax, [ebx] */
    assert_int_equal(m.gpr[RAX], 0x1122ccdd);
    assert_int_equal(STEP("\x0f\xbe\x03"), EMU_OK);             /* movsx eax, byte [ebx] */
    assert_int_equal(m.gpr[RAX], 0xffffffdd);
    assert_int_equal(STEP("\x0f\xb7\x03"), EMU_OK);             /* movzx eax, word [ebx] */
    assert_int_equal(m.gpr[RAX], 0xccdd);
    assert_int_equal(STEP("\xa1\x00\x20\x00\x00"), EMU_OK);     /* mov eax, [2000h] */
    assert_int_equal(m.gpr[RAX], 0xaabbccdd);
    assert_int_equal(STEP("\x40"), EMU_OK);                     /* inc eax: no REX here */
    assert_int_equal(m.gpr[RAX], 0xaabbccde);
}

static void segment_checks(void **state)
{
    start(MODE_32, false);
    m.gpr[RBX] = 0x1000;
    m.c.seg[SEG_DS].limit = 0x1002;
    EXPECT_EXC("\x8b\x03", 13);
    assert_true(m.c.exc.has_error && m.c.exc.error == 0);
    assert_int_equal(m.reads, 0);
    assert_int_equal(STEP("\x66\x8b\x03"), EMU_OK);
    m.c.seg[SEG_DS].attr = 0xc91;                               /* read-only */
    EXPECT_EXC("\x66\x89\x03", 13);
    assert_int_equal(STEP("\x66\x8b\x03"), EMU_OK);
    EXPECT_EXC("\x2e\x66\x89\x03", 13);                         /* into code */
    assert_int_equal(STEP("\x2e\x66\x8b\x03"), EMU_OK);
    m.c.seg[SEG_CS].attr = 0xc99;                               /* execute-only */
    EXPECT_EXC("\x2e\x66\x8b\x03", 13);
    m.c.seg[SEG_ES].attr = 0;                                   /* null selector */
    EXPECT_EXC("\x26\x8a\x03", 13);
    m.c.seg[SEG_ES] = (struct emu_seg){ .limit = 0xfff, .attr = 0xc97 };        /* expand-down: above the limit only */
    assert_int_equal(STEP("\x26\x8a\x03"), EMU_OK);
    m.gpr[RBX] = 0xfff;
    EXPECT_EXC("\x26\x8a\x03", 13);
    /* The code segment's own limit. */
    m.c.rip = 0x100;
    m.c.seg[SEG_CS].limit = 0x101;
    EXPECT_EXC("\x26\x8a\x03", 13);
    assert_int_equal(STEP("\x90"), EMU_OK);
}

static void canonical_checks(void **state)
{
    start(MODE_64, false);
    m.gpr[RAX] = 0x800000000000;
    EXPECT_EXC("\x8b\x18", 13);
    m.gpr[RBP] = 0x7fffffffffff;
    EXPECT_EXC("\x8b\x5d\x00", 12);                             /* the last bytes are beyond */
    m.gpr[RAX] = 0xffff800000001000;
    assert_int_equal(STEP("\x8b\x18"), EMU_OK);
    m.c.cr4 |= 1 << 12;                                         /* LA57 */
    m.gpr[RAX] = 0x800000000000;
    assert_int_equal(STEP("\x8b\x18"), EMU_OK);
    m.c.seg[SEG_GS].base = 0x3000;
    set32(0x3010, 5);
    assert_int_equal(STEP("\x65\x8b\x1c\x25\x10\x00\x00\x00"), EMU_OK);
    assert_int_equal(m.gpr[RBX], 5);
    m.c.seg[SEG_DS].base = 0x5000;                              /* does not count, overridden or not */
    m.gpr[RAX] = 0x3010;
    assert_int_equal(STEP("\x3e\x8b\x18"), EMU_OK);
    assert_int_equal(m.gpr[RBX], 5);
}

static void page_crossing(void **state)
{
    start(MODE_32, false);
    m.gpr[RBX] = 0x2ffe;
    m.gpr[RAX] = 0x44332211;
    m.kind[3] = READONLY;
    memset(m.ram + 0x2ff0, 0, 32);
    EXPECT_EXC("\x89\x03", 14);                                 /* nothing of it may be written */
    assert_int_equal(m.c.exc.cr2, 0x3000);
    assert_int_equal(ram32(0x2ffe), 0);
    m.kind[3] = RAM;
    assert_int_equal(STEP("\x89\x03"), EMU_OK);
    assert_int_equal(ram32(0x2ffe), 0x44332211);
    assert_int_equal(STEP("\xf0\x01\x03"), EMU_OK);             /* lock add, split */
    assert_int_equal(ram32(0x2ffe), 0x88664422);
    /* An instruction across pages: the second is fetched only when needed. */
    m.kind[5] = ABSENT;
    m.c.rip = 0x4fff;
    assert_int_equal(STEP("\x40"), EMU_OK);
    m.c.rip = 0x4ffe;
    EXPECT_EXC("\x66\x0f\xa2", 14);
    assert_int_equal(m.c.exc.cr2, 0x5000);
    m.kind[5] = RAM;
    assert_int_equal(STEP("\x66\x0f\xa2"), EMU_UNHANDLED);
    assert_int_equal(m.c.insn.op, INSN_CPUID);
    assert_int_equal(m.c.insn.len, 3);
    /* The linear address wraps at 4 GiB outside 64-bit mode. */
    m.c.rip = 0x100;
    m.c.seg[SEG_DS].base = 0xfffffffe;
    m.gpr[RBX] = 0;
    m.ram[0xfffe] = 1, m.ram[0xffff] = 2, m.ram[0] = 3, m.ram[1] = 4;
    assert_int_equal(STEP("\x8b\x03"), EMU_OK);
    assert_int_equal(m.gpr[RAX], 0x04030201);
}

static void precise_exceptions(void **state)
{
    uint64_t before[16];

    start(MODE_32, false);
    m.kind[2] = READONLY;
    m.gpr[RBX] = 0x2000, m.gpr[RAX] = 7, m.gpr[RSP] = 0x3000, m.gpr[RCX] = 9;
    m.c.rflags |= CF;
    memcpy(before, m.gpr, sizeof before);
    EXPECT_EXC("\x01\x03", 14);                                 /* add: reported as a write, by the read already */
    assert_int_equal(m.c.exc.error, 3);
    assert_true(m.saw_write_intent && !m.c.write_intent);
    EXPECT_EXC("\x87\x03", 14);                                 /* xchg */
    EXPECT_EXC("\x0f\xc1\x0b", 14);                             /* xadd */
    EXPECT_EXC("\x0f\xb1\x0b", 14);                             /* cmpxchg */
    EXPECT_EXC("\xf0\x0f\xc7\x0b", 14);                         /* cmpxchg8b */
    EXPECT_EXC("\x8f\x03", 14);                                 /* pop [ebx]: the stack pointer comes back */
    m.gpr[RSP] = before[RSP] = 0x2004;
    EXPECT_EXC("\x50", 14);                                     /* push eax */
    assert_memory_equal(m.gpr, before, sizeof before);
    assert_int_equal(m.c.rflags, 2 | CF);
    assert_int_equal(m.c.rip, 0x100);
    EXPECT_EXC("\x0f\x0b", 6);
    EXPECT_EXC("\xf0\x89\x03", 6);
    EXPECT_EXC("\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x89\x03", 13);
}

static void stack_sizes(void **state)
{
    start(MODE_16, true);
    m.gpr[RSP] = 0xabcd0000;
    assert_int_equal(STEP("\x66\x68\x78\x56\x34\x12"), EMU_OK); /* push dword: wraps within 64 KiB */
    assert_int_equal(m.gpr[RSP], 0xabcdfffc);
    assert_int_equal(ram32(0xfffc), 0x12345678);
    start(MODE_32, false);
    m.gpr[RSP] = 0x2000;
    assert_int_equal(STEP("\x6a\xff"), EMU_OK);
    assert_int_equal(m.gpr[RSP], 0x1ffc);
    assert_int_equal(ram32(0x1ffc), 0xffffffff);
    assert_int_equal(STEP("\x8f\x44\x24\x10"), EMU_OK);         /* pop [esp+10h]: address after the pop */
    assert_int_equal(ram32(0x2010), 0xffffffff);
}

static void rep_movs_restarts(void **state)
{
    start(MODE_32, false);
    for (unsigned n = 0; n < 0x800; n++)
        m.ram[0x2800 + n] = n * 7;
    m.gpr[RSI] = 0x2800, m.gpr[RDI] = 0x3c00, m.gpr[RCX] = 0x200;
    m.kind[4] = ABSENT;
    EXPECT_EXC("\xf3\xa5", 14);
    assert_int_equal(m.gpr[RCX], 0x100);                        /* a page full of progress */
    assert_int_equal(m.gpr[RDI], 0x4000);
    assert_int_equal(m.gpr[RSI], 0x2c00);
    assert_int_equal(m.c.exc.cr2, 0x4000);
    assert_int_equal(m.c.rip, 0x100);
    m.kind[4] = RAM;
    m.c.rep_budget = 0x80;
    assert_int_equal(STEP("\xf3\xa5"), EMU_AGAIN);
    assert_int_equal(m.gpr[RCX], 0x80);
    assert_int_equal(m.c.rip, 0x100);
    assert_int_equal(STEP("\xf3\xa5"), EMU_OK);
    assert_int_equal(m.gpr[RCX], 0);
    assert_int_equal(m.c.rip, 0x102);
    assert_memory_equal(m.ram + 0x2800, m.ram + 0x3c00, 0x800);
    assert_true(m.reads < 16);                                  /* by the block */
    /* Overlapping by one: a fill, as the CPU does it. */
    m.ram[0x6000] = 0x5a;
    m.gpr[RSI] = 0x6000, m.gpr[RDI] = 0x6001, m.gpr[RCX] = 100;
    m.c.rep_budget = 0;
    assert_int_equal(STEP("\xf3\xa4"), EMU_OK);
    for (unsigned n = 0; n <= 100; n++)
        assert_int_equal(m.ram[0x6000 + n], 0x5a);
    /* The same RAM under two addresses (64 KiB apart here). */
    m.ram[0x7000] = 0x77;
    m.gpr[RSI] = 0x7000, m.gpr[RDI] = 0x17002, m.gpr[RCX] = 100;
    m.ram[0x7001] = 0x78;
    assert_int_equal(STEP("\xf3\x66\xa5"), EMU_OK);
    for (unsigned n = 0; n < 200; n++)
        assert_int_equal(m.ram[0x7000 + n], 0x77 + (n & 1));
    /* Nothing to do. */
    m.gpr[RCX] = 0;
    assert_int_equal(STEP("\xf3\xa4"), EMU_OK);
}

static void rep_counts_and_directions(void **state)
{
    start(MODE_16, true);
    m.c.rflags |= DF;
    m.gpr[RCX] = 0xffff0003, m.gpr[RDI] = 0x12340001, m.gpr[RAX] = 0xbeef;
    assert_int_equal(STEP("\xf3\xaa"), EMU_OK);                 /* rep stosb downwards through 0 */
    assert_int_equal(m.gpr[RCX], 0xffff0000);
    assert_int_equal(m.gpr[RDI], 0x1234fffe);
    assert_int_equal(m.ram[1], 0xef);
    assert_int_equal(m.ram[0xffff], 0xef);
    start(MODE_32, false);
    memcpy(m.ram + 0x2000, "aaaab", 5);
    m.gpr[RDI] = 0x2000, m.gpr[RCX] = 100, m.gpr[RAX] = 'a';
    assert_int_equal(STEP("\xf3\xae"), EMU_OK);                 /* repe scasb */
    assert_int_equal(m.gpr[RCX], 95);
    assert_int_equal(m.c.rflags & ZF, 0);
    m.gpr[RDI] = 0x2000, m.gpr[RCX] = 100, m.gpr[RAX] = 'b';
    assert_int_equal(STEP("\xf2\xae"), EMU_OK);                 /* repne scasb */
    assert_int_equal(m.gpr[RCX], 95);
    assert_int_equal(m.c.rflags & ZF, ZF);
    /* MOVS from device to RAM: operand by operand. */
    m.kind[5] = DEVICE;
    m.gpr[RSI] = 0x5000, m.gpr[RDI] = 0x6000, m.gpr[RCX] = 8;
    assert_int_equal(STEP("\xf3\xa5"), EMU_OK);
    assert_int_equal(m.device_reads, 8);
    m.gpr[RSI] = 0x6000, m.gpr[RDI] = 0x5000, m.gpr[RCX] = 8;
    assert_int_equal(STEP("\xf3\xa4"), EMU_OK);
    assert_int_equal(m.device_writes, 8);
}

static void single_step_traps(void **state)
{
    start(MODE_32, false);
    m.c.rflags |= TF | RF;
    assert_int_equal(STEP("\x40"), EMU_OK);
    assert_true(m.c.trap_db);
    assert_int_equal(m.c.rflags & RF, 0);
    m.gpr[RCX] = 2, m.gpr[RDI] = 0x2000;
    assert_int_equal(STEP("\xf3\xaa"), EMU_AGAIN);              /* after each iteration */
    assert_true(m.c.trap_db);
    assert_int_equal(STEP("\xf3\xaa"), EMU_OK);
    assert_true(m.c.trap_db);
    m.c.rflags &= ~(uint64_t)TF;
    assert_int_equal(STEP("\x40"), EMU_OK);
    assert_false(m.c.trap_db);
}

static void ports(void **state)
{
    start(MODE_32, false);
    m.gpr[RAX] = 0xaabbccdd;
    assert_int_equal(STEP("\xe4\x21"), EMU_OK);
    assert_int_equal(m.gpr[RAX], 0xaabbcc44);
    m.gpr[RDX] = 0x10cfc;
    assert_int_equal(STEP("\xed"), EMU_OK);
    assert_int_equal(m.gpr[RAX], 0x11223345);
    assert_int_equal(STEP("\x66\xef"), EMU_OK);
    assert_int_equal(m.ports[0], 0x3345);
    assert_int_equal(m.port_sizes[0], 2);
    /* Block output: one translation for a page. */
    m.port_outs = m.reads = 0;
    for (unsigned n = 0; n < 512; n++)
        m.ram[0x2000 + n] = n;
    m.gpr[RSI] = 0x2000, m.gpr[RCX] = 256;
    assert_int_equal(STEP("\xf3\x66\x6f"), EMU_OK);
    assert_int_equal(m.port_outs, 256);
    assert_int_equal(m.reads, 1);
    assert_int_equal(m.ports[255 % 64], 0xfffe);
    /* INS does not lose what the device gave: the fault comes before. */
    m.port_ins = 0;
    m.kind[4] = READONLY;
    m.gpr[RDI] = 0x3ffe, m.gpr[RCX] = 3;
    EXPECT_EXC("\xf3\x66\x6d", 14);
    assert_int_equal(m.port_ins, 1);
    assert_int_equal(m.gpr[RCX], 2);
    assert_int_equal(m.gpr[RDI], 0x4000);
    m.kind[4] = RAM;
    assert_int_equal(STEP("\xf3\x66\x6d"), EMU_OK);
    assert_int_equal(m.port_ins, 3);
    assert_int_equal(ram32(0x3ffe), 0x33453344);
    /* Privilege. */
    m.c.cpl = 3, m.c.iopl = 0;
    EXPECT_EXC("\xec", 13);
    EXPECT_EXC("\x6e", 13);
    m.allow_ports = true;
    assert_int_equal(STEP("\xec"), EMU_OK);
    m.allow_ports = false;
    m.c.iopl = 3;
    assert_int_equal(STEP("\xec"), EMU_OK);
    start(MODE_16, true);                                       /* virtual-8086 mode: the bitmap, whatever IOPL says */
    m.c.cr0 |= 1, m.c.cpl = 3, m.c.iopl = 3;
    EXPECT_EXC("\xec", 13);
}

static void locked_operations_survive_races(void **state)
{
    start(MODE_32, false);
    m.gpr[RBX] = 0x2000;
    set32(0x2000, 10);
    m.races = 3;
    assert_int_equal(STEP("\xf0\xff\x03"), EMU_OK);             /* lock inc */
    assert_int_equal(ram32(0x2000), 14);
    m.races = 1000;                                             /* never ending: the guest goes on later */
    assert_int_equal(STEP("\xf0\xff\x03"), EMU_AGAIN);
    assert_int_equal(m.c.rip, 0x103);
    m.races = 2;
    m.gpr[RAX] = 1;
    unsigned before = ram32(0x2000);
    assert_int_equal(STEP("\x87\x03"), EMU_OK);                 /* xchg locks by itself */
    assert_int_equal(m.gpr[RAX], before + 2);
    assert_int_equal(ram32(0x2000), 1);
}

static void vector_moves(void **state)
{
    start(MODE_32, false);
    for (unsigned n = 0; n < 16; n++)
        m.xmm[1][n] = n, m.ram[0x2000 + n] = 0x80 + n;
    m.gpr[RBX] = 0x2000;
    assert_int_equal(STEP("\x0f\x10\x03"), EMU_OK);             /* movups xmm0, [ebx] */
    assert_memory_equal(m.xmm[0], m.ram + 0x2000, 16);
    m.gpr[RBX] = 0x2ffc;
    assert_int_equal(STEP("\x0f\x11\x0b"), EMU_OK);             /* movups [ebx], xmm1 across a page */
    assert_memory_equal(m.ram + 0x2ffc, m.xmm[1], 16);
    EXPECT_EXC("\x0f\x29\x0b", 13);                             /* movaps */
    m.c.cr0 |= 8;
    EXPECT_EXC("\x0f\x11\x0b", 7);
    m.c.cr4 = 0;
    EXPECT_EXC("\x0f\x11\x0b", 6);
}

static void alignment_check(void **state)
{
    start(MODE_32, false);
    m.c.cr0 |= 1 << 18;
    m.c.rflags |= AC;
    m.gpr[RBX] = 0x2001;
    assert_int_equal(STEP("\x8b\x03"), EMU_OK);                 /* not at CPL 0 */
    m.c.cpl = 3;
    EXPECT_EXC("\x8b\x03", 17);
    assert_int_equal(STEP("\x8a\x03"), EMU_OK);
    m.gpr[RSI] = 0x2001, m.gpr[RDI] = 0x3000;
    EXPECT_EXC("\xa5", 17);
}

static void other_answers(void **state)
{
    start(MODE_64, false);
    assert_int_equal(STEP("\x0f\x01\xd0"), EMU_UNHANDLED);      /* xgetbv */
    assert_int_equal(STEP("\xf4"), EMU_UNHANDLED);
    assert_int_equal(m.c.insn.op, INSN_HLT);
    assert_int_equal(STEP("\xf3\x90"), EMU_OK);
    assert_int_equal(m.c.insn.op, INSN_PAUSE);
    assert_int_equal(m.c.rip, 0x102);
    m.gpr[RAX] = ~0ull;
    assert_int_equal(STEP("\x0f\x01\xe0"), EMU_OK);             /* smsw eax */
    assert_int_equal(m.gpr[RAX], 0x80000011);
    m.c.cr4 |= 1 << 11, m.c.cpl = 3;
    EXPECT_EXC("\x0f\x01\xe0", 13);
    /* An instruction the caller decoded earlier is not fetched again. */
    m.fetches = 0;
    m.c.insn_valid = true;
    assert_int_equal(insn_decode(&m.c.insn, MODE_64, (const uint8_t *)"\xff\xc0", 2), 0);
    m.gpr[RAX] = 0xffffffff;
    assert_int_equal(emu_step(&m.c), EMU_OK);
    assert_int_equal(m.gpr[RAX], 0);
    assert_int_equal(m.fetches, 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_mode_addresses_wrap), cmocka_unit_test(partial_registers), cmocka_unit_test(segment_checks), cmocka_unit_test(canonical_checks),
        cmocka_unit_test(page_crossing), cmocka_unit_test(precise_exceptions), cmocka_unit_test(stack_sizes), cmocka_unit_test(rep_movs_restarts),
        cmocka_unit_test(rep_counts_and_directions), cmocka_unit_test(single_step_traps), cmocka_unit_test(ports), cmocka_unit_test(locked_operations_survive_races),
        cmocka_unit_test(vector_moves), cmocka_unit_test(alignment_check), cmocka_unit_test(other_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
