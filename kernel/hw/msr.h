/* Model-specific registers.  Intel SDM vol. 4; AMD APM vol. 2 appendix "MSR Cross-Reference". */
#pragma once
#include "kernel/lib/base.h"

#define MSR_TSC                 0x10
#define MSR_PLATFORM_ID         0x17
#define MSR_APIC_BASE           0x1b
#define   APIC_BASE_BSP         BIT(8)
#define   APIC_BASE_X2APIC      BIT(10)
#define   APIC_BASE_ENABLE      BIT(11)
#define   APIC_BASE_ADDR        BITS(51, 12)
#define MSR_FEATURE_CONTROL     0x3a
#define   FEATCTL_LOCKED        BIT(0)
#define   FEATCTL_VMX_IN_SMX    BIT(1)
#define   FEATCTL_VMX           BIT(2)
#define MSR_TSC_ADJUST          0x3b
#define MSR_SPEC_CTRL           0x48
#define   SPEC_CTRL_IBRS        BIT(0)
#define   SPEC_CTRL_STIBP       BIT(1)
#define   SPEC_CTRL_SSBD        BIT(2)
#define MSR_PRED_CMD            0x49
#define   PRED_CMD_IBPB         BIT(0)
#define MSR_UCODE_REV           0x8b    /* AMD: patch level; Intel: bits 63:32 after CPUID leaf 1 */
#define MSR_PLATFORM_INFO       0xce
#define MSR_MTRRCAP             0xfe
#define   MTRRCAP_VCNT          BITS(7, 0)
#define   MTRRCAP_FIX           BIT(8)
#define   MTRRCAP_WC            BIT(10)
#define MSR_ARCH_CAPABILITIES   0x10a
#define   ARCH_CAP_RDCL_NO      BIT(0)
#define   ARCH_CAP_IBRS_ALL     BIT(1)
#define   ARCH_CAP_RSBA         BIT(2)
#define   ARCH_CAP_SKIP_L1DFL   BIT(3)
#define   ARCH_CAP_SSB_NO       BIT(4)
#define   ARCH_CAP_MDS_NO       BIT(5)
#define   ARCH_CAP_TAA_NO       BIT(8)
#define   ARCH_CAP_FBSDP_NO     BIT(14)
#define   ARCH_CAP_FB_CLEAR     BIT(17)
#define   ARCH_CAP_RFDS_NO      BIT(27)
#define   ARCH_CAP_RFDS_CLEAR   BIT(28)
#define MSR_FLUSH_CMD           0x10b
#define   FLUSH_CMD_L1D         BIT(0)
#define MSR_SYSENTER_CS         0x174
#define MSR_SYSENTER_ESP        0x175
#define MSR_SYSENTER_EIP        0x176
#define MSR_MCG_CAP             0x179
#define   MCG_CAP_COUNT         BITS(7, 0)
#define   MCG_CAP_CTL_P         BIT(8)
#define MSR_MCG_STATUS          0x17a
#define   MCG_STATUS_RIPV       BIT(0)
#define   MCG_STATUS_EIPV       BIT(1)
#define   MCG_STATUS_MCIP       BIT(2)
#define MSR_MCG_CTL             0x17b
#define MSR_MISC_ENABLE         0x1a0
#define MSR_DEBUGCTL            0x1d9
#define DEBUGCTL_BTF            BIT(1)          /* RFLAGS.TF steps by branches */
#define MSR_MTRR_PHYSBASE0      0x200   /* + 2n; PHYSMASK0 + 2n at 0x201 */
#define MSR_MTRR_PHYSMASK0      0x201
#define MSR_MTRR_FIX64K_00000   0x250
#define MSR_MTRR_FIX16K_80000   0x258
#define MSR_MTRR_FIX16K_A0000   0x259
#define MSR_MTRR_FIX4K_C0000    0x268   /* .. 0x26f */
#define MSR_PAT                 0x277
#define MSR_MTRR_DEF_TYPE       0x2ff
#define   MTRR_DEF_ENABLE       BIT(11)
#define   MTRR_DEF_FIX_ENABLE   BIT(10)
#define MSR_MC0_CTL             0x400   /* + 4n; STATUS, ADDR, MISC follow */
#define MSR_MC0_STATUS          0x401
#define   MC_STATUS_VAL         BIT(63)
#define   MC_STATUS_OVER        BIT(62)
#define   MC_STATUS_UC          BIT(61)
#define   MC_STATUS_EN          BIT(60)
#define   MC_STATUS_MISCV       BIT(59)
#define   MC_STATUS_ADDRV       BIT(58)
#define   MC_STATUS_PCC         BIT(57)
#define   MC_STATUS_AR          BIT(55)         /* what was interrupted has used the data (Intel), or is corrupt (AMD: TCC) */
#define MSR_TSC_DEADLINE        0x6e0
#define MSR_X2APIC              0x800   /* + xAPIC register offset / 16 */
#define MSR_XSS                 0xda0

#define MSR_EFER                0xc0000080
#define MSR_STAR                0xc0000081
#define MSR_LSTAR               0xc0000082
#define MSR_CSTAR               0xc0000083
#define MSR_SFMASK              0xc0000084
#define MSR_FS_BASE             0xc0000100
#define MSR_GS_BASE             0xc0000101
#define MSR_KERNEL_GS_BASE      0xc0000102
#define MSR_TSC_AUX             0xc0000103
#define MSR_TSC_RATIO           0xc0000104

#define MSR_AMD_SYSCFG          0xc0010010
#define MSR_AMD_HWCR            0xc0010015
#define   HWCR_TSC_FREQ_SEL     BIT(24)
#define MSR_AMD_DE_CFG          0xc0011029
#define   DE_CFG_LFENCE_SERIAL  BIT(1)
#define MSR_AMD_VM_CR           0xc0010114
#define   VM_CR_R_INIT          BIT(1)
#define   VM_CR_LOCK            BIT(3)
#define   VM_CR_SVMDIS          BIT(4)
#define MSR_AMD_VM_HSAVE_PA     0xc0010117
#define MSR_AMD_PSTATE0         0xc0010064
#define MSR_AMD_VIRT_SPEC_CTRL  0xc001011f

/* Memory types of PAT and MTRR. */
enum { MEMTYPE_UC = 0, MEMTYPE_WC = 1, MEMTYPE_WT = 4, MEMTYPE_WP = 5, MEMTYPE_WB = 6, MEMTYPE_UC_MINUS = 7 };
#define PAT_RESET   0x0007040600070406ull
