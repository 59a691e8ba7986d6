/*
 * struct vcpu: one virtual CPU.  Known to kernel/vmm and to the back-ends; devices see it as an opaque pointer.
 *
 * A vCPU is a thread.  Fields without a remark belong to that thread; others read or change them only while it is parked.
 * Legend: [any] touched by other CPUs, atomics only; [vm] under vm->lock; [hot] in the exit path.
 */
#pragma once
#include "kernel/lib/list.h"
#include "kernel/hw/x86.h"
#include "kernel/lib/log.h"
#include "kernel/mm/ptab.h"
#include "kernel/sched/sched.h"
#include "kernel/vmm/emulate.h"
#include "kernel/vmm/gmem_core.h"
#include "kernel/vmm/hv_ops.h"
#include "kernel/vmm/vm.h"

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };

/* Why a vCPU must look around before it enters the guest. */
enum {
    REQ_EVENT = 1 << 0,         /* interrupt, NMI or exception state changed: decide again what to deliver */
    REQ_INIT = 1 << 1,
    REQ_SIPI = 1 << 2,
    REQ_PARK = 1 << 3,          /* the VM wants its vCPUs still: pause, reset, stop */
    REQ_FLUSH = 1 << 4,         /* nested entries changed */
    REQ_CLOCK = 1 << 5,         /* republish the paravirtual clock */
    REQ_IDLE = 1 << 6,          /* run is not RUN_ACTIVE */
};
enum vcpu_run { RUN_ACTIVE, RUN_HALTED, RUN_WAIT_SIPI };
enum vcpu_mode { OUTSIDE_GUEST, IN_GUEST };

enum { EXIT_TRACE = 32, DECODE_CACHE = 64 };
struct exit_trace { uint64_t tsc, rip, info, kind; };
/* A cache line each.  The bytes themselves are the key. */
struct decoded { struct insn insn; uint8_t mode; uint64_t lo, hi; } __aligned_to(64);

struct pvclock { gpa_t system; uint32_t version; bool on; };

struct vcpu {
    uint64_t gpr[16];           /* [hot] 0: in encoding order; rsp and rax current outside run() */
    uint64_t rip, rflags;       /* [hot] */
    uint32_t requests;          /* [any] REQ_ */
    uint32_t mode;              /* [any] enum vcpu_mode */
    void *hv;                   /* back-end's */
    struct vm *vm;
    unsigned index, host_cpu;   /* host_cpu [any]: where it is loaded */

    /* Events: what is to be delivered at the next entry. */
    struct event_info reinject; /* delivery was cut short by an exit; filled by run() */
    struct event_info exc;      /* exception raised by an emulated instruction */
    uint32_t nmi_pending;       /* [any] 0 .. 2 */
    int irq_offered;            /* as vcpu_irqchip.pending returned it, or IRQ_NONE */
    bool irq_taken;             /* set by run(): the offered interrupt was delivered */
    bool shadow;                /* set by run(): an interrupt shadow is in force */
    enum vcpu_run run;
    uint32_t sipi_vector;       /* [any] */
    struct vcpu_irqchip irqchip;
    bool has_irqchip;

    /* Architectural state fetched from the back-end since the last exit; valid says which groups. */
    unsigned st_valid;
    struct cpu_state st;
    uint64_t xcr0;              /* guest's; the back-end loads it with the vCPU */
    int64_t tsc_offset;

    struct exit exit;           /* [hot] the last one: by run() */
    uint64_t msr_val;           /* RDMSR's result, as io is */
    struct io io;               /* the access in flight: not on the stack, so that hot functions need no stack guard; io.cpu is set for good */
    struct emu_ctx emu;
    struct cpu_seg seg_scratch;
    struct insn insn;           /* decoded outside the cache */
    struct decoded decode[DECODE_CACHE];
    struct pvclock pvclock;
    void *msrs;                 /* MSR policy's state, kernel/vmm/msr.c */

    struct thread *thread;
    struct thread_hooks hooks;
    void *fpu;

    struct vcpu_stats stats;    /* racy reads by others are fine */
    uint64_t tsc_guest;         /* [hot] time in the guest; while it is there, less the TSC at entry: negative */
    uint64_t tsc_loaded;        /* time on a CPU, likewise */
    uint64_t tsc_halted, halt_waited_ns;        /* from HLT to running again; of that, waiting for a CPU: that is steal */
    unsigned trace_at;
    struct exit_trace trace[EXIT_TRACE];
};
_Static_assert(sizeof(struct decoded) == 64, "a cache line");
_Static_assert(offsetof(struct vcpu, gpr) == 0, "entry stubs");
_Static_assert(offsetof(struct vcpu, rip) == 128, "entry stubs");

struct vm {
    struct vm_params p;
    struct list node;           /* of all VMs */
    struct sched_cap cap;       /* of all vCPUs together */
    uint64_t serial;            /* 1, 2, …: never reused */
    struct gmem gmem;
    struct ptab nested;         /* under nested_lock; hardware walks it */
    struct spinlock nested_lock;
    uint64_t pte_reserved;      /* address bits beyond the physical width, reserved in guest page tables */
    struct bus *ports, *mmio;
    struct vmclock clock;
    uint64_t tsc_stopped;       /* host TSC at which the clock stands while it does not run */
    void *hv;
    struct vcpu *vcpu[VM_MAX_VCPUS];
    void *cpuid;                /* CPUID policy as computed for this VM */
    struct vm_hooks hooks;
    bool boot_set;
    uint64_t boot_gpr[16], boot_rip;
    struct cpu_state boot;

    struct mutex control;       /* one of run, pause, resume, reset, stop at a time, from beginning to end; outside lock */
    struct mutex lock;          /* state below; given up while waiting for vCPUs to stand still */
    struct cond changed;        /* with lock: state or a vCPU's parked changed */
    enum vm_state state;
    unsigned threads, parked;   /* vCPU threads that exist; those standing still */
    bool holding;               /* parked ones are to stay */
    bool quit;                  /* parked threads are to end */
    enum vm_stop cause;
    unsigned code;
    char reason[256];
    uint64_t crash_ns[3];       /* clock of the last resets by triple fault */

    /* Requests from vCPUs and devices [any], carried out by `work` */
    struct spinlock req_lock;
    bool want_reset;
    enum vm_stop want_stop;
    unsigned want_code;
    char want_reason[256];
    struct work work;
    struct ratelimit log;
};

enum { WITHOUT_APIC_VIRT = 1 /* noapicv */, WITHOUT_VPID = 2 /* novpid */, WITHOUT_EPT_AD = 4 /* noeptad */ };

/* ---- What the host tells the middle layer once, before any VM (kernel/main.c). ---- */
struct vmm_host {
    uint64_t tsc_hz;
    bool tsc_stable;            /* invariant and checked across CPUs */
    bool tsc_clock;             /* clock_ns() runs by the TSC */
    unsigned phys_bits;         /* physical width, less encryption bits */
    uint64_t xcr0;              /* what the host enables */
    void (*kick)(unsigned cpu); /* makes that CPU leave guest mode */
    void (*cpuid)(uint32_t leaf, uint32_t sub, uint32_t out[4]);
    const struct pt_format *nested;     /* by hv->probe */
    unsigned max_leaf;
    bool apic_virt;                     /* by hv->probe: the CPU works on the LAPIC's page by itself (struct apic_virt) */
    unsigned without;                   /* WITHOUT_: the command line said to leave these alone */
    uint64_t spec_ctrl;         /* by hv->probe: bits of SPEC_CTRL that are switched per vCPU and so can be offered; 0: hide it, and PRED_CMD */
    void (*ibpb)(void);
    bool check_entries;         /* hv_ops.run_checked is in use */
    const struct cpuset *cpus;  /* by hv->probe: where guests may run; NULL: everywhere */
};
extern struct vmm_host vmm_host;
static inline uint64_t host_tsc(void) { return __builtin_ia32_rdtsc(); }

/* ---- Shared by the files of kernel/vmm ---- */
void vcpu_request(struct vcpu *, uint32_t req);         /* any context but irq, any CPU */
int  vcpu_create(struct vm *, unsigned index);
void vcpu_destroy(struct vcpu *);
void vcpu_reset(struct vcpu *, bool init /* INIT signal: the FPU and some MSRs survive */);
void vcpu_main(void *vcpu);
void vm_park_self(struct vm *);                         /* vCPU thread: stands still until released, or ends */
void vcpu_reload(struct vcpu *);                        /* own thread: what load() puts into the CPU has changed */
/* Leave RIP behind `len` bytes; ends the interrupt shadow. */
void vcpu_advance_slow(struct vcpu *);
/* The same for a RIP that the CPU told. */
static inline void vcpu_go_on(struct vcpu *v, uint64_t rip)
{
    v->rip = rip;
    if (unlikely(v->shadow | (v->rflags & RFLAGS_TF)))
        vcpu_advance_slow(v);
}
static inline void vcpu_advance(struct vcpu *v, unsigned len)
{
    uint64_t old = v->rip;
    v->rip += len;
    uint64_t far = (v->rip ^ old) >> 32;        /* from one 4 GiB to the next: wraps in all modes but one */
    if (unlikely(v->shadow | (v->rflags & RFLAGS_TF) | far))
        vcpu_advance_slow(v);
}
void vcpu_raise(struct vcpu *, uint8_t vector, bool has_error, uint32_t error);
void vcpu_raise_pf(struct vcpu *, uint32_t error, gva_t cr2);
/* Architectural state, fetched on demand. */
struct cpu_state *vcpu_fetch_state(struct vcpu *, unsigned groups);
static inline struct cpu_state *vcpu_state(struct vcpu *v, unsigned groups)
{
    return likely(!(groups & ~v->st_valid)) ? &v->st : vcpu_fetch_state(v, groups);
}
void vcpu_put_state(struct vcpu *, unsigned groups);
/* What fetching an instruction needs: see hv_ops.get_code; other fields may be stale. */
static inline const struct cpu_state *vcpu_code(struct vcpu *v)
{
    if (!(v->st_valid & ST_CODE)) {
        hv->get_code(v, &v->st);
        v->st_valid |= ST_CODE;
    }
    return &v->st;
}

/* enum cpu_mode, with MODE_REAL beside MODE_16 in real and virtual-8086 mode.  After vcpu_code(). */
enum { MODE_MASK = 3, MODE_REAL = 4 };
static inline unsigned vcpu_cpu_mode(const struct vcpu *v)
{
    const struct cpu_state *st = &v->st;
    uint16_t attr = st->seg[SEG_CS].attr;
    if (unlikely(!(st->cr0 & CR0_PE) || (v->rflags & RFLAGS_VM)))
        return MODE_16 | MODE_REAL;
    if ((st->efer & EFER_LMA) && (attr & BIT(9)))
        return MODE_64;
    return attr & BIT(10) ? MODE_32 : MODE_16;
}
uint64_t vcpu_tsc(struct vcpu *);
/* The VM cannot go on: stops it as crashed with this sentence. */
void vcpu_crash(struct vcpu *, const char *fmt, ...) __printf_like(2, 3);

typedef void exit_fn(struct vcpu *, struct exit *);
extern exit_fn *const exit_handler[EXIT_KINDS];         /* exits.c */
void vcpu_events(struct vcpu *);                        /* event.c: REQ_EVENT */
bool vcpu_wakes(struct vcpu *);                         /* event.c: would a halted CPU go on? */
void vcpu_task_switch(struct vcpu *, struct exit *);    /* task.c */
void vcpu_nested_fault(struct vcpu *, struct exit *);   /* nested.c */
/*
 * nested.c: before pages of [gpa, gpa + len) go elsewhere, or before writes to them are to be seen.  The nested tables are a cache of gmem: the next touch faults
 * and asks it anew.  On return no CPU uses an old translation.  Thread context, no locks held, any thread (a vCPU's own, too).
 */
void nested_forget(struct vm *, gpa_t, uint64_t len);
int  nested_protect(struct vm *, gpa_t, uint64_t len);  /* read and execute only; 0, -ENOMEM (a large leaf could not be split) */
/* insn.c: fetch and decode the instruction at RIP; NULL: an exception was raised or the VM stopped.  Valid until the next call. */
const struct insn *vcpu_decode(struct vcpu *);
bool vcpu_skip(struct vcpu *);                          /* behind the instruction at RIP; false: its exception was raised */
void vcpu_emulate(struct vcpu *, struct exit *);

/* gwalk.c: guest linear → physical.  access: PF_W, PF_U, PF_I of the attempt. 0; -EFAULT with *error = #PF error code; -EIO: the walk left RAM. */
int gwalk(struct vcpu *, gva_t, unsigned access, gpa_t *, uint32_t *error);

void pvclock_publish(struct vcpu *);                    /* pvclock.c */
void pvclock_page(struct vcpu *, uint64_t val);         /* MSR_KVM_SYSTEM_TIME_NEW: address | enabled */
void pvclock_wall(struct vcpu *, gpa_t);                /* MSR_KVM_WALL_CLOCK_NEW */
