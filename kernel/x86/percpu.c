#include <string.h>
#include "kernel/x86/cpu.h"
#include "kernel/x86/percpu.h"

static struct percpu boot_percpu;
struct percpu *percpu_table[MAX_CPUS];
unsigned percpu_count;

void percpu_load(struct percpu *p)
{
    wrmsr(MSR_GS_BASE, (uint64_t)p);
    wrmsr(MSR_KERNEL_GS_BASE, (uint64_t)p);
}

/* The canary changes here, so neither this function nor its callers may carry a stack guard. */
__attribute__((optimize("no-stack-protector"))) void percpu_init_boot(void)
{
    struct percpu *p = &boot_percpu;
    p->self = p;
    p->online = true;

    p->armed_ns = ~0ull;
    /* Good enough before the CSPRNG: one boot's value, never told to anybody; the low byte is zero so that no string copy can write it. */
    p->canary = (rdtsc() * 0x9e3779b97f4a7c15ull) & ~0xffull;
    percpu_table[0] = p;
    percpu_count = 1;
    percpu_load(p);
}

struct percpu *percpu_create(uint32_t apic_id, uint32_t acpi_uid)
{
    if (percpu_count == MAX_CPUS)
        return NULL;
    struct percpu *p = kmalloc_aligned(sizeof(*p), 64);
    if (!p)
        return NULL;
    memset(p, 0, sizeof(*p));
    p->self = p;
    p->cpu = percpu_count;
    p->apic_id = apic_id;
    p->acpi_uid = acpi_uid;

    p->armed_ns = ~0ull;
    p->canary = boot_percpu.canary;
    percpu_table[percpu_count] = p;
    atomic_store(&percpu_count, percpu_count + 1);
    return p;
}

void percpu_drop_last(void)
{
    percpu_table[percpu_count - 1] = NULL;
    percpu_count--;
}
