/*
 * What every emulated virtio device shares: negotiation, queues, interrupts, and the modern PCI transport (VIRTIO 1.2, sections 2, 3 and 4.1).
 *
 * A device embeds struct virtio, describes itself with a struct virtio_class and works in `run`, called on the doorbell's vCPU thread, for each queue by
 * one thread at a time.  Work that outlives `run` (a block request) is bracketed by virtio_hold and virtio_release: a guest's reset, a drain and
 * destroy end when nothing is held.  Until then the status register keeps its old value, as the specification lets it (2.4.1).
 *
 * Contexts: virtio_kick in thread context; the rest in any but irq unless stated.
 */
#pragma once
#include "guestdev/msix.h"
#include "guestdev/pci.h"
#include "guestdev/virtq.h"
#include "kernel/lib/log.h"

enum { VIRTIO_MAX_QUEUES = 8 };

struct virtio;

struct virtio_class {
    const char *name;                   /* "virtio-blk": snapshot section, logs */
    uint16_t id;                        /* VIRTIO_ID_* */
    uint32_t pci_class;
    void (*run)(struct virtio *, unsigned q);           /* thread context: take what is in queue q */
    /* Optional. */
    void (*reset)(struct virtio *);                     /* nothing is held; any context but irq */
    void (*config_write)(struct virtio *, unsigned off, unsigned size, uint64_t val);
    void (*snap)(struct virtio *, struct snap *);       /* fields of its own */
    void (*resume)(struct virtio *);                    /* thread context: the VM goes on */
};

struct virtio_queue {
    struct virtq vq;
    struct spinlock used_lock;          /* device side of vq */
    uint64_t kicks;                     /* doorbells not yet looked at; whoever takes it from 0 runs the queue */
    uint16_t vector;
};

struct virtio {
    const struct virtio_class *cls;
    struct gmem *gmem;
    struct pci_func pci;
    struct msix msix;
    struct pci_region region[6];
    uint8_t cfg_cap;                    /* offset of the PCI configuration access capability */
    unsigned nqueues;
    uint64_t offered;                   /* features */
    void *config;                       /* device configuration, the device's; under lock */
    size_t config_len;

    struct spinlock lock;               /* guards the registers below */
    uint64_t features;                  /* driver's */
    uint32_t device_sel, driver_sel;
    uint16_t queue_sel, config_vector;
    uint8_t status, isr, generation;
    bool resetting, paused, draining;
    struct ratelimit rl;

    bool live;                          /* DRIVER_OK, not broken, not resetting, not paused; read without the lock */
    uint32_t held;                      /* runs and requests; HELD_WATCHED while somebody waits for zero */
    struct event drained;
    struct virtio_queue queue[VIRTIO_MAX_QUEUES];
};

/* ---- Life; thread context ---- */
struct virtio_setup {
    const struct virtio_class *cls;
    struct gmem *gmem;
    struct pci_bus *bus;
    unsigned slot, nqueues;
    uint16_t queue_max;
    uint64_t features;                  /* of the device type; transport and ring features are added */
    void *config;
    size_t config_len;
};
int  virtio_init(struct virtio *, const struct virtio_setup *);     /* 0; -EBUSY slot taken */
void virtio_fini(struct virtio *);                                  /* waits until nothing is held, unplugs */
void virtio_reset(struct virtio *);     /* machine reset: vCPUs stopped; waits until nothing is held */
int  virtio_snap(struct virtio *, struct snap *);
/* Nothing starts before virtio_resume.  Returns when nothing is held, or at the deadline: what a dead disk still holds is saved by its heads. */
void virtio_drain(struct virtio *, uint64_t deadline_ns);
void virtio_resume(struct virtio *);

/* ---- At run time ---- */
void virtio_kick(struct virtio *, unsigned q);          /* doorbell, from the guest or from the device itself */
static inline bool virtio_is_live(const struct virtio *v) { return atomic_load(&v->live) && pci_can_dma(&v->pci); }
static inline void virtio_hold(struct virtio *v) { atomic_add(&v->held, 1); }
void virtio_release(struct virtio *);
/* Gives a chain back and interrupts if the driver wants it. */
void virtio_push(struct virtio *, unsigned q, uint16_t head, uint32_t written);
/* The guest broke the rules: DEVICE_NEEDS_RESET.  `why` goes to the log, rate-limited. */
void virtio_break(struct virtio *, const char *why);
void virtio_config_changed(struct virtio *);
static inline bool virtio_has(const struct virtio *v, uint64_t feature) { return v->features & feature; }
