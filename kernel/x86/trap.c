/* Exceptions of the host kernel.  All of them are bugs of ours except NMI, #MC and the faults that the exception table forgives. */
#include <string.h>
#include "kernel/hw/i8254.h"
#include "kernel/lib/log.h"
#include "kernel/sched/sched.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/mce.h"
#include "kernel/x86/trap.h"
#include "kernel/x86/vmap.h"

extern const struct extable_entry __start_extable[], __stop_extable[];
void trap_dispatch(struct trap_frame *);

static const char *const exc_name[32] = {
    [EXC_DE] = "divide error", [EXC_DB] = "debug", [EXC_NMI] = "NMI", [EXC_BP] = "breakpoint", [EXC_OF] = "overflow", [EXC_BR] = "bound range",
    [EXC_UD] = "invalid opcode", [EXC_NM] = "device not available", [EXC_DF] = "double fault", [EXC_TS] = "invalid TSS",
    [EXC_NP] = "segment not present", [EXC_SS] = "stack segment fault", [EXC_GP] = "general protection", [EXC_PF] = "page fault",
    [EXC_MF] = "x87 error", [EXC_AC] = "alignment check", [EXC_MC] = "machine check", [EXC_XM] = "SIMD error", [EXC_VE] = "virtualization exception",
    [EXC_CP] = "control protection", [EXC_HV] = "hypervisor injection", [EXC_VC] = "VMM communication", [EXC_SX] = "security exception",
};

static bool forgive(struct trap_frame *f)
{
    for (const struct extable_entry *e = __start_extable; e < __stop_extable; e++) {
        if (e->insn == f->rip) {
            f->rip = e->fixup;
            return true;
        }
    }
    return false;
}

static const char *where(uint64_t va)
{
    if (va < PAGE_SIZE)
        return "null pointer";
    if (kstack_is_guard(va))
        return "stack guard page";
    if (va >= PHYSMAP_BASE && va < MMIO_BASE)
        return "direct map, but not RAM of the memory map";
    if (va >= MMIO_BASE && va < MMIO_END)
        return "unmapped device register area";
    if (va >= STACK_BASE && va < STACK_END)
        return "unused kernel stack area";
    if (va >= 0xffffffff80000000ull)
        return "kernel image";
    return "unmapped address";
}

static const char *thread_label(void)
{
    return cpu_current() ? thread_name(cpu_current()) : "boot";
}

static void page_fault(struct trap_frame *f)
{
    uint64_t va = read_cr2();
    if (kstack_is_guard(va))
        panic_trap(f, "kernel stack overflow of thread %s (address %#llx)", thread_label(), (unsigned long long)va);
    const char *what = f->error & PF_I ? "execute" : f->error & PF_W ? "write" : "read";
    panic_trap(f, "page fault: %s of %#llx (%s%s)", what, (unsigned long long)va, where(va),
               f->error & PF_RSVD ? ", reserved bit set in a page-table entry" : f->error & PF_P ? ", forbidden by the page's protection" : "");
}

static void double_fault(struct trap_frame *f)
{
    if (kstack_is_guard(read_cr2()) || kstack_is_guard(f->rsp) || kstack_is_guard(f->rsp - 8))
        panic_trap(f, "kernel stack overflow of thread %s (stack pointer %#llx)", thread_label(), (unsigned long long)f->rsp);
    panic_trap(f, "double fault (cr2 %#llx)", (unsigned long long)read_cr2());
}

static void nmi(struct trap_frame *f)
{
    struct percpu *p = this_cpu();
    p->nmis++;
    if (smp_nmi_stop())
        return;
    if (atomic_load(&p->nmi_expected)) {
        atomic_store(&p->nmi_where, f->rip);
        return;
    }
    uint8_t sc = inb(PORT61);
    if (sc != 0xff && sc & (PORT61_SERR | PORT61_IOCHK))
        panic_trap(f, "hardware reports %s by NMI (port 61h: %#x)", sc & PORT61_SERR ? "a memory or PCI system error" : "an I/O channel check", sc);
    p->nmi_unknown++;           /* no log: this may have interrupted the logger */
}

void trap_dispatch(struct trap_frame *f)
{
    if (likely(f->vector >= 32)) {
        irq_dispatch(f);
        return;
    }
    switch (f->vector) {
    case EXC_NMI:
        nmi(f);
        return;
    case EXC_MC:
        mce_trap(f);
        return;
    case EXC_DF:
        double_fault(f);
        return;
    }
    if (forgive(f))
        return;
    if (f->vector == EXC_PF)
        page_fault(f);
    panic_trap(f, "%s (vector %u, error code %#llx)", exc_name[f->vector] ? exc_name[f->vector] : "reserved exception", (unsigned)f->vector,
               (unsigned long long)f->error);
}

void trap_dump(const struct trap_frame *f)
{
#define LL(x) ((unsigned long long)(x))
    log_err("cpu", "rip %016llx rsp %016llx rflags %08llx cpu %u thread %s", LL(f->rip), LL(f->rsp), LL(f->rflags), cpu_index(), thread_label());
    log_err("cpu", "rax %016llx rbx %016llx rcx %016llx rdx %016llx", LL(f->rax), LL(f->rbx), LL(f->rcx), LL(f->rdx));
    log_err("cpu", "rsi %016llx rdi %016llx rbp %016llx r8  %016llx", LL(f->rsi), LL(f->rdi), LL(f->rbp), LL(f->r8));
    log_err("cpu", "r9  %016llx r10 %016llx r11 %016llx r12 %016llx", LL(f->r9), LL(f->r10), LL(f->r11), LL(f->r12));
    log_err("cpu", "r13 %016llx r14 %016llx r15 %016llx cr2 %016llx", LL(f->r13), LL(f->r14), LL(f->r15), LL(read_cr2()));
    log_err("cpu", "cr0 %08llx cr3 %010llx cr4 %08llx preempt %x", LL(read_cr0()), LL(read_cr3()), LL(read_cr4()), preempt_count());
#undef LL
}
