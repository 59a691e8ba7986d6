/* What VT-x must offer, and why an entry is refused: capability MSRs and VMCS fields come from tables. */
#include "tests/host/test.h"

#include <string.h>

#include "kernel/hw/msr.h"
#include "kernel/hw/x86.h"
#include "kernel/vmx/caps.h"
#include "kernel/vmx/check.h"

/* ---- Capabilities: a Skylake-X, as Bochs 2.7 shows it ---- */

static struct { uint32_t msr; uint64_t val; } caps[] = {
    { MSR_VMX_BASIC, 0x00d810000000002bull }, { MSR_VMX_TRUE_PIN, 0x0000007f00000016ull }, { MSR_VMX_TRUE_PRIMARY, 0xfff9fffe04006172ull },
    { MSR_VMX_SECONDARY, 0x02177fff00000000ull }, { MSR_VMX_TRUE_EXIT, 0x01ffffff00036dfbull }, { MSR_VMX_TRUE_ENTRY, 0x0003ffff000011fbull },
    { MSR_VMX_EPT_VPID_CAP, 0x00000f0106334141ull }, { MSR_VMX_MISC, 0x7004c1e7 }, { MSR_VMX_CR0_FIXED0, 0x80000021 }, { MSR_VMX_CR0_FIXED1, 0xffffffff },
    { MSR_VMX_CR4_FIXED0, 0x2000 }, { MSR_VMX_CR4_FIXED1, 0x0037ffff },
};
static uint32_t forbidden;      /* no such MSR here: a read is #GP on a real CPU */

static uint64_t *cap(uint32_t msr)
{
    for (unsigned i = 0; i < ARRAY_SIZE(caps); i++)
        if (caps[i].msr == msr)
            return &caps[i].val;
    fail_msg("MSR %x", msr);
    return NULL;
}

static uint64_t read_cap(void *arg, uint32_t msr)
{
    assert_int_not_equal(msr, forbidden);
    return *cap(msr);
}

static const char *missing(void)
{
    struct vmx_features f;
    return vmx_read_features(&f, read_cap, NULL);
}

static void without(uint32_t msr, uint64_t bits, const char *name)
{
    uint64_t old = *cap(msr);
    *cap(msr) &= ~bits;
    assert_non_null(missing());
    assert_string_equal(missing(), name);
    *cap(msr) = old;
}

static void names_what_is_missing(void **state)
{
    assert_null(missing());
    without(MSR_VMX_BASIC, VMX_BASIC_TRUE_CTLS, "flexible controls (the TRUE capability MSRs)");
    without(MSR_VMX_TRUE_PIN, PIN_VIRTUAL_NMI << 32, "virtual NMIs");
    without(MSR_VMX_TRUE_PRIMARY, PRI_TPR_SHADOW << 32, "the TPR shadow");
    without(MSR_VMX_TRUE_PRIMARY, PRI_MSR_BITMAPS << 32, "MSR bitmaps");
    without(MSR_VMX_SECONDARY, SEC_UNRESTRICTED << 32, "unrestricted guest");
    without(MSR_VMX_TRUE_EXIT, EXC_SAVE_EFER << 32, "saving of EFER");
    without(MSR_VMX_TRUE_ENTRY, ENC_LOAD_PAT << 32, "loading of PAT at entries");
    without(MSR_VMX_EPT_VPID_CAP, EPT_CAP_2M, "2 MiB pages in EPT");
    without(MSR_VMX_EPT_VPID_CAP, EPT_CAP_INVEPT, "INVEPT");
}

/* An MSR is read only when one before promises it. */
static void reads_no_msr_that_may_not_exist(void **state)
{
    forbidden = MSR_VMX_TRUE_PIN;
    without(MSR_VMX_BASIC, VMX_BASIC_TRUE_CTLS, "flexible controls (the TRUE capability MSRs)");
    forbidden = MSR_VMX_SECONDARY;
    without(MSR_VMX_TRUE_PRIMARY, PRI_SECONDARY << 32, "secondary controls");
    forbidden = MSR_VMX_EPT_VPID_CAP;
    without(MSR_VMX_SECONDARY, SEC_EPT << 32, "EPT");
    forbidden = 0;
}

static void controls_obey_the_cpu(void **state)
{
    struct vmx_features f;
    assert_null(vmx_read_features(&f, read_cap, NULL));
    assert_int_equal(f.pin.val, 0x16 | PIN_EXT_INTR | PIN_NMI | PIN_VIRTUAL_NMI | PIN_PREEMPT_TIMER);
    assert_int_equal(f.primary.val & 0x04006172, 0x04006172);
    assert_int_equal(f.primary.val & (PRI_INTR_WINDOW | PRI_NMI_WINDOW | PRI_CR3_LOAD | PRI_CR3_STORE | PRI_INVLPG | PRI_UNCOND_IO), 0);
    assert_int_equal(f.secondary.val, SEC_EPT | SEC_UNRESTRICTED | SEC_WBINVD | SEC_RDTSCP | SEC_VPID | SEC_PAUSE_LOOP | SEC_INVPCID);
    assert_int_equal(f.entry.val & ENC_IA32E, 0);
    assert_true(f.vpid && f.ept_ad && f.apic_virt && f.pause_loop);
    *cap(MSR_VMX_SECONDARY) &= ~((SEC_VPID | SEC_VINTR) << 32);
    assert_null(vmx_read_features(&f, read_cap, NULL));
    assert_false(f.vpid || f.apic_virt);
    *cap(MSR_VMX_SECONDARY) |= (SEC_VPID | SEC_VINTR) << 32;
}

/* CR3 loads would exit on this CPU, whatever we ask for. */
static void controls_that_must_be_one(void **state)
{
    *cap(MSR_VMX_TRUE_PRIMARY) |= PRI_CR3_LOAD;
    assert_string_equal(missing(), "CR3 and INVLPG without exits");
    *cap(MSR_VMX_TRUE_PRIMARY) &= ~PRI_CR3_LOAD;
}

static void firmware(void **state)
{
    assert_int_equal(vmx_firmware_allows(0), VMX_FW_OPEN);
    assert_int_equal(vmx_firmware_allows(FEATCTL_VMX), VMX_FW_OPEN);
    assert_int_equal(vmx_firmware_allows(FEATCTL_VMX | FEATCTL_LOCKED), VMX_FW_ON);
    assert_int_equal(vmx_firmware_allows(FEATCTL_LOCKED), VMX_FW_OFF);
    assert_int_equal(vmx_firmware_allows(FEATCTL_LOCKED | FEATCTL_VMX_IN_SMX), VMX_FW_OFF);
    assert_non_null(strstr(vmx_firmware_sentence, "enable"));
}

/* ---- Entry checks: a VMCS that a CPU takes, and what happens when one field is wrong ---- */

static struct { uint32_t field; uint64_t val; } vmcs[128];
static unsigned nfields;

static uint64_t *field(uint32_t f)
{
    for (unsigned i = 0; i < nfields; i++)
        if (vmcs[i].field == f)
            return &vmcs[i].val;
    assert_true(nfields < ARRAY_SIZE(vmcs));
    vmcs[nfields].field = f;
    return &vmcs[nfields++].val;
}

static uint64_t read_field(void *arg, enum vmcs_field f) { return *field(f); }
static void set(uint32_t f, uint64_t v) { *field(f) = v; }
static struct vmx_check checker = { .read = read_field, .phys_bits = 40 };

enum { S_ES, S_CS, S_SS, S_DS, S_FS, S_GS, S_LDTR, S_TR };
enum { CODE64 = 0xa09b, CODE32 = 0xc09b, DATA = 0xc093, TSS = 0x8b, UNUSABLE = 0x10000 };
#define SEL(s)    (VMCS_GUEST_SEL + 2 * (s))
#define BASE(s)   (VMCS_GUEST_BASE + 2 * (s))
#define LIMIT(s)  (VMCS_GUEST_LIMIT + 2 * (s))
#define RIGHTS(s) (VMCS_GUEST_RIGHTS + 2 * (s))

static void seg(unsigned s, unsigned sel, uint64_t base, uint64_t limit, unsigned rights)
{
    set(SEL(s), sel), set(BASE(s), base), set(LIMIT(s), limit), set(RIGHTS(s), rights);
}

static int setup(void **state)
{
    nfields = 0;
    assert_null(vmx_read_features(&vmx_features, read_cap, NULL));
    set(VMCS_PIN, vmx_features.pin.val), set(VMCS_PRIMARY, vmx_features.primary.val), set(VMCS_SECONDARY, vmx_features.secondary.val);
    set(VMCS_EXIT_CTL, vmx_features.exit.val), set(VMCS_ENTRY_CTL, vmx_features.entry.val | ENC_IA32E);
    set(VMCS_VPID, 1), set(VMCS_EPTP, 0x1000 | EPTP_WB | EPTP_WALK4 | EPTP_AD), set(VMCS_VIRTUAL_APIC, 0x2000);
    set(VMCS_GUEST_CR0, CR0_PE | CR0_PG | CR0_NE | CR0_ET), set(VMCS_GUEST_CR4, CR4_PAE | CR4_VMXE), set(VMCS_GUEST_CR3, 0x5000);
    set(VMCS_GUEST_EFER, EFER_LME | EFER_LMA | EFER_SCE), set(VMCS_GUEST_PAT, 0x0007040600070406ull), set(VMCS_GUEST_DR7, 0x400);
    set(VMCS_GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF), set(VMCS_GUEST_RIP, 0xffffffff81000000ull), set(VMCS_LINK, ~0ull);
    seg(S_CS, 8, 0, 0xffffffff, CODE64);
    for (unsigned s = 0; s < S_LDTR; s++)
        if (s != S_CS)
            seg(s, 16, 0, 0xffffffff, DATA);
    seg(S_LDTR, 0, 0, 0, UNUSABLE);
    seg(S_TR, 0x40, 0xffff888000000000ull, 0x67, TSS);
    set(VMCS_HOST_CR0, CR0_PE | CR0_PG | CR0_NE), set(VMCS_HOST_CR4, CR4_PAE | CR4_VMXE), set(VMCS_HOST_EFER, EFER_LME | EFER_LMA | EFER_NXE);
    set(VMCS_HOST_CS, 8), set(VMCS_HOST_SS, 16), set(VMCS_HOST_TR, 0x28), set(VMCS_HOST_PAT, 0x0007040600070106ull);
    return 0;
}

/* With this one field so, the check's sentence begins with these words. */
static void wrong(const char *(*check)(struct vmx_check *), uint32_t f, uint64_t v, const char *words)
{
    uint64_t old = *field(f);
    set(f, v);
    const char *why = check(&checker);
    if (!why || strncmp(why, words, strlen(words)))
        fail_msg("field %04x = %llx: \"%s\" instead of \"%s...\"", f, (unsigned long long)v, why ? why : "nothing", words);
    set(f, old);
    assert_null(check(&checker));
}

static void a_good_vmcs_passes(void **state)
{
    assert_null(vmx_check_controls(&checker));
    assert_null(vmx_check_host(&checker));
    assert_null(vmx_check_guest(&checker));
}

static void guest_registers(void **state)
{
    const char *(*check)(struct vmx_check *) = vmx_check_guest;
    wrong(check, VMCS_GUEST_CR0, CR0_PG | CR0_NE, "CR0 is 80000020: PG without PE");
    wrong(check, VMCS_GUEST_CR0, CR0_PE | CR0_PG, "CR0 is 80000001: bits 20 must be one");
    wrong(check, VMCS_GUEST_CR4, CR4_PAE, "CR4 is 20: bits 2000 must be one");
    wrong(check, VMCS_GUEST_CR4, CR4_PAE | CR4_VMXE | BIT(30), "CR4 is 40002020: bits 40000000 must be zero");
    wrong(check, VMCS_GUEST_CR4, CR4_VMXE, "CR4 is 2000: long mode without PAE");
    wrong(check, VMCS_GUEST_CR3, BIT(40), "CR3 is 10000000000: bits");
    wrong(check, VMCS_GUEST_DR7, BIT(32), "DR7 is 100000000: bits");
    wrong(check, VMCS_GUEST_DEBUGCTL, BIT(2), "DEBUGCTL is 4: bits 4 must be zero");
    wrong(check, VMCS_GUEST_PAT, 2, "PAT is 2: holds a reserved memory type");
    wrong(check, VMCS_GUEST_EFER, EFER_LME, "EFER is 100: bits 400 must be one");
    wrong(check, VMCS_GUEST_EFER, EFER_LMA, "EFER is 400: LME contradicts the mode");
    wrong(check, VMCS_GUEST_SYSENTER_EIP, BIT(47), "SYSENTER_EIP is 800000000000: not a canonical address");
    wrong(check, VMCS_GUEST_RIP, BIT(50), "RIP is 4000000000000: out of range");
    wrong(check, VMCS_GUEST_RFLAGS, 0, "RFLAGS is 0: bits 2 must be one");
    wrong(check, VMCS_GUEST_RFLAGS, RFLAGS_FIXED | BIT(15), "RFLAGS is 8002: bits 8000 must be zero");
    wrong(check, VMCS_GUEST_GDTR_LIMIT, 0x10000, "GDTR limit is 10000: bits 10000 must be zero");
    wrong(check, VMCS_GUEST_IDTR_BASE, BIT(60), "IDTR base is 1000000000000000: not a canonical address");
    wrong(check, VMCS_LINK, 0, "the VMCS link pointer is 0");
}

static void guest_segments(void **state)
{
    const char *(*check)(struct vmx_check *) = vmx_check_guest;
    wrong(check, RIGHTS(S_CS), CODE64 & ~1, "CS rights is a09a: not an accessed code segment");
    wrong(check, RIGHTS(S_CS), CODE64 | 0x4000, "CS rights is e09b: both L and D");
    wrong(check, RIGHTS(S_CS), CODE64 | 0x60, "CS rights is a0fb: its DPL does not go with SS");
    wrong(check, RIGHTS(S_CS), CODE64 | 0x100, "CS rights is a19b: a reserved bit");
    wrong(check, RIGHTS(S_SS), DATA & ~2, "SS rights is c091: not an accessed, writable data segment");
    wrong(check, RIGHTS(S_DS), DATA & ~0x80, "DS rights is c013: not present");
    wrong(check, RIGHTS(S_ES), DATA & ~0x10, "ES rights is c083: the S bit");
    wrong(check, LIMIT(S_ES), 0xffffe, "ES rights is c093: granularity contradicts the limit");
    wrong(check, RIGHTS(S_FS), 0x4093, "FS rights is 4093: granularity contradicts the limit");
    wrong(check, BASE(S_DS), BIT(32), "DS base is 100000000: out of range");
    wrong(check, BASE(S_GS), BIT(50), "GS base is 4000000000000: out of range");
    wrong(check, RIGHTS(S_TR), UNUSABLE, "TR rights is 10000: unusable");
    wrong(check, RIGHTS(S_TR), 0x89, "TR rights is 89: not a busy TSS");
    wrong(check, SEL(S_TR), 0x44, "TR selector is 44: it points into the LDT");
    wrong(check, RIGHTS(S_LDTR), 0x83, "LDTR rights is 83: not an LDT");
}

static void guest_events(void **state)
{
    const char *(*check)(struct vmx_check *) = vmx_check_guest;
    wrong(check, VMCS_ACTIVITY, 7, "the activity state is 7: unknown");
    wrong(check, VMCS_INTERRUPTIBILITY, BLOCK_STI | BLOCK_MOV_SS, "the interruptibility state is 3: blocking by STI and by MOV SS");
    wrong(check, VMCS_PENDING_DEBUG, BIT(5), "the pending debug exceptions is 20: a reserved bit");
    set(VMCS_GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF | RFLAGS_TF);
    wrong(check, VMCS_INTERRUPTIBILITY, BLOCK_STI, "the pending debug exceptions is 0: BS must be one in a shadow with TF");
    set(VMCS_ENTRY_EVENT, VEC_VALID | 0x30);
    wrong(check, VMCS_GUEST_RFLAGS, RFLAGS_FIXED, "RFLAGS is 2: an interrupt is injected with IF clear");
    set(VMCS_PENDING_DEBUG, PENDING_DB_BS);
    wrong(check, VMCS_INTERRUPTIBILITY, BLOCK_MOV_SS, "the interruptibility state is 2: an interrupt is injected into a shadow");
    set(VMCS_ENTRY_EVENT, VEC_VALID | VEC_NMI << VEC_TYPE_SHIFT | 2);
    wrong(check, VMCS_INTERRUPTIBILITY, BLOCK_NMI, "the interruptibility state is 8: an NMI is injected where NMIs are blocked");
}

/* Other modes that pass, and their own rules. */
static void guest_modes(void **state)
{
    const char *(*check)(struct vmx_check *) = vmx_check_guest;
    set(VMCS_ENTRY_CTL, vmx_features.entry.val), set(VMCS_GUEST_EFER, 0), set(VMCS_GUEST_RIP, 0x100000);
    seg(S_CS, 8, 0, 0xffffffff, CODE32);
    set(BASE(S_TR), 0);
    assert_null(check(&checker));               /* PAE paging */
    wrong(check, VMCS_GUEST_PDPTE0 + 4, 0x6003, "PDPTE2 is 6003: a reserved bit");
    wrong(check, VMCS_GUEST_CR4, CR4_PAE | CR4_VMXE | CR4_PCIDE, "CR4 is 22020: PCIDE outside long mode");
    wrong(check, VMCS_GUEST_RIP, BIT(32), "RIP is 100000000: out of range");
    set(VMCS_GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_VM);
    for (unsigned s = 0; s < S_LDTR; s++)
        seg(s, 0x1000, 0x10000, 0xffff, 0xf3);
    assert_null(check(&checker));               /* virtual-8086 */
    wrong(check, BASE(S_DS), 0x10010, "DS base is 10010: not that of virtual-8086 mode");
    wrong(check, LIMIT(S_SS), 0xffffffff, "SS limit is ffffffff: not that of virtual-8086 mode");
    wrong(check, RIGHTS(S_CS), 0x9b, "CS rights is 9b: not that of virtual-8086 mode");
    set(VMCS_GUEST_RFLAGS, RFLAGS_FIXED), set(VMCS_GUEST_CR0, CR0_NE);
    for (unsigned s = 0; s < S_LDTR; s++)
        seg(s, 0x1000, 0x10000, 0xffff, s == S_CS ? 0x9b : 0x93);
    assert_null(check(&checker));               /* real mode */
    set(RIGHTS(S_CS), 0x9f);    /* conforming: any DPL that SS reaches */
    wrong(check, RIGHTS(S_SS), 0xf3, "SS rights is f3: DPL must be 0 in real mode");
}

static void injected_events(void **state)
{
    const char *(*check)(struct vmx_check *) = vmx_check_controls;
    wrong(check, VMCS_ENTRY_EVENT, VEC_VALID | 1 << VEC_TYPE_SHIFT, "the injected event is 80000100: its type");
    wrong(check, VMCS_ENTRY_EVENT, VEC_VALID | VEC_NMI << VEC_TYPE_SHIFT | 3, "the injected event is 80000203: its vector");
    wrong(check, VMCS_ENTRY_EVENT, VEC_VALID | VEC_HW_EXC << VEC_TYPE_SHIFT | 14, "the injected event is 8000030e: this exception has an error code");
    wrong(check, VMCS_ENTRY_EVENT, VEC_VALID | VEC_ERROR | VEC_HW_EXC << VEC_TYPE_SHIFT | 6, "the injected event is 80000b06: it has no error code");
    set(VMCS_GUEST_CR0, CR0_NE);
    wrong(check, VMCS_ENTRY_EVENT, VEC_VALID | VEC_ERROR | VEC_HW_EXC << VEC_TYPE_SHIFT | 13, "the injected event is 80000b0d: it has no error code");
}

static void control_words(void **state)
{
    const char *(*check)(struct vmx_check *) = vmx_check_controls;
    uint64_t sec = vmx_features.secondary.val;
    wrong(check, VMCS_PIN, 0, "the pin-based controls is 0: bits 16 must be one");
    wrong(check, VMCS_SECONDARY, sec | BIT(31), "the secondary controls is");
    wrong(check, VMCS_SECONDARY, sec | SEC_X2APIC | SEC_APIC_ACCESS, "the secondary controls is");
    wrong(check, VMCS_VPID, 0, "the VPID is 0: 0 is the host's");
    wrong(check, VMCS_EPTP, 0x1000 | EPTP_WALK4, "the EPT pointer is 1018: its memory type is not write-back");
    wrong(check, VMCS_EPTP, 0x1000 | EPTP_WB, "the EPT pointer is 1006: not four levels");
    wrong(check, VMCS_EPTP, BIT(45) | EPTP_WB | EPTP_WALK4, "the EPT pointer is 20000000001e: a reserved bit");
    wrong(check, VMCS_MSR_BITMAP, 0x1008, "the address of the MSR bitmap is 1008: not an aligned physical address");
    wrong(check, VMCS_TPR_THRESHOLD, 16, "the TPR threshold is 10: more than 15");
}

static void host_fields(void **state)
{
    const char *(*check)(struct vmx_check *) = vmx_check_host;
    wrong(check, VMCS_HOST_CR4, CR4_PAE, "the host's CR4 is 20: bits 2000 must be one");
    wrong(check, VMCS_HOST_EFER, EFER_LME, "the host's EFER is 100: bits 400 must be one");
    wrong(check, VMCS_HOST_TR, 0, "the host's TR is 0: a null selector");
    wrong(check, VMCS_HOST_SS, 0x13, "the host's SS is 13: a selector with RPL or TI");
    wrong(check, VMCS_HOST_GS_BASE, BIT(50), "the host's GS base is 4000000000000: not a canonical address");
    wrong(check, VMCS_HOST_PAT, 3, "the host's PAT is 3: holds a reserved memory type");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_what_is_missing), cmocka_unit_test(reads_no_msr_that_may_not_exist), cmocka_unit_test(controls_obey_the_cpu),
        cmocka_unit_test(controls_that_must_be_one), cmocka_unit_test(firmware), cmocka_unit_test_setup(a_good_vmcs_passes, setup),
        cmocka_unit_test_setup(control_words, setup), cmocka_unit_test_setup(injected_events, setup), cmocka_unit_test_setup(host_fields, setup),
        cmocka_unit_test_setup(guest_registers, setup), cmocka_unit_test_setup(guest_segments, setup), cmocka_unit_test_setup(guest_events, setup),
        cmocka_unit_test_setup(guest_modes, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
