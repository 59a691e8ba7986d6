#include "kernel/x86/provoke.h"
#include <string.h>
#include "boot/boot.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/percpu.h"
#include "kernel/x86/smp.h"
#include "kernel/x86/time.h"
#include "kernel/x86/vmap.h"

static void do_panic(void) { panic("asked for by fault=panic"); }
static void panic_here(void *arg) { panic("asked for by fault=panic-elsewhere"); }
static void panic_elsewhere(void) { smp_call_others(panic_here, NULL); }
static void do_assert(void) { ASSERT(preempt_count() == 12345); }
static void read_at(uint64_t va)
{
    __asm__ volatile("" : "+r"(va));    /* the compiler must not know that this is wrong */
    (void)*(volatile int *)va;
}
static void read_null(void) { read_at(8); }
static void write_text(void) { *(volatile char *)__text_start = 1; }
static void write_rodata(void) { *(volatile char *)__rodata_start = 1; }
static void exec_data(void) { ((void (*)(void))(uintptr_t)__data_start)(); }
static void read_hole(void) { read_at(PHYSMAP_BASE + (BIT(cpu_info.phys_bits) - PAGE_SIZE)); }
static void bad_opcode(void) { __asm__ volatile("ud2"); }
static void non_canonical(void) { read_at(0x8000000000000000ull); }

#pragma GCC diagnostic ignored "-Winfinite-recursion"
__attribute__((noinline)) static uint64_t deeper(volatile uint64_t *p)
{
    volatile uint64_t block[64];
    block[0] = *p + 1;
    return deeper(block) + block[0];
}
static void stack_overflow(void)
{
    volatile uint64_t start = 0;
    deeper(&start);
}

__attribute__((noinline)) static void smash(volatile char *p, size_t n)
{
    while (n--)
        *p++ = 0x55;
}
static void smash_stack(void)
{
    char room[16];
    smash(room, 64);
}

static void stuck_irqs_off(void)
{
    irq_disable();
    delay_us(14000000);
    irq_enable();
}
static void stuck_no_preempt(void)
{
    preempt_disable();
    delay_us(20000000);
    preempt_enable();
}

static const struct { const char *kind; void (*fn)(void); } kinds[] = {
    { "panic", do_panic }, { "panic-elsewhere", panic_elsewhere }, { "assert", do_assert }, { "null", read_null }, { "text", write_text }, { "rodata", write_rodata }, { "data", exec_data },
    { "hole", read_hole }, { "opcode", bad_opcode }, { "canonical", non_canonical }, { "stack", stack_overflow },
    { "smash", smash_stack }, { "irqs-off", stuck_irqs_off }, { "no-preempt", stuck_no_preempt },
};

void provoke(const char *kind)
{
    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++) {
        if (strcmp(kind, kinds[i].kind))
            continue;
        log_warn("test", "fault=%s", kind);
        kinds[i].fn();
        return;
    }
    log_warn("test", "there is no fault=%s", kind);
}
