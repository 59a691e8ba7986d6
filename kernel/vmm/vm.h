/*
 * struct vm: life cycle of one virtual machine, vendor- and device-neutral.  guestdev/machine.c builds the PC around it; mgmt sees it through guestdev/machine.h.
 *
 * States: STOPPED → (vm_run) RUNNING ⇄ PAUSED → STOPPED.  Any thread may call the control functions (they take vm->lock); they never run on a vCPU thread
 * of the same VM except vm_request_*, which only leave a request.
 */
#pragma once
#include "kernel/lib/port.h"
#include "kernel/vmm/bus.h"
#include "kernel/vmm/event.h"
#include "kernel/vmm/gmem.h"
#include "kernel/vmm/vmclock.h"

enum { VM_MAX_VCPUS = 32 };
enum vm_state { VM_STOPPED, VM_RUNNING, VM_PAUSED, VM_STOPPING };
enum vm_stop { STOP_NONE, STOP_POWEROFF /* guest S5 */, STOP_KILLED, STOP_CRASH /* triple fault limit, fatal exit, emulation failure */, STOP_DEBUG_EXIT };

struct vm;
struct vcpu;

struct vm_params {
    char name[64];
    unsigned ncpus;                     /* 1 .. VM_MAX_VCPUS */
    uint64_t ram;                       /* bytes, multiple of 1 MiB; below the PCI hole and above 4 GiB by machine.c */
    unsigned weight, cap;               /* sched.h */
    bool crash_resets;                  /* on-crash = reset */
};

/* Reserves RAM and tables.  0; -ENOMEM no room (err has the figures); -ENOTSUP no virtualization. */
int  vm_create(const struct vm_params *, struct vm **, char *err, size_t errlen);
void vm_destroy(struct vm *);           /* STOPPED only; after the devices */

/* Wiring, before the first vm_run (machine.c). */
struct gmem *vm_gmem(struct vm *);
struct bus  *vm_ports(struct vm *);
struct bus  *vm_mmio(struct vm *);
struct vmclock *vm_clock(struct vm *);
int  vm_add_ram(struct vm *, gpa_t base, uint64_t len, bool rom);
struct vcpu *vm_vcpu(struct vm *, unsigned index);
void vm_set_irqchip(struct vm *, unsigned index, const struct vcpu_irqchip *);
void vm_get_wires(struct vm *, unsigned index, struct vcpu_wires *);
/* The xAPIC register page of every vCPU is at `base`, or 0: not all have one, or not at the same place.  From then on, thread context, one caller at a time. */
void vm_apic_page(struct vm *, gpa_t base);
/* Devices of the machine take part in pause, reset and stop through these; all called in thread context with every vCPU stopped. */
struct vm_hooks { void (*reset)(void *arg); void (*drain)(void *arg); void (*stopped)(void *arg, enum vm_stop, const char *reason); void *arg;
                  void (*resume)(void *arg); /* NULL or: after drain, before the vCPUs go on (first run too) */ };
void vm_set_hooks(struct vm *, const struct vm_hooks *);        /* stopped: on a worker thread, may vm_destroy later, not inside */
/* Boot state of the boot CPU, instead of the reset vector: set by the loaders in hooks->reset. */
struct cpu_state;
void vm_set_boot_state(struct vm *, const uint64_t gpr[16], uint64_t rip, const struct cpu_state *);

/* Control. 0; -EBUSY wrong state. */
int  vm_run(struct vm *);
int  vm_pause(struct vm *);             /* returns when no vCPU runs and devices have drained; clock stands still */
int  vm_resume(struct vm *);
int  vm_kill(struct vm *);              /* returns when it is STOPPED */
int  vm_reset(struct vm *);
int  vm_set_share(struct vm *, unsigned weight, unsigned cap);  /* as in vm_params, any state, in force at once; -EINVAL */
enum vm_state vm_state(struct vm *);
enum vm_stop vm_stop_cause(struct vm *, char *reason, size_t len, unsigned *code);  /* why it is STOPPED; code: debug exit */
bool vm_wait(struct vm *, uint64_t deadline_ns);        /* until STOPPED; false on time-out */

/* From devices on vCPU threads and elsewhere, atomic context allowed: leave a request, return at once. */
void vm_request_reset(struct vm *);
void vm_request_stop(struct vm *, enum vm_stop, unsigned code, const char *reason);     /* reason is copied */

/* The contents of this host page are lost (machine check): the VM that has it is stopped as crashed; false: no VM has it.  Thread context. */
bool vm_page_lost(hpa_t);

/* Statistics. */
struct vcpu_stats {
    uint64_t exits[32];                 /* by enum exit_kind */
    uint64_t guest_ns, host_ns, halt_ns, steal_ns;
    uint64_t irqs, nmis, exceptions;    /* injected */
    uint64_t decodes;                   /* instructions decoded, those found in the cache not counted */
    unsigned cpu;                       /* last host CPU */
    bool halted, started;
};
void vm_vcpu_stats(struct vm *, unsigned index, struct vcpu_stats *);
unsigned vm_ncpus(const struct vm *);
const char *vm_name(const struct vm *);
/* Host memory beyond guest RAM: tables, vCPUs, devices' pages. */
uint64_t vm_overhead(struct vm *);
/* Registers, segments and last exits as lines (vm show --cpu, crash reports).  VM paused or stopped. */
void vm_dump(struct vm *, void (*print)(void *arg, const char *line), void *arg);
/* Whole vCPU and clock state, VM paused. */
struct snap;
int  vm_snap(struct vm *, struct snap *);
