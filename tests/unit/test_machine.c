/* A whole virtual PC over a scripted CPU: wiring, firmware's work, reset, snapshots, and a thousand lives under the sanitizers. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "guestdev/load.h"
#include "guestdev/machine.h"
#include "kernel/hw/acpi.h"
#include "kernel/hw/elf.h"
#include "kernel/hw/msr.h"
#include "kernel/hw/multiboot.h"
#include "kernel/hw/pci.h"
#include "kernel/vmm/vcpu.h"
#include "tests/host/fake_hv.h"
#include "tests/host/mem_blk.h"
#include "tests/host/port_host.h"

#define MIB (1ull << 20)

static int setup(void **state) { fake_hv_setup(512 * MIB, 4); return 0; }
static int teardown(void **state) { fake_hv_teardown(); return 0; }

/* A multiboot kernel in an ELF32 file: one page at 1 MiB. */
static struct { struct elf32_ehdr eh; struct elf32_phdr ph; struct multiboot_header mb; uint8_t code[64]; } __attribute__((packed)) kernel;

static void make_kernel(void)
{
    kernel.eh = (struct elf32_ehdr){ .e_ident = "\177ELF\1\1\1", .e_type = 2, .e_machine = 3, .e_version = 1, .e_entry = 0x100020, .e_phoff = sizeof kernel.eh,
                                     .e_ehsize = sizeof kernel.eh, .e_phentsize = sizeof kernel.ph, .e_phnum = 1 };
    kernel.ph = (struct elf32_phdr){ ELF_PT_LOAD, offsetof(__typeof__(kernel), mb), 0x100000, 0x100000, sizeof kernel.mb + sizeof kernel.code, 0x2000, 7, 4096 };
    kernel.mb = (struct multiboot_header){ .magic = MULTIBOOT_MAGIC, .flags = 3, .checksum = (uint32_t)-(MULTIBOOT_MAGIC + 3) };
}

struct bed { struct machine *m; struct chan *com1; struct mem_blk *disk; };

static struct bed make(unsigned ncpus, uint64_t ram)
{
    static struct machine_config cfg;
    struct bed b = { .com1 = chan_create(4096), .disk = mem_blk_create(MIB, MIB, MEM_INLINE, 1) };
    char err[200] = "";
    make_kernel();
    memset(&cfg, 0, sizeof cfg);
    cfg.vm = (struct vm_params){ .name = "pc", .ncpus = ncpus, .ram = ram };
    cfg.kernel = (struct machine_blob){ &kernel, sizeof kernel };
    strcpy(cfg.cmdline, "hello");
    cfg.disks[0] = (struct machine_disk){ .blk = &b.disk->blk, .serial = "s0" };
    cfg.ndisks = 1;
    cfg.com1 = b.com1;
    cfg.debug_exit = cfg.hpet = true;
    if (machine_create(&cfg, &b.m, err, sizeof err))
        fail_msg("%s", err);
    return b;
}

static void end(struct bed *b)
{
    if (vm_state(machine_vm(b->m)) != VM_STOPPED)
        assert_int_equal(vm_kill(machine_vm(b->m)), 0);
    machine_destroy(b->m);
    blk_close(&b->disk->blk);
    chan_destroy(b->com1);
}

static void out(struct exit *e, struct vcpu *v, uint16_t port, uint8_t size, uint32_t val)
{
    e->kind = EXIT_PIO;
    e->next_rip = v->rip + 1;
    e->u.pio.port = port, e->u.pio.what = (uint16_t)(size << PIO_SIZE_SHIFT);
    v->gpr[RAX] = val;
}

/* ---- A guest that prints and leaves by the debug exit ---- */

static void hello(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg)
{
    unsigned *step = arg;
    static const char text[] = "hi\n";
    if (*step == 0) {
        assert_int_equal(v->rip, 0x100020);
        assert_int_equal(v->gpr[RAX], MULTIBOOT_BOOTED);
        assert_true(f->st.cr0 & 1);
    }
    if (*step < 3)
        out(e, v, 0x3f8, 1, (uint8_t)text[*step]);
    else
        out(e, v, 0xf4, 1, 0x21);
    ++*step;
}

static void boots(void **state)
{
    struct bed b = make(1, 32 * MIB);
    unsigned step = 0, code = 0;
    char err[200], got[8] = "", reason[64];
    fake_hv_script(machine_vm(b.m), hello, &step);
    assert_int_equal(machine_start(b.m, err, sizeof err), 0);
    assert_true(vm_wait(machine_vm(b.m), clock_ns() + 20000000000ull));
    assert_int_equal(vm_stop_cause(machine_vm(b.m), reason, sizeof reason, &code), STOP_DEBUG_EXIT);
    assert_int_equal(code, 0x43);
    assert_int_equal(chan_read(b.com1, CHAN_USER, got, 7), 3);
    assert_string_equal(got, "hi\n");
    end(&b);
}

/* ---- What firmware has done, read back through the machine's own doors ---- */

static void idle(struct vcpu *v, struct fake_cpu *f, struct exit *e, void *arg)
{
    fake_guest_spin(v);
    e->kind = EXIT_HOST_INTR;
}

static uint64_t mmio(struct bed *b, uint64_t addr, unsigned size)
{
    struct io io = { .size = (uint8_t)size };
    bus_access(vm_mmio(machine_vm(b->m)), 0, addr, &io);
    return io_value(&io);
}

static void mmio_write(struct bed *b, uint64_t addr, uint32_t val)
{
    struct io io = { .size = 4, .write = true, .data = val };
    bus_access(vm_mmio(machine_vm(b->m)), 0, addr, &io);
}

static void firmware(void **state)
{
    struct bed b = make(2, 64 * MIB);
    struct gmem *mem = vm_gmem(machine_vm(b.m));
    char err[200], line[8];
    fake_hv_script(machine_vm(b.m), idle, NULL);
    assert_int_equal(machine_start(b.m, err, sizeof err), 0);
    assert_int_equal(vm_pause(machine_vm(b.m)), 0);
    struct acpi_rsdp r;
    assert_int_equal(gmem_read(mem, 0xe0000, &r, sizeof r), 0);
    assert_memory_equal(r.signature, "RSD PTR ", 8);
    assert_int_equal(mmio(&b, 0xb0000000, 4), Q35_MCH_DEVICE << 16 | Q35_VENDOR);
    uint64_t disk = 0xb0000000 + (3 << 15);
    assert_int_equal(mmio(&b, disk, 4), 0x10421af4);
    uint32_t bar = (uint32_t)mmio(&b, disk + PCI_BAR(0), 4) & PCI_BAR_MEM_MASK;
    assert_true(bar >= 0xc0000000 && bar < 0xfec00000);
    assert_true(bus_claimed(vm_mmio(machine_vm(b.m)), bar));
    assert_int_equal(mmio(&b, disk + PCI_COMMAND, 2), PCI_CMD_MEMORY);
    assert_int_equal(mmio(&b, disk + PCI_INT_LINE, 1), 11);             /* slot 3, INTA: PIRQD */
    assert_true(bus_claimed(vm_mmio(machine_vm(b.m)), 0xfee00000));
    assert_true(bus_claimed(vm_mmio(machine_vm(b.m)), 0xfec00000));
    /* Boot information: the command line is where the multiboot structure says. */
    struct multiboot_info mi;
    assert_int_equal(gmem_read(mem, 0x11000, &mi, sizeof mi), 0);
    assert_int_equal(mi.mem_upper, 63 * 1024);
    assert_int_equal(gmem_read(mem, mi.cmdline, line, 6), 0);
    assert_string_equal(line, "hello");
    end(&b);
}

/* ---- A CPU with few address bits: what the guest is told of ends below them ---- */

static uint64_t dsdt_name(struct gmem *mem, const char *name)
{
    uint8_t area[0x8000];
    uint64_t val;
    assert_int_equal(gmem_read(mem, BIOS_AREA, area, sizeof area), 0);
    for (size_t i = 0; i + 14 < sizeof area; i++)
        if (area[i] == 0x08 && !memcmp(area + i + 1, name, 4) && area[i + 5] == 0x0e) {
            memcpy(&val, area + i + 6, 8);
            return val;
        }
    fail_msg("no %s", name);
    return 0;
}

static void narrow_host(void **state)
{
    static const unsigned widths[] = { 36, 39, 32 };
    char err[200];
    for (unsigned i = 0; i < ARRAY_SIZE(widths); i++) {
        vmm_host.phys_bits = widths[i];
        struct bed b = make(1, 64 * MIB);
        struct vm *vm = machine_vm(b.m);
        fake_hv_script(vm, idle, NULL);
        assert_int_equal(machine_start(b.m, err, sizeof err), 0);
        assert_int_equal(vm_pause(vm), 0);
        uint64_t base = dsdt_name(vm_gmem(vm), "M64B"), len = dsdt_name(vm_gmem(vm), "M64L"), top = BIT(widths[i]);
        assert_true(base >= BIT(32) && base + len <= MAX(top, BIT(32)));
        assert_int_equal(len, widths[i] == 36 ? 60ull << 30 : widths[i] == 39 ? 64ull << 30 : 0);
        uint64_t bar = 0xb0000000 + (3 << 15) + PCI_BAR(0);
        mmio_write(&b, bar, (uint32_t)(base + len - 0x8000));
        mmio_write(&b, bar + 4, (uint32_t)((base + len - 0x8000) >> 32));
        assert_int_equal(bus_claimed(vm_mmio(vm), base + len - 0x8000), len != 0);
        mmio_write(&b, bar, 0xffff8000);                        /* the last place there is, and the first beyond */
        mmio_write(&b, bar + 4, (uint32_t)((top - 1) >> 32));
        assert_int_equal(bus_claimed(vm_mmio(vm), top - 0x8000), len != 0);
        mmio_write(&b, bar, 0);
        mmio_write(&b, bar + 4, (uint32_t)(top >> 32));
        assert_false(bus_claimed(vm_mmio(vm), top));
        mmio_write(&b, bar, 0x8000000);                         /* between RAM and ECAM, for a kernel that believes no tables */
        mmio_write(&b, bar + 4, 0);
        assert_true(bus_claimed(vm_mmio(vm), 0x8000000));
        end(&b);
    }
    vmm_host.phys_bits = 36;
    struct machine *m;
    struct machine_config cfg = { .vm = { .name = "pc", .ncpus = 1, .ram = 80ull << 30 } };
    assert_int_equal(machine_create(&cfg, &m, err, sizeof err), -EINVAL);
    assert_non_null(strstr(err, "36 address bits"));
    vmm_host.phys_bits = 40;
}

/* ---- Save, load into a second machine of the same make ---- */

static void save_load(void **state)
{
    static uint8_t one[1 << 19], two[1 << 19];
    struct bed b = make(2, 64 * MIB);
    char err[200];
    fake_hv_script(machine_vm(b.m), idle, NULL);
    assert_int_equal(machine_start(b.m, err, sizeof err), 0);
    assert_int_equal(vm_pause(machine_vm(b.m)), 0);
    long n = machine_save(b.m, one, sizeof one);
    assert_true(n > 0);
    end(&b);
    b = make(2, 64 * MIB);
    fake_hv_script(machine_vm(b.m), idle, NULL);
    assert_int_equal(machine_start(b.m, err, sizeof err), 0);
    assert_int_equal(vm_pause(machine_vm(b.m)), 0);
    assert_int_equal(machine_load(b.m, one, (size_t)n), 0);
    assert_int_equal(machine_save(b.m, two, sizeof two), n);
    assert_memory_equal(one, two, n);
    assert_int_equal(vm_resume(machine_vm(b.m)), 0);
    end(&b);
}

static void resets(void **state)
{
    struct bed b = make(4, 64 * MIB);
    char err[200];
    fake_hv_script(machine_vm(b.m), idle, NULL);
    assert_int_equal(machine_start(b.m, err, sizeof err), 0);
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(vm_reset(machine_vm(b.m)), 0);
    end(&b);
}

static void config_write(struct bed *b, unsigned slot, unsigned reg, uint32_t val)
{
    mmio_write(b, 0xb0000000 + (slot << 15) + reg, val);
}

/* A running VM needs no memory of the host: paused, reset, its BARs moved and its local APICs in and out of x2APIC mode while every allocation fails. */
static void no_memory_beside(void **state)
{
    struct bed b = make(2, 64 * MIB);
    struct vm *vm = machine_vm(b.m);
    char err[200], reason[64];
    unsigned code;
    fake_hv_script(vm, idle, NULL);
    assert_int_equal(machine_start(b.m, err, sizeof err), 0);
    port_fail_alloc_after(0);
    for (unsigned i = 0; i < 20; i++) {
        struct machine *other;
        static const struct machine_config cfg = { .vm = { .name = "other", .ncpus = 1, .ram = 32 * MIB } };
        assert_int_equal(machine_create(&cfg, &other, err, sizeof err), -ENOMEM);
        assert_int_equal(vm_pause(vm), 0);
        struct vcpu *v = vm_vcpu(vm, 0);
        uint64_t base;
        assert_true(v->irqchip.msr_read(v->irqchip.apic, MSR_APIC_BASE, &base));
        assert_true(v->irqchip.msr_write(v->irqchip.apic, MSR_APIC_BASE, base | APIC_BASE_X2APIC));
        uint32_t bar = 0xd0000000 + i * 0x10000;
        config_write(&b, 3, PCI_BAR(0), bar);
        assert_true(bus_claimed(vm_mmio(vm), bar));
        config_write(&b, 3, PCI_COMMAND, 0);
        assert_false(bus_claimed(vm_mmio(vm), bar));
        assert_int_equal(vm_resume(vm), 0);
        assert_int_equal(vm_reset(vm), 0);
        assert_int_equal(vm_pause(vm), 0);
        assert_true(bus_claimed(vm_mmio(vm), 0xfee00000));
        assert_true(bus_claimed(vm_mmio(vm), (uint32_t)mmio(&b, 0xb0000000 + (3 << 15) + PCI_BAR(0), 4) & PCI_BAR_MEM_MASK));
        assert_int_equal(vm_resume(vm), 0);
    }
    assert_int_equal(vm_stop_cause(vm, reason, sizeof reason, &code), STOP_NONE);
    port_fail_alloc_after(-1);
    end(&b);
}

static void thousand(void **state)
{
    unsigned long before = port_alloc_count();
    for (unsigned i = 0; i < 1000; i++) {
        struct bed b = make(1 + i % 3, 32 * MIB);
        if (i % 8 == 0) {
            char err[200];
            fake_hv_script(machine_vm(b.m), idle, NULL);
            assert_int_equal(machine_start(b.m, err, sizeof err), 0);
        }
        end(&b);
    }
    assert_int_equal(port_alloc_count(), before);
}

/* Every allocation on the way fails once: an error, no leak, no crash. */
static void no_memory(void **state)
{
    static struct machine_config cfg;
    unsigned long before = port_alloc_count();
    make_kernel();
    cfg.vm = (struct vm_params){ .name = "pc", .ncpus = 2, .ram = 32 * MIB };
    cfg.kernel = (struct machine_blob){ &kernel, sizeof kernel };
    for (int n = 0; ; n++) {
        struct machine *m;
        char err[200] = "";
        port_fail_alloc_after(n);
        int e = machine_create(&cfg, &m, err, sizeof err);
        port_fail_alloc_after(-1);
        if (!e) {
            machine_destroy(m);
            break;
        }
        assert_true(err[0]);
        assert_int_equal(port_alloc_count(), before);
    }
}

static void bad_kernels(void **state)
{
    static struct machine_config cfg;
    char err[200] = "";
    struct machine *m;
    uint8_t junk[4096] = { 0 };
    cfg.vm = (struct vm_params){ .name = "pc", .ncpus = 1, .ram = 32 * MIB };
    cfg.kernel = (struct machine_blob){ junk, sizeof junk };
    assert_true(machine_create(&cfg, &m, err, sizeof err) < 0);
    assert_non_null(strstr(err, "kernel"));
    make_kernel();
    kernel.ph.p_paddr = kernel.ph.p_vaddr = 0x8000000;
    cfg.kernel = (struct machine_blob){ &kernel, sizeof kernel };
    assert_true(machine_create(&cfg, &m, err, sizeof err) < 0);
    assert_non_null(strstr(err, "memory"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(boots), cmocka_unit_test(firmware), cmocka_unit_test(narrow_host), cmocka_unit_test(save_load), cmocka_unit_test(resets), cmocka_unit_test(thousand),
        cmocka_unit_test(no_memory), cmocka_unit_test(no_memory_beside), cmocka_unit_test(bad_kernels),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
