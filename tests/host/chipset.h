/* A board full of chips, wired as the machine wires them, without vCPUs or memory.  For fuzzers. */
#pragma once
#include "guestdev/hpet.h"
#include "guestdev/i8042.h"
#include "guestdev/ioapic.h"
#include "guestdev/lapic.h"
#include "guestdev/pic.h"
#include "guestdev/pit.h"
#include "guestdev/pm.h"
#include "guestdev/rtc.h"
#include "guestdev/sysport.h"
#include "guestdev/uart.h"
#include "tests/host/wires.h"

enum { CHIPSET_CPUS = 2, CHIPSET_DEVS = 12 };

struct chipset_region { io_fn *fn; void *dev; unsigned len; };

struct chipset {
    struct vmclock clock;
    struct apic_fabric fabric;
    struct fake_vcpu cpu[CHIPSET_CPUS];
    struct vcpu_irqchip irqchip[CHIPSET_CPUS];
    struct lapic *lapic[CHIPSET_CPUS];
    struct ioapic *ioapic;
    struct pic *pic;
    struct chan *chan;
    struct signals signals;
    struct gdev dev[CHIPSET_DEVS];
    unsigned ndevs;
    struct chipset_region region[24];
    unsigned nregions;
};

struct chipset *chipset_create(void);
void chipset_destroy(struct chipset *);
/* All devices in order; bytes used or -errno. */
long chipset_save(struct chipset *, uint8_t *buf, size_t cap);
int  chipset_load(struct chipset *, const uint8_t *buf, size_t len);
