/* Nothing is inline here: see kernel/sched/inline/port_inline.h. */
#pragma once
