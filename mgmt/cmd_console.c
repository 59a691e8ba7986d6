/* vm console: a terminal at a guest's port.  Bytes pass unchanged both ways; Ctrl-] leaves. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "kernel/lib/port.h"
#include "mgmt/cmd.h"
#include "mgmt/guest.h"

enum { LEAVE = 0x1d /* Ctrl-] */, PATIENCE = 1000000000 /* ns that a guest may leave input unread before more is thrown away */ };

struct attach {
    struct session *s;
    struct guest *g;
    struct conmux *mux;
    uint64_t pos, took_at;
    uint8_t pending[1024];      /* typed, not yet taken by the guest */
    size_t npending;
    bool read_only, leave, line_start;
};

/* Guest to terminal, as much as the terminal takes now. */
static bool show_output(struct attach *a)
{
    char some[512];
    uint64_t lost = 0;
    size_t room = session_room(a->s), n;
    if (!room || !(n = conmux_read(a->mux, &a->pos, some, MIN(room, sizeof some), &lost)))
        return false;
    if (lost) {
        char text[80];
        snprintf(text, sizeof text, "\r\n[%lu bytes were not shown]\r\n", (unsigned long)lost);
        session_raw(a->s, text, strlen(text));
    }
    session_raw(a->s, some, n);
    a->line_start = some[n - 1] == '\n';
    return true;
}

static void feed_guest(struct attach *a)
{
    size_t n = a->npending ? conmux_write(a->mux, a->pending, a->npending) : 0;
    if (n || !a->npending)
        a->took_at = clock_ns();
    memmove(a->pending, a->pending + n, a->npending - n);
    a->npending -= n;
}

/*
 * Terminal to guest.  A guest that reads slowly slows the typist; one that does not read loses what does not fit, so that Ctrl-]
 * always works.
 */
static bool take_input(struct attach *a)
{
    uint8_t key;
    unsigned n = 0;
    for (; n < 256 && !a->leave; n++) {
        if (a->npending == sizeof a->pending && clock_ns() - a->took_at < PATIENCE)
            break;
        if (!session_read(a->s, &key, 1))
            break;
        a->leave = key == LEAVE;
        if (!a->leave && !a->read_only && a->npending < sizeof a->pending)
            a->pending[a->npending++] = key;
    }
    return n != 0;
}

/* Why there is nothing more to see, or NULL. */
static bool ended(struct attach *a, struct guest_status *st)
{
    guest_status(a->g, st);
    return st->state <= GUEST_CRASHED;
}

static void pump(struct attach *a, struct guest_status *st)
{
    bool busy = false;
    for (;;) {
        bool over = ended(a, st);
        do {
            busy = take_input(a);
            feed_guest(a);
            busy |= show_output(a);
        } while (busy && !a->leave && !atomic_load(&a->s->closed));
        if (over || a->leave || atomic_load(&a->s->closed))
            return;
        if (a->npending)
            event_wait_until(&a->s->wake, clock_ns() + PATIENCE / 4);
        else
            event_wait(&a->s->wake);
    }
}

static int attach(struct call *c, struct guest *g, unsigned port)
{
    struct session *s = c->s;
    struct guest_status st;
    struct watch on_state, on_output;
    struct attach *a = kzalloc(sizeof *a);
    if (!a)
        return fail_set(&c->fail, EX_RESOURCE, "no memory to attach");
    a->s = s, a->g = g, a->mux = &g->port[port], a->read_only = call_has(c, "ro"), a->line_start = true;
    session_msg(s, "%s of VM \"%s\"%s; Ctrl-] leaves\n", guest_port_names[port], c->args[0],
                a->read_only ? ", watching only" : "");
    watch_add(&g->watchers, &on_state, &s->wake);
    watch_add(&a->mux->watchers, &on_output, &s->wake);
    a->pos = conmux_oldest(a->mux);
    a->took_at = clock_ns();
    pump(a, &st);
    watch_del(&a->mux->watchers, &on_output);
    watch_del(&g->watchers, &on_state);
    if (a->leave)
        session_msg(s, "%sleft VM \"%s\"\n", a->line_start ? "" : "\n", c->args[0]);
    else
        session_msg(s, "%sVM \"%s\" is %s%s%s\n", a->line_start ? "" : "\n", c->args[0], guest_state_names[st.state],
                    st.reason[0] ? ": " : "", st.reason);
    kfree(a);
    return EX_DONE;
}

static int can_attach(struct call *c, struct guest *g, unsigned port)
{
    struct guest_status st;
    static const char *const keys[GUEST_PORTS] = { "", "com2", "virtio-console" };
    guest_status(g, &st);
    if (!c->s->p.interactive || c->json) {
        fail_set(&c->fail, EX_USAGE, "vm console needs a terminal");
        fail_hint(&c->fail, "vm log %s and vm show %s tell about it", st.name, st.name);
    } else if (!st.port[port]) {
        fail_set(&c->fail, EX_STATE, "VM \"%s\" has no %s port", st.name, guest_port_names[port]);
        fail_hint(&c->fail, "vm set %s --%s gives it one at the next start", st.name, keys[port]);
    } else if (!st.starts) {
        fail_set(&c->fail, EX_STATE, "VM \"%s\" was never started", st.name);
        fail_hint(&c->fail, "vm start %s --console", st.name);
    }
    return c->fail.code;
}

int cmd_vm_console(struct call *c)
{
    struct guest *g = guest_find(c->args[0], &c->fail);
    if (!g)
        return c->fail.code;
    unsigned port = (unsigned)call_num(c, "port", 0);
    int code = can_attach(c, g, port);
    if (!code)
        code = attach(c, g, port);
    guest_put(g);
    return code;
}
