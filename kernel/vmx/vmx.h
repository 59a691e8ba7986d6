/*
 * VT-x back-end: what its files share.  Intel SDM vol 3 (325384-081), chapters "Virtual Machine Control Structures" to "VM Exits".
 *
 * A VMCS is active on one CPU at most, from load to put: put VMCLEARs it, so that its whole state is in memory whenever its thread is not on a CPU.
 * VMREAD and VMWRITE are done by the vCPU's own thread only.  What others change while the vCPU stands still is kept in `late` and written before the next entry.
 */
#pragma once
#include "kernel/vmm/vcpu.h"
#include "kernel/vmx/caps.h"
#include "kernel/vmx/check.h"

enum { VMX_NOWHERE = ~0u };
#define VMX_REFUSED     BIT(29)         /* instead of an exit reason: VMLAUNCH or VMRESUME failed with this VM-instruction error */

/* One per host CPU, behind percpu.hv. */
struct vmx_cpu {
    hpa_t vmxon;
    bool on;
};

/* MSRs that VMX does not switch: the guest's are in the CPU while the vCPU is loaded. */
enum { LAZY_STAR, LAZY_LSTAR, LAZY_CSTAR, LAZY_SFMASK, LAZY_KERNEL_GS, LAZY_TSC_AUX, LAZY_MSRS };

/*
 * What the next entry has to see to beside the common path: all fields new, late state, TSC offset, translations dropped, LAPIC page looked at, events and windows
 * chosen, an interrupt shadow.  And what the exit has: the entry had an event or a window, or was made in a shadow.
 */
enum {
    BEFORE_INIT = 1, BEFORE_STATE = 2, BEFORE_TSC = 4, BEFORE_FLUSH_LINEAR = 8, BEFORE_FLUSH_NESTED = 16, BEFORE_APIC = 32, BEFORE_EVENT = 64, BEFORE_SHADOW = 128,
};
enum { AFTER_EVENT = 1, AFTER_SHADOW = 2 };

struct vmx_vcpu {
    hpa_t vmcs;
    unsigned cpu;               /* where the VMCS is active, or VMX_NOWHERE */
    bool launched;
    unsigned before, after;     /* BEFORE_, AFTER_ */
    unsigned late_groups;       /* ST_ groups that `late` holds and the VMCS does not yet */
    struct cpu_state late;

    /* What the VMCS holds, where it is compared before it is written. */
    uint64_t rsp, rflags;
    uint32_t primary, tpr_threshold, interruptibility;
    uint64_t host_rsp;

    /* vmx_apic_virt(): what the VMCS holds of it. */
    uint32_t secondary;
    uint64_t eoi_exit[4];
    uint8_t svi;                /* as last written; the guest goes on from there */

    /* Events for the next entry. */
    struct event_info offer;    /* external interrupt, delivered when the guest can take it */
    uint32_t event, event_error;        /* VM-entry interruption information; 0: none */
    uint32_t entry_event;       /* what the VMCS holds of it; an exit makes it 0 */
    bool offer_injected;        /* this entry delivers the offer */
    bool nmi_window;
    bool armed;                 /* a window or the TPR threshold is set in the VMCS */
    bool virq_waits;            /* vmx_features.virq_ignores_if: the CPU has a virtual interrupt to deliver */

    int64_t tsc_offset;
    uint16_t vpid;              /* 0: none, the CPU flushes at every transition */
    uint64_t eptp;
    uint64_t xcr0_loaded;
    uint64_t lazy[LAZY_MSRS];   /* current while not loaded */
    uint64_t dr[4], dr6;        /* current while !dr_loaded */
    bool dr_loaded;
    uint64_t cr2;               /* current while not loaded: VMX does not switch it, and the host takes no page faults */
    uint64_t pdpte[4];          /* of a PAE guest whose control registers we changed */
    struct { uint32_t reason, idt_event; uint64_t qualification; } last;       /* for dumps */
    struct vmx_check check;     /* of the last refused entry */
    const struct thread *thread;        /* the vCPU's own, once it has been on a CPU */
};

static inline struct vmx_vcpu *vmx_of(const struct vcpu *v) { return v->hv; }

void vmx_field_failed(enum vmcs_field, bool write) __attribute__((noreturn, cold));

static inline uint64_t vmread(enum vmcs_field f)
{
    uint64_t v;
    bool bad;
    __asm__ volatile("vmread %2, %0" : "=rm"(v), "=@ccbe"(bad) : "r"((uint64_t)f));
    if (unlikely(bad))
        vmx_field_failed(f, false);
    return v;
}

/* Fields that every VMCS has, while one is loaded: cannot fail. */
static inline uint64_t vmread_sure(enum vmcs_field f)
{
    uint64_t v;
    __asm__ volatile("vmread %1, %0" : "=r"(v) : "r"((uint64_t)f) : "cc");
    return v;
}

static inline void vmwrite(enum vmcs_field f, uint64_t v)
{
    bool bad;
    __asm__ volatile("vmwrite %1, %2" : "=@ccbe"(bad) : "rm"(v), "r"((uint64_t)f) : "memory");
    if (unlikely(bad))
        vmx_field_failed(f, true);
}

/* Likewise. */
static inline void vmwrite_sure(enum vmcs_field f, uint64_t v)
{
    __asm__ volatile("vmwrite %0, %1" :: "rm"(v), "r"((uint64_t)f) : "cc");
}

/* The n-th field after f in a row of equals (segments, EOI-exit bitmaps). */
static inline enum vmcs_field vmcs_nth(enum vmcs_field f, unsigned n) { return (enum vmcs_field)(f + 2 * n); }

/* The CPU keeps this vCPU's LAPIC: registers, virtual interrupts, EOI. */
static inline bool vmx_apic_virt(const struct vcpu *v) { return vmx_features.apic_virt && v->has_irqchip; }

/* enter.S and what it ends with: an exit, or an entry that was refused so that the guest did not run. */
void vmx_enter(struct vcpu *, bool launched, uint64_t *host_rsp);
void vmx_exited(struct vcpu *);
void vmx_refused(struct vcpu *);
extern const char vmx_exit_point[];
/* What the stub does about side channels at each entry and exit, beside filling the RSB. */
enum { SCRUB_BUFFERS = 1 /* VERW */, SCRUB_L1D = 2, SCRUB_IBRS = 4 /* write SPEC_CTRL anew */ };
extern uint8_t vmx_scrub;

/* vmx.c */
bool vmx_own(const struct vcpu *);      /* this is the vCPU's own thread: its VMCS may be accessed */
hpa_t vmx_io_bitmap(unsigned half);     /* all ports intercepted */
void vmx_load_debug(struct vcpu *);
/* vmcs.c */
void vmx_vmcs_init(struct vcpu *);      /* all fields but the guest state */
void vmx_vmcs_host(void);               /* host state that depends on the CPU */
void vmx_write_state(struct vcpu *, const struct cpu_state *, unsigned groups);
void vmx_get_state(struct vcpu *, struct cpu_state *, unsigned groups);
void vmx_get_code(struct vcpu *, struct cpu_state *);
void vmx_get_seg(struct vcpu *, enum seg, struct cpu_seg *);
void vmx_set_state(struct vcpu *, const struct cpu_state *, unsigned groups);
void vmx_dump(struct vcpu *, void (*print)(void *, const char *), void *arg);
/* explain.c: why the CPU refuses this guest or these controls, as a sentence */
const char *vmx_explain(struct vcpu *, uint32_t reason);
bool vmx_check_entry(struct vcpu *);    /* before an entry: true, and vcpu->exit filled, when the CPU would refuse it */
/* exit.c */
void vmx_translate(struct vcpu *, uint32_t reason);
/* Per VM: MSR bitmaps of 4 KiB, all intercepted at first, the second for vCPUs whose x2APIC registers the CPU virtualizes; and the APIC-access page. */
struct vmx_vm {
    hpa_t msr_bitmap, msr_bitmap_x2apic;
    hpa_t apic_page;
    gpa_t apic_base;            /* where apic_page is in the nested tables; 0: nowhere.  Under vm->nested_lock */
};
static inline struct vmx_vm *vmx_vm_of(const struct vm *vm) { return vm->hv; }

/* msr.c */
int  vmx_msr_init(struct vmx_vm *);
void vmx_msr_fini(struct vmx_vm *);
/* apic.c */
int  vmx_apic_init(struct vmx_vm *);
void vmx_apic_fini(struct vmx_vm *);
void vmx_apic_page(struct vm *, gpa_t base);
void vmx_apic_update(struct vcpu *);    /* before an entry: controls, interrupt status and EOI exits as the LAPIC wants them */
uint32_t vmx_apic_vectoring(struct vcpu *, uint32_t info);
enum exit_kind vmx_apic_access(struct vcpu *, struct exit *, uint64_t qualification);
void vmx_set_pass(struct vm *, enum hv_pass, uint32_t what, bool pass);
void vmx_lazy_load(struct vmx_vcpu *);
void vmx_lazy_put(struct vmx_vcpu *);
