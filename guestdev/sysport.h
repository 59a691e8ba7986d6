/*
 * The ports by which PC software resets the machine and talks to a debugger.  CF9h: ICH9 datasheet "Reset Control Register"; 92h: "Fast A20 and Init Register";
 * 402h: the debug console of QEMU and Bochs; F4h: QEMU's isa-debug-exit.
 */
#pragma once
#include "kernel/vmm/gdev.h"

enum { SYSPORT_CF9 = 0xcf9, SYSPORT_92 = 0x92, SYSPORT_DEBUG_EXIT = 0xf4, SYSPORT_DEBUG = 0x402 };
struct sysport;

/* events: SIGNAL_RESET; SIGNAL_DEBUG_EXIT | code << 8, where code = value << 1 | 1. */
struct sysport *sysport_create(struct signal_wire events, const char *vm_name);        /* NULL: no memory; the name is copied */
extern const struct gdev_ops sysport_ops;
int sysport_cf9_io(void *sysport, struct io *);         /* 1 port.  Inside CF8h-CFBh, which the PCI host bridge owns: it hands on byte accesses to CF9h */
int sysport_92_io(void *sysport, struct io *);          /* 1 port */
int sysport_debug_exit_io(void *sysport, struct io *);  /* 4 ports */
int sysport_debug_io(void *sysport, struct io *);       /* 1 port: lines go to the log at debug level */
