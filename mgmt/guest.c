#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "mgmt/guest.h"
#include "mgmt/units.h"

const char *const guest_state_names[] = { "stopped", "crashed", "starting", "running", "paused", "stopping" };
const char *const guest_port_names[GUEST_PORTS] = { "com1", "com2", "virtio" };

static struct { struct mutex lock; struct list list; unsigned n; } table;
/* Machines that have stopped are taken apart by a thread of their own: that waits for work items, which a work item must not. */
static struct { struct spinlock lock; struct list list; struct event event; } reaper;

static void reaper_thread(void *arg);

void guest_table_init(void)
{
    mutex_init(&table.lock);
    list_init(&table.list);
    list_init(&reaper.list);
    event_init(&reaper.event);
    if (!thread_start("vm-reaper", reaper_thread, NULL))
        panic("no memory for the VM reaper thread");
}

/* ---- Table ---- */
static struct guest *lookup(const char *name)
{
    struct guest *g;
    list_for_each(g, &table.list, link)
        if (!strcmp(g->def.name, name))
            return g;
    return NULL;
}

static void sort_in(struct guest *new)
{
    struct guest *g;
    list_for_each(g, &table.list, link)
        if (strcmp(g->def.name, new->def.name) > 0)
            break;
    list_append(&g->link, &new->link);
}

static int exists(const char *name, struct fail *f)
{
    fail_set(f, EX_STATE, "VM \"%s\" exists already", name);
    fail_hint(f, "take another name, change it with vm set %s, or remove it with vm rm %s", name, name);
    return f->code;
}

static struct guest *guest_new(const struct vmdef *def);

int guest_define(const struct vmdef *def, struct fail *f)
{
    struct guest *g = guest_new(def);
    if (!g)
        return fail_set(f, EX_RESOURCE, "no memory to define VM \"%s\"", def->name);
    int code = EX_DONE;
    mutex_lock(&table.lock);
    if (lookup(def->name))
        code = exists(def->name, f);
    else if (table.n == GUEST_MAX)
        code = fail_set(f, EX_RESOURCE, "there are %d VMs, which is the most that Joist keeps", GUEST_MAX);
    else
        sort_in(g), table.n++;
    mutex_unlock(&table.lock);
    if (code)
        guest_put(g);
    else
        vmlog_add(&g->log, "defined");
    return code;
}

struct guest *guest_find(const char *name, struct fail *f)
{
    char near[64] = "";
    unsigned best = 3;
    mutex_lock(&table.lock);
    struct guest *g = lookup(name), *other;
    if (g)
        g->refs++;
    else
        list_for_each(other, &table.list, link) {
            unsigned d = name_distance(other->def.name, name, best);
            if (d < best)
                best = d, strcpy(near, other->def.name);
        }
    mutex_unlock(&table.lock);
    if (g)
        return g;
    fail_set(f, EX_NOTFOUND, "there is no VM \"%.63s\"", name);
    if (near[0])
        fail_hint(f, "did you mean \"%s\"?", near);
    else
        fail_hint(f, "vm list shows the VMs, vm create makes one");
    return NULL;
}

struct guest **guest_all(unsigned *n, struct fail *f)
{
    struct guest *g;
    *n = 0;
    mutex_lock(&table.lock);
    struct guest **all = kmalloc((table.n + 1) * sizeof *all);
    if (all)
        list_for_each(g, &table.list, link)
            all[(*n)++] = g, g->refs++;
    mutex_unlock(&table.lock);
    if (!all)
        fail_set(f, EX_RESOURCE, "no memory for the list of VMs");
    return all;
}

static void disks_close(struct guest *g)
{
    for (unsigned i = 0; i < VMDEF_DISKS; i++) {
        if (g->disks[i].top)
            blk_close(g->disks[i].top);
        if (g->disks[i].base)
            blk_close(g->disks[i].base);
        g->disks[i].top = g->disks[i].base = NULL;
    }
}

void guest_put(struct guest *g)
{
    mutex_lock(&table.lock);
    bool last = --g->refs == 0;
    mutex_unlock(&table.lock);
    if (!last)
        return;
    for (unsigned i = 0; i < GUEST_PORTS; i++)
        conmux_fini(&g->port[i]);
    vmlog_fini(&g->log);
    kfree(g);
}

/* ---- The machine is gone or going ---- */
static void log_dump_line(void *arg, const char *line)
{
    vmlog_add(arg, "  %s", line);
}

/* After `stopped` said that the machine has ended, once no operation is under way. */
static void reap(struct guest *g)
{
    mutex_lock(&g->op);
    struct machine *m = g->machine;
    if (g->cause == STOP_CRASH)
        vm_dump(machine_vm(m), log_dump_line, &g->log);
    mutex_lock(&g->now);
    g->machine = NULL;
    mutex_unlock(&g->now);
    machine_destroy(m);
    for (unsigned i = 0; i < GUEST_PORTS; i++)
        conmux_unplug(&g->port[i]);
    disks_close(g);
    mutex_lock(&g->now);
    g->down = false;
    mutex_unlock(&g->now);
    mutex_unlock(&g->op);
    watch_post(&g->watchers);
    guest_put(g);
}

static void reaper_thread(void *arg)
{
    for (;;) {
        spin_lock(&reaper.lock);
        struct list *first = list_pop(&reaper.list);
        spin_unlock(&reaper.lock);
        if (first)
            reap(container_of(first, struct guest, reap));
        else
            event_wait(&reaper.event);
    }
}

static void reap_later(struct guest *g)
{
    spin_lock(&reaper.lock);
    list_append(&reaper.list, &g->reap);
    spin_unlock(&reaper.lock);
    event_post(&reaper.event);
}

static const char *cause_text(enum vm_stop cause)
{
    switch (cause) {
    case STOP_POWEROFF: return "powered off by the guest";
    case STOP_KILLED: return "killed";
    case STOP_CRASH: return "crashed";
    case STOP_DEBUG_EXIT: return "debug exit";
    default: return "stopped";
    }
}

static void stopped(void *arg, enum vm_stop cause, const char *reason)
{
    struct guest *g = arg;
    char why[sizeof g->reason] = "";
    unsigned code = 0;
    vm_stop_cause(machine_vm(g->machine), why, sizeof why, &code);
    mutex_lock(&g->now);
    g->cause = cause, g->code = code, g->down = true;
    g->stopped_utc = clock_utc_ns();
    snprintf(g->reason, sizeof g->reason, "%s", reason && *reason ? reason : cause_text(cause));
    mutex_unlock(&g->now);
    if (cause == STOP_DEBUG_EXIT)
        vmlog_add(&g->log, "stopped: debug exit with code %u", code);
    else
        vmlog_add(&g->log, "stopped: %s%s", cause == STOP_CRASH ? "crashed: " : "", g->reason);
    if (cause == STOP_CRASH)
        log_warn("vm", "%s crashed: %s", g->def.name, g->reason);
    watch_post(&g->watchers);
    reap_later(g);
}

static void was_reset(void *arg)
{
    struct guest *g = arg;      /* the machine holds locks that readers of its figures take inside `now` */
    atomic_add(&g->resets, 1u);
    if (ratelimit_ok(&g->reset_rate, 5))
        vmlog_add(&g->log, "reset");
}

static struct guest *guest_new(const struct vmdef *def)
{
    struct guest *g = kzalloc(sizeof *g);
    if (!g)
        return NULL;
    list_init(&g->link);
    g->refs = 1;
    g->def = *def;
    mutex_init(&g->op);
    mutex_init(&g->now);
    watch_init(&g->watchers);
    vmlog_init(&g->log);
    for (unsigned i = 0; i < GUEST_PORTS; i++)
        conmux_init(&g->port[i]);
    list_init(&g->reap);
    return g;
}

/* ---- Start ---- */
int image_find(const char *name, struct host_image *img, struct fail *f)
{
    char near[sizeof img->name] = "";
    unsigned best = 4;
    for (unsigned i = 0; host_image(i, img); i++) {
        unsigned d = name_distance(img->name, name, best);
        if (!strcmp(img->name, name))
            return EX_DONE;
        if (d && d < best)
            best = d, strcpy(near, img->name);
    }
    fail_set(f, EX_NOTFOUND, "there is no image \"%.127s\" in the store", name);
    if (near[0])
        fail_hint(f, "did you mean \"%s\"?", near);
    else
        fail_hint(f, host_images() ? "image list shows what is there"
                                   : "the store is empty: make iso IMAGES=DIR puts files into it");
    return f->code;
}

static int load_image(const char *name, struct host_image *img, struct fail *f)
{
    int code = image_find(name, img, f);
    if (!code && !host_image_sound(img)) {
        code = fail_set(f, EX_IO, "image \"%s\" is damaged: its checksum is wrong", name);
        fail_hint(f, "write the stick again");
    }
    return code;
}

static int open_disk(struct guest *g, unsigned i, struct machine_disk *out, struct fail *f)
{
    const struct vmdef_disk *d = &g->def.disks[i];
    struct host_image img;
    int code = load_image(d->image, &img, f);
    if (code)
        return code;
    if (!img.len || img.len % 512) {
        fail_set(f, EX_USAGE, "image \"%s\" has %lu bytes: a disk needs whole sectors of 512", d->image, (unsigned long)img.len);
        fail_hint(f, "truncate -s %%512 FILE pads it before make iso");
        return f->code;
    }
    g->disks[i].base = blk_ram_create(d->image, (void *)(uintptr_t)img.data, img.len, true);
    if (g->disks[i].base && !d->read_only)
        g->disks[i].top = blk_overlay_create(d->image, g->disks[i].base, img.len);
    out->blk = d->read_only ? g->disks[i].base : g->disks[i].top;
    if (!out->blk)
        return fail_set(f, EX_RESOURCE, "no memory to open disk \"%s\"", d->image);
    out->read_only = d->read_only;
    memcpy(out->serial, d->serial, sizeof out->serial);
    return EX_DONE;
}

static int open_ports(struct guest *g, struct machine_config *c, struct fail *f)
{
    struct chan **wire[GUEST_PORTS] = { &c->com1, &c->com2, &c->vcon };
    bool wanted[GUEST_PORTS] = { true, g->def.com2, g->def.virtio_console };
    for (unsigned i = 0; i < GUEST_PORTS; i++)
        if (wanted[i] && !(*wire[i] = conmux_plug(&g->port[i]))) {
            fail_set(f, EX_RESOURCE, "no memory for the consoles of VM \"%s\"", g->def.name);
            fail_hint(f, "stop a VM that is not needed; host mem tells who has the memory");
            return EX_RESOURCE;
        }
    return EX_DONE;
}

static int fill_config(struct guest *g, struct machine_config *c, struct fail *f)
{
    const struct vmdef *d = &g->def;
    struct host_image img;
    c->vm = (struct vm_params){
        .ncpus = d->cpus, .ram = d->mem, .weight = d->weight, .cap = d->cap, .crash_resets = d->on_crash == 0
    };
    memcpy(c->vm.name, d->name, sizeof c->vm.name);
    memcpy(c->cmdline, d->cmdline, sizeof c->cmdline);
    c->rng = d->rng, c->hpet = d->hpet, c->debug_exit = d->debug_exit;
    c->stopped = stopped, c->was_reset = was_reset, c->arg = g;
    int code = load_image(d->kernel, &img, f);
    if (code)
        return code;
    c->kernel = (struct machine_blob){ img.data, img.len };
    if (d->initrd[0]) {
        if ((code = load_image(d->initrd, &img, f)))
            return code;
        c->initrd = (struct machine_blob){ img.data, img.len };
        snprintf(c->initrd_name, sizeof c->initrd_name, "%s", d->initrd);
    }
    for (c->ndisks = 0; c->ndisks < (int)d->ndisks; c->ndisks++)
        if ((code = open_disk(g, (unsigned)c->ndisks, &c->disks[c->ndisks], f)))
            return code;
    return open_ports(g, c, f);
}

static void note_start(struct guest *g, struct machine *m)
{
    mutex_lock(&g->now);
    g->machine = m, g->down = false;
    g->cause = STOP_NONE, g->code = 0, g->reason[0] = 0;
    g->started_ns = clock_ns(), g->started_utc = clock_utc_ns(), g->starts++;
    atomic_store(&g->resets, 0u);
    g->ram = g->def.mem;
    mutex_unlock(&g->now);
}

/* Why a machine could not be had or started, and for want of room what helps. */
static int cannot_start(struct guest *g, int err, const char *why, struct fail *f)
{
    fail_set(f, fail_code(err), "VM \"%s\" cannot start: %s", g->def.name, why);
    if (f->code == EX_RESOURCE)
        fail_hint(f, "stop another VM, or take less with vm set %s --mem SIZE; host mem shows what there is", g->def.name);
    return f->code;
}

static int power_on(struct guest *g, const struct machine_config *c, struct fail *f)
{
    char why[240] = "";
    struct machine *m;
    int err = machine_create(c, &m, why, sizeof why);
    if (err)
        return cannot_start(g, err, why, f);
    note_start(g, m);
    mutex_lock(&table.lock);
    g->refs++;          /* the machine's; reap drops it */
    mutex_unlock(&table.lock);
    vmlog_add(&g->log, "started");
    err = machine_start(m, why, sizeof why);
    if (!err)
        return EX_DONE;
    vmlog_add(&g->log, "start failed: %s", why);
    mutex_lock(&g->now);
    g->machine = NULL;
    mutex_unlock(&g->now);
    machine_destroy(m);
    guest_put(g);
    return cannot_start(g, err, why, f);
}

static void undo_start(struct guest *g)
{
    for (unsigned i = 0; i < GUEST_PORTS; i++)
        conmux_unplug(&g->port[i]);
    disks_close(g);
}

static void set_starting(struct guest *g, bool on)
{
    mutex_lock(&g->now);
    g->starting = on;
    mutex_unlock(&g->now);
    watch_post(&g->watchers);
}

static int start_locked(struct guest *g, struct fail *f)
{
    struct host_facts *facts = kmalloc(sizeof *facts);
    struct machine_config *c = kzalloc(sizeof *c);
    int code = EX_DONE;
    if (!facts || !c)
        code = fail_set(f, EX_RESOURCE, "no memory to start VM \"%s\"", g->def.name);
    if (!code) {
        host_facts(facts);
        if (!facts->hv_name)
            code = fail_set(f, EX_UNSUPPORTED, "VM \"%s\" cannot start: %s", g->def.name,
                            facts->hv_why ? facts->hv_why : "no virtualization");
    }
    if (!code && !(code = fill_config(g, c, f)))
        code = power_on(g, c, f);
    if (code)
        undo_start(g);
    kfree(facts);
    kfree(c);
    return code;
}

static bool ending(struct guest *g)
{
    mutex_lock(&g->now);
    bool down = g->down;
    mutex_unlock(&g->now);
    return down;
}

enum need { STOPPED, STOPPED_TO_START, MACHINE };

/* op held on success. */
static int enter(struct guest *g, enum need need, struct fail *f)
{
    mutex_lock(&g->op);
    int code = EX_DONE;
    const char *name = g->def.name;
    if (g->removed) {
        code = fail_set(f, EX_NOTFOUND, "VM \"%s\" was removed", name);
    } else if (need == MACHINE && (!g->machine || ending(g))) {
        code = fail_set(f, EX_STATE, "VM \"%s\" is not running", name);
        fail_hint(f, "vm start %s", name);
    } else if (need != MACHINE && g->machine) {
        code = fail_set(f, EX_STATE, "VM \"%s\" is running", name);
        if (need == STOPPED_TO_START)
            fail_hint(f, "vm console %s attaches to it", name);
        else
            fail_hint(f, "vm stop %s shuts it down, vm kill %s powers it off", name, name);
    }
    if (code)
        mutex_unlock(&g->op);
    return code;
}

int guest_start(struct guest *g, struct fail *f)
{
    int code = enter(g, STOPPED_TO_START, f);
    if (code)
        return code;
    set_starting(g, true);
    code = start_locked(g, f);
    set_starting(g, false);
    mutex_unlock(&g->op);
    watch_post(&g->watchers);
    return code;
}

/* ---- Operations on a machine ---- */
int guest_button(struct guest *g, struct fail *f)
{
    int code = enter(g, MACHINE, f);
    if (code)
        return code;
    if (vm_state(machine_vm(g->machine)) == VM_PAUSED) {
        code = fail_set(f, EX_STATE, "VM \"%s\" is paused and cannot shut down", g->def.name);
        fail_hint(f, "vm resume %s first, or vm kill %s", g->def.name, g->def.name);
    } else {
        machine_power_button(g->machine);
        vmlog_add(&g->log, "power button pressed");
    }
    mutex_unlock(&g->op);
    return code;
}

/* asked: told to the log before, because the machine's answer follows at once; did: told after. */
static int control(struct guest *g, int (*fn)(struct vm *), const char *asked, const char *did, const char *cannot, struct fail *f)
{
    int code = enter(g, MACHINE, f);
    if (code)
        return code;
    if (asked)
        vmlog_add(&g->log, "%s", asked);
    int err = fn(machine_vm(g->machine));
    if (err)
        code = fail_set(f, fail_code(err), "VM \"%s\" %s", g->def.name, cannot);
    else if (did)
        vmlog_add(&g->log, "%s", did);
    mutex_unlock(&g->op);
    watch_post(&g->watchers);
    return code;
}

int guest_kill(struct guest *g, struct fail *f) { return control(g, vm_kill, "kill asked for", NULL, "cannot be killed now", f); }
int guest_reset(struct guest *g, struct fail *f) { return control(g, vm_reset, "reset asked for", NULL, "cannot be reset now", f); }
int guest_pause(struct guest *g, struct fail *f) { return control(g, vm_pause, NULL, "paused", "is paused already", f); }
int guest_resume(struct guest *g, struct fail *f) { return control(g, vm_resume, NULL, "resumed", "is not paused", f); }

int guest_dump(struct guest *g, void (*print)(void *arg, const char *line), void *arg, struct fail *f)
{
    int code = enter(g, MACHINE, f);
    if (code)
        return code;
    struct vm *vm = machine_vm(g->machine);
    bool paused = vm_state(vm) == VM_PAUSED;
    if (paused || !vm_pause(vm)) {
        vm_dump(vm, print, arg);
        if (!paused)
            vm_resume(vm);
    } else {
        code = fail_set(f, EX_STATE, "VM \"%s\" is stopping", g->def.name);
    }
    mutex_unlock(&g->op);
    return code;
}

/* ---- Definition ---- */
int guest_remove(struct guest *g, struct fail *f)
{
    int code = enter(g, STOPPED, f);
    if (code)
        return code;
    mutex_lock(&table.lock);
    list_del(&g->link);
    table.n--;
    g->removed = true;
    mutex_unlock(&table.lock);
    mutex_unlock(&g->op);
    watch_post(&g->watchers);
    guest_put(g);
    return EX_DONE;
}

int guest_rename(struct guest *g, const char *name, struct fail *f)
{
    if (!name_valid(name)) {
        fail_set(f, EX_USAGE, "\"%.63s\" is no name for a VM", name);
        fail_hint(f, "a letter, then letters, digits, '.', '_' and '-'; at most 63 characters");
        return f->code;
    }
    int code = enter(g, STOPPED, f);
    if (code)
        return code;
    vmlog_add(&g->log, "renamed from %s to %s", g->def.name, name);
    mutex_lock(&table.lock);
    struct guest *other = lookup(name);
    if (other && other != g) {
        code = exists(name, f);
    } else {
        strcpy(g->def.name, name);
        list_del(&g->link);
        sort_in(g);
    }
    mutex_unlock(&table.lock);
    mutex_unlock(&g->op);
    return code;
}

int guest_edit(struct guest *g, int (*change)(void *arg, struct vmdef *, struct fail *), void *arg, struct fail *f)
{
    struct vmdef *d = kmalloc(sizeof *d);
    if (!d)
        return fail_set(f, EX_RESOURCE, "no memory to change a VM");
    mutex_lock(&g->op);
    *d = g->def;
    int code = g->removed ? fail_set(f, EX_NOTFOUND, "VM \"%s\" was removed", g->def.name) : change(arg, d, f);
    if (!code) {
        bool share = d->weight != g->def.weight || d->cap != g->def.cap;
        mutex_lock(&table.lock);
        g->def = *d;
        mutex_unlock(&table.lock);
        vmlog_add(&g->log, "definition changed");
        if (share && g->machine)
            vm_set_share(machine_vm(g->machine), d->weight, d->cap);
    }
    mutex_unlock(&g->op);
    kfree(d);
    return code;
}

void guest_def(struct guest *g, struct vmdef *d)
{
    mutex_lock(&table.lock);
    *d = g->def;
    mutex_unlock(&table.lock);
}

/* ---- State ---- */
static enum guest_state state_of(const struct guest *g)
{
    if (!g->machine)
        return g->starting ? GUEST_STARTING : g->down ? GUEST_STOPPING : g->cause == STOP_CRASH ? GUEST_CRASHED : GUEST_STOPPED;
    if (g->starting)
        return GUEST_STARTING;
    if (g->down)
        return GUEST_STOPPING;
    switch (vm_state(machine_vm(g->machine))) {
    case VM_RUNNING: return GUEST_RUNNING;
    case VM_PAUSED: return GUEST_PAUSED;
    default: return GUEST_STOPPING;
    }
}

void guest_status(struct guest *g, struct guest_status *s)
{
    memset(s, 0, sizeof *s);
    mutex_lock(&table.lock);
    memcpy(s->name, g->def.name, sizeof s->name);
    s->removed = g->removed;
    s->port[0] = true, s->port[1] = g->def.com2, s->port[2] = g->def.virtio_console;
    mutex_unlock(&table.lock);
    mutex_lock(&g->now);
    s->state = state_of(g), s->cause = g->cause, s->code = g->code, s->starts = g->starts, s->resets = atomic_load(&g->resets);
    s->started_utc = g->started_utc, s->stopped_utc = g->stopped_utc;
    memcpy(s->reason, g->reason, sizeof s->reason);
    if (g->machine) {
        s->uptime_ns = clock_ns() - g->started_ns;
        s->overhead = vm_overhead(machine_vm(g->machine));
        s->ram = g->ram;
    }
    mutex_unlock(&g->now);
}

int guest_with_machine(struct guest *g, void (*fn)(void *arg, struct machine *), void *arg, struct fail *f)
{
    struct guest_status st;
    mutex_lock(&g->now);
    bool there = g->machine != NULL;
    if (there)
        fn(arg, g->machine);
    mutex_unlock(&g->now);
    if (there)
        return EX_DONE;
    guest_status(g, &st);
    fail_set(f, EX_STATE, "VM \"%s\" is not running", st.name);
    fail_hint(f, "vm start %s", st.name);
    return f->code;
}
