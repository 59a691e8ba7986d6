#include "tests/host/test.h"
#include "tests/host/port_host.h"
#include "tests/host/wires.h"
#include "guestdev/lapic.h"
#include "kernel/hw/msr.h"

#include <sched.h>

enum { NCPUS = 3 };

static struct {
    struct vmclock clock;
    struct apic_fabric fabric;
    struct fake_vcpu cpu[NCPUS];
    struct lapic *apic[NCPUS];
    struct vcpu_irqchip chip[NCPUS];
    int pic_vector, acked;              /* the PIC's side of ExtINT */
    uint8_t eois[8];
    unsigned neois;
    uint64_t moved_to;
} t;

static int pic_pending_fake(void *arg) { return t.pic_vector; }
static void pic_intack_fake(void *arg, int vector)
{
    t.acked = vector;
    t.pic_vector = -1;
    lapic_lint(t.apic[0], 0, false);
}
static void eoi(void *arg, uint8_t vector) { t.eois[t.neois++ % 8] = vector; }
static void moved(void *arg, uint32_t id, uint64_t base) { t.moved_to = base; }

static uint32_t rd(unsigned cpu, unsigned off)
{
    uint32_t v = 0xdeadbeef;
    assert_int_equal(t.chip[cpu].mmio(t.chip[cpu].apic, off, false, &v), 0);
    return v;
}
static void wr(unsigned cpu, unsigned off, uint32_t v) { assert_int_equal(t.chip[cpu].mmio(t.chip[cpu].apic, off, true, &v), 0); }
static int pending(unsigned cpu) { return t.chip[cpu].pending(t.chip[cpu].apic); }
static void take(unsigned cpu, int vector)
{
    assert_int_equal(pending(cpu), vector);
    t.chip[cpu].accept(t.chip[cpu].apic, vector);
}
static bool msr_wr(unsigned cpu, uint32_t msr, uint64_t v) { return t.chip[cpu].msr_write(t.chip[cpu].apic, msr, v); }
static uint64_t msr_rd(unsigned cpu, uint32_t msr)
{
    uint64_t v;
    assert_true(t.chip[cpu].msr_read(t.chip[cpu].apic, msr, &v));
    return v;
}
static bool msr_gp(unsigned cpu, uint32_t msr)
{
    uint64_t v;
    return !t.chip[cpu].msr_read(t.chip[cpu].apic, msr, &v);
}
static void enable(unsigned cpu) { wr(cpu, LAPIC_SVR, 0x1ff); }
static void x2(unsigned cpu) { assert_true(msr_wr(cpu, MSR_APIC_BASE, msr_rd(cpu, MSR_APIC_BASE) | APIC_BASE_X2APIC)); }

static int setup(void **state)
{
    t = (__typeof__(t)){ .pic_vector = -1, .acked = -1 };
    host_clock_manual(true);
    vmclock_init(&t.clock);
    vmclock_start(&t.clock);
    apic_fabric_init(&t.fabric);
    t.fabric.pic.pending = pic_pending_fake;
    t.fabric.pic.intack = pic_intack_fake;
    t.fabric.ioapic.eoi = eoi;
    for (unsigned i = 0; i < NCPUS; i++) {
        t.cpu[i].clock = &t.clock;
        struct lapic_config c = { .apic_id = i, .bsp = !i, .x2apic = true, .tsc_deadline = true, .phys_bits = 40, .clock = &t.clock,
                                  .wires = fake_vcpu_wires(&t.cpu[i]), .moved = moved };
        t.apic[i] = lapic_create(&c, &t.fabric);
        assert_non_null(t.apic[i]);
        lapic_irqchip(t.apic[i], &t.chip[i]);
    }
    return 0;
}

static int teardown(void **state)
{
    for (unsigned i = 0; i < NCPUS; i++)
        lapic_ops.destroy(t.apic[i]);
    assert_true(list_empty(&t.clock.timers));
    return 0;
}

/* SDM "Local APIC State After Power-Up or Reset". */
static void reset_values(void **state)
{
    assert_int_equal(rd(0, LAPIC_VERSION), 0x00050014);
    assert_int_equal(rd(2, LAPIC_ID), 2u << 24);
    assert_int_equal(rd(0, LAPIC_SVR), 0xff);
    assert_int_equal(rd(0, LAPIC_DFR), 0xffffffff);
    assert_int_equal(rd(0, LAPIC_LDR), 0);
    for (unsigned off = LAPIC_LVT_TIMER; off <= LAPIC_LVT_ERROR; off += 16)
        assert_int_equal(rd(0, off), LVT_MASKED);
    assert_int_equal(msr_rd(0, MSR_APIC_BASE), 0xfee00900);
    assert_int_equal(msr_rd(1, MSR_APIC_BASE), 0xfee00800);
    wr(0, LAPIC_LVT_TIMER, 0x30);               /* software-disabled: the mask bit stays */
    assert_int_equal(rd(0, LAPIC_LVT_TIMER), 0x30 | LVT_MASKED);
    lapic_deliver(t.apic[0], APIC_FIXED, 0x40, false);
    assert_int_equal(pending(0), IRQ_NONE);
    lapic_deliver(t.apic[0], APIC_NMI, 0, false);
    assert_int_equal(t.cpu[0].nmis, 1);
}

/* SDM "Interrupt, Task, and Processor Priority". */
static void priority(void **state)
{
    enable(0);
    lapic_deliver(t.apic[0], APIC_FIXED, 0x31, false);
    lapic_deliver(t.apic[0], APIC_FIXED, 0x55, false);
    lapic_deliver(t.apic[0], APIC_FIXED, 0xe0, false);
    assert_int_equal(rd(0, LAPIC_IRR + 0x70), 1);
    take(0, 0xe0);
    assert_int_equal(rd(0, LAPIC_ISR + 0x70), 1);
    assert_int_equal(rd(0, LAPIC_IRR + 0x70), 0);
    assert_int_equal(rd(0, LAPIC_PPR), 0xe0);
    assert_int_equal(pending(0), IRQ_NONE);     /* 55h waits for the EOI */
    lapic_deliver(t.apic[0], APIC_FIXED, 0xef, false);
    assert_int_equal(pending(0), IRQ_NONE);     /* same class */
    lapic_deliver(t.apic[0], APIC_FIXED, 0xf0, false);
    take(0, 0xf0);
    unsigned kicks = t.cpu[0].irqs;
    wr(0, LAPIC_EOI, 0);
    assert_int_equal(t.cpu[0].irqs, kicks + 1); /* there is one more to look at */
    assert_int_equal(rd(0, LAPIC_PPR), 0xe0);
    wr(0, LAPIC_EOI, 0);
    take(0, 0xef);
    wr(0, LAPIC_EOI, 0);
    take(0, 0x55);
    wr(0, LAPIC_EOI, 0);
    wr(0, LAPIC_TPR, 0x34);
    assert_int_equal(rd(0, LAPIC_PPR), 0x34);
    assert_int_equal(pending(0), 0x31);         /* the CPU compares TPR */
    take(0, 0x31);
    assert_int_equal(rd(0, LAPIC_PPR), 0x34);   /* class of TPR ≥ class of ISRV: PPR = TPR */
    wr(0, LAPIC_TPR, 0x20);
    assert_int_equal(rd(0, LAPIC_PPR), 0x30);
    wr(0, LAPIC_EOI, 0);
    kicks = t.cpu[0].irqs;
    wr(0, LAPIC_EOI, 0);                        /* nothing in service: no effect */
    assert_int_equal(t.cpu[0].irqs, kicks);
    assert_int_equal(pending(0), IRQ_NONE);
    assert_int_equal(t.neois, 0);
}

static void same_vector_merges_and_one_more_is_kept(void **state)
{
    enable(0);
    lapic_deliver(t.apic[0], APIC_FIXED, 0x40, false);
    lapic_deliver(t.apic[0], APIC_FIXED, 0x40, false);
    take(0, 0x40);
    lapic_deliver(t.apic[0], APIC_FIXED, 0x40, false);
    wr(0, LAPIC_EOI, 0);
    take(0, 0x40);
    wr(0, LAPIC_EOI, 0);
    assert_int_equal(pending(0), IRQ_NONE);
}

static void eoi_of_level_goes_to_the_ioapic(void **state)
{
    enable(0);
    lapic_deliver(t.apic[0], APIC_FIXED, 0x61, true);
    assert_int_equal(rd(0, LAPIC_TMR + 0x30), 2);
    take(0, 0x61);
    wr(0, LAPIC_EOI, 0);
    assert_int_equal(t.neois, 1);
    assert_int_equal(t.eois[0], 0x61);
    lapic_deliver(t.apic[0], APIC_FIXED, 0x61, false);
    assert_int_equal(rd(0, LAPIC_TMR + 0x30), 0);
    take(0, 0x61);
    wr(0, LAPIC_EOI, 0);
    assert_int_equal(t.neois, 1);
}

static void errors(void **state)
{
    enable(0);
    wr(0, LAPIC_LVT_ERROR, 0xfe);
    lapic_deliver(t.apic[0], APIC_FIXED, 15, false);
    take(0, 0xfe);
    wr(0, LAPIC_EOI, 0);
    assert_int_equal(rd(0, LAPIC_ESR), 0);      /* visible after the write that latches it */
    wr(0, LAPIC_ESR, 0);
    assert_int_equal(rd(0, LAPIC_ESR), LAPIC_ESR_RECV_ILLEGAL);
    wr(0, LAPIC_ICR, 5 | ICR_SELF);
    rd(0, 0x3f0);
    rd(0, 0x000);
    wr(0, LAPIC_ESR, 0);
    assert_int_equal(rd(0, LAPIC_ESR), LAPIC_ESR_SEND_ILLEGAL | LAPIC_ESR_ILLEGAL_REG);
    wr(0, LAPIC_ESR, 0);
    assert_int_equal(rd(0, LAPIC_ESR), 0);
    assert_int_equal(rd(0, 0xb0), 0);           /* EOI is write-only: no error */
    wr(0, LAPIC_LVT_ERROR, 3);                  /* an illegal error vector must not recurse */
    rd(0, 0x3f0);
    wr(0, LAPIC_ESR, 0);
    assert_int_equal(rd(0, LAPIC_ESR), LAPIC_ESR_ILLEGAL_REG);
}

static void ipis(void **state)
{
    for (unsigned i = 0; i < NCPUS; i++)
        enable(i);
    wr(0, LAPIC_ICR_HI, 2u << 24);
    wr(0, LAPIC_ICR, 0x41);
    assert_int_equal(pending(2), 0x41);
    assert_int_equal(pending(0), IRQ_NONE);
    assert_int_equal(pending(1), IRQ_NONE);
    assert_int_equal(rd(0, LAPIC_ICR), 0x41);
    wr(0, LAPIC_ICR, 0x42 | ICR_SELF);
    take(0, 0x42);
    wr(0, LAPIC_ICR, 0x43 | ICR_ALL);
    for (unsigned i = 0; i < NCPUS; i++)
        assert_int_equal(rd(i, LAPIC_IRR + 0x20) & 8, 8);
    wr(1, LAPIC_ICR, APIC_NMI | ICR_ALL_BUT_SELF);
    assert_int_equal(t.cpu[0].nmis + 10 * t.cpu[1].nmis + 100 * t.cpu[2].nmis, 101);
    wr(0, LAPIC_ICR_HI, 1u << 24);
    wr(0, LAPIC_ICR, APIC_INIT | ICR_LEVEL | ICR_ASSERT);
    wr(0, LAPIC_ICR, APIC_INIT | ICR_LEVEL);            /* de-assert: nothing */
    wr(0, LAPIC_ICR, APIC_STARTUP | 0x9a);
    assert_int_equal(t.cpu[1].inits, 1);
    assert_int_equal(t.cpu[1].sipis, 1);
    assert_int_equal(t.cpu[1].sipi_vector, 0x9a);
    wr(0, LAPIC_ICR, APIC_SMI);
    assert_int_equal(t.cpu[1].smis, 1);
    wr(0, LAPIC_ICR_HI, 0xffu << 24);
    wr(0, LAPIC_ICR, APIC_NMI);
    assert_int_equal(t.cpu[0].nmis + 10 * t.cpu[1].nmis + 100 * t.cpu[2].nmis, 212);
    wr(0, LAPIC_ICR_HI, 77u << 24);
    wr(0, LAPIC_ICR, 0x44);                             /* nobody there */
}

static void logical_destinations(void **state)
{
    struct apic_msg m = { .delivery = APIC_FIXED, .logical = true };
    for (unsigned i = 0; i < NCPUS; i++) {
        enable(i);
        wr(i, LAPIC_LDR, 1u << (24 + i));
    }
    m.vector = 0x50, m.dest = 0x05;
    apic_send(&t.fabric, &m);
    assert_int_equal(pending(0), 0x50);
    assert_int_equal(pending(1), IRQ_NONE);
    assert_int_equal(pending(2), 0x50);
    for (unsigned i = 0; i < NCPUS; i++) {              /* cluster model: CPUs 0, 1 in cluster 0, CPU 2 in cluster 1 */
        wr(i, LAPIC_DFR, 0);
        wr(i, LAPIC_LDR, (i == 2 ? 0x11u : 1u << i) << 24);
    }
    m.vector = 0x60, m.dest = 0x03;
    apic_send(&t.fabric, &m);
    m.vector = 0x70, m.dest = 0xf1;                     /* member 0 of every cluster */
    apic_send(&t.fabric, &m);
    assert_int_equal(pending(0), 0x70);
    assert_int_equal(pending(1), 0x60);
    assert_int_equal(pending(2), 0x70);
}

static void lowest_priority(void **state)
{
    struct apic_msg m = { .delivery = APIC_LOWEST, .logical = true, .dest = 7 };
    for (unsigned i = 0; i < NCPUS; i++) {
        enable(i);
        wr(i, LAPIC_LDR, 1u << (24 + i));
        wr(i, LAPIC_TPR, 0x50);
    }
    wr(1, LAPIC_TPR, 0x40);
    m.vector = 0x90;
    apic_send(&t.fabric, &m);
    assert_int_equal(pending(1), 0x90);
    assert_int_equal(pending(0), IRQ_NONE);
    assert_int_equal(pending(2), IRQ_NONE);
    wr(1, LAPIC_SVR, 0xff);                             /* a disabled one is never chosen */
    m.vector = 0x91;
    apic_send(&t.fabric, &m);
    assert_true((pending(0) == 0x91) != (pending(2) == 0x91));
}

static void msi(void **state)
{
    for (unsigned i = 0; i < NCPUS; i++)
        enable(i);
    apic_msi(&t.fabric, 0xfee01000, 0x4055);
    assert_int_equal(pending(1), 0x55);
    apic_msi(&t.fabric, 0xfee02000, 0xc066);
    assert_int_equal(rd(2, LAPIC_TMR + 0x30), 1u << 6);
    apic_msi(&t.fabric, 0x1fee00000, 0x77);             /* not the interrupt window */
    apic_msi(&t.fabric, 0xfed00000, 0x77);
    assert_int_equal(pending(0), IRQ_NONE);
    apic_msi(&t.fabric, 0xfeeff000, APIC_NMI);
    assert_int_equal(t.cpu[0].nmis + t.cpu[1].nmis + t.cpu[2].nmis, 3);
}

static void extint(void **state)
{
    t.pic_vector = 0x08;
    lapic_lint(t.apic[0], 0, true);
    assert_int_equal(t.cpu[0].irqs, 1);
    assert_int_equal(pending(0), IRQ_NONE);             /* LINT0 is masked after reset */
    enable(0);
    lapic_deliver(t.apic[0], APIC_FIXED, 0xf5, false);
    take(0, 0xf5);
    lapic_virtual_wire(t.apic[0]);
    take(0, IRQ_EXTINT | 0x08);                         /* not held back by what is in service */
    assert_int_equal(t.acked, 0x08);
    assert_int_equal(pending(0), IRQ_NONE);
    lapic_lint(t.apic[0], 1, true);
    assert_int_equal(t.cpu[0].nmis, 1);
    /* Hardware-disabled: the pins are the CPU's own. */
    assert_true(msr_wr(0, MSR_APIC_BASE, 0xfee00100));
    lapic_lint(t.apic[0], 1, false);
    lapic_lint(t.apic[0], 1, true);
    assert_int_equal(t.cpu[0].nmis, 2);
    t.pic_vector = 0x0c;
    lapic_lint(t.apic[0], 0, true);
    assert_int_equal(pending(0), IRQ_EXTINT | 0x0c);
    uint32_t v;
    assert_int_not_equal(t.chip[0].mmio(t.chip[0].apic, 0x20, false, &v), 0);
    /* As a message from the IOAPIC. */
    enable(1);
    struct apic_msg m = { .delivery = APIC_EXTINT, .dest = 1 };
    apic_send(&t.fabric, &m);
    assert_int_equal(pending(1), IRQ_EXTINT | 0x0c);
    t.pic_vector = -1;
    assert_int_equal(pending(1), IRQ_NONE);
}

static void lint0_level(void **state)
{
    enable(0);
    wr(0, LAPIC_LVT_LINT0, 0x45 | LVT_LEVEL);
    lapic_lint(t.apic[0], 0, true);
    take(0, 0x45);
    assert_int_equal(rd(0, LAPIC_LVT_LINT0) & LVT_REMOTE_IRR, LVT_REMOTE_IRR);
    wr(0, LAPIC_EOI, 0);
    take(0, 0x45);                                      /* still high */
    lapic_lint(t.apic[0], 0, false);
    wr(0, LAPIC_EOI, 0);
    assert_int_equal(pending(0), IRQ_NONE);
    assert_int_equal(rd(0, LAPIC_LVT_LINT0), 0x45 | LVT_LEVEL);
}

static void one_shot_timer(void **state)
{
    enable(0);
    wr(0, LAPIC_LVT_TIMER, 0x30);
    wr(0, LAPIC_TIMER_DIVIDE, TIMER_DIVIDE_16);
    wr(0, LAPIC_TIMER_INIT, 1000);
    host_clock_advance(8000);
    assert_int_equal(rd(0, LAPIC_TIMER_CURRENT), 500);
    assert_int_equal(pending(0), IRQ_NONE);
    host_clock_advance(8000);
    assert_int_equal(rd(0, LAPIC_TIMER_CURRENT), 0);
    take(0, 0x30);
    wr(0, LAPIC_EOI, 0);
    host_clock_advance(1000000);
    assert_int_equal(pending(0), IRQ_NONE);
    wr(0, LAPIC_TIMER_INIT, 1000);
    wr(0, LAPIC_TIMER_INIT, 0);
    host_clock_advance(1000000);
    assert_int_equal(pending(0), IRQ_NONE);
    wr(0, LAPIC_TIMER_INIT, 1000);
    wr(0, LAPIC_LVT_TIMER, 0x30 | LVT_MASKED);
    host_clock_advance(1000000);
    assert_int_equal(pending(0), IRQ_NONE);
    /* Divider changed on the way: 500 left, now by 1. */
    wr(0, LAPIC_LVT_TIMER, 0x30);
    wr(0, LAPIC_TIMER_INIT, 1000);
    host_clock_advance(8000);
    wr(0, LAPIC_TIMER_DIVIDE, TIMER_DIVIDE_1);
    assert_int_equal(rd(0, LAPIC_TIMER_CURRENT), 500);
    host_clock_advance(500);
    take(0, 0x30);
}

static void periodic_timer_does_not_drift(void **state)
{
    enable(0);
    wr(0, LAPIC_LVT_TIMER, 0x30 | LVT_TIMER_PERIODIC);
    wr(0, LAPIC_TIMER_DIVIDE, TIMER_DIVIDE_1);
    wr(0, LAPIC_TIMER_INIT, 1000003);
    for (unsigned i = 0; i < 1000; i++) {
        host_clock_advance(1000003);
        take(0, 0x30);
        wr(0, LAPIC_EOI, 0);
        assert_int_equal(rd(0, LAPIC_TIMER_CURRENT), 1000003);
    }
    host_clock_advance(1);
    assert_int_equal(rd(0, LAPIC_TIMER_CURRENT), 1000002);
    /* A period too short for anybody: merged, and the host survives. */
    wr(0, LAPIC_TIMER_INIT, 1);
    host_clock_advance(1000000);
    take(0, 0x30);
    wr(0, LAPIC_LVT_TIMER, 0x30);                       /* to one-shot: the last tick ends it */
    host_clock_advance(1000000);
    wr(0, LAPIC_EOI, 0);
    take(0, 0x30);
    wr(0, LAPIC_EOI, 0);
    host_clock_advance(1000000);
    assert_int_equal(pending(0), IRQ_NONE);
}

static void tsc_deadline(void **state)
{
    enable(0);
    assert_true(msr_wr(0, MSR_TSC_DEADLINE, 5000));     /* not in that mode: ignored */
    assert_int_equal(msr_rd(0, MSR_TSC_DEADLINE), 0);
    wr(0, LAPIC_LVT_TIMER, 0x31 | LVT_TIMER_DEADLINE);
    wr(0, LAPIC_TIMER_INIT, 100);                       /* ignored in that mode */
    assert_true(msr_wr(0, MSR_TSC_DEADLINE, 5000));
    assert_int_equal(msr_rd(0, MSR_TSC_DEADLINE), 5000);
    assert_int_equal(rd(0, LAPIC_TIMER_CURRENT), 0);
    host_clock_advance(2499);
    assert_int_equal(pending(0), IRQ_NONE);
    host_clock_advance(1);
    take(0, 0x31);
    wr(0, LAPIC_EOI, 0);
    assert_int_equal(msr_rd(0, MSR_TSC_DEADLINE), 0);
    assert_true(msr_wr(0, MSR_TSC_DEADLINE, 1));        /* past: at once */
    take(0, 0x31);
    wr(0, LAPIC_EOI, 0);
    assert_true(msr_wr(0, MSR_TSC_DEADLINE, 9000));
    assert_true(msr_wr(0, MSR_TSC_DEADLINE, 0));
    host_clock_advance(1000000);
    assert_int_equal(pending(0), IRQ_NONE);
    assert_true(msr_wr(0, MSR_TSC_DEADLINE, ~0ull));
    wr(0, LAPIC_LVT_TIMER, 0x31);                       /* leaving the mode disarms */
    assert_int_equal(msr_rd(0, MSR_TSC_DEADLINE), 0);
    assert_false(t.chip[0].msr_write(t.chip[0].apic, 0x6e1, 0));
}

/* SDM "x2APIC State Transitions". */
static void mode_transitions(void **state)
{
    uint64_t en = APIC_BASE_ENABLE, ext = APIC_BASE_X2APIC, base = 0xfee00000;
    assert_false(msr_wr(1, MSR_APIC_BASE, base | ext));         /* invalid */
    assert_true(msr_wr(1, MSR_APIC_BASE, base));                /* xAPIC → disabled */
    assert_int_equal(t.moved_to, 0);
    assert_false(msr_wr(1, MSR_APIC_BASE, base | en | ext));    /* disabled → x2APIC */
    assert_true(msr_wr(1, MSR_APIC_BASE, base | en));
    assert_true(msr_wr(1, MSR_APIC_BASE, base | en | ext));
    assert_false(msr_wr(1, MSR_APIC_BASE, base | en));          /* x2APIC → xAPIC */
    assert_int_equal(msr_rd(1, 0x802), 1);
    assert_int_equal(msr_rd(1, 0x80d), 2);
    uint32_t v = 0;
    assert_int_not_equal(t.chip[1].mmio(t.chip[1].apic, 0x20, false, &v), 0);
    t.chip[1].init(t.chip[1].apic);                             /* INIT keeps the mode */
    assert_int_equal(msr_rd(1, MSR_APIC_BASE), base | en | ext);
    assert_int_equal(msr_rd(1, 0x80d), 2);
    assert_true(msr_wr(1, MSR_APIC_BASE, base));
    assert_true(msr_gp(1, 0x802));
    /* Reserved bits; relocation. */
    assert_false(msr_wr(0, MSR_APIC_BASE, base | en | 1));
    assert_false(msr_wr(0, MSR_APIC_BASE, base | en | BIT(9)));
    assert_false(msr_wr(0, MSR_APIC_BASE, BIT(40) | en));
    assert_true(msr_wr(0, MSR_APIC_BASE, 0x12345000 | en | APIC_BASE_BSP));
    assert_int_equal(t.moved_to, 0x12345000);
}

static void x2apic_registers(void **state)
{
    for (unsigned i = 0; i < NCPUS; i++) {
        x2(i);
        assert_true(msr_wr(i, 0x80f, 0x1ff));
    }
    assert_true(msr_wr(0, 0x830, 2ull << 32 | 0x51));
    assert_int_equal(pending(2), 0x51);
    assert_int_equal(msr_rd(0, 0x830), 2ull << 32 | 0x51);
    assert_true(msr_wr(0, 0x83f, 0x52));
    assert_int_equal(pending(0), 0x52);
    assert_true(msr_wr(0, 0x830, (uint64_t)0x00006 << 32 | ICR_LOGICAL | 0x53));        /* cluster 0, members 1 and 2 */
    assert_int_equal(pending(1), 0x53);
    assert_int_equal(pending(2), 0x53);
    assert_true(msr_wr(0, 0x830, 0xffffffffull << 32 | APIC_NMI));
    assert_int_equal(t.cpu[0].nmis + t.cpu[1].nmis + t.cpu[2].nmis, 3);
    static const uint32_t no_read[] = { 0x80b, 0x83f, 0x80e, 0x809, 0x80c, 0x831, 0x800, 0x840, 0x8ff, 0x82f };
    for (unsigned i = 0; i < ARRAY_SIZE(no_read); i++)
        assert_true(msr_gp(0, no_read[i]));
    static const struct { uint32_t msr; uint64_t val; } no_write[] = {
        { 0x802, 0 }, { 0x803, 0 }, { 0x80d, 0 }, { 0x80a, 0 }, { 0x839, 0 }, { 0x810, 0 }, { 0x831, 0 }, { 0x80e, 0 },
        { 0x80b, 1 }, { 0x828, 1 }, { 0x808, 0x100 }, { 0x80f, 0x1000 }, { 0x83f, 0x100 }, { 0x832, BIT(19) }, { 0x837, BIT(8) }, { 0x83e, 4 }, { 0x838, BIT(32) },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(no_write); i++)
        assert_false(msr_wr(0, no_write[i].msr, no_write[i].val));
    assert_true(msr_wr(0, 0x80b, 0));
    assert_true(msr_wr(0, 0x828, 0));
    /* 8-bit messages reach x2APICs too: logical within cluster 0. */
    struct apic_msg m = { .delivery = APIC_FIXED, .vector = 0x99, .logical = true, .dest = 2 };
    apic_send(&t.fabric, &m);
    assert_int_equal(pending(1), 0x99);
}

static void init_and_reset(void **state)
{
    enable(1);
    lapic_deliver(t.apic[1], APIC_FIXED, 0x41, false);
    take(1, 0x41);
    lapic_deliver(t.apic[1], APIC_FIXED, 0x81, false);
    wr(1, LAPIC_LVT_TIMER, 0x30 | LVT_TIMER_PERIODIC);
    wr(1, LAPIC_TIMER_INIT, 100000);
    t.chip[1].init(t.chip[1].apic);
    assert_int_equal(rd(1, LAPIC_SVR), 0xff);
    assert_int_equal(pending(1), IRQ_NONE);
    enable(1);
    wr(1, LAPIC_LVT_TIMER, 0x30);
    host_clock_advance(10000000);
    assert_int_equal(pending(1), IRQ_NONE);
    lapic_deliver(t.apic[1], APIC_FIXED, 0x21, false);
    take(1, 0x21);
}

static size_t save(struct lapic *l, uint8_t *buf, size_t cap)
{
    struct snap s;
    snap_init_save(&s, buf, cap);
    assert_int_equal(lapic_ops.snap(l, &s), 0);
    return s.pos;
}

static void snapshot(void **state)
{
    uint8_t a[4096], b[4096];
    struct snap s;
    enable(1);
    lapic_deliver(t.apic[1], APIC_FIXED, 0x41, false);
    take(1, 0x41);
    lapic_deliver(t.apic[1], APIC_FIXED, 0x91, true);
    wr(1, LAPIC_LVT_TIMER, 0x30 | LVT_TIMER_PERIODIC);
    wr(1, LAPIC_TIMER_DIVIDE, TIMER_DIVIDE_1);
    wr(1, LAPIC_TIMER_INIT, 100000);
    host_clock_advance(40000);
    size_t len = save(t.apic[1], a, sizeof a);
    lapic_ops.reset(t.apic[1], GDEV_RESET);
    snap_init_load(&s, a, len);
    assert_int_equal(lapic_ops.snap(t.apic[1], &s), 0);
    assert_int_equal(save(t.apic[1], b, sizeof b), len);
    assert_memory_equal(a, b, len);
    take(1, 0x91);
    wr(1, LAPIC_EOI, 0);
    assert_int_equal(t.eois[0], 0x91);
    wr(1, LAPIC_EOI, 0);
    assert_int_equal(rd(1, LAPIC_TIMER_CURRENT), 60000);
    host_clock_advance(59999);
    assert_int_equal(pending(1), IRQ_NONE);
    host_clock_advance(1);
    assert_int_equal(pending(1), 0x30);
    snap_init_load(&s, a, len);                         /* another CPU's page */
    assert_int_not_equal(lapic_ops.snap(t.apic[2], &s), 0);
    assert_int_equal(rd(2, LAPIC_SVR), 0xff);
}

/* All CPUs send to one that takes: nothing is lost, nothing comes twice. */
static uint64_t sent[256];
static void sender(void *arg)
{
    for (unsigned i = 0; i < 20000; i++) {
        uint8_t v = 32 + (i * 7 + (uintptr_t)arg * 31) % 200;
        lapic_deliver(t.apic[0], APIC_FIXED, v, false);
        atomic_add(&sent[v], 1ull);
    }
}

static void concurrent_senders(void **state)
{
    uint64_t got[256] = { 0 };
    enable(0);
    host_clock_manual(false);
    struct thread *th[2] = { thread_start("a", sender, (void *)1), thread_start("b", sender, (void *)2) };
    unsigned idle = 0;
    for (uint64_t until = clock_ns() + 20000000000ull; idle < 1000 && clock_ns() < until; ) {
        int v = pending(0);
        if (v == IRQ_NONE) {
            idle++;
            thread_yield();
            continue;
        }
        idle = 0;
        t.chip[0].accept(t.chip[0].apic, v);
        got[v]++;
        wr(0, LAPIC_EOI, 0);
    }
    thread_join(th[0]);
    thread_join(th[1]);
    for (int v; (v = pending(0)) != IRQ_NONE; got[v]++) {
        t.chip[0].accept(t.chip[0].apic, v);
        wr(0, LAPIC_EOI, 0);
    }
    for (unsigned v = 32; v < 232; v++)
        assert_true(got[v] >= 1 && got[v] <= sent[v]);
    assert_int_equal(t.chip[0].page[LAPIC_IRR], 0);
    host_clock_manual(true);
}

/* Real clock, expiries on another thread: however often a timer is set anew or stopped under way, the last setting comes, and a stopped one stays away. */
static void timer_against_its_expiry(void **state)
{
    enable(0);
    host_clock_manual(false);
    wr(0, LAPIC_TIMER_DIVIDE, TIMER_DIVIDE_1);
    for (unsigned i = 0; i < 3000; i++) {
        wr(0, LAPIC_LVT_TIMER, 0x30 | (i % 3 == 0 ? LVT_TIMER_PERIODIC : 0));
        for (unsigned k = 0; k < i % 5; k++)
            wr(0, LAPIC_TIMER_INIT, 500 + i * 37 % 60000);
        wr(0, LAPIC_TIMER_INIT, 1000 + i * 31 % 90000);
        uint64_t limit = clock_ns() + 10000000000ull;
        while (pending(0) != 0x30 && clock_ns() < limit)
            thread_yield();
        take(0, 0x30);
        wr(0, LAPIC_TIMER_INIT, 0);
        thread_yield();
        wr(0, LAPIC_EOI, 0);
        if (pending(0) == 0x30) {               /* an expiry that was on its way when the timer was stopped */
            take(0, 0x30);
            wr(0, LAPIC_EOI, 0);
        }
    }
    thread_sleep_until(clock_ns() + 2000000);
    int last = pending(0);
    if (last != IRQ_NONE) {
        take(0, last);
        wr(0, LAPIC_EOI, 0);
    }
    thread_sleep_until(clock_ns() + 2000000);
    assert_int_equal(pending(0), IRQ_NONE);
    host_clock_manual(true);
}

/*
 * The sender waits until its interrupt was taken before it sends the next one, of the same vector.  The guest takes it without telling: an acceptance that
 * comes later must not swallow the next.
 */
enum { TURNS = 20000 };
static unsigned handled;
static void one_by_one(void *arg)
{
    for (unsigned i = 0; i < TURNS; i++) {
        lapic_deliver(t.apic[0], APIC_FIXED, 0x61, false);
        while (atomic_load(&handled) <= i)
            sched_yield();
    }
}

static void none_is_lost_between_taking_and_accepting(void **state)
{
    enable(0);
    handled = 0;
    host_clock_manual(false);
    uint64_t deadline = clock_ns() + 60000000000ull;
    struct thread *other = thread_start("sender", one_by_one, NULL);
    for (unsigned n = 0; n < TURNS; ) {
        int v = pending(0);
        atomic_store_relaxed(t.chip[0].offered, (uint32_t)v);
        atomic_fence();
        if (v == IRQ_NONE) {
            assert_true(clock_ns() < deadline);
            sched_yield();
            continue;
        }
        atomic_store(&handled, ++n);            /* the guest's handler */
        if (n % 3)
            sched_yield();
        t.chip[0].accept(t.chip[0].apic, v);
        wr(0, LAPIC_EOI, 0);
    }
    thread_join(other);
    assert_int_equal(pending(0), IRQ_NONE);
    host_clock_manual(true);
}

/* Offered but not taken yet: the second is one with the first. */
static void two_before_taking_are_one(void **state)
{
    enable(0);
    lapic_deliver(t.apic[0], APIC_FIXED, 0x61, false);
    *t.chip[0].offered = (uint32_t)pending(0);
    unsigned kicks = t.cpu[0].irqs;
    lapic_deliver(t.apic[0], APIC_FIXED, 0x61, false);
    assert_int_equal(t.cpu[0].irqs, kicks + 1);         /* the vCPU must say whether it has it */
    *t.chip[0].offered = (uint32_t)pending(0);
    take(0, 0x61);
    wr(0, LAPIC_EOI, 0);
    assert_int_equal(pending(0), IRQ_NONE);
}

static void thousand(void **state)
{
    unsigned long before = port_alloc_count();
    for (unsigned i = 0; i < 1000; i++) {
        struct apic_fabric f;
        apic_fabric_init(&f);
        struct lapic_config c = { .apic_id = i % 255, .phys_bits = 48, .clock = &t.clock, .wires = fake_vcpu_wires(&t.cpu[0]) };
        struct lapic *l = lapic_create(&c, &f);
        assert_non_null(l);
        lapic_ops.destroy(l);
    }
    port_fail_alloc_after(1);
    struct apic_fabric f;
    apic_fabric_init(&f);
    assert_null(lapic_create(&(struct lapic_config){ .clock = &t.clock, .phys_bits = 40 }, &f));
    port_fail_alloc_after(-1);
    assert_int_equal(port_alloc_count(), before);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(reset_values), T(priority), T(same_vector_merges_and_one_more_is_kept), T(eoi_of_level_goes_to_the_ioapic), T(errors), T(ipis), T(logical_destinations),
        T(lowest_priority), T(msi), T(extint), T(lint0_level), T(one_shot_timer), T(periodic_timer_does_not_drift), T(tsc_deadline), T(mode_transitions),
        T(x2apic_registers), T(init_and_reset), T(snapshot), T(concurrent_senders), T(timer_against_its_expiry),
        T(none_is_lost_between_taking_and_accepting), T(two_before_taking_are_one), T(thousand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
