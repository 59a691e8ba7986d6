#include "kernel/x86/mitigations.h"
#include "kernel/x86/percpu.h"
#include <stdio.h>
#include "kernel/lib/log.h"
#include "kernel/x86/cpu.h"

struct mitigations mitigations;

/* Why each decision fell; shown by `host cpu`. */
static struct { const char *spectre_v2, *guest_bti, *rsb, *l1tf, *mds, *lfence, *zenbleed, *smt; } why;
static bool auto_ibrs, de_cfg_lfence, de_cfg_zenbleed;

#define EFER_AUTO_IBRS      BIT(21)
#define DE_CFG_ZENBLEED     BIT(9)

/* In-order and early Atom and Xeon Phi cores, which do not speculate past a faulting load: not open to L1TF.  Intel "Affected Processors" list. */
static bool intel_no_l1tf(unsigned model)
{
    static const uint8_t models[] = { 0x1c, 0x26, 0x27, 0x35, 0x36, 0x37, 0x4a, 0x4d, 0x5a, 0x5d, 0x4c, 0x5c, 0x5f, 0x7a, 0x57, 0x85 };
    for (unsigned i = 0; i < ARRAY_SIZE(models); i++)
        if (model == models[i])
            return true;
    return false;
}

static void decide_intel(void)
{
    struct mitigations *m = &mitigations;
    uint64_t caps = cpu_info.arch_caps;
    m->rsb_fill = true, why.rsb = "on: filled after every exit";
    if (caps & ARCH_CAP_IBRS_ALL) {
        m->spec_ctrl_host = SPEC_CTRL_IBRS, why.spectre_v2 = "on: enhanced IBRS, always set";
    } else if (cpu_has(FEAT_SPEC_CTRL)) {
        m->spec_ctrl_host = SPEC_CTRL_IBRS, m->spec_ctrl_switch = true, why.spectre_v2 = "on: IBRS set at every exit";
    } else {
        why.spectre_v2 = "VULNERABLE: the CPU has no IBRS; update its microcode";
    }
    bool l1tf = !(caps & ARCH_CAP_RDCL_NO) && !intel_no_l1tf(cpu_info.model);
    m->l1d_flush = l1tf && !(caps & ARCH_CAP_SKIP_L1DFL) && cpu_has(FEAT_FLUSH_L1D);
    why.l1tf = !l1tf ? "not affected" : m->l1d_flush ? "on: L1 data cache flushed before entry" :
               caps & ARCH_CAP_SKIP_L1DFL ? "not needed: the outer hypervisor flushes" : "VULNERABLE: no L1D flush command; update the microcode";
    bool mds = !(caps & ARCH_CAP_MDS_NO), taa = !(caps & ARCH_CAP_TAA_NO), rfds = caps & ARCH_CAP_RFDS_CLEAR && !(caps & ARCH_CAP_RFDS_NO);
    bool mmio = caps & ARCH_CAP_FB_CLEAR && !(caps & ARCH_CAP_FBSDP_NO);
    m->verw = (mds && cpu_has(FEAT_MD_CLEAR)) || mmio || rfds;
    why.mds = m->verw ? "on: buffers cleared by VERW before entry" : !mds && !mmio && !rfds ? "not affected" :
              "VULNERABLE: VERW does not clear buffers; update the microcode";
    m->no_smt_sharing = cpu_has(FEAT_HTT) && (l1tf || mds || (taa && mds));
    why.smt = m->no_smt_sharing ? "VULNERABLE: siblings leak to each other and are not kept apart; switch Hyper-Threading off in the firmware" :
              cpu_has(FEAT_HTT) ? "siblings may run different VMs" : "none";
    why.lfence = "not needed on Intel", why.zenbleed = "not affected";
}

static bool is_zen2(void)
{
    unsigned m = cpu_info.model;
    return cpu_info.family == 0x17 && ((m >= 0x30 && m <= 0x4f) || (m >= 0x60 && m <= 0x7f) || (m >= 0x90 && m <= 0x91) || (m >= 0xa0 && m <= 0xaf));
}

static void decide_amd(void)
{
    struct mitigations *m = &mitigations;
    auto_ibrs = cpu_info.max_ext_leaf >= 0x80000021 && cpuid(0x80000021, 0).eax & BIT(8);
    m->rsb_fill = true, why.rsb = "on: filled after every exit";
    if (auto_ibrs) {
        why.spectre_v2 = "on: automatic IBRS";
    } else if (cpu_has(FEAT_AMD_IBRS) && cpu_has(FEAT_AMD_IBRS_ALWAYS)) {
        m->spec_ctrl_host = SPEC_CTRL_IBRS, why.spectre_v2 = "on: IBRS, always set";
    } else if (cpu_has(FEAT_AMD_IBRS)) {
        m->spec_ctrl_host = SPEC_CTRL_IBRS, m->spec_ctrl_switch = true, why.spectre_v2 = "on: IBRS set at every exit";
    } else {
        why.spectre_v2 = "partly: no IBRS on this CPU, only IBPB between VMs; the host's own branches are not covered";
    }
    why.l1tf = "not affected", why.mds = "not affected", why.smt = "siblings may run different VMs";
    de_cfg_lfence = !cpu_has(FEAT_AMD_LFENCE_RDTSC) && cpu_info.family != 0xf && cpu_info.family != 0x11;
    why.lfence = de_cfg_lfence ? "on: LFENCE set to serialise (DE_CFG)" : "LFENCE serialises by itself";
    de_cfg_zenbleed = is_zen2();
    why.zenbleed = de_cfg_zenbleed ? "on: DE_CFG bit 9" : "not affected";
}

void mitigations_init(bool off)
{
    struct mitigations *m = &mitigations;
    *m = (struct mitigations){ 0 };
    why.guest_bti = why.zenbleed = why.lfence = why.spectre_v2 = why.rsb = why.l1tf = why.mds = why.smt = "unknown CPU: nothing done";
    if (cpu_info.vendor == CPU_INTEL)
        decide_intel();
    else if (cpu_info.vendor == CPU_AMD)
        decide_amd();
    m->ibpb_on_vm_switch = cpu_has(FEAT_SPEC_CTRL) || cpu_has(FEAT_AMD_IBPB);
    why.guest_bti = m->ibpb_on_vm_switch ? "on: IBPB when a CPU changes VMs" : "VULNERABLE: the CPU has no IBPB; update its microcode";
    bool amd_ctrl = cpu_has(FEAT_AMD_IBRS) || cpu_has(FEAT_AMD_STIBP) || cpu_has(FEAT_AMD_SSBD);
    if (cpu_has(FEAT_SPEC_CTRL) || (amd_ctrl && cpu_has(FEAT_AMD_IBPB)))
        m->spec_ctrl_guest = SPEC_CTRL_IBRS | (cpu_has(FEAT_STIBP) || cpu_has(FEAT_AMD_STIBP) ? SPEC_CTRL_STIBP : 0) |
                             (cpu_has(FEAT_SSBD) || cpu_has(FEAT_AMD_SSBD) ? SPEC_CTRL_SSBD : 0);
    if (m->no_smt_sharing && !off)
        log_warn("cpu", "Hyper-Threading is on and this CPU leaks between siblings: switch it off in the firmware, or VMs can read each other's memory");
    if (off) {
        uint64_t guest = m->spec_ctrl_guest;
        *m = (struct mitigations){ .spec_ctrl_guest = guest };
        auto_ibrs = de_cfg_zenbleed = false;
        why.spectre_v2 = why.guest_bti = why.rsb = why.l1tf = why.mds = why.zenbleed = why.smt = "off by mitigations=off";
        log_warn("cpu", "mitigations=off: guests can read each other's and the host's memory through side channels");
    }
    m->spec_ctrl_used = m->spec_ctrl_switch || m->spec_ctrl_guest;
}

static void set_bits(uint32_t msr, uint64_t bits)
{
    uint64_t v;
    if (rdmsr_safe(msr, &v) && (v & bits) != bits && !wrmsr_safe(msr, v | bits))
        log_debug("cpu", "MSR %#x does not take %#llx (a hypervisor below?)", (unsigned)msr, (unsigned long long)bits);
}

void mitigations_init_cpu(void)
{
    if (auto_ibrs)
        set_bits(MSR_EFER, EFER_AUTO_IBRS);
    if (de_cfg_lfence)
        set_bits(MSR_AMD_DE_CFG, DE_CFG_LFENCE_SERIAL);
    if (de_cfg_zenbleed)
        set_bits(MSR_AMD_DE_CFG, DE_CFG_ZENBLEED);
    if (mitigations.spec_ctrl_host)
        set_bits(MSR_SPEC_CTRL, mitigations.spec_ctrl_host);
}

void mitigations_each(void (*fn)(void *arg, const char *name, const char *state), void *arg)
{
    fn(arg, "Branch targets, guest to host (Spectre v2)", why.spectre_v2);
    fn(arg, "Branch targets, guest to guest", why.guest_bti);
    fn(arg, "Return stack", why.rsb);
    fn(arg, "L1 terminal fault", why.l1tf);
    fn(arg, "Microarchitectural buffers (MDS, TAA, MMIO, RFDS)", why.mds);
    fn(arg, "LFENCE", why.lfence);
    fn(arg, "Vector register leak (Zenbleed)", why.zenbleed);
    fn(arg, "Hyper-threading", why.smt);
}

void mitigations_vm_switch(uint64_t vm)
{
    struct percpu *p = this_cpu();
    if (p->last_vm == vm)
        return;
    if (mitigations.ibpb_on_vm_switch && p->last_vm)
        wrmsr(MSR_PRED_CMD, PRED_CMD_IBPB);
    p->last_vm = vm;
}

void mitigations_spec_to_guest(uint64_t spec_ctrl)
{
    wrmsr(MSR_SPEC_CTRL, spec_ctrl);
    this_cpu()->spec_ctrl_guest = 1;
}

void mitigations_ibpb(void) { wrmsr_safe(MSR_PRED_CMD, PRED_CMD_IBPB); }
