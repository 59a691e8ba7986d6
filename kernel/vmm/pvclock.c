/*
 * The paravirtual clock that Linux and the BSDs know as kvmclock: the guest reads time from its TSC and a small page.  Linux Documentation/virt/kvm/x86/msr.rst,
 * MSR_KVM_SYSTEM_TIME_NEW and MSR_KVM_WALL_CLOCK_NEW.
 */
#include "kernel/lib/muldiv.h"
#include "kernel/vmm/vcpu.h"

enum { PVCLOCK_TSC_STABLE = 1 };

struct pvclock_time {
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags, pad[2];
};
_Static_assert(sizeof(struct pvclock_time) == 32, "guest ABI");
struct pvclock_wall { uint32_t version, sec, nsec; };

/* ns = ((tsc << shift) * mul) >> 32, mul as large as 32 bits allow. */
static void tsc_scale(uint64_t hz, uint32_t *mul, int8_t *shift)
{
    uint64_t target = 1000000000ull, base = hz;
    int s = 0;
    while (base > target * 2)
        base >>= 1, s--;
    while (base <= target && s < 31)
        base <<= 1, s++;
    /* now base in (1e9, 2e9]: the quotient fits in 32 bits */
    *mul = (uint32_t)mul_div(target, 1ull << 32, base);
    *shift = (int8_t)s;
}

/* The version is odd while the page changes; the guest reads again when it saw an odd or a changed one. */
void pvclock_publish(struct vcpu *v)
{
    struct pvclock *c = &v->pvclock;
    struct gmem *g = &v->vm->gmem;
    if (!c->on)
        return;
    struct pvclock_time t = { .version = c->version + 1 };
    tsc_scale(vmm_host.tsc_hz, &t.tsc_to_system_mul, &t.tsc_shift);
    t.flags = vmm_host.tsc_stable ? PVCLOCK_TSC_STABLE : 0;
    preempt_disable();
    t.tsc_timestamp = vcpu_tsc(v);
    t.system_time = vmclock_now(&v->vm->clock);
    preempt_enable();
    gmem_store(g, c->system, 4, t.version);
    gmem_write(g, c->system + 4, (char *)&t + 4, sizeof t - 4);
    c->version += 2;
    gmem_store(g, c->system, 4, c->version);
}

/* Wall-clock time at which the VM's clock was 0. */
void pvclock_wall(struct vcpu *v, gpa_t at)
{
    uint64_t boot = clock_utc_ns() - vmclock_now(&v->vm->clock);
    struct pvclock_wall w = { 2, (uint32_t)(boot / 1000000000), (uint32_t)(boot % 1000000000) };
    gmem_write(&v->vm->gmem, at & ~3ull, &w, sizeof w);
}

void pvclock_page(struct vcpu *v, uint64_t val)
{
    v->pvclock.on = val & 1;
    v->pvclock.system = val & ~3ull;
    pvclock_publish(v);
}
