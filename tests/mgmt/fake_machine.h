/*
 * Stands in for guestdev/machine.h, kernel/vmm/vm.h and kernel/host.h under the management layer's tests.  The fake guest is a
 * thread that greets on
 * COM1 and then obeys lines typed there: poweroff, reboot, crash, exit N (debug exit), flood N, deaf (ignores the power button
 * and its input).
 */
#pragma once
#include "guestdev/machine.h"
#include "kernel/console/console.h"
#include "kernel/host.h"

struct fake_host {
    bool no_hv;                 /* no virtualization */
    int create_err;             /* machine_create fails so */
    struct host_image images[16];
    unsigned nimages;
    unsigned shares_set;        /* calls of vm_set_share */
    unsigned poweroffs, reboots;
    unsigned machines;          /* alive */
    uint64_t ram_left;          /* what machine_create may promise */
};
extern struct fake_host fake_host;

/* Empty store, virtualization present; call between tests. */
void fake_reset(void);
void fake_image(const char *name, const void *data, size_t len, bool corrupt);     /* data: the caller's */
void fake_default_images(void);
void fake_log(int level, const char *area, const char *text);
