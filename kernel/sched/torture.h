/*
 * Random preemption, for debug builds (make DEBUG=1), where preempt_enable() and spin_unlock() are not inline: about one in torture_rate
 * of them makes the thread stand behind its peers.  Command line: torture=N; 0 is off.
 */
#pragma once
#include "kernel/lib/base.h"

extern unsigned torture_rate;
void torture_hit(void);
static inline void torture_point(void)
{
    if (unlikely(torture_rate))
        torture_hit();
}
