/* What this CPU's VT-x offers: is it enough, and which controls follow.  SDM vol 3 appendix A "VMX Capability Reporting Facility". */
#include "kernel/vmx/caps.h"

#include "kernel/hw/msr.h"

struct vmx_features vmx_features;

const char vmx_firmware_sentence[] =
    "VT-x is switched off and locked by the firmware; enable \"Intel Virtualization Technology\" (VT-x, VMX) in its CPU set-up and switch the machine off and on";

enum vmx_firmware vmx_firmware_allows(uint64_t feature_control)
{
    if (!(feature_control & FEATCTL_LOCKED))
        return VMX_FW_OPEN;
    return feature_control & FEATCTL_VMX ? VMX_FW_ON : VMX_FW_OFF;
}

/* Controls, each by the capability MSR that tells whether it may be one, in the order in which the MSRs come to exist. */
struct need { uint32_t msr; uint64_t bit; const char *name; };
static const struct need needs[] = {
    { MSR_VMX_TRUE_PIN, PIN_EXT_INTR, "external-interrupt exiting" },
    { MSR_VMX_TRUE_PIN, PIN_NMI, "NMI exiting" },
    { MSR_VMX_TRUE_PIN, PIN_VIRTUAL_NMI, "virtual NMIs" },
    { MSR_VMX_TRUE_PRIMARY, PRI_INTR_WINDOW, "interrupt-window exiting" },
    { MSR_VMX_TRUE_PRIMARY, PRI_NMI_WINDOW, "NMI-window exiting" },
    { MSR_VMX_TRUE_PRIMARY, PRI_TSC_OFFSET, "TSC offsetting" },
    { MSR_VMX_TRUE_PRIMARY, PRI_HLT, "HLT exiting" },
    { MSR_VMX_TRUE_PRIMARY, PRI_MWAIT, "MWAIT exiting" },
    { MSR_VMX_TRUE_PRIMARY, PRI_MONITOR, "MONITOR exiting" },
    { MSR_VMX_TRUE_PRIMARY, PRI_RDPMC, "RDPMC exiting" },
    { MSR_VMX_TRUE_PRIMARY, PRI_MOV_DR, "MOV-DR exiting" },
    { MSR_VMX_TRUE_PRIMARY, PRI_TPR_SHADOW, "the TPR shadow" },
    { MSR_VMX_TRUE_PRIMARY, PRI_IO_BITMAPS, "I/O bitmaps" },
    { MSR_VMX_TRUE_PRIMARY, PRI_MSR_BITMAPS, "MSR bitmaps" },
    { MSR_VMX_TRUE_PRIMARY, PRI_SECONDARY, "secondary controls" },
    { MSR_VMX_SECONDARY, SEC_EPT, "EPT" },
    { MSR_VMX_SECONDARY, SEC_UNRESTRICTED, "unrestricted guest" },
    { MSR_VMX_SECONDARY, SEC_WBINVD, "WBINVD exiting" },
    { MSR_VMX_TRUE_EXIT, EXC_HOST_64, "a 64-bit host" },
    { MSR_VMX_TRUE_EXIT, EXC_SAVE_DEBUG, "saving of debug controls" },
    { MSR_VMX_TRUE_EXIT, EXC_SAVE_PAT, "saving of PAT" },
    { MSR_VMX_TRUE_EXIT, EXC_LOAD_PAT, "loading of PAT at exits" },
    { MSR_VMX_TRUE_EXIT, EXC_SAVE_EFER, "saving of EFER" },
    { MSR_VMX_TRUE_EXIT, EXC_LOAD_EFER, "loading of EFER at exits" },
    { MSR_VMX_TRUE_ENTRY, ENC_LOAD_DEBUG, "loading of debug controls" },
    { MSR_VMX_TRUE_ENTRY, ENC_IA32E, "64-bit guests" },
    { MSR_VMX_TRUE_ENTRY, ENC_LOAD_PAT, "loading of PAT at entries" },
    { MSR_VMX_TRUE_ENTRY, ENC_LOAD_EFER, "loading of EFER at entries" },
};
/* As the names above, for the one MSR of plain bits. */
static const struct need ept_needs[] = {
    { 0, EPT_CAP_WALK4, "EPT of four levels" },
    { 0, EPT_CAP_WB, "EPT tables in write-back memory" },
    { 0, EPT_CAP_2M, "2 MiB pages in EPT" },
    { 0, EPT_CAP_INVEPT, "INVEPT" },
    { 0, EPT_CAP_INVEPT_ALL, "INVEPT of all contexts" },
};
enum {
    /* Set by events and modes, not from the start. */
    LATER_PRIMARY = PRI_INTR_WINDOW | PRI_NMI_WINDOW, LATER_ENTRY = ENC_IA32E,
    OPTIONAL_SECONDARY = SEC_RDTSCP | SEC_VPID | SEC_PAUSE_LOOP | SEC_INVPCID,
    VMX_REVISION_BOCHS = 0x2b,
    APIC_VIRT = SEC_APIC_ACCESS | SEC_X2APIC | SEC_APIC_REGS | SEC_VINTR,
};

static const char *missing_control(vmx_msr_fn *rdmsr, void *arg)
{
    for (const struct need *n = needs; n < needs + ARRAY_SIZE(needs); n++)
        if (!(rdmsr(arg, n->msr) >> 32 & n->bit))
            return n->name;
    return NULL;
}

/* The controls of one word: what is needed and offered, and what must be one. */
static uint32_t controls(uint64_t cap, uint32_t msr, uint32_t optional, uint32_t later)
{
    uint32_t want = optional;
    for (const struct need *n = needs; n < needs + ARRAY_SIZE(needs); n++)
        want |= n->msr == msr ? (uint32_t)n->bit : 0;
    return ((want & ~later) | (uint32_t)cap) & (uint32_t)(cap >> 32);
}

static const char *missing_ept(uint64_t caps)
{
    for (const struct need *n = ept_needs; n < ept_needs + ARRAY_SIZE(ept_needs); n++)
        if (!(caps & n->bit))
            return n->name;
    return NULL;
}

static void read_controls(struct vmx_features *f, vmx_msr_fn *rdmsr, void *arg)
{
    static const struct { uint32_t msr, optional, later; size_t to; } words[] = {
        { MSR_VMX_TRUE_PIN, PIN_PREEMPT_TIMER, 0, offsetof(struct vmx_features, pin) },
        { MSR_VMX_TRUE_PRIMARY, 0, LATER_PRIMARY, offsetof(struct vmx_features, primary) },
        { MSR_VMX_SECONDARY, OPTIONAL_SECONDARY, 0, offsetof(struct vmx_features, secondary) },
        { MSR_VMX_TRUE_EXIT, 0, 0, offsetof(struct vmx_features, exit) },
        { MSR_VMX_TRUE_ENTRY, 0, LATER_ENTRY, offsetof(struct vmx_features, entry) },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++) {
        struct vmx_control *c = (struct vmx_control *)((char *)f + words[i].to);
        c->cap = rdmsr(arg, words[i].msr);
        c->val = controls(c->cap, words[i].msr, words[i].optional, words[i].later);
    }
}

const char *vmx_read_features(struct vmx_features *f, vmx_msr_fn *rdmsr, void *arg)
{
    uint64_t basic = rdmsr(arg, MSR_VMX_BASIC);
    *f = (struct vmx_features){ .revision = (uint32_t)(basic & VMX_BASIC_REVISION) };
    if (!(basic & VMX_BASIC_TRUE_CTLS))
        return "flexible controls (the TRUE capability MSRs)";
    if ((basic >> VMX_BASIC_TYPE_SHIFT & 15) != MEMTYPE_WB)
        return "a VMCS in write-back memory";
    const char *missing = missing_control(rdmsr, arg);
    if (missing)
        return missing;
    read_controls(f, rdmsr, arg);
    if (f->primary.val & (PRI_CR3_LOAD | PRI_CR3_STORE | PRI_INVLPG))
        return "CR3 and INVLPG without exits";
    f->ept_vpid = rdmsr(arg, MSR_VMX_EPT_VPID_CAP);
    if ((missing = missing_ept(f->ept_vpid)))
        return missing;
    f->ept_ad = f->ept_vpid & EPT_CAP_AD;
    f->pause_loop = f->secondary.val & SEC_PAUSE_LOOP;
    f->vpid = (f->secondary.val & SEC_VPID) && (f->ept_vpid & VPID_CAP_INVVPID) && (f->ept_vpid & VPID_CAP_ALL);
    /*
     * Bochs 2.7, known by its VMCS revision: a host interrupt that arrives while a virtual interrupt waits for the guest's IF makes the CPU deliver the virtual one
     * at once, IF or not.  There none may wait with IF clear (kernel/vmx/apic.c).
     */
    f->virq_ignores_if = f->revision == VMX_REVISION_BOCHS;
    f->apic_virt = (f->secondary.cap >> 32 & APIC_VIRT) == APIC_VIRT;
    f->timer_shift = (uint8_t)(rdmsr(arg, MSR_VMX_MISC) & VMX_MISC_TIMER_RATE);
    f->cr0_must = rdmsr(arg, MSR_VMX_CR0_FIXED0), f->cr0_may = rdmsr(arg, MSR_VMX_CR0_FIXED1);
    f->cr4_must = rdmsr(arg, MSR_VMX_CR4_FIXED0), f->cr4_may = rdmsr(arg, MSR_VMX_CR4_FIXED1);
    return NULL;
}
