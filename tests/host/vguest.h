/*
 * A guest without a CPU for tests of PCI and virtio devices: memory, a PCI bus, and a driver that sees only what a guest's driver sees
 * (configuration ports, BARs, rings in its memory, interrupts that arrive).
 */
#pragma once
#include "guestdev/pcihost.h"
#include "guestdev/virtio_pci.h"
#include "kernel/vmm/gmem_core.h"

enum { VG_MSIS = 4096, VG_QSIZE = 16 };

struct vguest {
    struct gmem gmem;
    struct bus *mem, *io;
    struct pcihost *host;
    struct spinlock lock;
    unsigned nmsi;
    struct { uint64_t addr; uint32_t data; } msi[VG_MSIS];      /* as they came; the last VG_MSIS */
    bool gsi[8], pic[16];
    gpa_t heap;                         /* next free guest memory */
};

/* ram in bytes; nreaders: threads that may access the buses at once. */
struct vguest *vguest_create(uint64_t ram, unsigned nreaders);
void vguest_destroy(struct vguest *);                           /* after the devices */
gpa_t vguest_alloc(struct vguest *, size_t len, size_t align);
uint64_t vg_in(struct vguest *, unsigned port, unsigned size);
void vg_out(struct vguest *, unsigned port, unsigned size, uint64_t val);
uint64_t vg_read(struct vguest *, uint64_t addr, unsigned size);
void vg_write(struct vguest *, uint64_t addr, unsigned size, uint64_t val);
uint32_t vg_cfg_read(struct vguest *, unsigned slot, unsigned off, unsigned size);     /* by ECAM */
void vg_cfg_write(struct vguest *, unsigned slot, unsigned off, unsigned size, uint32_t val);

/* ---- A virtio driver ---- */
struct vdrv_queue {
    unsigned size;
    gpa_t desc, avail, used;
    uint16_t avail_idx, used_seen, next_desc;
    uint64_t notify;
};
struct vdrv {
    struct vguest *g;
    unsigned slot;
    uint64_t common, isr, device, notify;       /* addresses of the structures */
    uint32_t notify_mult;
    unsigned cfg_cap, msix_cap;
    uint64_t msix_table;
    uint64_t features;
    struct vdrv_queue q[VIRTIO_MAX_QUEUES];
};
struct vbuf { gpa_t gpa; uint32_t len; bool writable; };

/* Finds the capabilities, switches memory decoding and bus mastering on. */
void vdrv_probe(struct vdrv *, struct vguest *, unsigned slot);
/* Reset, ACKNOWLEDGE, DRIVER, features = offered & wanted, FEATURES_OK.  false: refused. */
bool vdrv_negotiate(struct vdrv *, uint64_t wanted);
void vdrv_setup_queue(struct vdrv *, unsigned q, unsigned size);
void vdrv_enable_msix(struct vdrv *);           /* vector i for queue i - 1, vector 0 for configuration changes; message data = 40h + vector */
void vdrv_ok(struct vdrv *);                    /* DRIVER_OK */
uint8_t vdrv_status(struct vdrv *);
void vdrv_reset(struct vdrv *);                 /* writes 0; does not wait */
/* Puts a chain into the ring, direct or (indirect) in a table; returns its head.  Does not notify. */
uint16_t vdrv_add(struct vdrv *, unsigned q, const struct vbuf *, unsigned n, bool indirect);
void vdrv_kick(struct vdrv *, unsigned q);
/* Takes the next used element; false: none. */
bool vdrv_used(struct vdrv *, unsigned q, uint32_t *id, uint32_t *len);
