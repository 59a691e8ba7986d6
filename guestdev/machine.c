/*
 * The virtual PC, wired top to bottom.  Creation order is reset and save order; destruction goes backwards.
 *
 *     RAM   0 … A0000h, C0000h … min(ram, B0000000h), the rest from 4 GiB     ECAM  B0000000h … BFFFFFFFh
 *     PCI   C0000000h … FEBFFFFFh and a window above RAM                      slots 1: console, 2: entropy, 3 …: disks, 31: LPC
 */
#include "guestdev/machine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "guestdev/acpi_tables.h"
#include "guestdev/hpet.h"
#include "guestdev/i8042.h"
#include "guestdev/ioapic.h"
#include "guestdev/lapic.h"
#include "guestdev/legacy.h"
#include "guestdev/load.h"
#include "guestdev/pcihost.h"
#include "guestdev/pic.h"
#include "guestdev/pit.h"
#include "guestdev/pm.h"
#include "guestdev/rtc.h"
#include "guestdev/sysport.h"
#include "guestdev/uart.h"
#include "guestdev/virtio_blk.h"
#include "guestdev/virtio_console.h"
#include "guestdev/virtio_rng.h"
#include "kernel/hw/hpet.h"
#include "kernel/hw/msr.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/vmm/vcpu.h"

#define DRAIN_NS        10000000000ull  /* for all requests in flight to end, before a pause or a kill goes on without them */
#define PCI_HOLE        0xc0000000ull
#define PCI_HOLE_END    0xfec00000ull
#define MMIO64_BYTES    (64ull << 30)
#define PM_BASE         0x600

enum { SCI_IRQ = 9, FIRST_PCI_GSI = 16, HPET_ROUTES = 1 << 10 | 1 << 11 /* IOAPIC pins that nothing else drives */ };
enum { MAX_DEVS = VM_MAX_VCPUS + MACHINE_MAX_DISKS + 24, SLOT_CONSOLE = 1, SLOT_RNG = 2, SLOT_DISKS = 3 };

/* Where a register page of local APICs is on the bus: all at the same address, unless a guest moves some. */
struct apic_window { struct machine *m; uint64_t base; unsigned users; };

struct machine {
    struct machine_config cfg;
    struct vm *vm;
    struct gdev dev[MAX_DEVS];
    unsigned ndevs;
    enum gdev_reset next_reset;
    /* What wires lead to. */
    struct apic_fabric fabric;
    struct lapic *lapic[VM_MAX_VCPUS];
    struct ioapic *ioapic;
    struct pic *pic;
    struct hpet *hpet;                  /* NULL: none */
    struct pm *pm;
    struct pcihost *pci;
    struct mutex apic_lock;             /* guards the windows */
    struct apic_window window[VM_MAX_VCPUS];
    uint64_t apic_base[VM_MAX_VCPUS];
    uint8_t *tables;                    /* ACPI_TABLES_MAX bytes to build them in: a reset must not depend on host memory */
};

static int fail(char *err, size_t errlen, int e, const char *what)
{
    snprintf(err, errlen, "%s: %s", what, e == -ENOMEM ? "no host memory" : e == -EEXIST ? "address conflict" : "cannot be created");
    return e;
}

static void add(struct machine *m, const struct gdev_ops *ops, void *dev)
{
    ASSERT(m->ndevs < MAX_DEVS);
    m->dev[m->ndevs++] = (struct gdev){ ops, dev };
}

static int claim(struct bus *bus, uint64_t base, uint64_t len, io_fn *fn, void *dev, const char *name)
{
    return bus_add(bus, base, len, fn, dev, name, 0);
}

/* ---- Wires ---- */

/* An ISA interrupt reaches both controllers; the timer's is on IOAPIC pin 2. */
static void isa_irq(void *arg, unsigned irq, bool level)
{
    struct machine *m = arg;
    pic_irq(m->pic, irq, level);
    ioapic_pin(m->ioapic, irq ? irq : 2, level);
}

static struct irqline isa_line(struct machine *m, unsigned irq)
{
    return (struct irqline){ isa_irq, m, irq };
}

/* The 8259's output goes to LINT0 of every CPU. */
static void pic_output(void *arg, unsigned pin, bool level)
{
    struct machine *m = arg;
    for (unsigned i = 0; i < m->cfg.vm.ncpus; i++)
        lapic_lint(m->lapic[i], 0, level);
}

static int lapic_window_io(void *dev, struct io *io)
{
    const struct apic_window *w = dev;
    unsigned cpu = io->cpu ? io->cpu->index : 0;
    return w->m->apic_base[cpu] == w->base ? lapic_io(w->m->lapic[cpu], io) : -ENODEV;
}

static int lapic_virt_window_io(void *dev, struct io *io)
{
    const struct apic_window *w = dev;
    unsigned cpu = io->cpu ? io->cpu->index : 0;
    return w->m->apic_base[cpu] == w->base ? lapic_virt_io(w->m->lapic[cpu], io) : -ENODEV;
}

static struct apic_window *window_at(struct machine *m, uint64_t base)
{
    for (unsigned i = 0; i < VM_MAX_VCPUS; i++)
        if (m->window[i].users && m->window[i].base == base)
            return &m->window[i];
    return NULL;
}

static void window_join(struct machine *m, uint64_t base)
{
    struct apic_window *w = window_at(m, base);
    for (unsigned i = 0; !w && i < VM_MAX_VCPUS; i++)
        if (!m->window[i].users)
            w = &m->window[i];
    if (!w->users++) {
        *w = (struct apic_window){ m, base, 1 };
        claim(vm_mmio(m->vm), base, PAGE_SIZE, vmm_host.apic_virt ? lapic_virt_window_io : lapic_window_io, w, "local APIC");      /* on top of another device: that one stays */
    }
}

static void window_leave(struct machine *m, uint64_t base)
{
    struct apic_window *w = window_at(m, base);
    if (w && !--w->users)
        bus_remove(vm_mmio(m->vm), base, w);
}

/* Where every vCPU has its register page; 0: not at one place. */
static uint64_t common_apic_base(const struct machine *m)
{
    for (unsigned i = 1; i < m->cfg.vm.ncpus; i++)
        if (m->apic_base[i] != m->apic_base[0])
            return 0;
    return m->apic_base[0];
}

/* base 0: disabled, or in x2APIC mode. */
static void lapic_moved(void *arg, uint32_t id, uint64_t base)
{
    struct machine *m = arg;
    mutex_lock(&m->apic_lock);
    uint64_t old = m->apic_base[id], common = common_apic_base(m);
    if (old && old != base)
        window_leave(m, old);
    m->apic_base[id] = base;
    if (base && old != base)
        window_join(m, base);
    if (common_apic_base(m) != common)
        vm_apic_page(m->vm, common_apic_base(m));
    mutex_unlock(&m->apic_lock);
}

/* Through the HPET's legacy replacement, if there is one: IRQ 0 from the PIT, 8 from the RTC. */
static struct irqline timer_line(struct machine *m, unsigned irq)
{
    return m->hpet ? (struct irqline){ hpet_isa_in, m->hpet, irq } : isa_line(m, irq);
}

/* Reset, power-off and debug exit leave a request behind; the vCPU that asked stops at the next instruction. */
static void on_signal(void *arg, unsigned what)
{
    struct machine *m = arg;
    unsigned code = what >> 8;
    char reason[64];
    switch (what & 0xff) {
    case SIGNAL_RESET:
        vm_request_reset(m->vm);
        break;
    case SIGNAL_POWEROFF:
        vm_request_stop(m->vm, STOP_POWEROFF, 0, "powered off by the guest");
        break;
    case SIGNAL_DEBUG_EXIT:
        snprintf(reason, sizeof reason, "debug exit, code %u", code);
        vm_request_stop(m->vm, STOP_DEBUG_EXIT, code, reason);
        break;
    }
}

static struct signal_wire signal(struct machine *m)
{
    return (struct signal_wire){ on_signal, m };
}

/* ---- Building ---- */

/* The end of guest RAM; what does not fit below the PCI hole continues at 4 GiB. */
static uint64_t ram_end(uint64_t ram)
{
    return ram > LOW_RAM_MAX ? ABOVE_4G + (ram - LOW_RAM_MAX) : ram;
}

static int check_width(const struct machine_config *cfg, char *err, size_t errlen)
{
    if (ram_end(cfg->vm.ram) <= BIT(vmm_host.phys_bits))
        return 0;
    snprintf(err, errlen, "%s: %llu MiB of memory end beyond the %u address bits of this CPU; give it less", cfg->vm.name,
             (unsigned long long)(cfg->vm.ram >> 20), vmm_host.phys_bits);
    return -EINVAL;
}

static int add_ram(struct machine *m)
{
    uint64_t ram = m->cfg.vm.ram, low = MIN(ram, (uint64_t)LOW_RAM_MAX);
    int e = vm_add_ram(m->vm, 0, VGA_HOLE, false);
    if (!e)
        e = vm_add_ram(m->vm, VGA_HOLE_END, low - VGA_HOLE_END, false);
    if (!e && ram > low)
        e = vm_add_ram(m->vm, ABOVE_4G, ram - low, false);
    return e;
}

/* The window above RAM that the tables offer; empty where the CPU has no room for one. */
static void window64(uint64_t ram, uint64_t *base, uint64_t *end)
{
    uint64_t limit = BIT(vmm_host.phys_bits);
    *base = ALIGN_UP(MAX(ram_end(ram), ABOVE_4G), PAGE_1G);
    *end = *base < limit ? MIN(*base + MMIO64_BYTES, limit) : *base;
}

/* As on the real chipset all that is not RAM goes to PCI: a kernel that ignores the tables puts BARs where it likes. */
static struct pci_windows decoded(uint64_t ram)
{
    uint64_t base, end, limit = BIT(vmm_host.phys_bits);
    window64(ram, &base, &end);
    return (struct pci_windows){
        .mem32 = MIN(ram, (uint64_t)LOW_RAM_MAX), .mem32_end = PCI_HOLE_END, .mem32_first = PCI_HOLE,
        .mem64 = base, .mem64_end = MAX(limit, base), .io = 0x1000, .io_end = 0x10000, .io_first = 0xc000,
    };
}

static int add_lapics(struct machine *m)
{
    apic_fabric_init(&m->fabric);
    for (unsigned i = 0; i < m->cfg.vm.ncpus; i++) {
        struct lapic_config c = {
            .apic_id = i, .bsp = i == 0, .x2apic = true, .tsc_deadline = true, .virt = vmm_host.apic_virt, .phys_bits = vmm_host.phys_bits, .clock = vm_clock(m->vm),
            .moved = lapic_moved, .moved_arg = m,
        };
        struct vcpu_irqchip chip;
        vm_get_wires(m->vm, i, &c.wires);
        m->lapic[i] = lapic_create(&c, &m->fabric);
        if (!m->lapic[i])
            return -ENOMEM;
        add(m, &lapic_ops, m->lapic[i]);
        lapic_irqchip(m->lapic[i], &chip);
        vm_set_irqchip(m->vm, i, &chip);
        lapic_moved(m, i, LAPIC_DEFAULT_BASE);
    }
    return 0;
}

static int add_ioapic(struct machine *m)
{
    m->ioapic = ioapic_create((struct apic_wire){ apic_send, &m->fabric }, 0xffu << FIRST_PCI_GSI);
    if (!m->ioapic)
        return -ENOMEM;
    add(m, &ioapic_ops, m->ioapic);
    m->fabric.ioapic.eoi = ioapic_eoi;
    m->fabric.ioapic.arg = m->ioapic;
    return claim(vm_mmio(m->vm), IOAPIC_DEFAULT_BASE, PAGE_SIZE, ioapic_io, m->ioapic, "IOAPIC");
}

static int add_pic(struct machine *m)
{
    m->pic = pic_create((struct irqline){ pic_output, m, 0 });
    if (!m->pic)
        return -ENOMEM;
    add(m, &pic_ops, m->pic);
    m->fabric.pic.pending = pic_pending;
    m->fabric.pic.intack = pic_intack;
    m->fabric.pic.arg = m->pic;
    int e = claim(vm_ports(m->vm), 0x20, 2, pic_master_io, m->pic, "PIC");
    e = e ? e : claim(vm_ports(m->vm), 0xa0, 2, pic_slave_io, m->pic, "PIC");
    return e ? e : claim(vm_ports(m->vm), 0x4d0, 2, pic_elcr_io, m->pic, "PIC ELCR");
}

static int add_hpet(struct machine *m)
{
    const struct hpet_wires w = {
        .irq0 = isa_line(m, 0), .irq8 = isa_line(m, 8), .gsi = { ioapic_pin, m->ioapic, 0 }, .routes = HPET_ROUTES,
    };
    if (!m->cfg.hpet)
        return 0;
    m->hpet = hpet_create(vm_clock(m->vm), &w);
    if (!m->hpet)
        return -ENOMEM;
    add(m, &hpet_ops, m->hpet);
    return claim(vm_mmio(m->vm), HPET_DEFAULT_BASE, HPET_SIZE, hpet_io, m->hpet, "HPET");
}

static int add_rtc(struct machine *m)
{
    uint64_t low = MIN(m->cfg.vm.ram, (uint64_t)LOW_RAM_MAX);
    struct rtc *rtc = rtc_create(vm_clock(m->vm), timer_line(m, 8));
    if (!rtc)
        return -ENOMEM;
    add(m, &rtc_ops, rtc);
    rtc_set_memory(rtc, low, m->cfg.vm.ram - low);
    return claim(vm_ports(m->vm), 0x70, 4, rtc_io, rtc, "RTC");
}

static int add_pm(struct machine *m)
{
    const struct pm_config c = { .clock = vm_clock(m->vm), .sci = isa_line(m, SCI_IRQ), .power = signal(m), .timer_32bit = true, .acpi_mode = true };
    m->pm = pm_create(&c);
    if (!m->pm)
        return -ENOMEM;
    add(m, &pm_ops, m->pm);
    int e = claim(vm_ports(m->vm), PM_BASE, PM_BLOCK_LEN, pm_io, m->pm, "ACPI PM");
    return e ? e : claim(vm_ports(m->vm), PM_SMI_CMD, 2, pm_smi_io, m->pm, "SMI command");
}

static int add_system_ports(struct machine *m)
{
    struct sysport *s = sysport_create(signal(m), vm_name(m->vm));
    if (!s)
        return -ENOMEM;
    add(m, &sysport_ops, s);
    pcihost_set_reset_port(m->pci, sysport_cf9_io, s);
    int e = claim(vm_ports(m->vm), SYSPORT_92, 1, sysport_92_io, s, "port 92h");
    e = e ? e : claim(vm_ports(m->vm), SYSPORT_DEBUG, 1, sysport_debug_io, s, "debug console");
    return e || !m->cfg.debug_exit ? e : claim(vm_ports(m->vm), SYSPORT_DEBUG_EXIT, 4, sysport_debug_exit_io, s, "debug exit");
}

static int add_i8042(struct machine *m)
{
    struct i8042 *kbc = i8042_create(isa_line(m, 1), isa_line(m, 12), signal(m));
    if (!kbc)
        return -ENOMEM;
    add(m, &i8042_ops, kbc);
    int e = claim(vm_ports(m->vm), 0x60, 1, i8042_data_io, kbc, "keyboard controller");
    return e ? e : claim(vm_ports(m->vm), 0x64, 1, i8042_command_io, kbc, "keyboard controller");
}

static int add_ignored_ports(struct machine *m)
{
    return legacy_add(vm_ports(m->vm));
}

static int add_pit(struct machine *m)
{
    struct pit *pit = pit_create(vm_clock(m->vm), timer_line(m, 0));
    if (!pit)
        return -ENOMEM;
    add(m, &pit_ops, pit);
    int e = claim(vm_ports(m->vm), 0x40, 4, pit_io, pit, "PIT");
    return e ? e : claim(vm_ports(m->vm), 0x61, 1, pit_port61_io, pit, "port 61h");
}

static int add_uart(struct machine *m, unsigned port, unsigned irq, struct chan *chan, const char *name)
{
    struct uart *uart = uart_create(vm_clock(m->vm), isa_line(m, irq), chan);
    if (!uart)
        return -ENOMEM;
    add(m, &uart_ops, uart);
    return claim(vm_ports(m->vm), port, 8, uart_io, uart, name);
}

static int add_uarts(struct machine *m)
{
    int e = add_uart(m, 0x3f8, 4, m->cfg.com1, "COM1");
    return e ? e : add_uart(m, 0x2f8, 3, m->cfg.com2, "COM2");
}

static int add_pci(struct machine *m)
{
    struct pci_wires wires = { .mem = vm_mmio(m->vm), .io = vm_ports(m->vm), .msi = { apic_msi, &m->fabric } };
    struct pci_windows win = decoded(m->cfg.vm.ram);
    for (unsigned i = 0; i < 8; i++)
        wires.gsi[i] = (struct irqline){ ioapic_pin, m->ioapic, FIRST_PCI_GSI + i };
    for (unsigned i = 0; i < 16; i++)
        wires.pic[i] = (struct irqline){ pic_irq, m->pic, i };
    int e = pcihost_create(&wires, &win, PM_BASE, &m->pci);
    if (!e)
        add(m, &pcihost_ops, m->pci);
    return e;
}

static int add_console(struct machine *m)
{
    const struct virtio_console_args args = {
        .gmem = vm_gmem(m->vm), .bus = pcihost_bus(m->pci), .slot = SLOT_CONSOLE, .chan = m->cfg.vcon, .clock = vm_clock(m->vm),
    };
    struct virtio_console *dev;
    int e = m->cfg.vcon ? virtio_console_create(&args, &dev) : 0;
    if (!e && m->cfg.vcon)
        add(m, &virtio_console_ops, dev);
    return e;
}

static int add_rng(struct machine *m)
{
    struct virtio_rng *dev;
    int e = m->cfg.rng ? virtio_rng_create(vm_gmem(m->vm), pcihost_bus(m->pci), SLOT_RNG, &dev) : 0;
    if (!e && m->cfg.rng)
        add(m, &virtio_rng_ops, dev);
    return e;
}

static int add_disks(struct machine *m)
{
    for (int i = 0; i < m->cfg.ndisks; i++) {
        const struct machine_disk *disk = &m->cfg.disks[i];
        const struct virtio_blk_config_args args = {
            .gmem = vm_gmem(m->vm), .bus = pcihost_bus(m->pci), .slot = (unsigned)(SLOT_DISKS + i), .nqueues = MIN(m->cfg.vm.ncpus, 4u),
            .blk = disk->blk, .read_only = disk->read_only, .serial = disk->serial,
        };
        struct virtio_blk *dev;
        int e = virtio_blk_create(&args, &dev);
        if (e)
            return e;
        add(m, &virtio_blk_ops, dev);
    }
    return 0;
}

static const struct { const char *name; int (*build)(struct machine *); } parts[] = {
    { "memory", add_ram },
    { "local APIC", add_lapics },
    { "IOAPIC", add_ioapic },
    { "PIC", add_pic },
    { "HPET", add_hpet },
    { "PIT", add_pit },
    { "RTC", add_rtc },
    { "ACPI PM", add_pm },
    { "keyboard controller", add_i8042 },
    { "serial port", add_uarts },
    { "PCI host bridge", add_pci },
    { "virtio console", add_console },
    { "entropy device", add_rng },
    { "disk", add_disks },
    { "system ports", add_system_ports },
    { "legacy ports", add_ignored_ports },
};

/* ---- Reset, pause, stop: called with every vCPU stopped ---- */

static int write_tables(struct machine *m)
{
    uint64_t base, end;
    window64(m->cfg.vm.ram, &base, &end);
    const struct acpi_platform p = {
        .ncpus = m->cfg.vm.ncpus, .mem64 = base, .mem64_len = end - base, .sci_irq = SCI_IRQ,
        .pm1_evt = PM_BASE + PM_PM1_STS, .pm1_cnt = PM_BASE + PM_PM1_CNT, .pm_tmr = PM_BASE + PM_TIMER, .gpe0 = PM_BASE + PM_GPE0_STS, .gpe0_len = PM_GPE0_LEN,
        .reset_port = SYSPORT_CF9, .reset_value = 6, .hpet = m->cfg.hpet,
    };
    int n = acpi_tables_build(&p, BIOS_AREA, m->tables, ACPI_TABLES_MAX);
    return n < 0 ? n : gmem_write(vm_gmem(m->vm), BIOS_AREA, m->tables, (size_t)n);
}

static int load(struct machine *m, bool check_only, char *err, size_t errlen)
{
    struct load l = {
        .gmem = vm_gmem(m->vm), .kernel = m->cfg.kernel.data, .kernel_len = m->cfg.kernel.len, .initrd = m->cfg.initrd.data,
        .initrd_len = m->cfg.initrd.len, .initrd_name = m->cfg.initrd_name, .cmdline = m->cfg.cmdline, .ram = m->cfg.vm.ram, .rsdp = BIOS_AREA, .check_only = check_only,
        .err = err, .errlen = errlen,
    };
    int e = load_kernel(&l);
    if (!e && !check_only)
        vm_set_boot_state(m->vm, l.gpr, l.rip, &l.cpu);
    return e;
}

static void port_out(struct machine *m, unsigned port, uint8_t val)
{
    struct io io = { .size = 1, .write = true, .data = val };
    bus_access(vm_ports(m->vm), 0, port, &io);
}

/* What firmware leaves behind: interrupt routing, BARs, tables, and the kernel in memory. */
static void firmware(struct machine *m)
{
    char err[160] = "the ACPI tables do not fit";
    lapic_virtual_wire(m->lapic[0]);
    port_out(m, 0x4d1, 1 << (SCI_IRQ - 8) | 1 << (10 - 8) | 1 << (11 - 8));     /* SCI and PIRQs are levels */
    pcihost_firmware(m->pci);
    if (write_tables(m) || load(m, false, err, sizeof err))
        vm_request_stop(m->vm, STOP_CRASH, 0, err);
}

/* After reset or load the register pages are where IA32_APIC_BASE says. */
static void sync_apic_windows(struct machine *m)
{
    for (unsigned i = 0; i < m->cfg.vm.ncpus; i++) {
        struct vcpu_irqchip chip;
        uint64_t base = 0;
        lapic_irqchip(m->lapic[i], &chip);
        chip.msr_read(chip.apic, MSR_APIC_BASE, &base);
        bool page = (base & (APIC_BASE_ENABLE | APIC_BASE_X2APIC)) == APIC_BASE_ENABLE;
        lapic_moved(m, i, page ? base & APIC_BASE_ADDR : 0);
    }
}

static void on_reset(void *arg)
{
    struct machine *m = arg;
    for (unsigned i = 0; i < m->ndevs; i++)
        m->dev[i].ops->reset(m->dev[i].dev, m->next_reset);
    sync_apic_windows(m);
    if (m->next_reset == GDEV_RESET && m->cfg.was_reset)
        m->cfg.was_reset(m->cfg.arg);
    m->next_reset = GDEV_RESET;
    firmware(m);
}

/* One deadline for all, so that several dead disks do not hold up a pause or a kill any longer than one. */
static void on_drain(void *arg)
{
    struct machine *m = arg;
    uint64_t deadline = clock_ns() + DRAIN_NS;
    for (unsigned i = 0; i < m->ndevs; i++)
        if (m->dev[i].ops->drain)
            m->dev[i].ops->drain(m->dev[i].dev, deadline);
}

static void on_resume(void *arg)
{
    struct machine *m = arg;
    for (unsigned i = 0; i < m->ndevs; i++)
        if (m->dev[i].ops->resume)
            m->dev[i].ops->resume(m->dev[i].dev);
}

static void on_stopped(void *arg, enum vm_stop cause, const char *reason)
{
    struct machine *m = arg;
    if (m->cfg.stopped)
        m->cfg.stopped(m->cfg.arg, cause, reason);
}

/* ---- Life ---- */

void machine_destroy(struct machine *m)
{
    if (!m)
        return;
    while (m->ndevs) {
        struct gdev *d = &m->dev[--m->ndevs];
        d->ops->destroy(d->dev);
    }
    vm_destroy(m->vm);
    kfree(m->tables);
    kfree(m);
}

static int build(struct machine *m, char *err, size_t errlen)
{
    for (unsigned i = 0; i < ARRAY_SIZE(parts); i++) {
        int e = parts[i].build(m);
        if (e)
            return fail(err, errlen, e, parts[i].name);
    }
    return load(m, true, err, errlen);
}

int machine_create(const struct machine_config *cfg, struct machine **out, char *err, size_t errlen)
{
    struct machine *m = kzalloc(sizeof *m);
    if (!m)
        return fail(err, errlen, -ENOMEM, cfg->vm.name);
    m->cfg = *cfg;
    m->tables = kmalloc(ACPI_TABLES_MAX);
    m->cfg.cmdline[sizeof m->cfg.cmdline - 1] = m->cfg.initrd_name[sizeof m->cfg.initrd_name - 1] = 0;
    mutex_init(&m->apic_lock);
    int e = m->tables ? check_width(cfg, err, errlen) : fail(err, errlen, -ENOMEM, cfg->vm.name);
    if (!e)
        e = vm_create(&cfg->vm, &m->vm, err, errlen);
    if (!e)
        e = build(m, err, errlen);
    if (e) {
        machine_destroy(m);
        return e;
    }
    const struct vm_hooks hooks = { .reset = on_reset, .drain = on_drain, .stopped = on_stopped, .resume = on_resume, .arg = m };
    vm_set_hooks(m->vm, &hooks);
    *out = m;
    return 0;
}

struct vm *machine_vm(struct machine *m)
{
    return m->vm;
}

int machine_start(struct machine *m, char *err, size_t errlen)
{
    m->next_reset = GDEV_POWER_ON;
    int e = vm_run(m->vm);
    if (e)
        snprintf(err, errlen, "%s: %s", vm_name(m->vm), e == -EBUSY ? "already running" : "no host memory for its threads");
    return e;
}

void machine_power_button(struct machine *m)
{
    pm_power_button(m->pm);
}

long machine_save(struct machine *m, void *buf, size_t cap)
{
    struct snap s;
    snap_init_save(&s, buf, cap);
    int e = vm_snap(m->vm, &s);
    for (unsigned i = 0; !e && i < m->ndevs; i++)
        e = m->dev[i].ops->snap(m->dev[i].dev, &s);
    return e ? e : (long)s.pos;
}

int machine_load(struct machine *m, const void *buf, size_t len)
{
    struct snap s;
    snap_init_load(&s, buf, len);
    int e = vm_snap(m->vm, &s);
    for (unsigned i = 0; !e && i < m->ndevs; i++)
        e = m->dev[i].ops->snap(m->dev[i].dev, &s);
    sync_apic_windows(m);
    return e;
}

struct each { void (*fn)(void *arg, const char *bus, uint64_t base, uint64_t len, const char *name); void *arg; const char *bus; };

static void each_region(void *arg, uint64_t base, uint64_t len, const char *name)
{
    const struct each *e = arg;
    e->fn(e->arg, e->bus, base, len, name);
}

void machine_each_device(struct machine *m, void (*fn)(void *arg, const char *bus, uint64_t base, uint64_t len, const char *name), void *arg)
{
    struct each e = { fn, arg, "port" };
    bus_each(vm_ports(m->vm), each_region, &e);
    e.bus = "memory";
    bus_each(vm_mmio(m->vm), each_region, &e);
}
