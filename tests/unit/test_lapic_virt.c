/*
 * The LAPIC under a CPU that works on its page (APIC-register virtualization, virtual-interrupt delivery).  The CPU is played by the rules of SDM vol. 3 "APIC
 * Virtualization and Virtual Interrupts"; a plain LAPIC beside it gets the same programming and must look the same to the guest.
 */
#include "tests/host/test.h"
#include "tests/host/port_host.h"
#include "tests/host/wires.h"
#include "guestdev/lapic.h"
#include "kernel/hw/msr.h"

#include <string.h>

enum { PLAIN, VIRT, KINDS };

static struct {
    struct vmclock clock;
    struct apic_fabric fabric[KINDS];
    struct fake_vcpu cpu[KINDS];
    struct lapic *apic[KINDS];
    struct vcpu_irqchip chip[KINDS];
    uint8_t eois[KINDS][16];
    unsigned neois[KINDS];
    uint8_t rvi, svi;
    uint64_t eoi_exit[4];
    struct apic_virt loaded;
} t;

static void eoi_seen(void *arg, uint8_t vector)
{
    unsigned k = (unsigned)(uintptr_t)arg;
    t.eois[k][t.neois[k]++ % 16] = vector;
}

static uint32_t *reg(unsigned off) { return (uint32_t *)(t.chip[VIRT].page + off); }

static uint8_t highest(unsigned row)
{
    for (unsigned w = 8; w-- > 0; )
        if (*reg(row + 16 * w))
            return (uint8_t)(32 * w + 31 - __builtin_clz(*reg(row + 16 * w)));
    return 0;
}

/* ---- The CPU ---- */

static void update_ppr(void)
{
    uint32_t tpr = *reg(LAPIC_TPR);
    *reg(LAPIC_PPR) = tpr >> 4 >= t.svi >> 4 ? tpr : t.svi & 0xf0;
}

static int entry(void)
{
    int pending = t.chip[VIRT].pending(t.chip[VIRT].apic);
    t.chip[VIRT].virt(t.chip[VIRT].apic, &t.loaded);
    t.rvi = t.loaded.rvi, t.svi = t.loaded.svi;
    memcpy(t.eoi_exit, t.loaded.eoi_exit, sizeof t.eoi_exit);
    update_ppr();
    return pending;
}

/* The vector delivered, or 0. */
static uint8_t cpu_delivers(void)
{
    uint8_t v = t.rvi;
    if (v >> 4 <= *reg(LAPIC_PPR) >> 4)
        return 0;
    *reg(LAPIC_ISR + (v >> 5) * 16) |= BIT(v & 31);
    t.svi = v;
    *reg(LAPIC_PPR) = v & 0xf0;
    *reg(LAPIC_IRR + (v >> 5) * 16) &= ~(uint32_t)BIT(v & 31);
    t.rvi = highest(LAPIC_IRR);
    return v;
}

static void cpu_eoi(void)
{
    uint8_t v = t.svi;
    *reg(LAPIC_EOI) = 0;
    *reg(LAPIC_ISR + (v >> 5) * 16) &= ~(uint32_t)BIT(v & 31);
    t.svi = highest(LAPIC_ISR);
    update_ppr();
    if (v && (t.eoi_exit[v / 64] >> v % 64 & 1))
        t.chip[VIRT].eoi(t.chip[VIRT].apic, v);
}

static void cpu_write(unsigned off, uint32_t val)
{
    *reg(off) = val;
    switch (off) {
    case LAPIC_TPR:
        *reg(off) &= 0xff;
        update_ppr();
        break;
    case LAPIC_EOI:
        cpu_eoi();
        break;
    case LAPIC_ICR_HI:
        *reg(off) &= 0xff000000;
        break;
    default:
        t.chip[VIRT].wrote(t.chip[VIRT].apic, off);
        entry();
    }
}

/* ---- Both ---- */

static uint32_t rd(unsigned kind, unsigned off)
{
    uint32_t v = 0xdeadbeef;
    assert_int_equal(t.chip[kind].mmio(t.chip[kind].apic, off, false, &v), 0);
    return v;
}

static void wr(unsigned off, uint32_t val)
{
    uint32_t v = val;
    assert_int_equal(t.chip[PLAIN].mmio(t.chip[PLAIN].apic, off, true, &v), 0);
    cpu_write(off, val);
}

static void request(uint8_t vector, bool level)
{
    for (unsigned k = 0; k < KINDS; k++)
        lapic_deliver(t.apic[k], APIC_FIXED, vector, level);
    entry();
}

/* What the guest takes now: the same on both. */
static uint8_t taken(void)
{
    struct vcpu_irqchip *c = &t.chip[PLAIN];
    int want = c->pending(c->apic);
    want = want != IRQ_NONE && want >> 4 > c->page[LAPIC_TPR] >> 4 ? want : 0;
    if (want)
        c->accept(c->apic, want);
    uint8_t v = cpu_delivers();
    assert_int_equal(v, want);
    return v;
}

static void same_registers(void)
{
    static const uint16_t off[] = { LAPIC_ID, LAPIC_VERSION, LAPIC_TPR, LAPIC_PPR, LAPIC_LDR, LAPIC_DFR, LAPIC_SVR, LAPIC_ESR, LAPIC_ICR, LAPIC_ICR_HI, LAPIC_LVT_TIMER,
                                    LAPIC_LVT_LINT0, LAPIC_LVT_LINT1, LAPIC_LVT_ERROR, LAPIC_TIMER_INIT, LAPIC_TIMER_CURRENT, LAPIC_TIMER_DIVIDE };
    for (unsigned i = 0; i < ARRAY_SIZE(off); i++)
        if (rd(PLAIN, off[i]) != rd(VIRT, off[i]))
            fail_msg("register %x: %x, but %x with virtualization", off[i], rd(PLAIN, off[i]), rd(VIRT, off[i]));
    for (unsigned o = LAPIC_ISR; o < LAPIC_ESR; o += 16)
        if (rd(PLAIN, o) != rd(VIRT, o))
            fail_msg("register %x: %x, but %x with virtualization", o, rd(PLAIN, o), rd(VIRT, o));
    assert_int_equal(t.neois[PLAIN], t.neois[VIRT]);
    assert_memory_equal(t.eois[PLAIN], t.eois[VIRT], sizeof t.eois[PLAIN]);
}

static int setup(void **state)
{
    memset(&t, 0, sizeof t);
    host_clock_manual(true);
    vmclock_init(&t.clock);
    vmclock_start(&t.clock);
    for (unsigned k = 0; k < KINDS; k++) {
        apic_fabric_init(&t.fabric[k]);
        t.fabric[k].ioapic.eoi = eoi_seen, t.fabric[k].ioapic.arg = (void *)(uintptr_t)k;
        t.cpu[k].clock = &t.clock;
        struct lapic_config c = { .apic_id = 3, .bsp = true, .x2apic = true, .tsc_deadline = true, .virt = k == VIRT, .phys_bits = 40, .clock = &t.clock,
                                  .wires = fake_vcpu_wires(&t.cpu[k]) };
        t.apic[k] = lapic_create(&c, &t.fabric[k]);
        assert_non_null(t.apic[k]);
        lapic_irqchip(t.apic[k], &t.chip[k]);
    }
    entry();
    wr(LAPIC_SVR, 0x1ff);
    return 0;
}

static int teardown(void **state)
{
    for (unsigned k = 0; k < KINDS; k++)
        lapic_ops.destroy(t.apic[k]);
    return 0;
}

static void delivery_by_the_cpu(void **state)
{
    request(0x41, false);
    assert_int_equal(t.rvi, 0x41);
    assert_int_equal(taken(), 0x41);
    same_registers();
    request(0x38, false);
    assert_int_equal(taken(), 0);               /* below the one in service */
    request(0x91, false);
    assert_int_equal(taken(), 0x91);
    same_registers();
    wr(LAPIC_EOI, 0);
    assert_int_equal(taken(), 0);
    wr(LAPIC_EOI, 0);
    assert_int_equal(taken(), 0x38);
    same_registers();
}

/* `pending` tells a halted CPU what would wake it, and never that there is nothing to look at. */
static void pending_says_what_would_wake(void **state)
{
    assert_int_equal(entry(), IRQ_VIRT);
    request(0x55, false);
    assert_int_equal(entry(), IRQ_VIRT | 0x55);
    taken();
    request(0x31, false);
    assert_int_equal(entry(), IRQ_VIRT);        /* below the one in service */
}

static void tpr_holds_back(void **state)
{
    wr(LAPIC_TPR, 0x60);
    request(0x61, false);
    assert_int_equal(taken(), 0);
    wr(LAPIC_TPR, 0x50);
    assert_int_equal(taken(), 0x61);
    same_registers();
}

/* Only the EOI of a level-triggered vector leaves the guest. */
static void eoi_of_level_exits(void **state)
{
    request(0x61, true);
    request(0x72, false);
    assert_int_equal(taken(), 0x72);
    wr(LAPIC_EOI, 0);
    assert_int_equal(t.neois[VIRT], 0);
    assert_int_equal(taken(), 0x61);
    wr(LAPIC_EOI, 0);
    assert_int_equal(t.neois[VIRT], 1);
    same_registers();
    request(0x61, false);                       /* the same vector as an edge now */
    taken();
    wr(LAPIC_EOI, 0);
    assert_int_equal(t.neois[VIRT], 1);
    same_registers();
}

/* The CPU stores what the guest writes before the model hears of it. */
static void registers_written_through_the_page(void **state)
{
    wr(LAPIC_ID, 0xff000000);
    wr(LAPIC_LDR, 0x12345678);
    wr(LAPIC_DFR, 0x0);
    wr(LAPIC_LVT_TIMER, 0xffffffff & ~(uint32_t)LVT_TIMER_DEADLINE);
    wr(LAPIC_LVT_LINT0, 0xffffffff);
    wr(LAPIC_LVT_LINT1, 0xffffffff);
    wr(LAPIC_LVT_ERROR, 0xfffe00fe);
    wr(LAPIC_TIMER_DIVIDE, 0xff);
    wr(LAPIC_ICR_HI, 0xffffffff);
    wr(LAPIC_ESR, 0xffffffff);
    same_registers();
    wr(LAPIC_ICR, 0x4005);                      /* an illegal vector: the error interrupt, vector FEh */
    assert_int_equal(taken(), 0xfe);
    wr(LAPIC_ESR, 0);
    assert_int_equal(rd(VIRT, LAPIC_ESR), LAPIC_ESR_SEND_ILLEGAL);
    same_registers();
    wr(LAPIC_SVR, 0xff);
    same_registers();
}

static void timer_keeps_its_count(void **state)
{
    wr(LAPIC_LVT_TIMER, 0x30);
    wr(LAPIC_TIMER_DIVIDE, TIMER_DIVIDE_1);
    wr(LAPIC_TIMER_INIT, 100000);
    host_clock_advance(30000);
    wr(LAPIC_TIMER_DIVIDE, 0);                  /* by 2 from here on: twice as long */
    same_registers();
    host_clock_advance(139998);
    same_registers();
    assert_int_equal(taken(), 0);
    host_clock_advance(4);
    entry();
    assert_int_equal(taken(), 0x30);
    wr(LAPIC_EOI, 0);
    wr(LAPIC_LVT_TIMER, 0x31 | LVT_TIMER_DEADLINE);
    wr(LAPIC_TIMER_INIT, 5000);                 /* ignored in this mode */
    same_registers();
}

static void x2apic(void **state)
{
    for (unsigned k = 0; k < KINDS; k++)
        assert_true(t.chip[k].msr_write(t.chip[k].apic, MSR_APIC_BASE, LAPIC_DEFAULT_BASE | APIC_BASE_ENABLE | APIC_BASE_X2APIC | APIC_BASE_BSP));
    entry();
    assert_true(t.loaded.x2apic && !t.loaded.xapic);
    assert_int_equal(*reg(LAPIC_ID), 3);
    *reg(LAPIC_SELF_IPI) = 0x77;                /* the CPU leaves it to us unless it sets the bit itself */
    t.chip[VIRT].wrote(t.chip[VIRT].apic, LAPIC_SELF_IPI);
    assert_int_equal(entry(), IRQ_VIRT | 0x77);
    for (unsigned k = 0; k < KINDS; k++)
        assert_true(t.chip[k].msr_write(t.chip[k].apic, MSR_APIC_BASE, LAPIC_DEFAULT_BASE | APIC_BASE_BSP));
    entry();
    assert_false(t.loaded.x2apic || t.loaded.xapic || t.rvi || t.svi);
}

static void init_forgets(void **state)
{
    request(0x41, false);
    taken();
    lapic_deliver(t.apic[VIRT], APIC_FIXED, 0x42, false);       /* posted, not merged */
    t.chip[VIRT].init(t.chip[VIRT].apic);
    assert_int_equal(entry(), IRQ_VIRT);
    assert_int_equal(t.rvi | t.svi, 0);
}

/* What is posted while the VM stands still is part of its state. */
static void snapshot(void **state)
{
    uint8_t a[4096];
    struct snap s;
    request(0x41, false);
    taken();
    lapic_deliver(t.apic[VIRT], APIC_FIXED, 0x91, true);
    snap_init_save(&s, a, sizeof a);
    assert_int_equal(lapic_ops.snap(t.apic[VIRT], &s), 0);
    size_t len = s.pos;
    lapic_ops.reset(t.apic[VIRT], GDEV_RESET);
    snap_init_load(&s, a, len);
    assert_int_equal(lapic_ops.snap(t.apic[VIRT], &s), 0);
    entry();
    assert_int_equal(t.svi, 0x41);
    assert_int_equal(cpu_delivers(), 0x91);
    cpu_eoi();
    assert_int_equal(t.neois[VIRT], 1);
}

/* An access that the CPU cannot carry out reaches the model: EOI by an emulated instruction. */
static void eoi_by_the_model(void **state)
{
    uint32_t zero = 0;
    request(0x41, true);
    request(0x52, false);
    taken();
    for (unsigned n = 0; n < 2; n++) {
        for (unsigned k = 0; k < KINDS; k++)
            assert_int_equal(t.chip[k].mmio(t.chip[k].apic, LAPIC_EOI, true, &zero), 0);
        entry();
        same_registers();
        taken();
    }
    assert_int_equal(t.neois[VIRT], 1);
}

static uint32_t rnd(void)
{
    static uint64_t s = 88172645463325252ull;
    s ^= s << 13, s ^= s >> 7, s ^= s << 17;
    return (uint32_t)(s >> 16);
}

static void any_programming_looks_the_same(void **state)
{
    static const uint16_t off[] = { LAPIC_LDR, LAPIC_DFR, LAPIC_LVT_TIMER, LAPIC_LVT_THERMAL, LAPIC_LVT_LINT1, LAPIC_LVT_ERROR, LAPIC_TIMER_DIVIDE, LAPIC_ICR_HI, LAPIC_ESR };
    for (unsigned n = 0; n < 200000; n++) {
        uint32_t r = rnd();
        switch (r & 7) {
        case 0: case 1:
            request((uint8_t)(16 + (r >> 8) % 240), r & 0x80);
            break;
        case 2:
            taken();
            break;
        case 3: case 4:
            wr(LAPIC_EOI, rnd());
            break;
        case 5:
            wr(LAPIC_TPR, rnd() & 0x7f);
            break;
        case 6:
            wr(off[(r >> 8) % ARRAY_SIZE(off)], rnd());
            break;
        case 7:
            wr(LAPIC_ICR, ICR_SELF | APIC_FIXED | (rnd() & 0xff));
            break;
        }
        if (!(n % 16))
            same_registers();
    }
}

/* Others post while the CPU takes: nothing is lost, nothing comes twice. */
static uint32_t in_flight[256];
static uint32_t stop_sending;
static void sender(void *arg)
{
    for (unsigned i = 0; !atomic_load(&stop_sending); i++) {
        uint8_t v = (uint8_t)(32 + (i * 7 + (uintptr_t)arg * 31) % 200);
        if (!atomic_xchg(&in_flight[v], 1u))
            lapic_deliver(t.apic[VIRT], APIC_FIXED, v, false);
    }
}

static void concurrent_senders(void **state)
{
    struct thread *th[2] = { thread_start("a", sender, (void *)1), thread_start("b", sender, (void *)2) };
    for (unsigned n = 0; n < 50000; ) {
        entry();
        uint8_t v = cpu_delivers();
        if (!v)
            continue;
        assert_int_equal(atomic_xchg(&in_flight[v], 0u), 1);
        cpu_eoi();
        n++;
    }
    atomic_store(&stop_sending, 1u);
    thread_join(th[0]);
    thread_join(th[1]);
    entry();
    for (uint8_t v; (v = cpu_delivers()) != 0; cpu_eoi())
        atomic_store(&in_flight[v], 0u);
    for (unsigned v = 0; v < 256; v++)
        assert_int_equal(in_flight[v], 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(delivery_by_the_cpu), T(pending_says_what_would_wake), T(tpr_holds_back), T(eoi_of_level_exits), T(registers_written_through_the_page), T(timer_keeps_its_count),
        T(x2apic), T(init_forgets), T(snapshot), T(eoi_by_the_model), T(any_programming_looks_the_same), T(concurrent_senders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
