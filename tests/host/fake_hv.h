/*
 * A CPU made of a script: struct hv_ops for hosted tests.  The script stands for the guest: it looks at the vCPU's registers, changes them as the guest's
 * instructions would, and names the exit.  Everything above hv_ops.run is the real code.
 */
#pragma once
#include "kernel/vmm/vcpu.h"

struct fake_cpu {
    struct cpu_state st;
    struct event_info injected; /* what the guest was given at this entry; valid=false: nothing */
    int offered;                /* vector offered, or -1 */
    bool offered_extint;
    int64_t tsc_offset;
    unsigned flushes_linear, flushes_nested, entries, loads, puts;
    bool nmi_blocked;
};

/* One entry: fills *e.  f->injected is cleared after it.  To take the offered interrupt call fake_take_irq(). */
typedef void fake_script(struct vcpu *, struct fake_cpu *f, struct exit *e, void *arg);

/* Before vm_create: binds `hv`, fills vmm_host (40 physical bits, 1 GHz TSC), gives the page allocator an arena of `mem` bytes, sets ncpus. */
void fake_hv_setup(size_t mem, unsigned ncpus);
void fake_hv_teardown(void);
void fake_hv_script(struct vm *, fake_script *, void *arg);
struct fake_cpu *fake_cpu(struct vcpu *);
bool fake_take_irq(struct vcpu *, uint8_t *vector);     /* false: none offered, IF clear, or below TPR */
/* The guest computes until a kick or a request comes: for EXIT_HOST_INTR. */
void fake_guest_spin(struct vcpu *);
unsigned fake_kicks(void);

/* ---- A TLB per CPU: what hardware may still know.  Every fake access goes through it; using a translation after its page was freed panics. ---- */
void *fake_tlb_access(struct vcpu *, gpa_t);    /* NULL: nested fault */
