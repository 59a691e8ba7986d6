#include "guestdev/lapic_priv.h"
#include "kernel/lib/port.h"

#include <errno.h>
#include <string.h>

enum { VERSION = 0x14, LVT_LAST = 5 };

/* Registers by offset / 16. */
#define R(off) BIT((off) >> 4)
#define ROW(off) (BITS(7, 0) << ((off) >> 4))
#define READABLE (R(LAPIC_ID) | R(LAPIC_VERSION) | R(LAPIC_TPR) | R(LAPIC_APR) | R(LAPIC_PPR) | R(LAPIC_RRD) | R(LAPIC_LDR) | R(LAPIC_DFR) | R(LAPIC_SVR) | \
                  ROW(LAPIC_ISR) | ROW(LAPIC_TMR) | ROW(LAPIC_IRR) | R(LAPIC_ESR) | R(LAPIC_ICR) | R(LAPIC_ICR_HI) | R(LAPIC_LVT_TIMER) | \
                  R(LAPIC_LVT_THERMAL) | R(LAPIC_LVT_PERF) | R(LAPIC_LVT_LINT0) | R(LAPIC_LVT_LINT1) | R(LAPIC_LVT_ERROR) | R(LAPIC_TIMER_INIT) | \
                  R(LAPIC_TIMER_CURRENT) | R(LAPIC_TIMER_DIVIDE))
#define WRITABLE (R(LAPIC_ID) | R(LAPIC_TPR) | R(LAPIC_EOI) | R(LAPIC_LDR) | R(LAPIC_DFR) | R(LAPIC_SVR) | R(LAPIC_ESR) | R(LAPIC_ICR) | R(LAPIC_ICR_HI) | \
                  R(LAPIC_LVT_TIMER) | R(LAPIC_LVT_THERMAL) | R(LAPIC_LVT_PERF) | R(LAPIC_LVT_LINT0) | R(LAPIC_LVT_LINT1) | R(LAPIC_LVT_ERROR) | \
                  R(LAPIC_TIMER_INIT) | R(LAPIC_TIMER_DIVIDE))

/* The LVT registers and the bits that can be written in each; SDM "Local Vector Table". */
static const struct lvt { uint16_t off; uint32_t mask; } lvts[] = {
    { LAPIC_LVT_TIMER,   LVT_VECTOR | LVT_MASKED | LVT_TIMER_MODE },
    { LAPIC_LVT_THERMAL, LVT_VECTOR | LVT_DELIVERY | LVT_MASKED },
    { LAPIC_LVT_PERF,    LVT_VECTOR | LVT_DELIVERY | LVT_MASKED },
    { LAPIC_LVT_LINT0,   LVT_VECTOR | LVT_DELIVERY | LVT_MASKED | LVT_ACTIVE_LOW | LVT_LEVEL },
    { LAPIC_LVT_LINT1,   LVT_VECTOR | LVT_DELIVERY | LVT_MASKED | LVT_ACTIVE_LOW | LVT_LEVEL },
    { LAPIC_LVT_ERROR,   LVT_VECTOR | LVT_MASKED },
};
_Static_assert(ARRAY_SIZE(lvts) == LVT_LAST + 1, "version register");

bool lapic_hw_enabled(const struct lapic *l) { return atomic_load_relaxed(&l->base) & APIC_BASE_ENABLE; }
bool lapic_sw_enabled(const struct lapic *l) { return lapic_hw_enabled(l) && (reg_get(l, LAPIC_SVR) & LAPIC_SVR_ENABLE); }
unsigned lapic_priority(const struct lapic *l) { return reg_get(l, LAPIC_TPR) >> 4 & 15; }

/* ---- Accepting interrupts: any CPU ---- */

static void set_bit_to(uint32_t *word, uint32_t bit, bool on)
{
    if (!(atomic_load_relaxed(word) & bit) == !on)
        return;
    if (on)
        atomic_or(word, bit);
    else
        atomic_and(word, ~bit);
}

/* The vCPU clears a summary bit before it looks at the word again: one of the two sees the other. */
static void set_summary(struct lapic *l, unsigned word)
{
    if (!(atomic_load(&l->irr_words) & BIT(word)))
        atomic_or(&l->irr_words, BIT(word));
}

/*
 * The vector's IRR bit was set already.  If the vCPU has gone to the guest with it, the guest may have taken it, and this is another one: a mark says so, and
 * lapic_accept(), which clears the bit first and takes the mark afterwards, keeps it.  If the bit is gone by now, it was taken and not marked: begin anew.
 * True: the vCPU must look.
 */
static bool came_again(struct lapic *l, uint8_t vector)
{
    uint32_t *irr = &l->irr[4 * (vector >> 5)], bit = BIT(vector & 31), offered;
    do {
        offered = vector;
        if (atomic_cas(&l->offered, &offered, vector | CAME_AGAIN))
            return true;
        if (offered == (vector | CAME_AGAIN) || (atomic_load(irr) & bit))
            return false;
    } while (atomic_or(irr, bit) & bit);
    return true;
}

void lapic_accept_fixed(struct lapic *l, uint8_t vector, bool level)
{
    if (unlikely(vector < 16)) {
        lapic_raise_error(l, LAPIC_ESR_RECV_ILLEGAL);
        return;
    }
    uint32_t bit = BIT(vector & 31), word = vector >> 5;
    set_bit_to(lapic_reg(l, LAPIC_TMR + 16 * word), bit, level);
    if (unlikely(atomic_or(&l->irr[4 * word], bit) & bit) && !came_again(l, vector))
        return;                 /* merged with one that has kicked the vCPU already */
    set_summary(l, word);
    l->c.wires.irq(l->c.wires.vcpu);
}

void lapic_raise_error(struct lapic *l, uint32_t bit)
{
    uint32_t lvt = reg_get(l, LAPIC_LVT_ERROR);
    if (atomic_or(&l->esr, bit) & bit)
        return;
    if (!(lvt & LVT_MASKED) && (lvt & LVT_VECTOR) >= 16)
        lapic_accept_fixed(l, lvt & LVT_VECTOR, false);
}

void lapic_deliver(struct lapic *l, unsigned delivery, uint8_t vector, bool level)
{
    const struct vcpu_wires *w = &l->c.wires;
    if (!lapic_hw_enabled(l))
        return;
    switch (delivery) {
    case APIC_FIXED:
    case APIC_LOWEST:
        if (reg_get(l, LAPIC_SVR) & LAPIC_SVR_ENABLE)
            lapic_accept_fixed(l, vector, level);
        break;
    case APIC_SMI:
        w->smi(w->vcpu);
        break;
    case APIC_NMI:
        w->nmi(w->vcpu);
        break;
    case APIC_INIT:
        w->init(w->vcpu);
        break;
    case APIC_STARTUP:
        w->sipi(w->vcpu, vector);
        break;
    case APIC_EXTINT:
        atomic_or(&l->ext, EXT_MESSAGE);
        w->irq(w->vcpu);
        break;
    }
}

void lapic_deliver_lvt(struct lapic *l, unsigned off)
{
    uint32_t lvt = reg_get(l, off);
    if (!(lvt & LVT_MASKED))
        lapic_deliver(l, off == LAPIC_LVT_TIMER || off == LAPIC_LVT_ERROR ? APIC_FIXED : lvt & LVT_DELIVERY, lvt & LVT_VECTOR, false);
}

/* A fixed, level-triggered LINT0 repeats after each EOI while the pin is high (remote IRR holds it back meanwhile); LINT1 is always edge-triggered. */
static bool lint0_level_mode(uint32_t lvt) { return (lvt & (LVT_LEVEL | LVT_DELIVERY | LVT_MASKED)) == LVT_LEVEL; }

static void lint0_level(struct lapic *l)
{
    uint32_t lvt = reg_get(l, LAPIC_LVT_LINT0);
    if (!(atomic_load(&l->lint) & 1) || !lint0_level_mode(lvt) || !lapic_sw_enabled(l))
        return;
    if (!(atomic_or(lapic_reg(l, LAPIC_LVT_LINT0), (uint32_t)LVT_REMOTE_IRR) & LVT_REMOTE_IRR))
        lapic_accept_fixed(l, lvt & LVT_VECTOR, true);
}

static void lint_edge(struct lapic *l, unsigned pin)
{
    uint32_t lvt = reg_get(l, pin ? LAPIC_LVT_LINT1 : LAPIC_LVT_LINT0);
    if (!lapic_hw_enabled(l)) {
        if (pin)                /* the pin is the CPU's NMI then, as LINT0 is its INTR */
            l->c.wires.nmi(l->c.wires.vcpu);
    } else if (pin == 0 && lint0_level_mode(lvt)) {
        lint0_level(l);
    } else if ((lvt & LVT_DELIVERY) != APIC_EXTINT) {
        lapic_deliver_lvt(l, pin ? LAPIC_LVT_LINT1 : LAPIC_LVT_LINT0);
    }
}

void lapic_lint(void *lapic, unsigned pin, bool level)
{
    struct lapic *l = lapic;
    uint8_t bit = 1u << pin;
    uint8_t old = level ? atomic_or(&l->lint, bit) : atomic_and(&l->lint, (uint8_t)~bit);
    if (pin == 0)
        set_bit_to(&l->ext, EXT_LINT0, level);
    if (level && !(old & bit))
        lint_edge(l, pin);
    if (level && pin == 0)      /* even if it was high: the PIC's best request may be another one now */
        l->c.wires.irq(l->c.wires.vcpu);
}

/* ---- Giving them to the CPU: own vCPU thread ---- */

/* Does this CPU run INTA cycles for its LINT0 pin?  With the APIC disabled the pin is the CPU's INTR. */
static bool lint0_extint(const struct lapic *l)
{
    uint32_t lvt = reg_get(l, LAPIC_LVT_LINT0);
    return !lapic_hw_enabled(l) || (lvt & (LVT_MASKED | LVT_DELIVERY)) == APIC_EXTINT;
}

int lapic_pending_extint(struct lapic *l, uint32_t ext)
{
    if (!l->fabric->pic.pending || !((ext & EXT_MESSAGE) || lint0_extint(l)))
        return IRQ_NONE;
    int vector = l->fabric->pic.pending(l->fabric->pic.arg);
    if (vector >= 0)
        return IRQ_EXTINT | vector;
    atomic_and(&l->ext, ~(uint32_t)EXT_MESSAGE);
    return IRQ_NONE;
}

/* Somebody may set a bit meanwhile: lapic_accept_fixed(). */
static void irr_word_empty(struct lapic *l, unsigned w)
{
    atomic_and(&l->irr_words, ~(uint32_t)BIT(w));
    if (atomic_load(lapic_reg(l, LAPIC_IRR + 16 * w)))
        atomic_or(&l->irr_words, BIT(w));
}

static int highest_irr(struct lapic *l)
{
    for (uint32_t words; (words = atomic_load(&l->irr_words)) != 0; ) {
        unsigned w = 31 - __builtin_clz(words);
        uint32_t bits = atomic_load(lapic_reg(l, LAPIC_IRR + 16 * w));
        if (likely(bits))
            return 32 * w + 31 - __builtin_clz(bits);
        irr_word_empty(l, w);
    }
    return 0;
}

static int lapic_pending(void *apic)
{
    struct lapic *l = apic;
    uint32_t ext = atomic_load(&l->ext);
    if (unlikely(ext)) {
        int v = lapic_pending_extint(l, ext);
        if (v != IRQ_NONE)
            return v;
    }
    int v = highest_irr(l);
    return v >> 4 > l->isrv >> 4 ? v : IRQ_NONE;
}

static void lapic_accept(void *apic, int vector)
{
    struct lapic *l = apic;
    if (unlikely(vector & IRQ_EXTINT)) {
        atomic_and(&l->ext, ~(uint32_t)EXT_MESSAGE);
        l->fabric->pic.intack(l->fabric->pic.arg, vector & 0xff);
        return;
    }
    unsigned w = vector >> 5 & 7;
    uint32_t bit = BIT(vector & 31);
    if (!(atomic_and(lapic_reg(l, LAPIC_IRR + 16 * w), ~bit) & ~bit))
        irr_word_empty(l, w);
    if (unlikely(atomic_xchg(&l->offered, 0u) == ((uint32_t)vector | CAME_AGAIN))) {
        atomic_or(lapic_reg(l, LAPIC_IRR + 16 * w), bit);
        set_summary(l, w);
    }
    reg_set(l, LAPIC_ISR + 16 * w, reg_get(l, LAPIC_ISR + 16 * w) | bit);
    l->isr_words |= BIT(w);
    l->isrv = vector;
}

static uint8_t highest_isr(const struct lapic *l)
{
    if (!l->isr_words)
        return 0;
    unsigned w = 31 - __builtin_clz(l->isr_words);
    return 32 * w + 31 - __builtin_clz(reg_get(l, LAPIC_ISR + 16 * w));
}

void lapic_eoi_level(struct lapic *l, uint8_t vector)
{
    if ((reg_get(l, LAPIC_LVT_LINT0) & (LVT_REMOTE_IRR | LVT_VECTOR)) == (LVT_REMOTE_IRR | vector)) {
        atomic_and(lapic_reg(l, LAPIC_LVT_LINT0), ~(uint32_t)LVT_REMOTE_IRR);
        lint0_level(l);
    }
    if (l->fabric->ioapic.eoi)
        l->fabric->ioapic.eoi(l->fabric->ioapic.arg, vector);
}

void lapic_write_eoi(struct lapic *l)
{
    uint8_t vector = l->isrv;
    if (unlikely(!vector)) {
        if (l->c.virt)
            lapic_virt_eoi(l);
        return;
    }
    unsigned w = vector >> 5;
    uint32_t bit = BIT(vector & 31), left = reg_get(l, LAPIC_ISR + 16 * w) & ~bit;
    reg_set(l, LAPIC_ISR + 16 * w, left);
    if (!left)
        l->isr_words &= ~BIT(w);
    l->isrv = highest_isr(l);
    if (unlikely(reg_get(l, LAPIC_TMR + 16 * w) & bit))
        lapic_eoi_level(l, vector);
    if (atomic_load(&l->irr_words) | atomic_load(&l->ext))      /* one that this vector kept waiting */
        l->c.wires.irq(l->c.wires.vcpu);
}

/* ---- Registers ---- */

uint32_t lapic_read(struct lapic *l, unsigned off)
{
    uint32_t tpr, isrv;
    switch (off) {
    case LAPIC_PPR:
    case LAPIC_APR:             /* not maintained since the Pentium 4: shows the PPR */
        tpr = reg_get(l, LAPIC_TPR), isrv = l->c.virt ? lapic_virt_isrv(l) : l->isrv;
        return tpr >> 4 >= isrv >> 4 ? tpr : isrv & 0xf0;
    case LAPIC_TIMER_CURRENT:
        return lapic_timer_left(l);
    default:
        return reg_get(l, off);
    }
}

static void write_lvt(struct lapic *l, unsigned off, uint32_t val)
{
    val &= lvts[(off - LAPIC_LVT_TIMER) >> 4].mask;
    if (!(reg_get(l, LAPIC_SVR) & LAPIC_SVR_ENABLE))
        val |= LVT_MASKED;
    if (off == LAPIC_LVT_TIMER)
        lapic_timer_set_lvt(l, val);
    reg_set(l, off, val | (reg_get(l, off) & LVT_REMOTE_IRR));
    if (off == LAPIC_LVT_LINT0) {
        lint0_level(l);
        l->c.wires.irq(l->c.wires.vcpu);
    }
}

static void write_svr(struct lapic *l, uint32_t val)
{
    reg_set(l, LAPIC_SVR, val & (LAPIC_SVR_ENABLE | LAPIC_SVR_FOCUS_OFF | 0xff));
    if (val & LAPIC_SVR_ENABLE)
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(lvts); i++)
        reg_set(l, lvts[i].off, reg_get(l, lvts[i].off) | LVT_MASKED);
}

static void write_icr(struct lapic *l, uint32_t val)
{
    unsigned delivery = val & APIC_DELIVERY;
    uint64_t dest = reg_get(l, LAPIC_ICR_HI) >> 24;
    reg_set(l, LAPIC_ICR, val & ~(uint32_t)ICR_BUSY);
    if ((delivery == APIC_FIXED || delivery == APIC_LOWEST) && (val & 0xff) < 16)
        lapic_raise_error(l, LAPIC_ESR_SEND_ILLEGAL);
    else
        apic_send_ipi(l->fabric, l, val, dest, false);
}

void lapic_write(struct lapic *l, unsigned off, uint32_t val)
{
    switch (off) {
    case LAPIC_TPR:
        reg_set(l, off, val & 0xff);
        l->c.wires.tpr(l->c.wires.vcpu);
        break;
    case LAPIC_EOI:
        lapic_write_eoi(l);
        break;
    case LAPIC_LDR:
        reg_set(l, off, val & 0xff000000);
        break;
    case LAPIC_DFR:
        reg_set(l, off, val | 0x0fffffff);
        break;
    case LAPIC_SVR:
        write_svr(l, val);
        break;
    case LAPIC_ESR:
        reg_set(l, off, atomic_xchg(&l->esr, 0u));
        break;
    case LAPIC_ICR:
        write_icr(l, val & 0x000ccfff);
        break;
    case LAPIC_ICR_HI:
        reg_set(l, off, val & 0xff000000);
        break;
    case LAPIC_TIMER_INIT:
        lapic_timer_set_count(l, val);
        break;
    case LAPIC_TIMER_DIVIDE:
        lapic_timer_set_divide(l, val & 0xb);
        break;
    case LAPIC_LVT_TIMER ... LAPIC_LVT_ERROR:
        write_lvt(l, off, val);
        break;
    }
}

static inline __attribute__((always_inline)) int access(struct lapic *l, uint32_t off, bool write, uint32_t *val)
{
    if (unlikely((l->base & (APIC_BASE_ENABLE | APIC_BASE_X2APIC)) != APIC_BASE_ENABLE || off >= PAGE_SIZE))
        return -ENODEV;
    uint64_t set = write ? WRITABLE : READABLE, reg = off < 0x400 ? BIT(off >> 4) : 0;
    if (unlikely(off & 15)) {   /* only the first word of each 16 bytes exists */
        *val = write ? *val : 0;
    } else if (likely(reg & set)) {
        if (write)
            lapic_write(l, off, *val);
        else
            *val = lapic_read(l, off);
    } else {
        /* A read of EOI, a write of a read-only register: no error, no effect. */
        if (!(reg & (READABLE | WRITABLE)))
            lapic_raise_error(l, LAPIC_ESR_ILLEGAL_REG);
        *val = write ? *val : 0;
    }
    return 0;
}

static int lapic_mmio(void *apic, uint32_t off, bool write, uint32_t *val) { return access(apic, off, write, val); }

/* Accesses other than aligned 32-bit ones are undefined in the SDM: reads give the bytes, writes are dropped. */
int lapic_io(void *lapic, struct io *io)
{
    unsigned shift = (io->off & 3) * 8;
    uint32_t val = io->data;
    if (io->write && (io->size != 4 || shift))
        return 0;
    int err = access(lapic, io->off & ~3ull, io->write, &val);
    io->data = val >> shift;
    return err;
}

bool lapic_match_logical(const struct lapic *l, uint32_t dest, bool wide)
{
    uint32_t ldr = reg_get(l, LAPIC_LDR);
    if (x2apic_mode(l))
        return dest >> 16 == ldr >> 16 && (dest & ldr & 0xffff);
    if (wide)                   /* an xAPIC takes the low byte of a 32-bit logical destination */
        dest &= 0xff;
    ldr >>= 24;
    if (reg_get(l, LAPIC_DFR) >> 28 == 0xf)
        return dest & ldr;
    return (dest >> 4 == 0xf || dest >> 4 == ldr >> 4) && (dest & ldr & 0xf);
}

/* ---- Life cycle ---- */

/* ID and LDR in the form of the present mode; x2APIC: logical ID = cluster << 16 | 1 << (ID mod 16). */
void lapic_set_derived_ids(struct lapic *l)
{
    uint32_t id = l->c.apic_id;
    reg_set(l, LAPIC_ID, x2apic_mode(l) ? id : id << 24);
    if (x2apic_mode(l))
        reg_set(l, LAPIC_LDR, (id >> 4) << 16 | 1u << (id & 15));
}

/* SDM "Local APIC State After Power-Up or Reset"; APIC_BASE and the ID stay. */
void lapic_reset_registers(struct lapic *l)
{
    lapic_timer_stop(l);
    for (unsigned off = 0; off < PAGE_SIZE; off += 16)
        reg_set(l, off, 0);
    for (unsigned w = 0; w < 8; w++)
        atomic_store(&l->irr[4 * w], 0u);
    reg_set(l, LAPIC_ICR + 4, 0);
    atomic_store(&l->irr_words, 0u);
    atomic_store(&l->offered, 0u);
    atomic_and(&l->ext, (uint32_t)EXT_LINT0);
    atomic_store(&l->esr, 0u);
    l->isr_words = l->isrv = 0;
    l->tsc_deadline = l->period = 0;
    reg_set(l, LAPIC_VERSION, VERSION | LVT_LAST << 16);
    reg_set(l, LAPIC_DFR, 0xffffffff);
    reg_set(l, LAPIC_SVR, 0xff);
    for (unsigned i = 0; i < ARRAY_SIZE(lvts); i++)
        reg_set(l, lvts[i].off, LVT_MASKED);
    lapic_set_derived_ids(l);
    l->c.wires.tpr(l->c.wires.vcpu);
}

static void lapic_reset(void *dev, enum gdev_reset how)
{
    struct lapic *l = dev;
    l->base = LAPIC_DEFAULT_BASE | APIC_BASE_ENABLE | (l->c.bsp ? APIC_BASE_BSP : 0);
    lapic_reset_registers(l);
}

static void lapic_init_signal(void *apic) { lapic_reset_registers(apic); }

void lapic_virtual_wire(struct lapic *l)
{
    lapic_write(l, LAPIC_SVR, LAPIC_SVR_ENABLE | 0xff);
    if (l->c.bsp)
        lapic_write(l, LAPIC_LVT_LINT0, APIC_EXTINT);
    lapic_write(l, LAPIC_LVT_LINT1, APIC_NMI);
}

void lapic_irqchip(struct lapic *l, struct vcpu_irqchip *chip)
{
    *chip = (struct vcpu_irqchip){
        .apic = l, .page = l->page, .pending = lapic_pending, .accept = lapic_accept, .msr_read = lapic_msr_read, .msr_write = lapic_msr_write,
        .mmio = lapic_mmio, .init = lapic_init_signal, .offered = &l->offered,
    };
    if (l->c.virt)
        chip->pending = lapic_virt_pending, chip->virt = lapic_virt, chip->wrote = lapic_wrote, chip->eoi = lapic_eoi_done;
}

/* What the caches say follows from the page; -EINVAL for pages no sequence of register accesses can make. */
static int derive(struct lapic *l)
{
    l->isr_words = l->irr_words = 0;
    for (unsigned w = 0; w < 8; w++) {
        l->isr_words |= reg_get(l, LAPIC_ISR + 16 * w) ? BIT(w) : 0;
        l->irr_words |= reg_get(l, LAPIC_IRR + 16 * w) ? BIT(w) : 0;
    }
    l->isrv = highest_isr(l);
    if (l->c.virt)
        l->isrv = 0, l->irr_words = 0;
    if ((reg_get(l, LAPIC_ISR) | reg_get(l, LAPIC_IRR)) & 0xffff)
        return -EINVAL;
    for (unsigned i = 0; i < ARRAY_SIZE(lvts); i++)
        if (reg_get(l, lvts[i].off) & ~lvts[i].mask & ~(uint32_t)LVT_REMOTE_IRR)
            return -EINVAL;
    uint64_t allowed = BITS(51, 12) | APIC_BASE_BSP | APIC_BASE_ENABLE | (l->c.x2apic ? APIC_BASE_X2APIC : 0);
    if (l->base & ~allowed || (l->base & (APIC_BASE_X2APIC | APIC_BASE_ENABLE)) == APIC_BASE_X2APIC)
        return -EINVAL;
    if (reg_get(l, LAPIC_VERSION) != (VERSION | LVT_LAST << 16) || reg_get(l, LAPIC_TPR) > 0xff || (reg_get(l, LAPIC_TIMER_DIVIDE) & ~0xbu))
        return -EINVAL;
    return reg_get(l, LAPIC_ID) == (x2apic_mode(l) ? l->c.apic_id : l->c.apic_id << 24) ? 0 : -EINVAL;
}

static int lapic_snap(void *dev, struct snap *s)
{
    struct lapic *l = dev;
    if (snap_loading(s))
        lapic_timer_stop(l);
    if (l->c.virt)
        lapic_virt_merge(l);
    snap_begin(s, "lapic", 1);
    SNAP(s, l->base);
    snap_bytes(s, "page", l->page, 0x400);
    SNAP(s, l->esr);
    SNAP(s, l->ext);
    SNAP(s, l->lint);
    SNAP(s, l->deadline);
    SNAP(s, l->period);
    SNAP(s, l->tsc_deadline);
    int err = snap_end(s);
    if (err || !snap_loading(s))
        return err;
    l->ext &= EXT_LINT0 | EXT_MESSAGE;
    err = derive(l);
    if (err)
        lapic_reset(l, GDEV_RESET);
    else
        lapic_timer_loaded(l);
    return err;
}

static void lapic_destroy(void *dev)
{
    struct lapic *l = dev;
    vtimer_destroy(&l->timer);
    kfree(l->page);
    kfree(l);
}

const struct gdev_ops lapic_ops = { .name = "lapic", .reset = lapic_reset, .snap = lapic_snap, .destroy = lapic_destroy };

struct lapic *lapic_create(const struct lapic_config *c, struct apic_fabric *f)
{
    ASSERT(c->apic_id < 255 && f->by_id[c->apic_id] < 0);
    struct lapic *l = kzalloc(sizeof *l);
    uint8_t *page = kmalloc_aligned(PAGE_SIZE, PAGE_SIZE);
    if (!l || !page || f->ncpus == APIC_MAX_CPUS) {
        kfree(page);
        kfree(l);
        return NULL;
    }
    memset(page, 0, PAGE_SIZE);
    l->page = page;
    l->fabric = f;
    l->c = *c;
    l->irr = c->virt ? l->posted : lapic_reg(l, LAPIC_IRR);
    lapic_timer_init(l);
    lapic_reset(l, GDEV_POWER_ON);
    f->by_id[c->apic_id] = f->ncpus;
    f->cpu[f->ncpus++] = l;
    return l;
}
