/* Local APIC of the host, in xAPIC or x2APIC mode.  Inside kernel/x86; others use irq.h, smp.h, time.h.  Any context unless said otherwise. */
#pragma once
#include "kernel/hw/apic.h"
#include "kernel/x86/acpi.h"

/* Boot CPU: choose the mode.  False with a sentence: there is no usable local APIC. */
bool lapic_init(const struct acpi_info *, bool allow_x2apic, char *err, size_t errlen);
void lapic_init_cpu(const struct acpi_info *, uint32_t acpi_uid);       /* each CPU, interrupts off */
bool lapic_x2apic(void);
uint32_t lapic_id(void);
void lapic_eoi(void);
/* icr_low: vector, delivery mode and flags; returns once the APIC took it (xAPIC: bounded wait). */
void lapic_ipi(uint32_t apic_id, uint32_t icr_low);
void lapic_ipi_all_but_self(uint32_t icr_low);
uint32_t lapic_error(void);             /* ESR, cleared */

/* Timer of this CPU.  Count 0 stops it. */
void lapic_timer_mode(uint32_t mode);   /* LVT_TIMER_ONESHOT or LVT_TIMER_DEADLINE */
void lapic_timer_count(uint32_t count);
uint32_t lapic_timer_current(void);
