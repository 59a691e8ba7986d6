/*
 * Real-mode start-up of an application processor.  Intel SDM vol. 3, "Multiple-Processor (MP) Initialization".
 *
 * The host copies [ap_trampoline_start, ap_trampoline_end) to a free page below 1 MiB, fills the struct ap_params at offset
 * ap_trampoline_params - ap_trampoline_start of the copy, sends INIT and SIPI with vector = page number, and waits until the AP
 * says by other means that it runs on its own stack; only then may it start the next AP with the same page.
 * The code is position independent, touches only its page, and goes 16 -> 32 -> 64 bits.
 */
#pragma once
#ifndef __ASSEMBLY__
#include "kernel/lib/base.h"

struct ap_params {
    uint64_t cr3;           /* below 4 GiB; must map the trampoline's page executable at its physical address, and the kernel */
    uint64_t cr4;           /* loaded in 64-bit mode; LA57 must match cr3 */
    uint64_t efer;          /* LME is implied, LMA ignored */
    uint64_t pat;           /* IA32_PAT, the same on every CPU */
    uint64_t stack;         /* initial RSP, 16-byte aligned */
    uint64_t percpu;        /* GS base; the stack canary at %gs:40 must be set */
    uint64_t entry;         /* void entry(void *percpu), must not return; called with interrupts off, no IDT, the trampoline's GDT */
};
_Static_assert(sizeof(struct ap_params) == 56, "offsets in ap.S");

extern const uint8_t ap_trampoline_start[], ap_trampoline_params[], ap_trampoline_end[];
#endif

#define AP_CR3      0
#define AP_CR4      8
#define AP_EFER     16
#define AP_PAT      24
#define AP_STACK    32
#define AP_PERCPU   40
#define AP_ENTRY    48
