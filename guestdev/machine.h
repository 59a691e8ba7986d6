/*
 * One virtual PC: the only place that knows all devices.  mgmt fills struct machine_config, creates, runs and destroys; everything in between is the guest's.
 */
#pragma once
#include "kernel/block/blk.h"
#include "kernel/console/chan.h"
#include "kernel/vmm/vm.h"

enum { MACHINE_MAX_DISKS = 16 };

struct machine_blob { const void *data; size_t len; };  /* caller-owned, must live as long as the machine (loaded again at every reset) */

struct machine_disk { struct blk *blk; bool read_only; char serial[21]; };      /* virtio-blk; blk stays the caller's */

struct machine_config {
    struct vm_params vm;
    struct machine_blob kernel;         /* bzImage, PVH ELF, multiboot ELF: told apart by content */
    struct machine_blob initrd;         /* or first multiboot module; len 0: none */
    char initrd_name[128];              /* the string that goes with the module */
    char cmdline[2048];
    struct machine_disk disks[MACHINE_MAX_DISKS];
    int ndisks;
    struct chan *com1, *com2;           /* NULL: port answers, output discarded */
    struct chan *vcon;                  /* virtio console; NULL: no device */
    bool rng;                           /* virtio-rng */
    bool debug_exit;                    /* port F4h as QEMU's isa-debug-exit */
    bool hpet;
    /* Called on a worker thread when the VM has stopped by itself or was killed. */
    void (*stopped)(void *arg, enum vm_stop, const char *reason);
    void (*was_reset)(void *arg);       /* after each reset but the power-on one; any thread, must not call vm_* or machine_*; NULL: nobody cares */
    void *arg;
};

struct machine;
/* 0; -errno with a sentence that names the object and the way out. */
int  machine_create(const struct machine_config *, struct machine **, char *err, size_t errlen);
void machine_destroy(struct machine *);         /* VM stopped */
struct vm *machine_vm(struct machine *);
int  machine_start(struct machine *, char *err, size_t errlen);         /* power-on reset, load kernel, run */
void machine_power_button(struct machine *);    /* ACPI; the guest decides */
/* Every device and vCPU, VM paused.  Save returns bytes used or -errno; load on a machine created from the same config. */
long machine_save(struct machine *, void *buf, size_t cap);
int  machine_load(struct machine *, const void *buf, size_t len);
void machine_each_device(struct machine *, void (*fn)(void *arg, const char *bus, uint64_t base, uint64_t len, const char *name), void *arg);
