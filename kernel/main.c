/* Composition root: how the machine comes up, top to bottom. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "boot/boot.h"
#include "boot/bootinfo.h"
#include "drivers/fbcon.h"
#include "drivers/pci.h"
#include "drivers/pci_selftest.h"
#include "drivers/ps2.h"
#include "drivers/uart16550.h"
#include "kernel/console/console.h"
#include "kernel/host_boot.h"
#include "kernel/image_selftest.h"
#include "kernel/lib/log.h"
#include "kernel/mm/page.h"
#include "kernel/sched/sched.h"
#include "kernel/sched/selftest.h"
#include "kernel/sched/torture.h"
#include "kernel/virt.h"
#include "kernel/vmm/vcpu.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/ioapic.h"
#include "kernel/x86/irq.h"
#include "kernel/x86/lapic.h"
#include "kernel/x86/mitigations.h"
#include "kernel/x86/panic.h"
#include "kernel/x86/power.h"
#include "kernel/x86/provoke.h"
#include "kernel/x86/random.h"
#include "kernel/x86/smp.h"
#include "kernel/x86/time.h"
#include "kernel/x86/time_internal.h"
#include "kernel/x86/vmap.h"
#include "kernel/x86/watchdog.h"
#include "mgmt/mgmt.h"

static struct bootinfo boot;
struct acpi_info acpi;

/* ---- Boot information ---- */
static void *identity(uint64_t pa, size_t len) { return pa + len <= 1ull << 32 && pa + len >= pa ? (void *)pa : NULL; }

static void read_bootinfo(uint32_t kind, uint64_t info_pa)
{
    char err[160] = "";
    int r = kind == BOOT_KIND_PVH ? bootinfo_pvh(&boot, info_pa, identity, err, sizeof(err))
          : kind == BOOT_KIND_MULTIBOOT2 ? bootinfo_multiboot2(&boot, identity(info_pa, 8), 1 << 20, err, sizeof(err)) : -1;
    if (r)
        panic("the boot loader's information cannot be used: %s", err[0] ? err : "unknown boot protocol");
    char v[16];
    if (bootinfo_option(&boot, "panic", v, sizeof(v)))
        panic_set_timeout((unsigned)atoi(v));
    log_info("boot", "Joist, loaded by %s; options: %s", boot.loader[0] ? boot.loader : "an unnamed loader", boot.cmdline[0] ? boot.cmdline : "none");
}

static bool option_is(const char *key, const char *value)
{
    char v[16];
    return bootinfo_option(&boot, key, v, sizeof(v)) && !strcmp(v, value);
}

/* phys-bits=N: guests see an address space narrower than this CPU's, as on a CPU with N bits. */
static unsigned guest_phys_bits(void)
{
    char v[16];
    int n = bootinfo_option(&boot, "phys-bits", v, sizeof(v)) ? atoi(v) : 0;
    return n >= 36 && (unsigned)n < cpu_info.phys_bits ? (unsigned)n : cpu_info.phys_bits;
}

/* ---- Memory ---- */
struct span { uint64_t base, end; };
enum { MAX_SPANS = BOOT_MAX_MODS + 8, LOG_AREA_SIZE = 256 << 10, MIN_FREE = 64 << 20 };
#define LOW_MEMORY_END  (1ull << 20)    /* firmware data, trampoline of the other CPUs */
#define EARLY_END       (1ull << 32)    /* what the loader's page tables reach */

static struct span kept[MAX_SPANS];     /* sorted: never given to the allocator */
static unsigned nkept;
static hpa_t log_area;

static void keep(uint64_t base, uint64_t len)
{
    unsigned i = nkept++;
    for (; i > 0 && kept[i - 1].base > base; i--)
        kept[i] = kept[i - 1];
    kept[i] = (struct span){ ALIGN_DOWN(base, PAGE_SIZE), ALIGN_UP(base + len, PAGE_SIZE) };
}

static bool usable(const struct bootmem *m) { return m->type == BOOTMEM_RAM || m->type == BOOTMEM_LOADER; }

static bool is_kept(uint64_t base, uint64_t len)
{
    for (unsigned i = 0; i < nkept; i++)
        if (base < kept[i].end && kept[i].base < base + len)
            return true;
    return false;
}

/* The log's place must be the same at the next boot although the memory map may differ a little: the first of a few fixed addresses that is free RAM. */
static hpa_t choose_log_area(void)
{
    static const uint32_t candidates[] = { 0x5a000000, 0x3a000000, 0x1a000000, 0x0e000000, 0x07000000, 0x03c00000 };
    for (unsigned c = 0; c < ARRAY_SIZE(candidates); c++)
        for (int i = 0; i < boot.nmem; i++)
            if (boot.mem[i].type == BOOTMEM_RAM && candidates[c] >= boot.mem[i].base &&
                candidates[c] + LOG_AREA_SIZE <= boot.mem[i].base + boot.mem[i].len && !is_kept(candidates[c], LOG_AREA_SIZE))
                return candidates[c];
    return 0;
}

static void add_ram(uint64_t from, uint64_t to)
{
    for (int i = 0; i < boot.nmem; i++) {
        const struct bootmem *m = &boot.mem[i];
        if (!usable(m))
            continue;
        uint64_t at = MAX(m->base, from), end = MIN(m->base + m->len, to);
        for (unsigned k = 0; k < nkept && at < end; k++) {
            if (kept[k].end <= at || kept[k].base >= end)
                continue;
            if (kept[k].base > at)
                page_add_range(at, kept[k].base - at);
            at = kept[k].end;
        }
        if (at < end)
            page_add_range(at, end - at);
    }
}

static void memory_init(void)
{
    keep(0, LOW_MEMORY_END);
    keep(image_pa(__image_start), (uint64_t)(__image_end - __image_start));
    for (int i = 0; i < boot.nmods; i++)
        keep(boot.mods[i].base, boot.mods[i].len);
    log_area = choose_log_area();
    if (log_area)
        keep(log_area, LOG_AREA_SIZE);
    page_init();
    add_ram(LOW_MEMORY_END, EARLY_END);
    vmap_init(&boot);
    add_ram(EARLY_END, ~0ull);
    if (log_area)
        log_use_area(pa_to_va(log_area), LOG_AREA_SIZE, kmalloc(LOG_AREA_SIZE));
    struct mem_stats s;
    mem_stats(&s);
    if (s.free < MIN_FREE)
        log_warn("mm", "only %llu MiB of RAM are free: VMs need more; give this machine at least 512 MiB", (unsigned long long)(s.free >> 20));
    log_info("mm", "%llu MiB of RAM for use, %llu MiB free", (unsigned long long)(s.total >> 20), (unsigned long long)(s.free >> 20));
}

/* A page below 1 MiB for the start of the other CPUs: RAM of the map, above the BIOS data and below the extended BIOS data. */
static hpa_t low_page(void)
{
    for (int i = boot.nmem - 1; i >= 0; i--) {
        const struct bootmem *m = &boot.mem[i];
        uint64_t from = MAX(m->base, 0x1000ull), to = MIN(m->base + m->len, 0x9f000ull);
        if (m->type == BOOTMEM_RAM && from + PAGE_SIZE <= to)
            return ALIGN_DOWN(to - PAGE_SIZE, PAGE_SIZE);
    }
    return 0;
}

/* ---- Platform ---- */

/* An IOMMU that the firmware left translating would send device DMA elsewhere: VT-d Global Status bit 31 at 1Ch; AMD control register bit 0 at 18h. */
static void report_iommu(void)
{
    bool on = false;
    for (unsigned i = 0; i < acpi.iommus; i++) {
        const volatile uint8_t *regs = mmio_map(acpi.iommu_base[i], PAGE_SIZE, PT_UC);
        on |= regs && (acpi.dmar ? mmio_read32(regs + 0x1c) >> 31 : mmio_read32(regs + 0x18) & 1);
    }
    log_write(on ? LOG_WARN : LOG_INFO, "iommu", "%u %s unit(s), %s", acpi.iommus, acpi.dmar ? "Intel VT-d" : "AMD-Vi",
              on ? "left on by the firmware: if disks or network do not work, switch the IOMMU or kernel DMA protection off in the firmware set-up"
                 : "off; device DMA is not restricted");
}

static void read_acpi(void)
{
    struct acpi_source src = { firmware_map, boot.rsdp, boot.rsdp_copy, boot.rsdp_copy_len };
    if (acpi_parse(&acpi, &src))
        log_warn("acpi", "no tables found: one CPU, no power-off");
    for (unsigned i = 0; i < acpi.warnings; i++)
        log_warn("acpi", "%s", acpi.warning[i]);
    if (acpi.found)
        log_info("acpi", "%.6s: %u CPUs, %u IOAPICs, %s%s%s%sS5 %s", acpi.oem, acpi.cpus_listed, acpi.ioapics, acpi.hpet ? "HPET, " : "",
                 acpi.mcfgs ? "MCFG, " : "", acpi.have_spcr ? "SPCR, " : "", acpi.hw_reduced ? "hardware-reduced, " : "", acpi.have_s5 ? "known" : "unknown");
    if (acpi.dmar || acpi.ivrs)
        report_iommu();
    if (acpi.have_spcr)
        uart_add_spcr(&acpi.spcr);
    if (acpi.cpus_listed > acpi.cpus)
        log_warn("acpi", "%u CPUs are listed, %u can be used", acpi.cpus_listed, acpi.cpus);
    power_init();
}

static void screen_init(void)
{
    const struct bootfb *f = &boot.fb;
    const struct fbcon_mode m = {
        .base = f->base, .width = f->width, .height = f->height, .pitch = f->pitch, .bpp = f->bpp, .red_pos = f->red_pos, .red_len = f->red_len,
        .green_pos = f->green_pos, .green_len = f->green_len, .blue_pos = f->blue_pos, .blue_len = f->blue_len, .text = f->text,
    };
    if (f->base)
        fbcon_init(&m);
}

static void platform_init(void)
{
    char err[160], v[8];
    read_acpi();
    pic_disable();
    if (!lapic_init(&acpi, !bootinfo_option(&boot, "nox2apic", v, sizeof(v)), err, sizeof(err)))
        panic("%s", err);
    lapic_init_cpu(&acpi, 0xffffffff);
    this_cpu()->apic_id = lapic_id();
    log_info("apic", "%s, boot CPU has ID %u", lapic_x2apic() ? "x2APIC" : "xAPIC", (unsigned)this_cpu()->apic_id);
    power_set_hv_off(virt_off_this_cpu);
    irq_init();
    ioapic_init(&acpi);
    time_init();
    time_init_cpu();
}

/* Optional parts of the CPU's virtualization: switched off to try the paths of CPUs that lack them. */
static unsigned left_alone(void)
{
    static const struct { const char *word; unsigned bit; } words[] = {
        { "noapicv", WITHOUT_APIC_VIRT }, { "novpid", WITHOUT_VPID }, { "noeptad", WITHOUT_EPT_AD },
    };
    unsigned without = 0;
    char v[8];
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
        without |= bootinfo_option(&boot, words[i].word, v, sizeof(v)) ? words[i].bit : 0;
    return without;
}

/* The first thread: everything that may sleep. */
static void init_thread(void *arg)
{
    char v[16];
    uart_start();
    struct chan *screen = fbcon_start();
    if (screen)
        ps2_start(screen);
    log_start_thread();
    pci_init();
    pci_probe_all();
    if (bootinfo_option(&boot, "torture", v, sizeof(v)))
        torture_rate = (unsigned)atoi(v);
    if (bootinfo_option(&boot, "selftest", v, sizeof(v)) && !strncmp(v, "sched", 5))
        sched_selftest(!strcmp(v, "sched,loaded"));
    if (option_is("selftest", "pci"))
        pci_selftest();
    if (option_is("selftest", "screen"))
        fbcon_selftest();
    virt_init(&(struct virt_options){
        .phys_bits = guest_phys_bits(), .without = left_alone(), .check_entries = option_is("check", "vmcb"),
    });
    host_find_images();
    if (option_is("selftest", "image"))
        image_selftest();
    log_info("boot", "ready %llu ms after entry", (unsigned long long)(clock_ns() / 1000000));
    mgmt_start();
    if (bootinfo_option(&boot, "fault", v, sizeof(v)) && !log_has_previous())   /* once: not again after the reset it led to */
        provoke(v);
}

__attribute__((noreturn)) void kernel_main(uint32_t kind, uint64_t info_pa)
{
    char err[160];
    percpu_init_boot();
    time_set_base();
    log_init();
    trap_init();
    trap_init_cpu(this_cpu());
    cpu_detect();               /* reads MSRs that some CPUs lack: after the exception table works */
    uart_early_init();
    read_bootinfo(kind, info_pa);
    host_init(&boot);
    if (!cpu_init(err, sizeof(err)))
        panic("this CPU cannot run Joist: %s", err);
    log_info("cpu", "%s, family %#x model %#x stepping %u, microcode %#x, %u address bits", cpu_info.brand, cpu_info.family, cpu_info.model,
             cpu_info.stepping, (unsigned)cpu_info.microcode, cpu_info.phys_bits);
    memory_init();
    screen_init();
    mitigations_init(option_is("mitigations", "off"));
    mitigations_init_cpu();
    platform_init();
    random_init(boot.seed, boot.have_seed ? sizeof(boot.seed) : 0);
    memset(boot.seed, 0, sizeof(boot.seed));
    this_cpu()->kstack = (uint64_t)boot_stack_top;
    sched_init_cpu();
    irq_enable();
    smp_start(low_page());
    watchdog_start();
    if (!thread_start("init", init_thread, NULL))
        panic("no memory for the first thread");
    sched_start_cpu();
}
