/*
 * The kernel's inline forms of the hot functions of kernel/lib/port.h, found through the include path (hosted and debug builds find an empty file).
 * kernel/sched/lock.c has the same functions out of line.  %gs:8 is preempt_count, %gs:12 softwork: kernel/x86/percpu.h.
 */
#pragma once

#define PORT_INLINE extern inline __attribute__((gnu_inline, always_inline))

void spin_lock_wait(struct spinlock *);         /* kernel/sched/lock.c */
void sched_preempt_point(void);

PORT_INLINE void port_irq_disable(void) { __asm__ volatile("cli" ::: "memory"); }
PORT_INLINE void port_irq_enable(void) { __asm__ volatile("sti" ::: "memory"); }
PORT_INLINE void preempt_disable(void) { __asm__ volatile("addl $1, %%gs:8" ::: "memory", "cc"); }

PORT_INLINE void preempt_enable(void)
{
    bool zero, work;
    __asm__ volatile("subl $1, %%gs:8" : "=@ccz"(zero) :: "memory");
    if (zero) {
        __asm__ volatile("cmpl $0, %%gs:12" : "=@ccnz"(work) :: "memory");
        if (unlikely(work))
            sched_preempt_point();
    }
}

PORT_INLINE void spin_lock(struct spinlock *l)
{
    preempt_disable();
    if (unlikely(__atomic_exchange_n(&l->held, 1u, __ATOMIC_ACQUIRE)))
        spin_lock_wait(l);
}

PORT_INLINE bool spin_trylock(struct spinlock *l)
{
    preempt_disable();
    if (likely(!__atomic_exchange_n(&l->held, 1u, __ATOMIC_ACQUIRE)))
        return true;
    preempt_enable();
    return false;
}

PORT_INLINE void spin_unlock(struct spinlock *l)
{
    atomic_store(&l->held, 0u);
    preempt_enable();
}

PORT_INLINE unsigned port_cpu(void)
{
    uint32_t v;
    __asm__ volatile("movl %%gs:24, %0" : "=r"(v));
    return v;
}

/* kernel/sched/sched.h */
PORT_INLINE bool sched_need_resched(void)
{
    bool work;
    __asm__ volatile("cmpl $0, %%gs:12" : "=@ccnz"(work) :: "memory");
    return work;
}
