/* Life of a thread: create, join, list. */
#include <string.h>
#include "kernel/sched/fpu.h"
#include "kernel/sched/thread.h"
#include "kernel/x86/vmap.h"

static struct spinlock list_lock;
static struct list threads = LIST_INIT(threads);

static bool alloc_parts(struct thread *t, const struct thread_attr *a)
{
    t->kstack = kstack_alloc();
    if (!t->kstack)
        return false;
    t->fpu = a->fpu;
    if (!t->fpu && a->cls != THREAD_KERNEL) {
        t->fpu = t->own_fpu = kmalloc_aligned(sched_fpu_size(), 64);
        if (!t->fpu)
            return false;
        fpu_area_init(t->fpu);
    }
    return true;
}

static void free_thread(struct thread *t)
{
    if (t->kstack)
        kstack_free(t->kstack);
    kfree(t->own_fpu);
    kfree(t);
}

/* The first switch to it pops six zero registers and returns to thread_entry_stub. */
static void first_frame(struct thread *t)
{
    t->kstack_top = (uint64_t)t->kstack + KSTACK_SIZE;
    uint64_t *sp = (uint64_t *)t->kstack_top;
    *--sp = 0;                          /* end of backtraces */
    *--sp = 0;                          /* keeps thread_entry_stub's stack 16-byte aligned */
    *--sp = (uint64_t)thread_entry_stub;
    for (int i = 0; i < 6; i++)
        *--sp = 0;
    t->rsp = (uint64_t)sp;
}

struct thread *thread_create(const struct thread_attr *a, void (*fn)(void *), void *arg)
{
    struct thread *t = a->cpus && !sched_any_online(a->cpus) ? NULL : kmalloc_aligned(sizeof *t, 64);
    if (!t)
        return NULL;
    *t = (struct thread){
        .state = THREAD_WAKING, .cpu = port_cpu(), .cls = a->cls, .hooks = a->hooks, .fpu_cpu = FPU_NOWHERE, .moved = true, .fn = fn, .arg = arg,
    };
    if (!alloc_parts(t, a)) {
        free_thread(t);
        return NULL;
    }
    strncpy(t->name, a->name ? a->name : "?", sizeof t->name - 1);
    if (a->cpus)
        t->cpus = *a->cpus;
    else
        memset(&t->cpus, 0xff, sizeof t->cpus);
    ent_init(&t->ent, a->weight, a->cap, a->cls != THREAD_VCPU);
    event_init(&t->done);
    first_frame(t);
    spin_lock(&list_lock);
    list_append(&threads, &t->all);
    spin_unlock(&list_lock);
    sched_add_new(t);
    return t;
}

struct thread *thread_start(const char *name, void (*fn)(void *), void *arg)
{
    return thread_create(&(struct thread_attr){ .name = name, .cls = THREAD_KERNEL }, fn, arg);
}

void thread_join(struct thread *t)
{
    event_wait(&t->done);
    spin_lock(&list_lock);
    list_del(&t->all);
    spin_unlock(&list_lock);
    free_thread(t);
}

static char state_letter(const struct thread *t)
{
    if (t->on_cpu)
        return 'R';
    if (t->state == THREAD_DEAD)
        return 'Z';
    if (t->state == THREAD_BLOCKED)
        return 'S';
    return t->ent.place == ENT_THROTTLED ? 'T' : 'W';
}

void thread_each(void (*fn)(void *arg, const struct thread_info *), void *arg)
{
    struct thread *t;
    spin_lock(&list_lock);
    list_for_each(t, &threads, all) {
        struct thread_info info = {
            .name = t->name, .cls = t->cls, .cpu = thread_cpu(t), .state = state_letter(t),
            .run_ns = thread_run_ns(t), .steal_ns = thread_steal_ns(t),
        };
        fn(arg, &info);
    }
    spin_unlock(&list_lock);
}
