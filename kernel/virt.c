#include "kernel/virt.h"

#include <stdio.h>

#include "kernel/lib/log.h"
#include "kernel/vmm/vcpu.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/mce.h"
#include "kernel/x86/mitigations.h"
#include "kernel/x86/smp.h"
#include "kernel/x86/time.h"

struct start { const struct hv_ops *ops; uint32_t failed; char err[160]; };

static void raw_cpuid(uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    struct cpuid_regs r = cpuid(leaf, sub);
    out[0] = r.eax, out[1] = r.ebx, out[2] = r.ecx, out[3] = r.edx;
}

static void cpu_on(void *arg)
{
    struct start *s = arg;
    char err[160];
    if (s->ops->cpu_on(cpu_index(), err, sizeof err) && !atomic_xchg(&s->failed, 1u))
        snprintf(s->err, sizeof s->err, "%s", err);
}

static const struct hv_ops *back_end(void)
{
    return cpu_info.vendor == CPU_AMD ? &svm_ops : cpu_info.vendor == CPU_INTEL ? &vmx_ops : NULL;
}

static void cpu_off(void *arg)
{
    const struct start *s = arg;
    s->ops->cpu_off(cpu_index());
}

static const struct hv_ops *with_checks(const struct hv_ops *ops)
{
    static struct hv_ops checked;
    if (!ops->run_checked)
        return ops;
    checked = *ops;
    checked.run = ops->run_checked;
    log_info("virt", "every guest entry is checked");
    return &checked;
}

static void describe_host(const struct virt_options *o)
{
    vmm_host = (struct vmm_host){
        .tsc_hz = tsc_hz(), .tsc_stable = tsc_usable() && cpu_has(FEAT_INVTSC), .tsc_clock = tsc_usable(), .phys_bits = o->phys_bits,
        .xcr0 = cpu_info.xcr0, .kick = smp_kick, .cpuid = raw_cpuid, .ibpb = mitigations_ibpb, .without = o->without, .check_entries = o->check_entries,
    };
}

/* On every CPU, with interrupts off. */
static void everywhere(void (*fn)(void *), struct start *s)
{
    unsigned long flags = irq_save();
    fn(s);
    irq_restore(flags);
    smp_call_others(fn, s);
}

void virt_init(const struct virt_options *o)
{
    static struct start s;              /* written by every CPU */
    s.ops = back_end();
    describe_host(o);
    int err = s.ops ? s.ops->probe(hv_why, sizeof hv_why) : -1;
    if (!s.ops)
        snprintf(hv_why, sizeof hv_why, "no back-end for this CPU (%s): AMD-V and VT-x are supported", cpu_info.brand);
    if (!err) {
        everywhere(cpu_on, &s);
        if (s.failed) {
            everywhere(cpu_off, &s);    /* those that could: a CPU left in VMX operation cannot be reset */
            snprintf(hv_why, sizeof hv_why, "%s", s.err);
        }
    }
    if (err || s.failed) {
        log_err("virt", "no virtual machines on this host: %s", hv_why);
        return;
    }
    hv = o->check_entries ? with_checks(s.ops) : s.ops;
    mce_set_owner(vm_page_lost);
    log_info("virt", "%s is on", hv->name);
}

void virt_off_this_cpu(void)
{
    if (hv)
        hv->cpu_off(cpu_index());
}
