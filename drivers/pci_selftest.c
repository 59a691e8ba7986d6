/* Intel 82574L Gigabit Ethernet Controller datasheet, "Interrupts", "MSI-X and Vectors": IVAR maps five causes to vectors, ICS sets causes. */
#include "drivers/pci_selftest.h"

#include "drivers/pci.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/x86/cpu.h"

enum { NIC_VENDOR = 0x8086, NIC_DEVICE = 0x10d3, NIC_ICR = 0xc0, NIC_ICS = 0xc8, NIC_IMS = 0xd0, NIC_IMC = 0xd8, NIC_IVAR = 0xe4, CAUSES = 5 };
#define NIC_CAUSE(n)    BIT(20 + (n))   /* receive queues 0, 1, transmit queues 0, 1, other */
#define NIC_IVAR_VALID  BIT(3)          /* of each 4-bit field */
#define WAIT_NS         500000000ull
#define QUIET_NS        20000000ull

struct cause { volatile uint8_t *regs; uint32_t bit, count, cpu; };

static enum irq_result nic_irq(void *arg)
{
    struct cause *c = arg;
    if (!(mmio_read32(c->regs + NIC_ICR) & c->bit))     /* clears what was set, with MSI and INTx */
        return IRQ_NOT_MINE;
    mmio_write32(c->regs + NIC_ICR, c->bit);
    c->cpu = port_cpu();
    atomic_add(&c->count, 1);
    return IRQ_HANDLED;
}

/* Sets cause n; true when exactly its handler ran. */
static bool fires(struct cause *causes, unsigned n, unsigned vectors)
{
    struct cause *c = &causes[MIN(n, vectors - 1)];
    uint32_t before = 0, after = 0;
    for (unsigned i = 0; i < CAUSES; i++)
        before += causes[i].count;
    uint32_t own = c->count;
    c->bit = (uint32_t)NIC_CAUSE(n);
    mmio_write32(c->regs + NIC_ICS, c->bit);
    uint64_t limit = clock_ns() + WAIT_NS;
    while (atomic_load(&c->count) == own && clock_ns() < limit)
        thread_sleep_until(clock_ns() + 1000000);
    for (unsigned i = 0; i < CAUSES; i++)
        after += causes[i].count;
    return c->count == own + 1 && after == before + 1;
}

static bool run(struct pci_dev *d, volatile uint8_t *regs, enum pci_irq_mode mode)
{
    struct cause causes[CAUSES] = { 0 };
    void *args[CAUSES];
    uint32_t ivar = 0, mask = 0, cpus = 0;
    for (unsigned i = 0; i < CAUSES; i++) {
        causes[i].regs = regs;
        args[i] = &causes[i];
        ivar |= (uint32_t)(NIC_IVAR_VALID | i) << 4 * i;
        mask |= (uint32_t)NIC_CAUSE(i);
    }
    int n = pci_irq_enable(d, mode, CAUSES, nic_irq, args, "selftest");
    if (n < 0)
        return false;
    mmio_write32(regs + NIC_IMC, ~0u);
    mmio_read32(regs + NIC_ICR);
    mmio_write32(regs + NIC_IVAR, ivar);
    mmio_write32(regs + NIC_IMS, mask);
    bool ok = true;
    for (unsigned i = 0; i < CAUSES; i++) {
        ok &= fires(causes, i, (unsigned)n);
        cpus |= 1u << (causes[i].cpu & 31);
    }
    mmio_write32(regs + NIC_IMC, ~0u);
    thread_sleep_until(clock_ns() + QUIET_NS);  /* the card's interrupt throttling timers run out; QEMU asserts that MSI-X is still on then */
    log_write(ok ? LOG_INFO : LOG_ERR, "pci", "selftest: %s %s, %d vectors on %u CPUs", pci_irq_name(d), ok ? "ok" : "failed", n,
              (unsigned)__builtin_popcount(cpus));
    pci_irq_disable(d);
    return ok;
}

void pci_selftest(void)
{
    for (struct pci_dev *d = NULL; (d = pci_next(d)) != NULL; ) {
        if (d->vendor != NIC_VENDOR || d->device != NIC_DEVICE || pci_claim(d, "selftest"))
            continue;
        volatile uint8_t *regs = pci_map_bar(d, 0, PT_UC);
        bool ok = regs && run(d, regs, PCI_IRQ_MSIX) & run(d, regs, PCI_IRQ_MSI) & run(d, regs, PCI_IRQ_INTX);
        log_info("pci", "selftest: %s", ok ? "passed" : "failed");
        pci_release(d);
        return;
    }
    log_info("pci", "selftest: no 82574L network card");
}
