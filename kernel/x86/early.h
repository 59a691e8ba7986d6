/* First console and the ways to end: small things that main.c and panic need of kernel/x86. */
#pragma once
#include "kernel/lib/base.h"

void early_uart_init(void);     /* COM1, if there is one, becomes a console */

/* ---- power.c ---- */
void power_set_hv_off(void (*fn)(void));        /* called on every CPU before reset or power-off: leaves VMX/SVM operation */
int  power_off(void);           /* S5; thread context; -errno when the firmware told no way */
__attribute__((noreturn)) void power_reset(void);       /* any context; tries every way down to the triple fault */
