#include "kernel/vmx/check.h"

#include <stdio.h>

#include "kernel/hw/msr.h"
#include "kernel/hw/x86.h"
#include "kernel/vmx/caps.h"

static uint64_t rd(struct vmx_check *c, enum vmcs_field f) { return c->read(c->arg, f); }
static bool has(struct vmx_check *c, enum vmcs_field f, uint64_t bit) { return rd(c, f) & bit; }
static bool canonical(uint64_t v) { return (uint64_t)((int64_t)(v << 16) >> 16) == v; }

/* The sentence; true, so that a caller can say `if (wrong && bad(…)) return`. */
static bool bad(struct vmx_check *c, const char *field, uint64_t val, const char *why)
{
    snprintf(c->text, sizeof c->text, "%s is %llx: %s", field, (unsigned long long)val, why);
    return true;
}

struct bits { enum vmcs_field field; const char *name; uint64_t must, may; };

static bool bad_bits(struct vmx_check *c, const struct bits *b)
{
    uint64_t val = rd(c, b->field), zero = b->must & ~val, one = val & ~b->may;
    char why[64];
    if (!zero && !one)
        return false;
    snprintf(why, sizeof why, "bits %llx must be %s", (unsigned long long)(zero ? zero : one), zero ? "one" : "zero");
    return bad(c, b->name, val, why);
}

static bool bad_canonical(struct vmx_check *c, enum vmcs_field f, const char *name)
{
    uint64_t v = rd(c, f);
    return !canonical(v) && bad(c, name, v, "not a canonical address");
}

static bool bad_pat(struct vmx_check *c, enum vmcs_field f, const char *name)
{
    uint64_t v = rd(c, f);
    for (unsigned i = 0; i < 64; i += 8)
        if ((v >> i & 0xff) > 7 || (v >> i & 0xfe) == 2)
            return bad(c, name, v, "holds a reserved memory type");
    return false;
}

static bool bad_address(struct vmx_check *c, enum vmcs_field f, const char *name, uint64_t align)
{
    uint64_t v = rd(c, f);
    return ((v & (align - 1)) || v >> c->phys_bits) && bad(c, name, v, "not an aligned physical address");
}

/* ---- Controls ---- */

static bool bad_control_words(struct vmx_check *c)
{
    const struct vmx_features *f = &vmx_features;
    const struct { enum vmcs_field field; const char *name; const struct vmx_control *w; } words[] = {
        { VMCS_PIN, "the pin-based controls", &f->pin }, { VMCS_PRIMARY, "the primary controls", &f->primary },
        { VMCS_SECONDARY, "the secondary controls", &f->secondary }, { VMCS_EXIT_CTL, "the VM-exit controls", &f->exit },
        { VMCS_ENTRY_CTL, "the VM-entry controls", &f->entry },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
        if (bad_bits(c, &(struct bits){ words[i].field, words[i].name, (uint32_t)words[i].w->cap, words[i].w->cap >> 32 }))
            return true;
    return false;
}

static bool bad_apic_controls(struct vmx_check *c)
{
    uint64_t sec = rd(c, VMCS_SECONDARY), threshold = rd(c, VMCS_TPR_THRESHOLD);
    bool shadow = has(c, VMCS_PRIMARY, PRI_TPR_SHADOW);
    if (!shadow)
        return (sec & (SEC_X2APIC | SEC_APIC_REGS | SEC_VINTR)) && bad(c, "the secondary controls", sec, "APIC virtualization needs the TPR shadow");
    if (bad_address(c, VMCS_VIRTUAL_APIC, "the virtual-APIC address", PAGE_SIZE))
        return true;
    if (!(sec & SEC_VINTR) && threshold >> 4)
        return bad(c, "the TPR threshold", threshold, "more than 15");
    if ((sec & SEC_X2APIC) && (sec & SEC_APIC_ACCESS))
        return bad(c, "the secondary controls", sec, "x2APIC and xAPIC virtualization exclude each other");
    if ((sec & SEC_VINTR) && !has(c, VMCS_PIN, PIN_EXT_INTR))
        return bad(c, "the pin-based controls", rd(c, VMCS_PIN), "virtual-interrupt delivery needs external-interrupt exiting");
    return (sec & SEC_APIC_ACCESS) && bad_address(c, VMCS_APIC_ACCESS, "the APIC-access address", PAGE_SIZE);
}

/* "VM-Entry Control Fields": the event to inject. */
static bool bad_event(struct vmx_check *c)
{
    uint64_t ev = rd(c, VMCS_ENTRY_EVENT), type = (ev & VEC_TYPE) >> VEC_TYPE_SHIFT, vector = ev & VEC_VECTOR;
    const uint64_t with_error = BIT(8) | BITS(14, 10) | BIT(17) | BIT(21);
    const char *name = "the injected event";
    if (!(ev & VEC_VALID))
        return false;
    if (type == 1 || (ev & BITS(30, 12)))
        return bad(c, name, ev, "its type or a reserved bit");
    if ((type == VEC_NMI && vector != 2) || (type == VEC_HW_EXC && vector > 31))
        return bad(c, name, ev, "its vector does not go with its type");
    bool can = type == VEC_HW_EXC && has(c, VMCS_GUEST_CR0, CR0_PE) && (with_error >> vector & 1);
    if (!(ev & VEC_ERROR) == can)
        return bad(c, name, ev, can ? "this exception has an error code" : "it has no error code");
    if ((ev & VEC_ERROR) && rd(c, VMCS_ENTRY_ERROR) >> 16)
        return bad(c, "the injected error code", rd(c, VMCS_ENTRY_ERROR), "more than 16 bits");
    bool soft = type == VEC_SOFT_INTR || type == VEC_PRIV_SOFT_EXC || type == VEC_SOFT_EXC;
    return soft && rd(c, VMCS_ENTRY_INSN_LEN) > 15 && bad(c, "the injected instruction length", rd(c, VMCS_ENTRY_INSN_LEN), "more than 15");
}

const char *vmx_check_controls(struct vmx_check *c)
{
    uint64_t pin = rd(c, VMCS_PIN), primary = rd(c, VMCS_PRIMARY), eptp = rd(c, VMCS_EPTP), sec = rd(c, VMCS_SECONDARY);
    bool is_bad = bad_control_words(c);
    is_bad = is_bad || bad_address(c, VMCS_IO_BITMAP_A, "the address of I/O bitmap A", PAGE_SIZE) || bad_address(c, VMCS_IO_BITMAP_B, "the address of I/O bitmap B", PAGE_SIZE);
    is_bad = is_bad || bad_address(c, VMCS_MSR_BITMAP, "the address of the MSR bitmap", PAGE_SIZE) || bad_apic_controls(c);
    is_bad = is_bad || (!(pin & PIN_NMI) && (pin & PIN_VIRTUAL_NMI) && bad(c, "the pin-based controls", pin, "virtual NMIs need NMI exiting"));
    is_bad = is_bad || (!(pin & PIN_VIRTUAL_NMI) && (primary & PRI_NMI_WINDOW) && bad(c, "the primary controls", primary, "NMI windows need virtual NMIs"));
    is_bad = is_bad || ((sec & SEC_VPID) && !rd(c, VMCS_VPID) && bad(c, "the VPID", 0, "0 is the host's"));
    is_bad = is_bad || ((eptp & 7) != EPTP_WB && bad(c, "the EPT pointer", eptp, "its memory type is not write-back"));
    is_bad = is_bad || ((eptp & BITS(5, 3)) != EPTP_WALK4 && bad(c, "the EPT pointer", eptp, "not four levels"));
    is_bad = is_bad || ((eptp & EPTP_AD) && !(vmx_features.ept_vpid & EPT_CAP_AD) && bad(c, "the EPT pointer", eptp, "no accessed and dirty flags here"));
    is_bad = is_bad || (((eptp & BITS(11, 7)) || eptp >> c->phys_bits) && bad(c, "the EPT pointer", eptp, "a reserved bit"));
    return is_bad || bad_event(c) ? c->text : NULL;
}

/* ---- Host state ---- */

static bool bad_host_selectors(struct vmx_check *c)
{
    static const struct { enum vmcs_field field; const char *name; } sel[] = {
        { VMCS_HOST_ES, "the host's ES" }, { VMCS_HOST_CS, "the host's CS" }, { VMCS_HOST_SS, "the host's SS" }, { VMCS_HOST_DS, "the host's DS" },
        { VMCS_HOST_FS, "the host's FS" }, { VMCS_HOST_GS, "the host's GS" }, { VMCS_HOST_TR, "the host's TR" },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(sel); i++) {
        uint64_t v = rd(c, sel[i].field);
        if (v & 7)
            return bad(c, sel[i].name, v, "a selector with RPL or TI");
        if (!v && (sel[i].field == VMCS_HOST_CS || sel[i].field == VMCS_HOST_TR))
            return bad(c, sel[i].name, v, "a null selector");
    }
    return false;
}

const char *vmx_check_host(struct vmx_check *c)
{
    static const struct { enum vmcs_field field; const char *name; } addr[] = {
        { VMCS_HOST_SYSENTER_ESP, "the host's SYSENTER_ESP" }, { VMCS_HOST_SYSENTER_EIP, "the host's SYSENTER_EIP" }, { VMCS_HOST_FS_BASE, "the host's FS base" },
        { VMCS_HOST_GS_BASE, "the host's GS base" }, { VMCS_HOST_TR_BASE, "the host's TR base" }, { VMCS_HOST_GDTR_BASE, "the host's GDTR base" },
        { VMCS_HOST_IDTR_BASE, "the host's IDTR base" }, { VMCS_HOST_RIP, "the host's RIP" },
    };
    const uint64_t cr4 = CR4_PAE, efer = EFER_LMA | EFER_LME;
    const struct bits regs[] = {
        { VMCS_HOST_CR0, "the host's CR0", vmx_features.cr0_must, vmx_features.cr0_may },
        { VMCS_HOST_CR4, "the host's CR4", vmx_features.cr4_must | cr4, vmx_features.cr4_may },
        { VMCS_HOST_CR3, "the host's CR3", 0, BITS(c->phys_bits - 1, 0) },
        { VMCS_HOST_EFER, "the host's EFER", efer, EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(regs); i++)
        if (bad_bits(c, &regs[i]))
            return c->text;
    for (unsigned i = 0; i < ARRAY_SIZE(addr); i++)
        if (bad_canonical(c, addr[i].field, addr[i].name))
            return c->text;
    return bad_pat(c, VMCS_HOST_PAT, "the host's PAT") || bad_host_selectors(c) ? c->text : NULL;
}

/* ---- Guest state ---- */

/* "Checks on Guest Control Registers, Debug Registers, and MSRs" */
static bool bad_registers(struct vmx_check *c)
{
    uint64_t cr0 = rd(c, VMCS_GUEST_CR0), cr4 = rd(c, VMCS_GUEST_CR4), efer = rd(c, VMCS_GUEST_EFER);
    bool pg = cr0 & CR0_PG, lma = has(c, VMCS_ENTRY_CTL, ENC_IA32E);
    const uint64_t unrestricted = CR0_PE | CR0_PG, free = CR0_NW | CR0_CD;
    const struct bits cr[] = {
        { VMCS_GUEST_CR0, "CR0", vmx_features.cr0_must & ~(unrestricted | free), vmx_features.cr0_may | free },
        { VMCS_GUEST_CR4, "CR4", vmx_features.cr4_must, vmx_features.cr4_may },
        { VMCS_GUEST_DEBUGCTL, "DEBUGCTL", 0, BITS(15, 6) | BITS(1, 0) },
        { VMCS_GUEST_CR3, "CR3", 0, BITS(c->phys_bits - 1, 0) },
        { VMCS_GUEST_DR7, "DR7", 0, BITS(31, 0) },
        { VMCS_GUEST_EFER, "EFER", lma ? EFER_LMA : 0, EFER_SCE | EFER_LME | EFER_NXE | (lma ? EFER_LMA : 0) },
    };
    if (bad_bits(c, &cr[0]) || (pg && !(cr0 & CR0_PE) && bad(c, "CR0", cr0, "PG without PE")))
        return true;
    if (bad_bits(c, &cr[1]) || ((cr4 & CR4_CET) && !(cr0 & CR0_WP) && bad(c, "CR4", cr4, "CET without CR0.WP")))
        return true;
    if (bad_bits(c, &cr[2]))
        return true;
    if (lma && !pg)
        return bad(c, "CR0", cr0, "long mode without paging");
    if (lma && !(cr4 & CR4_PAE))
        return bad(c, "CR4", cr4, "long mode without PAE");
    if (!lma && (cr4 & CR4_PCIDE))
        return bad(c, "CR4", cr4, "PCIDE outside long mode");
    if (bad_bits(c, &cr[3]) || bad_bits(c, &cr[4]))
        return true;
    if (bad_canonical(c, VMCS_GUEST_SYSENTER_ESP, "SYSENTER_ESP") || bad_canonical(c, VMCS_GUEST_SYSENTER_EIP, "SYSENTER_EIP"))
        return true;
    if (bad_pat(c, VMCS_GUEST_PAT, "PAT") || bad_bits(c, &cr[5]))
        return true;
    return pg && !(efer & EFER_LME) != !lma && bad(c, "EFER", efer, "LME contradicts the mode");
}

enum { ES, CS, SS, DS, FS, GS, LDTR, TR, SEGMENTS };
enum { RIGHT_S = 1 << 4, RIGHT_P = 1 << 7, RIGHT_L = 1 << 13, RIGHT_DB = 1 << 14, RIGHT_G = 1 << 15, TI = 4 };
static const char *const seg_name[SEGMENTS] = { "ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR" };

struct seg { uint64_t sel, base, limit, rights; };

static struct seg read_seg(struct vmx_check *c, unsigned i)
{
    unsigned n = 2 * i;
    return (struct seg){ rd(c, (enum vmcs_field)(VMCS_GUEST_SEL + n)), rd(c, (enum vmcs_field)(VMCS_GUEST_BASE + n)),
                         rd(c, (enum vmcs_field)(VMCS_GUEST_LIMIT + n)), rd(c, (enum vmcs_field)(VMCS_GUEST_RIGHTS + n)) };
}

static bool bad_seg(struct vmx_check *c, unsigned i, const char *part, uint64_t val, const char *why)
{
    char field[32];
    snprintf(field, sizeof field, "%s %s", seg_name[i], part);
    return bad(c, field, val, why);
}

static const char *v86_wrong(const struct seg *s)
{
    if (s->base != s->sel << 4)
        return "base";
    return s->limit != 0xffff ? "limit" : s->rights != 0xf3 ? "rights" : NULL;
}

/* The type of a code or data segment: NULL or what it should be. */
static const char *type_wrong(unsigned i, unsigned type)
{
    if (i == CS)
        return type == 3 || (type & 9) == 9 ? NULL : "not an accessed code segment";
    if (i == SS)
        return type == 3 || type == 7 ? NULL : "not an accessed, writable data segment";
    return (type & 1) && (!(type & 8) || (type & 2)) ? NULL : "not an accessed, readable segment";
}

static const char *dpl_wrong(struct vmx_check *c, unsigned i, const struct seg *s)
{
    unsigned type = s->rights & 15, dpl = s->rights >> 5 & 3, ss = rd(c, (enum vmcs_field)(VMCS_GUEST_RIGHTS + 2 * SS)) >> 5 & 3;
    if (i == CS && ((type == 3 && dpl) || ((type == 9 || type == 11) && dpl != ss) || (type >= 13 && dpl > ss)))
        return "its DPL does not go with SS";
    bool real = !has(c, VMCS_GUEST_CR0, CR0_PE) || (rd(c, (enum vmcs_field)(VMCS_GUEST_RIGHTS + 2 * CS)) & 15) == 3;
    return i == SS && real && dpl ? "DPL must be 0 in real mode" : NULL;
}

static const char *rights_wrong(struct vmx_check *c, unsigned i, const struct seg *s)
{
    unsigned type = s->rights & 15;
    bool lma = has(c, VMCS_ENTRY_CTL, ENC_IA32E), system = i >= LDTR;
    if (i == TR && (s->rights & RIGHTS_UNUSABLE))
        return "unusable";
    if (i == LDTR ? type != 2 : i == TR ? type != 11 && (type != 3 || lma) : false)
        return i == LDTR ? "not an LDT" : "not a busy TSS";
    const char *why = system ? NULL : type_wrong(i, type);
    if (!why && !(s->rights & RIGHT_S) != system)
        why = "the S bit";
    if (!why && !system)
        why = dpl_wrong(c, i, s);
    if (!why && !(s->rights & RIGHT_P))
        why = "not present";
    if (!why && ((s->rights & BITS(11, 8)) || s->rights >> 17))
        why = "a reserved bit";
    if (!why && i == CS && lma && (s->rights & RIGHT_L) && (s->rights & RIGHT_DB))
        why = "both L and D";
    if (!why && (((s->limit & 0xfff) != 0xfff && (s->rights & RIGHT_G)) || (s->limit >> 20 && !(s->rights & RIGHT_G))))
        why = "granularity contradicts the limit";
    return why;
}

/* "Checks on Guest Segment Registers" */
static bool bad_segment(struct vmx_check *c, unsigned i)
{
    struct seg s = read_seg(c, i);
    bool usable = !(s.rights & RIGHTS_UNUSABLE) || i == CS || i == TR, wide = i == FS || i == GS || i >= LDTR;
    if (i >= LDTR && usable && (s.sel & TI))
        return bad_seg(c, i, "selector", s.sel, "it points into the LDT");
    if (i < LDTR && has(c, VMCS_GUEST_RFLAGS, RFLAGS_VM)) {
        const char *part = v86_wrong(&s);
        return part && bad_seg(c, i, part, part[0] == 'b' ? s.base : part[0] == 'l' ? s.limit : s.rights, "not that of virtual-8086 mode");
    }
    if ((usable || i == FS || i == GS) && (wide ? !canonical(s.base) : s.base >> 32 != 0))
        return bad_seg(c, i, "base", s.base, "out of range");
    const char *why = usable ? rights_wrong(c, i, &s) : NULL;
    return why && bad_seg(c, i, "rights", s.rights, why);
}

/* "Checks on Guest Descriptor-Table Registers", "Checks on Guest RIP, RFLAGS, and SSP" */
static bool bad_rip(struct vmx_check *c)
{
    bool lma = has(c, VMCS_ENTRY_CTL, ENC_IA32E), code64 = lma && has(c, (enum vmcs_field)(VMCS_GUEST_RIGHTS + 2 * CS), RIGHT_L);
    uint64_t rip = rd(c, VMCS_GUEST_RIP), rflags = rd(c, VMCS_GUEST_RFLAGS), ev = rd(c, VMCS_ENTRY_EVENT);
    const struct bits regs[] = {
        { VMCS_GUEST_GDTR_LIMIT, "GDTR limit", 0, 0xffff }, { VMCS_GUEST_IDTR_LIMIT, "IDTR limit", 0, 0xffff },
        { VMCS_GUEST_RFLAGS, "RFLAGS", RFLAGS_FIXED, BITS(21, 16) | BITS(14, 6) | BIT(4) | BIT(2) | BIT(1) | BIT(0) },
    };
    if (bad_canonical(c, VMCS_GUEST_GDTR_BASE, "GDTR base") || bad_canonical(c, VMCS_GUEST_IDTR_BASE, "IDTR base") || bad_bits(c, &regs[0]) || bad_bits(c, &regs[1]))
        return true;
    if (code64 ? !canonical(rip) : rip >> 32)
        return bad(c, "RIP", rip, "out of range");
    if (bad_bits(c, &regs[2]))
        return true;
    if ((rflags & RFLAGS_VM) && (lma || !has(c, VMCS_GUEST_CR0, CR0_PE)))
        return bad(c, "RFLAGS", rflags, "virtual-8086 mode within long mode or real mode");
    bool intr = (ev & VEC_VALID) && (ev & VEC_TYPE) == VEC_EXT_INTR << VEC_TYPE_SHIFT;
    return intr && !(rflags & RFLAGS_IF) && bad(c, "RFLAGS", rflags, "an interrupt is injected with IF clear");
}

/* "Checks on Guest Non-Register State" */
static bool bad_non_register(struct vmx_check *c)
{
    uint64_t rflags = rd(c, VMCS_GUEST_RFLAGS), block = rd(c, VMCS_INTERRUPTIBILITY), ev = rd(c, VMCS_ENTRY_EVENT), activity = rd(c, VMCS_ACTIVITY);
    uint64_t pending = rd(c, VMCS_PENDING_DEBUG), type = (ev & VEC_TYPE) >> VEC_TYPE_SHIFT;
    bool shadow = block & (BLOCK_STI | BLOCK_MOV_SS), event = ev & VEC_VALID, step = (rflags & RFLAGS_TF) && !has(c, VMCS_GUEST_DEBUGCTL, DEBUGCTL_BTF);
    const char *name = "the interruptibility state";
    if (activity > 3 || (activity && shadow))
        return bad(c, "the activity state", activity, activity > 3 ? "unknown" : "not active in an interrupt shadow");
    if (block >> 5 || (block & BLOCK_SMI))
        return bad(c, name, block, "a reserved bit");
    if ((block & BLOCK_STI) && (block & BLOCK_MOV_SS))
        return bad(c, name, block, "blocking by STI and by MOV SS");
    if ((block & BLOCK_STI) && !(rflags & RFLAGS_IF))
        return bad(c, name, block, "blocking by STI with IF clear");
    if (event && type == VEC_EXT_INTR && shadow)
        return bad(c, name, block, "an interrupt is injected into a shadow");
    if (event && type == VEC_NMI && (block & (BLOCK_NMI | BLOCK_MOV_SS)))
        return bad(c, name, block, "an NMI is injected where NMIs are blocked");
    if (pending & ~(uint64_t)(BITS(3, 0) | BIT(12) | PENDING_DB_BS | BIT(16)))
        return bad(c, "the pending debug exceptions", pending, "a reserved bit");
    if (shadow && step != !!(pending & PENDING_DB_BS))
        return bad(c, "the pending debug exceptions", pending, step ? "BS must be one in a shadow with TF" : "BS must be zero in a shadow without TF");
    uint64_t link = rd(c, VMCS_LINK);
    return link != ~0ull && bad(c, "the VMCS link pointer", link, "not all ones");
}

/* "Checks on Guest Page-Directory-Pointer-Table Entries" */
static bool bad_pdptes(struct vmx_check *c)
{
    if (!has(c, VMCS_GUEST_CR0, CR0_PG) || !has(c, VMCS_GUEST_CR4, CR4_PAE) || has(c, VMCS_ENTRY_CTL, ENC_IA32E))
        return false;
    for (unsigned i = 0; i < 4; i++) {
        uint64_t e = rd(c, (enum vmcs_field)(VMCS_GUEST_PDPTE0 + 2 * i));
        char name[] = "PDPTE0";
        name[5] = (char)('0' + i);
        if ((e & 1) && (e & (BITS(63, c->phys_bits) | BITS(8, 5) | BITS(2, 1))))
            return bad(c, name, e, "a reserved bit");
    }
    return false;
}

const char *vmx_check_guest(struct vmx_check *c)
{
    bool is_bad = bad_registers(c);
    for (unsigned i = 0; !is_bad && i < SEGMENTS; i++)
        is_bad = bad_segment(c, i);
    return is_bad || bad_rip(c) || bad_non_register(c) || bad_pdptes(c) ? c->text : NULL;
}
