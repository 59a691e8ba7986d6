/* Inside kernel/x86: exceptions, backtraces, panic plumbing. */
#pragma once
#include "kernel/x86/irq.h"

enum { KERNEL_CS = 0x08, KERNEL_DS = 0x10, KERNEL_TSS = 0x18 };

extern const uint8_t trap_stubs[256][16];       /* entry.S */
extern const char trap_return[];

int  trap_alloc_stacks(struct percpu *);        /* IST stacks of a CPU other than the boot CPU; -1: no memory */
void irq_dispatch(struct trap_frame *);         /* vectors from 32 */

/* Called from the NMI handler; true: that was the reason. */
bool smp_nmi_stop(void);

void trap_dump(const struct trap_frame *);      /* registers, to the log */
/* Return addresses with symbols, to the log; follows trap frames to what was interrupted.  rip 0: start at the caller given by rbp. */
void backtrace(uint64_t rip, uint64_t rbp);

/* Panic with the registers of a trap instead of the caller's. */
__attribute__((noreturn, cold)) void panic_trap(const struct trap_frame *, const char *fmt, ...) __printf_like(2, 3);
