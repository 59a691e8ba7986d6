/* x86-64 control registers, flags, selectors, descriptors.  Intel SDM vol. 3 "Control Registers", "Segment Descriptors"; AMD APM vol. 2 "System Resources". */
#pragma once
#include "kernel/lib/base.h"

#define RFLAGS_CF       BIT(0)
#define RFLAGS_FIXED    BIT(1)          /* always one */
#define RFLAGS_PF       BIT(2)
#define RFLAGS_AF       BIT(4)
#define RFLAGS_ZF       BIT(6)
#define RFLAGS_SF       BIT(7)
#define RFLAGS_TF       BIT(8)
#define RFLAGS_IF       BIT(9)
#define RFLAGS_DF       BIT(10)
#define RFLAGS_OF       BIT(11)
#define RFLAGS_IOPL     BITS(13, 12)
#define RFLAGS_NT       BIT(14)
#define RFLAGS_RF       BIT(16)
#define RFLAGS_VM       BIT(17)
#define RFLAGS_AC       BIT(18)
#define RFLAGS_VIF      BIT(19)
#define RFLAGS_VIP      BIT(20)
#define RFLAGS_ID       BIT(21)

#define CR0_PE          BIT(0)
#define CR0_MP          BIT(1)
#define CR0_EM          BIT(2)
#define CR0_TS          BIT(3)
#define CR0_ET          BIT(4)
#define CR0_NE          BIT(5)
#define CR0_WP          BIT(16)
#define CR0_AM          BIT(18)
#define CR0_NW          BIT(29)
#define CR0_CD          BIT(30)
#define CR0_PG          BIT(31)

#define CR3_NOFLUSH     BIT(63)

#define CR4_VME         BIT(0)
#define CR4_PVI         BIT(1)
#define CR4_TSD         BIT(2)
#define CR4_DE          BIT(3)
#define CR4_PSE         BIT(4)
#define CR4_PAE         BIT(5)
#define CR4_MCE         BIT(6)
#define CR4_PGE         BIT(7)
#define CR4_PCE         BIT(8)
#define CR4_OSFXSR      BIT(9)
#define CR4_OSXMMEXCPT  BIT(10)
#define CR4_UMIP        BIT(11)
#define CR4_LA57        BIT(12)
#define CR4_VMXE        BIT(13)
#define CR4_SMXE        BIT(14)
#define CR4_FSGSBASE    BIT(16)
#define CR4_PCIDE       BIT(17)
#define CR4_OSXSAVE     BIT(18)
#define CR4_SMEP        BIT(20)
#define CR4_SMAP        BIT(21)
#define CR4_PKE         BIT(22)
#define CR4_CET         BIT(23)
#define CR4_PKS         BIT(24)

#define EFER_SCE        BIT(0)
#define EFER_LME        BIT(8)
#define EFER_LMA        BIT(10)
#define EFER_NXE        BIT(11)
#define EFER_SVME       BIT(12)
#define EFER_LMSLE      BIT(13)
#define EFER_FFXSR      BIT(14)
#define EFER_TCE        BIT(15)

#define XCR0_X87        BIT(0)
#define XCR0_SSE        BIT(1)
#define XCR0_AVX        BIT(2)
#define XCR0_MPX        BITS(4, 3)
#define XCR0_AVX512     BITS(7, 5)
#define XCR0_PKRU       BIT(9)
#define XCR0_AMX        BITS(18, 17)

/* DR6 and DR7 after reset; the constant-one bits. */
#define DR6_INIT        0xffff0ff0ull
#define DR6_BS          BIT(14)
#define DR7_INIT        0x400ull
#define DR7_GD          BIT(13)

/* Page-table entries (4-level paging). */
#define PTE_P           BIT(0)
#define PTE_W           BIT(1)
#define PTE_U           BIT(2)
#define PTE_PWT         BIT(3)
#define PTE_PCD         BIT(4)
#define PTE_A           BIT(5)
#define PTE_D           BIT(6)
#define PTE_PS          BIT(7)
#define PTE_PAT_4K      BIT(7)
#define PTE_G           BIT(8)
#define PTE_PAT_LARGE   BIT(12)
#define PTE_ADDR        BITS(51, 12)
#define PTE_NX          BIT(63)

/* Page-fault error code. */
#define PF_P            BIT(0)
#define PF_W            BIT(1)
#define PF_U            BIT(2)
#define PF_RSVD         BIT(3)
#define PF_I            BIT(4)
#define PF_PK           BIT(5)
#define PF_SS           BIT(6)

/* Exception vectors; SDM vol. 3 "Exception and Interrupt Reference". */
enum exception {
    EXC_DE = 0, EXC_DB = 1, EXC_NMI = 2, EXC_BP = 3, EXC_OF = 4, EXC_BR = 5, EXC_UD = 6, EXC_NM = 7, EXC_DF = 8, EXC_TS = 10, EXC_NP = 11,
    EXC_SS = 12, EXC_GP = 13, EXC_PF = 14, EXC_MF = 16, EXC_AC = 17, EXC_MC = 18, EXC_XM = 19, EXC_VE = 20, EXC_CP = 21, EXC_HV = 28, EXC_VC = 29, EXC_SX = 30,
};
/* Vectors below 32 that push an error code. */
#define EXC_HAS_ERROR_CODE (BIT(8) | BITS(14, 10) | BIT(17) | BIT(21) | BIT(29) | BIT(30))

/* Descriptors. */
#define DESC_ACCESSED   BIT(40)
#define DESC_RW         BIT(41)
#define DESC_DC         BIT(42)
#define DESC_CODE       BIT(43)
#define DESC_S          BIT(44)
#define DESC_P          BIT(47)
#define DESC_L          BIT(53)
#define DESC_DB         BIT(54)
#define DESC_G          BIT(55)
#define DESC_TYPE_TSS   (9ull << 40)    /* available 64-bit TSS */
#define GATE_INTERRUPT  0x8e            /* present, DPL 0, 64-bit interrupt gate */

struct x86_dtr { uint16_t limit; uint64_t base; } __packed;
_Static_assert(sizeof(struct x86_dtr) == 10, "pseudo-descriptor");

struct x86_gate { uint16_t offset_lo, sel; uint8_t ist, attr; uint16_t offset_mid; uint32_t offset_hi, zero; } __packed;
_Static_assert(sizeof(struct x86_gate) == 16, "64-bit gate");

struct x86_tss { uint32_t zero0; uint64_t rsp[3], zero1, ist[7], zero2; uint16_t zero3, iomap; } __packed;
_Static_assert(sizeof(struct x86_tss) == 104 && offsetof(struct x86_tss, ist) == 36, "64-bit TSS");

/* CPUID leaf 1 EAX to the family and model that the manuals print. */
static inline unsigned x86_family(uint32_t sig) { unsigned f = sig >> 8 & 15; return f == 15 ? f + (sig >> 20 & 255) : f; }
static inline unsigned x86_model(uint32_t sig)
{
    unsigned f = sig >> 8 & 15, m = sig >> 4 & 15;
    return f == 6 || f == 15 ? m | (sig >> 12 & 0xf0) : m;
}
