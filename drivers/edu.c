#include "drivers/edu.h"

#include <errno.h>
#include <string.h>

#include "drivers/dma.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/x86/cpu.h"

enum {                          /* registers in BAR 0 */
    EDU_ID = 0x00, EDU_LIVENESS = 0x04, EDU_FACTORIAL = 0x08, EDU_STATUS = 0x20, EDU_IRQ_STATUS = 0x24, EDU_IRQ_RAISE = 0x60, EDU_IRQ_ACK = 0x64,
    EDU_DMA_SRC = 0x80, EDU_DMA_DST = 0x88, EDU_DMA_COUNT = 0x90, EDU_DMA_CMD = 0x98,
};
#define EDU_ID_MASK         0xff0000ffu
#define EDU_ID_VALUE        0x010000edu
#define EDU_STATUS_BUSY     BIT(0)
#define EDU_STATUS_IRQ      BIT(7)      /* interrupt when the factorial is done */
#define EDU_IRQ_FACTORIAL   BIT(0)
#define EDU_IRQ_DMA         BIT(8)
#define EDU_DMA_START       BIT(0)
#define EDU_DMA_FROM_DEVICE BIT(1)
#define EDU_DMA_IRQ         BIT(2)
enum { EDU_BUFFER = 0x40000, EDU_BUFFER_LEN = 2048 /* of 4096: QEMU refuses a transfer that ends at the last byte */ };
#define EDU_DMA_MASK        0x0fffffffull       /* 28 bits unless QEMU is told otherwise */
#define WAIT_NS             1000000000ull

struct edu { struct pci_dev *pci; volatile uint8_t *regs; struct event done; uint32_t irqs; bool said_polling; };

static uint32_t rd(struct edu *e, unsigned reg) { return mmio_read32(e->regs + reg); }
static void wr(struct edu *e, unsigned reg, uint32_t v) { mmio_write32(e->regs + reg, v); }

static enum irq_result edu_irq(void *arg)
{
    struct edu *e = arg;
    uint32_t why = rd(e, EDU_IRQ_STATUS);
    if (!why)
        return IRQ_NOT_MINE;
    wr(e, EDU_IRQ_ACK, why);
    atomic_add(&e->irqs, 1);
    event_post(&e->done);
    return IRQ_HANDLED;
}

/* Waits for the interrupt; work that is done without one is noticed all the same. */
static int wait(struct edu *e, unsigned reg, uint32_t busy)
{
    if (event_wait_until(&e->done, clock_ns() + WAIT_NS))
        return 0;
    if (rd(e, reg) & busy)
        return -ETIMEDOUT;
    wr(e, EDU_IRQ_ACK, rd(e, EDU_IRQ_STATUS));
    if (!e->said_polling)
        log_warn("edu", "no interrupt arrives by %s: polled", pci_irq_name(e->pci));
    e->said_polling = true;
    return 0;
}

static int factorial(struct edu *e)
{
    wr(e, EDU_STATUS, EDU_STATUS_IRQ);
    wr(e, EDU_FACTORIAL, 10);
    int err = wait(e, EDU_STATUS, EDU_STATUS_BUSY);
    return err ? err : rd(e, EDU_FACTORIAL) == 3628800 ? 0 : -EIO;
}

static void wr64(struct edu *e, unsigned reg, uint64_t v)
{
    wr(e, reg, (uint32_t)v);
    wr(e, reg + 4, (uint32_t)(v >> 32));
}

static int transfer(struct edu *e, uint64_t src, uint64_t dst, uint32_t dir)
{
    wr64(e, EDU_DMA_SRC, src);
    wr64(e, EDU_DMA_DST, dst);
    wr64(e, EDU_DMA_COUNT, EDU_BUFFER_LEN);
    wr64(e, EDU_DMA_CMD, EDU_DMA_START | dir | EDU_DMA_IRQ);
    return wait(e, EDU_DMA_CMD, EDU_DMA_START);
}

/* A pattern into the device and back to another place. */
static int dma(struct edu *e)
{
    uint64_t bus;
    uint32_t *out = dma_alloc(e->pci, 2 * EDU_BUFFER_LEN, &bus), *in = out + EDU_BUFFER_LEN / 4;
    if (!out)
        return -ENOMEM;
    for (uint32_t i = 0; i < EDU_BUFFER_LEN / 4; i++)
        out[i] = i * 2654435761u;
    int err = transfer(e, bus, EDU_BUFFER, 0);
    if (!err)
        err = transfer(e, EDU_BUFFER, bus + EDU_BUFFER_LEN, EDU_DMA_FROM_DEVICE);
    if (!err && memcmp(out, in, EDU_BUFFER_LEN))
        err = -EIO;
    dma_free(e->pci, out, 2 * EDU_BUFFER_LEN);
    return err;
}

static int run(struct edu *e, unsigned mode, bool with_dma)
{
    void *args[] = { e };
    if (pci_irq_enable(e->pci, mode, 1, edu_irq, args, "edu") < 0)
        return -ENODEV;
    uint32_t before = e->irqs;
    int err = factorial(e);
    if (!err && with_dma)
        err = dma(e);
    bool by_irq = e->irqs != before;
    log_info("edu", "%s: %s%s", pci_irq_name(e->pci), err ? "failed" : "works", err || by_irq ? "" : ", without interrupts");
    pci_irq_disable(e->pci);
    return err;
}

static int edu_probe(struct pci_dev *d)
{
    static struct edu e;        /* one is enough for a test */
    if (e.pci || pci_claim(d, "edu"))
        return -EBUSY;
    e.pci = d;
    d->dma_mask = EDU_DMA_MASK;
    event_init(&e.done);
    e.regs = pci_map_bar(d, 0, PT_UC);
    if (!e.regs || (rd(&e, EDU_ID) & EDU_ID_MASK) != EDU_ID_VALUE)
        return -ENODEV;
    wr(&e, EDU_LIVENESS, 0x12345678);
    if (rd(&e, EDU_LIVENESS) != ~0x12345678u)
        return -EIO;
    int msi = run(&e, PCI_IRQ_MSI, true), intx = run(&e, PCI_IRQ_INTX, true);
    log_info("edu", "driver test: MSI %s, INTx %s, DMA %s", msi ? "failed" : "ok", intx ? "failed" : "ok", msi || intx ? "failed" : "ok");
    return 0;
}

static const struct pci_id ids[] = { { 0x1234, 0x11e8, 0 }, { 0 } };
const struct pci_driver edu_driver = { "edu", ids, edu_probe };
