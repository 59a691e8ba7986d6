/*
 * Why an entry was refused, as a sentence.  The CPU only says that something is wrong; the checks of SDM vol 3 "Checks on the Guest State Area" are repeated here in
 * its order until one fails.
 */
#include "kernel/vmx/vmx.h"

#include <stdio.h>

struct guest {
    uint64_t cr0, cr3, cr4, efer, rip, rflags, dr7, debugctl, pat, link, activity, interruptibility, event, pending, entry;
    struct { uint64_t base, sel, limit, rights; } seg[8];
    uint64_t gdt_base, gdt_limit, idt_base, idt_limit;
};

static void read_guest(struct guest *g)
{
    const struct { uint64_t *to; enum vmcs_field from; } all[] = {
        { &g->cr0, VMCS_GUEST_CR0 }, { &g->cr3, VMCS_GUEST_CR3 }, { &g->cr4, VMCS_GUEST_CR4 }, { &g->efer, VMCS_GUEST_EFER }, { &g->rip, VMCS_GUEST_RIP },
        { &g->rflags, VMCS_GUEST_RFLAGS }, { &g->dr7, VMCS_GUEST_DR7 }, { &g->debugctl, VMCS_GUEST_DEBUGCTL }, { &g->pat, VMCS_GUEST_PAT },
        { &g->link, VMCS_LINK }, { &g->activity, VMCS_ACTIVITY }, { &g->interruptibility, VMCS_INTERRUPTIBILITY }, { &g->event, VMCS_ENTRY_EVENT },
        { &g->pending, VMCS_PENDING_DEBUG }, { &g->entry, VMCS_ENTRY_CTL }, { &g->gdt_base, VMCS_GUEST_GDTR_BASE }, { &g->gdt_limit, VMCS_GUEST_GDTR_LIMIT },
        { &g->idt_base, VMCS_GUEST_IDTR_BASE }, { &g->idt_limit, VMCS_GUEST_IDTR_LIMIT },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(all); i++)
        *all[i].to = vmread(all[i].from);
    for (unsigned i = 0; i < 8; i++) {
        g->seg[i].base = vmread(vmcs_nth(VMCS_GUEST_BASE, i)), g->seg[i].sel = vmread(vmcs_nth(VMCS_GUEST_SEL, i));
        g->seg[i].limit = vmread(vmcs_nth(VMCS_GUEST_LIMIT, i)), g->seg[i].rights = vmread(vmcs_nth(VMCS_GUEST_RIGHTS, i));
    }
}

static bool canonical(uint64_t v) { return (uint64_t)((int64_t)(v << 16) >> 16) == v; }

static bool pat_bad(uint64_t v)
{
    for (unsigned i = 0; i < 64; i += 8)
        if ((v >> i & 0xff) > 7 || (v >> i & 0xfe) == 2)
            return true;
    return false;
}

/* "Checks on Guest Control Registers, Debug Registers, and MSRs" */
static const char *check_registers(const struct guest *g)
{
    bool pg = g->cr0 & CR0_PG, lma = g->entry & ENC_IA32E;
    uint64_t must = vmx_features.cr0_must & ~(CR0_PE | CR0_PG);
    if ((g->cr0 & must) != must || (g->cr0 & ~vmx_features.cr0_may))
        return "CR0 has a bit that VMX fixes otherwise";
    if (pg && !(g->cr0 & CR0_PE))
        return "CR0.PG without CR0.PE";
    if ((g->cr4 & vmx_features.cr4_must) != vmx_features.cr4_must || (g->cr4 & ~vmx_features.cr4_may))
        return "CR4 has a bit that VMX fixes otherwise";
    if (lma && (!pg || !(g->cr4 & CR4_PAE)))
        return "long mode without CR0.PG or CR4.PAE";
    if (!lma && (g->cr4 & CR4_PCIDE))
        return "CR4.PCIDE outside long mode";
    if (g->cr3 >> vmm_host.phys_bits)
        return "CR3 is beyond the physical address width";
    if (g->dr7 >> 32)
        return "DR7 has upper bits set";
    if (pat_bad(g->pat))
        return "PAT holds a reserved memory type";
    if ((g->efer & ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE)) || !(g->efer & EFER_LMA) != !lma || (pg && !(g->efer & EFER_LME) != !lma))
        return "EFER contradicts the mode";
    return NULL;
}

static bool limit_bad(uint64_t limit, uint64_t rights)
{
    bool g = rights & BIT(15);
    return ((limit & 0xfff) != 0xfff && g) || ((limit >> 20) && !g);
}

/* "Checks on Guest Segment Registers", for a virtual-8086 guest and for others */
static const char *check_segments(const struct guest *g, char *text, size_t len)
{
    static const char *const name[] = { "ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR" };
    bool v86 = g->rflags & RFLAGS_VM, lma = g->entry & ENC_IA32E;
    for (unsigned i = 0; i < 8; i++) {
        uint64_t rights = g->seg[i].rights, base = g->seg[i].base, limit = g->seg[i].limit, type = rights & 15;
        const char *what = NULL;
        bool usable = !(rights & RIGHTS_UNUSABLE);
        if (i < SEG_LDTR && v86) {
            if (base != g->seg[i].sel << 4 || limit != 0xffff || rights != 0xf3)
                what = "is not a segment of virtual-8086 mode";
        } else if (!usable) {
            what = i == SEG_CS || i == SEG_TR ? "is unusable" : NULL;
        } else if (i >= SEG_LDTR) {
            bool ok = i == SEG_LDTR ? type == 2 : type == 11 || (type == 3 && !lma);
            what = ok && !(rights & BIT(4)) && (rights & BIT(7)) ? NULL : "has the wrong descriptor type";
        } else if (!(rights & BIT(4)) || !(rights & BIT(7)) || !(type & 1)) {
            what = "is no present, accessed code or data segment";
        } else if (i == SEG_SS ? type != 3 && type != 7 : i == SEG_CS ? type != 3 && !(type & 8) : (type & 8) && !(type & 2)) {
            what = "has the wrong type";
        } else if (i == SEG_CS && lma && (rights & BIT(13)) && (rights & BIT(14))) {
            what = "has both L and D";
        }
        if (!what && usable && !v86 && limit_bad(limit, rights))
            what = "has a limit that contradicts its granularity";
        if (!what && usable && (i == SEG_FS || i == SEG_GS || i >= SEG_LDTR ? !canonical(base) : base >> 32 != 0))
            what = "has a base out of range";
        if (what) {
            snprintf(text, len, "%s %s (selector %x, base %llx, limit %x, rights %x)", name[i], what, (unsigned)g->seg[i].sel, (unsigned long long)base,
                     (unsigned)limit, (unsigned)rights);
            return text;
        }
    }
    return NULL;
}

/* "Checks on Guest RIP, RFLAGS, and SSP", "Checks on Guest Non-Register State" */
static const char *check_rest(const struct guest *g)
{
    bool shadow = g->interruptibility & (BLOCK_STI | BLOCK_MOV_SS);
    uint64_t type = (g->event & VEC_TYPE) >> VEC_TYPE_SHIFT;
    if (!canonical(g->gdt_base) || !canonical(g->idt_base) || g->gdt_limit >> 16 || g->idt_limit >> 16)
        return "GDTR or IDTR is out of range";
    if (!(g->entry & ENC_IA32E) ? g->rip >> 32 : !canonical(g->rip))
        return "RIP is out of range";
    if ((g->rflags & (BITS(63, 22) | BIT(15) | BIT(5) | BIT(3))) || !(g->rflags & RFLAGS_FIXED))
        return "RFLAGS has a reserved bit";
    if ((g->rflags & RFLAGS_VM) && ((g->entry & ENC_IA32E) || !(g->cr0 & CR0_PE)))
        return "virtual-8086 mode within long mode or real mode";
    if ((g->event & VEC_VALID) && type == VEC_EXT_INTR && (!(g->rflags & RFLAGS_IF) || shadow))
        return "an interrupt is injected while the guest blocks interrupts";
    if ((g->event & VEC_VALID) && type == VEC_NMI && (g->interruptibility & (BLOCK_NMI | BLOCK_MOV_SS)))
        return "an NMI is injected while the guest blocks NMIs";
    if (g->activity)
        return "the activity state is not active";
    if ((g->interruptibility & (BLOCK_STI | BLOCK_MOV_SS)) == (BLOCK_STI | BLOCK_MOV_SS) || ((g->interruptibility & BLOCK_STI) && !(g->rflags & RFLAGS_IF)))
        return "the interruptibility state contradicts itself";
    if (shadow && !(g->rflags & RFLAGS_TF) != !(g->pending & PENDING_DB_BS))
        return "a pending single-step trap contradicts RFLAGS.TF";
    if (g->link != ~0ull)
        return "the VMCS link pointer is set";
    return NULL;
}

static const char *bad_guest(char *text, size_t len)
{
    struct guest g;
    read_guest(&g);
    const char *why = check_registers(&g);
    why = why ? why : check_segments(&g, text, len);
    why = why ? why : check_rest(&g);
    return why ? why : "the CPU refuses the guest's state for a reason that is not among the known checks";
}

const char *vmx_explain(struct vcpu *v, uint32_t reason)
{
    struct vmx_vcpu *x = vmx_of(v);
    switch (reason) {
    case VMX_REASON_ENTRY_FAILED | VMX_EXIT_BAD_GUEST:
        return bad_guest(x->why, sizeof x->why);
    case VMX_REASON_ENTRY_FAILED | VMX_EXIT_BAD_MSR_LOAD:
        return "an MSR of the entry list cannot be loaded";
    case VMX_EXIT_EPT_MISCONFIG:
        return "an entry of the nested page tables is malformed";
    case VMX_REFUSED | VMERR_ENTRY_CONTROLS:
        return "a control field is one the CPU does not allow";
    case VMX_REFUSED | VMERR_ENTRY_HOST:
        return "a host-state field is one the CPU does not allow";
    case VMX_REFUSED | VMERR_LAUNCH_NOT_CLEAR: case VMX_REFUSED | VMERR_RESUME_NOT_LAUNCHED:
        return "the VMCS is in the wrong launch state";
    }
    if (reason & VMX_REFUSED)
        snprintf(x->why, sizeof x->why, "VM-instruction error %u", (unsigned)(reason & VMX_REASON_BASIC));
    else
        snprintf(x->why, sizeof x->why, "exit reason %u is not known", (unsigned)(reason & VMX_REASON_BASIC));
    return x->why;
}
