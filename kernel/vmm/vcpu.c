#include "kernel/vmm/vcpu.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "kernel/hw/msr.h"
#include "kernel/hw/x86.h"
#include "kernel/lib/log.h"
#include "kernel/sched/fpu.h"

struct vmm_host vmm_host;

uint64_t vcpu_tsc(struct vcpu *v) { return host_tsc() + (uint64_t)v->tsc_offset; }

/*
 * The one way to get a vCPU's attention.  The request is visible before the mode is read, and the vCPU sets its mode before it reads requests: one of the two
 * sees the other (may_enter).  Waking a thread that runs does no harm and cannot be left out: a timer callback may hit the vCPU's own thread between
 * sched_prepare_block() and sched_block().  Whoever set the bit first wakes; the vCPU looks at all bits at once.
 */
void vcpu_request(struct vcpu *v, uint32_t req)
{
    if ((atomic_or(&v->requests, req) & req) == req)
        return;
    if (atomic_load(&v->mode) == IN_GUEST)
        vmm_host.kick(atomic_load_relaxed(&v->host_cpu));
    else if (v->thread)
        thread_wake(v->thread);
}

/* ---- Architectural state ---- */

struct cpu_state *vcpu_fetch_state(struct vcpu *v, unsigned groups)
{
    unsigned missing = groups & ~v->st_valid;
    hv->get_state(v, &v->st, missing);
    v->st_valid |= missing;
    return &v->st;
}

void vcpu_put_state(struct vcpu *v, unsigned groups)
{
    hv->set_state(v, &v->st, groups);
    v->st_valid |= groups;
}

/* Behind the instruction: the shadow it may have stood in is over, and RIP wraps with the mode. */
void vcpu_advance_slow(struct vcpu *v)
{
    if (v->shadow) {
        vcpu_state(v, ST_INTR)->shadow = 0;
        vcpu_put_state(v, ST_INTR);
        v->shadow = false;
    }
    vcpu_code(v);
    if (vcpu_cpu_mode(v) != MODE_64)
        v->rip = (uint32_t)v->rip;
    /* The trap after a single step: the CPU has not seen this one end.  What is done for the guest does not branch. */
    if ((v->rflags & RFLAGS_TF) && !v->exc.valid && !(vcpu_state(v, ST_MSRS)->debugctl & DEBUGCTL_BTF)) {
        vcpu_state(v, ST_DRS)->dr6 |= DR6_BS;
        vcpu_put_state(v, ST_DRS);
        vcpu_raise(v, EXC_DB, false, 0);
    }
}

/* A CPU that takes #DB by itself opens the debug registers to the handler; for one that is injected it does not. */
static __attribute__((noinline)) void end_general_detect(struct vcpu *v)
{
    struct cpu_state *st = vcpu_state(v, ST_DRS);
    if (!(st->dr7 & DR7_GD))
        return;
    st->dr7 &= ~(uint64_t)DR7_GD;
    vcpu_put_state(v, ST_DRS);
}

void vcpu_raise(struct vcpu *v, uint8_t vector, bool has_error, uint32_t error)
{
    if (unlikely(vector == EXC_DB))
        end_general_detect(v);
    v->exc = (struct event_info){ .type = EVENT_EXCEPTION, .vector = vector, .valid = true, .has_error = has_error, .error = error };
    atomic_or(&v->requests, REQ_EVENT);
}

void vcpu_raise_pf(struct vcpu *v, uint32_t error, gva_t cr2)
{
    vcpu_state(v, ST_CRS)->cr2 = cr2;
    vcpu_put_state(v, ST_CRS);
    vcpu_raise(v, 14, true, error);
}

void vcpu_crash(struct vcpu *v, const char *fmt, ...)
{
    char text[192], line[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    snprintf(line, sizeof line, "vCPU %u: %s (rip %llx)", v->index, text, (unsigned long long)v->rip);
    vm_request_stop(v->vm, STOP_CRASH, 0, line);
}

/* State after power-on or INIT: Intel SDM vol 3 table "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT". */
static void reset_state(struct cpu_state *st, bool init)
{
    struct cpu_state old = *st;
    static const struct cpu_seg data = { .limit = 0xffff, .attr = 0x93 };
    memset(st, 0, sizeof *st);
    for (unsigned s = 0; s < 6; s++)
        st->seg[s] = data;
    st->seg[SEG_CS] = (struct cpu_seg){ .base = 0xffff0000, .limit = 0xffff, .sel = 0xf000, .attr = 0x9b };
    st->seg[SEG_LDTR] = (struct cpu_seg){ .limit = 0xffff, .attr = 0x82 };
    st->seg[SEG_TR] = (struct cpu_seg){ .limit = 0xffff, .attr = 0x8b };
    st->gdt.limit = st->idt.limit = 0xffff;
    st->cr0 = CR0_ET | (init ? old.cr0 & (CR0_CD | CR0_NW) : 0);
    st->dr6 = 0xffff0ff0, st->dr7 = 0x400;
    st->pat = init ? old.pat : 0x0007040600070406ull;
    if (init)
        st->tsc_aux = old.tsc_aux;
}

void vcpu_reset(struct vcpu *v, bool init)
{
    if (init)
        vcpu_state(v, ST_ALL);
    hv->vcpu_reset(v);                          /* an INIT, too, forgets what was to be delivered */
    hv->set_tsc(v, v->tsc_offset);
    reset_state(&v->st, init);
    memset(v->gpr, 0, sizeof v->gpr);
    v->gpr[RDX] = 0x600;
    v->rip = 0xfff0, v->rflags = RFLAGS_FIXED;
    v->exc.valid = v->reinject.valid = v->shadow = v->irq_taken = false;
    atomic_store(&v->nmi_pending, 0);
    v->irq_offered = IRQ_NONE;
    hv->inject(v, &(struct event_info){ .type = EVENT_INTR });
    vcpu_put_state(v, ST_ALL);
    v->run = v->index ? RUN_WAIT_SIPI : RUN_ACTIVE;
    atomic_or(&v->requests, REQ_IDLE);          /* whether it is: attend() looks */
    if (!init) {
        v->pvclock = (struct pvclock){ .on = false };
        v->xcr0 = 1;
        fpu_area_init(v->fpu);          /* INIT leaves it alone: SDM vol. 3 "Processor Initialization" */
    }
    atomic_or(&v->requests, REQ_EVENT);
}

/* ---- The vCPU's thread ---- */

static void on_put(void *arg)
{
    struct vcpu *v = arg;
    hv->put(v);
    WRITE_ONCE(v->tsc_loaded, v->tsc_loaded + host_tsc());
}

static void on_load(void *arg, bool migrated)
{
    struct vcpu *v = arg;
    WRITE_ONCE(v->tsc_loaded, v->tsc_loaded - host_tsc());
    atomic_store_relaxed(&v->host_cpu, port_cpu());
    v->stats.cpu = v->host_cpu;
    hv->load(v, migrated);
}

void vcpu_reload(struct vcpu *v)
{
    preempt_disable();
    hv->put(v);
    hv->load(v, false);
    preempt_enable();
}

static void start_at(struct vcpu *v, uint8_t vector)
{
    struct cpu_state *st = vcpu_state(v, ST_SEGS);
    st->seg[SEG_CS].sel = (uint16_t)(vector << 8);
    st->seg[SEG_CS].base = (uint64_t)vector << 12;
    vcpu_put_state(v, ST_SEGS);
    v->rip = 0;
    v->run = RUN_ACTIVE;
    v->stats.started = true;
}

static void halt(struct vcpu *v)
{
    uint64_t since = host_tsc(), waited = thread_own_steal_ns();
    v->stats.halted = true;
    sched_prepare_block();
    if (atomic_load(&v->requests) != REQ_IDLE)
        sched_cancel_block();
    else
        sched_block();
    v->stats.halted = false;
    v->tsc_halted += host_tsc() - since;
    v->halt_waited_ns += thread_own_steal_ns() - waited;
}

/* Everything but REQ_EVENT is rare. */
static void service(struct vcpu *v, uint32_t req)
{
    if (req & REQ_PARK) {
        atomic_or(&v->requests, req & ~(uint32_t)REQ_PARK);    /* they still count after the pause */
        vcpu_state(v, ST_ALL);                                 /* whoever looks while it stands still finds all here */
        vm_park_self(v->vm);
        vcpu_reload(v);                                        /* a reset may have come and gone before this thread left its CPU */
        return;
    }
    if (req & REQ_FLUSH)
        hv->flush(v, FLUSH_NESTED);
    if (req & REQ_CLOCK)
        pvclock_publish(v);
    if (req & REQ_INIT) {
        v->irqchip.init(v->irqchip.apic);
        vcpu_reset(v, true);
    }
    if ((req & REQ_SIPI) && v->run == RUN_WAIT_SIPI)
        start_at(v, (uint8_t)atomic_load(&v->sipi_vector));
    if (v->run == RUN_HALTED && vcpu_wakes(v))
        v->run = RUN_ACTIVE;
    if (v->run == RUN_ACTIVE)
        vcpu_events(v);
}

/* Not to enter now: somebody asks for something, or the CPU sleeps. */
static void attend(struct vcpu *v)
{
    uint32_t req = atomic_xchg(&v->requests, 0);
    if (req & ~(uint32_t)REQ_IDLE)
        service(v, req);
    if (likely(v->run == RUN_ACTIVE))
        return;
    atomic_or(&v->requests, REQ_IDLE);
    halt(v);
}

/* Interrupts off: what other CPUs ask for from here on kicks this one out of the guest. */
static inline bool may_enter(struct vcpu *v)
{
    atomic_store_relaxed(&v->mode, IN_GUEST);
    atomic_fence();             /* pairs with vcpu_request: either it sees IN_GUEST and kicks, or we see its request */
    if (likely(!atomic_load_relaxed(&v->requests) && !sched_need_resched()))
        return true;
    atomic_store_relaxed(&v->mode, OUTSIDE_GUEST);
    return false;
}

static __attribute__((noinline)) void irq_taken(struct vcpu *v)
{
    int irq = v->irq_offered;
    v->irq_taken = false;
    v->irq_offered = IRQ_NONE;
    v->irqchip.accept(v->irqchip.apic, irq);
    v->stats.irqs++;
    /* What else the LAPIC holds waits for the EOI, and that asks; the PIC may have its next at once. */
    if (irq & IRQ_EXTINT)
        atomic_or(&v->requests, REQ_EVENT);
}

static inline void enter(struct vcpu *v)
{
    struct exit *e = &v->exit;
    WRITE_ONCE(v->tsc_guest, v->tsc_guest - host_tsc());
    hv->run(v);
    v->st_valid = 0;
    uint64_t now = host_tsc();
    WRITE_ONCE(v->tsc_guest, v->tsc_guest + now);
    atomic_store_relaxed(&v->mode, OUTSIDE_GUEST);
    port_irq_enable();
    v->stats.exits[e->kind]++;
    v->trace[v->trace_at++ % EXIT_TRACE] = (struct exit_trace){ now, v->rip, e->u.raw.reason, e->kind };
    if (unlikely(v->irq_taken))
        irq_taken(v);
    exit_handler[e->kind](v, e);
}

void vcpu_main(void *arg)
{
    struct vcpu *v = arg;
    for (;;) {
        port_irq_disable();
        if (likely(may_enter(v))) {
            enter(v);
        } else {
            port_irq_enable();
            if (sched_need_resched())
                sched_preempt_point();
            attend(v);
        }
    }
}

/* ---- Making one ---- */

int vcpu_create(struct vm *vm, unsigned index)
{
    struct vcpu *v = kmalloc_aligned(sizeof *v, 64);
    if (!v)
        return -ENOMEM;
    memset(v, 0, sizeof *v);
    v->vm = vm, v->index = index, v->irq_offered = IRQ_NONE, v->io.cpu = v;
    v->hooks = (struct thread_hooks){ on_put, on_load, v };
    v->fpu = kmalloc_aligned(sched_fpu_size(), 64);
    int err = v->fpu ? hv->vcpu_init(v) : -ENOMEM;
    if (err) {
        kfree(v->fpu);
        kfree(v);
        return err;
    }
    fpu_area_init(v->fpu);
    vm->vcpu[index] = v;
    return 0;
}

void vcpu_destroy(struct vcpu *v)
{
    if (!v)
        return;
    hv->vcpu_fini(v);
    kfree(v->msrs);
    kfree(v->fpu);
    kfree(v);
}
