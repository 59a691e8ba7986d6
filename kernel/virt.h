/* Virtualization of this host: picks the back-end and switches every CPU on; beside main.c. */
#pragma once
#include <stdbool.h>

struct virt_options {
    unsigned phys_bits;         /* width of a physical address as guests see it, at most the host's */
    unsigned without;           /* WITHOUT_ bits of kernel/vmm/vcpu.h */
    bool check_entries;         /* see hv_ops.run_checked */
};
/* Boot CPU, thread context, after all CPUs run.  On failure hv stays NULL and hv_why says what to change; a sentence goes to the log. */
void virt_init(const struct virt_options *);
/* Any context, each CPU before a reset or a stop: leaves virtualization operation on the calling CPU. */
void virt_off_this_cpu(void);
