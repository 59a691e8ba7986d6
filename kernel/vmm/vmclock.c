#include "kernel/vmm/vmclock.h"

/*
 * Two locks.  clock->lock serialises start, stop, set and the list of all vtimers.  vtimer->lock guards `deadline` and `armed` of one timer, so that
 * arming never meets another vCPU.  Order: clock->lock, then vtimer->lock.
 *
 * arm against stop/start: both publish the clock's new state first and then visit every vtimer under its lock.  An arm that read the old state is
 * therefore seen by the visit, and one that comes after the visit reads the new state.
 */

void vmclock_init(struct vmclock *c)
{
    *c = (struct vmclock){ .running = false };
    list_init(&c->timers);
}

/*
 * The host clock is read inside the sequence count, by readers and writers alike.  So a reading that a writer overtakes is thrown away, and VM time never steps
 * back over a pause.
 */
static inline bool unchanged(struct vmclock *c, uint32_t seq)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return likely(atomic_load_relaxed(&c->seq) == seq);
}
static inline uint32_t begin_read(struct vmclock *c) { return atomic_load(&c->seq) & ~1u; }

uint64_t vmclock_now(struct vmclock *c)
{
    uint32_t seq;
    uint64_t now;
    do {
        seq = begin_read(c);
        now = likely(READ_ONCE(c->running)) ? clock_ns() + READ_ONCE(c->offset) : READ_ONCE(c->stopped_at);
    } while (!unchanged(c, seq));
    return now;
}

/* Does it run, and how far is VM time ahead of the host's? */
static inline bool read_offset(struct vmclock *c, int64_t *offset)
{
    uint32_t seq;
    bool running;
    do {
        seq = begin_read(c);
        running = READ_ONCE(c->running);
        *offset = READ_ONCE(c->offset);
    } while (!unchanged(c, seq));
    return running;
}

/* Around every change; clock->lock held. */
static void write_begin(struct vmclock *c)
{
    atomic_store_relaxed(&c->seq, c->seq + 1);
    atomic_fence();
}
static void write_end(struct vmclock *c) { atomic_store(&c->seq, c->seq + 1); }

/* VM time → host time; a deadline beyond the host clock's range never comes. */
static uint64_t host_time(uint64_t vm_ns, int64_t offset)
{
    uint64_t t = vm_ns - offset;
    if (offset > 0)
        return vm_ns < (uint64_t)offset ? 0 : t;
    return t < vm_ns ? UINT64_MAX : t;
}

void vmclock_start(struct vmclock *c)
{
    spin_lock(&c->lock);
    if (!c->running) {
        write_begin(c);
        WRITE_ONCE(c->offset, c->stopped_at - clock_ns());
        WRITE_ONCE(c->running, true);
        write_end(c);
        struct vtimer *t;
        list_for_each(t, &c->timers, link) {
            spin_lock(&t->lock);
            if (t->armed)
                timer_arm(&t->host, host_time(t->deadline, c->offset));
            spin_unlock(&t->lock);
        }
    }
    spin_unlock(&c->lock);
}

void vmclock_stop(struct vmclock *c)
{
    spin_lock(&c->lock);
    if (c->running) {
        write_begin(c);
        WRITE_ONCE(c->stopped_at, clock_ns() + c->offset);
        WRITE_ONCE(c->running, false);
        write_end(c);
        struct vtimer *t;
        list_for_each(t, &c->timers, link) {
            spin_lock(&t->lock);
            timer_cancel(&t->host);
            spin_unlock(&t->lock);
        }
    }
    spin_unlock(&c->lock);
}

void vmclock_set(struct vmclock *c, uint64_t ns)
{
    spin_lock(&c->lock);
    ASSERT(!c->running);
    write_begin(c);
    WRITE_ONCE(c->stopped_at, ns);
    write_end(c);
    spin_unlock(&c->lock);
}

static void expired(struct timer *host)
{
    struct vtimer *t = container_of(host, struct vtimer, host);
    int64_t offset;
    bool fire = false;
    spin_lock(&t->lock);
    if (t->armed && read_offset(t->clock, &offset)) {
        /* An arm or a clock stop may have overtaken this expiry on its way. */
        t->now = clock_ns() + offset;
        fire = t->now >= t->deadline;
        if (likely(fire))
            t->armed = false;
        else
            timer_arm(&t->host, host_time(t->deadline, offset));
    }
    spin_unlock(&t->lock);
    if (fire)
        t->fn(t->arg);
}

void vtimer_init(struct vtimer *t, struct vmclock *c, void (*fn)(void *), void *arg)
{
    *t = (struct vtimer){ .clock = c, .fn = fn, .arg = arg };
    timer_init(&t->host, expired);
    spin_lock(&c->lock);
    list_append(&c->timers, &t->link);
    spin_unlock(&c->lock);
}

void vtimer_arm(struct vtimer *t, uint64_t vm_ns)
{
    spin_lock(&t->lock);
    t->deadline = vm_ns;
    t->armed = true;
    int64_t offset;
    if (read_offset(t->clock, &offset))
        timer_arm(&t->host, host_time(vm_ns, offset));
    spin_unlock(&t->lock);
}

bool vtimer_cancel(struct vtimer *t)
{
    spin_lock(&t->lock);
    bool was = t->armed;
    t->armed = false;
    if (was)
        timer_cancel(&t->host);
    spin_unlock(&t->lock);
    return was;
}

void vtimer_destroy(struct vtimer *t)
{
    vtimer_cancel(t);
    spin_lock(&t->clock->lock);
    list_del(&t->link);
    spin_unlock(&t->clock->lock);
    timer_cancel_sync(&t->host);
}
