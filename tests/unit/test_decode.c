/* Decoder against GNU objdump and llvm-objdump (lengths and validity), and field by field for the forms that the emulator knows. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "kernel/vmm/decode.h"

/* ---- Differential: every slot is 15 chosen bytes and 17 NOPs, so that a linear disassembler is in step again at the next slot. ---- */
enum { SLOT = 32, SLOTS = 20000 };
struct verdict { uint8_t len; bool bad; char text[64]; };

static uint8_t image[SLOTS * SLOT];
static struct verdict gnu[SLOTS], llvm[SLOTS];
static const char *const gnu_arch[] = { [MODE_16] = "i8086", [MODE_32] = "i386", [MODE_64] = "i386:x86-64" };

static uint64_t rng_state = 0x9e3779b97f4a7c15ull;
static uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    return rng_state ^= rng_state << 17;
}

/* "   1f0:\t8b 04 25 00 00 00 00 \tmov ..." → verdict of its slot, if it starts one. */
static void parse_line(char *line, struct verdict *v)
{
    char *end, *p = strchr(line, ':');
    unsigned long addr = strtoul(line, &end, 16);
    unsigned len = 0;

    if (!p || end != p || addr % SLOT || addr / SLOT >= SLOTS)
        return;
    v += addr / SLOT;
    for (p++; *p == ' ' || *p == '\t'; p++)
        ;
    while (strspn(p, "0123456789abcdef") == 2 && (p[2] == ' ' || p[2] == '\t')) {
        len++;
        p += 3;
    }
    p += strspn(p, " \t");
    v->len = len;
    snprintf(v->text, sizeof v->text, "%s", p);
    v->text[strcspn(v->text, "\n")] = 0;
    v->bad = strstr(p, "(bad)") || strstr(p, "<unknown>") || strstr(p, ".byte");
}

static bool run(const char *cmd, struct verdict *v)
{
    char line[512];
    FILE *f = popen(cmd, "r");

    memset(v, 0, sizeof *v * SLOTS);
    while (f && fgets(line, sizeof line, f))
        parse_line(line, v);
    return f && pclose(f) == 0;
}

static void disassemble(enum cpu_mode mode)
{
    char path[64] = "/tmp/test_decode.XXXXXX", cmd[512];
    int fd = mkstemp(path);

    assert_true(fd >= 0 && write(fd, image, sizeof image) == sizeof image);
    close(fd);
    snprintf(cmd, sizeof cmd, "objdump -D -b binary -w --insn-width=16 -m %s %s", gnu_arch[mode], path);
    assert_true(run(cmd, gnu));
    /* llvm-objdump wants an object file; it knows no 16-bit code there. */
    snprintf(cmd, sizeof cmd, "objcopy -I binary -O %s --rename-section .data=.text,code %s %s.o 2>/dev/null && llvm-objdump -d %s.o 2>/dev/null",
             mode == MODE_64 ? "elf64-x86-64" : "elf32-i386", path, path, path);
    if (mode == MODE_16 || !run(cmd, llvm))
        memset(llvm, 0, sizeof llvm);
    unlink(path);
    strcat(path, ".o");
    unlink(path);
}

static void fill_slot(unsigned n, const uint8_t *bytes, unsigned len)
{
    memset(image + n * SLOT, 0x90, SLOT);
    memcpy(image + n * SLOT, bytes, len);
}

#include "tests/unit/test_decode_known.h"

/* Returns disagreements that are not in the list of known ones. */
static unsigned compare(enum cpu_mode mode, unsigned slots)
{
    unsigned wrong = 0, checked = 0;

    for (unsigned n = 0; n < slots; n++) {
        const uint8_t *b = image + n * SLOT;
        struct insn i;
        int r = insn_decode(&i, mode, b, 15);
        const char *what = NULL;
        bool two = llvm[n].len != 0;

        assert_true(r == 0 || r == -EILSEQ || r == -E2BIG);
        if (two && (gnu[n].bad != llvm[n].bad || (!gnu[n].bad && gnu[n].len != llvm[n].len)))
            continue;
        if (!gnu[n].bad && !r && gnu[n].len != i.len)
            what = "length";
        else if (!gnu[n].bad && r)
            what = "we say invalid";
        else if (gnu[n].bad && !r && i.op != INSN_OTHER && i.op != INSN_NOP)
            what = "we say valid";
        checked++;
        if (!what || known_disagreement(mode, b, gnu[n].text, r ? NULL : &i))
            continue;
        if (wrong++ < 20) {
            print_message("mode %d: ", mode);
            for (unsigned k = 0; k < 15; k++)
                print_message("%02x ", b[k]);
            print_message(": %s: ours %d, theirs %u \"%s\"\n", what, r ? r : i.len, gnu[n].len, gnu[n].text);
        }
    }
    print_message("mode %d: %u compared, %u differ\n", mode, checked, wrong);
    return wrong;
}

static void random_bytes_agree(void **state)
{
    static const uint8_t lead[] = { 0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x64, 0x65, 0x48, 0x40, 0x41, 0x4f, 0x0f, 0x0f, 0x0f };

    for (enum cpu_mode mode = MODE_16; mode <= MODE_64; mode++) {
        for (unsigned n = 0; n < SLOTS; n++) {
            uint8_t b[15];
            unsigned k = 0;
            for (; rng() % 3 == 0 && k < 4; k++)
                b[k] = lead[rng() % sizeof lead];
            for (; k < 15; k++)
                b[k] = rng() >> 8;
            fill_slot(n, b, 15);
        }
        disassemble(mode);
        assert_int_equal(compare(mode, SLOTS), 0);
    }
}

/* Every opcode of maps 1, 2, 38, 3A with every ModRM, mandatory prefixes chosen by turns. */
static void every_opcode_agrees(void **state)
{
    static const uint8_t pfx[] = { 0, 0x66, 0xf3, 0xf2 };

    for (enum cpu_mode mode = MODE_16; mode <= MODE_64; mode++) {
        for (unsigned part = 0; part < 8; part++) {
            for (unsigned n = 0; n < SLOTS; n++) {
                unsigned op = n & 0xff, map = part & 3, k = 0, turn = n >> 8;
                uint8_t b[15] = { 0 };
                uint8_t p = part & 4 ? 0 : pfx[turn & 3];
                for (unsigned j = 0; j < 15; j++)
                    b[j] = rng() >> 8;
                if (p)
                    b[k++] = p;
                if (mode == MODE_64 && (part & 4))
                    b[k++] = 0x40 | (rng() & 15);
                if (map)
                    b[k++] = 0x0f;
                if (map > 1)
                    b[k++] = map == 2 ? 0x38 : 0x3a;
                b[k++] = op;
                fill_slot(n, b, 15);
            }
            disassemble(mode);
            assert_int_equal(compare(mode, SLOTS), 0);
        }
    }
}

/* Fewer bytes than the instruction has: more are asked for, none beyond is read, and the tables agree with the quick path, which wants 15. */
static void truncation_asks_for_more(void **state)
{
    for (unsigned n = 0; n < 200000; n++) {
        uint8_t b[15];
        struct insn whole, part;
        enum cpu_mode mode = rng() % 3;
        for (unsigned k = 0; k < 15; k++)
            b[k] = k < 2 && (rng() & 1) ? (uint8_t)"\x66\x67\xf3\x48\x0f\x8b\x89\xc7"[rng() & 7] : (uint8_t)(rng() >> 8);
        if (insn_decode(&whole, mode, b, 15))
            continue;
        for (unsigned k = 0; k < whole.len; k++) {
            uint8_t *exact = malloc(k + !k);            /* the sanitizer watches its end */
            memcpy(exact, b, k);
            assert_int_equal(insn_decode(&part, mode, exact, k), -ENODATA);
            free(exact);
        }
        if (whole.len < 15) {
            assert_int_equal(insn_decode(&part, mode, b, 14), 0);
            assert_memory_equal(&part, &whole, sizeof part);
        }
    }
}

static void fields(const char *bytes, unsigned n, enum cpu_mode mode, struct insn want)
{
    struct insn i;

    assert_int_equal(insn_decode(&i, mode, (const uint8_t *)bytes, n), 0);
    assert_int_equal(i.len, n);
    assert_int_equal(i.op, want.op);
    assert_int_equal(i.opsize, want.opsize);
    assert_int_equal(i.base, want.base);
    assert_int_equal(i.index, want.index);
    assert_int_equal(i.disp, want.disp);
    assert_int_equal(i.imm, want.imm);
    assert_int_equal(i.seg, want.seg);
    assert_int_equal(i.reg, want.reg);
}
#define F(bytes, mode, ...) fields(bytes, sizeof(bytes) - 1, mode, (struct insn){ .base = INSN_NO_REG, .index = INSN_NO_REG, .seg = SEG_DS, __VA_ARGS__ })

#pragma GCC diagnostic ignored "-Woverride-init"        /* the defaults in F */
static void operands_and_prefixes(void **state)
{
    F("\x48\x8b\x04\x8c", MODE_64, .op = INSN_MOV, .opsize = 8, .base = 4, .index = 1, .seg = SEG_SS);
    F("\x4e\x8b\x44\xe5\x80", MODE_64, .op = INSN_MOV, .opsize = 8, .base = 5, .index = 12, .disp = -128, .reg = 8, .seg = SEG_SS);
    F("\x49\x8b\x45\x10", MODE_64, .op = INSN_MOV, .opsize = 8, .base = 13, .disp = 16);           /* R13 is not BP */
    F("\x8b\x05\xfc\xff\xff\xff", MODE_64, .op = INSN_MOV, .opsize = 4, .base = INSN_BASE_RIP, .disp = -4);
    F("\x8b\x05\xfc\xff\xff\xff", MODE_32, .op = INSN_MOV, .opsize = 4, .disp = -4);
    F("\x8b\x42\xfe", MODE_16, .op = INSN_MOV, .opsize = 2, .base = 5, .index = 6, .disp = -2, .seg = SEG_SS);
    F("\x8b\x06\xfe\xff", MODE_16, .op = INSN_MOV, .opsize = 2, .disp = 0xfffe);
    F("\x67\x66\x8b\x03", MODE_16, .op = INSN_MOV, .opsize = 4, .base = 3);
    F("\x36\x8b\x03", MODE_32, .op = INSN_MOV, .opsize = 4, .base = 3, .seg = SEG_SS);
    F("\x36\x8b\x03", MODE_64, .op = INSN_MOV, .opsize = 4, .base = 3);                             /* no such override there */
    F("\x65\x36\x8b\x03", MODE_64, .op = INSN_MOV, .opsize = 4, .base = 3, .seg = SEG_GS);
    F("\x48\x66\x8b\x03", MODE_64, .op = INSN_MOV, .opsize = 2, .base = 3);                        /* REX before 66 is void */
    F("\x66\x48\x8b\x03", MODE_64, .op = INSN_MOV, .opsize = 8, .base = 3);
    F("\x48\xc7\x03\xff\xff\xff\xff", MODE_64, .op = INSN_MOV, .opsize = 8, .base = 3, .imm = -1);
    F("\x83\x0b\x80", MODE_32, .op = INSN_OR, .opsize = 4, .base = 3, .imm = -128, .reg = 1);
    F("\x0f\xba\x2b\xff", MODE_32, .op = INSN_BTS, .opsize = 4, .base = 3, .imm = 255, .reg = 5);
    F("\xe4\xff", MODE_32, .op = INSN_IN, .opsize = 1, .imm = 255);
    F("\x48\xed", MODE_64, .op = INSN_IN, .opsize = 4);
    F("\x66\x0f\xa2", MODE_64, .op = INSN_CPUID, .opsize = 2);
    F("\xf0\x0f\x22\xc0", MODE_32, .op = INSN_MOV_CR, .opsize = 4, .reg = 8);                      /* AMD's CR8 without REX */
    F("\x44\x0f\x20\xc3", MODE_64, .op = INSN_MOV_CR, .opsize = 8, .reg = 8);
    F("\x0f\xc7\x0b", MODE_64, .op = INSN_CMPXCHG8B, .opsize = 8, .base = 3, .reg = 1);
    F("\x48\x0f\xc7\x0b", MODE_64, .op = INSN_CMPXCHG8B, .opsize = 16, .base = 3, .reg = 1);
    F("\xff\x33", MODE_64, .op = INSN_PUSH, .opsize = 8, .base = 3, .reg = 6);
    F("\xa0\x88\x77\x66\x55\x44\x33\x22\x11", MODE_64, .op = INSN_MOV, .opsize = 1, .disp = 0x1122334455667788);
    F("\xf3\x0f\x7e\x03", MODE_64, .op = INSN_SSE_MOV, .opsize = 8, .base = 3);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(operands_and_prefixes),
        cmocka_unit_test(truncation_asks_for_more),
        cmocka_unit_test(every_opcode_agrees),
        cmocka_unit_test(random_bytes_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
