/* vm show, log, stats, dump; image list. */
#include <stdio.h>
#include <string.h>
#include "kernel/host.h"
#include "kernel/lib/port.h"
#include "kernel/vmm/exit.h"
#include "mgmt/cmd.h"
#include "mgmt/guest.h"
#include "mgmt/units.h"

/* ---- show ---- */
static const struct column show_columns[] = {
    COL("name", TEXT), COL("state", TEXT), COL("reason", TEXT), COL("debug-exit-code", NUM),
    COL("uptime", TIME), COL("started", UTC), COL("stopped", UTC), COL("starts", NUM), COL("resets", NUM),
    COL("cpus", NUM), COL("mem", SIZE), COL("overhead", SIZE), COL("kernel", TEXT),
    COL("initrd", TEXT), COL("cmdline", TEXT), COL("on-crash", TEXT), COL("cpu-weight", NUM),
    COL("cpu-cap", NUM), COL("autostart", BOOL),
};
static const struct column disk_columns[] = {
    COL("image", TEXT), COL("bus", TEXT), COL("read-only", BOOL), COL("serial", TEXT), COL("size", SIZE),
};
static const struct column device_columns[] = { COL("bus", TEXT), COL("base", HEX), COL("size", HEX), COL("device", TEXT) };

static void num_if(struct report *r, bool there, uint64_t v)
{
    there ? rep_num(r, v) : rep_none(r);
}

static void show_record(struct report *r, const struct vmdef *d, const struct guest_status *st)
{
    bool off = st->state <= GUEST_CRASHED;
    rep_record(r, "vm", show_columns, ARRAY_SIZE(show_columns));
    rep_str(r, d->name);
    rep_str(r, guest_state_names[st->state]);
    rep_str(r, off && st->reason[0] ? st->reason : NULL);
    num_if(r, off && st->cause == STOP_DEBUG_EXIT, st->code);
    num_if(r, !off, st->uptime_ns);
    num_if(r, st->starts, st->started_utc);
    num_if(r, off && st->stopped_utc, st->stopped_utc);
    rep_num(r, st->starts);
    num_if(r, st->starts, st->resets);
    rep_num(r, d->cpus);
    rep_num(r, d->mem);
    num_if(r, !off, st->overhead);
    rep_str(r, d->kernel[0] ? d->kernel : NULL);
    rep_str(r, d->initrd[0] ? d->initrd : NULL);
    rep_str(r, d->cmdline[0] ? d->cmdline : NULL);
    rep_str(r, d->on_crash ? "stop" : "reset");
    rep_num(r, d->weight);
    num_if(r, d->cap, d->cap);
    rep_num(r, d->autostart);
}

static void show_disks(struct report *r, const struct vmdef *d)
{
    struct host_image img;
    struct fail f;
    rep_table(r, "disks", disk_columns, ARRAY_SIZE(disk_columns));
    rep_title(r, "disks (writes go to RAM and are lost when the VM stops)");
    for (unsigned i = 0; i < d->ndisks; i++) {
        rep_str(r, d->disks[i].image);
        rep_str(r, "virtio");
        rep_num(r, d->disks[i].read_only);
        rep_str(r, d->disks[i].serial[0] ? d->disks[i].serial : NULL);
        bool found = !image_find(d->disks[i].image, &img, &f);
        num_if(r, found, img.len);
    }
}

static void device_row(void *arg, const char *bus, uint64_t base, uint64_t len, const char *name)
{
    struct report *r = arg;
    rep_str(r, bus);
    rep_num(r, base);
    rep_num(r, len);
    rep_str(r, name);
}

static void devices(void *arg, struct machine *m) { machine_each_device(m, device_row, arg); }

static void dump_row(void *arg, const char *line) { rep_str(arg, line); }

static void show_toml(struct report *r, const struct vmdef *d)
{
    struct buf text;
    buf_init(&text, VMDEF_MAX_FILE);
    vmdef_toml(d, &text);
    rep_lines(r, "toml");
    for (char *line = text.p, *end; line && (end = strchr(line, '\n')); line = end + 1) {
        *end = 0;
        rep_str(r, line);
    }
    buf_free(&text);
}

/* The definition as vm create -f reads it, for --json. */
static void show_config(struct report *r, const struct vmdef *d)
{
    struct buf text;
    struct json j;
    buf_init(&text, VMDEF_MAX_FILE);
    json_begin(&j, &text);
    vmdef_json(d, &j, NULL);
    if (!text.failed)
        rep_raw(r, "config", text.p);
    buf_free(&text);
}

int cmd_vm_show(struct call *c)
{
    struct guest_status st;
    struct fail none;
    struct vmdef *d = kmalloc(sizeof *d);
    struct guest *g = d ? guest_find(c->args[0], &c->fail) : NULL;
    int code = d ? c->fail.code : fail_set(&c->fail, EX_RESOURCE, "no memory to show a VM");
    if (g) {
        guest_def(g, d);
        guest_status(g, &st);
        if (call_has(c, "toml")) {
            show_toml(&c->rep, d);
        } else {
            show_record(&c->rep, d, &st);
            show_disks(&c->rep, d);
            rep_table(&c->rep, "devices", device_columns, ARRAY_SIZE(device_columns));
            rep_title(&c->rep, "devices");
            guest_with_machine(g, devices, &c->rep, &none);
            show_config(&c->rep, d);
            if (call_has(c, "cpu")) {
                rep_lines(&c->rep, "dump");
                rep_title(&c->rep, "processors");
                code = guest_dump(g, dump_row, &c->rep, &c->fail);
            }
        }
        guest_put(g);
    }
    kfree(d);
    return code;
}

int cmd_vm_dump(struct call *c)
{
    struct guest *g = guest_find(c->args[0], &c->fail);
    if (!g)
        return c->fail.code;
    rep_lines(&c->rep, "dump");
    int code = guest_dump(g, dump_row, &c->rep, &c->fail);
    guest_put(g);
    return code;
}

/* ---- log ---- */
static void log_row(void *arg, uint64_t utc, const char *text)
{
    rep_num(arg, utc);
    rep_str(arg, text);
}

int cmd_vm_log(struct call *c)
{
    static const struct column cols[] = { COL("time", UTC), COL("event", TEXT) };
    struct guest *g = guest_find(c->args[0], &c->fail);
    if (!g)
        return c->fail.code;
    rep_table(&c->rep, "log", cols, ARRAY_SIZE(cols));
    vmlog_each(&g->log, log_row, &c->rep);
    guest_put(g);
    return EX_DONE;
}

/* ---- stats ---- */
static const struct column time_columns[] = {
    COL("vcpu", NUM), COL("state", TEXT), COL("cpu", NUM), COL("guest", TIME), COL("host", TIME),
    COL("halt", TIME), COL("steal", TIME), COL("exits", NUM), COL("irqs", NUM), COL("nmis", NUM),
    COL("exceptions", NUM), COL_EXTRA("decodes", NUM),
};
#define VCPU_COLUMN(n) { "vcpu" #n, CELL_NUM, false }
static const struct column exit_columns[] = {
    COL("reason", TEXT), COL("total", NUM),
    VCPU_COLUMN(0), VCPU_COLUMN(1), VCPU_COLUMN(2), VCPU_COLUMN(3), VCPU_COLUMN(4), VCPU_COLUMN(5),
    VCPU_COLUMN(6), VCPU_COLUMN(7), VCPU_COLUMN(8), VCPU_COLUMN(9), VCPU_COLUMN(10), VCPU_COLUMN(11),
    VCPU_COLUMN(12), VCPU_COLUMN(13), VCPU_COLUMN(14), VCPU_COLUMN(15), VCPU_COLUMN(16), VCPU_COLUMN(17),
    VCPU_COLUMN(18), VCPU_COLUMN(19), VCPU_COLUMN(20), VCPU_COLUMN(21), VCPU_COLUMN(22), VCPU_COLUMN(23),
    VCPU_COLUMN(24), VCPU_COLUMN(25), VCPU_COLUMN(26), VCPU_COLUMN(27), VCPU_COLUMN(28), VCPU_COLUMN(29),
    VCPU_COLUMN(30), VCPU_COLUMN(31),
};
_Static_assert(ARRAY_SIZE(exit_columns) == 2 + VMDEF_MAX_CPUS, "one column per virtual CPU");
_Static_assert(EXIT_KINDS <= 32, "vcpu_stats.exits");

struct stats { struct vcpu_stats *cpu; unsigned n, max; };

static void take_stats(void *arg, struct machine *m)
{
    struct stats *s = arg;
    struct vm *vm = machine_vm(m);
    s->n = MIN(vm_ncpus(vm), s->max);
    for (unsigned i = 0; i < s->n; i++)
        vm_vcpu_stats(vm, i, &s->cpu[i]);
}

static void time_table(struct report *r, const struct stats *s)
{
    rep_table(r, "vcpus", time_columns, ARRAY_SIZE(time_columns));
    for (unsigned i = 0; i < s->n; i++) {
        const struct vcpu_stats *v = &s->cpu[i];
        uint64_t exits = 0;
        for (unsigned k = 0; k < EXIT_KINDS; k++)
            exits += v->exits[k];
        rep_num(r, i);
        rep_str(r, !v->started ? "off" : v->halted ? "halted" : "running");
        const uint64_t cells[] = { v->cpu,  v->guest_ns, v->host_ns,    v->halt_ns,     v->steal_ns,     exits,
                                   v->irqs, v->nmis,     v->exceptions, v->decodes };
        for (unsigned k = 0; k < ARRAY_SIZE(cells); k++)
            rep_num(r, cells[k]);
    }
}

static void exit_table(struct report *r, const struct stats *s)
{
    rep_table(r, "exits", exit_columns, 2 + s->n);
    rep_title(r, "exits by reason");
    for (unsigned k = 0; k < EXIT_KINDS; k++) {
        uint64_t total = 0;
        for (unsigned i = 0; i < s->n; i++)
            total += s->cpu[i].exits[k];
        if (!total)
            continue;
        rep_str(r, exit_kind_name((enum exit_kind)k));
        rep_num(r, total);
        for (unsigned i = 0; i < s->n; i++)
            rep_num(r, s->cpu[i].exits[k]);
    }
}

int cmd_vm_stats(struct call *c)
{
    struct guest *g = guest_find(c->args[0], &c->fail);
    if (!g)
        return c->fail.code;
    struct stats s = { .cpu = kzalloc(VMDEF_MAX_CPUS * sizeof *s.cpu), .max = VMDEF_MAX_CPUS };
    int code = s.cpu ? guest_with_machine(g, take_stats, &s, &c->fail)
                     : fail_set(&c->fail, EX_RESOURCE, "no memory for the figures");
    if (!code) {
        time_table(&c->rep, &s);
        exit_table(&c->rep, &s);
    }
    kfree(s.cpu);
    guest_put(g);
    return code;
}

/* ---- image list ---- */
int cmd_image_list(struct call *c)
{
    static const struct column cols[] = { COL("name", TEXT), COL("size", SIZE), COL("state", TEXT) };
    static const char *const states[] = { [IMAGE_UNCHECKED] = "not checked yet", [IMAGE_OK] = "ok", [IMAGE_CORRUPT] = "damaged" };
    struct host_image img;
    rep_table(&c->rep, "images", cols, ARRAY_SIZE(cols));
    for (unsigned i = 0; host_image(i, &img); i++) {
        rep_str(&c->rep, img.name);
        rep_num(&c->rep, img.len);
        rep_str(&c->rep, states[img.state]);
    }
    if (!host_images())
        call_note(c, "the store is empty: make iso IMAGES=DIR puts files into it");
    return EX_DONE;
}
