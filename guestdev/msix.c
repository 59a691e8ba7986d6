#include "guestdev/msix.h"

#include <errno.h>
#include <string.h>

static unsigned msix_ctrl(const struct msix *m)
{
    return atomic_load_relaxed((const uint16_t *)(const void *)&m->f->cfg[m->cap + PCI_MSIX_CTRL]);
}

static void send_message(struct pci_func *f, uint64_t addr, uint32_t data)
{
    const struct msi_wire *w = &pci_wires(f->bus)->msi;
    if (w->send)
        w->send(w->arg, addr, data);
}

void msix_init(struct msix *m, struct pci_func *f, unsigned n, unsigned bar, uint32_t table_off, uint32_t pba_off)
{
    ASSERT(n >= 1 && n <= MSIX_MAX);
    memset(m, 0, sizeof *m);
    m->f = f;
    m->n = n;
    m->cap = (uint8_t)pci_add_cap(f, PCI_CAP_ID_MSIX, PCI_MSIX_CAP_LEN);
    pci_put16(f->cfg + m->cap + PCI_MSIX_CTRL, (uint16_t)(n - 1));
    pci_put16(f->wmask + m->cap + PCI_MSIX_CTRL, PCI_MSIX_ENABLE | PCI_MSIX_MASK_ALL);
    pci_put32(f->cfg + m->cap + PCI_MSIX_TABLE, table_off | bar);
    pci_put32(f->cfg + m->cap + PCI_MSIX_PBA, pba_off | bar);
    msix_reset(m);
}

void msix_reset(struct msix *m)
{
    spin_lock(&m->lock);
    memset(m->table, 0, sizeof m->table);
    for (unsigned i = 0; i < m->n; i++)
        m->table[i].ctrl = PCI_MSIX_ENTRY_MASKED;
    m->pending = 0;
    spin_unlock(&m->lock);
}

bool msix_enabled(const struct msix *m)
{
    return msix_ctrl(m) & PCI_MSIX_ENABLE;
}

/* May vector v leave now?  Lock held. */
static bool msix_open(const struct msix *m, unsigned v)
{
    return (msix_ctrl(m) & (PCI_MSIX_ENABLE | PCI_MSIX_MASK_ALL)) == PCI_MSIX_ENABLE && !(m->table[v].ctrl & PCI_MSIX_ENTRY_MASKED) &&
           pci_can_dma(m->f);
}

static void msix_emit(struct msix *m, unsigned v)
{
    const struct pci_msix_entry *e = &m->table[v];
    send_message(m->f, (uint64_t)e->addr_hi << 32 | e->addr_lo, e->data);
}

static void msix_flush(struct msix *m)
{
    for (uint64_t left = m->pending; left; left &= left - 1) {
        unsigned v = (unsigned)__builtin_ctzll(left);
        if (!msix_open(m, v))
            continue;
        m->pending &= ~BIT(v);
        msix_emit(m, v);
    }
}

void msix_send(struct msix *m, unsigned v)
{
    if (v >= m->n)
        return;
    spin_lock(&m->lock);
    if (likely(msix_open(m, v)))
        msix_emit(m, v);
    else if (msix_enabled(m))
        m->pending |= BIT(v);
    spin_unlock(&m->lock);
}

void msix_written(struct msix *m, unsigned off, unsigned size)
{
    if (!pci_touches(off, size, m->cap + PCI_MSIX_CTRL, 2) && !pci_touches(off, size, PCI_COMMAND, 2))
        return;
    spin_lock(&m->lock);
    if (!msix_enabled(m))
        m->pending = 0;
    msix_flush(m);
    spin_unlock(&m->lock);
}

static void table_write(struct msix *m, uint64_t off, unsigned size, uint64_t data)
{
    uint32_t *word = (uint32_t *)(void *)m->table + off / 4;
    word[0] = (uint32_t)data;
    if (size == 8)
        word[1] = (uint32_t)(data >> 32);
    struct pci_msix_entry *e = &m->table[off / 16];
    e->ctrl &= PCI_MSIX_ENTRY_MASKED;
    e->addr_lo &= ~3u;
    msix_flush(m);
}

/* Aligned dwords and qwords only (6.8.2); anything else reads all ones and writes nothing. */
int msix_table_io(void *dev, struct io *io)
{
    struct msix *m = dev;
    if ((io->size != 4 && io->size != 8) || io->off % io->size || io->off + io->size > m->n * sizeof m->table[0])
        return -EINVAL;
    spin_lock(&m->lock);
    if (io->write)
        table_write(m, io->off, io->size, io->data);
    else
        memcpy(&io->data, (const char *)m->table + io->off, io->size);
    spin_unlock(&m->lock);
    return 0;
}

int msix_pba_io(void *dev, struct io *io)
{
    struct msix *m = dev;
    if (!io->write)
        io->data = io->off < 8 ? READ_ONCE(m->pending) >> (8 * io->off) : 0;
    return 0;
}

void msix_snap(struct msix *m, struct snap *s)
{
    snap_bytes(s, "msix.table", m->table, m->n * sizeof m->table[0]);
    snap_bytes(s, "msix.pending", &m->pending, sizeof m->pending);
    if (!snap_loading(s))
        return;
    m->pending &= ~0ull >> (64 - m->n);
    for (unsigned i = 0; i < m->n; i++) {
        m->table[i].ctrl &= PCI_MSIX_ENTRY_MASKED;
        m->table[i].addr_lo &= ~3u;
    }
}

/* ---- MSI ---- */

static uint8_t *msi_reg(const struct msi *m, unsigned off)
{
    return &m->f->cfg[m->cap + off];
}

void msi_init(struct msi *m, struct pci_func *f, unsigned nlog2)
{
    ASSERT(nlog2 <= 5);
    memset(m, 0, sizeof *m);
    m->f = f;
    m->n = 1u << nlog2;
    m->cap = (uint8_t)pci_add_cap(f, PCI_CAP_ID_MSI, PCI_MSI_PENDING_64 + 4);
    pci_put16(msi_reg(m, PCI_MSI_CTRL), (uint16_t)(PCI_MSI_64BIT | PCI_MSI_MASKBITS | nlog2 << PCI_MSI_MMC_SHIFT));
    uint8_t *mask = f->wmask + m->cap;
    pci_put16(mask + PCI_MSI_CTRL, PCI_MSI_ENABLE | 7 << PCI_MSI_MME_SHIFT);
    pci_put32(mask + PCI_MSI_ADDR_LO, ~3u);
    pci_put32(mask + PCI_MSI_ADDR_HI, ~0u);
    pci_put16(mask + PCI_MSI_DATA_64, 0xffff);
    pci_put32(mask + PCI_MSI_MASK_64, (uint32_t)(BIT(m->n) - 1));
}

void msi_reset(struct msi *m)
{
    spin_lock(&m->lock);
    m->pending = 0;
    spin_unlock(&m->lock);
}

bool msi_enabled(const struct msi *m)
{
    return *msi_reg(m, PCI_MSI_CTRL) & PCI_MSI_ENABLE;
}

/* Vectors that the guest lets us use: a power of two, never more than asked for. */
static unsigned msi_granted(const struct msi *m)
{
    unsigned n = 1u << (*msi_reg(m, PCI_MSI_CTRL) >> PCI_MSI_MME_SHIFT & 7);
    return MIN(n, m->n);
}

/* The guest's registers change under the bus's mutex while we read them; a torn message is what real hardware gives a driver that rewrites
 * address and data with MSI enabled. */
static void msi_flush(struct msi *m)
{
    if (!msi_enabled(m) || !pci_can_dma(m->f))
        return;
    uint32_t ready = m->pending & ~pci_get32(msi_reg(m, PCI_MSI_MASK_64));
    uint64_t addr = pci_get32(msi_reg(m, PCI_MSI_ADDR_LO)) | (uint64_t)pci_get32(msi_reg(m, PCI_MSI_ADDR_HI)) << 32;
    uint32_t data = pci_get16(msi_reg(m, PCI_MSI_DATA_64)) & ~(msi_granted(m) - 1);
    m->pending &= ~ready;
    for (; ready; ready &= ready - 1)
        send_message(m->f, addr, data | (uint32_t)__builtin_ctz(ready));
}

void msi_send(struct msi *m, unsigned vector)
{
    spin_lock(&m->lock);
    if (msi_enabled(m)) {
        m->pending |= 1u << MIN(vector, msi_granted(m) - 1);
        msi_flush(m);
        pci_put32(msi_reg(m, PCI_MSI_PENDING_64), m->pending);
    }
    spin_unlock(&m->lock);
}

void msi_written(struct msi *m, unsigned off, unsigned size)
{
    if (!pci_touches(off, size, m->cap, PCI_MSI_PENDING_64) && !pci_touches(off, size, PCI_COMMAND, 2))
        return;
    spin_lock(&m->lock);
    if (!msi_enabled(m))
        m->pending = 0;
    msi_flush(m);
    pci_put32(msi_reg(m, PCI_MSI_PENDING_64), m->pending);
    spin_unlock(&m->lock);
}

void msi_snap(struct msi *m, struct snap *s)
{
    snap_bytes(s, "msi.pending", &m->pending, sizeof m->pending);
    if (snap_loading(s))
        m->pending &= (uint32_t)(BIT(m->n) - 1);
}
