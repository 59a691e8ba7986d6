/* The end: stop the others, say why, keep the log, reset. */
#include <stdarg.h>
#include <stdio.h>
#include "boot/boot.h"
#include "boot/symtab.h"
#include "kernel/console/console.h"
#include "kernel/lib/log.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/power.h"
#include "kernel/x86/panic.h"
#include "kernel/x86/smp.h"
#include "kernel/x86/time.h"
#include "kernel/x86/trap.h"
#include "kernel/x86/vmap.h"

static uint32_t panicking;              /* CPU + 1 */
static unsigned reset_after_s = 30;     /* 0: never */

void panic_set_timeout(unsigned seconds) { reset_after_s = seconds; }
bool panic_in_progress(void) { return atomic_load(&panicking) != 0; }

/* Stacks are the only place where frames may lie: the boot stack, interrupt stacks in the image or heap, the stack area. */
static bool readable(uintptr_t va)
{
    bool image = va >= (uintptr_t)__data_start && va < (uintptr_t)__bss_end;
    bool stack = va >= STACK_BASE && va < STACK_END && !kstack_is_guard(va);
    bool heap = va >= PHYSMAP_BASE && va < MMIO_BASE;
    return IS_ALIGNED(va, 8) && (image || stack || heap) && !kstack_is_guard(va + 15);
}

/* back: 1 for return addresses, because the call may have been its function's last instruction. */
static void print_frame(uint64_t rip, unsigned back)
{
    uintptr_t off = 0;
    const char *name = symtab_lookup(rip - back, &off);
    log_err("cpu", "  [%016llx] %s+%#llx", (unsigned long long)rip, name ? name : "?", (unsigned long long)(off + back));
}

void backtrace(uint64_t rip, uint64_t rbp)
{
    if (rip)
        print_frame(rip, 0);
    for (unsigned depth = 0; depth < 40 && readable(rbp); depth++) {
        const uint64_t *frame = (const uint64_t *)rbp;
        uint64_t next = frame[0], ret = frame[1];
        unsigned back = 1;
        if (ret == (uint64_t)trap_return) {
            const struct trap_frame *f = (const struct trap_frame *)(frame + 2);
            log_err("cpu", "  -- vector %u --", (unsigned)f->vector);
            ret = f->rip, next = f->rbp, back = 0;
        }
        if (ret < KERNEL_BASE)
            break;
        print_frame(ret, back);
        if (next <= rbp && next >= rbp - KSTACK_SIZE)   /* frames grow upwards; another stack may lie anywhere */
            break;
        rbp = next;
    }
}

/* First CPU here wins; a second panic on the same CPU (a bug in this code) halts at once; other CPUs wait for the NMI. */
static void claim(void)
{
    irq_disable();
    uint32_t none = 0, me = cpu_index() + 1;
    if (!atomic_cas(&panicking, &none, me)) {
        if (none == me)
            power_reset();
        cpu_halt_forever();
    }
    smp_stop_others();
    log_panic_mode();
}

__attribute__((noreturn)) static void finish(void)
{
    if (!reset_after_s) {
        log_err("panic", "halted (panic=0)");
        cpu_halt_forever();
    }
    log_err("panic", "reset in %u s; `host log --previous` shows this log afterwards", reset_after_s);
    for (unsigned i = 0; i < reset_after_s * 10; i++)
        delay_us(100000);
    power_reset();
}

static void say(const char *fmt, va_list ap)
{
    char text[240];
    vsnprintf(text, sizeof(text), fmt, ap);
    log_err("panic", "%s", text);
}

void panic(const char *fmt, ...)
{
    va_list ap;
    claim();
    va_start(ap, fmt);
    say(fmt, ap);
    va_end(ap);
    log_err("cpu", "cpu %u, called from:", cpu_index());
    backtrace(0, (uint64_t)__builtin_frame_address(0));
    finish();
}

void panic_trap(const struct trap_frame *f, const char *fmt, ...)
{
    va_list ap;
    claim();
    va_start(ap, fmt);
    say(fmt, ap);
    va_end(ap);
    trap_dump(f);
    backtrace(f->rip, f->rbp);
    finish();
}

/* gcc's stack guard calls this. */
__attribute__((noreturn)) void __stack_chk_fail(void);
void __stack_chk_fail(void) { panic("stack smashed in the function that called this"); }
