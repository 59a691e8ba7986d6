#include "tests/host/fake_hv.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/host/port_host.h"

enum { FAKE_CPUS = 64 };

struct fake_vm { fake_script *script; void *arg; };

static struct {
    void *arena;
    size_t len;
    unsigned kicks;
    uint32_t kicked[FAKE_CPUS];
} fake;

static struct fake_vm *fake_vm(struct vm *vm) { return vm->hv; }
struct fake_cpu *fake_cpu(struct vcpu *v) { return v->hv; }
unsigned fake_kicks(void) { return atomic_load(&fake.kicks); }

void fake_hv_script(struct vm *vm, fake_script *fn, void *arg)
{
    fake_vm(vm)->script = fn;
    fake_vm(vm)->arg = arg;
}

struct vm *fake_vm_create(unsigned ncpus, fake_script *fn, void *arg)
{
    const uint64_t ram = 32ull << 20;
    struct vm_params p = { .name = "t", .ncpus = ncpus, .ram = ram };
    struct vm *vm;
    char err[160];
    int failed = vm_create(&p, &vm, err, sizeof err);
    ASSERT(!failed);
    failed = vm_add_ram(vm, 0, ram, false);
    ASSERT(!failed);
    fake_hv_script(vm, fn, arg);
    return vm;
}

static void kick(unsigned cpu)
{
    atomic_add(&fake.kicks, 1);
    atomic_store(&fake.kicked[cpu % FAKE_CPUS], 1u);
}

void fake_guest_spin(struct vcpu *v)
{
    while (!atomic_xchg(&fake.kicked[v->host_cpu % FAKE_CPUS], 0u) && !atomic_load(&v->requests))
        sched_yield();
}

bool fake_take_irq(struct vcpu *v, uint8_t *vector)
{
    struct fake_cpu *f = fake_cpu(v);
    bool above = f->offered_extint || (f->offered & 0xf0) > (v->has_irqchip ? v->irqchip.page[0x80] & 0xf0 : 0);
    if (f->offered < 0 || !(v->rflags & RFLAGS_IF) || !above)
        return false;
    *vector = (uint8_t)f->offered;
    f->offered = -1;
    v->irq_taken = true;
    return true;
}

/* ---- TLB ---- */

static void tlb_forget(struct fake_cpu *f)
{
    memset(f->tlb, 0, sizeof f->tlb);
    f->flush_next = false;
}

/* What the tables say now. */
static bool walk(struct vm *vm, gpa_t gpa, struct fake_tlb *t)
{
    unsigned order = 0;
    spin_lock(&vm->nested_lock);
    uint64_t leaf = ptab_lookup(&vm->nested, gpa, &order);
    spin_unlock(&vm->nested_lock);
    uint64_t size = PAGE_SIZE << order;
    *t = (struct fake_tlb){
        .valid = leaf, .writable = leaf && (vm->nested.fmt->prot(leaf) & PT_W), .gpa = ALIGN_DOWN(gpa, PAGE_SIZE),
        .pa = (leaf & BITS(51, 12) & ~(size - 1)) + (ALIGN_DOWN(gpa, PAGE_SIZE) & (size - 1)),
    };
    return leaf;
}

void *fake_tlb_access(struct vcpu *v, gpa_t gpa, bool write)
{
    struct fake_tlb *t = &fake_cpu(v)->tlb[gpa / PAGE_SIZE % FAKE_TLB];
    if (!t->valid || t->gpa != ALIGN_DOWN(gpa, PAGE_SIZE))
        walk(v->vm, gpa, t);
    if (write && t->valid && !t->writable)      /* a CPU asks the tables again before it faults */
        walk(v->vm, gpa, t);
    if (!t->valid || (write && !t->writable))
        return NULL;
    return (char *)pa_to_va(t->pa) + (gpa & (PAGE_SIZE - 1));
}

static bool is_stale(struct vm *vm, const struct fake_tlb *t)
{
    struct fake_tlb now;
    return t->valid && (!walk(vm, t->gpa, &now) || now.pa != t->pa || now.writable < t->writable);
}

/* Two entries later nothing that was asked for is still on its way. */
static void let_it_enter(struct vcpu *v)
{
    unsigned from = atomic_load(&fake_cpu(v)->entries);
    uint64_t until = clock_ns() + 5000000000ull;
    while (atomic_load(&fake_cpu(v)->entries) - from < 2 && clock_ns() < until)
        sched_yield();
}

const char *fake_tlb_stale(struct vm *vm)
{
    static char text[128];
    for (unsigned i = 0; i < vm->p.ncpus; i++) {
        struct vcpu *v = vm->vcpu[i];
        const struct fake_tlb *tlb = fake_cpu(v)->tlb;
        for (unsigned k = 0; k < FAKE_TLB; k++) {
            struct fake_tlb t = tlb[k];
            if (!is_stale(vm, &t))
                continue;
            let_it_enter(v);
            if (memcmp(&t, &tlb[k], sizeof t) || !is_stale(vm, &t))
                continue;
            snprintf(text, sizeof text, "vCPU %u still has a translation of %llx that the tables no longer give", i, (unsigned long long)t.gpa);
            return text;
        }
    }
    return NULL;
}

/* ---- hv_ops ---- */

static int fake_probe(char *err, size_t errlen) { return 0; }
static int fake_cpu_on(unsigned cpu, char *err, size_t errlen) { return 0; }
static void fake_cpu_off(unsigned cpu) {}

static int fake_vm_init(struct vm *vm)
{
    vm->hv = kzalloc(sizeof(struct fake_vm));
    return vm->hv ? 0 : -ENOMEM;
}

static void fake_vm_fini(struct vm *vm) { kfree(vm->hv); }

static void fake_reset(struct vcpu *v)
{
    *fake_cpu(v) = (struct fake_cpu){ .offered = -1 };
}

static int fake_vcpu_init(struct vcpu *v)
{
    v->hv = kzalloc(sizeof(struct fake_cpu));
    if (!v->hv)
        return -ENOMEM;
    fake_reset(v);
    return 0;
}

static void fake_vcpu_fini(struct vcpu *v) { kfree(v->hv); }

static void fake_load(struct vcpu *v, bool migrated)
{
    fake_cpu(v)->loads++;
    if (migrated)
        tlb_forget(fake_cpu(v));
}

static void fake_put(struct vcpu *v) { fake_cpu(v)->puts++; }

static void fake_run(struct vcpu *v)
{
    struct fake_cpu *f = fake_cpu(v);
    struct exit *e = &v->exit;
    memset(e, 0, sizeof *e);
    e->kind = EXIT_INTERNAL;
    atomic_add(&f->entries, 1);
    if (f->flush_next)
        tlb_forget(f);
    if (fake_vm(v->vm)->script)
        fake_vm(v->vm)->script(v, f, e, fake_vm(v->vm)->arg);
    f->injected.valid = false;
    if (v->reinject.valid)
        atomic_or(&v->requests, REQ_EVENT);
}

static void fake_get(struct vcpu *v, struct cpu_state *st, unsigned groups) { *st = fake_cpu(v)->st; }
static void fake_code(struct vcpu *v, struct cpu_state *st) { *st = fake_cpu(v)->st; }
static void fake_seg(struct vcpu *v, enum seg s, struct cpu_seg *seg) { *seg = fake_cpu(v)->st.seg[s]; }
static void fake_set(struct vcpu *v, const struct cpu_state *st, unsigned groups) { fake_cpu(v)->st = *st; }

static void fake_inject(struct vcpu *v, const struct event_info *ev)
{
    struct fake_cpu *f = fake_cpu(v);
    if (ev->type == EVENT_INTR) {
        f->offered = ev->valid ? ev->vector : -1;
        f->offered_extint = ev->valid && (v->irq_offered & IRQ_EXTINT);
        return;
    }
    f->injected = *ev;
    if (ev->type == EVENT_NMI)
        f->nmi_blocked = true;
}

static bool fake_can(struct vcpu *v, enum event_type type)
{
    const struct fake_cpu *f = fake_cpu(v);
    return !f->injected.valid && (type != EVENT_NMI || !f->nmi_blocked);
}

static void fake_window(struct vcpu *v, unsigned windows) {}

static void fake_flush(struct vcpu *v, enum hv_flush what)
{
    struct fake_cpu *f = fake_cpu(v);
    if (what == FLUSH_NESTED)
        f->flushes_nested++;
    else
        f->flushes_linear++;
    f->flush_next = true;
}

static void fake_tsc(struct vcpu *v, int64_t offset) { fake_cpu(v)->tsc_offset = offset; }
static void fake_pass(struct vm *vm, enum hv_pass p, uint32_t what, bool pass) {}
static void fake_dump(struct vcpu *v, void (*print)(void *, const char *), void *arg) { print(arg, "  fake CPU"); }

static const struct hv_ops fake_ops = {
    .name = "fake", .probe = fake_probe, .cpu_on = fake_cpu_on, .cpu_off = fake_cpu_off, .vm_init = fake_vm_init, .vm_fini = fake_vm_fini,
    .vcpu_init = fake_vcpu_init, .vcpu_fini = fake_vcpu_fini, .vcpu_reset = fake_reset, .load = fake_load, .put = fake_put, .run = fake_run,
    .get_state = fake_get, .set_state = fake_set, .get_code = fake_code, .get_seg = fake_seg, .inject = fake_inject, .can_inject = fake_can, .want_window = fake_window, .flush = fake_flush,
    .set_tsc = fake_tsc, .set_pass = fake_pass, .dump = fake_dump,
};

static void host_cpuid(uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(sub));
}

void fake_hv_setup(size_t mem, unsigned ncpus)
{
    memset(&fake, 0, sizeof fake);
    fake.len = mem;
    fake.arena = mmap(NULL, mem + PAGE_2M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT(fake.arena != MAP_FAILED);
    /* Physical addresses begin at 2 MiB: the first is never 0. */
    physmap_base = ALIGN_UP((uintptr_t)fake.arena, PAGE_2M) - PAGE_2M;
    host_set_ncpus(ncpus);
    page_init();
    page_add_range(PAGE_2M, mem);
    vmm_host = (struct vmm_host){
        .tsc_hz = 1000000000, .phys_bits = 40, .xcr0 = 7, .kick = kick, .cpuid = host_cpuid, .nested = &pt_npt, .max_leaf = ORDER_2M, .tsc_stable = true,
    };
    hv = &fake_ops;
}

void fake_hv_teardown(void)
{
    hv = NULL;
    munmap(fake.arena, fake.len + PAGE_2M);
    fake.arena = NULL;
}
