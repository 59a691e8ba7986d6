/* What the middle layer answers to each kind of exit, one at a time on a vCPU that stands still; and the paravirtual clock's page as a guest reads it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "kernel/hw/msr.h"
#include "kernel/vmm/policy.h"
#include "tests/host/fake_hv.h"
#include "tests/host/port_host.h"

#define MIB (1ull << 20)
enum { START = 0x1000, NOTHING = -1 };

static struct vm *vm;
static struct vcpu *v;

static void idle(struct vcpu *cpu, struct fake_cpu *f, struct exit *e, void *arg) { e->kind = EXIT_INTERNAL; }

static int setup(void **state)
{
    fake_hv_setup(256 * MIB, 4);
    vm = fake_vm_create(1, idle, NULL);
    v = vm_vcpu(vm, 0);
    return 0;
}

static int teardown(void **state)
{
    vm_destroy(vm);
    fake_hv_teardown();
    return 0;
}

/* 64-bit kernel code at START, everything flat. */
static void at_start(void)
{
    v->st = (struct cpu_state){ .cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET, .cr4 = CR4_PAE | CR4_OSXSAVE, .efer = EFER_LME | EFER_LMA, .pat = PAT_RESET };
    v->st.seg[SEG_CS] = (struct cpu_seg){ .sel = 8, .limit = 0xffffffff, .attr = 0xa9b };
    v->st_valid = ST_ALL | ST_CODE;
    v->rip = START, v->rflags = 2;
    memset(v->gpr, 0, sizeof v->gpr);
    memset(&v->exc, 0, sizeof v->exc);
    v->run = RUN_ACTIVE;
}

/* vector: the exception it must raise, at the instruction; NOTHING: goes on behind it. */
#define gives(e, vector) gives_(e, vector, __LINE__)
static void gives_(struct exit e, int vector, int line)
{
    e.insn_len = 3;
    exit_handler[e.kind](v, &e);
    if (vector == NOTHING) {
        if (v->exc.valid || v->rip != START + 3)
            fail_msg("line %d: exception %d, rip %lx", line, v->exc.valid ? v->exc.vector : -1, (unsigned long)v->rip);
    } else if (!v->exc.valid || v->exc.vector != vector || v->rip != START) {
        fail_msg("line %d: exception %d, rip %lx", line, v->exc.valid ? v->exc.vector : -1, (unsigned long)v->rip);
    }
}

#define EXIT(...) ((struct exit){ __VA_ARGS__ })

static void defined_answers(void **state)
{
    static const struct { enum exit_kind kind; int vector; } c[] = {
        { EXIT_INVD, NOTHING }, { EXIT_WBINVD, NOTHING }, { EXIT_INVLPG, NOTHING }, { EXIT_PAUSE, NOTHING }, { EXIT_CPUID, NOTHING },
        { EXIT_RDPMC, EXC_GP }, { EXIT_UD, EXC_UD }, { EXIT_MONITOR, EXC_UD }, { EXIT_MWAIT, EXC_UD }, { EXIT_DR, EXC_UD },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(c); i++) {
        at_start();
        gives(EXIT(.kind = c[i].kind), c[i].vector);
    }
    at_start();
    gives(EXIT(.kind = EXIT_HLT), NOTHING);
    assert_int_equal(v->run, RUN_HALTED);
    for (unsigned k = 0; k < EXIT_KINDS; k++)
        assert_true(strcmp(exit_kind_name((enum exit_kind)k), "?"));
    assert_string_equal(exit_kind_name(EXIT_KINDS), "?");
}

/* TF traps behind what was done for the guest, but not where it steps by branches. */
static void single_step(void **state)
{
    for (unsigned btf = 0; btf < 2; btf++) {
        struct exit e = EXIT(.kind = EXIT_CPUID, .insn_len = 2);
        at_start();
        v->rflags |= RFLAGS_TF, v->st.debugctl = btf ? DEBUGCTL_BTF : 0;
        exit_handler[EXIT_CPUID](v, &e);
        assert_int_equal(v->rip, START + 2);
        assert_int_equal(v->exc.valid, !btf);
    }
}

/* What was to be delivered at the next entry is the old program's; time goes on. */
static void init_signal(void **state)
{
    at_start();
    vcpu_raise(v, EXC_UD, false, 0);
    vcpu_events(v);
    assert_true(fake_cpu(v)->injected.valid);
    v->tsc_offset = 12345;
    hv->set_tsc(v, v->tsc_offset);
    v->st.tsc_aux = 7;
    vcpu_put_state(v, ST_ALL);
    vcpu_reset(v, true);
    assert_false(fake_cpu(v)->injected.valid);
    assert_int_equal(fake_cpu(v)->tsc_offset, 12345);
    assert_int_equal(fake_cpu(v)->st.tsc_aux, 7);
    assert_int_equal(v->rip, 0xfff0);
}

static void msrs(void **state)
{
    at_start();
    v->gpr[RCX] = MSR_PAT;
    gives(EXIT(.kind = EXIT_RDMSR), NOTHING);
    assert_int_equal(v->gpr[RDX] << 32 | v->gpr[RAX], PAT_RESET);
    at_start();
    v->gpr[RCX] = 0x40000fff;
    gives(EXIT(.kind = EXIT_RDMSR), EXC_GP);
    at_start();
    v->gpr[RCX] = MSR_PAT, v->gpr[RAX] = 2;     /* a reserved memory type */
    gives(EXIT(.kind = EXIT_WRMSR), EXC_GP);
    at_start();
    v->gpr[RCX] = MSR_PAT, v->gpr[RAX] = 0x06060606, v->gpr[RDX] = 0x06060606;
    gives(EXIT(.kind = EXIT_WRMSR), NOTHING);
}

static struct exit write_cr(unsigned cr, uint64_t val)
{
    at_start();
    v->gpr[RBX] = val;
    struct exit e = EXIT(.kind = EXIT_CR);
    e.u.cr.cr = (uint8_t)cr, e.u.cr.write = true, e.u.cr.gpr = RBX;
    return e;
}

static void control_registers(void **state)
{
    const uint64_t cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET, cr4 = CR4_PAE | CR4_OSXSAVE;
    gives(write_cr(0, cr0 | CR0_WP), NOTHING);
    assert_int_equal(v->st.cr0, cr0 | CR0_WP);
    gives(write_cr(0, cr0 & ~CR0_PE), EXC_GP);          /* paging without protection */
    gives(write_cr(0, cr0 | CR0_NW), EXC_GP);           /* NW without CD */
    gives(write_cr(0, cr0 | BIT(32)), EXC_GP);
    gives(write_cr(0, cr0 & ~CR0_PG), EXC_GP);          /* paging off in 64-bit code */
    struct exit leave = write_cr(0, cr0 & ~CR0_PG);
    v->st.seg[SEG_CS].attr = 0xc9b;
    gives(leave, NOTHING);                              /* leaves long mode by way of compatibility mode */
    assert_false(v->st.efer & EFER_LMA);
    unsigned flushes = fake_cpu(v)->flushes_linear;
    gives(write_cr(4, cr4 | CR4_PGE), NOTHING);
    assert_int_equal(fake_cpu(v)->flushes_linear, flushes + 1);
    gives(write_cr(4, cr4 & ~CR4_PAE), EXC_GP);         /* in long mode */
    gives(write_cr(4, cr4 | CR4_VMXE), EXC_GP);         /* not there */
    gives(write_cr(4, cr4 | CR4_PCIDE), policy_cr4_mask(v) & CR4_PCIDE ? NOTHING : EXC_GP);     /* as this machine's CPU has it */
    struct exit pcide = write_cr(4, cr4 | CR4_PCIDE);
    v->st.cr3 = 0x1001;                                 /* with a PCID in CR3 already */
    gives(pcide, EXC_GP);
    gives(write_cr(7, 0), EXC_UD);
    struct exit read = write_cr(0, 0);
    read.u.cr.write = false;
    gives(read, EXC_UD);

    struct exit clts = write_cr(0, 0), lmsw = clts;
    clts.u.cr.clts = true;
    v->st.cr0 |= CR0_TS;
    gives(clts, NOTHING);
    assert_int_equal(v->st.cr0, cr0);
    at_start();
    lmsw.u.cr.lmsw = true, lmsw.u.cr.lmsw_src = CR0_TS; /* cannot clear PE */
    gives(lmsw, NOTHING);
    assert_int_equal(v->st.cr0, cr0 | CR0_TS);
}

/* Where the CPU does not tell the operand, it is read from the instruction. */
static void operand_from_the_instruction(void **state)
{
    static const uint8_t code[] = { 0x0f, 0x22, 0xe1 };         /* mov cr4, ecx */
    struct exit e = write_cr(4, 0);
    v->st.cr0 &= ~CR0_PG;                               /* no tables: linear is physical */
    v->st.efer = 0;
    v->st.seg[SEG_CS].attr = 0xc9b;
    assert_int_equal(gmem_write(vm_gmem(vm), START, code, sizeof code), 0);
    v->gpr[RCX] = CR4_PAE | CR4_PSE;
    e.u.cr.gpr = 0xff;
    exit_handler[e.kind](v, &e);
    assert_false(v->exc.valid);
    assert_int_equal(v->st.cr4, CR4_PAE | CR4_PSE);
    assert_int_equal(v->rip, START + 3);
}

static void xcr0(void **state)
{
    static const struct { uint64_t val; int vector; } c[] = { { 1, NOTHING }, { 3, NOTHING }, { 0, EXC_GP }, { 2, EXC_GP }, { 5, EXC_GP }, { 1ull << 62 | 1, EXC_GP } };
    for (unsigned i = 0; i < ARRAY_SIZE(c); i++) {
        at_start();
        v->gpr[RAX] = (uint32_t)c[i].val, v->gpr[RDX] = c[i].val >> 32;
        gives(EXIT(.kind = EXIT_XSETBV), c[i].vector);
        if (c[i].vector == NOTHING)
            assert_int_equal(v->xcr0, c[i].val);
    }
    at_start();
    v->gpr[RAX] = 1, v->gpr[RCX] = 1;                   /* there is no XCR1 */
    gives(EXIT(.kind = EXIT_XSETBV), EXC_GP);
    at_start();
    v->gpr[RAX] = 1, v->st.cpl = 3;
    gives(EXIT(.kind = EXIT_XSETBV), EXC_GP);
    at_start();
    v->gpr[RAX] = 1, v->st.cr4 = CR4_PAE;
    gives(EXIT(.kind = EXIT_XSETBV), EXC_UD);
}

static void hypercalls_and_time(void **state)
{
    at_start();
    gives(EXIT(.kind = EXIT_HYPERCALL), NOTHING);
    assert_int_equal((int64_t)v->gpr[RAX], -1000);
    at_start();
    v->st.cpl = 3;
    gives(EXIT(.kind = EXIT_HYPERCALL), EXC_UD);
    at_start();
    v->st.tsc_aux = 77;
    gives(EXIT(.kind = EXIT_RDTSCP), NOTHING);
    assert_int_equal(v->gpr[RCX], 77);
    uint64_t first = v->gpr[RDX] << 32 | v->gpr[RAX];
    at_start();
    gives(EXIT(.kind = EXIT_RDTSC), NOTHING);
    assert_true((v->gpr[RDX] << 32 | v->gpr[RAX]) >= first);
}

static void exceptions(void **state)
{
    struct exit e = EXIT(.kind = EXIT_EXCEPTION);
    e.u.exc.vector = EXC_AC, e.u.exc.has_error = true;
    at_start();
    gives(e, EXC_AC);
    assert_true(v->exc.has_error);
    at_start();
    e.u.exc.vector = EXC_DB, e.u.exc.has_error = false;
    v->st.dr7 = DR7_INIT | DR7_GD;
    gives(e, EXC_DB);
    assert_int_equal(v->st.dr7, DR7_INIT);      /* the handler may use the debug registers */
    assert_int_equal(fake_cpu(v)->st.dr7, DR7_INIT);
}

/* ---- Instructions fetched and carried out for the guest ---- */

enum { DEVICE = 0x4009000, PORT = 0x510 };
struct regs { uint8_t bytes[16]; unsigned accesses; };

static int regs_io(void *dev, struct io *io)
{
    struct regs *r = dev;
    r->accesses++;
    if (io->write)
        memcpy(r->bytes + io->off % 8, &io->data, io->size);
    else
        memcpy(&io->data, r->bytes + io->off % 8, io->size);
    return 0;
}

/* Code at `at` in 32-bit flat mode without paging; EBX points to the device. */
static void carry_out(gpa_t at, const char *code, unsigned len)
{
    at_start();
    v->st.cr0 &= ~CR0_PG, v->st.efer = 0;
    for (unsigned s = 0; s < 6; s++)
        v->st.seg[s] = (struct cpu_seg){ .sel = 16, .limit = 0xffffffff, .attr = s == SEG_CS ? 0xc9b : 0xc93 };
    vcpu_put_state(v, ST_ALL);
    v->st_valid = ST_ALL | ST_CODE;
    v->rip = at, v->gpr[RBX] = DEVICE, v->gpr[RDX] = PORT;
    assert_int_equal(gmem_write(vm_gmem(vm), at, code, len), 0);
}
#define CARRY_OUT(at, code) carry_out(at, code, sizeof(code) - 1)

static void goes_to(gva_t rip)
{
    struct exit e = EXIT(.kind = EXIT_PIO);
    vcpu_emulate(v, &e);
    if (v->exc.valid || v->rip != rip)
        fail_msg("exception %d, rip %lx", v->exc.valid ? v->exc.vector : -1, (unsigned long)v->rip);
}

static void device_accesses(void **state)
{
    struct regs r = { .bytes = "abcdefgh" }, p = { .bytes = "01234567" };
    assert_int_equal(bus_add(vm_mmio(vm), DEVICE, 8, regs_io, &r, "regs", 0), 0);
    assert_int_equal(bus_add(vm_ports(vm), PORT, 8, regs_io, &p, "port", 0), 0);
    CARRY_OUT(START, "\x8b\x03");                      /* mov eax, [ebx] */
    goes_to(START + 2);
    assert_int_equal(v->gpr[RAX], 0x64636261);
    CARRY_OUT(START + 0xffe, "\x66\x89\x43\x02");      /* mov [ebx+2], ax: over the end of a page */
    v->gpr[RAX] = 0x5958;
    goes_to(START + 0x1002);
    assert_memory_equal(r.bytes, "abXYefgh", 8);
    CARRY_OUT(START, "\xf0\x0f\xb1\x0b");              /* lock cmpxchg [ebx], ecx: equal, then not */
    memcpy(r.bytes, "\1\0\0\0", 4);
    v->gpr[RAX] = 1, v->gpr[RCX] = 0x7a7a7a7a;
    goes_to(START + 4);
    assert_true(v->rflags & 0x40);
    assert_memory_equal(r.bytes, "zzzz", 4);
    CARRY_OUT(START, "\xf0\x0f\xb1\x0b");
    v->gpr[RAX] = 1;
    goes_to(START + 4);
    assert_int_equal(v->gpr[RAX], 0x7a7a7a7a);
    assert_false(v->rflags & 0x40);
    CARRY_OUT(START, "\xf3\x6c");                      /* rep insb to RAM */
    v->gpr[RCX] = 5, v->gpr[RDI] = 0x5000;
    goes_to(START + 2);
    char got[5];
    assert_int_equal(gmem_read(vm_gmem(vm), 0x5000, got, 5), 0);
    assert_memory_equal(got, "00000", 5);
    CARRY_OUT(START, "\xf3\x6f");                      /* rep outsd from RAM */
    v->gpr[RCX] = 1, v->gpr[RSI] = 0x5000;
    goes_to(START + 2);
    assert_memory_equal(p.bytes, "0000", 4);
    CARRY_OUT(START, "\xa5");                          /* movsd from the device to RAM */
    v->gpr[RSI] = DEVICE, v->gpr[RDI] = 0x6000;
    goes_to(START + 1);
    assert_int_equal(gmem_read(vm_gmem(vm), 0x6000, got, 4), 0);
    assert_memory_equal(got, "zzzz", 4);
}

static void accesses_that_fault(void **state)
{
    struct exit e = EXIT(.kind = EXIT_PIO);
    CARRY_OUT(START, "\x0f\x0b");                      /* ud2 */
    vcpu_emulate(v, &e);
    assert_true(v->exc.valid && v->exc.vector == EXC_UD && v->rip == START);
    CARRY_OUT(START, "\x89\x03");                      /* mov [ebx], eax through tables that map code only */
    uint32_t table[2] = { 0 };
    table[0] = 0x9000 | PTE_P | PTE_W;
    assert_int_equal(gmem_write(vm_gmem(vm), 0x8000, table, 4), 0);
    table[0] = START | PTE_P | PTE_W;
    assert_int_equal(gmem_write(vm_gmem(vm), 0x9000 + 4 * (START >> 12), table, 4), 0);
    v->st.cr0 |= CR0_PG, v->st.cr3 = 0x8000, v->st.cr4 = 0;
    vcpu_put_state(v, ST_CRS);
    v->st_valid = ST_ALL | ST_CODE;
    vcpu_emulate(v, &e);
    assert_true(v->exc.valid && v->exc.vector == EXC_PF);
    assert_int_equal(v->exc.error, PF_W);
    assert_int_equal(v->st.cr2, DEVICE);
    v->exc.valid = false, v->rip = 0x400000;            /* no code there either */
    vcpu_emulate(v, &e);
    assert_true(v->exc.valid && v->exc.vector == EXC_PF);
    assert_int_equal(v->st.cr2, 0x400000);
}

/* ---- What stops the VM ---- */

struct deadly { struct exit e; const char *says; int at; };

static void die(struct vcpu *cpu, struct fake_cpu *f, struct exit *e, void *arg)
{
    struct deadly *d = arg;
    *e = d->at++ ? EXIT(.kind = EXIT_INTERNAL) : d->e;
}

static void stops(struct exit e, const char *says)
{
    struct deadly d = { e, says, 0 };
    char why[256];
    unsigned code;
    fake_hv_script(vm, die, &d);
    assert_int_equal(vm_run(vm), 0);
    assert_true(vm_wait(vm, clock_ns() + 20000000000ull));
    assert_int_equal(vm_stop_cause(vm, why, sizeof why, &code), STOP_CRASH);
    if (!strstr(why, says))
        fail_msg("\"%s\" does not say \"%s\"", why, says);
}

static void what_ends_it(void **state)
{
    struct exit e = EXIT(.kind = EXIT_EXCEPTION);
    e.u.exc.vector = EXC_MC;
    stops(e, "machine check while this guest ran");
    e = EXIT(.kind = EXIT_FATAL);
    e.u.raw.why = "it will not have it", e.u.raw.reason = 0x21;
    stops(e, "cannot run the guest: it will not have it; reason 21");
    stops(EXIT(.kind = EXIT_TRIPLE_FAULT), "triple fault, cr2 0");
}

/* ---- The paravirtual clock ---- */

struct page { uint32_t version, pad; uint64_t tsc, ns; uint32_t mul; int8_t shift; uint8_t flags, pad2[2]; };

static struct page read_page(gpa_t at)
{
    struct page p;
    assert_int_equal(gmem_read(vm_gmem(vm), at, &p, sizeof p), 0);
    return p;
}

/* Nanoseconds by the page's own formula. */
static uint64_t by_page(const struct page *p, uint64_t tsc)
{
    uint64_t d = tsc - p->tsc;
    d = p->shift < 0 ? d >> -p->shift : d << p->shift;
    return p->ns + (uint64_t)((unsigned __int128)d * p->mul >> 32);
}

static void paravirtual_clock(void **state)
{
    static const uint64_t hz[] = { 1000000000, 999999999, 2900000000, 5700000000, 33333333, 1 };
    pvclock_page(v, 0x2000);                            /* off */
    assert_int_equal(read_page(0x2000).version, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(hz); i++) {
        vmm_host.tsc_hz = hz[i], vmm_host.tsc_stable = i & 1;
        pvclock_page(v, 0x2000 | 1);
        struct page p = read_page(0x2000);
        assert_int_equal(p.version, 2 * (i + 1));       /* even: complete */
        assert_int_equal(p.flags, i & 1);
        uint64_t second = by_page(&p, p.tsc + hz[i]) - p.ns;
        if (second < 999999000 || second > 1000001000)
            fail_msg("%lu Hz: a second has %lu ns", (unsigned long)hz[i], (unsigned long)second);
    }
    pvclock_page(v, 0x2000);
    pvclock_publish(v);
    assert_int_equal(read_page(0x2000).version, 2 * ARRAY_SIZE(hz));
    pvclock_page(v, 0xfffffffff000 | 1);                /* outside its memory: nothing is written */
    pvclock_page(v, 0);
    struct { uint32_t version, sec, nsec; } w;
    pvclock_wall(v, 0x3002);
    assert_int_equal(gmem_read(vm_gmem(vm), 0x3000, &w, sizeof w), 0);
    uint64_t boot = w.sec * 1000000000ull + w.nsec, now = clock_utc_ns() - vmclock_now(vm_clock(vm));
    assert_true(!(w.version & 1) && boot <= now && now - boot < 10000000000ull);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(defined_answers), TEST(single_step), TEST(init_signal), TEST(msrs), TEST(control_registers), TEST(operand_from_the_instruction), TEST(xcr0), TEST(hypercalls_and_time),
        TEST(exceptions), TEST(device_accesses), TEST(accesses_that_fault), TEST(what_ends_it), TEST(paravirtual_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
