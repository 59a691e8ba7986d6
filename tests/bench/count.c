/*
 * Plugin for QEMU's emulator: executed instructions of a machine, those of a guest under AMD-V apart.
 *
 *   qemu-system-x86_64 -icount shift=0,sleep=off -smp 1 -plugin count.so,out=FILE[,entry=0x100000][,where=FILE] ...
 *
 * Writes a line "NAME all=N guest=N vmrun=N" at these points:
 *   entry  the first instruction at virtual address `entry` (protected-mode entry of a Linux kernel), outside any guest
 *   vmrun  the first VMRUN, and again the first after each mark
 *   mark   the no-op "nopl 0x4a4f00NN(%rax,%rax)", 0F 1F 84 00 NN 00 4F 4A, in the machine or in its guest
 *
 * where=FILE: at the first mark, a line "guest|host ADDRESS INSTRUCTIONS" for every block of code that ran since `entry` or the first VMRUN.
 *
 * A guest's part runs from VMRUN to the instruction behind it, found by its host address: a guest may have the same virtual one.
 * Declarations are those of QEMU's plugin interface, version 1; Debian ships no header.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void tb_fn(plugin_id, struct qemu_plugin_tb *);
typedef void insn_fn(unsigned cpu, void *arg);
enum { CB_NO_REGS, INLINE_ADD_U64 = 0 };
EXPORT int qemu_plugin_version = 1;
EXPORT int qemu_plugin_install(plugin_id, const void *info, int argc, char **argv);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, tb_fn *);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int op, void *, uint64_t imm);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, insn_fn *, int flags, void *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int op, void *, uint64_t imm);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void *qemu_plugin_insn_haddr(struct qemu_plugin_insn *);

enum { MAX_RETURNS = 16 };
static FILE *out;
static uint64_t all, guest, guest_from, vmruns, entry;
static bool in_guest, entry_seen, want_vmrun = true;
static const char *returns[MAX_RETURNS];        /* instructions behind a VMRUN */
static unsigned nreturns;
static const char *where;
struct block { struct block *next; uint64_t vaddr, instructions; bool guest; };
static struct block *blocks;

static void line(const char *name)
{
    fprintf(out, "%s all=%llu guest=%llu vmrun=%llu\n", name, (unsigned long long)all,
            (unsigned long long)(guest + (in_guest ? all - guest_from : 0)), (unsigned long long)vmruns);
    fflush(out);
}

static void forget_where(void)
{
    for (struct block *b = blocks; b; b = b->next)
        b->instructions = 0;
}

static void say_where(void)
{
    FILE *f = where ? fopen(where, "w") : NULL;

    where = NULL;
    for (struct block *b = blocks; f && b; b = b->next)
        if (b->instructions)
            fprintf(f, "%s %llx %llu\n", b->guest ? "guest" : "host", (unsigned long long)b->vaddr, (unsigned long long)b->instructions);
    if (f)
        fclose(f);
}

static void on_entry(unsigned cpu, void *arg)
{
    if (!entry_seen) {
        line("entry");
        forget_where();
    }
    entry_seen = true;
}

static void on_mark(unsigned cpu, void *arg)
{
    char name[16];

    snprintf(name, sizeof name, "mark%02x", (unsigned)(uintptr_t)arg);
    line(name);
    say_where();
    want_vmrun = true;
}

static void on_vmrun(unsigned cpu, void *arg)
{
    if (!vmruns++)
        forget_where();
    if (want_vmrun)
        line("vmrun");
    want_vmrun = false;
    in_guest = true;
    guest_from = all;
}

static void on_return(unsigned cpu, void *arg)
{
    if (in_guest)
        guest += all - guest_from;
    in_guest = false;
}

static bool is_return(const char *at)
{
    for (unsigned i = 0; i < nreturns; i++)
        if (at && returns[i] == at)
            return true;
    return false;
}

static void see(struct qemu_plugin_insn *insn)
{
    static const uint8_t vmrun[] = { 0x0f, 0x01, 0xd8 }, mark[] = { 0x0f, 0x1f, 0x84, 0x00 };
    const uint8_t *code = qemu_plugin_insn_data(insn);
    size_t len = qemu_plugin_insn_size(insn);
    const char *at = qemu_plugin_insn_haddr(insn);

    if (is_return(at))
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_return, CB_NO_REGS, NULL);
    if (len == 3 && !memcmp(code, vmrun, 3)) {
        if (!is_return(at + 3) && nreturns < MAX_RETURNS)
            returns[nreturns++] = at + 3;
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_vmrun, CB_NO_REGS, NULL);
    } else if (len == 8 && !memcmp(code, mark, 4) && code[5] == 0 && code[6] == 0x4f && code[7] == 0x4a) {
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_mark, CB_NO_REGS, (void *)(uintptr_t)code[4]);
    } else if (entry && qemu_plugin_insn_vaddr(insn) == entry) {
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_entry, CB_NO_REGS, NULL);
    }
    qemu_plugin_register_vcpu_insn_exec_inline(insn, INLINE_ADD_U64, &all, 1);
}

static void count_block(struct qemu_plugin_tb *tb)
{
    struct block *b = calloc(1, sizeof *b);

    if (!b)
        return;
    *b = (struct block){ .next = blocks, .vaddr = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0)), .guest = in_guest };
    blocks = b;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &b->instructions, qemu_plugin_tb_n_insns(tb));
}

static void translated(plugin_id id, struct qemu_plugin_tb *tb)
{
    if (where)
        count_block(tb);
    for (size_t i = 0, n = qemu_plugin_tb_n_insns(tb); i < n; i++)
        see(qemu_plugin_tb_get_insn(tb, i));
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4))
            out = fopen(argv[i] + 4, "w");
        else if (!strncmp(argv[i], "entry=", 6))
            entry = strtoull(argv[i] + 6, NULL, 0);
        else if (!strncmp(argv[i], "where=", 6))
            where = strdup(argv[i] + 6);
    }
    if (!out)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
