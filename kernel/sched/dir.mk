hosted += kernel/sched/rq.c
core += kernel/sched/sched.c kernel/sched/runq.c kernel/sched/thread.c kernel/sched/switch.S kernel/sched/timer.c kernel/sched/lock.c kernel/sched/work.c kernel/sched/fpu.c \
  kernel/sched/selftest.c
service += kernel/sched/selftest_fpu.c
