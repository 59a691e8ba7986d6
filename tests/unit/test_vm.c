/* The middle layer over a scripted CPU: exits, events, nested faults, guest page tables, life cycle. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>

#include "kernel/vmm/policy.h"
#include "tests/host/fake_hv.h"
#include "tests/host/port_host.h"

#define MIB (1ull << 20)

static int setup(void **state) { fake_hv_setup(256 * MIB, 4); return 0; }
static int teardown(void **state) { fake_hv_teardown(); return 0; }

static void finish(struct vm *vm)
{
    if (vm_state(vm) != VM_STOPPED)
        assert_int_equal(vm_kill(vm), 0);
    vm_destroy(vm);
}

static uint64_t soon(void) { return clock_ns() + 20000000000ull; }

/* ---- A guest that steps through exits and records what it sees ---- */

struct steps { int at; uint64_t seen[32]; struct event_info ev[32]; };

static int echo_io(void *dev, struct io *io)
{
    uint64_t *last = dev;
    if (io->write)
        *last = io->data;
    else
        io->data = *last + 1;
    return 0;
}

static void pio_script(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg)
{
    struct steps *s = arg;
    e->kind = EXIT_PIO;
    e->next_rip = v->rip + 1;
    e->u.pio.port = 0x70, e->u.pio.what = 2 << PIO_SIZE_SHIFT;
    switch (s->at++) {
    case 0:
        v->gpr[RAX] = 0x1122334455667788;
        break;
    case 1:
        e->u.pio.what |= PIO_IN;
        break;
    case 2:
        s->seen[0] = v->gpr[RAX];
        e->u.pio.what = PIO_IN | 4 << PIO_SIZE_SHIFT;
        break;
    case 3:
        s->seen[1] = v->gpr[RAX], s->seen[2] = v->rip;
        vm_request_stop(v->vm, STOP_DEBUG_EXIT, 7, "done");
        e->kind = EXIT_INTERNAL;
        break;
    default:
        e->kind = EXIT_INTERNAL;
        s->seen[3]++;           /* must not happen: it asked to stop */
    }
}

static void ports_reach_the_bus(void **state)
{
    struct steps s = { 0 };
    uint64_t last = 0;
    unsigned code;
    char why[64];
    struct vm *vm = fake_vm_create(1, pio_script, &s);
    assert_int_equal(bus_add(vm_ports(vm), 0x70, 4, echo_io, &last, "echo", 0), 0);
    assert_int_equal(vm_run(vm), 0);
    assert_true(vm_wait(vm, soon()));
    assert_int_equal(s.seen[0], 0x1122334455667789);    /* 16-bit IN leaves the rest of RAX */
    assert_int_equal(s.seen[1], 0x7789);                /* 32-bit IN clears the upper half */
    assert_int_equal(s.seen[2], 0xfff0 + 3);
    assert_int_equal(s.seen[3], 0);
    assert_int_equal(vm_stop_cause(vm, why, sizeof why, &code), STOP_DEBUG_EXIT);
    assert_int_equal(code, 7);
    assert_string_equal(why, "done");
    struct vcpu_stats st;
    vm_vcpu_stats(vm, 0, &st);
    assert_int_equal(st.exits[EXIT_PIO], 3);
    finish(vm);
}

/* The CPU has not seen an instruction end that was finished here: its single-step trap is ours to deliver. */
static void single_step_script(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg)
{
    struct steps *s = arg;
    s->ev[s->at] = f->injected;
    e->kind = EXIT_CPUID;
    switch (s->at++) {
    case 0:
        e->next_rip = v->rip + 2;
        break;
    case 1:
        v->rflags |= RFLAGS_TF;
        e->insn_len = 2;
        break;
    case 2:
        s->seen[0] = f->st.dr6;
        s->seen[1] = v->rip;
        v->rflags &= ~RFLAGS_TF;
        e->insn_len = 2;
        break;
    default:
        vm_request_stop(v->vm, STOP_POWEROFF, 0, "");
        e->kind = EXIT_INTERNAL;
    }
}

static void single_step_traps_behind_exits(void **state)
{
    struct steps s = { 0 };
    struct vm *vm = fake_vm_create(1, single_step_script, &s);
    assert_int_equal(vm_run(vm), 0);
    assert_true(vm_wait(vm, soon()));
    assert_false(s.ev[1].valid);
    assert_true(s.ev[2].valid && s.ev[2].type == EVENT_EXCEPTION && s.ev[2].vector == 1 && !s.ev[2].has_error);
    assert_true(s.seen[0] & DR6_BS);
    assert_int_equal(s.seen[1], 0xfff0 + 4);
    assert_false(s.ev[3].valid);
    finish(vm);
}

/* MOVUPS between XMM registers and a device, whether or not the state component is in use yet. */
enum { XMM0 = 160, XSTATE_BV = 512 };
static void vector_script(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg)
{
    static const uint8_t code[] = { 0x0f, 0x11, 0x0e, 0x00, 0x90,       /* movups [9000h], xmm1 */
                                    0x0f, 0x10, 0x06, 0x00, 0x90 };     /* movups xmm0, [9000h] */
    struct steps *s = arg;
    uint64_t *bv = (uint64_t *)((uint8_t *)v->fpu + XSTATE_BV);
    e->kind = EXIT_MMIO;
    e->u.mmio.gpa = 0x4009000, e->u.mmio.final = true, e->u.mmio.access = MMIO_READ;
    switch (s->at++) {
    case 0:
        gmem_write(vm_gmem(v->vm), 0x100, code, sizeof code);
        v->rip = 0x100;
        f->st.seg[SEG_CS].base = 0;
        f->st.seg[SEG_DS].base = 0x4000000;
        f->st.cr4 |= CR4_OSFXSR;
        memset((uint8_t *)v->fpu + XMM0, 0xee, 256);
        memset((uint8_t *)v->fpu + XMM0 + 16, 0x5a, 16);
        *bv = 0;                        /* initial: what lies in the area is stale, the register is zero */
        break;
    case 1:
        s->seen[0] = v->rip;
        *bv = 2;
        v->rip = 0x100;
        break;
    case 2:
        break;
    default:
        s->seen[1] = v->rip;
        memcpy(&s->seen[2], (uint8_t *)v->fpu + XMM0, 16);
        vm_request_stop(v->vm, STOP_POWEROFF, 0, "");
        e->kind = EXIT_INTERNAL;
    }
}

struct log { unsigned n; uint64_t val[8]; };
static int log_io(void *dev, struct io *io)
{
    struct log *l = dev;
    if (io->write)
        l->val[l->n++ % 8] = io->data;
    else
        io->data = 0x1111111111111111 * (io->off / 8 + 1);
    return 0;
}

static void vector_moves_reach_devices(void **state)
{
    struct steps s = { 0 };
    struct log l = { 0 };
    struct vm *vm = fake_vm_create(1, vector_script, &s);
    assert_int_equal(bus_add(vm_mmio(vm), 0x4009000, 16, log_io, &l, "log", 0), 0);
    assert_int_equal(vm_run(vm), 0);
    assert_true(vm_wait(vm, soon()));
    assert_int_equal(l.n, 4);
    assert_int_equal(l.val[0] | l.val[1], 0);
    assert_int_equal(l.val[2], 0x5a5a5a5a5a5a5a5a);
    assert_int_equal(l.val[3], 0x5a5a5a5a5a5a5a5a);
    assert_int_equal(s.seen[0], 0x105);
    assert_int_equal(s.seen[1], 0x10a);
    assert_int_equal(s.seen[2], 0x1111111111111111);
    assert_int_equal(s.seen[3], 0x2222222222222222);
    finish(vm);
}

/* ---- Nested faults ---- */

static void fault_script(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg)
{
    struct steps *s = arg;
    uint32_t *p;
    gpa_t gpa = 0x5000 + (gpa_t)(s->at / 2) * 3 * MIB;
    if (s->at >= 8) {
        vm_request_stop(v->vm, STOP_POWEROFF, 0, "");
        return;
    }
    p = fake_tlb_access(v, gpa, true);
    if (!p) {
        assert_int_equal(s->at % 2, 0);
        e->kind = EXIT_MMIO;
        e->u.mmio.gpa = gpa, e->u.mmio.access = MMIO_WRITE, e->u.mmio.final = true;
        s->seen[0]++;
    } else {
        assert_int_equal(*p, 0);        /* fresh memory is zero */
        *p = 0x12345678;
        uint32_t back;
        assert_int_equal(gmem_read(vm_gmem(v->vm), gpa, &back, 4), 0);
        assert_int_equal(back, 0x12345678);
    }
    s->at++;
}

static void memory_comes_on_first_touch(void **state)
{
    struct steps s = { 0 };
    struct vm *vm = fake_vm_create(1, fault_script, &s);
    assert_int_equal(vm_run(vm), 0);
    assert_true(vm_wait(vm, soon()));
    assert_int_equal(s.seen[0], 4);
    finish(vm);
}

static fake_script busy_script;

/* ---- 1 GiB pages ---- */

struct sweep { uint64_t next[2]; bool twice; };

/* Each vCPU writes its half of the second GiB, one word in every 2 MiB, then reads all. */
static void sweep_script(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg)
{
    struct sweep *s = arg;
    uint64_t n = atomic_load(&s->next[v->index]);
    if (n >= 256 + 512) {
        e->kind = EXIT_HLT, e->insn_len = 1;
        return;
    }
    gpa_t gpa = PAGE_1G + (n < 256 ? (n * 2 + v->index) : n - 256) * PAGE_2M + 64 * v->index;
    uint64_t *p = fake_tlb_access(v, gpa, true);
    if (!p) {
        e->kind = EXIT_MMIO;
        e->u.mmio.gpa = gpa, e->u.mmio.access = MMIO_WRITE, e->u.mmio.final = true;
        return;
    }
    if (n < 256)
        *p = gpa;
    else if (((gpa / PAGE_2M) & 1) == v->index && *p != gpa)
        return;                 /* wrong: never comes to its end */
    atomic_store(&s->next[v->index], n + 1);
}

static void a_full_gib_becomes_one_leaf(void **state)
{
    fake_hv_teardown();
    fake_hv_setup(3 * PAGE_1G, 2);
    vmm_host.max_leaf = ORDER_1G;
    struct sweep s = { 0 };
    struct vm_params p = { .name = "big", .ncpus = 2, .ram = 2 * PAGE_1G };
    struct mem_stats before, after;
    struct vm *vm;
    char err[160];
    mem_stats(&before);
    assert_int_equal(vm_create(&p, &vm, err, sizeof err), 0);
    assert_int_equal(vm_add_ram(vm, MIB, 2 * PAGE_1G - MIB, false), 0);
    fake_hv_script(vm, sweep_script, &s);
    assert_int_equal(vm_run(vm), 0);
    vcpu_request(vm_vcpu(vm, 1), REQ_SIPI);
    for (uint64_t until = soon(); clock_ns() < until && (atomic_load(&s.next[0]) < 768 || atomic_load(&s.next[1]) < 768);)
        thread_yield();
    assert_int_equal(atomic_load(&s.next[0]) + atomic_load(&s.next[1]), 2 * 768);
    struct pt_leaves n;
    ptab_count(&vm->nested, &n);
    assert_int_equal(n.n1g, 1);
    assert_int_equal(n.n2m + n.n4k, 0);
    assert_null(fake_tlb_stale(vm));
    finish(vm);
    mem_stats(&after);
    assert_int_equal(before.free, after.free);
    assert_int_equal(before.reserved, after.reserved);
}

/* Memory that has failed costs the VM that has it, and is never used again. */
static void a_lost_page_stops_its_owner(void **state)
{
    uint64_t n = 0;
    char why[160], text[] = "mine";
    struct mem_stats before, after;
    mem_stats(&before);
    struct vm *vm[2];
    hpa_t pa[2];
    struct gmem_leaf leaf;
    for (unsigned i = 0; i < 2; i++) {
        vm[i] = fake_vm_create(1, busy_script, &n);
        assert_int_equal(gmem_write(vm_gmem(vm[i]), 5 * MIB, text, sizeof text), 0);
        assert_int_equal(gmem_leaf(vm_gmem(vm[i]), 5 * MIB, &leaf), 0);
        pa[i] = leaf.pa + 1 * MIB;
        assert_int_equal(vm_run(vm[i]), 0);
    }
    assert_false(vm_page_lost(va_to_pa(vm[0]->cpuid) & ~(PAGE_SIZE - 1)));
    assert_true(vm_page_lost(pa[1]));
    assert_true(vm_wait(vm[1], soon()));
    assert_int_equal(vm_stop_cause(vm[1], why, sizeof why, NULL), STOP_CRASH);
    assert_non_null(strstr(why, "guest-physical 500000 "));
    assert_int_equal(vm_state(vm[0]), VM_RUNNING);
    finish(vm[1]);
    assert_false(vm_page_lost(pa[1]));
    finish(vm[0]);
    mem_stats(&after);
    assert_int_equal(before.free - after.free, PAGE_2M);
}

/* ---- Pages that leave a running VM ---- */

enum { LEAVING = 4 * 1024 * 1024, POISON = 0x66 };

/* Reads and writes one word for ever; the word is never that of a page that was given away. */
struct touch { uint64_t reads[4], writes[4]; bool poisoned; };

static void touch_script(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg)
{
    struct touch *t = arg;
    for (unsigned i = 0; i < 20; i++) {
        bool write = i % 4 == 3;
        uint32_t *p = fake_tlb_access(v, LEAVING + 64 * v->index, write);
        if (!p) {
            e->kind = EXIT_MMIO;
            e->u.mmio.gpa = LEAVING + 64 * v->index, e->u.mmio.access = write ? MMIO_WRITE : MMIO_READ, e->u.mmio.final = true;
            return;
        }
        if (atomic_load(p) == POISON * 0x01010101u)
            atomic_store(&t->poisoned, true);
        if (write) {
            atomic_store(p, 1u);
            atomic_add(&t->writes[v->index], 1);
        } else {
            atomic_add(&t->reads[v->index], 1);
        }
    }
}

static struct vm *run_four(struct touch *t)
{
    struct vm *vm = fake_vm_create(4, touch_script, t);
    assert_int_equal(vm_run(vm), 0);
    for (unsigned i = 1; i < 4; i++)
        vcpu_request(vm_vcpu(vm, i), REQ_SIPI);
    return vm;
}

static void wait_for_more(uint64_t count[4])
{
    uint64_t from[4];
    for (unsigned i = 0; i < 4; i++)
        from[i] = atomic_load(&count[i]);
    for (unsigned i = 0; i < 4; i++)
        while (atomic_load(&count[i]) == from[i])
            thread_yield();
}

static uint64_t *chunk_of(struct vm *vm, gpa_t gpa)
{
    struct gmem_range *r = &vm->gmem.range[0];
    return &r->chunk[gpa / PAGE_2M - r->first];
}

/* As copy-on-write would: other memory under the same address, the old page to whoever wants it. */
static void swap_page(struct vm *vm, bool flush)
{
    uint64_t *chunk = chunk_of(vm, LEAVING), old = atomic_load(chunk) & ~CHUNK_LARGE;
    hpa_t new = page_alloc(ORDER_2M, PAGE_ZERO);
    assert_true(old && new);
    atomic_store(chunk, new | CHUNK_LARGE);
    if (flush) {
        nested_forget(vm, LEAVING, PAGE_2M);
        assert_null(fake_tlb_stale(vm));
        memset(pa_to_va(old), POISON, PAGE_2M);
    } else {                                    /* the mistake */
        spin_lock(&vm->nested_lock);
        ptab_unmap(&vm->nested, LEAVING, PAGE_2M);
        spin_unlock(&vm->nested_lock);
    }
    page_put(old, ORDER_2M);
}

static void a_page_leaves_before_it_is_given_away(void **state)
{
    struct touch t = { 0 };
    struct vm *vm = run_four(&t);
    for (unsigned round = 0; round < 50; round++) {
        wait_for_more(t.writes);
        swap_page(vm, true);
    }
    wait_for_more(t.reads);
    assert_false(atomic_load(&t.poisoned));
    finish(vm);
}

static void a_missing_flush_is_caught(void **state)
{
    struct touch t = { 0 };
    struct vm *vm = run_four(&t);
    wait_for_more(t.writes);
    assert_null(fake_tlb_stale(vm));
    swap_page(vm, false);
    assert_non_null(fake_tlb_stale(vm));
    assert_non_null(strstr(fake_tlb_stale(vm), "a translation of 400000"));
    finish(vm);
}

static void lost_rights_reach_every_cpu(void **state)
{
    struct touch t = { 0 };
    struct vm *vm = run_four(&t);
    for (unsigned round = 0; round < 50; round++) {
        wait_for_more(t.writes);
        assert_int_equal(nested_protect(vm, LEAVING, PAGE_SIZE), 0);
        assert_null(fake_tlb_stale(vm));        /* and the next write gets the right back */
        if (round % 4 == 0)
            nested_forget(vm, LEAVING, PAGE_SIZE);
    }
    wait_for_more(t.writes);
    spin_lock(&vm->nested_lock);
    assert_int_equal(ptab_protect(&vm->nested, LEAVING, PAGE_SIZE, PT_R | PT_X), 0);
    spin_unlock(&vm->nested_lock);
    assert_non_null(fake_tlb_stale(vm));
    finish(vm);
}

/* ---- Guest page tables ---- */

static void put64(struct vm *vm, gpa_t at, uint64_t v) { assert_int_equal(gmem_write(vm_gmem(vm), at, &v, 8), 0); }
static uint64_t get64(struct vm *vm, gpa_t at)
{
    uint64_t v;
    assert_int_equal(gmem_read(vm_gmem(vm), at, &v, 8), 0);
    return v;
}

static void walks_long_mode_tables(void **state)
{
    struct vm *vm = fake_vm_create(1, NULL, NULL);
    struct vcpu *v = vm_vcpu(vm, 0);
    gpa_t gpa;
    uint32_t err;
    put64(vm, 0x1000, 0x2000 | PTE_P | PTE_W | PTE_U);
    put64(vm, 0x2000, 0x3000 | PTE_P | PTE_W | PTE_U);
    put64(vm, 0x3000, 0x4000 | PTE_P | PTE_W | PTE_U);
    put64(vm, 0x3008, 0x600000 | PTE_P | PTE_PS | PTE_W);
    put64(vm, 0x4008, 0x9000 | PTE_P | PTE_U);
    put64(vm, 0x4010, 0xa000 | PTE_P | PTE_W | PTE_NX);
    put64(vm, 0x4018, BIT(45) | PTE_P);
    v->st = (struct cpu_state){ .cr0 = CR0_PG | CR0_PE | CR0_WP, .cr3 = 0x1000, .cr4 = CR4_PAE | CR4_SMEP | CR4_SMAP, .efer = EFER_LMA | EFER_LME | EFER_NXE };
    v->st_valid = ST_ALL | ST_CODE;
    v->rflags = 2;
    assert_int_equal(gwalk(v, 0x1234, PF_U, &gpa, &err), 0);
    assert_int_equal(gpa, 0x9234);
    assert_int_equal(get64(vm, 0x4008), 0x9000 | PTE_P | PTE_U | PTE_A);
    assert_int_equal(gwalk(v, 0x1234, PF_U | PF_W, &gpa, &err), -EFAULT);
    assert_int_equal(err, PF_P | PF_W | PF_U);
    assert_int_equal(gwalk(v, 0x1234, 0, &gpa, &err), -EFAULT);         /* SMAP */
    assert_int_equal(err, PF_P);
    v->rflags |= RFLAGS_AC;
    assert_int_equal(gwalk(v, 0x1234, 0, &gpa, &err), 0);
    assert_int_equal(gwalk(v, 0x1234, PF_I, &gpa, &err), -EFAULT);      /* SMEP */
    assert_int_equal(err, PF_P | PF_I);
    assert_int_equal(gwalk(v, 0x2000, PF_W, &gpa, &err), 0);
    assert_int_equal(get64(vm, 0x4010), 0xa000 | PTE_P | PTE_W | PTE_NX | PTE_A | PTE_D);
    assert_int_equal(gwalk(v, 0x2000, PF_I, &gpa, &err), -EFAULT);
    assert_int_equal(gwalk(v, 0x2000, PF_U, &gpa, &err), -EFAULT);
    assert_int_equal(err, PF_P | PF_U);
    assert_int_equal(gwalk(v, 0x3000, 0, &gpa, &err), -EFAULT);         /* address beyond the physical width */
    assert_int_equal(err, PF_P | PF_RSVD);
    assert_int_equal(gwalk(v, 0x5000, PF_W, &gpa, &err), -EFAULT);
    assert_int_equal(err, PF_W);
    assert_int_equal(gwalk(v, 0x212345, PF_W, &gpa, &err), 0);
    assert_int_equal(gpa, 0x612345);
    put64(vm, 0x3010, 0x900000000 | PTE_P | PTE_W);                     /* a table outside RAM */
    assert_int_equal(gwalk(v, 0x400000, 0, &gpa, &err), -EIO);
    finish(vm);
}

static void walks_32_bit_tables(void **state)
{
    struct vm *vm = fake_vm_create(1, NULL, NULL);
    struct vcpu *v = vm_vcpu(vm, 0);
    gpa_t gpa;
    uint32_t err, pde[2] = { 0x2000 | PTE_P | PTE_W, 0x00800000 | PTE_P | PTE_PS | PTE_W }, pte = 0x7000 | PTE_P;
    assert_int_equal(gmem_write(vm_gmem(vm), 0x1000, pde, sizeof pde), 0);
    assert_int_equal(gmem_write(vm_gmem(vm), 0x2004, &pte, 4), 0);
    v->st = (struct cpu_state){ .cr0 = CR0_PG | CR0_PE, .cr3 = 0x1000, .cr4 = CR4_PSE };
    v->st_valid = ST_ALL | ST_CODE;
    assert_int_equal(gwalk(v, 0x1abc, PF_W, &gpa, &err), 0);            /* WP off: the supervisor writes read-only pages */
    assert_int_equal(gpa, 0x7abc);
    assert_int_equal(gwalk(v, 0x00412345, PF_W, &gpa, &err), 0);
    assert_int_equal(gpa, 0x00812345);
    uint64_t pdpte = 0x3000 | PTE_P;
    put64(vm, 0x5020, pdpte);
    put64(vm, 0x3000, 0xa00000 | PTE_P | PTE_PS);
    v->st.cr4 |= CR4_PAE, v->st.cr3 = 0x5020;
    assert_int_equal(gwalk(v, 0x123456, 0, &gpa, &err), 0);
    assert_int_equal(gpa, 0xb23456);
    finish(vm);
}

/* ---- Interrupts ---- */

struct chip { uint8_t page[4096]; uint32_t irr, offered; unsigned accepted[8], n; };

static int chip_pending(void *p)
{
    struct chip *c = p;
    uint32_t irr = atomic_load(&c->irr);
    return irr ? 0x40 + 31 - __builtin_clz(irr) : IRQ_NONE;
}

static void chip_accept(void *p, int vector)
{
    struct chip *c = p;
    atomic_and(&c->irr, ~(1u << (vector - 0x40)));
    c->accepted[c->n++ % 8] = (unsigned)vector;
}

static void chip_init(void *p) {}
static bool chip_msr_r(void *p, uint32_t m, uint64_t *v) { return false; }
static bool chip_msr_w(void *p, uint32_t m, uint64_t v) { return false; }

static void wire_chip(struct vm *vm, unsigned i, struct chip *c, struct vcpu_wires *w)
{
    struct vcpu_irqchip chip = { .apic = c, .pending = chip_pending, .accept = chip_accept, .page = c->page, .msr_read = chip_msr_r,
                                 .msr_write = chip_msr_w, .init = chip_init, .offered = &c->offered };
    vm_set_irqchip(vm, i, &chip);
    vm_get_wires(vm, i, w);
}

/* Halts for ever; each wake-up takes one interrupt. */
struct halter { uint64_t taken; };
static void halt_script(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg)
{
    struct halter *h = arg;
    uint8_t vector;
    v->rflags |= RFLAGS_IF;
    if (fake_take_irq(v, &vector)) {
        atomic_add(&h->taken, 1);
        e->kind = EXIT_INTERNAL;
        return;
    }
    e->kind = EXIT_HLT;
    e->next_rip = v->rip;
}

/* Ten thousand interrupts from another thread, each after the one before was taken: one lost wake-up and this hangs. */
static void no_wake_up_is_lost(void **state)
{
    struct halter h = { 0 };
    struct chip c;
    struct vcpu_wires w;
    memset(&c, 0, sizeof c);
    struct vm *vm = fake_vm_create(1, halt_script, &h);
    wire_chip(vm, 0, &c, &w);
    assert_int_equal(vm_run(vm), 0);
    uint64_t end = soon();
    for (unsigned i = 0; i < 10000; i++) {
        atomic_or(&c.irr, 1u << i % 16);
        w.irq(w.vcpu);
        while (atomic_load(&h.taken) <= i) {
            assert_true(clock_ns() < end);
            thread_yield();
        }
    }
    struct vcpu_stats st;
    vm_vcpu_stats(vm, 0, &st);
    assert_int_equal(st.irqs, 10000);
    finish(vm);
}

static void tpr_holds_a_halted_cpu(void **state)
{
    struct halter h = { 0 };
    struct chip c;
    struct vcpu_wires w;
    memset(&c, 0, sizeof c);
    c.page[0x80] = 0x50;
    struct vm *vm = fake_vm_create(1, halt_script, &h);
    wire_chip(vm, 0, &c, &w);
    assert_int_equal(vm_run(vm), 0);
    atomic_or(&c.irr, 1u << 3);                 /* vector 43h, class 4 < 5 */
    w.irq(w.vcpu);
    assert_int_equal(vm_pause(vm), 0);
    assert_int_equal(atomic_load(&h.taken), 0);
    c.page[0x80] = 0;
    assert_int_equal(vm_resume(vm), 0);
    uint64_t end = soon();
    while (!atomic_load(&h.taken))
        assert_true(clock_ns() < end);
    finish(vm);
}

/* ---- Life cycle ---- */

static void busy_script(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg)
{
    uint64_t *n = arg;
    atomic_add(n, 1);
    fake_guest_spin(v);
    e->kind = EXIT_HOST_INTR;
}

static void control_from_every_state(void **state)
{
    uint64_t n = 0;
    struct vm *vm = fake_vm_create(4, busy_script, &n);
    assert_int_equal(vm_pause(vm), -EBUSY);
    assert_int_equal(vm_kill(vm), -EBUSY);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(vm_run(vm), 0);
        assert_int_equal(vm_run(vm), -EBUSY);
        assert_int_equal(vm_pause(vm), 0);
        uint64_t t = vmclock_now(vm_clock(vm)), entries = atomic_load(&n);
        assert_int_equal(vm_pause(vm), -EBUSY);
        assert_int_equal(vmclock_now(vm_clock(vm)), t);
        assert_int_equal(atomic_load(&n), entries);     /* nobody runs */
        if (i % 3 == 0)
            assert_int_equal(vm_reset(vm), 0);
        assert_int_equal(vm_resume(vm), 0);
        assert_int_equal(vm_reset(vm), 0);
        assert_int_equal(vm_kill(vm), 0);
        assert_int_equal(vm_state(vm), VM_STOPPED);
    }
    finish(vm);
}

/* Resets and stops asked for by the guest race with those of the operator: in the end it is stopped, whoever won. */
static void reset_script(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg)
{
    uint64_t *n = arg;
    if (atomic_add(n, 1) % 3 == 0)
        vm_request_reset(v->vm);
    else
        fake_guest_spin(v);
    e->kind = EXIT_INTERNAL;
}

static void requests_race_with_control(void **state)
{
    uint64_t n = 0;
    struct vm *vm = fake_vm_create(2, reset_script, &n);
    assert_int_equal(vm_run(vm), 0);
    for (int i = 0; i < 300; i++) {
        assert_int_equal(vm_reset(vm), 0);
        assert_int_equal(vm_pause(vm), 0);
        assert_int_equal(vm_resume(vm), 0);
    }
    finish(vm);
}

static void triple_script(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg)
{
    e->kind = EXIT_TRIPLE_FAULT;
    atomic_add((uint64_t *)arg, 1);
}

static void third_triple_fault_stops(void **state)
{
    uint64_t n = 0;
    char why[256];
    struct vm *vm = fake_vm_create(1, triple_script, &n);
    vm->p.crash_resets = true;
    assert_int_equal(vm_run(vm), 0);
    assert_true(vm_wait(vm, soon()));
    assert_int_equal(n, 3);
    assert_int_equal(vm_stop_cause(vm, why, sizeof why, NULL), STOP_CRASH);
    assert_non_null(strstr(why, "triple fault"));
    assert_non_null(strstr(why, "rip fff0"));
    finish(vm);
}

/* The host's machine checks and entries that the CPU refuses end this VM only, with a sentence. */
static void end_script(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg) { *e = *(struct exit *)arg; }

static void stops_with(struct exit e, const char *words)
{
    char why[256];
    struct vm *vm = fake_vm_create(1, end_script, &e);
    assert_int_equal(vm_run(vm), 0);
    assert_true(vm_wait(vm, soon()));
    assert_int_equal(vm_stop_cause(vm, why, sizeof why, NULL), STOP_CRASH);
    if (!strstr(why, words))
        fail_msg("\"%s\" lacks \"%s\"", why, words);
    finish(vm);
}

static void what_cannot_go_on_is_said(void **state)
{
    stops_with((struct exit){ .kind = EXIT_EXCEPTION, .u.exc.vector = EXC_MC }, "the host CPU reported a machine check");
    stops_with((struct exit){ .kind = EXIT_FATAL, .u.raw = { .reason = 0x80000021, .why = "CR4 is 20: bits 2000 must be one" } },
               "cannot run the guest: CR4 is 20: bits 2000 must be one; reason 80000021");
    stops_with((struct exit){ .kind = EXIT_MMIO, .u.mmio = { .gpa = 0x80000000, .access = MMIO_EXEC, .final = true } }, "runs at guest-physical 80000000");
}

static void no_room_is_said_with_figures(void **state)
{
    struct vm_params p = { .name = "big", .ncpus = 1, .ram = 1024 * MIB };
    struct vm *vm = NULL;
    char err[256];
    struct mem_stats a, b;
    mem_stats(&a);
    assert_int_equal(vm_create(&p, &vm, err, sizeof err), -ENOMEM);
    assert_non_null(strstr(err, "1024 MiB"));
    assert_non_null(strstr(err, "free"));
    mem_stats(&b);
    assert_int_equal(a.reserved, b.reserved);
}

static void everything_is_given_back(void **state)
{
    struct mem_stats a, b;
    uint64_t n = 0;
    mem_stats(&a);
    unsigned long blocks = port_alloc_count();
    for (int i = 0; i < 100; i++) {
        struct vm *vm = fake_vm_create(2, busy_script, &n);
        char byte = 1;
        assert_int_equal(gmem_write(vm_gmem(vm), 5 * MIB, &byte, 1), 0);
        if (i % 2)
            assert_int_equal(vm_run(vm), 0);
        finish(vm);
    }
    mem_stats(&b);
    assert_int_equal(a.free, b.free);
    assert_int_equal(a.reserved, b.reserved);
    assert_int_equal(port_alloc_count(), blocks);
}

/* Every allocation of vm_create fails once: an error each time, nothing lost. */
static void creation_survives_allocation_failures(void **state)
{
    struct vm_params p = { .name = "f", .ncpus = 2, .ram = 32 * MIB };
    char err[256];
    unsigned long blocks = port_alloc_count();
    for (int n = 0;; n++) {
        struct vm *vm = NULL;
        port_fail_alloc_after(n);
        int r = vm_create(&p, &vm, err, sizeof err);
        port_fail_alloc_after(-1);
        if (!r) {
            assert_true(n > 5);
            finish(vm);
            break;
        }
        assert_int_equal(r, -ENOMEM);
        assert_int_equal(port_alloc_count(), blocks);
    }
    assert_int_equal(port_alloc_count(), blocks);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(ports_reach_the_bus), T(single_step_traps_behind_exits), T(vector_moves_reach_devices), T(memory_comes_on_first_touch), T(a_page_leaves_before_it_is_given_away),
        T(a_missing_flush_is_caught), T(a_lost_page_stops_its_owner), T(a_full_gib_becomes_one_leaf), T(lost_rights_reach_every_cpu),
        T(walks_long_mode_tables), T(walks_32_bit_tables), T(no_wake_up_is_lost),
        T(tpr_holds_a_halted_cpu), T(control_from_every_state), T(requests_race_with_control), T(third_triple_fault_stops), T(what_cannot_go_on_is_said),
        T(no_room_is_said_with_figures), T(everything_is_given_back), T(creation_survives_allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
