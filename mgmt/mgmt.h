/*
 * The management layer: shells on the machine's consoles, the table of VMs.  main.c calls mgmt_start last, in thread context,
 * when consoles, host facts, timers, work queues and the hypervisor (or the reason why there is none) are there.  Returns once
 * the shells run.
 *
 * Kernel command line:
 *   demo               defines and starts VM `demo` from the images vmlinuz and initrd
 *   run="cmd; cmd"     runs commands on the first console before its prompt ('…' quotes inside)
 *   testguests=PREFIX  after run=: starts each image PREFIX… in a VM with a debug-exit port, one after the other, says which
 *                      passed (wrote 0 there), and switches the machine off.  PREFIX….vm.toml are definitions; other images are kernels.
 *   loglevel=LEVEL     0 error, 1 warning (default), 2 info, 3 debug: log lines that consoles show beside the prompt
 * Every image *.vm.toml outside the test guests' prefix is defined at boot; those with autostart = true are started.
 */
#pragma once

void mgmt_start(void);
