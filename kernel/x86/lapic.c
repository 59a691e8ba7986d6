#include <stdio.h>
#include "kernel/lib/log.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/irq.h"
#include "kernel/x86/lapic.h"
#include "kernel/x86/vmap.h"

static struct {
    bool x2apic;
    volatile uint8_t *regs;     /* xAPIC */
} la;

bool lapic_x2apic(void) { return la.x2apic; }

static uint32_t rd(unsigned reg)
{
    return la.x2apic ? (uint32_t)rdmsr(MSR_X2APIC + reg / 16) : mmio_read32(la.regs + reg);
}

static void wr(unsigned reg, uint32_t v)
{
    if (la.x2apic)
        wrmsr(MSR_X2APIC + reg / 16, v);
    else
        mmio_write32(la.regs + reg, v);
}

uint32_t lapic_id(void) { return la.x2apic ? rd(LAPIC_ID) : rd(LAPIC_ID) >> 24; }
void lapic_eoi(void) { wr(LAPIC_EOI, 0); }

/* The mode the firmware left is read before any register is touched: in x2APIC mode the MMIO page does not answer, and there is no way back to xAPIC but a reset. */
bool lapic_init(const struct acpi_info *a, bool allow_x2apic, char *err, size_t errlen)
{
    uint64_t base = rdmsr(MSR_APIC_BASE);
    bool need = false;
    for (unsigned i = 0; i < a->cpus; i++)
        need |= a->cpu[i].apic_id >= 0xff;
    la.x2apic = base & APIC_BASE_X2APIC || (cpu_has(FEAT_X2APIC) && (need || (allow_x2apic && !a->x2apic_opt_out)));
    if (la.x2apic)
        return true;
    hpa_t pa = base & APIC_BASE_ENABLE && base & APIC_BASE_ADDR ? base & APIC_BASE_ADDR : a->lapic_base;
    la.regs = mmio_map(pa, PAGE_SIZE, PT_UC);
    if (!la.regs)
        snprintf(err, errlen, "the local APIC's registers at %#llx cannot be mapped", (unsigned long long)pa);
    return la.regs;
}

static void enable_mode(void)
{
    uint64_t base = rdmsr(MSR_APIC_BASE);
    uint64_t want = base | APIC_BASE_ENABLE;
    if (!(base & APIC_BASE_ENABLE))
        wrmsr(MSR_APIC_BASE, want);             /* off to x2APIC goes through xAPIC */
    if (la.x2apic && !(base & APIC_BASE_X2APIC))
        wrmsr(MSR_APIC_BASE, want | APIC_BASE_X2APIC);
}

/* Interrupts that firmware or a former kernel left in service would block all of lower priority for ever. */
static void clear_in_service(void)
{
    for (unsigned round = 0; round < 256; round++) {
        uint32_t any = 0;
        for (unsigned i = 0; i < 8; i++)
            any |= rd(LAPIC_ISR + 16 * i);
        if (!any)
            return;
        lapic_eoi();
    }
}

/* NMI lines as the MADT says, for this CPU or for all; without an entry LINT1 is the PC's NMI. */
static void init_lints(const struct acpi_info *a, uint32_t uid)
{
    wr(LAPIC_LVT_LINT0, LVT_MASKED);
    wr(LAPIC_LVT_LINT1, a->lints ? LVT_MASKED : APIC_NMI);
    for (unsigned i = 0; i < a->lints; i++) {
        const struct acpi_lint *l = &a->lint[i];
        if (l->all || l->uid == uid)
            wr(l->lint ? LAPIC_LVT_LINT1 : LAPIC_LVT_LINT0, APIC_NMI | (l->active_low ? LVT_ACTIVE_LOW : 0));     /* NMI is edge whatever the table says */
    }
}

void lapic_init_cpu(const struct acpi_info *a, uint32_t uid)
{
    enable_mode();
    wr(LAPIC_TPR, 0);
    if (!la.x2apic) {
        wr(LAPIC_DFR, 0xffffffff);
        wr(LAPIC_LDR, 0);
    }
    wr(LAPIC_SVR, LAPIC_SVR_ENABLE | VEC_SPURIOUS);
    unsigned last = rd(LAPIC_VERSION) >> 16 & 0xff;
    wr(LAPIC_LVT_TIMER, LVT_MASKED | VEC_TIMER);
    wr(LAPIC_LVT_ERROR, LVT_MASKED | VEC_APIC_ERROR);
    if (last >= 4)
        wr(LAPIC_LVT_PERF, LVT_MASKED | APIC_NMI);
    if (last >= 5)
        wr(LAPIC_LVT_THERMAL, LVT_MASKED | VEC_THERMAL);
    init_lints(a, uid);
    wr(LAPIC_ESR, 0);
    wr(LAPIC_ESR, 0);
    clear_in_service();
    wr(LAPIC_LVT_ERROR, VEC_APIC_ERROR);
}

static void wait_idle(void)
{
    for (unsigned i = 0; i < 1000000 && rd(LAPIC_ICR) & ICR_BUSY; i++)
        cpu_relax();
}

void lapic_ipi(uint32_t apic_id, uint32_t icr_low)
{
    if (la.x2apic) {
        /* The MSR write does not wait for earlier stores (SDM vol. 3 "MSR Access in x2APIC Mode"), and the receiver must see them. */
        __asm__ volatile("mfence; lfence" ::: "memory");
        wrmsr(MSR_X2APIC + LAPIC_ICR / 16, (uint64_t)apic_id << 32 | icr_low);
        return;
    }
    unsigned long f = irq_save();
    wait_idle();
    wr(LAPIC_ICR_HI, apic_id << 24);
    wr(LAPIC_ICR, icr_low);
    irq_restore(f);
}

void lapic_ipi_all_but_self(uint32_t icr_low)
{
    lapic_ipi(0, icr_low | ICR_ALL_BUT_SELF);
    if (!la.x2apic)
        wait_idle();
}

uint32_t lapic_error(void)
{
    wr(LAPIC_ESR, 0);
    return rd(LAPIC_ESR);
}

void lapic_timer_mode(uint32_t mode)
{
    wr(LAPIC_TIMER_DIVIDE, TIMER_DIVIDE_1);
    wr(LAPIC_LVT_TIMER, mode | VEC_TIMER);
    if (mode == LVT_TIMER_DEADLINE)     /* the mode must be in force before the first deadline: SDM vol. 3 "TSC-Deadline Mode" */
        __asm__ volatile("mfence" ::: "memory");
}

void lapic_timer_count(uint32_t count) { wr(LAPIC_TIMER_INIT, count); }
uint32_t lapic_timer_current(void) { return rd(LAPIC_TIMER_CURRENT); }
