/*
 * struct exit: why a vCPU left guest mode, in words that mean the same on VMX and SVM.  The back-end fills it; kernel/vmm decides; devices act.
 * H: also produced by tests/host/fake_hv.c.
 */
#pragma once
#include "kernel/lib/base.h"

enum exit_kind {
    EXIT_HOST_INTR,     /* a host interrupt or NMI came; already handled when run() returns */
    EXIT_PIO,           /* u.pio */
    EXIT_MMIO,          /* nested page fault; u.mmio */
    EXIT_CPUID,
    EXIT_HLT,
    EXIT_RDMSR, EXIT_WRMSR,     /* ECX and EDX:EAX are in the vCPU's registers */
    EXIT_CR,            /* MOV to/from CR, CLTS, LMSW; u.cr */
    EXIT_DR,            /* MOV to/from DR; u.cr with cr = DR number */
    EXIT_IRQ_WINDOW, EXIT_NMI_WINDOW,
    EXIT_PAUSE,
    EXIT_EXCEPTION,     /* intercepted #DB, #AC, #UD, #MC …; u.exc; RIP at the faulting instruction */
    EXIT_TRIPLE_FAULT,
    EXIT_INVD, EXIT_WBINVD,
    EXIT_XSETBV,
    EXIT_RDPMC,
    EXIT_RDTSC, EXIT_RDTSCP,
    EXIT_INVLPG,
    EXIT_HYPERCALL,     /* VMCALL / VMMCALL */
    EXIT_UD,            /* an instruction this PC does not have: VMX/SVM instructions, MONITOR/MWAIT when hidden → #UD */
    EXIT_MONITOR, EXIT_MWAIT,
    EXIT_TASK_SWITCH,
    EXIT_APIC_WRITE,    /* VMX: the guest has written a register of the LAPIC page; u.mmio.gpa is its offset; the instruction is over */
    EXIT_EOI_INDUCED,   /* VMX: the CPU has carried out an EOI that others want to know of; u.exc.vector; the instruction is over */
    EXIT_TPR_BELOW,     /* VMX TPR threshold */
    EXIT_TIMER,         /* VMX preemption timer */
    EXIT_INTERNAL,      /* handled by the back-end, nothing to do */
    EXIT_FATAL,         /* cannot continue: invalid guest state, unknown reason; u.raw; the VM stops with vm->reason */
    EXIT_KINDS
};

/* Access bits of a nested fault. */
enum { MMIO_READ = 1, MMIO_WRITE = 2, MMIO_EXEC = 4 };

/* u.pio.what, and u.pio as one word: the form of the VMCB's EXITINFO1 (APM vol. 2 "IOIO Intercepts"). */
enum { PIO_IN = 1, PIO_STRING = 4, PIO_REP = 8, PIO_SIZE_SHIFT = 4 /* bits 6:4: 1, 2 or 4 bytes */, PIO_SIZE = 7 };

struct exit {
    enum exit_kind kind;
    uint8_t insn_len;           /* 0: unknown, the decoder finds it; the back-end alone writes it */
    uint64_t next_rip;          /* 0 unless the CPU told */
    union {
        union { struct { uint16_t what /* PIO_ */, port; }; uint32_t word; } pio;
        struct {
            gpa_t gpa; gva_t gva; bool gva_valid;
            uint8_t access;             /* MMIO_* */
            bool final;                 /* true: the final access; false: the walk of the guest's page tables (never decoded as MMIO) */
            bool present;               /* the nested entry was present (permission fault) */
        } mmio;
        struct { uint8_t cr, gpr; bool write, lmsw, clts; uint16_t lmsw_src; } cr;
        struct { uint8_t vector; bool has_error; uint32_t error; uint64_t cr2, dr6; } exc;
        struct { uint16_t selector; uint8_t source /* 0 CALL, 1 IRET, 2 JMP, 3 task gate in the IDT */; bool has_error; uint32_t error; } task;
        struct { uint64_t reason, info1, info2; const char *why; } raw;     /* why: a sentence, or NULL */
    } u;
};

const char *exit_kind_name(enum exit_kind);     /* "pio", "mmio", … for stats and logs */
