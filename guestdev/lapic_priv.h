/* Between lapic.c (registers), lapic_timer.c, lapic_msr.c and lapic_virt.c. */
#pragma once
#include "guestdev/lapic.h"
#include "kernel/hw/msr.h"

enum { CAME_AGAIN = 1 << 16 };
enum { EXT_LINT0 = 1, EXT_MESSAGE = 2 };       /* why this CPU listens to the PIC: the LINT0 pin is high; an ExtINT message came */

struct lapic {
    uint8_t *page;
    uint32_t *irr;              /* where requests are set: the page's IRR, or `posted` */
    uint32_t irr_words;         /* bit w may be set: word w of irr is not empty; clear: it is.  Atomic */
    uint32_t ext;               /* EXT_*; atomic */
    uint32_t offered;           /* vcpu_irqchip.offered, with CAME_AGAIN; atomic */
    uint32_t isr_words;         /* bit w: ISR word w is not empty */
    uint8_t isrv;               /* highest vector in service; 0 none (vectors below 16 are never accepted), or the CPU keeps the ISR */
    uint8_t lint;               /* pin levels, bit per pin; atomic */
    uint32_t esr;               /* errors since the last ESR write; atomic */
    uint64_t base;              /* IA32_APIC_BASE */

    /* Timer: VM time of the next expiry, 0 not running.  Whoever moves it by compare-and-swap owns that expiry. */
    uint64_t deadline;
    uint64_t period;            /* ns; 0: not periodic */
    uint64_t tsc_deadline;      /* as written; valid while deadline is not 0 */
    struct vtimer timer;

    /* c.virt: requests that are not in the page's IRR yet, laid out like it (atomic); registers as they were before the guest wrote the page. */
    uint32_t posted[8 * 4];
    struct { uint32_t lvt_timer, divide, init; } was;

    struct apic_fabric *fabric;
    struct lapic_config c;
};

static inline uint32_t *lapic_reg(const struct lapic *l, unsigned off) { return (uint32_t *)(l->page + off); }
static inline uint32_t reg_get(const struct lapic *l, unsigned off) { return atomic_load_relaxed(lapic_reg(l, off)); }
static inline void reg_set(struct lapic *l, unsigned off, uint32_t v) { atomic_store_relaxed(lapic_reg(l, off), v); }
static inline bool x2apic_mode(const struct lapic *l) { return l->base & APIC_BASE_X2APIC; }

/* IRR ← vector, with its trigger mode; a vector below 16 becomes a receive error. */
void lapic_accept_fixed(struct lapic *, uint8_t vector, bool level);
void lapic_raise_error(struct lapic *, uint32_t esr_bit);
void lapic_deliver_lvt(struct lapic *, unsigned lvt_off);
/* Registers after their address and reserved bits were checked.  off: xAPIC offset. */
uint32_t lapic_read(struct lapic *, unsigned off);
void lapic_write(struct lapic *, unsigned off, uint32_t val);
void lapic_set_derived_ids(struct lapic *);
void lapic_reset_registers(struct lapic *);
void lapic_write_eoi(struct lapic *);

void lapic_timer_init(struct lapic *);
void lapic_timer_stop(struct lapic *);
void lapic_timer_set_count(struct lapic *, uint32_t count);
void lapic_timer_set_divide(struct lapic *, uint32_t dcr);
void lapic_timer_set_lvt(struct lapic *, uint32_t lvt);
uint32_t lapic_timer_left(struct lapic *);
void lapic_timer_set_tsc(struct lapic *, uint64_t tsc);
uint64_t lapic_timer_tsc(struct lapic *);
void lapic_timer_loaded(struct lapic *);

/* lapic_virt.c */
int  lapic_virt_pending(void *apic);
void lapic_virt_eoi(struct lapic *);
void lapic_virt_merge(struct lapic *);
uint8_t lapic_virt_isrv(const struct lapic *);
void lapic_virt(void *apic, struct apic_virt *);
void lapic_wrote(void *apic, uint32_t off);
void lapic_eoi_done(void *apic, uint8_t vector);
int  lapic_pending_extint(struct lapic *, uint32_t ext);
void lapic_eoi_level(struct lapic *, uint8_t vector);
void lapic_self_ipi(struct lapic *, uint32_t vector);

bool lapic_msr_read(void *apic, uint32_t msr, uint64_t *val);
bool lapic_msr_write(void *apic, uint32_t msr, uint64_t val);
