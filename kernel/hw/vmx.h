/* Intel VMX: capability MSRs, VMCS fields, controls, exit reasons.  Intel SDM vol 3 (325384-081) chapters "Virtual Machine Control Structures", "VM Exits",
 * appendix A "VMX Capability Reporting Facility", appendix B "Field Encoding in VMCS", appendix C "VMX Basic Exit Reasons". */
#pragma once
#include "kernel/lib/base.h"

/* ---- VMX Capability Reporting Facility ---- */
#define MSR_VMX_BASIC           0x480
#define   VMX_BASIC_REVISION    BITS(30, 0)
#define   VMX_BASIC_SIZE_SHIFT  32
#define   VMX_BASIC_TYPE_SHIFT  50
#define   VMX_BASIC_TRUE_CTLS   BIT(55)
#define MSR_VMX_PIN             0x481   /* control MSRs: low half must be one, high half may be one */
#define MSR_VMX_PRIMARY         0x482
#define MSR_VMX_EXIT            0x483
#define MSR_VMX_ENTRY           0x484
#define MSR_VMX_MISC            0x485
#define   VMX_MISC_TIMER_RATE   BITS(4, 0)      /* the preemption timer counts when this bit of the TSC changes */
#define MSR_VMX_CR0_FIXED0      0x486   /* must be one */
#define MSR_VMX_CR0_FIXED1      0x487   /* may be one */
#define MSR_VMX_CR4_FIXED0      0x488
#define MSR_VMX_CR4_FIXED1      0x489
#define MSR_VMX_SECONDARY       0x48b
#define MSR_VMX_EPT_VPID_CAP    0x48c
#define   EPT_CAP_EXEC_ONLY     BIT(0)
#define   EPT_CAP_WALK4         BIT(6)
#define   EPT_CAP_WB            BIT(14)
#define   EPT_CAP_2M            BIT(16)
#define   EPT_CAP_1G            BIT(17)
#define   EPT_CAP_INVEPT        BIT(20)
#define   EPT_CAP_AD            BIT(21)
#define   EPT_CAP_INVEPT_SINGLE BIT(25)
#define   EPT_CAP_INVEPT_ALL    BIT(26)
#define   VPID_CAP_INVVPID      BIT(32)
#define   VPID_CAP_SINGLE       BIT(41)
#define   VPID_CAP_ALL          BIT(42)
#define MSR_VMX_TRUE_PIN        0x48d
#define MSR_VMX_TRUE_PRIMARY    0x48e
#define MSR_VMX_TRUE_EXIT       0x48f
#define MSR_VMX_TRUE_ENTRY      0x490

/* ---- VMCS fields.  16-bit ones from 0000h, 64-bit from 2000h, 32-bit from 4000h, natural width from 6000h ---- */
enum vmcs_field {
    /* VM-Execution Control Fields */
    VMCS_VPID = 0x0000, VMCS_POSTED_VECTOR = 0x0002,
    VMCS_IO_BITMAP_A = 0x2000, VMCS_IO_BITMAP_B = 0x2002, VMCS_MSR_BITMAP = 0x2004, VMCS_PML_ADDRESS = 0x200e, VMCS_TSC_OFFSET = 0x2010,
    VMCS_VIRTUAL_APIC = 0x2012, VMCS_APIC_ACCESS = 0x2014, VMCS_EPTP = 0x201a, VMCS_EOI_EXIT0 = 0x201c /* 1 .. 3 follow, step 2 */,
    VMCS_XSS_EXIT = 0x202c,
    VMCS_PIN = 0x4000, VMCS_PRIMARY = 0x4002, VMCS_EXCEPTIONS = 0x4004, VMCS_PF_MASK = 0x4006, VMCS_PF_MATCH = 0x4008, VMCS_CR3_TARGETS = 0x400a,
    VMCS_TPR_THRESHOLD = 0x401c, VMCS_SECONDARY = 0x401e, VMCS_PLE_GAP = 0x4020, VMCS_PLE_WINDOW = 0x4022,
    VMCS_CR0_MASK = 0x6000, VMCS_CR4_MASK = 0x6002, VMCS_CR0_SHADOW = 0x6004, VMCS_CR4_SHADOW = 0x6006,
    /* VM-Exit Control Fields */
    VMCS_EXIT_CTL = 0x400c, VMCS_EXIT_MSR_STORES = 0x400e, VMCS_EXIT_MSR_LOADS = 0x4010,
    /* VM-Entry Control Fields */
    VMCS_ENTRY_CTL = 0x4012, VMCS_ENTRY_MSR_LOADS = 0x4014, VMCS_ENTRY_EVENT = 0x4016, VMCS_ENTRY_ERROR = 0x4018, VMCS_ENTRY_INSN_LEN = 0x401a,
    /* VM-Exit Information Fields */
    VMCS_GUEST_PHYSICAL = 0x2400,
    VMCS_INSN_ERROR = 0x4400, VMCS_EXIT_REASON = 0x4402, VMCS_EXIT_EVENT = 0x4404, VMCS_EXIT_ERROR = 0x4406, VMCS_IDT_EVENT = 0x4408,
    VMCS_IDT_ERROR = 0x440a, VMCS_EXIT_INSN_LEN = 0x440c, VMCS_EXIT_INSN_INFO = 0x440e,
    VMCS_QUALIFICATION = 0x6400, VMCS_GUEST_LINEAR = 0x640a,
    /* Guest-State Area; segment fields go ES CS SS DS FS GS LDTR TR, step 2 */
    VMCS_GUEST_SEL = 0x0800, VMCS_GUEST_INTR_STATUS = 0x0810,
    VMCS_LINK = 0x2800, VMCS_GUEST_DEBUGCTL = 0x2802, VMCS_GUEST_PAT = 0x2804, VMCS_GUEST_EFER = 0x2806, VMCS_GUEST_PDPTE0 = 0x280a,
    VMCS_GUEST_LIMIT = 0x4800, VMCS_GUEST_GDTR_LIMIT = 0x4810, VMCS_GUEST_IDTR_LIMIT = 0x4812, VMCS_GUEST_RIGHTS = 0x4814,
    VMCS_INTERRUPTIBILITY = 0x4824, VMCS_ACTIVITY = 0x4826, VMCS_GUEST_SYSENTER_CS = 0x482a, VMCS_PREEMPT_TIMER = 0x482e,
    VMCS_GUEST_CR0 = 0x6800, VMCS_GUEST_CR3 = 0x6802, VMCS_GUEST_CR4 = 0x6804, VMCS_GUEST_BASE = 0x6806, VMCS_GUEST_GDTR_BASE = 0x6816,
    VMCS_GUEST_IDTR_BASE = 0x6818, VMCS_GUEST_DR7 = 0x681a, VMCS_GUEST_RSP = 0x681c, VMCS_GUEST_RIP = 0x681e, VMCS_GUEST_RFLAGS = 0x6820,
    VMCS_PENDING_DEBUG = 0x6822, VMCS_GUEST_SYSENTER_ESP = 0x6824, VMCS_GUEST_SYSENTER_EIP = 0x6826,
    /* Host-State Area */
    VMCS_HOST_ES = 0x0c00, VMCS_HOST_CS = 0x0c02, VMCS_HOST_SS = 0x0c04, VMCS_HOST_DS = 0x0c06, VMCS_HOST_FS = 0x0c08, VMCS_HOST_GS = 0x0c0a,
    VMCS_HOST_TR = 0x0c0c, VMCS_HOST_PAT = 0x2c00, VMCS_HOST_EFER = 0x2c02, VMCS_HOST_SYSENTER_CS = 0x4c00,
    VMCS_HOST_CR0 = 0x6c00, VMCS_HOST_CR3 = 0x6c02, VMCS_HOST_CR4 = 0x6c04, VMCS_HOST_FS_BASE = 0x6c06, VMCS_HOST_GS_BASE = 0x6c08,
    VMCS_HOST_TR_BASE = 0x6c0a, VMCS_HOST_GDTR_BASE = 0x6c0c, VMCS_HOST_IDTR_BASE = 0x6c0e, VMCS_HOST_SYSENTER_ESP = 0x6c10,
    VMCS_HOST_SYSENTER_EIP = 0x6c12, VMCS_HOST_RSP = 0x6c14, VMCS_HOST_RIP = 0x6c16,
};

/* ---- Pin-Based VM-Execution Controls ---- */
#define PIN_EXT_INTR            BIT(0)
#define PIN_NMI                 BIT(3)
#define PIN_VIRTUAL_NMI         BIT(5)
#define PIN_PREEMPT_TIMER       BIT(6)
#define PIN_POSTED              BIT(7)
/* ---- Primary Processor-Based VM-Execution Controls ---- */
#define PRI_INTR_WINDOW         BIT(2)
#define PRI_TSC_OFFSET          BIT(3)
#define PRI_HLT                 BIT(7)
#define PRI_INVLPG              BIT(9)
#define PRI_MWAIT               BIT(10)
#define PRI_RDPMC               BIT(11)
#define PRI_RDTSC               BIT(12)
#define PRI_CR3_LOAD            BIT(15)
#define PRI_CR3_STORE           BIT(16)
#define PRI_CR8_LOAD            BIT(19)
#define PRI_CR8_STORE           BIT(20)
#define PRI_TPR_SHADOW          BIT(21)
#define PRI_NMI_WINDOW          BIT(22)
#define PRI_MOV_DR              BIT(23)
#define PRI_UNCOND_IO           BIT(24)
#define PRI_IO_BITMAPS          BIT(25)
#define PRI_MSR_BITMAPS         BIT(28)
#define PRI_MONITOR             BIT(29)
#define PRI_PAUSE               BIT(30)
#define PRI_SECONDARY           BIT(31)
/* ---- Secondary Processor-Based VM-Execution Controls ---- */
#define SEC_APIC_ACCESS         BIT(0)
#define SEC_EPT                 BIT(1)
#define SEC_DESC_TABLE          BIT(2)
#define SEC_RDTSCP              BIT(3)
#define SEC_X2APIC              BIT(4)
#define SEC_VPID                BIT(5)
#define SEC_WBINVD              BIT(6)
#define SEC_UNRESTRICTED        BIT(7)
#define SEC_APIC_REGS           BIT(8)
#define SEC_VINTR               BIT(9)
#define SEC_PAUSE_LOOP          BIT(10)
#define SEC_INVPCID             BIT(12)
#define SEC_XSAVES              BIT(20)
/* ---- VM-Exit Controls ---- */
#define EXC_SAVE_DEBUG          BIT(2)
#define EXC_HOST_64             BIT(9)
#define EXC_SAVE_PAT            BIT(18)
#define EXC_LOAD_PAT            BIT(19)
#define EXC_SAVE_EFER           BIT(20)
#define EXC_LOAD_EFER           BIT(21)
/* ---- VM-Entry Controls ---- */
#define ENC_LOAD_DEBUG          BIT(2)
#define ENC_IA32E               BIT(9)
#define ENC_LOAD_PAT            BIT(14)
#define ENC_LOAD_EFER           BIT(15)

/* ---- Extended-Page-Table Pointer ---- */
#define EPTP_WB                 6ull
#define EPTP_WALK4              (3ull << 3)
#define EPTP_AD                 BIT(6)

/* ---- Guest segment access rights ---- */
#define RIGHTS_UNUSABLE         BIT(16)

/* ---- Interruptibility state ---- */
#define BLOCK_STI               BIT(0)
#define BLOCK_MOV_SS            BIT(1)
#define BLOCK_SMI               BIT(2)
#define BLOCK_NMI               BIT(3)

/* ---- Pending debug exceptions and the exit qualification of #DB ---- */
#define PENDING_DB_BS           BIT(14)
#define DB_DR6_BITS             (BITS(3, 0) | BITS(15, 13))

/* ---- VM-entry interruption information, VM-exit interruption information, IDT-vectoring information ---- */
#define VEC_VECTOR              BITS(7, 0)
#define VEC_TYPE_SHIFT          8
#define VEC_TYPE                BITS(10, 8)
#define VEC_ERROR               BIT(11)
#define VEC_NMI_UNBLOCKED       BIT(12)         /* VM exits only: IRET had ended NMI blocking */
#define VEC_VALID               BIT(31)
enum vmx_event_type { VEC_EXT_INTR = 0, VEC_NMI = 2, VEC_HW_EXC = 3, VEC_SOFT_INTR = 4, VEC_PRIV_SOFT_EXC = 5, VEC_SOFT_EXC = 6, VEC_OTHER = 7 };

/* ---- Basic exit reasons ---- */
enum vmx_exit_reason {
    VMX_EXIT_EXCEPTION = 0, VMX_EXIT_EXT_INTR, VMX_EXIT_TRIPLE_FAULT, VMX_EXIT_INIT, VMX_EXIT_SIPI, VMX_EXIT_IO_SMI, VMX_EXIT_SMI,
    VMX_EXIT_INTR_WINDOW, VMX_EXIT_NMI_WINDOW, VMX_EXIT_TASK_SWITCH, VMX_EXIT_CPUID, VMX_EXIT_GETSEC, VMX_EXIT_HLT, VMX_EXIT_INVD, VMX_EXIT_INVLPG,
    VMX_EXIT_RDPMC, VMX_EXIT_RDTSC, VMX_EXIT_RSM, VMX_EXIT_VMCALL, VMX_EXIT_VMCLEAR, VMX_EXIT_VMLAUNCH, VMX_EXIT_VMPTRLD, VMX_EXIT_VMPTRST,
    VMX_EXIT_VMREAD, VMX_EXIT_VMRESUME, VMX_EXIT_VMWRITE, VMX_EXIT_VMXOFF, VMX_EXIT_VMXON, VMX_EXIT_CR, VMX_EXIT_DR, VMX_EXIT_IO,
    VMX_EXIT_RDMSR, VMX_EXIT_WRMSR, VMX_EXIT_BAD_GUEST, VMX_EXIT_BAD_MSR_LOAD, VMX_EXIT_MWAIT = 36, VMX_EXIT_MTF = 37, VMX_EXIT_MONITOR = 39,
    VMX_EXIT_PAUSE = 40, VMX_EXIT_MACHINE_CHECK = 41, VMX_EXIT_TPR_BELOW = 43, VMX_EXIT_APIC_ACCESS = 44, VMX_EXIT_EOI = 45, VMX_EXIT_GDTR_IDTR = 46,
    VMX_EXIT_LDTR_TR = 47, VMX_EXIT_EPT_VIOLATION = 48, VMX_EXIT_EPT_MISCONFIG = 49, VMX_EXIT_INVEPT = 50, VMX_EXIT_RDTSCP = 51,
    VMX_EXIT_PREEMPT_TIMER = 52, VMX_EXIT_INVVPID = 53, VMX_EXIT_WBINVD = 54, VMX_EXIT_XSETBV = 55, VMX_EXIT_APIC_WRITE = 56, VMX_EXIT_RDRAND = 57,
    VMX_EXIT_INVPCID = 58, VMX_EXIT_VMFUNC = 59, VMX_EXIT_ENCLS = 60, VMX_EXIT_RDSEED = 61, VMX_EXIT_PML_FULL = 62, VMX_EXIT_XSAVES = 63,
    VMX_EXIT_XRSTORS = 64, VMX_EXIT_PCONFIG = 65, VMX_EXIT_SPP = 66, VMX_EXIT_UMWAIT = 67, VMX_EXIT_TPAUSE = 68, VMX_EXIT_REASONS
};
#define VMX_REASON_BASIC        BITS(15, 0)
#define VMX_REASON_ENTRY_FAILED BIT(31)

/* ---- Exit qualifications ---- */
/* EPT violations */
#define EPTQ_READ               BIT(0)
#define EPTQ_WRITE              BIT(1)
#define EPTQ_EXEC               BIT(2)
#define EPTQ_ALLOWED            BITS(5, 3)      /* what the entry permits; 0: not present */
#define EPTQ_LINEAR_VALID       BIT(7)
#define EPTQ_FINAL              BIT(8)          /* else: an access of the guest's page-table walk */
#define EPTQ_NMI_UNBLOCKED      BIT(12)
/* Control-register accesses */
#define CRQ_NUMBER              BITS(3, 0)
#define CRQ_TYPE_SHIFT          4               /* 0 MOV to, 1 MOV from, 2 CLTS, 3 LMSW */
#define CRQ_GPR_SHIFT           8
#define CRQ_LMSW_SHIFT          16
enum { CRQ_MOV_TO, CRQ_MOV_FROM, CRQ_CLTS, CRQ_LMSW };
/* I/O instructions */
#define IOQ_SIZE                BITS(2, 0)      /* bytes - 1 */
#define IOQ_IN                  BIT(3)
#define IOQ_STRING              BIT(4)
#define IOQ_REP                 BIT(5)
#define IOQ_PORT_SHIFT          16
/* APIC accesses; of APIC writes only the offset */
#define APICQ_OFFSET            BITS(11, 0)
#define APICQ_TYPE_SHIFT        12
enum { APICQ_READ, APICQ_WRITE, APICQ_FETCH, APICQ_EVENT };     /* linear ones; the others are the CPU's own */
/* Task switch */
#define TASKQ_SELECTOR          BITS(15, 0)
#define TASKQ_SOURCE_SHIFT      30

/* ---- VM-instruction error numbers that an entry can produce; SDM "VM Instruction Error Numbers" ---- */
enum { VMERR_LAUNCH_NOT_CLEAR = 4, VMERR_RESUME_NOT_LAUNCHED = 5, VMERR_ENTRY_CONTROLS = 7, VMERR_ENTRY_HOST = 8, VMERR_ENTRY_MOV_SS = 26 };

enum { VMCS_ABORT_AT = 4 };                     /* byte offset of the VMX-abort indicator in the region */
