#include "kernel/sched/fpu.h"
#include <string.h>
#include "kernel/sched/thread.h"
#include "kernel/x86/cpu.h"

#define MXCSR_INIT      0x1f80u
#define MXCSR_MASK_OLD  0xffbfu         /* when FXSAVE stores a zero mask */
#define FCW_INIT        0x037fu
enum { FXSAVE_FCW = 0, FXSAVE_MXCSR_MASK = 28, XSTATE_BV = FPU_HEADER };

size_t sched_fpu_size(void)
{
    static size_t size;                 /* the same for whoever computes it first */
    if (!size)
        size = cpu_has(FEAT_XSAVE) ? cpuid(0xd, 0).ebx : FPU_LEGACY_SIZE;
    return size;
}

static void save(void *area)
{
    if (cpu_has(FEAT_XSAVEOPT))
        __asm__ volatile("xsaveopt64 (%0)" :: "r"(area), "a"(~0u), "d"(~0u) : "memory");
    else if (cpu_has(FEAT_XSAVE))
        __asm__ volatile("xsave64 (%0)" :: "r"(area), "a"(~0u), "d"(~0u) : "memory");
    else
        __asm__ volatile("fxsave64 (%0)" :: "r"(area) : "memory");
}

static void restore(const void *area)
{
    if (cpu_has(FEAT_XSAVE))
        __asm__ volatile("xrstor64 (%0)" :: "r"(area), "a"(~0u), "d"(~0u) : "memory");
    else
        __asm__ volatile("fxrstor64 (%0)" :: "r"(area) : "memory");
}

static void own(struct thread *t)
{
    struct percpu *p = this_cpu();
    p->fpu_owner = t;
    t->fpu_cpu = p->cpu;
}

void fpu_switch_out(struct thread *t)
{
    if (t->fpu)
        save(t->fpu);
}

void fpu_switch_in(struct thread *t)
{
    if (!t->fpu || (this_cpu()->fpu_owner == t && t->fpu_cpu == cpu_index()))
        return;
    restore(t->fpu);
    own(t);
}

/* In the middle of a vCPU's time the guest's XCR0 may be in force. */
static uint64_t full_xcr0(void)
{
    uint64_t was = cpu_has(FEAT_XSAVE) ? xgetbv(0) : 0;
    if (was != cpu_info.xcr0)
        xsetbv(0, cpu_info.xcr0);
    return was;
}

static void put_back_xcr0(uint64_t was)
{
    if (was != cpu_info.xcr0)
        xsetbv(0, was);
}

/* While `fpu` is NULL a switch leaves the registers and the area alone. */
void fpu_detach(void)
{
    struct thread *t = cpu_current();
    preempt_disable();
    uint64_t xcr0 = full_xcr0();
    save(t->fpu);
    put_back_xcr0(xcr0);
    t->fpu_detached = t->fpu;
    t->fpu = NULL;
    preempt_enable();
}

void fpu_attach(void)
{
    struct thread *t = cpu_current();
    preempt_disable();
    t->fpu = t->fpu_detached;
    uint64_t xcr0 = full_xcr0();
    restore(t->fpu);
    put_back_xcr0(xcr0);
    own(t);
    preempt_enable();
}

static void put32(void *area, unsigned off, uint32_t v) { memcpy((uint8_t *)area + off, &v, sizeof v); }
static uint32_t get32(const void *area, unsigned off)
{
    uint32_t v;
    memcpy(&v, (const uint8_t *)area + off, sizeof v);
    return v;
}

void fpu_area_init(void *area)
{
    memset(area, 0, sched_fpu_size());
    put32(area, FXSAVE_FCW, FCW_INIT);
    put32(area, FPU_MXCSR, MXCSR_INIT);
}

static uint32_t mxcsr_mask(void)
{
    uint8_t area[FPU_LEGACY_SIZE] __aligned_to(16) = { 0 };
    __asm__ volatile("fxsave64 (%0)" :: "r"(area) : "memory");
    uint32_t mask = get32(area, FXSAVE_MXCSR_MASK);
    return mask ? mask : MXCSR_MASK_OLD;
}

void fpu_area_sanitize(void *area)
{
    put32(area, FPU_MXCSR, get32(area, FPU_MXCSR) & mxcsr_mask());
    if (!cpu_has(FEAT_XSAVE))
        return;
    uint64_t bv;
    memcpy(&bv, (uint8_t *)area + XSTATE_BV, sizeof bv);
    bv &= cpu_info.xcr0;
    memset((uint8_t *)area + FPU_HEADER, 0, FPU_HEADER_SIZE);
    memcpy((uint8_t *)area + XSTATE_BV, &bv, sizeof bv);
}
