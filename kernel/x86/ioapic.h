/* IOAPICs of the host and the masked PIC pair.  Inside kernel/x86; drivers use irq.h.  irq context is allowed. */
#pragma once
#include "kernel/x86/acpi.h"

void pic_disable(void);                         /* both 8259s to harmless vectors and masked */
void ioapic_init(const struct acpi_info *);     /* maps them, masks every line */
bool ioapic_has(uint32_t gsi);
/* Program a line masked: vector on the CPU with this APIC ID (below 255). -ENOENT: no such GSI. */
int  ioapic_route(uint32_t gsi, unsigned vector, uint32_t apic_id, bool active_low, bool level);
void ioapic_mask(uint32_t gsi, bool masked);
