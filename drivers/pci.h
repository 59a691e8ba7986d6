/*
 * PCI and PCI Express functions of the host: PCI Local Bus Specification 3.0, PCI Express Base Specification 3.0, PCI Firmware Specification 3.3 (MCFG).
 *
 * pci_init() finds everything once; the list never changes afterwards.  Configuration accesses are allowed in any context (CF8h/CFCh: under an irq-safe lock).
 * A function's bus mastering is off until a driver claims it.
 */
#pragma once
#include "kernel/hw/pci.h"
#include "kernel/lib/list.h"
#include "kernel/mm/ptab.h"
#include "kernel/x86/irq.h"

enum { PCI_BARS = 6, PCI_MAX_VECTORS = 64 };

struct pci_bar { uint64_t base, len; bool io, prefetch; };      /* len 0: none; the upper half of a 64-bit BAR is none */
enum pci_irq_mode { PCI_IRQ_NONE = 0, PCI_IRQ_MSIX = 1, PCI_IRQ_MSI = 2, PCI_IRQ_INTX = 4, PCI_IRQ_ANY = 7 };

struct pci_dev {
    struct list link;                   /* in bus order */
    uint16_t seg;
    uint8_t bus, devfn;
    uint16_t vendor, device, subvendor, subdevice;
    uint32_t class_code;                /* class << 16 | subclass << 8 | interface */
    uint8_t header, irq_pin, irq_line;
    struct pci_bar bar[PCI_BARS];
    uint64_t dma_mask;                  /* highest address the device can reach; drivers widen or narrow it.  Start: 4 GiB - 1 */
    volatile uint8_t *ecam;             /* its 4 KiB, or NULL */
    const char *driver;                 /* who claimed it */
    /* Interrupts, see pci_irq_*. */
    enum pci_irq_mode irq_mode;
    unsigned nvectors;
    struct { unsigned cpu; uint8_t vector; bool used; } vec[PCI_MAX_VECTORS];
    volatile struct pci_msix_entry *msix;
    struct irq_handle *intx;
};

struct pci_id { uint16_t vendor, device; uint32_t class_code; };        /* class form: vendor 0 matches class_code instead */
struct pci_driver {
    const char *name;
    const struct pci_id *ids;           /* ends with a zero entry */
    int (*probe)(struct pci_dev *);     /* thread context; 0: claimed */
};

void pci_init(void);                    /* boot or thread context, after acpi and mmio_map */
void pci_probe_all(void);               /* thread context: every driver of pci_drivers[] at every unclaimed function */
extern const struct pci_driver *const pci_drivers[];    /* NULL-terminated: drivers/drivers.c */
struct pci_dev *pci_next(const struct pci_dev *after);  /* NULL: the first */

/* size 1, 2, 4, naturally aligned; offsets above FFh need ECAM and read as all ones without. */
uint32_t pci_read(const struct pci_dev *, unsigned reg, unsigned size);
void     pci_write(const struct pci_dev *, unsigned reg, unsigned size, uint32_t val);
static inline uint8_t  pci_read8(const struct pci_dev *d, unsigned reg) { return (uint8_t)pci_read(d, reg, 1); }
static inline uint16_t pci_read16(const struct pci_dev *d, unsigned reg) { return (uint16_t)pci_read(d, reg, 2); }
static inline uint32_t pci_read32(const struct pci_dev *d, unsigned reg) { return pci_read(d, reg, 4); }
static inline void pci_write8(const struct pci_dev *d, unsigned reg, uint8_t v) { pci_write(d, reg, 1, v); }
static inline void pci_write16(const struct pci_dev *d, unsigned reg, uint16_t v) { pci_write(d, reg, 2, v); }
static inline void pci_write32(const struct pci_dev *d, unsigned reg, uint32_t v) { pci_write(d, reg, 4, v); }
/* Offset of a capability, 0: none.  next: continue behind `after`, for capabilities that occur more than once. */
unsigned pci_cap(const struct pci_dev *, uint8_t id);
unsigned pci_cap_next(const struct pci_dev *, uint8_t id, unsigned after);

/* Claim: decoding and bus mastering on.  -EBUSY: has a driver.  Release: interrupts freed, bus mastering off. */
int  pci_claim(struct pci_dev *, const char *driver);
void pci_release(struct pci_dev *);
/* Memory BAR as kernel address; NULL: no such BAR, I/O, or no memory. */
volatile void *pci_map_bar(const struct pci_dev *, unsigned bar, enum pt_memtype);

/*
 * Interrupts.  Enable chooses the first of MSI-X, MSI, INTx that the device has and `modes` allows and returns how many vectors it got, 1 .. want (MSI and
 * INTx: 1), each on a CPU of its own as far as there are; fn(args[i]) handles vector i.  -ENODEV: none of the modes works.
 * INTx is shared: fn must say IRQ_NOT_MINE when the device did not interrupt.  Drivers that see no interrupt for work that is done poll, and say so once.
 */
int  pci_irq_enable(struct pci_dev *, unsigned modes, unsigned want, irq_fn *fn, void *const args[], const char *name);
void pci_irq_disable(struct pci_dev *);
const char *pci_irq_name(const struct pci_dev *);       /* "MSI-X", "MSI", "INTx", "none" */
