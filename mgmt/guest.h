/*
 * The table of defined VMs and their life cycle: definition → machine (devices, disks, consoles) → definition.
 *
 * Any thread.  Operations on one VM serialise on guest->op; none of them waits for a guest.  Waiting is the caller's: add a
 * watch, look at guest_status, sleep.  A VM counts as stopped once its memory is free again.  Functions that can fail return an
 * exit code with the sentence in fail.
 */
#pragma once
#include "guestdev/machine.h"
#include "kernel/host.h"
#include "kernel/lib/log.h"
#include "mgmt/conmux.h"
#include "mgmt/vmdef.h"
#include "mgmt/vmlog.h"

enum { GUEST_MAX = 1024, GUEST_PORTS = 3 };
/* Crashed: stopped, and not by wish. */
enum guest_state { GUEST_STOPPED, GUEST_CRASHED, GUEST_STARTING, GUEST_RUNNING, GUEST_PAUSED, GUEST_STOPPING };
extern const char *const guest_state_names[];
extern const char *const guest_port_names[GUEST_PORTS];     /* com1 com2 virtio */

struct guest {
    struct list link;           /* table, sorted by name; table lock */
    unsigned refs;              /* table lock */
    bool removed;               /* table lock and op */
    struct vmdef def;           /* changed under op and table lock; read under either */
    struct mutex op;            /* serialises operations; held while a machine is built or torn down */
    struct mutex now;           /* inside op: guards what follows, held for moments */
    struct machine *machine;    /* NULL: stopped */
    bool starting, down;        /* down: the machine stopped by itself, its removal is under way */
    enum vm_stop cause;         /* of the last stop */
    unsigned code;
    char reason[200];
    uint64_t started_ns, started_utc, stopped_utc;
    unsigned starts;
    uint64_t ram;               /* promised to the machine */
    /* end of `now` */
    unsigned resets;            /* since the start; atomic */
    struct watchers watchers;   /* state changed */
    struct vmlog log;
    struct ratelimit reset_rate;        /* a guest that resets in a loop does not push the rest out of its log */
    struct conmux port[GUEST_PORTS];
    struct { struct blk *base, *top; } disks[VMDEF_DISKS];      /* op */
    struct list reap;           /* on the reaper's list, under its lock */
};

struct guest_status {
    char name[64];
    bool removed, port[GUEST_PORTS];    /* port: the definition has it */
    enum guest_state state;
    enum vm_stop cause;
    unsigned code, starts, resets;
    uint64_t ram;               /* 0 unless it has a machine */
    char reason[200];           /* why it is stopped */
    uint64_t uptime_ns, started_utc, stopped_utc, overhead;
};

void guest_table_init(void);
int  guest_define(const struct vmdef *, struct fail *);
struct guest *guest_find(const char *name, struct fail *);      /* with a reference; NULL: EX_NOTFOUND and the nearest name */
void guest_put(struct guest *);
/* References to all, sorted by name; kfree the array after putting each.  NULL with *n 0: none, or no memory (fail set). */
struct guest **guest_all(unsigned *n, struct fail *);

int guest_remove(struct guest *, struct fail *);                /* stopped */
int guest_rename(struct guest *, const char *, struct fail *);  /* stopped */
/* Calls change under op on a copy of the definition and stores it when that returns EX_DONE; weight and cap are in force at once, the rest at the next start. */
int guest_edit(struct guest *, int (*change)(void *arg, struct vmdef *, struct fail *), void *arg, struct fail *);
void guest_def(struct guest *, struct vmdef *);                 /* copy */

int guest_start(struct guest *, struct fail *);
int guest_button(struct guest *, struct fail *);                /* ACPI power button */
int guest_kill(struct guest *, struct fail *);
int guest_reset(struct guest *, struct fail *);
int guest_pause(struct guest *, struct fail *);
int guest_resume(struct guest *, struct fail *);
/* Registers and last exits; a running VM is paused for the moment. */
int guest_dump(struct guest *, void (*print)(void *arg, const char *line), void *arg, struct fail *);
void guest_status(struct guest *, struct guest_status *);
/*
 * fn with the machine, which cannot go away meanwhile; EX_STATE when the VM is stopped.  fn must not call guest_* nor wait for
 * the guest.
 */
int guest_with_machine(struct guest *, void (*fn)(void *arg, struct machine *), void *arg, struct fail *);

/* The image store. */
int image_find(const char *name, struct host_image *, struct fail *);
