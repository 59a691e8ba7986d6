#include "kernel/vmm/policy.h"

#include <errno.h>

#include "kernel/hw/msr.h"
#include "kernel/vmm/cpuid.h"
#include "kernel/vmm/msr.h"

enum { R_EAX, R_EBX, R_ECX, R_EDX };

struct policy_vm { struct cpuid_table cpuid; struct msr_policy msr; uint64_t cr4; };
struct policy_vcpu { struct vcpu_msrs msr; struct cpuid_env env; };

static struct policy_vm *of_vm(const struct vcpu *v) { return v->vm->cpuid; }
static struct policy_vcpu *of(const struct vcpu *v) { return v->msrs; }

/* ---- CPUID ---- */

static void raw_cpuid(void *arg, uint32_t leaf, uint32_t sub, struct cpuid_regs *r)
{
    uint32_t out[4];
    vmm_host.cpuid(leaf, sub, out);
    *r = (struct cpuid_regs){ out[0], out[1], out[2], out[3] };
}

static uint64_t env_cr4(void *v) { return vcpu_state(v, ST_CRS)->cr4; }
static uint64_t env_xcr0(void *vcpu)
{
    struct vcpu *v = vcpu;
    vcpu_state(v, ST_CRS);
    return v->xcr0;
}

static bool env_apic_on(void *vcpu)
{
    struct vcpu *v = vcpu;
    uint64_t base;
    return v->has_irqchip && v->irqchip.msr_read(v->irqchip.apic, MSR_APIC_BASE, &base) && (base & APIC_BASE_ENABLE);
}

void policy_cpuid(struct vcpu *v)
{
    struct cpuid_regs r = cpuid_get(&of_vm(v)->cpuid, &of(v)->env, (uint32_t)v->gpr[RAX], (uint32_t)v->gpr[RCX]);
    v->gpr[RAX] = r.eax, v->gpr[RBX] = r.ebx, v->gpr[RCX] = r.ecx, v->gpr[RDX] = r.edx;
}

/* A bit of CR4 exists when the feature that it switches on does. */
static uint64_t cr4_bits(const struct cpuid_table *t)
{
    static const struct { uint64_t cr4; uint32_t leaf; uint8_t reg, bit; } need[] = {
        { CR4_VME | CR4_PVI, 1, R_EDX, 1 }, { CR4_TSD, 1, R_EDX, 4 }, { CR4_DE, 1, R_EDX, 2 }, { CR4_PSE, 1, R_EDX, 3 }, { CR4_PAE, 1, R_EDX, 6 },
        { CR4_MCE, 1, R_EDX, 7 }, { CR4_PGE, 1, R_EDX, 13 }, { CR4_OSFXSR, 1, R_EDX, 24 }, { CR4_OSXMMEXCPT, 1, R_EDX, 25 },
        { CR4_PCIDE, 1, R_ECX, 17 }, { CR4_OSXSAVE, 1, R_ECX, 26 }, { CR4_FSGSBASE, 7, R_EBX, 0 }, { CR4_SMEP, 7, R_EBX, 7 }, { CR4_SMAP, 7, R_EBX, 20 },
        { CR4_UMIP, 7, R_ECX, 2 }, { CR4_LA57, 7, R_ECX, 16 }, { CR4_PKE, 7, R_ECX, 3 },
    };
    uint64_t bits = CR4_PCE;
    for (unsigned i = 0; i < ARRAY_SIZE(need); i++)
        if (cpuid_has(t, need[i].leaf, need[i].reg, need[i].bit))
            bits |= need[i].cr4;
    return bits;
}

uint64_t policy_cr4_mask(struct vcpu *v) { return of_vm(v)->cr4; }
uint64_t policy_xcr0_mask(void) { return vmm_host.xcr0; }

/* ---- MSRs that live in the back-end's state ---- */

static uint64_t *state_field(struct vcpu *v, uint32_t msr, unsigned *group)
{
    static const struct { uint32_t msr; uint16_t group; uint16_t at; } field[] = {
        { MSR_EFER, ST_CRS, offsetof(struct cpu_state, efer) }, { MSR_STAR, ST_SYSCALL, offsetof(struct cpu_state, star) },
        { MSR_LSTAR, ST_SYSCALL, offsetof(struct cpu_state, lstar) }, { MSR_CSTAR, ST_SYSCALL, offsetof(struct cpu_state, cstar) },
        { MSR_SFMASK, ST_SYSCALL, offsetof(struct cpu_state, sfmask) }, { MSR_KERNEL_GS_BASE, ST_SYSCALL, offsetof(struct cpu_state, kernel_gs_base) },
        { MSR_FS_BASE, ST_SEGS, offsetof(struct cpu_state, seg[SEG_FS].base) }, { MSR_GS_BASE, ST_SEGS, offsetof(struct cpu_state, seg[SEG_GS].base) },
        { MSR_SYSENTER_CS, ST_SYSCALL, offsetof(struct cpu_state, sysenter_cs) }, { MSR_SYSENTER_ESP, ST_SYSCALL, offsetof(struct cpu_state, sysenter_esp) },
        { MSR_SYSENTER_EIP, ST_SYSCALL, offsetof(struct cpu_state, sysenter_eip) }, { MSR_PAT, ST_MSRS, offsetof(struct cpu_state, pat) },
        { MSR_TSC_AUX, ST_MSRS, offsetof(struct cpu_state, tsc_aux) }, { MSR_SPEC_CTRL, ST_MSRS, offsetof(struct cpu_state, spec_ctrl) },
        { MSR_DEBUGCTL, ST_MSRS, offsetof(struct cpu_state, debugctl) },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(field); i++) {
        if (field[i].msr != msr)
            continue;
        *group = field[i].group;
        return (uint64_t *)((char *)vcpu_state(v, field[i].group) + field[i].at);
    }
    return NULL;
}

static uint64_t hw_read(void *v, uint32_t msr)
{
    unsigned group;
    const uint64_t *at = state_field(v, msr, &group);
    return at ? *at : 0;
}

static void hw_write(void *v, uint32_t msr, uint64_t val)
{
    unsigned group;
    uint64_t *at = state_field(v, msr, &group);
    if (!at)
        return;
    *at = val;
    vcpu_put_state(v, group);
    if (msr == MSR_EFER)        /* NXE decides on reserved bits of entries that may be cached */
        hv->flush(v, FLUSH_LINEAR);
}

static uint64_t read_cr0_of(void *v) { return vcpu_state(v, ST_CRS)->cr0; }
static uint64_t read_tsc(void *v) { return vcpu_tsc(v); }

static void shift_tsc(void *vcpu, int64_t delta)
{
    struct vcpu *v = vcpu;
    v->tsc_offset += delta;
    hv->set_tsc(v, v->tsc_offset);
    atomic_or(&v->requests, REQ_CLOCK);
}

static void ibpb(void *v) { vmm_host.ibpb(); }
static void clock_wall(void *v, uint64_t gpa) { pvclock_wall(v, gpa); }
static void clock_page(void *v, uint64_t val) { pvclock_page(v, val); }

static const struct msr_ops msr_ops = {
    .hw_read = hw_read, .hw_write = hw_write, .cr0 = read_cr0_of, .tsc = read_tsc, .tsc_shift = shift_tsc, .ibpb = ibpb,
    .clock_wall = clock_wall, .clock_page = clock_page,
};

bool policy_rdmsr(struct vcpu *v, uint32_t msr, uint64_t *val) { return msr_read(&of(v)->msr, msr, val); }
bool policy_wrmsr(struct vcpu *v, uint32_t msr, uint64_t val) { return msr_write(&of(v)->msr, msr, val); }

/* ---- Making ---- */

int policy_vm_init(struct vm *vm)
{
    struct policy_vm *p = kzalloc(sizeof *p);
    if (!p)
        return -ENOMEM;
    struct cpuid_policy c = {
        .raw = raw_cpuid, .ncpus = vm->p.ncpus, .xcr0 = vmm_host.xcr0, .phys_bits = (uint8_t)vmm_host.phys_bits,
        .tsc_stable = vmm_host.tsc_stable, .kvmclock = true, .spec_ctrl = vmm_host.spec_ctrl != 0, .tsc_khz = (uint32_t)(vmm_host.tsc_hz / 1000),
    };
    cpuid_build(&p->cpuid, &c);
    p->cr4 = cr4_bits(&p->cpuid);
    p->msr = (struct msr_policy){
        .intel = p->cpuid.intel, .phys_bits = p->cpuid.phys_bits, .efer_mask = EFER_SCE | EFER_LME | EFER_NXE, .tsc_aux = true, .kvmclock = true,
        .spec_ctrl_mask = vmm_host.spec_ctrl,
    };
    if (cpuid_has(&p->cpuid, 0x80000001, R_EDX, 25))
        p->msr.efer_mask |= EFER_FFXSR;
    vm->cpuid = p;
    return 0;
}

void policy_vm_fini(struct vm *vm) { kfree(vm->cpuid); }

int policy_vcpu_init(struct vcpu *v)
{
    struct policy_vcpu *p = kzalloc(sizeof *p);
    if (!p)
        return -ENOMEM;
    p->msr = (struct vcpu_msrs){ .ops = &msr_ops, .vcpu = v, .policy = &of_vm(v)->msr, .vm_name = v->vm->p.name };
    p->env = (struct cpuid_env){ .vcpu = v, .apic_id = v->index, .cr4 = env_cr4, .xcr0 = env_xcr0, .apic_on = env_apic_on };
    v->msrs = p;
    return 0;
}

void policy_vcpu_reset(struct vcpu *v)
{
    enum { MTRR_ENABLE_WB = 0x806 };
    struct policy_vcpu *p = of(v);
    p->msr.irqchip = v->has_irqchip ? &v->irqchip : NULL;
    msr_reset(&p->msr);
    /* No firmware runs before a directly booted kernel: it finds the MTRRs as firmware would leave them, all memory write-back. */
    p->msr.mtrr_def = MTRR_ENABLE_WB;
}

int policy_vcpu_snap(struct vcpu *v, struct snap *s) { return msr_snap(&of(v)->msr, s); }
