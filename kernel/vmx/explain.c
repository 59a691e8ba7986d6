/* What to say when an entry failed. */
#include "kernel/vmx/vmx.h"

#include <stdio.h>

#include "kernel/x86/cpu.h"

static uint64_t read_field(void *arg, enum vmcs_field f) { return vmread(f); }

bool vmx_check_entry(struct vcpu *v)
{
    struct exit *e = &v->exit;
    struct vmx_check *c = &vmx_of(v)->check;
    c->read = read_field, c->phys_bits = cpu_info.phys_bits;
    const char *why = vmx_check_controls(c);
    why = why ? why : vmx_check_host(c);
    why = why ? why : vmx_check_guest(c);
    if (!why)
        return false;
    e->kind = EXIT_FATAL;
    e->u.raw.reason = VMX_REASON_ENTRY_FAILED | VMX_EXIT_BAD_GUEST, e->u.raw.info1 = e->u.raw.info2 = 0, e->u.raw.why = why;
    return true;
}

const char *vmx_explain(struct vcpu *v, uint32_t reason)
{
    struct vmx_check *c = &vmx_of(v)->check;
    const char *why = NULL;
    c->read = read_field, c->phys_bits = cpu_info.phys_bits;
    switch (reason) {
    case VMX_REASON_ENTRY_FAILED | VMX_EXIT_BAD_GUEST:
        why = vmx_check_guest(c);
        return why ? why : "the CPU refuses the guest's state for a reason that is not among the known checks";
    case VMX_REASON_ENTRY_FAILED | VMX_EXIT_BAD_MSR_LOAD:
        return "an MSR of the entry list cannot be loaded";
    case VMX_EXIT_EPT_MISCONFIG:
        return "an entry of the nested page tables is malformed";
    case VMX_REFUSED | VMERR_ENTRY_CONTROLS:
        why = vmx_check_controls(c);
        return why ? why : "a control field is one the CPU does not allow";
    case VMX_REFUSED | VMERR_ENTRY_HOST:
        why = vmx_check_host(c);
        return why ? why : "a host-state field is one the CPU does not allow";
    case VMX_REFUSED | VMERR_LAUNCH_NOT_CLEAR: case VMX_REFUSED | VMERR_RESUME_NOT_LAUNCHED:
        return "the VMCS is in the wrong launch state";
    case VMX_REFUSED | VMERR_ENTRY_MOV_SS:
        return "events are blocked by MOV SS in the host";
    }
    snprintf(c->text, sizeof c->text, reason & VMX_REFUSED ? "VM-instruction error %u" : "exit reason %u is not known", (unsigned)(reason & VMX_REASON_BASIC));
    return c->text;
}
