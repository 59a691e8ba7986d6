/* vm: definition and life cycle. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "kernel/host.h"
#include "kernel/lib/port.h"
#include "mgmt/cmd.h"
#include "mgmt/guest.h"
#include "mgmt/units.h"

static const struct column list_columns[] = {
    COL("name", TEXT), COL("state", TEXT), COL("cpus", NUM), COL("mem", SIZE),
    COL("uptime", TIME), COL_EXTRA("autostart", BOOL), COL_EXTRA("reason", TEXT), COL_EXTRA("code", NUM),
    COL_EXTRA("kernel", TEXT), COL_EXTRA("disks", NUM), COL_EXTRA("starts", NUM),
};

int cmd_vm_list(struct call *c)
{
    unsigned n;
    struct guest **all = guest_all(&n, &c->fail);
    struct vmdef *d = kmalloc(sizeof *d);
    if (!all || !d) {
        for (unsigned i = 0; i < n; i++)
            guest_put(all[i]);
        kfree(all);
        kfree(d);
        return fail_set(&c->fail, EX_RESOURCE, "no memory for the list of VMs");
    }
    rep_table(&c->rep, "vms", list_columns, ARRAY_SIZE(list_columns));
    for (unsigned i = 0; i < n; i++) {
        struct guest_status st;
        guest_status(all[i], &st);
        guest_def(all[i], d);
        bool off = st.state <= GUEST_CRASHED;
        rep_str(&c->rep, d->name);
        rep_str(&c->rep, guest_state_names[st.state]);
        rep_num(&c->rep, d->cpus);
        rep_num(&c->rep, d->mem);
        off ? rep_none(&c->rep) : rep_num(&c->rep, st.uptime_ns);
        rep_num(&c->rep, d->autostart);
        off && st.reason[0] ? rep_str(&c->rep, st.reason) : rep_none(&c->rep);
        off && st.cause == STOP_DEBUG_EXIT ? rep_num(&c->rep, st.code) : rep_none(&c->rep);
        rep_str(&c->rep, d->kernel[0] ? d->kernel : NULL);
        rep_num(&c->rep, d->ndisks);
        rep_num(&c->rep, st.starts);
        guest_put(all[i]);
    }
    kfree(all);
    kfree(d);
    return EX_DONE;
}

/* ---- create, set ---- */
static int check_images(const struct vmdef *d, struct fail *f)
{
    struct host_image img;
    int code = image_find(d->kernel, &img, f);
    if (!code && d->initrd[0])
        code = image_find(d->initrd, &img, f);
    for (unsigned i = 0; !code && i < d->ndisks; i++)
        code = image_find(d->disks[i].image, &img, f);
    return code;
}

static bool is_key_flag(const char *name)
{
    unsigned n;
    const struct vmkey *k = vmdef_keys(&n);
    if (!strcmp(name, "disk"))
        return true;
    for (unsigned i = 1; i < n; i++)
        if (!strcmp(k[i].name, name))
            return true;
    return false;
}

static int apply_flags(const struct call *c, struct vmdef *d, struct fail *f)
{
    int code = EX_DONE;
    for (unsigned i = 0; !code && i < c->nflags; i++)
        if (is_key_flag(c->flags[i].name))
            code = vmdef_flag(d, c->flags[i].name, c->flags[i].text, f);
    return code;
}

static int read_file(const char *name, struct vmdef *d, struct fail *f)
{
    struct host_image img;
    int code = image_find(name, &img, f);
    return code ? code : !host_image_sound(&img) ? fail_set(f, EX_IO, "file \"%s\" is damaged: its checksum is wrong", name)
                                     : vmdef_read(d, img.data, img.len, name, f);
}

static int build_def(struct call *c, struct vmdef *d)
{
    const struct flag_value *file = call_flag(c, "file");
    vmdef_init(d);
    int code = file ? read_file(file->text, d, &c->fail) : EX_DONE;
    if (!code && c->nargs)
        code = vmdef_flag(d, "name", c->args[0], &c->fail);
    if (!code)
        code = apply_flags(c, d, &c->fail);
    if (!code)
        code = vmdef_check(d, &c->fail);
    return code ? code : check_images(d, &c->fail);
}

static void say_disks(struct call *c, const struct vmdef *d)
{
    for (unsigned i = 0; i < d->ndisks; i++)
        if (!d->disks[i].read_only) {
            call_note(c, "note: writes to images of the store go to RAM and are lost when the VM stops");
            return;
        }
}

static const struct column action_columns[] = { COL("name", TEXT), COL("state", TEXT), COL("reason", TEXT), COL("code", NUM) };

/* For people a message, for --json a row. */
static void action_begin(struct call *c)
{
    if (c->json)
        rep_table(&c->rep, "vms", action_columns, ARRAY_SIZE(action_columns));
}

static void action_row(struct call *c, struct guest *g)
{
    struct guest_status st;
    if (!c->json)
        return;
    guest_status(g, &st);
    rep_str(&c->rep, st.name);
    rep_str(&c->rep, st.removed ? "removed" : guest_state_names[st.state]);
    st.state <= GUEST_CRASHED && st.reason[0] ? rep_str(&c->rep, st.reason) : rep_none(&c->rep);
    st.state <= GUEST_CRASHED && st.cause == STOP_DEBUG_EXIT ? rep_num(&c->rep, st.code) : rep_none(&c->rep);
}

static void set_vm(struct call *c, const char *name) { snprintf(c->vm, sizeof c->vm, "%s", name); }

static int start_one(struct call *c, struct guest *g)
{
    int code = guest_start(g, &c->fail);
    if (!code)
        call_note(c, "VM \"%s\" started", c->vm);
    return code;
}

int cmd_vm_create(struct call *c)
{
    struct vmdef *d = kmalloc(sizeof *d);
    if (!d)
        return fail_set(&c->fail, EX_RESOURCE, "no memory to define a VM");
    action_begin(c);
    int code = build_def(c, d);
    if (!code)
        code = guest_define(d, &c->fail);
    struct guest *g = code ? NULL : guest_find(d->name, &c->fail);
    set_vm(c, d->name);
    if (g) {
        call_note(c, "VM \"%s\" defined", d->name);
        say_disks(c, d);
        if (call_has(c, "start"))
            code = start_one(c, g);
        action_row(c, g);
        guest_put(g);
    }
    kfree(d);
    return code;
}

static int change_def(void *arg, struct vmdef *d, struct fail *f)
{
    const struct call *c = arg;
    if (call_has(c, "disk") || call_has(c, "no-disks"))
        d->ndisks = 0;
    int code = apply_flags(c, d, f);
    if (!code)
        code = vmdef_check(d, f);
    return code ? code : check_images(d, f);
}

/* Are there changes that a running VM does not see? */
static bool waits_for_start(const struct call *c)
{
    for (unsigned i = 0; i < c->nflags; i++)
        if (!strcmp(c->flags[i].name, "no-disks") ||
            (is_key_flag(c->flags[i].name) && strcmp(c->flags[i].name, "cpu-weight") && strcmp(c->flags[i].name, "cpu-cap")))
            return true;
    return false;
}

int cmd_vm_set(struct call *c)
{
    struct guest_status st;
    if (!c->nflags || (c->nflags == 1 && c->json)) {
        fail_set(&c->fail, EX_USAGE, "vm set needs at least one flag");
        fail_hint(&c->fail, "vm set --help shows them");
        return c->fail.code;
    }
    struct guest *g = guest_find(c->args[0], &c->fail);
    if (!g)
        return c->fail.code;
    action_begin(c);
    set_vm(c, c->args[0]);
    int code = guest_edit(g, change_def, c, &c->fail);
    guest_status(g, &st);
    if (!code) {
        bool off = st.state <= GUEST_CRASHED;
        call_note(c, "VM \"%s\" changed%s", c->vm, off || !waits_for_start(c) ? "" : "; in force when it is stopped and started again");
        action_row(c, g);
    }
    guest_put(g);
    return code;
}

int cmd_vm_rename(struct call *c)
{
    struct guest *g = guest_find(c->args[0], &c->fail);
    if (!g)
        return c->fail.code;
    action_begin(c);
    int code = guest_rename(g, c->args[1], &c->fail);
    if (!code) {
        call_note(c, "VM \"%s\" is now \"%s\"", c->args[0], c->args[1]);
        action_row(c, g);
    }
    guest_put(g);
    return code;
}

/* ---- Commands on several VMs: all are tried, the first failure is the answer, each failure is told ---- */
static int each_vm(struct call *c, int (*fn)(struct call *, struct guest *))
{
    struct fail first = { 0 };
    action_begin(c);
    for (unsigned i = 0; i < c->nargs && !c->s->interrupted; i++) {
        struct guest *g = guest_find(c->args[i], &c->fail);
        set_vm(c, c->args[i]);
        int code = g ? fn(c, g) : c->fail.code;
        if (g) {
            action_row(c, g);
            guest_put(g);
        }
        if (code && first.code)
            call_note(c, "error: %s", c->fail.message);
        else if (code)
            first = c->fail, first.code = code;
    }
    c->fail = first;
    return first.code;
}

/* Before anybody is asked. */
static int can_remove(const char *name, struct fail *f)
{
    struct guest_status st;
    struct guest *g = guest_find(name, f);
    if (!g)
        return f->code;
    guest_status(g, &st);
    guest_put(g);
    if (st.state <= GUEST_CRASHED)
        return EX_DONE;
    fail_set(f, EX_STATE, "VM \"%s\" is %s", name, guest_state_names[st.state]);
    fail_hint(f, "vm stop %s shuts it down, vm kill %s powers it off", name, name);
    return f->code;
}

int cmd_vm_rm(struct call *c)
{
    for (unsigned i = 0; i < c->nargs; i++)
        if (can_remove(c->args[i], &c->fail))
            return c->fail.code;
    if (!call_ask(c, c->nargs > 1 ? "Remove VM \"%s\" and %u more with their logs?" : "Remove VM \"%s\" with its log?",
                  c->args[0], c->nargs - 1))
        return c->fail.code;
    action_begin(c);
    for (unsigned i = 0; i < c->nargs; i++) {
        struct guest *g = guest_find(c->args[i], &c->fail);
        int code = g ? guest_remove(g, &c->fail) : c->fail.code;
        if (!code) {
            call_note(c, "VM \"%s\" removed", c->args[i]);
            action_row(c, g);
        }
        if (g)
            guest_put(g);
        if (code)
            return code;
    }
    return EX_DONE;
}

/* ---- Waiting ---- */
enum { WAIT_STOPPED, WAIT_RUNNING, WAIT_PAUSED };

static bool reached(struct guest *g, unsigned what, struct guest_status *st)
{
    guest_status(g, st);
    if (what == WAIT_STOPPED)
        return st->state <= GUEST_CRASHED || st->removed;
    return st->state == (what == WAIT_RUNNING ? GUEST_RUNNING : GUEST_PAUSED);
}

/* 0, -EINTR, -ETIMEDOUT.  With a label, the time that passes is shown on a terminal. */
static int wait_for(struct session *s, struct guest *g, unsigned what, uint64_t timeout, const char *label)
{
    struct watch me;
    struct guest_status st;
    uint64_t start = clock_ns(), limit = timeout > UINT64_MAX - 1 - start ? UINT64_MAX : start + timeout;
    int err = 0;
    watch_add(&g->watchers, &me, &s->wake);
    while (!reached(g, what, &st)) {
        uint64_t now = clock_ns();
        if (now >= limit)
            err = -ETIMEDOUT;
        if (err)
            break;
        if (label && s->p.interactive && now - start > 1000000000)
            session_progress(s, label, MIN(now - start, timeout - 1), timeout);
        err = session_wait(s, label ? MIN(now + 200000000, limit) : limit);
        if (err == -ETIMEDOUT)
            err = 0;
    }
    watch_del(&g->watchers, &me);
    return reached(g, what, &st) ? 0 : err;
}

static int wait_failed(struct call *c, int err, const char *what)
{
    if (err == -EINTR)
        return fail_set(&c->fail, EX_INTERRUPTED, "interrupted; VM \"%s\" goes on", c->vm);
    return fail_set(&c->fail, EX_TIMEOUT, "VM \"%s\" %s", c->vm, what);
}

static int stop_one(struct call *c, struct guest *g)
{
    char label[90] = "stopping ";
    int code = guest_button(g, &c->fail);
    if (code)
        return code;
    if (call_has(c, "no-wait")) {
        call_note(c, "VM \"%s\" was asked to shut down", c->vm);
        return EX_DONE;
    }
    strncat(label, c->vm, 64);
    int err = wait_for(c->s, g, WAIT_STOPPED, call_num(c, "timeout", 60000000000ull), label);
    if (err == -ETIMEDOUT && call_has(c, "kill")) {
        struct fail f;
        call_note(c, "VM \"%s\" did not shut down in time: killed", c->vm);
        guest_kill(g, &f);
        err = wait_for(c->s, g, WAIT_STOPPED, 30000000000ull, NULL);
    }
    if (err) {
        code = wait_failed(c, err, "did not shut down in time");
        if (err == -ETIMEDOUT)
            fail_hint(&c->fail, "vm kill %s powers it off, --timeout waits longer", c->vm);
        return code;
    }
    call_note(c, "VM \"%s\" stopped", c->vm);
    return EX_DONE;
}

static int kill_one(struct call *c, struct guest *g)
{
    int code = guest_kill(g, &c->fail);
    if (code)
        return code;
    int err = wait_for(c->s, g, WAIT_STOPPED, 30000000000ull, NULL);
    if (err)
        return wait_failed(c, err, "was killed but has not stopped after 30 s; see host log");
    call_note(c, "VM \"%s\" killed", c->vm);
    return EX_DONE;
}

static int reboot_one(struct call *c, struct guest *g)
{
    int code = stop_one(c, g);
    return code ? code : start_one(c, g);
}

static int reset_one(struct call *c, struct guest *g)
{
    int code = guest_reset(g, &c->fail);
    if (!code)
        call_note(c, "VM \"%s\" reset", c->vm);
    return code;
}

static int pause_one(struct call *c, struct guest *g)
{
    int code = guest_pause(g, &c->fail);
    if (!code)
        call_note(c, "VM \"%s\" paused", c->vm);
    return code;
}

static int resume_one(struct call *c, struct guest *g)
{
    int code = guest_resume(g, &c->fail);
    if (!code)
        call_note(c, "VM \"%s\" resumed", c->vm);
    return code;
}

static int wait_one(struct call *c, struct guest *g)
{
    static const char *const late[] = { "has not stopped in time", "does not run yet", "is not paused yet" };
    struct guest_status st;
    unsigned what = (unsigned)call_num(c, "for", WAIT_STOPPED);
    int err = wait_for(c->s, g, what, call_num(c, "timeout", UINT64_MAX), NULL);
    if (err)
        return wait_failed(c, err, late[what]);
    guest_status(g, &st);
    if (what == WAIT_STOPPED && st.cause == STOP_DEBUG_EXIT)
        call_note(c, "VM \"%s\" is stopped: debug exit with code %u", c->vm, st.code);
    else if (what == WAIT_STOPPED && st.reason[0])
        call_note(c, "VM \"%s\" is %s: %s", c->vm, guest_state_names[st.state], st.reason);
    else
        call_note(c, "VM \"%s\" is %s", c->vm, guest_state_names[st.state]);
    return EX_DONE;
}

int cmd_vm_start(struct call *c)
{
    int code = each_vm(c, start_one);
    if (code || !call_has(c, "console"))
        return code;
    c->nargs = 1;
    return cmd_vm_console(c);
}

int cmd_vm_stop(struct call *c) { return each_vm(c, stop_one); }
int cmd_vm_kill(struct call *c) { return each_vm(c, kill_one); }
int cmd_vm_reboot(struct call *c) { return each_vm(c, reboot_one); }
int cmd_vm_reset(struct call *c) { return each_vm(c, reset_one); }
int cmd_vm_pause(struct call *c) { return each_vm(c, pause_one); }
int cmd_vm_resume(struct call *c) { return each_vm(c, resume_one); }
int cmd_vm_wait(struct call *c) { return each_vm(c, wait_one); }
