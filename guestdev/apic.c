#include "guestdev/apic.h"
#include "guestdev/lapic.h"

#include <string.h>

void apic_fabric_init(struct apic_fabric *f)
{
    memset(f, 0, sizeof *f);
    memset(f->by_id, -1, sizeof f->by_id);
}

static bool broadcast(const struct apic_msg *m) { return m->dest == (m->wide ? 0xffffffffu : 0xffu); }

static bool matches(const struct apic_fabric *f, unsigned i, const struct apic_msg *m)
{
    if (m->logical)
        return lapic_match_logical(f->cpu[i], m->dest, m->wide);
    return m->dest < 256 && f->by_id[m->dest] == (int)i;
}

/* Lowest TPR class wins; among equals the search starts at a CPU chosen by the vector, so that devices spread and each stays where its cache is. */
static void send_lowest(struct apic_fabric *f, const struct apic_msg *m, uint32_t targets)
{
    struct lapic *best = NULL;
    for (unsigned k = 0; k < f->ncpus; k++) {
        unsigned i = (m->vector + k) % f->ncpus;
        struct lapic *l = f->cpu[i];
        if ((targets & BIT(i)) && lapic_sw_enabled(l) && (!best || lapic_priority(l) < lapic_priority(best)))
            best = l;
    }
    if (best)
        lapic_deliver(best, APIC_FIXED, m->vector, m->level);
}

static void send_to(struct apic_fabric *f, const struct apic_msg *m, uint32_t targets)
{
    if (m->delivery == APIC_LOWEST) {
        send_lowest(f, m, targets);
        return;
    }
    for (; targets; targets &= targets - 1)
        lapic_deliver(f->cpu[__builtin_ctz(targets)], m->delivery, m->vector, m->level);
}

static uint32_t all_cpus(const struct apic_fabric *f) { return BIT(f->ncpus) - 1; }

static uint32_t find_targets(const struct apic_fabric *f, const struct apic_msg *m)
{
    uint32_t targets = 0;
    if (broadcast(m))
        return all_cpus(f);
    for (unsigned i = 0; i < f->ncpus; i++)
        if (matches(f, i, m))
            targets |= BIT(i);
    return targets;
}

void apic_send(void *fabric, const struct apic_msg *m)
{
    struct apic_fabric *f = fabric;
    if (!m->logical && !broadcast(m)) {
        int i = m->dest < 256 ? f->by_id[m->dest] : -1;
        if (i >= 0)
            lapic_deliver(f->cpu[i], m->delivery == APIC_LOWEST ? APIC_FIXED : m->delivery, m->vector, m->level);
        return;
    }
    send_to(f, m, find_targets(f, m));
}

void apic_msi(void *fabric, uint64_t addr, uint32_t data)
{
    if (addr >> 20 != MSI_ADDR_BASE >> 20)
        return;
    struct apic_msg m = {
        .dest = (addr & MSI_ADDR_DEST) >> MSI_ADDR_DEST_SHIFT,
        .delivery = data & MSI_DATA_DELIVERY,
        .vector = data & MSI_DATA_VECTOR,
        .logical = addr & MSI_ADDR_LOGICAL,
        .level = data & MSI_DATA_LEVEL,
    };
    if (addr & MSI_ADDR_REDIRECT && m.delivery == APIC_FIXED)
        m.delivery = APIC_LOWEST;
    apic_send(fabric, &m);
}

static uint32_t self_bit(const struct apic_fabric *f, const struct lapic *l)
{
    for (unsigned i = 0; i < f->ncpus; i++)
        if (f->cpu[i] == l)
            return BIT(i);
    return 0;
}

void apic_send_ipi(struct apic_fabric *f, struct lapic *from, uint32_t icr, uint32_t dest, bool wide)
{
    struct apic_msg m = {
        .dest = dest, .delivery = icr & APIC_DELIVERY, .vector = icr & 0xff, .logical = icr & ICR_LOGICAL, .wide = wide,
    };
    /* INIT level de-assert only loads arbitration IDs, on CPUs that have them; ExtINT and mode 3 are reserved in an ICR. */
    if ((m.delivery == APIC_INIT && (icr & (ICR_LEVEL | ICR_ASSERT)) == ICR_LEVEL) || m.delivery == APIC_EXTINT || m.delivery == (3u << 8))
        return;
    switch (icr & ICR_SHORTHAND) {
    case 0:
        apic_send(f, &m);
        break;
    case ICR_SELF:
        if (m.delivery == APIC_FIXED)           /* all other modes with "self" are invalid */
            lapic_deliver(from, APIC_FIXED, m.vector, false);
        break;
    case ICR_ALL:
        if (m.delivery == APIC_FIXED)
            send_to(f, &m, all_cpus(f));
        break;
    default:
        send_to(f, &m, all_cpus(f) & ~self_bit(f, from));
    }
}
