/* Instructions that exit, with every harmless prefix, at every position across a page boundary: whoever assumes a length goes astray here. */
#include "lib/guest.h"

static uint8_t code[8192] __attribute__((aligned(4096)));

struct regs { ulong ax, bx, cx, dx, si; };
struct insn { const char *name; uint8_t bytes[4], len; ulong ax, cx, dx; };
static const struct insn insns[] = {
    { "cpuid", { 0x0f, 0xa2 }, 2, 0, 0, 0 },
    { "rdmsr", { 0x0f, 0x32 }, 2, 0, 0x1b, 0 },
    { "wrmsr", { 0x0f, 0x30 }, 2, 0x00070406, 0x277, 0x00070406 },
    { "in-dx", { 0xec }, 1, 0, 0, 0x21 },
    { "in-imm", { 0xe4, 0x21 }, 2, 0, 0, 0 },
    { "out-dx", { 0xee }, 1, 0xff, 0, 0x21 },
    { "out-imm", { 0xe6, 0x80 }, 2, 0, 0, 0 },
    { "in-eax", { 0xed }, 1, 0, 0, 0xcf8 },
    { "mov-from-cr0", { 0x0f, 0x20, 0xc0 }, 3, 0, 0, 0 },
    { "wbinvd", { 0x0f, 0x09 }, 2, 0, 0, 0 },
    { "pause", { 0xf3, 0x90 }, 2, 0, 0, 0 },
};
static const uint8_t prefixes[][8] = {  /* length first */
    { 0 }, { 1, 0x66 }, { 1, 0x67 }, { 1, 0x2e }, { 1, 0x3e }, { 1, 0x64 }, { 1, 0xf2 }, { 1, 0xf3 }, { 2, 0x66, 0x67 }, { 3, 0x66, 0x66, 0x2e }, { 4, 0x2e, 0x36, 0x64, 0x67 },
    { 7, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x66 },
#ifdef __x86_64__
    { 1, 0x40 }, { 1, 0x48 }, { 2, 0x66, 0x40 },
#endif
};

static void call(uint8_t *at, struct regs *r)
{
    asm volatile("call *%[at]" : "+a"(r->ax), "+b"(r->bx), "+c"(r->cx), "+d"(r->dx), "+S"(r->si) : [at] "D"(at) : "memory");
}

/* The bytes at `at`, then "mov $600dh, %esi; ret". */
static void place(uint8_t *at, const uint8_t *prefix, const struct insn *i)
{
    static const uint8_t tail[] = { 0xbe, 0x0d, 0x60, 0x00, 0x00, 0xc3 };

    memset(code, 0xcc, sizeof code);
    memcpy(at, prefix + 1, prefix[0]);
    memcpy(at + prefix[0], i->bytes, i->len);
    memcpy(at + prefix[0] + i->len, tail, sizeof tail);
}

static void test(const struct insn *i)
{
    struct regs want = { i->ax, 0, i->cx, i->dx, 0 };
    unsigned ran = 0, wrong = 0;

    place(code, prefixes[0], i);
    call(code, &want);
    for (unsigned p = 0; p < ARRAY_SIZE(prefixes); p++) {
        const uint8_t *prefix = prefixes[p];
        unsigned len = prefix[0] + i->len;
        bool sized = false;             /* 66 and REX.W change what IN and MOV CR do */
        for (unsigned n = 1; n <= prefix[0]; n++)
            sized = sized || prefix[n] == 0x66;
        if (sized && i->bytes[0] == 0xed)
            continue;
        if (i->bytes[0] == 0xf3 && prefix[0] && prefix[prefix[0]] >= 0x40 && prefix[prefix[0]] < 0x50)
            continue;                   /* REX must not stand before F3 */
        for (unsigned split = 0; split <= len; split++) {
            struct regs r = { i->ax, 0, i->cx, i->dx, 0 };
            place(code + 4096 - split, prefix, i);
            call(code + 4096 - split, &r);
            ran++;
            if (r.si == 0x600d && r.ax == want.ax && r.bx == want.bx && r.cx == want.cx && r.dx == want.dx)
                continue;
            if (wrong++ < 3)
                print("  %s prefix %u split %u: si %lx ax %lx/%lx\n", i->name, p, split, r.si, r.ax, want.ax);
        }
    }
    report(i->name, !wrong, "%u of %u wrong", wrong, ran);
}

/* An instruction may be 15 bytes long and no longer. */
static void too_long(void)
{
    static const struct insn cpuid_insn = { "cpuid", { 0x0f, 0xa2 }, 2, 0, 0, 0 };
    uint8_t prefix[16] = { 13 };
    struct regs r = { 0 };

    memset(prefix + 1, 0x2e, 15);
    place(code + 4096 - 8, prefix, &cpuid_insn);
    call(code + 4096 - 8, &r);
    EQUAL("fifteen-bytes", r.si, 0x600d);
    prefix[0] = 14;
    place(code + 4096 - 8, prefix, &cpuid_insn);
    TRY("jmp *%0", :: "r"(code + 4096 - 8) : "eax", "ebx", "ecx", "edx", "esi", "memory");
    EQUAL("sixteen-bytes-gp", TRAP.vector, 13);
}

/* The instruction's second page is not there: #PF on that page, nothing done. */
static void absent_page(void)
{
    static const struct insn cpuid_insn = { "cpuid", { 0x0f, 0xa2 }, 2, 0, 0, 0 };

    paging_on();
    place(code + 4095, prefixes[0], &cpuid_insn);
    map_page((ulong)code + 4096, 0, 0);
    TRY("jmp *%0", :: "r"(code + 4095) : "eax", "ebx", "ecx", "edx", "esi", "memory");
    EQUAL("absent-second-page", TRAP.vector, 14);
    EQUAL("absent-second-page-cr2", TRAP.cr2, (ulong)code + 4096);
    map_page((ulong)code + 4096, (ulong)code + 4096, 3);
}

int main(void)
{
    pic_mask_all();
    for (unsigned n = 0; n < ARRAY_SIZE(insns); n++)
        test(&insns[n]);
    too_long();
    absent_page();
    return 0;
}
