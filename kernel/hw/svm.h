/* AMD SVM: VMCB layout, intercepts, exit codes.  AMD64 APM vol 2 (24593) appendix B "VMCB Layout" and appendix C "SVM Intercept Exit Codes". */
#pragma once
#include "kernel/lib/base.h"

#define MSR_VM_CR               0xc0010114
#define   VM_CR_SVMDIS          BIT(4)
#define   VM_CR_LOCK            BIT(3)
#define MSR_VM_HSAVE_PA         0xc0010117

/* CPUID 8000000Ah EDX */
#define SVM_FEAT_NPT            BIT(0)
#define SVM_FEAT_LBRV           BIT(1)
#define SVM_FEAT_NRIPS          BIT(3)
#define SVM_FEAT_VMCB_CLEAN     BIT(5)
#define SVM_FEAT_FLUSH_ASID     BIT(6)
#define SVM_FEAT_DECODE         BIT(7)
#define SVM_FEAT_PAUSE_FILTER   BIT(10)
#define SVM_FEAT_PAUSE_THRESH   BIT(12)

/* Intercept words at 000h .. 013h */
enum { ICPT_CR, ICPT_DR, ICPT_EXC, ICPT_MISC1, ICPT_MISC2, ICPT_WORDS };
#define ICPT_CR_READ(n)         BIT(n)
#define ICPT_CR_WRITE(n)        BIT(16 + (n))
#define ICPT_DR_ALL             0xffffffffull
/* MISC1 */
#define ICPT_INTR       BIT(0)
#define ICPT_NMI        BIT(1)
#define ICPT_SMI        BIT(2)
#define ICPT_INIT       BIT(3)
#define ICPT_VINTR      BIT(4)
#define ICPT_CR0_SEL    BIT(5)
#define ICPT_RDPMC      BIT(15)
#define ICPT_CPUID      BIT(18)
#define ICPT_IRET       BIT(20)
#define ICPT_INVD       BIT(22)
#define ICPT_PAUSE      BIT(23)
#define ICPT_HLT        BIT(24)
#define ICPT_INVLPGA    BIT(26)
#define ICPT_IOIO       BIT(27)
#define ICPT_MSR        BIT(28)
#define ICPT_TASK       BIT(29)
#define ICPT_FREEZE     BIT(30)
#define ICPT_SHUTDOWN   BIT(31)
/* MISC2 */
#define ICPT_VMRUN      BIT(0)
#define ICPT_VMMCALL    BIT(1)
#define ICPT_VMLOAD     BIT(2)
#define ICPT_VMSAVE     BIT(3)
#define ICPT_STGI       BIT(4)
#define ICPT_CLGI       BIT(5)
#define ICPT_SKINIT     BIT(6)
#define ICPT_RDTSCP     BIT(7)
#define ICPT_WBINVD     BIT(9)
#define ICPT_MONITOR    BIT(10)
#define ICPT_MWAIT      BIT(11)
#define ICPT_MWAIT_ARMED BIT(12)
#define ICPT_XSETBV     BIT(13)
#define ICPT_RDPRU      BIT(14)

/* Virtual interrupt control, 060h */
#define V_TPR           BITS(7, 0)
#define V_IRQ           BIT(8)
#define V_INTR_PRIO_SHIFT 16
#define V_INTR_PRIO     BITS(19, 16)
#define V_IGN_TPR       BIT(20)
#define V_INTR_MASKING  BIT(24)
#define V_INTR_VECTOR_SHIFT 32
#define V_INTR_VECTOR   BITS(39, 32)

#define INT_SHADOW      BIT(0)

/* EVENTINJ and EXITINTINFO */
#define EVT_VECTOR      BITS(7, 0)
#define EVT_TYPE_SHIFT  8
#define EVT_TYPE        BITS(10, 8)
#define EVT_ERROR_VALID BIT(11)
#define EVT_VALID       BIT(31)
#define EVT_ERROR_SHIFT 32

#define NP_ENABLE       BIT(0)
enum { TLB_FLUSH_NONE = 0, TLB_FLUSH_ALL = 1, TLB_FLUSH_ASID = 3 };

/* Clean bits, 0C0h */
#define CLEAN_I         BIT(0)  /* intercepts, TSC offset, pause filter */
#define CLEAN_IOPM      BIT(1)
#define CLEAN_ASID      BIT(2)
#define CLEAN_TPR       BIT(3)
#define CLEAN_NP        BIT(4)
#define CLEAN_CRX       BIT(5)
#define CLEAN_DRX       BIT(6)
#define CLEAN_DT        BIT(7)
#define CLEAN_SEG       BIT(8)
#define CLEAN_CR2       BIT(9)
#define CLEAN_LBR       BIT(10)
#define CLEAN_AVIC      BIT(11)
#define CLEAN_ALL       BITS(11, 0)

struct vmcb_seg { uint16_t sel, attr; uint32_t limit; uint64_t base; };
_Static_assert(sizeof(struct vmcb_seg) == 16, "VMCB segment");

struct vmcb {
    uint32_t intercept[ICPT_WORDS];             /* 000 */
    uint8_t pad014[0x3c - 0x14];
    uint16_t pause_threshold, pause_count;      /* 03c, 03e */
    uint64_t iopm_pa, msrpm_pa;                 /* 040, 048 */
    uint64_t tsc_offset;                        /* 050 */
    uint32_t asid;                              /* 058 */
    uint32_t tlb_control;                       /* 05c */
    uint64_t vintr;                             /* 060 */
    uint64_t int_shadow;                        /* 068 */
    uint64_t exitcode, exitinfo1, exitinfo2;    /* 070 */
    uint64_t exitintinfo;                       /* 088 */
    uint64_t np_control;                        /* 090 */
    uint8_t pad098[0xa8 - 0x98];
    uint64_t eventinj;                          /* 0a8 */
    uint64_t n_cr3;                             /* 0b0 */
    uint64_t lbr_control;                       /* 0b8 */
    uint64_t clean;                             /* 0c0 */
    uint64_t nrip;                              /* 0c8 */
    uint8_t nbytes, bytes[15];                  /* 0d0 */
    uint8_t pad0e0[0x400 - 0xe0];
    /* State save area */
    struct vmcb_seg es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;       /* 400 */
    uint8_t pad4a0[0x4cb - 0x4a0];
    uint8_t cpl;                                /* 4cb */
    uint32_t pad4cc;
    uint64_t efer;                              /* 4d0 */
    uint8_t pad4d8[0x548 - 0x4d8];
    uint64_t cr4, cr3, cr0, dr7, dr6, rflags, rip;      /* 548 */
    uint8_t pad580[0x5d8 - 0x580];
    uint64_t rsp;                               /* 5d8 */
    uint8_t pad5e0[0x5f8 - 0x5e0];
    uint64_t rax;                               /* 5f8 */
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base;        /* 600 */
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;           /* 628 */
    uint64_t cr2;                               /* 640 */
    uint8_t pad648[0x668 - 0x648];
    uint64_t g_pat, debugctl;                   /* 668 */
    uint8_t pad678[0x1000 - 0x678];
} __aligned_to(4096);
_Static_assert(offsetof(struct vmcb, pause_threshold) == 0x3c, "VMCB");
_Static_assert(offsetof(struct vmcb, vintr) == 0x60, "VMCB");
_Static_assert(offsetof(struct vmcb, eventinj) == 0xa8, "VMCB");
_Static_assert(offsetof(struct vmcb, nbytes) == 0xd0, "VMCB");
_Static_assert(offsetof(struct vmcb, cpl) == 0x4cb, "VMCB");
_Static_assert(offsetof(struct vmcb, cr4) == 0x548, "VMCB");
_Static_assert(offsetof(struct vmcb, rax) == 0x5f8, "VMCB");
_Static_assert(offsetof(struct vmcb, cr2) == 0x640, "VMCB");
_Static_assert(offsetof(struct vmcb, g_pat) == 0x668, "VMCB");
_Static_assert(sizeof(struct vmcb) == 4096, "VMCB");

/* Exit codes */
enum {
    SVM_EXIT_CR_READ = 0x00, SVM_EXIT_CR_WRITE = 0x10, SVM_EXIT_DR_READ = 0x20, SVM_EXIT_DR_WRITE = 0x30, SVM_EXIT_EXC = 0x40,
    SVM_EXIT_INTR = 0x60, SVM_EXIT_NMI, SVM_EXIT_SMI, SVM_EXIT_INIT, SVM_EXIT_VINTR, SVM_EXIT_CR0_SEL,
    SVM_EXIT_RDPMC = 0x6f, SVM_EXIT_CPUID = 0x72, SVM_EXIT_IRET = 0x74, SVM_EXIT_INVD = 0x76, SVM_EXIT_PAUSE, SVM_EXIT_HLT, SVM_EXIT_INVLPG,
    SVM_EXIT_INVLPGA, SVM_EXIT_IOIO, SVM_EXIT_MSR, SVM_EXIT_TASK, SVM_EXIT_FREEZE, SVM_EXIT_SHUTDOWN,
    SVM_EXIT_VMRUN = 0x80, SVM_EXIT_VMMCALL, SVM_EXIT_VMLOAD, SVM_EXIT_VMSAVE, SVM_EXIT_STGI, SVM_EXIT_CLGI, SVM_EXIT_SKINIT, SVM_EXIT_RDTSCP,
    SVM_EXIT_ICEBP, SVM_EXIT_WBINVD, SVM_EXIT_MONITOR, SVM_EXIT_MWAIT, SVM_EXIT_MWAIT_ARMED, SVM_EXIT_XSETBV, SVM_EXIT_RDPRU,
    SVM_EXIT_NPF = 0x400, SVM_EXIT_CODES = 0x401,
};
#define SVM_EXIT_INVALID        (~0ull)

/* EXITINFO1 of IOIO */
#define IOIO_IN         BIT(0)
#define IOIO_STR        BIT(2)
#define IOIO_REP        BIT(3)
#define IOIO_SIZE_SHIFT 4       /* one bit per size: 1, 2, 4 */
#define IOIO_ADDR_SHIFT 7       /* one bit per size: 2, 4, 8 */
#define IOIO_SEG_SHIFT  10
#define IOIO_PORT_SHIFT 16
/* EXITINFO1 of NPF: page-fault error code and */
#define NPF_FINAL       BIT(32)
#define NPF_TABLE       BIT(33)
