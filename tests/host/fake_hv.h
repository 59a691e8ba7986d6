/*
 * A CPU made of a script: struct hv_ops for hosted tests.  The script stands for the guest: it looks at the vCPU's registers, changes them as the guest's
 * instructions would, and names the exit.  Everything above hv_ops.run is the real code.
 */
#pragma once
#include "kernel/vmm/vcpu.h"

enum { FAKE_TLB = 64 };
struct fake_tlb { bool valid, writable; gpa_t gpa; hpa_t pa; };

struct fake_cpu {
    struct cpu_state st;
    struct event_info injected; /* what the guest was given at this entry; valid=false: nothing */
    int offered;                /* vector offered, or -1 */
    bool offered_extint;
    int64_t tsc_offset;
    unsigned flushes_linear, flushes_nested, entries, loads, puts;
    bool nmi_blocked;
    bool flush_next;            /* at the next entry */
    struct fake_tlb tlb[FAKE_TLB];
};

/* One entry: fills *e.  f->injected is cleared after it.  To take the offered interrupt call fake_take_irq(). */
typedef void fake_script(struct vcpu *, struct fake_cpu *f, struct exit *e, void *arg);

/* Before vm_create: binds `hv`, fills vmm_host (40 physical bits, 1 GHz TSC), gives the page allocator an arena of `mem` bytes, sets ncpus. */
void fake_hv_setup(size_t mem, unsigned ncpus);
void fake_hv_teardown(void);
/* A VM with 32 MiB of RAM from 0 on and nothing else in it. */
struct vm *fake_vm_create(unsigned ncpus, fake_script *, void *arg);
void fake_hv_script(struct vm *, fake_script *, void *arg);
struct fake_cpu *fake_cpu(struct vcpu *);
bool fake_take_irq(struct vcpu *, uint8_t *vector);     /* false: none offered, IF clear, or below TPR */
/* The guest computes until a kick or a request comes: for EXIT_HOST_INTR. */
void fake_guest_spin(struct vcpu *);
unsigned fake_kicks(void);

/*
 * ---- What hardware may still know ----
 * Each vCPU has a TLB of its own, as an ASID gives it: forgotten when it flushes, moves to another CPU or is reset, and by nothing else.  It is consulted
 * before the tables, so an entry that changed without a flush goes on being used.
 */
void *fake_tlb_access(struct vcpu *, gpa_t, bool write);        /* NULL: nested fault */
/* A sentence when some vCPU's TLB goes on holding more than the tables now give; NULL: all is well. */
const char *fake_tlb_stale(struct vm *);
