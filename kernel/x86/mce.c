#include "kernel/x86/mce.h"

#include "kernel/lib/port.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/percpu.h"

enum { NOTES = 16 };

struct error { unsigned bank; uint64_t status, addr; bool resumable; };

static struct {
    bool (*page_lost)(hpa_t);
    hpa_t note[NOTES];          /* page | 1: to be told; written from any context */
    struct work work;
} mce;

/* The worst error of this CPU's banks, which are cleared for the next; status 0: none, the exception was for another CPU. */
static struct error take(void)
{
    const uint64_t severe = MC_STATUS_UC | MC_STATUS_PCC | MC_STATUS_AR;
    struct error e = { 0 };
    uint64_t cap = 0, status, global = 0;
    rdmsr_safe(MSR_MCG_CAP, &cap);
    rdmsr_safe(MSR_MCG_STATUS, &global);
    for (unsigned i = 0; i < (cap & MCG_CAP_COUNT); i++) {
        if (!rdmsr_safe(MSR_MC0_STATUS + 4 * i, &status) || !(status & MC_STATUS_VAL))
            continue;
        if (!e.status || (status & severe) > (e.status & severe)) {
            e.status = status, e.bank = i, e.addr = 0;
            if (status & MC_STATUS_ADDRV)
                rdmsr_safe(MSR_MC0_STATUS + 4 * i + 1, &e.addr);
        }
        wrmsr_safe(MSR_MC0_STATUS + 4 * i, 0);
    }
    e.resumable = (global & MCG_STATUS_RIPV) && !(e.status & MC_STATUS_PCC);
    wrmsr_safe(MSR_MCG_STATUS, 0);
    return e;
}

static bool note(hpa_t page)
{
    for (unsigned i = 0; i < NOTES; i++) {
        hpa_t none = 0;
        if (atomic_load(&mce.note[i]) == (page | 1) || atomic_cas(&mce.note[i], &none, page | 1))
            return true;
    }
    return false;
}

/* No log before the panic, whose lock may be held by what was interrupted. */
__attribute__((noreturn)) static void give_up(const struct trap_frame *f, const struct error *e)
{
    if (f)
        panic_trap(f, "machine check on CPU %u: bank %u, status %#llx, address %#llx%s: the hardware is at fault", cpu_index(), e->bank,
                   (unsigned long long)e->status, (unsigned long long)e->addr, e->status & MC_STATUS_PCC ? ", processor context corrupt" : "");
    panic("machine check on CPU %u under a guest: bank %u, status %#llx, processor context corrupt: the hardware is at fault", cpu_index(), e->bank,
          (unsigned long long)e->status);
}

/* SDM "Software Recoverable Action Required errors": what used bad data would use it again on its return, for ever. */
void mce_trap(struct trap_frame *f)
{
    struct error e = take();
    e.resumable &= !(e.status & MC_STATUS_AR);
    bool elsewhere = e.resumable && !e.status;
    if (elsewhere || (e.resumable && (e.status & MC_STATUS_ADDRV) && mce.page_lost && note(ALIGN_DOWN(e.addr, PAGE_SIZE))))
        return;
    give_up(f, &e);
}

bool mce_in_guest(void)
{
    struct error e = take();
    if (e.status & MC_STATUS_PCC)
        give_up(NULL, &e);
    if (!(e.status & MC_STATUS_ADDRV) || !mce.page_lost || !note(ALIGN_DOWN(e.addr, PAGE_SIZE)))
        return e.resumable && !e.status;
    work_queue(&mce.work);
    return e.resumable;
}

static void tell(struct work *w)
{
    for (unsigned i = 0; i < NOTES; i++) {
        hpa_t page = atomic_xchg(&mce.note[i], (hpa_t)0) & ~1ull;
        if (page && !mce.page_lost(page))
            panic("memory error at %llx, which is the host's own", (unsigned long long)page);
    }
}

void mce_set_owner(bool (*page_lost)(hpa_t))
{
    work_init(&mce.work, tell);
    atomic_store(&mce.page_lost, page_lost);
}

void mce_poll(void)
{
    for (unsigned i = 0; i < NOTES; i++)
        if (unlikely(atomic_load_relaxed(&mce.note[i]))) {
            work_queue(&mce.work);
            return;
        }
}
