/* Guest MSRs; see msr.h. */
#include "kernel/vmm/msr.h"

#include <errno.h>
#include <string.h>

#include "kernel/vmm/snap.h"

enum {
    MSR_TSC = 0x10, MSR_KVM_WALL_OLD = 0x11, MSR_KVM_TIME_OLD = 0x12, MSR_APIC_BASE = 0x1b, MSR_FEATURE_CONTROL = 0x3a, MSR_TSC_ADJUST = 0x3b,
    MSR_SPEC_CTRL = 0x48, MSR_PRED_CMD = 0x49, MSR_UCODE_REV = 0x8b, MSR_PLATFORM_INFO = 0xce, MSR_MTRRCAP = 0xfe, MSR_ARCH_CAPS = 0x10a,
    MSR_SYSENTER_CS = 0x174, MSR_SYSENTER_ESP = 0x175, MSR_SYSENTER_EIP = 0x176, MSR_MISC_ENABLE = 0x1a0, MSR_DEBUGCTL = 0x1d9,
    MSR_MTRR_PHYS = 0x200, MSR_MTRR_FIX64K = 0x250, MSR_MTRR_FIX16K = 0x258, MSR_MTRR_FIX4K = 0x268, MSR_PAT = 0x277, MSR_MTRR_DEF = 0x2ff,
    MSR_TSC_DEADLINE = 0x6e0, MSR_X2APIC = 0x800, MSR_X2APIC_LAST = 0x8ff,
};
#define MSR_KVM_WALL    0x4b564d00u
#define MSR_KVM_TIME    0x4b564d01u
#define MSR_EFER        0xc0000080u
#define MSR_STAR        0xc0000081u
#define MSR_SFMASK      0xc0000084u
#define MSR_KERNEL_GS   0xc0000102u
#define MSR_TSC_AUX     0xc0000103u
enum { EFER_LME = BIT(8), EFER_LMA = BIT(10), CR0_PG = BIT(31) };

/* One range of the table.  No read or write function: #GP.  arg: what the function wants to know. */
struct msr_def {
    uint32_t first, last;
    bool (*read)(struct vcpu_msrs *, const struct msr_def *, uint32_t msr, uint64_t *val);
    bool (*write)(struct vcpu_msrs *, const struct msr_def *, uint32_t msr, uint64_t val);
    uint64_t arg;
    enum { ANY, INTEL, AMD } vendor;
};
#define READ(name)  static bool name(struct vcpu_msrs *m, const struct msr_def *d, uint32_t msr, uint64_t *val)
#define WRITE(name) static bool name(struct vcpu_msrs *m, const struct msr_def *d, uint32_t msr, uint64_t val)

static bool canonical(uint64_t v) { return (uint64_t)((int64_t)(v << 16) >> 16) == v; }
static bool memory_type(uint8_t t) { return t < 7 && (0x73 >> t & 1); }        /* UC WC WT WP WB */

static bool memory_types(uint64_t v)
{
    for (unsigned n = 0; n < 64; n += 8)
        if (!memory_type(v >> n))
            return false;
    return true;
}

bool msr_pat_valid(uint64_t v)
{
    for (unsigned n = 0; n < 64; n += 8)
        if ((v >> n & 0xff) != 7 && !memory_type(v >> n))
            return false;
    return true;
}

/* ---- Generic functions. ---- */
READ(read_const) { *val = d->arg; return true; }
WRITE(write_ignore) { return true; }
WRITE(write_zero) { return val == 0; }
READ(read_field) { memcpy(val, (char *)m + d->arg, sizeof *val); return true; }
WRITE(write_field) { memcpy((char *)m + d->arg, &val, sizeof val); return true; }
READ(read_hw) { *val = m->ops->hw_read(m->vcpu, msr); return true; }
WRITE(write_hw) { m->ops->hw_write(m->vcpu, msr, val); return true; }
WRITE(write_hw_canonical) { return canonical(val) && write_hw(m, d, msr, val); }
WRITE(write_hw_mask) { return !(val & ~d->arg) && write_hw(m, d, msr, val); }

/* ---- Hardware-held with rules of their own. ---- */
WRITE(write_efer)
{
    uint64_t old = m->ops->hw_read(m->vcpu, msr);

    if (val & ~(m->policy->efer_mask | EFER_LMA))
        return false;
    if (((val ^ old) & EFER_LME) && (m->ops->cr0(m->vcpu) & CR0_PG))
        return false;
    m->ops->hw_write(m->vcpu, msr, (val & ~(uint64_t)EFER_LMA) | (old & EFER_LMA));
    return true;
}

WRITE(write_pat) { return msr_pat_valid(val) && write_hw(m, d, msr, val); }
READ(read_tsc_aux) { return m->policy->tsc_aux && read_hw(m, d, msr, val); }
WRITE(write_tsc_aux) { return m->policy->tsc_aux && !(val >> 32) && write_hw(m, d, msr, val); }
READ(read_spec_ctrl) { return m->policy->spec_ctrl_mask && read_hw(m, d, msr, val); }
WRITE(write_spec_ctrl) { return m->policy->spec_ctrl_mask && !(val & ~m->policy->spec_ctrl_mask) && write_hw(m, d, msr, val); }

WRITE(write_pred_cmd)
{
    if (!m->policy->spec_ctrl_mask || (val & ~1ull))
        return false;
    if (val)
        m->ops->ibpb(m->vcpu);
    return true;
}

/* ---- Time. ---- */
READ(read_tsc) { *val = m->ops->tsc(m->vcpu); return true; }

/* Intel SDM vol 3 "IA32_TSC_ADJUST Support": a write of either moves both. */
WRITE(write_tsc)
{
    uint64_t delta = val - m->ops->tsc(m->vcpu);

    m->tsc_adjust += delta;
    m->ops->tsc_shift(m->vcpu, delta);
    return true;
}

WRITE(write_tsc_adjust)
{
    m->ops->tsc_shift(m->vcpu, val - m->tsc_adjust);
    m->tsc_adjust = val;
    return true;
}

WRITE(write_clock_wall)
{
    if (!m->policy->kvmclock)
        return false;
    m->clock_wall = val;
    m->ops->clock_wall(m->vcpu, val);
    return true;
}

WRITE(write_clock_page)
{
    if (!m->policy->kvmclock)
        return false;
    m->clock_page = val;
    m->ops->clock_page(m->vcpu, val);
    return true;
}
READ(read_clock) { return m->policy->kvmclock && read_field(m, d, msr, val); }

/* ---- APIC. ---- */
READ(read_apic) { return m->irqchip && m->irqchip->msr_read(m->irqchip->apic, msr, val); }
WRITE(write_apic) { return m->irqchip && m->irqchip->msr_write(m->irqchip->apic, msr, val); }

/* ---- MTRRs: kept and checked, without effect: guest RAM is write-back and devices are emulated. ---- */
READ(read_mtrr_var) { *val = m->mtrr_var[msr - MSR_MTRR_PHYS]; return true; }

WRITE(write_mtrr_var)
{
    uint64_t beyond = ~BITS(m->policy->phys_bits - 1, 0);

    if (msr & 1 ? val & (beyond | 0x7ff) : (val & (beyond | 0xf00)) || !memory_type(val))
        return false;
    m->mtrr_var[msr - MSR_MTRR_PHYS] = val;
    return true;
}

static unsigned fix_index(uint32_t msr)
{
    return msr == MSR_MTRR_FIX64K ? 0 : msr < MSR_MTRR_FIX4K ? msr - MSR_MTRR_FIX16K + 1 : msr - MSR_MTRR_FIX4K + 3;
}
READ(read_mtrr_fix) { *val = m->mtrr_fix[fix_index(msr)]; return true; }

WRITE(write_mtrr_fix)
{
    if (!memory_types(val))
        return false;
    m->mtrr_fix[fix_index(msr)] = val;
    return true;
}

WRITE(write_mtrr_def) { return !(val & ~0xcffull) && memory_type(val) && write_field(m, d, msr, val); }

/* ---- The rest, as kernels read them. ---- */
READ(read_arch_caps)
{
    *val = m->policy->arch_caps;
    return m->policy->has_arch_caps;
}

READ(read_ucode)        /* IA32_BIOS_SIGN_ID holds it in the upper half, AMD's PATCH_LEVEL in the lower */
{
    *val = m->policy->intel ? (uint64_t)m->policy->ucode_rev << 32 : m->policy->ucode_rev;
    return true;
}

WRITE(write_misc_enable)
{
    const uint64_t may = BIT(0) | BIT(3) | BIT(16) | BIT(18) | BIT(22) | BIT(34);

    m->misc_enable = (m->misc_enable & ~may) | (val & may);
    return true;
}

/* AMD PPR "Hardware Configuration": TscFreqSel reads as one; the kernel clears and sets cache and monitor options that do not exist here. */
READ(read_hwcr) { *val = m->hwcr | BIT(24); return true; }
WRITE(write_hwcr)
{
    const uint64_t none = BIT(3) | BIT(6) | BIT(8) | BIT(24), may = BIT(18);

    if (val & ~(none | may))
        return false;
    m->hwcr = val & may;
    return true;
}
READ(read_de_cfg) { *val = m->de_cfg | BIT(1); return true; }        /* LFENCE is serializing, as it is on the host */

#define FIELD(name) offsetof(struct vcpu_msrs, name)

static const struct msr_def defs[] = {          /* sorted by first, disjoint */
    { 0x00, 0x01, read_const, write_ignore, 0, ANY },                           /* P5_MC_ADDR, P5_MC_TYPE */
    { MSR_TSC, MSR_TSC, read_tsc, write_tsc, 0, ANY },
    { MSR_KVM_WALL_OLD, MSR_KVM_WALL_OLD, read_clock, write_clock_wall, FIELD(clock_wall), ANY },
    { MSR_KVM_TIME_OLD, MSR_KVM_TIME_OLD, read_clock, write_clock_page, FIELD(clock_page), ANY },
    { 0x17, 0x17, read_const, NULL, 0, INTEL },                                 /* PLATFORM_ID */
    { MSR_APIC_BASE, MSR_APIC_BASE, read_apic, write_apic, 0, ANY },
    { 0x2a, 0x2a, read_const, write_zero, 0, INTEL },                           /* EBL_CR_POWERON */
    { 0x34, 0x34, read_const, NULL, 0, INTEL },                                 /* SMI_COUNT */
    { MSR_FEATURE_CONTROL, MSR_FEATURE_CONTROL, read_const, NULL, 1, INTEL },   /* locked, VMX off */
    { MSR_TSC_ADJUST, MSR_TSC_ADJUST, read_field, write_tsc_adjust, FIELD(tsc_adjust), ANY },
    { MSR_SPEC_CTRL, MSR_SPEC_CTRL, read_spec_ctrl, write_spec_ctrl, 0, ANY },
    { MSR_PRED_CMD, MSR_PRED_CMD, NULL, write_pred_cmd, 0, ANY },
    { 0x79, 0x79, NULL, write_ignore, 0, INTEL },                               /* BIOS_UPDT_TRIG */
    { MSR_UCODE_REV, MSR_UCODE_REV, read_ucode, write_ignore, 0, ANY },
    { 0xc1, 0xc2, read_const, write_zero, 0, INTEL },                           /* PMC0, PMC1: no PMU */
    { 0xcd, 0xcd, read_const, NULL, 0, INTEL },                                 /* FSB_FREQ */
    { MSR_PLATFORM_INFO, MSR_PLATFORM_INFO, read_const, NULL, 0, INTEL },
    { MSR_MTRRCAP, MSR_MTRRCAP, read_const, NULL, 0x500 | MTRR_VAR_COUNT, ANY },        /* WC, fixed ranges */
    { MSR_ARCH_CAPS, MSR_ARCH_CAPS, read_arch_caps, NULL, 0, ANY },
    { 0x119, 0x119, read_const, write_ignore, 0, INTEL },                       /* BBL_CR_CTL */
    { 0x11e, 0x11e, read_const, write_ignore, 0xbe702111, INTEL },              /* BBL_CR_CTL3, as KVM has it */
    { 0x140, 0x140, read_const, write_zero, 0, INTEL },                         /* MISC_FEATURES_ENABLES */
    { MSR_SYSENTER_CS, MSR_SYSENTER_CS, read_hw, write_hw, 0, ANY },
    { MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, read_hw, write_hw_canonical, 0, ANY },
    { 0x179, 0x179, read_const, NULL, 0, ANY },                                 /* MCG_CAP: no banks */
    { 0x17a, 0x17a, read_field, write_field, FIELD(mcg_status), ANY },
    { 0x186, 0x187, read_const, write_zero, 0, INTEL },                         /* PERFEVTSEL */
    { 0x198, 0x198, read_const, NULL, 0, INTEL },                               /* PERF_STATUS */
    { 0x199, 0x19c, read_const, write_ignore, 0, INTEL },                       /* PERF_CTL, clock modulation, thermal */
    { MSR_MISC_ENABLE, MSR_MISC_ENABLE, read_field, write_misc_enable, FIELD(misc_enable), INTEL },
    { 0x1a2, 0x1a2, read_const, NULL, 0, INTEL },                               /* TEMPERATURE_TARGET */
    { 0x1ad, 0x1ad, read_const, NULL, 0, INTEL },                               /* TURBO_RATIO_LIMIT */
    { 0x1b0, 0x1b0, read_field, write_field, FIELD(energy_bias), INTEL },
    { MSR_DEBUGCTL, MSR_DEBUGCTL, read_hw, write_hw_mask, 0x3, ANY },           /* LBR, BTF */
    { 0x1db, 0x1de, read_const, write_ignore, 0, ANY },                         /* last branch and exception addresses */
    { 0x1fc, 0x1fc, read_const, write_ignore, 0, INTEL },                       /* POWER_CTL */
    { MSR_MTRR_PHYS, MSR_MTRR_PHYS + 2 * MTRR_VAR_COUNT - 1, read_mtrr_var, write_mtrr_var, 0, ANY },
    { MSR_MTRR_FIX64K, MSR_MTRR_FIX64K, read_mtrr_fix, write_mtrr_fix, 0, ANY },
    { MSR_MTRR_FIX16K, MSR_MTRR_FIX16K + 1, read_mtrr_fix, write_mtrr_fix, 0, ANY },
    { MSR_MTRR_FIX4K, MSR_MTRR_FIX4K + 7, read_mtrr_fix, write_mtrr_fix, 0, ANY },
    { MSR_PAT, MSR_PAT, read_hw, write_pat, 0, ANY },
    { MSR_MTRR_DEF, MSR_MTRR_DEF, read_field, write_mtrr_def, FIELD(mtrr_def), ANY },
    { 0x400, 0x47f, read_const, write_zero, 0, ANY },                           /* machine-check banks: none, and some kernels look all the same */
    { 0x606, 0x606, read_const, NULL, 0, INTEL },                               /* RAPL_POWER_UNIT: zero units, no RAPL */
    { MSR_TSC_DEADLINE, MSR_TSC_DEADLINE, read_apic, write_apic, 0, ANY },
    { MSR_X2APIC, MSR_X2APIC_LAST, read_apic, write_apic, 0, ANY },
    { MSR_KVM_WALL, MSR_KVM_WALL, read_clock, write_clock_wall, FIELD(clock_wall), ANY },
    { MSR_KVM_TIME, MSR_KVM_TIME, read_clock, write_clock_page, FIELD(clock_page), ANY },
    { MSR_EFER, MSR_EFER, read_hw, write_efer, 0, ANY },
    { MSR_STAR, MSR_STAR, read_hw, write_hw, 0, ANY },
    { MSR_STAR + 1, MSR_STAR + 2, read_hw, write_hw_canonical, 0, ANY },        /* LSTAR, CSTAR */
    { MSR_SFMASK, MSR_SFMASK, read_hw, write_hw_mask, 0xffffffff, ANY },
    { 0xc0000100, MSR_KERNEL_GS, read_hw, write_hw_canonical, 0, ANY },         /* FS, GS, kernel GS base */
    { MSR_TSC_AUX, MSR_TSC_AUX, read_tsc_aux, write_tsc_aux, 0, ANY },
    { 0xc0000408, 0xc000040a, read_const, write_zero, 0, AMD },                 /* MC4_MISC1.. */
    { 0xc0010000, 0xc0010007, read_const, write_zero, 0, AMD },                 /* performance counters: no PMU */
    { 0xc0010010, 0xc0010010, read_field, write_field, FIELD(syscfg), AMD },
    { 0xc0010015, 0xc0010015, read_hwcr, write_hwcr, 0, AMD },
    { 0xc0010016, 0xc0010019, read_const, write_ignore, 0, AMD },               /* IORRs */
    { 0xc001001a, 0xc001001a, read_const, write_ignore, 0, AMD },               /* TOP_MEM */
    { 0xc001001d, 0xc001001d, read_const, write_ignore, 0, AMD },               /* TOP_MEM2 */
    { 0xc001001f, 0xc001001f, read_const, write_ignore, 0, AMD },               /* NB_CFG */
    { 0xc0010020, 0xc0010020, NULL, write_ignore, 0, AMD },                     /* PATCH_LOADER */
    { 0xc0010044, 0xc0010055, read_const, write_ignore, 0, AMD },               /* MCx_CTL_MASK, INT_PENDING */
    { 0xc0010058, 0xc0010058, read_const, write_ignore, 0, AMD },               /* MMIO_CONF_BASE: off */
    { 0xc0010061, 0xc0010063, read_const, write_ignore, 0, AMD },               /* P-state limit, control, status */
    { 0xc0010064, 0xc001006b, read_const, NULL, 0, AMD },                       /* P-states: none valid */
    { 0xc0010111, 0xc0010113, read_const, NULL, 0, AMD },                       /* SMBASE, SMM_ADDR, SMM_MASK: no SMM */
    { 0xc0010114, 0xc0010114, read_const, write_zero, 0x18, AMD },              /* VM_CR: SVM disabled and locked */
    { 0xc0010140, 0xc0010141, read_const, NULL, 0, AMD },                       /* OSVW */
    { 0xc0010200, 0xc001020b, read_const, write_zero, 0, AMD },                 /* extended performance counters */
    { 0xc0011002, 0xc0011005, read_const, write_ignore, 0, AMD },               /* CPUID overrides */
    { 0xc0011020, 0xc0011028, read_const, write_ignore, 0, AMD },               /* LS_CFG .. FP_CFG */
    { 0xc0011029, 0xc0011029, read_de_cfg, write_field, FIELD(de_cfg), AMD },
    { 0xc001102a, 0xc001102d, read_const, write_ignore, 0, AMD },               /* BU_CFG2 … LS_CFG2 */
    { 0xc00110a2, 0xc00110a2, read_const, write_ignore, 0, AMD },
};

static const struct msr_def *lookup(const struct vcpu_msrs *m, uint32_t msr)
{
    unsigned lo = 0, hi = ARRAY_SIZE(defs);

    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (msr > defs[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == ARRAY_SIZE(defs) || msr < defs[lo].first || defs[lo].vendor == (m->policy->intel ? AMD : INTEL))
        return NULL;
    return &defs[lo];
}

static bool unknown(struct vcpu_msrs *m, const struct msr_def *d, const char *verb, uint32_t msr, uint64_t val)
{
    m->faults++;
    if (!d)
        log_limited(&m->unknown, LOG_DEBUG, m->vm_name ? m->vm_name : "msr", "unknown MSR: %s %x, value %llx", verb, (unsigned)msr, (unsigned long long)val);
    return false;
}

bool msr_read(struct vcpu_msrs *m, uint32_t msr, uint64_t *val)
{
    const struct msr_def *d;

    m->reads++;
    if (msr == MSR_APIC_BASE)
        return read_apic(m, NULL, msr, val);
    *val = 0;
    if (msr - MSR_X2APIC < 0x100)
        return read_apic(m, NULL, msr, val);
    if (msr == MSR_EFER)
        return read_hw(m, NULL, msr, val);
    d = lookup(m, msr);
    return (d && d->read && d->read(m, d, msr, val)) || unknown(m, d, "read", msr, 0);
}

bool msr_write(struct vcpu_msrs *m, uint32_t msr, uint64_t val)
{
    const struct msr_def *d;

    m->writes++;
    if (msr == MSR_TSC_DEADLINE || msr - MSR_X2APIC < 0x100)
        return write_apic(m, NULL, msr, val);
    d = lookup(m, msr);
    return (d && d->write && d->write(m, d, msr, val)) || unknown(m, d, "write", msr, val);
}

void msr_reset(struct vcpu_msrs *m)
{
    m->tsc_adjust = m->mcg_status = m->hwcr = m->de_cfg = m->syscfg = m->mtrr_def = m->clock_page = m->clock_wall = 0;
    m->energy_bias = 6;                                 /* "normal" */
    m->misc_enable = BIT(0) | BIT(11) | BIT(12);        /* fast strings; no BTS, no PEBS */
    memset(m->mtrr_fix, 0, sizeof m->mtrr_fix);
    memset(m->mtrr_var, 0, sizeof m->mtrr_var);
}

static bool state_valid(const struct vcpu_msrs *m)
{
    uint64_t beyond = ~BITS(m->policy->phys_bits - 1, 0);

    for (unsigned n = 0; n < MTRR_FIX_COUNT; n++)
        if (!memory_types(m->mtrr_fix[n]))
            return false;
    for (unsigned n = 0; n < MTRR_VAR_COUNT; n++)
        if (!memory_type(m->mtrr_var[2 * n]) || (m->mtrr_var[2 * n] & (beyond | 0xf00)) || (m->mtrr_var[2 * n + 1] & (beyond | 0x7ff)))
            return false;
    return !(m->mtrr_def & ~0xcffull) && memory_type(m->mtrr_def) && !(m->hwcr & ~BIT(18));
}

int msr_snap(struct vcpu_msrs *m, struct snap *s)
{
    int err;

    snap_begin(s, "msr", 1);
    snap_bytes(s, "tsc_adjust", &m->tsc_adjust, sizeof m->tsc_adjust);
    snap_bytes(s, "misc_enable", &m->misc_enable, sizeof m->misc_enable);
    snap_bytes(s, "mcg_status", &m->mcg_status, sizeof m->mcg_status);
    snap_bytes(s, "hwcr", &m->hwcr, sizeof m->hwcr);
    snap_bytes(s, "de_cfg", &m->de_cfg, sizeof m->de_cfg);
    snap_bytes(s, "syscfg", &m->syscfg, sizeof m->syscfg);
    snap_bytes(s, "energy_bias", &m->energy_bias, sizeof m->energy_bias);
    snap_bytes(s, "mtrr_def", &m->mtrr_def, sizeof m->mtrr_def);
    snap_bytes(s, "mtrr_fix", m->mtrr_fix, sizeof m->mtrr_fix);
    snap_bytes(s, "mtrr_var", m->mtrr_var, sizeof m->mtrr_var);
    snap_bytes(s, "clock_page", &m->clock_page, sizeof m->clock_page);
    snap_bytes(s, "clock_wall", &m->clock_wall, sizeof m->clock_wall);
    err = snap_end(s);
    return err || !snap_loading(s) || state_valid(m) ? err : -EINVAL;
}
