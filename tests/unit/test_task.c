/* Hardware task switches in software: SDM vol 3 "Task Switching".  Flat memory, no paging; tests/guest/task.c does it with a CPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "tests/host/fake_hv.h"
#include "tests/host/port_host.h"

#define MIB (1ull << 20)
enum { GDT = 0x1000, TSS_A = 0x2000, TSS_B = 0x3000, STACK_B = 0x5000, SEL_A = 0x80, SEL_B = 0x88, CODE = 0x08, DATA = 0x10, CALL = 0, IRET = 1, JMP = 2, GATE = 3 };
enum { LINK = 0, CR3 = 0x1c, EIP = 0x20, EFLAGS = 0x24, EAX = 0x28, ESP = 0x38, ES = 0x48, CS = 0x4c, SS = 0x50, DS = 0x54, FS = 0x58, LDT = 0x60, TRAP = 0x64 };

static struct vm *vm;
static struct vcpu *v;

static void put(gpa_t at, uint64_t val, unsigned size) { assert_int_equal(gmem_write(vm_gmem(vm), at, &val, size), 0); }
static uint64_t get(gpa_t at, unsigned size)
{
    uint64_t val = 0;
    assert_int_equal(gmem_read(vm_gmem(vm), at, &val, size), 0);
    return val;
}

static void describe(unsigned sel, uint32_t base, uint32_t limit, unsigned access, unsigned flags)
{
    put(GDT + sel, (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 | (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)flags << 52 |
        (uint64_t)(base >> 24) << 56, 8);
}

static int setup(void **state)
{
    fake_hv_setup(256 * MIB, 1);
    vm = fake_vm_create(1, NULL, NULL);
    v = vm_vcpu(vm, 0);
    describe(CODE, 0, 0xfffff, 0x9b, 0xc);
    describe(DATA, 0, 0xfffff, 0x93, 0xc);
    describe(SEL_A, TSS_A, 0x67, 0x8b, 0);
    describe(SEL_B, TSS_B, 0x67, 0x89, 0);
    put(TSS_B + EIP, 0x7000, 4), put(TSS_B + EFLAGS, 0x202, 4), put(TSS_B + EAX, 0xabcdef01, 4), put(TSS_B + ESP, STACK_B, 4), put(TSS_B + CS, CODE, 4);
    for (unsigned off = ES; off <= FS; off += 4)
        if (off != CS)
            put(TSS_B + off, DATA, 4);
    static const struct cpu_seg flat = { .limit = 0xffffffff, .sel = DATA, .attr = 0xc93 };
    v->st = (struct cpu_state){ .cr0 = CR0_PE, .gdt = { GDT, 0x1ff }, .dr7 = 0x755 };
    for (unsigned s = 0; s < 6; s++)
        v->st.seg[s] = flat;
    v->st.seg[SEG_CS] = (struct cpu_seg){ .limit = 0xffffffff, .sel = CODE, .attr = 0xc9b };
    v->st.seg[SEG_TR] = (struct cpu_seg){ .base = TSS_A, .limit = 0x67, .sel = SEL_A, .attr = 0x8b };
    v->st_valid = ST_ALL | ST_CODE;
    v->rip = 0x6000, v->rflags = 0x4246;
    v->gpr[RAX] = 0x11111111, v->gpr[RSP] = 0x9000;
    return 0;
}

static int teardown(void **state)
{
    vm_destroy(vm);
    fake_hv_teardown();
    return 0;
}

static void go(unsigned source, unsigned len)
{
    struct exit e = { .kind = EXIT_TASK_SWITCH, .insn_len = (uint8_t)len, .u.task = { .selector = SEL_B, .source = (uint8_t)source } };
    vcpu_task_switch(v, &e);
}

static void jump(void **state)
{
    go(JMP, 7);
    assert_false(v->exc.valid);
    assert_int_equal(get(TSS_A + EIP, 4), 0x6007);
    assert_int_equal(get(TSS_A + EFLAGS, 4), 0x4246);
    assert_int_equal(get(TSS_A + EAX, 4), 0x11111111);
    assert_int_equal(get(TSS_A + CS, 4), CODE);
    assert_int_equal(get(GDT + SEL_A + 5, 1), 0x89);            /* not busy any more */
    assert_int_equal(get(GDT + SEL_B + 5, 1), 0x8b);
    assert_int_equal(get(TSS_B + LINK, 2), 0);
    assert_int_equal(v->rip, 0x7000);
    assert_int_equal(v->rflags, 0x202);
    assert_int_equal(v->gpr[RAX], 0xabcdef01);
    assert_int_equal(v->gpr[RSP], STACK_B);
    assert_int_equal(v->st.seg[SEG_TR].sel, SEL_B);
    assert_int_equal(v->st.seg[SEG_TR].attr, 0x8b);
    assert_true(v->st.cr0 & CR0_TS);
    assert_int_equal(v->st.dr7, 0x600);
}

static void call_and_return(void **state)
{
    go(CALL, 7);
    assert_int_equal(get(TSS_B + LINK, 2), SEL_A);
    assert_int_equal(v->rflags, 0x4202);                        /* NT */
    assert_int_equal(get(GDT + SEL_A + 5, 1), 0x8b);
    struct exit back = { .kind = EXIT_TASK_SWITCH, .insn_len = 1, .u.task = { .selector = SEL_A, .source = IRET } };
    vcpu_task_switch(v, &back);
    assert_int_equal(get(TSS_B + EIP, 4), 0x7001);
    assert_int_equal(get(TSS_B + EFLAGS, 4), 0x202);            /* NT is cleared in what is saved */
    assert_int_equal(get(GDT + SEL_B + 5, 1), 0x89);
    assert_int_equal(v->rip, 0x6007);
    assert_int_equal(v->gpr[RAX], 0x11111111);
    assert_int_equal(v->st.seg[SEG_TR].sel, SEL_A);
}

static void gate_pushes_the_error_code(void **state)
{
    struct exit e = { .kind = EXIT_TASK_SWITCH, .u.task = { .selector = SEL_B, .source = GATE, .has_error = true, .error = 0x1f8 } };
    vcpu_task_switch(v, &e);
    assert_int_equal(get(TSS_A + EIP, 4), 0x6000);
    assert_int_equal(v->gpr[RSP], STACK_B - 4);
    assert_int_equal(get(STACK_B - 4, 4), 0x1f8);
}

static void raised(uint8_t vector, uint32_t error)
{
    assert_true(v->exc.valid);
    assert_int_equal(v->exc.vector, vector);
    assert_int_equal(v->exc.error, error);
}

/* Behind the point of no return: the new task takes the fault. */
static void faults_of_the_new_task(void **state)
{
    put(TSS_B + FS, 0x1f8, 4);
    go(JMP, 7);
    raised(EXC_TS, 0x1f8);
    assert_int_equal(v->rip, 0x7000);
    assert_int_equal(v->st.seg[SEG_TR].sel, SEL_B);
}

static void stack_not_present(void **state)
{
    describe(0x20, 0, 0xfffff, 0x13, 0xc);
    put(TSS_B + SS, 0x20, 4);
    go(JMP, 7);
    raised(EXC_SS, 0x20);
}

static void code_segment_of_another_level(void **state)
{
    put(TSS_B + CS, CODE | 3, 4);
    go(JMP, 7);
    raised(EXC_TS, CODE);
}

static void beyond_the_code_segment(void **state)
{
    describe(0x20, 0, 0xfff, 0x9b, 4);
    put(TSS_B + CS, 0x20, 4);
    go(JMP, 7);
    raised(EXC_GP, 0);
}

/* Before it: nothing has changed. */
static void faults_of_the_old_task(void **state)
{
    describe(SEL_B, TSS_B, 0x40, 0x89, 0);
    go(JMP, 7);
    raised(EXC_TS, SEL_B);
    assert_int_equal(v->rip, 0x6000);
    assert_int_equal(v->st.seg[SEG_TR].sel, SEL_A);
}

/* SDM "TSS Descriptor": 67h is the least; a descriptor with 4 KiB granularity may say all of memory. */
static void limit_of_the_tss(void **state)
{
    describe(SEL_B, TSS_B, 0x66, 0x89, 0);
    go(JMP, 7);
    raised(EXC_TS, SEL_B);
    v->exc.valid = false;
    describe(SEL_B, TSS_B, 0xfffff, 0x89, 8);
    go(JMP, 7);
    assert_false(v->exc.valid);
    assert_int_equal(v->rip, 0x7000);
}

static void trap_flag_of_the_tss(void **state)
{
    put(TSS_B + TRAP, 1, 2);
    go(JMP, 7);
    assert_int_equal(v->exc.vector, EXC_DB);
    assert_true(v->st.dr6 & BIT(15));
}

static void into_virtual_8086_mode(void **state)
{
    put(TSS_B + EFLAGS, 0x20202, 4), put(TSS_B + CS, 0x1234, 4), put(TSS_B + SS, 0x2000, 4), put(TSS_B + EIP, 0x10, 4);
    go(JMP, 7);
    assert_false(v->exc.valid);
    assert_int_equal(v->st.seg[SEG_CS].base, 0x12340);
    assert_int_equal(v->st.seg[SEG_CS].attr, 0xf3);
    assert_int_equal(v->st.cpl, 3);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(jump), T(call_and_return), T(gate_pushes_the_error_code), T(faults_of_the_new_task), T(stack_not_present), T(code_segment_of_another_level),
        T(beyond_the_code_segment), T(faults_of_the_old_task), T(limit_of_the_tss), T(trap_flag_of_the_tss), T(into_virtual_8086_mode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
