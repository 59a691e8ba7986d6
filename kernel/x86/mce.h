/*
 * Machine checks.  SDM vol. 3 "Machine-Check Architecture", APM vol. 2 "Machine Check Architecture".  What the CPU cannot go on from is a panic.  A memory error
 * with an address, from which it can, costs whoever owns the page: a VM is stopped, the host panics.
 */
#pragma once
#include "kernel/x86/trap.h"

/* Thread context, once: tells the owner of a page whose contents are lost; false: no VM has it.  Called in thread context. */
void mce_set_owner(bool (*page_lost)(hpa_t));
void mce_trap(struct trap_frame *);     /* vector 18 in the host, on its own stack; may have interrupted anything */
/* A back-end met the exception in guest mode, on this CPU, preemption off.  True: the owner of the page will be told and the guest may go on;
 * false: this guest cannot. */
bool mce_in_guest(void);
void mce_poll(void);                    /* atomic context, now and then: passes on what mce_trap() could only note */
