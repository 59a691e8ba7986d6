#include "kernel/vmm/vm.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "kernel/lib/log.h"
#include "kernel/lib/muldiv.h"
#include "kernel/sched/fpu.h"
#include "kernel/vmm/policy.h"
#include "kernel/vmm/snap.h"
#include "kernel/vmm/vcpu.h"

const struct hv_ops *hv;
char hv_why[256];

enum { MIB = 1 << 20, NS_PER_S = 1000000000 };

static void carry_out(struct work *);
static void end_threads(struct vm *);

/* ---- Making and ending ---- */

static hpa_t table_alloc(void *arg) { return gmem_table_page(arg); }
static void table_free(void *arg, hpa_t pa) { page_put(pa, ORDER_4K); }

/* Nested tables and gmem's own in the worst case, all 4 KiB pages, and a little for the upper levels. */
static uint64_t table_bytes(uint64_t ram) { return 2 * ALIGN_UP(ram / 512, PAGE_SIZE) + 64 * PAGE_SIZE; }

static int check_params(const struct vm_params *p, char *err, size_t errlen)
{
    if (!hv) {
        snprintf(err, errlen, "%s", hv_why[0] ? hv_why : "this host has no virtualization");
        return -ENOTSUP;
    }
    if (!p->ncpus || p->ncpus > VM_MAX_VCPUS) {
        snprintf(err, errlen, "%u CPUs asked for; a VM has 1 to %d", p->ncpus, VM_MAX_VCPUS);
        return -EINVAL;
    }
    if (!p->ram || p->ram % MIB) {
        snprintf(err, errlen, "memory of %llu bytes is not a positive multiple of 1M", (unsigned long long)p->ram);
        return -EINVAL;
    }
    return 0;
}

static int no_room(const struct vm_params *p, char *err, size_t errlen)
{
    struct mem_stats s;
    mem_stats(&s);
    uint64_t room = s.free - MIN(s.free, s.reserved);
    snprintf(err, errlen, "%s needs %llu MiB (%llu MiB of memory and its tables), %llu MiB are free and not promised to other VMs; stop one or give it less memory",
             p->name, (unsigned long long)((p->ram + table_bytes(p->ram)) / MIB), (unsigned long long)(p->ram / MIB), (unsigned long long)(room / MIB));
    return -ENOMEM;
}

static int create_parts(struct vm *vm)
{
    vm->ports = bus_create("port", 0x10000, vm->p.ncpus);
    vm->mmio = bus_create("mmio", 1ull << vmm_host.phys_bits, vm->p.ncpus);
    if (!vm->ports || !vm->mmio)
        return -ENOMEM;
    int err = ptab_init(&vm->nested, vmm_host.nested, vmm_host.max_leaf, table_alloc, table_free, &vm->gmem);
    if (!err)
        err = policy_vm_init(vm);
    if (!err)
        err = hv->vm_init(vm);
    for (unsigned i = 0; !err && i < vm->p.ncpus; i++)
        err = vcpu_create(vm, i);
    for (unsigned i = 0; !err && i < vm->p.ncpus; i++)
        err = policy_vcpu_init(vm->vcpu[i]);
    return err;
}

static struct spinlock all_lock;
static struct list all = LIST_INIT(all);        /* under all_lock: VMs whose memory is complete */

bool vm_page_lost(hpa_t pa)
{
    bool found = false;
    gpa_t gpa;
    char text[160];
    spin_lock(&all_lock);
    for (struct list *n = all.next; n != &all && !found; n = n->next) {
        struct vm *vm = container_of(n, struct vm, node);
        found = gmem_lose(&vm->gmem, pa, &gpa);
        if (!found)
            continue;
        snprintf(text, sizeof text, "the memory under guest-physical %llx (host %llx) has failed: machine check", (unsigned long long)gpa,
                 (unsigned long long)pa);
        log_err(vm->p.name, "%s", text);
        vm_request_stop(vm, STOP_CRASH, 0, text);
    }
    spin_unlock(&all_lock);
    return found;
}

int vm_create(const struct vm_params *p, struct vm **out, char *err, size_t errlen)
{
    int e = check_params(p, err, errlen);
    if (e)
        return e;
    struct vm *vm = kzalloc(sizeof *vm);
    if (!vm || gmem_init(&vm->gmem, p->ram, table_bytes(p->ram))) {
        kfree(vm);
        return no_room(p, err, errlen);
    }
    static uint64_t serials;
    vm->p = *p;
    vm->serial = atomic_add(&serials, 1);
    vm->pte_reserved = BITS(51, 0) & ~(BIT(vmm_host.phys_bits) - 1);
    mutex_init(&vm->control);
    mutex_init(&vm->lock);
    cond_init(&vm->changed);
    vmclock_init(&vm->clock);
    work_init(&vm->work, carry_out);
    sched_cap_init(&vm->cap, p->cap);
    list_init(&vm->node);
    e = create_parts(vm);
    if (e) {
        snprintf(err, errlen, "%s: no host memory for the VM's own structures", p->name);
        vm_destroy(vm);
        return e;
    }
    spin_lock(&all_lock);
    list_append(&all, &vm->node);
    spin_unlock(&all_lock);
    *out = vm;
    return 0;
}

void vm_destroy(struct vm *vm)
{
    if (!vm)
        return;
    ASSERT(vm->state == VM_STOPPED);
    spin_lock(&all_lock);
    list_del(&vm->node);
    spin_unlock(&all_lock);
    work_flush(&vm->work);
    end_threads(vm);
    for (unsigned i = 0; i < VM_MAX_VCPUS; i++)
        vcpu_destroy(vm->vcpu[i]);
    if (vm->hv)
        hv->vm_fini(vm);
    policy_vm_fini(vm);
    ptab_destroy(&vm->nested);
    gmem_fini(&vm->gmem);
    bus_destroy(vm->ports);
    bus_destroy(vm->mmio);
    kfree(vm);
}

/* ---- Wiring ---- */

struct gmem *vm_gmem(struct vm *vm) { return &vm->gmem; }
struct bus *vm_ports(struct vm *vm) { return vm->ports; }
struct bus *vm_mmio(struct vm *vm) { return vm->mmio; }
struct vmclock *vm_clock(struct vm *vm) { return &vm->clock; }
struct vcpu *vm_vcpu(struct vm *vm, unsigned i) { return i < vm->p.ncpus ? vm->vcpu[i] : NULL; }
unsigned vm_ncpus(const struct vm *vm) { return vm->p.ncpus; }
const char *vm_name(const struct vm *vm) { return vm->p.name; }
void vm_set_hooks(struct vm *vm, const struct vm_hooks *h) { vm->hooks = *h; }

int vm_add_ram(struct vm *vm, gpa_t base, uint64_t len, bool rom)
{
    if (vm->gmem.ram + len > vm->p.ram + 4 * MIB)       /* firmware ROM comes on top of the RAM */
        return -EINVAL;
    return gmem_add_range(&vm->gmem, base, len, rom);
}

void vm_set_irqchip(struct vm *vm, unsigned i, const struct vcpu_irqchip *chip)
{
    vm->vcpu[i]->irqchip = *chip;
    vm->vcpu[i]->has_irqchip = true;
}

void vm_apic_page(struct vm *vm, gpa_t base)
{
    if (!hv->apic_page)
        return;
    hv->apic_page(vm, gmem_covers(&vm->gmem, base) ? 0 : base);         /* RAM there hides the registers */
    for (unsigned i = 0; i < vm->p.ncpus; i++)
        if (vm->vcpu[i])
            vcpu_request(vm->vcpu[i], REQ_FLUSH);
}

static void wire_irq(void *v) { vcpu_request(v, REQ_EVENT); }
static void wire_tpr(void *v)
{
    if (hv->tpr_written)
        hv->tpr_written(v);
}

static void wire_init(void *v) { vcpu_request(v, REQ_INIT); }
static void wire_smi(void *v) {}                /* this PC has no SMM: an SMI goes nowhere */

static void wire_nmi(void *vcpu)
{
    struct vcpu *v = vcpu;
    uint32_t n = atomic_load(&v->nmi_pending);
    while (n < 2 && !atomic_cas(&v->nmi_pending, &n, n + 1))      /* one in service, one latched */
        ;
    vcpu_request(v, REQ_EVENT);
}

static void wire_sipi(void *vcpu, uint8_t vector)
{
    struct vcpu *v = vcpu;
    atomic_store(&v->sipi_vector, vector);
    vcpu_request(v, REQ_SIPI);
}

static uint64_t wire_tsc(void *v) { return vcpu_tsc(v); }

static uint64_t wire_tsc_to_ns(void *vcpu, uint64_t guest_tsc)
{
    struct vcpu *v = vcpu;
    preempt_disable();
    uint64_t now = vcpu_tsc(v), ns = vmclock_now(&v->vm->clock);
    preempt_enable();
    if (guest_tsc <= now)
        return ns;
    uint64_t delta = mul_div(guest_tsc - now, NS_PER_S, vmm_host.tsc_hz);
    return delta > UINT64_MAX - ns ? UINT64_MAX : ns + delta;
}

void vm_get_wires(struct vm *vm, unsigned i, struct vcpu_wires *w)
{
    *w = (struct vcpu_wires){
        .vcpu = vm->vcpu[i], .irq = wire_irq, .tpr = wire_tpr, .nmi = wire_nmi, .smi = wire_smi, .init = wire_init, .sipi = wire_sipi,
        .tsc = wire_tsc, .tsc_to_ns = wire_tsc_to_ns,
    };
}

void vm_set_boot_state(struct vm *vm, const uint64_t gpr[16], uint64_t rip, const struct cpu_state *st)
{
    memcpy(vm->boot_gpr, gpr, sizeof vm->boot_gpr);
    vm->boot_rip = rip, vm->boot = *st, vm->boot_set = true;
}

/* ---- vCPU threads: start, park, release, end.  All under vm->lock. ---- */

static void park_all(struct vm *vm)
{
    vm->holding = true;
    for (unsigned i = 0; i < vm->threads; i++)
        vcpu_request(vm->vcpu[i], REQ_PARK);
    while (vm->parked < vm->threads)
        cond_wait(&vm->changed, &vm->lock);
}

static void release_all(struct vm *vm)
{
    vm->holding = false;
    cond_broadcast(&vm->changed);
}

/* A vCPU thread stands still here while somebody holds the VM or a reset or stop that was asked for has not been carried out. */
void vm_park_self(struct vm *vm)
{
    fpu_detach();
    mutex_lock(&vm->lock);
    vm->parked++;
    cond_broadcast(&vm->changed);
    while (!vm->quit && (vm->holding || READ_ONCE(vm->want_reset) || READ_ONCE(vm->want_stop) != STOP_NONE))
        cond_wait(&vm->changed, &vm->lock);
    vm->parked--;
    bool quit = vm->quit;
    mutex_unlock(&vm->lock);
    if (quit)
        thread_exit();
    fpu_attach();
}

/*
 * The threads outlive a stop, parked: a device may be waking one at this moment.  They end with the VM, when its devices are gone.
 */
static void end_threads(struct vm *vm)
{
    mutex_lock(&vm->lock);
    park_all(vm);
    vm->quit = true;
    release_all(vm);
    mutex_unlock(&vm->lock);
    for (unsigned i = 0; i < vm->p.ncpus; i++)
        if (vm->vcpu[i] && vm->vcpu[i]->thread)
            thread_join(vm->vcpu[i]->thread);
}

/* A new thread begins parked: no vCPU runs before all exist. */
static int start_threads(struct vm *vm)
{
    vm->holding = true;
    for (unsigned i = vm->threads; i < vm->p.ncpus; i++) {
        struct vcpu *v = vm->vcpu[i];
        char name[32];
        snprintf(name, sizeof name, "%.20s/%u", vm->p.name, i);
        struct thread_attr a = {
            .name = name, .cls = THREAD_VCPU, .weight = vm->p.weight, .shared_cap = &vm->cap, .cpus = vmm_host.cpus, .hooks = &v->hooks, .fpu = v->fpu,
        };
        atomic_or(&v->requests, REQ_PARK);
        struct thread *t = thread_create(&a, vcpu_main, v);
        if (!t)
            return -ENOMEM;             /* those that exist stay parked until vm_destroy */
        atomic_store(&v->thread, t);
        vm->threads++;
    }
    park_all(vm);
    return 0;
}

/* vCPUs parked or not yet born: the machine as after power-on or a reset pulse. */
static void reset_machine(struct vm *vm)
{
    vm->tsc_stopped = host_tsc();
    for (unsigned i = 0; i < vm->p.ncpus; i++) {
        vm->vcpu[i]->tsc_offset = -(int64_t)vm->tsc_stopped;    /* TSC 0 */
        atomic_and(&vm->vcpu[i]->requests, REQ_PARK);
        policy_vcpu_reset(vm->vcpu[i]);
        vcpu_reset(vm->vcpu[i], false);
    }
    vm->boot_set = false;
    if (vm->hooks.reset)
        vm->hooks.reset(vm->hooks.arg);
    if (vm->boot_set) {
        struct vcpu *v = vm->vcpu[0];
        memcpy(v->gpr, vm->boot_gpr, sizeof v->gpr);
        v->rip = vm->boot_rip;
        v->st = vm->boot;
        vcpu_put_state(v, ST_ALL);
    }
}

static void clear_requests(struct vm *vm)
{
    spin_lock(&vm->req_lock);
    vm->want_reset = false;
    vm->want_stop = STOP_NONE;
    spin_unlock(&vm->req_lock);
}

/* VM clock and guest TSCs stand still and go on together, all TSCs by the same amount. */
static void stop_clock(struct vm *vm)
{
    if (!vm->clock.running)
        return;
    vmclock_stop(&vm->clock);
    vm->tsc_stopped = host_tsc();
}

static void start_clock(struct vm *vm)
{
    uint64_t still = host_tsc() - vm->tsc_stopped;
    for (unsigned i = 0; i < vm->p.ncpus; i++) {
        struct vcpu *v = vm->vcpu[i];
        v->tsc_offset -= (int64_t)still;
        hv->set_tsc(v, v->tsc_offset);
        atomic_or(&v->requests, REQ_CLOCK | REQ_EVENT);
    }
    vmclock_start(&vm->clock);
}

/* ---- Control ---- */

/*
 * Waiting for vCPUs gives vm->lock up, so it alone does not keep operations apart: a reset by the worker once released the vCPUs that a pause was
 * waiting for, and the pause waited for ever.
 */
static void begin(struct vm *vm)
{
    mutex_lock(&vm->control);
    mutex_lock(&vm->lock);
}

static void end(struct vm *vm)
{
    mutex_unlock(&vm->lock);
    mutex_unlock(&vm->control);
}

int vm_run(struct vm *vm)
{
    begin(vm);
    int err = vm->state == VM_STOPPED ? 0 : -EBUSY;
    if (!err) {
        clear_requests(vm);
        vm->cause = STOP_NONE, vm->code = 0, vm->reason[0] = 0;
        memset(vm->crash_ns, 0, sizeof vm->crash_ns);
        reset_machine(vm);
        err = start_threads(vm);
    }
    if (!err) {
        vm->state = VM_RUNNING;
        start_clock(vm);
        release_all(vm);
    }
    end(vm);
    return err;
}

static void hold(struct vm *vm)
{
    park_all(vm);
    stop_clock(vm);
    if (vm->hooks.drain)
        vm->hooks.drain(vm->hooks.arg);
}

int vm_pause(struct vm *vm)
{
    begin(vm);
    int err = vm->state == VM_RUNNING ? 0 : -EBUSY;
    if (!err) {
        hold(vm);
        vm->state = VM_PAUSED;
        cond_broadcast(&vm->changed);
    }
    end(vm);
    return err;
}

int vm_set_share(struct vm *vm, unsigned weight, unsigned cap)
{
    int err = 0;
    begin(vm);
    sched_cap_set(&vm->cap, cap);
    for (unsigned i = 0; !err && i < vm->p.ncpus; i++)
        if (vm->vcpu[i] && vm->vcpu[i]->thread)
            err = thread_set_share(vm->vcpu[i]->thread, weight, 0);
    if (!err)
        vm->p.weight = weight, vm->p.cap = cap;         /* for threads yet to come */
    end(vm);
    return err;
}

int vm_resume(struct vm *vm)
{
    begin(vm);
    int err = vm->state == VM_PAUSED ? 0 : -EBUSY;
    if (!err) {
        if (vm->hooks.resume)
            vm->hooks.resume(vm->hooks.arg);
        start_clock(vm);
        vm->state = VM_RUNNING;
        release_all(vm);
    }
    end(vm);
    return err;
}

static void stop_locked(struct vm *vm, enum vm_stop cause, unsigned code, const char *reason)
{
    vm->state = VM_STOPPING;
    hold(vm);
    vm->cause = cause, vm->code = code;
    snprintf(vm->reason, sizeof vm->reason, "%s", reason);
    vm->state = VM_STOPPED;
    cond_broadcast(&vm->changed);
}

static void tell_stopped(struct vm *vm, enum vm_stop cause, const char *reason)
{
    if (vm->hooks.stopped)
        vm->hooks.stopped(vm->hooks.arg, cause, reason);
}

int vm_kill(struct vm *vm)
{
    begin(vm);
    int err = vm->state == VM_RUNNING || vm->state == VM_PAUSED ? 0 : -EBUSY;
    if (!err)
        stop_locked(vm, STOP_KILLED, 0, "killed by the operator");
    end(vm);
    if (!err)
        tell_stopped(vm, STOP_KILLED, "killed by the operator");
    return err;
}

static void reset_locked(struct vm *vm)
{
    bool was_paused = vm->state == VM_PAUSED;
    hold(vm);
    clear_requests(vm);
    reset_machine(vm);
    if (was_paused) {
        cond_broadcast(&vm->changed);
        return;
    }
    if (vm->hooks.resume)
        vm->hooks.resume(vm->hooks.arg);
    start_clock(vm);
    release_all(vm);
}

int vm_reset(struct vm *vm)
{
    begin(vm);
    int err = vm->state == VM_RUNNING || vm->state == VM_PAUSED ? 0 : -EBUSY;
    if (!err)
        reset_locked(vm);
    end(vm);
    return err;
}

/* Worker thread: what a vCPU or a device asked for. */
static void carry_out(struct work *w)
{
    struct vm *vm = container_of(w, struct vm, work);
    char reason[256];
    begin(vm);
    spin_lock(&vm->req_lock);
    enum vm_stop stop = vm->want_stop;
    unsigned code = vm->want_code;
    bool reset = vm->want_reset;
    memcpy(reason, vm->want_reason, sizeof reason);
    spin_unlock(&vm->req_lock);
    bool live = vm->state == VM_RUNNING || vm->state == VM_PAUSED;
    if (live && stop != STOP_NONE)
        stop_locked(vm, stop, code, reason);
    else if (live && reset)
        reset_locked(vm);
    else
        cond_broadcast(&vm->changed);       /* somebody else was faster: nothing is asked for any more */
    end(vm);
    if (live && stop != STOP_NONE)
        tell_stopped(vm, stop, reason);
}

/* The guest must not run on after the instruction that asked: its vCPUs park by themselves, whoever carries it out finds them so. */
static void post_request(struct vm *vm)
{
    for (unsigned i = 0; i < vm->p.ncpus; i++)
        vcpu_request(vm->vcpu[i], REQ_PARK);
    work_queue(&vm->work);
}

void vm_request_reset(struct vm *vm)
{
    spin_lock(&vm->req_lock);
    vm->want_reset = true;
    spin_unlock(&vm->req_lock);
    post_request(vm);
}

void vm_request_stop(struct vm *vm, enum vm_stop cause, unsigned code, const char *reason)
{
    spin_lock(&vm->req_lock);
    if (vm->want_stop == STOP_NONE) {           /* the first cause is the one worth telling */
        vm->want_stop = cause, vm->want_code = code;
        snprintf(vm->want_reason, sizeof vm->want_reason, "%s", reason);
    }
    spin_unlock(&vm->req_lock);
    post_request(vm);
}

enum vm_state vm_state(struct vm *vm) { return READ_ONCE(vm->state); }

enum vm_stop vm_stop_cause(struct vm *vm, char *reason, size_t len, unsigned *code)
{
    mutex_lock(&vm->lock);
    enum vm_stop cause = vm->cause;
    if (reason)
        snprintf(reason, len, "%s", vm->reason);
    if (code)
        *code = vm->code;
    mutex_unlock(&vm->lock);
    return cause;
}

bool vm_wait(struct vm *vm, uint64_t deadline_ns)
{
    bool in_time = true;
    mutex_lock(&vm->lock);
    while (vm->state != VM_STOPPED && in_time)
        in_time = cond_wait_until(&vm->changed, &vm->lock, deadline_ns);
    bool stopped = vm->state == VM_STOPPED;
    mutex_unlock(&vm->lock);
    return stopped;
}

/* ---- Statistics and dumps ---- */

static uint64_t ticks_to_ns(uint64_t ticks)
{
    return vmm_host.tsc_hz ? mul_div(ticks, NS_PER_S, vmm_host.tsc_hz) : 0;
}

/* A sum of times; negative while one is under way: less its beginning. */
static uint64_t stretch(const uint64_t *sum, uint64_t now)
{
    uint64_t ticks = READ_ONCE(*sum);
    return (int64_t)ticks < 0 ? ticks + now : ticks;
}

void vm_vcpu_stats(struct vm *vm, unsigned i, struct vcpu_stats *s)
{
    struct vcpu *v = vm->vcpu[i];
    *s = v->stats;
    uint64_t now = host_tsc(), guest = stretch(&v->tsc_guest, now), loaded = stretch(&v->tsc_loaded, now);
    uint64_t halted = ticks_to_ns(READ_ONCE(v->tsc_halted)), waited = READ_ONCE(v->halt_waited_ns);
    s->guest_ns = ticks_to_ns(guest);
    s->halt_ns = halted - MIN(halted, waited);
    s->host_ns = ticks_to_ns(loaded - MIN(loaded, guest));
    s->started = READ_ONCE(v->run) != RUN_WAIT_SIPI;
    mutex_lock(&vm->lock);
    s->steal_ns = v->thread ? thread_steal_ns(v->thread) : 0;
    mutex_unlock(&vm->lock);
}

uint64_t vm_overhead(struct vm *vm)
{
    uint64_t bytes = sizeof *vm + vm->nested.tables * PAGE_SIZE + vm->gmem.tables;
    return bytes + vm->p.ncpus * (sizeof(struct vcpu) + sched_fpu_size() + 4 * PAGE_SIZE);
}

struct printer { void (*print)(void *, const char *); void *arg; };

static void line(const struct printer *p, const char *fmt, ...) __printf_like(2, 3);
static void line(const struct printer *p, const char *fmt, ...)
{
    char text[160];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    p->print(p->arg, text);
}

typedef unsigned long long ull;

static void dump_segs(const struct printer *p, const struct cpu_state *st)
{
    static const char *const name[] = { "es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr" };
    for (unsigned s = 0; s < ARRAY_SIZE(name); s++)
        line(p, "  %-4s %04x base %llx limit %x attr %04x", name[s], st->seg[s].sel, (ull)st->seg[s].base, st->seg[s].limit, st->seg[s].attr);
}

static void dump_vcpu(struct vcpu *v, const struct printer *p)
{
    static const char *const reg[] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };
    static const char *const run[] = { "active", "halted", "waits for SIPI" };
    const struct cpu_state *st = vcpu_state(v, ST_ALL);
    line(p, "vCPU %u: %s, rip %llx rflags %llx", v->index, run[v->run], (ull)v->rip, (ull)v->rflags);
    for (unsigned i = 0; i < 16; i += 4)
        line(p, "  %s %016llx %s %016llx %s %016llx %s %016llx", reg[i], (ull)v->gpr[i], reg[i + 1], (ull)v->gpr[i + 1], reg[i + 2],
             (ull)v->gpr[i + 2], reg[i + 3], (ull)v->gpr[i + 3]);
    line(p, "  cr0 %llx cr2 %llx cr3 %llx cr4 %llx efer %llx cpl %u", (ull)st->cr0, (ull)st->cr2, (ull)st->cr3, (ull)st->cr4, (ull)st->efer, st->cpl);
    dump_segs(p, st);
    for (unsigned i = MIN(v->trace_at, 8u); i > 0; i--) {
        const struct exit_trace *t = &v->trace[(v->trace_at - i) % EXIT_TRACE];
        line(p, "  exit %-12s rip %llx info %llx", exit_kind_name(t->kind), (ull)t->rip, (ull)t->info);
    }
    hv->dump(v, p->print, p->arg);
}

void vm_dump(struct vm *vm, void (*print)(void *, const char *), void *arg)
{
    struct printer p = { print, arg };
    mutex_lock(&vm->lock);
    if (vm->state == VM_RUNNING)
        line(&p, "%s is running; pause it first", vm->p.name);
    for (unsigned i = 0; vm->state != VM_RUNNING && i < vm->p.ncpus; i++)
        dump_vcpu(vm->vcpu[i], &p);
    struct pt_leaves n;
    if (vm->state != VM_RUNNING) {
        ptab_count(&vm->nested, &n);
        line(&p, "nested pages: %llu of 1 GiB, %llu of 2 MiB, %llu of 4 KiB", (unsigned long long)n.n1g, (unsigned long long)n.n2m, (unsigned long long)n.n4k);
    }
    mutex_unlock(&vm->lock);
}

/* ---- Save and load ---- */

static void snap_vcpu(struct vcpu *v, struct snap *s)
{
    snap_begin(s, "vcpu", 1);
    uint64_t tsc = v->vm->tsc_stopped + (uint64_t)v->tsc_offset;
    if (!s->loading)
        vcpu_state(v, ST_ALL);
    SNAP(s, v->gpr);
    SNAP(s, v->rip);
    SNAP(s, v->rflags);
    SNAP(s, v->st);
    SNAP(s, v->run);
    SNAP(s, v->nmi_pending);
    SNAP(s, v->reinject);
    SNAP(s, v->exc);
    SNAP(s, v->xcr0);
    SNAP(s, v->pvclock);
    snap_bytes(s, "tsc", &tsc, sizeof tsc);
    snap_bytes(s, "fpu", v->fpu, sched_fpu_size());
    if (snap_end(s) || !s->loading)
        return;
    v->tsc_offset = (int64_t)(tsc - v->vm->tsc_stopped);
    fpu_area_sanitize(v->fpu);
    vcpu_put_state(v, ST_ALL);
    atomic_or(&v->requests, REQ_EVENT | REQ_CLOCK);
}

int vm_snap(struct vm *vm, struct snap *s)
{
    uint64_t now = vmclock_now(&vm->clock);
    snap_begin(s, "vm", 1);
    snap_bytes(s, "clock", &now, sizeof now);
    int err = snap_end(s);
    if (!err && s->loading)
        vmclock_set(&vm->clock, now);
    for (unsigned i = 0; i < vm->p.ncpus; i++) {
        snap_vcpu(vm->vcpu[i], s);
        policy_vcpu_snap(vm->vcpu[i], s);
    }
    return err ? err : s->err;
}
