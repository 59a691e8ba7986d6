/*
 * A whole virtual PC, paused, with ports and memory accessed in any way at any time; then a snapshot round trip.  The VM clock is advanced by hand, so
 * timers fire where the input says.
 */
#include <stdlib.h>
#include <string.h>

#include "guestdev/machine.h"
#include "kernel/hw/elf.h"
#include "kernel/hw/multiboot.h"
#include "tests/host/fake_hv.h"
#include "tests/host/mem_blk.h"
#include "tests/host/port_host.h"

static struct { struct elf32_ehdr eh; struct elf32_phdr ph; struct multiboot_header mb; uint8_t code[64]; } __attribute__((packed)) kernel;
static struct { struct machine *m; struct chan *com1, *vcon; struct mem_blk *disk; } bed;

static void idle(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg)
{
    fake_guest_spin(v);
    e->kind = EXIT_HOST_INTR;
}

static void make(void)
{
    static struct machine_config cfg;
    char err[200];
    fake_hv_setup(256u << 20, 2);
    host_random_seed(1);
    kernel.eh = (struct elf32_ehdr){ .e_ident = "\177ELF\1\1\1", .e_type = 2, .e_machine = 3, .e_version = 1, .e_entry = 0x100020, .e_phoff = sizeof kernel.eh,
                                     .e_ehsize = sizeof kernel.eh, .e_phentsize = sizeof kernel.ph, .e_phnum = 1 };
    kernel.ph = (struct elf32_phdr){ ELF_PT_LOAD, offsetof(__typeof__(kernel), mb), 0x100000, 0x100000, sizeof kernel.mb + sizeof kernel.code, 0x2000, 7, 4096 };
    kernel.mb = (struct multiboot_header){ .magic = MULTIBOOT_MAGIC, .checksum = (uint32_t)-MULTIBOOT_MAGIC };
    bed.com1 = chan_create(64);
    bed.vcon = chan_create(64);
    bed.disk = mem_blk_create(1 << 16, 1 << 16, MEM_INLINE, 1);
    cfg.vm = (struct vm_params){ .name = "fuzz", .ncpus = 2, .ram = 16u << 20 };
    cfg.kernel = (struct machine_blob){ &kernel, sizeof kernel };
    cfg.disks[0] = (struct machine_disk){ .blk = &bed.disk->blk };
    cfg.ndisks = 1;
    cfg.com1 = bed.com1;
    cfg.vcon = bed.vcon;
    cfg.rng = cfg.hpet = true;
    ASSERT(!machine_create(&cfg, &bed.m, err, sizeof err));
    fake_hv_script(machine_vm(bed.m), idle, NULL);
    ASSERT(!machine_start(bed.m, err, sizeof err));
    ASSERT(!vm_pause(machine_vm(bed.m)));
    host_clock_manual(true);
}

struct input { const uint8_t *p; size_t n; };

static uint64_t take(struct input *in, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes && in->n; i++, in->n--)
        v |= (uint64_t)*in->p++ << (8 * i);
    return v;
}

static void access(struct bus *b, uint64_t addr, unsigned size, bool write, uint64_t val, unsigned cpu)
{
    struct io io = { .size = (uint8_t)size, .write = write, .data = val, .cpu = vm_vcpu(machine_vm(bed.m), cpu) };
    bus_access(b, cpu, addr, &io);
}

static void step(struct input *in)
{
    static const uint16_t ports[] = { 0x20, 0xa0, 0x40, 0x61, 0x60, 0x64, 0x70, 0x71, 0x3f8, 0x2f8, 0x4d0, 0x600, 0xb2, 0xcf8, 0xcfc, 0x92 };
    static const uint64_t areas[] = { 0xfee00000, 0xfec00000, 0xfed00000, 0xb0000000, 0xb0018000, 0xc0000000, 0xc0008000, 0xc0010000 };
    unsigned op = (unsigned)take(in, 1), cpu = op >> 7, size = 1u << (op >> 4 & 3);
    bool write = op >> 6 & 1;
    char buf[16];
    struct vm *vm = machine_vm(bed.m);
    switch (op & 15) {
    case 0: case 1: case 2: case 3: case 4:
        access(vm_ports(vm), ports[take(in, 1) & 15] + (op & 15), MIN(size, 4u), write, take(in, write ? 1 : 0), cpu);
        break;
    case 5: access(vm_ports(vm), 0x600 + (take(in, 1) & 0x7f), MIN(size, 4u), write, take(in, write ? 4 : 0), cpu); break;
    case 6: access(vm_ports(vm), take(in, 2), MIN(size, 4u), write, take(in, write ? 4 : 0), cpu); break;
    case 7: case 8: case 9: case 10: access(vm_mmio(vm), areas[take(in, 1) & 7] + take(in, 2) % 0x8000, size, write, take(in, write ? 4 : 0), cpu); break;
    case 11: access(vm_mmio(vm), 0xfee00000 + take(in, 1) * 16, 4, write, take(in, write ? 4 : 0), cpu); break;
    case 12: access(vm_mmio(vm), 0xfec00000 + (take(in, 1) & 0x50), 4, write, take(in, write ? 4 : 0), cpu); break;
    case 13: chan_write(bed.com1, CHAN_USER, "abcdefgh", op >> 4 & 7); break;
    case 14: chan_read(bed.com1, CHAN_USER, buf, sizeof buf); break;
    case 15: access(vm_mmio(vm), 0xfed00000 + take(in, 2) % 0x400, size & 12 ? size : 4, write, take(in, write ? 8 : 0), cpu); break;
    }
}

/* What the guest asked for (reset, power-off) has been carried out; paused again, without what is in transit inside devices. */
static void settle(void)
{
    struct vm *vm = machine_vm(bed.m);
    char err[200];
    work_flush(&vm->work);
    host_clock_manual(false);
    if (vm_state(vm) == VM_STOPPED)
        ASSERT(!machine_start(bed.m, err, sizeof err));
    else
        ASSERT(!vm_resume(vm));
    ASSERT(!vm_pause(vm));
    host_clock_manual(true);
}

static void round_trip(void)
{
    static uint8_t one[1 << 19], two[1 << 19];
    long n = machine_save(bed.m, one, sizeof one);
    ASSERT(n > 0);
    ASSERT(!vm_reset(machine_vm(bed.m)));
    ASSERT(!machine_load(bed.m, one, (size_t)n));
    ASSERT(machine_save(bed.m, two, sizeof two) == n && !memcmp(one, two, (size_t)n));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    char buf[64];
    if (!bed.m)
        make();
    settle();
    ASSERT(!vm_reset(machine_vm(bed.m)));
    while (in.n)
        step(&in);
    settle();
    in = (struct input){ data, size };
    while (in.n)
        step(&in);
    while (chan_read(bed.com1, CHAN_USER, buf, sizeof buf) || chan_read(bed.com1, CHAN_DEV, buf, sizeof buf))
        ;
    settle();
    round_trip();
    return 0;
}
