/*
 * The vendor seam.  kernel/svm and kernel/vmx each provide one constant struct hv_ops; tests/host/fake_hv.c a third.  Every op means the same on all of them;
 * nothing above `run` knows which one it has.  Bound once at boot: `hv`.
 *
 * Contexts: per-vCPU ops run on the vCPU's own thread, or with the vCPU stopped.  `load`..`put` bracket the time on one CPU (preemption off inside each).
 */
#pragma once
#include "kernel/vmm/decode.h"
#include "kernel/vmm/event.h"
#include "kernel/vmm/exit.h"

struct vm;
struct vcpu;

/* Architectural state that lives in the VMCB/VMCS; GPRs, RIP, RSP, RFLAGS live in struct vcpu and are always current after run(). */
struct cpu_seg { uint64_t base; uint32_t limit; uint16_t sel, attr; };       /* attr: VMCB form: type:4 S DPL:2 P AVL L D/B G; bit 15 unused */
struct cpu_dtab { uint64_t base; uint16_t limit; };
struct cpu_state {
    struct cpu_seg seg[8];              /* enum seg */
    struct cpu_dtab gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, efer, dr6, dr7;
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base, sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, tsc_aux, spec_ctrl, debugctl;
    uint8_t cpl;
    uint8_t shadow;                     /* 1: STI shadow, 2: MOV SS shadow */
    bool nmi_blocked;
    bool halted;                        /* unused by back-ends; here so that it travels with the state */
};
/* Groups for get_state/set_state: what `struct cpu_state` fields are read or written. */
enum {
    ST_SEGS = 1, ST_DTABS = 2, ST_CRS = 4 /* cr0 cr2 cr3 cr4 efer cpl; vcpu->xcr0 is current after it */, ST_DRS = 8, ST_SYSCALL = 16, ST_MSRS = 32 /* pat tsc_aux spec_ctrl debugctl */, ST_INTR = 64 /* shadow nmi_blocked */,
    ST_CODE = 128 /* valid mask only: what get_code filled */,
    ST_ALL = 127
};

enum hv_window { WINDOW_NONE = 0, WINDOW_IRQ = 1, WINDOW_NMI = 2 };
enum hv_flush { FLUSH_LINEAR /* this vCPU's linear mappings */, FLUSH_NESTED /* after nested entries changed */ };
enum hv_pass { PASS_MSR_READ, PASS_MSR_WRITE, PASS_PORT, PASS_DR };

struct hv_ops {
    const char *name;                   /* "AMD-V", "VT-x" */
    /* Boot CPU, once, thread context: allocates for every CPU in percpu_count.  0, or -ENOTSUP with a sentence that names what is missing and what to change in the firmware. */
    int  (*probe)(char *err, size_t errlen);
    /* On each CPU, irq context: enable / disable (before reset, before CPU stop).  0 or -errno with a sentence. */
    int  (*cpu_on)(unsigned cpu, char *err, size_t errlen);
    void (*cpu_off)(unsigned cpu);
    int  (*vm_init)(struct vm *);       /* vm->hv */
    void (*vm_fini)(struct vm *);
    int  (*vcpu_init)(struct vcpu *);   /* vcpu->hv */
    void (*vcpu_fini)(struct vcpu *);
    void (*vcpu_reset)(struct vcpu *);  /* control fields to their start values; architectural state comes by set_state */
    void (*load)(struct vcpu *, bool migrated);     /* XCR0 is the guest's from here to put() */
    void (*put)(struct vcpu *);
    /* Enter the guest once.  Interrupts off at entry and return.  Fills v->exit; gpr, rip and rflags are current.  Sets reinject (and asks for REQ_EVENT) when
     * delivery of an event was cut short, irq_taken when the offered interrupt was delivered, shadow when an interrupt shadow is in force. */
    void (*run)(struct vcpu *);
    void (*run_checked)(struct vcpu *);         /* NULL or: the same, with what only silicon checks verified before each entry; taken by check=vmcb */
    void (*get_state)(struct vcpu *, struct cpu_state *, unsigned groups);
    void (*set_state)(struct vcpu *, const struct cpu_state *, unsigned groups);
    /* The hot parts of get_state: base and attr of seg[SEG_CS], cr0, cr3, cr4, efer, cpl (all that fetching an instruction needs); one segment. */
    void (*get_code)(struct vcpu *, struct cpu_state *);
    void (*get_seg)(struct vcpu *, enum seg, struct cpu_seg *);
    /* Deliver at the next entry.  EVENT_INTR is an offer: delivered as soon as the guest can take it (IF, shadow, TPR obeyed by the back-end or CPU);
     * vcpu->irq_taken is set by run() when it was. An offer can be withdrawn or replaced by the next inject of EVENT_INTR (valid=false withdraws). */
    void (*inject)(struct vcpu *, const struct event_info *);
    bool (*can_inject)(struct vcpu *, enum event_type);
    void (*want_window)(struct vcpu *, unsigned windows);       /* mask of hv_window; exits EXIT_IRQ_WINDOW / EXIT_NMI_WINDOW once open */
    void (*flush)(struct vcpu *, enum hv_flush);                /* takes effect at the next entry of this vCPU */
    void (*set_tsc)(struct vcpu *, int64_t offset);             /* guest TSC = host TSC + offset */
    void (*set_pass)(struct vm *, enum hv_pass, uint32_t what, bool pass);      /* before the first run, or vCPUs stopped */
    /* NULL, or: the xAPIC register page of every vCPU is at this guest-physical address; 0: they differ, or one has none.  Any vCPU's thread, one at a time. */
    void (*apic_page)(struct vm *, gpa_t base);
    void (*tpr_written)(struct vcpu *);         /* NULL, or: software wrote the page's TPR; own thread, or vCPU stopped */
    void (*dump)(struct vcpu *, void (*print)(void *arg, const char *line), void *arg);
};
extern const struct hv_ops svm_ops, vmx_ops;
extern const struct hv_ops *hv;         /* NULL: this host cannot run VMs; hv_why says so */
extern char hv_why[256];
