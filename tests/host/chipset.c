#include "tests/host/chipset.h"
#include "kernel/hw/hpet.h"
#include "kernel/lib/port.h"

static void isa(void *arg, unsigned irq, bool level)
{
    struct chipset *c = arg;
    pic_irq(c->pic, irq, level);
    ioapic_pin(c->ioapic, irq ? irq : 2, level);
}
static void pic_out(void *arg, unsigned pin, bool level)
{
    struct chipset *c = arg;
    lapic_lint(c->lapic[0], 0, level);
    ioapic_pin(c->ioapic, 0, level);
}
static void gsi(void *arg, unsigned n, bool level) { ioapic_pin(((struct chipset *)arg)->ioapic, n, level); }

static struct irqline isa_line(struct chipset *c, unsigned irq) { return (struct irqline){ isa, c, irq }; }

static void *add(struct chipset *c, const struct gdev_ops *ops, void *dev)
{
    ASSERT(dev && c->ndevs < CHIPSET_DEVS);
    c->dev[c->ndevs++] = (struct gdev){ ops, dev };
    return dev;
}
static void region(struct chipset *c, io_fn *fn, void *dev, unsigned len) { c->region[c->nregions++] = (struct chipset_region){ fn, dev, len }; }

static void add_apics(struct chipset *c)
{
    apic_fabric_init(&c->fabric);
    for (unsigned i = 0; i < CHIPSET_CPUS; i++) {
        c->cpu[i].clock = &c->clock;
        struct lapic_config lc = { .apic_id = i, .bsp = !i, .x2apic = true, .tsc_deadline = true, .phys_bits = 40, .clock = &c->clock,
                                   .wires = fake_vcpu_wires(&c->cpu[i]) };
        c->lapic[i] = add(c, &lapic_ops, lapic_create(&lc, &c->fabric));
        lapic_irqchip(c->lapic[i], &c->irqchip[i]);
        region(c, lapic_io, c->lapic[i], PAGE_SIZE);
    }
    c->ioapic = add(c, &ioapic_ops, ioapic_create((struct apic_wire){ apic_send, &c->fabric }, 0xf00000));
    c->pic = add(c, &pic_ops, pic_create((struct irqline){ pic_out, c, 0 }));
    c->fabric.ioapic.eoi = ioapic_eoi, c->fabric.ioapic.arg = c->ioapic;
    c->fabric.pic.pending = pic_pending, c->fabric.pic.intack = pic_intack, c->fabric.pic.arg = c->pic;
    region(c, ioapic_io, c->ioapic, PAGE_SIZE);
    region(c, pic_master_io, c->pic, 2);
    region(c, pic_slave_io, c->pic, 2);
    region(c, pic_elcr_io, c->pic, 2);
}

static void add_timers(struct chipset *c)
{
    struct hpet_wires w = { isa_line(c, 0), isa_line(c, 8), { gsi, c, 0 }, 0x00f00000 };
    struct hpet *hpet = add(c, &hpet_ops, hpet_create(&c->clock, &w));
    struct pit *pit = add(c, &pit_ops, pit_create(&c->clock, (struct irqline){ hpet_isa_in, hpet, 0 }));
    struct rtc *rtc = add(c, &rtc_ops, rtc_create(&c->clock, (struct irqline){ hpet_isa_in, hpet, 8 }));
    region(c, hpet_io, hpet, HPET_SIZE);
    region(c, pit_io, pit, 4);
    region(c, pit_port61_io, pit, 1);
    region(c, rtc_io, rtc, 4);
}

static void add_rest(struct chipset *c)
{
    struct pm_config pc = { .clock = &c->clock, .sci = isa_line(c, 9), .power = signals_wire(&c->signals) };
    struct pm *pm = add(c, &pm_ops, pm_create(&pc));
    struct uart *uart = add(c, &uart_ops, uart_create(&c->clock, isa_line(c, 4), c->chan));
    struct i8042 *kbc = add(c, &i8042_ops, i8042_create(isa_line(c, 1), isa_line(c, 12), signals_wire(&c->signals)));
    struct sysport *sys = add(c, &sysport_ops, sysport_create(signals_wire(&c->signals), "board"));
    region(c, pm_io, pm, PM_BLOCK_LEN);
    region(c, pm_smi_io, pm, 2);
    region(c, uart_io, uart, 8);
    region(c, i8042_data_io, kbc, 1);
    region(c, i8042_command_io, kbc, 1);
    region(c, sysport_cf9_io, sys, 1);
    region(c, sysport_92_io, sys, 1);
    region(c, sysport_debug_exit_io, sys, 4);
    region(c, sysport_debug_io, sys, 1);
}

struct chipset *chipset_create(void)
{
    struct chipset *c = kzalloc(sizeof *c);
    vmclock_init(&c->clock);
    c->chan = chan_create(64);
    add_apics(c);
    add_timers(c);
    add_rest(c);
    return c;
}

void chipset_destroy(struct chipset *c)
{
    while (c->ndevs) {
        struct gdev *d = &c->dev[--c->ndevs];
        d->ops->destroy(d->dev);
    }
    chan_destroy(c->chan);
    kfree(c);
}

long chipset_save(struct chipset *c, uint8_t *buf, size_t cap)
{
    struct snap s;
    snap_init_save(&s, buf, cap);
    int err = 0;
    for (unsigned i = 0; i < c->ndevs && !err; i++)
        err = c->dev[i].ops->snap(c->dev[i].dev, &s);
    return err ? err : (long)s.pos;
}

int chipset_load(struct chipset *c, const uint8_t *buf, size_t len)
{
    struct snap s;
    snap_init_load(&s, buf, len);
    int err = 0;
    for (unsigned i = 0; i < c->ndevs && !err; i++)
        err = c->dev[i].ops->snap(c->dev[i].dev, &s);
    return err;
}
