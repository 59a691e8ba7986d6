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

#include "guestdev/load.h"
#include "guestdev/pcihost.h"
#include "guestdev/virtio_blk.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/vmm/vcpu.h"

#define PCI_HOLE        0xc0000000ull
#define PCI_HOLE_END    0xfec00000ull
#define MMIO64_BYTES    (64ull << 30)
#define PM_BASE         0x600
#define DEBUG_EXIT_PORT 0xf4

enum { MAX_DEVS = VM_MAX_VCPUS + MACHINE_MAX_DISKS + 24, SLOT_CONSOLE = 1, SLOT_RNG = 2, SLOT_DISKS = 3 };

struct machine {
    struct machine_config cfg;
    struct vm *vm;
    struct gdev dev[MAX_DEVS];
    unsigned ndevs;
    enum gdev_reset next_reset;
    struct pcihost *pci;
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

/* ---- Wires ---- */

static void on_debug_exit(void *arg, unsigned code)
{
    struct machine *m = arg;
    char reason[64];
    snprintf(reason, sizeof reason, "debug exit, code %u", code);
    vm_request_stop(m->vm, STOP_DEBUG_EXIT, code, reason);
}

/* QEMU's isa-debug-exit: the exit code is (value << 1) | 1. */
static int debug_exit_io(void *dev, struct io *io)
{
    if (io->write)
        on_debug_exit(dev, (unsigned)((io->data & 0x7f) << 1 | 1));
    else
        io->data = 0;
    return 0;
}

/* ---- Building ---- */

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

static struct pci_windows windows(uint64_t ram)
{
    uint64_t top = ram > LOW_RAM_MAX ? ABOVE_4G + ram - LOW_RAM_MAX : ABOVE_4G;
    uint64_t limit = BIT(MIN(vmm_host.phys_bits, 52u)), base = ALIGN_UP(top, PAGE_1G);
    uint64_t end = base < limit ? MIN(base + MMIO64_BYTES, limit) : base;
    return (struct pci_windows){ .mem32 = PCI_HOLE, .mem32_end = PCI_HOLE_END, .mem64 = base, .mem64_end = end, .io = 0x1000, .io_end = 0x10000 };
}

static int add_pci(struct machine *m)
{
    struct pci_wires wires = { .mem = vm_mmio(m->vm), .io = vm_ports(m->vm) };
    struct pci_windows win = windows(m->cfg.vm.ram);
    int e = pcihost_create(&wires, &win, PM_BASE, &m->pci);
    if (!e)
        add(m, &pcihost_ops, m->pci);
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

static int add_debug_exit(struct machine *m)
{
    return m->cfg.debug_exit ? bus_add(vm_ports(m->vm), DEBUG_EXIT_PORT, 4, debug_exit_io, m, "debug exit", 0) : 0;
}

static const struct { const char *name; int (*build)(struct machine *); } parts[] = {
    { "memory", add_ram },
    { "PCI host bridge", add_pci },
    { "disk", add_disks },
    { "debug exit port", add_debug_exit },
};

/* ---- Reset, pause, stop: called with every vCPU stopped ---- */

static int load(struct machine *m, bool check_only, char *err, size_t errlen)
{
    struct load l = {
        .gmem = vm_gmem(m->vm), .kernel = m->cfg.kernel.data, .kernel_len = m->cfg.kernel.len, .initrd = m->cfg.initrd.data,
        .initrd_len = m->cfg.initrd.len, .cmdline = m->cfg.cmdline, .ram = m->cfg.vm.ram, .check_only = check_only, .err = err, .errlen = errlen,
    };
    int e = load_kernel(&l);
    if (!e && !check_only)
        vm_set_boot_state(m->vm, l.gpr, l.rip, &l.cpu);
    return e;
}

/* After the devices' reset the work of firmware: interrupt routing, BARs, tables, kernel. */
static void on_reset(void *arg)
{
    struct machine *m = arg;
    char err[160];
    for (unsigned i = 0; i < m->ndevs; i++)
        m->dev[i].ops->reset(m->dev[i].dev, m->next_reset);
    m->next_reset = GDEV_RESET;
    pcihost_firmware(m->pci);
    if (load(m, false, err, sizeof err))
        vm_request_stop(m->vm, STOP_CRASH, 0, err);
}

static void on_drain(void *arg)
{
    struct machine *m = arg;
    for (unsigned i = 0; i < m->ndevs; i++)
        if (m->dev[i].ops->drain)
            m->dev[i].ops->drain(m->dev[i].dev);
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
    m->cfg.cmdline[sizeof m->cfg.cmdline - 1] = 0;
    int e = vm_create(&cfg->vm, &m->vm, err, errlen);
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
