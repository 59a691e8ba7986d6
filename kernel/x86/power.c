#include "kernel/x86/power.h"
#include <errno.h>
#include "kernel/lib/log.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/smp.h"
#include "kernel/x86/time.h"
#include "kernel/x86/vmap.h"

static void (*hv_off)(void);
static struct { uint64_t pa; volatile uint8_t *va; } mapped[8];

void power_set_hv_off(void (*fn)(void)) { atomic_store(&hv_off, fn); }
void power_hv_off(void)
{
    void (*fn)(void) = atomic_load(&hv_off);
    if (fn)
        fn();
}

static volatile uint8_t *memory_reg(uint64_t pa)
{
    for (unsigned i = 0; i < ARRAY_SIZE(mapped); i++)
        if (mapped[i].va && mapped[i].pa == pa)
            return mapped[i].va;
    return NULL;
}

uint32_t acpi_reg_read(const struct acpi_gas *g)
{
    if (!g->address)
        return 0;
    if (g->space == ACPI_SPACE_IO) {
        uint16_t port = (uint16_t)g->address;
        return g->bits <= 8 ? inb(port) : g->bits <= 16 ? inw(port) : inl(port);
    }
    volatile uint8_t *p = memory_reg(g->address);
    return !p ? 0 : g->bits <= 8 ? mmio_read8(p) : g->bits <= 16 ? mmio_read16(p) : mmio_read32(p);
}

void acpi_reg_write(const struct acpi_gas *g, uint32_t v)
{
    if (!g->address)
        return;
    if (g->space == ACPI_SPACE_IO) {
        uint16_t port = (uint16_t)g->address;
        if (g->bits <= 8)
            outb(port, (uint8_t)v);
        else if (g->bits <= 16)
            outw(port, (uint16_t)v);
        else
            outl(port, v);
        return;
    }
    volatile uint8_t *p = memory_reg(g->address);
    if (!p)
        return;
    if (g->bits <= 8)
        mmio_write8(p, (uint8_t)v);
    else if (g->bits <= 16)
        mmio_write16(p, (uint16_t)v);
    else
        mmio_write32(p, v);
}

void power_init(void)
{
    const struct acpi_gas *regs[] = { &acpi.reset, &acpi.sleep_control, &acpi.sleep_status, &acpi.pm1a_cnt, &acpi.pm1b_cnt, &acpi.pm_timer,
                                      &acpi.pm1a_evt, &acpi.pm1b_evt };
    for (unsigned i = 0; i < ARRAY_SIZE(regs); i++)
        if (regs[i]->address && regs[i]->space == ACPI_SPACE_MEMORY)
            mapped[i].pa = regs[i]->address, mapped[i].va = mmio_map(regs[i]->address, 8, PT_UC);
    const struct acpi_gas *r = &acpi.reset;
    if (acpi.reset_supported)
        log_debug("acpi", "reset: write %#x to %s %#llx", acpi.reset_value, r->space == ACPI_SPACE_IO ? "port" : "memory", (unsigned long long)r->address);
}

/* PM1 control only obeys once the firmware has handed over: ACPI 6.4 "Legacy/ACPI Select and the SCI Interrupt". */
static void enable_acpi(void)
{
    if (acpi.hw_reduced || acpi_reg_read(&acpi.pm1a_cnt) & PM1_CNT_SCI_EN || !acpi.smi_cmd || !acpi.acpi_enable)
        return;
    outb((uint16_t)acpi.smi_cmd, acpi.acpi_enable);
    for (unsigned ms = 0; ms < 3000 && !(acpi_reg_read(&acpi.pm1a_cnt) & PM1_CNT_SCI_EN); ms++)
        delay_us(1000);
}

static void hv_off_here(void *arg) { power_hv_off(); }

static void sleep_s5(void)
{
    if (acpi.hw_reduced) {
        acpi_reg_write(&acpi.sleep_status, 0x80);
        acpi_reg_write(&acpi.sleep_control, (uint32_t)(acpi.s5_a << SLEEP_CNT_SLP_TYP_SHIFT | SLEEP_CNT_SLP_EN));
        return;
    }
    uint32_t a = acpi_reg_read(&acpi.pm1a_cnt) & ~(uint32_t)(PM1_CNT_SLP_TYP | PM1_CNT_SLP_EN);
    uint32_t b = acpi_reg_read(&acpi.pm1b_cnt) & ~(uint32_t)(PM1_CNT_SLP_TYP | PM1_CNT_SLP_EN);
    acpi_reg_write(&acpi.pm1a_evt, PM1_STS_WAK);
    /* Type first, then type with enable: some chipsets latch them apart. */
    acpi_reg_write(&acpi.pm1a_cnt, a | (uint32_t)acpi.s5_a << PM1_CNT_SLP_TYP_SHIFT);
    acpi_reg_write(&acpi.pm1b_cnt, b | (uint32_t)acpi.s5_b << PM1_CNT_SLP_TYP_SHIFT);
    wbinvd();
    acpi_reg_write(&acpi.pm1a_cnt, a | (uint32_t)acpi.s5_a << PM1_CNT_SLP_TYP_SHIFT | (uint32_t)PM1_CNT_SLP_EN);
    acpi_reg_write(&acpi.pm1b_cnt, b | (uint32_t)acpi.s5_b << PM1_CNT_SLP_TYP_SHIFT | (uint32_t)PM1_CNT_SLP_EN);
}

int power_off(void)
{
    if (!acpi.have_s5 || !(acpi.hw_reduced ? acpi.sleep_control.address : acpi.pm1a_cnt.address)) {
        log_err("power", "the firmware's ACPI tables name no way to switch off; use the power button");
        return -ENOTSUP;
    }
    enable_acpi();
    smp_call_others(hv_off_here, NULL);
    power_hv_off();
    sleep_s5();
    delay_us(3000000);
    log_err("power", "the machine did not switch off");
    return -EIO;
}

/* Keyboard controller's pulse of the reset line: bounded wait for its input buffer. */
static void reset_8042(void)
{
    for (unsigned i = 0; i < 10000 && inb(0x64) & 2; i++)
        delay_us(1);
    outb(0x64, 0xfe);
}

static void triple_fault(void)
{
    struct x86_dtr none = { 0, 0 };
    __asm__ volatile("lidt %0; int3" :: "m"(none));
}

void power_reset(void)
{
    irq_disable();
    smp_stop_others();
    power_hv_off();
    if (acpi.reset_supported) {
        acpi_reg_write(&acpi.reset, acpi.reset_value);
        delay_us(100000);
    }
    outb(0xcf9, 0x02);          /* hard reset, memory kept */
    delay_us(50);
    outb(0xcf9, 0x06);
    delay_us(100000);
    reset_8042();
    delay_us(100000);
    triple_fault();
    cpu_halt_forever();
    __builtin_unreachable();
}
