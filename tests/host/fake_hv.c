#include "tests/host/fake_hv.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/host/port_host.h"

enum { FAKE_TLB = 64, FAKE_CPUS = 64 };

struct fake_vm { fake_script *script; void *arg; };
struct tlb_entry { const struct vm *vm; gpa_t gpa; hpa_t pa; };

static struct {
    void *arena;
    size_t len;
    unsigned kicks;
    uint32_t kicked[FAKE_CPUS];
    struct tlb_entry tlb[FAKE_CPUS][FAKE_TLB];
} fake;

static struct fake_vm *fake_vm(struct vm *vm) { return vm->hv; }
struct fake_cpu *fake_cpu(struct vcpu *v) { return v->hv; }
unsigned fake_kicks(void) { return atomic_load(&fake.kicks); }

void fake_hv_script(struct vm *vm, fake_script *fn, void *arg)
{
    fake_vm(vm)->script = fn;
    fake_vm(vm)->arg = arg;
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

static void tlb_forget(unsigned cpu, const struct vm *vm)
{
    for (unsigned i = 0; i < FAKE_TLB; i++)
        if (!vm || fake.tlb[cpu][i].vm == vm)
            fake.tlb[cpu][i] = (struct tlb_entry){ 0 };
}

void *fake_tlb_access(struct vcpu *v, gpa_t gpa)
{
    struct tlb_entry *t = &fake.tlb[v->host_cpu % FAKE_CPUS][gpa / PAGE_SIZE % FAKE_TLB];
    unsigned order;
    if (t->vm != v->vm || t->gpa != ALIGN_DOWN(gpa, PAGE_SIZE)) {
        uint64_t leaf = ptab_lookup(&v->vm->nested, gpa, &order);
        if (!leaf)
            return NULL;
        hpa_t base = leaf & BITS(51, 12) & ~((PAGE_SIZE << order) - 1);
        *t = (struct tlb_entry){ v->vm, ALIGN_DOWN(gpa, PAGE_SIZE), base + (ALIGN_DOWN(gpa, PAGE_SIZE) & ((PAGE_SIZE << order) - 1)) };
    }
    struct gmem_leaf now;
    if (gmem_leaf(&v->vm->gmem, gpa, &now) || now.pa + (t->gpa & ((PAGE_SIZE << now.order) - 1)) != t->pa)
        panic("fake_hv: CPU %u uses a stale translation of %llx", v->host_cpu, (unsigned long long)gpa);
    return (char *)pa_to_va(t->pa) + (gpa & (PAGE_SIZE - 1));
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

static void fake_vm_fini(struct vm *vm)
{
    for (unsigned c = 0; c < FAKE_CPUS; c++)
        tlb_forget(c, vm);
    kfree(vm->hv);
}

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
static void fake_load(struct vcpu *v, bool migrated) { fake_cpu(v)->loads++; }
static void fake_put(struct vcpu *v) { fake_cpu(v)->puts++; }

static void fake_run(struct vcpu *v, struct exit *e)
{
    struct fake_cpu *f = fake_cpu(v);
    memset(e, 0, sizeof *e);
    e->kind = EXIT_INTERNAL;
    if (!vcpu_may_enter(v))
        return;
    f->entries++;
    e->rip = v->rip;
    if (fake_vm(v->vm)->script)
        fake_vm(v->vm)->script(v, f, e, fake_vm(v->vm)->arg);
    f->injected.valid = false;
    vcpu_left_guest(v);
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
    tlb_forget(v->host_cpu % FAKE_CPUS, v->vm);
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
