/* What the CPUs can do, and the same control-register settings on all of them. */
#include <stdio.h>
#include <string.h>
#include "kernel/lib/port.h"
#include "kernel/mm/ptab.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/percpu.h"

struct cpu_info cpu_info;

static const struct { uint32_t leaf; uint8_t subleaf, reg, bit; const char *text; } features[] = {
#define CPU_FEATURE_ROW(name, leaf, sub, reg, bit, text) { leaf, sub, CPUID_##reg, bit, text },
    CPU_FEATURES(CPU_FEATURE_ROW)
};

const char *cpu_feature_text(enum cpu_feature f) { return features[f].text; }

static bool feature_here(enum cpu_feature f)
{
    uint32_t leaf = features[f].leaf;
    if (leaf > (leaf & 0x80000000 ? cpu_info.max_ext_leaf : cpu_info.max_leaf))
        return false;
    struct cpuid_regs r = cpuid(leaf, features[f].subleaf);
    uint32_t v[] = { r.eax, r.ebx, r.ecx, r.edx };
    return v[features[f].reg] >> features[f].bit & 1;
}

static void detect_name(void)
{
    struct cpuid_regs r = cpuid(0, 0);
    cpu_info.max_leaf = r.eax;
    memcpy(cpu_info.vendor_id, &r.ebx, 4);
    memcpy(cpu_info.vendor_id + 4, &r.edx, 4);
    memcpy(cpu_info.vendor_id + 8, &r.ecx, 4);
    cpu_info.vendor = !strcmp(cpu_info.vendor_id, "GenuineIntel") ? CPU_INTEL
                    : !strcmp(cpu_info.vendor_id, "AuthenticAMD") || !strcmp(cpu_info.vendor_id, "HygonGenuine") ? CPU_AMD : CPU_OTHER;
    r = cpuid(1, 0);
    cpu_info.signature = r.eax;
    cpu_info.family = x86_family(r.eax), cpu_info.model = x86_model(r.eax), cpu_info.stepping = r.eax & 15;
    r = cpuid(0x80000000, 0);
    cpu_info.max_ext_leaf = r.eax & 0x80000000 ? r.eax : 0;
    strcpy(cpu_info.brand, cpu_info.vendor_id);
    if (cpu_info.max_ext_leaf < 0x80000004)
        return;
    char raw[49] = { 0 };
    for (unsigned i = 0; i < 3; i++) {
        r = cpuid(0x80000002 + i, 0);
        memcpy(raw + 16 * i, &r, 16);
    }
    strcpy(cpu_info.brand, raw + strspn(raw, " "));
    for (size_t n = strlen(cpu_info.brand); n && cpu_info.brand[n - 1] == ' '; n--)
        cpu_info.brand[n - 1] = 0;
}

static void detect_widths(void)
{
    cpu_info.phys_bits = 36, cpu_info.lin_bits = 48;
    if (cpu_info.max_ext_leaf >= 0x80000008) {
        uint32_t a = cpuid(0x80000008, 0).eax;
        cpu_info.phys_bits = a & 0xff, cpu_info.lin_bits = a >> 8 & 0xff;
    }
    /* Memory encryption takes address bits away once the firmware turned it on (SYSCFG.SMEE); APM vol. 2 "Secure Memory Encryption". */
    uint64_t syscfg;
    if (cpu_info.vendor == CPU_AMD && cpu_info.max_ext_leaf >= 0x8000001f && cpuid(0x8000001f, 0).eax & 1 &&
        rdmsr_safe(MSR_AMD_SYSCFG, &syscfg) && syscfg & BIT(23))
        cpu_info.phys_bits -= cpuid(0x8000001f, 0).ebx >> 6 & 63;
}

static uint32_t microcode_revision(void)
{
    uint64_t v = 0;
    if (cpu_info.vendor == CPU_INTEL) {
        wrmsr_safe(MSR_UCODE_REV, 0);
        cpuid(1, 0);
        return rdmsr_safe(MSR_UCODE_REV, &v) ? (uint32_t)(v >> 32) : 0;
    }
    return rdmsr_safe(MSR_UCODE_REV, &v) ? (uint32_t)v : 0;
}

void cpu_detect(void)
{
    detect_name();
    for (unsigned f = 0; f < CPU_FEATURE_COUNT; f++)
        if (feature_here(f))
            cpu_info.feat[f / 64] |= BIT(f % 64);
    detect_widths();
    /* AMX tiles need XFD handling and PKRU belongs to the guest alone; neither is part of the host's set. */
    if (cpu_has(FEAT_XSAVE)) {
        struct cpuid_regs r = cpuid(0xd, 0);
        cpu_info.xcr0 = ((uint64_t)r.edx << 32 | r.eax) & (XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512);
        if ((cpu_info.xcr0 & XCR0_AVX512) != XCR0_AVX512)
            cpu_info.xcr0 &= ~XCR0_AVX512;
    }
    if (cpu_has(FEAT_ARCH_CAPS))
        rdmsr_safe(MSR_ARCH_CAPABILITIES, &cpu_info.arch_caps);
    cpu_info.microcode = microcode_revision();
}

/* Features whose absence on another CPU would break code that was chosen by the boot CPU's set. */
static bool same_features(char *err, size_t errlen)
{
    for (unsigned f = 0; f < CPU_FEATURE_COUNT; f++) {
        if (cpu_has(f) && !feature_here(f) && f != FEAT_HTT && f != FEAT_HYBRID) {
            snprintf(err, errlen, "it lacks %s, which the boot CPU has", features[f].text);
            return false;
        }
    }
    return true;
}

static void init_machine_check(void)
{
    uint64_t cap;
    if (!cpu_has(FEAT_MCA) || !rdmsr_safe(MSR_MCG_CAP, &cap))
        return;
    if (cap & MCG_CAP_CTL_P)
        wrmsr_safe(MSR_MCG_CTL, ~0ull);
    for (unsigned i = 0; i < (cap & MCG_CAP_COUNT); i++) {
        wrmsr_safe(MSR_MC0_CTL + 4 * i, ~0ull);
        wrmsr_safe(MSR_MC0_STATUS + 4 * i, 0);
    }
}

/* The page attribute table may only change while no cached line has the old type: SDM vol. 3 "Programming the PAT". */
static void init_pat(void)
{
    if (!cpu_has(FEAT_PAT) || rdmsr(MSR_PAT) == PT_HOST_PAT)
        return;
    uint64_t cr0 = read_cr0();
    write_cr0(cr0 | CR0_CD);
    wbinvd();
    tlb_flush_local();
    wrmsr(MSR_PAT, PT_HOST_PAT);
    wbinvd();
    tlb_flush_local();
    write_cr0(cr0);
}

bool cpu_init(char *err, size_t errlen)
{
    if (cpu_index() != 0 && !same_features(err, errlen))
        return false;
    if (!cpu_has(FEAT_NX) || !cpu_has(FEAT_PAT) || !cpu_has(FEAT_PGE) || !cpu_has(FEAT_FXSR) || !cpu_has(FEAT_CX16)) {
        snprintf(err, errlen, "NX, PAT, PGE, FXSR and CMPXCHG16B are needed");
        return false;
    }
    write_cr0((read_cr0() & ~(CR0_CD | CR0_NW | CR0_EM | CR0_TS | CR0_AM)) | CR0_WP | CR0_NE | CR0_MP | CR0_ET);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
    init_pat();
    uint64_t cr4 = CR4_PAE | CR4_PGE | CR4_DE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    cr4 |= cpu_has(FEAT_MCE) ? CR4_MCE : 0;
    cr4 |= cpu_has(FEAT_SMEP) ? CR4_SMEP : 0;
    cr4 |= cpu_has(FEAT_SMAP) ? CR4_SMAP : 0;
    cr4 |= cpu_has(FEAT_UMIP) ? CR4_UMIP : 0;
    cr4 |= cpu_has(FEAT_FSGSBASE) ? CR4_FSGSBASE : 0;
    cr4 |= cpu_has(FEAT_XSAVE) ? CR4_OSXSAVE : 0;
    init_machine_check();
    write_cr4(cr4);
    if (cpu_info.xcr0)
        xsetbv(0, cpu_info.xcr0);
    if (cpu_has(FEAT_XSAVES))
        wrmsr(MSR_XSS, 0);
    __asm__ volatile("fninit");
    uint32_t mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" :: "m"(mxcsr));
    return true;
}
