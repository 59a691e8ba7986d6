#include "kernel/x86/smp.h"
#include <stdio.h>
#include <string.h>
#include "boot/ap.h"
#include "boot/boot.h"
#include "kernel/lib/log.h"
#include "kernel/mm/page.h"
#include "kernel/sched/sched.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/lapic.h"
#include "kernel/x86/mitigations.h"
#include "kernel/x86/mtrr.h"
#include "kernel/x86/power.h"
#include "kernel/x86/smp_internal.h"
#include "kernel/x86/time.h"
#include "kernel/x86/trap.h"
#include "kernel/x86/vmap.h"
#include "kernel/x86/watchdog.h"

enum { INIT_US = 10000, SIPI_US = 200, ONLINE_MS = 1000 };
enum ap_stage { AP_WAITING, AP_ALIVE /* on its own stack: the trampoline is free */, AP_CHECKED /* fit to run */, AP_READY, AP_FAILED };

static struct { uint32_t stage; char err[128]; } ap;    /* of the one CPU being started */

/* ---- On the new CPU ---- */
static void ap_main(void *arg)
{
    struct percpu *p = arg;
    trap_init_cpu(p);
    atomic_store(&ap.stage, (uint32_t)AP_ALIVE);
    mtrr_apply();
    if (!cpu_init(ap.err, sizeof(ap.err))) {
        atomic_store(&ap.stage, (uint32_t)AP_FAILED);
        cpu_halt_forever();
    }
    mitigations_init_cpu();
    lapic_init_cpu(&acpi, p->acpi_uid);
    atomic_store(&ap.stage, (uint32_t)AP_CHECKED);
    time_sync_self();
    time_init_cpu();
    sched_init_cpu();
    watchdog_start();
    p->online = true;
    atomic_store(&ap.stage, (uint32_t)AP_READY);
    sched_start_cpu();
}

/* ---- On the boot CPU ---- */
static bool wait_stage(uint32_t stage, unsigned ms)
{
    for (unsigned i = 0; i < ms * 20; i++) {
        if (atomic_load(&ap.stage) >= stage)
            return true;
        delay_us(50);
    }
    return atomic_load(&ap.stage) >= stage;
}

static bool prepare(struct percpu *p, hpa_t trampoline)
{
    uint8_t *stack = kstack_alloc();
    if (!stack || trap_alloc_stacks(p))
        return false;
    p->kstack = (uint64_t)stack + KSTACK_SIZE;
    uint8_t *page = pa_to_va(trampoline);
    memcpy(page, ap_trampoline_start, (size_t)(ap_trampoline_end - ap_trampoline_start));
    struct ap_params params = { .cr3 = vmap_root(), .cr4 = CR4_PAE | CR4_PGE, .efer = EFER_LME | EFER_NXE, .pat = PT_HOST_PAT, .stack = p->kstack,
                                .percpu = (uint64_t)p, .entry = (uint64_t)ap_main };
    memcpy(page + (ap_trampoline_params - ap_trampoline_start), &params, sizeof(params));
    atomic_store(&ap.stage, (uint32_t)AP_WAITING);
    return true;
}

/* SDM vol. 3 "MP Initialization Protocol Algorithm": the INITs were sent 10 ms ago. */
static bool startup(const struct percpu *p, hpa_t trampoline)
{
    uint32_t sipi = APIC_STARTUP | (uint32_t)ICR_ASSERT | (uint32_t)(trampoline >> PAGE_SHIFT);
    lapic_ipi(p->apic_id, sipi);
    delay_us(SIPI_US);
    if (atomic_load(&ap.stage) == AP_WAITING)
        lapic_ipi(p->apic_id, sipi);
    if (wait_stage(AP_ALIVE, ONLINE_MS))
        return true;
    /* It may still come later: another INIT parks it before the page is used again. */
    lapic_ipi(p->apic_id, APIC_INIT | (uint32_t)ICR_ASSERT);
    delay_us(INIT_US);
    return false;
}

static bool start_one(const struct acpi_cpu *c, hpa_t trampoline)
{
    struct percpu *p = percpu_create(c->apic_id, c->uid);
    if (!p || !prepare(p, trampoline)) {
        log_err("smp", "no memory or no slot for the CPU with APIC ID %u", (unsigned)c->apic_id);
        return false;
    }
    if (!startup(p, trampoline)) {
        log_err("smp", "the CPU with APIC ID %u does not start; it stays off", (unsigned)c->apic_id);
    } else {
        if (wait_stage(AP_CHECKED, ONLINE_MS) && atomic_load(&ap.stage) == AP_CHECKED)
            time_sync_ap(p->cpu);
        if (wait_stage(AP_READY, ONLINE_MS) && atomic_load(&ap.stage) == AP_READY)
            return true;
        log_err("smp", "the CPU with APIC ID %u cannot be used: %s", (unsigned)c->apic_id, ap.err[0] ? ap.err : "it stopped in its set-up");
    }
    percpu_drop_last();
    return false;
}

void smp_start(hpa_t trampoline)
{
    uint32_t self = this_cpu()->apic_id;
    if (!acpi.cpus || (acpi.cpus == 1 && acpi.cpu[0].apic_id == self))
        return;
    if (!trampoline || vmap_identity(trampoline, PAGE_SIZE, true)) {
        log_warn("smp", "no page below 1 MiB is free: only the boot CPU is used");
        return;
    }
    mtrr_save();
    for (unsigned i = 0; i < acpi.cpus; i++)
        if (acpi.cpu[i].apic_id != self)
            lapic_ipi(acpi.cpu[i].apic_id, APIC_INIT | (uint32_t)ICR_ASSERT);
    delay_us(INIT_US);
    unsigned dead = 0;
    for (unsigned i = 0; i < acpi.cpus; i++)
        if (acpi.cpu[i].apic_id != self)
            dead += !start_one(&acpi.cpu[i], trampoline);
    vmap_identity(trampoline, PAGE_SIZE, false);
    irq_enable();               /* the flush calls the other CPUs */
    smp_flush_tlb((void *)trampoline, PAGE_SIZE);
    log_info("smp", "%u CPUs online%s", percpu_count, dead ? ", some did not start" : "");
}

/* ---- Kicks and calls ---- */
void smp_kick(unsigned cpu) { lapic_ipi(percpu_of(cpu)->apic_id, VEC_KICK); }
void smp_resched(unsigned cpu)
{
    atomic_or(&percpu_of(cpu)->softwork, SOFT_RESCHED);
    lapic_ipi(percpu_of(cpu)->apic_id, VEC_RESCHED);
}

/* One call at a time; waiters keep interrupts on and so answer calls of others. */
static struct { struct spinlock lock; void (*fn)(void *); void *arg; uint32_t pending; } call;

void smp_call_interrupt(void)
{
    call.fn(call.arg);
    atomic_sub(&call.pending, 1u);
}

static void wait_call(void)
{
    while (atomic_load(&call.pending))
        cpu_relax();
}

void smp_call_on(unsigned cpu, void (*fn)(void *), void *arg)
{
    preempt_disable();
    if (cpu == cpu_index()) {
        unsigned long f = irq_save();
        fn(arg);
        irq_restore(f);
    } else if (percpu_of(cpu)->online) {
        ASSERT(irqs_enabled());
        spin_lock(&call.lock);
        call.fn = fn, call.arg = arg;
        atomic_store(&call.pending, 1u);
        lapic_ipi(percpu_of(cpu)->apic_id, VEC_CALL);
        wait_call();
        spin_unlock(&call.lock);
    }
    preempt_enable();
}

void smp_call_others(void (*fn)(void *), void *arg)
{
    preempt_disable();
    spin_lock(&call.lock);
    unsigned me = cpu_index(), n = 0;
    for (unsigned i = 0; i < percpu_count; i++)
        n += i != me && percpu_of(i)->online;
    ASSERT(!n || irqs_enabled());
    call.fn = fn, call.arg = arg;
    atomic_store(&call.pending, n);
    for (unsigned i = 0; i < percpu_count && n; i++)
        if (i != me && percpu_of(i)->online)
            lapic_ipi(percpu_of(i)->apic_id, VEC_CALL);
    wait_call();
    spin_unlock(&call.lock);
    preempt_enable();
}

struct flush { uintptr_t va; size_t len; };

static void flush_here(void *arg)
{
    const struct flush *f = arg;
    if (f->len > 64 * PAGE_SIZE) {
        tlb_flush_local();
        return;
    }
    for (uintptr_t va = ALIGN_DOWN(f->va, PAGE_SIZE); va < f->va + f->len; va += PAGE_SIZE)
        invlpg((void *)va);
}

void smp_flush_tlb(const void *va, size_t len)
{
    struct flush f = { (uintptr_t)va, len };
    preempt_disable();
    flush_here(&f);
    smp_call_others(flush_here, &f);
    preempt_enable();
}

/* ---- Stop ---- */
static uint32_t stopping, stopped;

bool smp_nmi_stop(void)
{
    if (!atomic_load(&stopping) || atomic_load(&stopping) == cpu_index() + 1)
        return false;
    power_hv_off();             /* INIT and reset are blocked in VMX operation */
    atomic_add(&stopped, 1u);
    cpu_halt_forever();
    return true;
}

void smp_stop_others(void)
{
    uint32_t none = 0;
    unsigned me = cpu_index(), n = 0;
    if (!atomic_cas(&stopping, &none, me + 1))
        return;
    for (unsigned i = 0; i < percpu_count; i++) {
        if (i == me || !percpu_of(i) || !percpu_of(i)->online)
            continue;
        lapic_ipi(percpu_of(i)->apic_id, APIC_NMI | (uint32_t)ICR_ASSERT);
        n++;
    }
    for (unsigned i = 0; i < 20000 && atomic_load(&stopped) < n; i++)
        delay_us(10);
}
