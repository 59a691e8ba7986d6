#include "guestdev/pm.h"
#include "guestdev/port8.h"
#include "kernel/hw/acpi.h"
#include "kernel/lib/port.h"

#define PM1_STS_BITS    (PM1_STS_TMR | BIT(4) /* BM */ | PM1_STS_GBL | PM1_STS_PWRBTN | PM1_STS_RTC | PM1_STS_WAK)
#define PM1_EN_BITS     (PM1_STS_TMR | PM1_STS_GBL | PM1_STS_PWRBTN | PM1_STS_RTC)
#define PM1_CNT_BITS    (PM1_CNT_SCI_EN | BIT(1) /* BM_RLD */ | PM1_CNT_SLP_TYP)

struct pm {
    struct spinlock lock;
    uint16_t sts, en, cnt;
    uint64_t gpe_sts, gpe_en;
    uint64_t gpe_level;         /* inputs */
    uint64_t carry;             /* timer tick at which TMR_STS sets next */
    uint8_t smi_cmd, smi_sts;
    bool sci_level;
    struct vtimer timer;
    struct pm_config c;
};

static uint64_t ticks_now(struct pm *p)
{
    uint64_t ns = vmclock_now(p->c.clock);
    return ns / 1000000000 * PM_TIMER_HZ + ns % 1000000000 * PM_TIMER_HZ / 1000000000;
}
static uint64_t ticks_to_ns(uint64_t t) { return t / PM_TIMER_HZ * 1000000000 + (t % PM_TIMER_HZ * 1000000000 + PM_TIMER_HZ - 1) / PM_TIMER_HZ; }
/* TMR_STS sets whenever the highest bit changes. */
static uint64_t half_range(const struct pm *p) { return p->c.timer_32bit ? BIT(31) : BIT(23); }

static void update(struct pm *p)
{
    uint64_t now = ticks_now(p), half = half_range(p);
    if (now >= p->carry) {
        p->sts |= PM1_STS_TMR;
        p->carry = (now / half + 1) * half;
    }
    bool level = (p->cnt & PM1_CNT_SCI_EN) && ((p->sts & p->en & PM1_EN_BITS) || (p->gpe_sts & p->gpe_en));
    if (level != p->sci_level) {
        p->sci_level = level;
        irqline_set(&p->c.sci, level);
    }
    if ((p->en & PM1_STS_TMR) && !(p->sts & PM1_STS_TMR))
        vtimer_arm(&p->timer, ticks_to_ns(p->carry));
    else
        vtimer_cancel(&p->timer);
}

static void carried(void *arg)
{
    struct pm *p = arg;
    spin_lock(&p->lock);
    update(p);
    spin_unlock(&p->lock);
}

void pm_power_button(struct pm *p)
{
    spin_lock(&p->lock);
    p->sts |= PM1_STS_PWRBTN;
    update(p);
    spin_unlock(&p->lock);
}

void pm_gpe(void *pm, unsigned bit, bool level)
{
    struct pm *p = pm;
    spin_lock(&p->lock);
    uint64_t b = BIT(bit & 63);
    p->gpe_level = level ? p->gpe_level | b : p->gpe_level & ~b;
    p->gpe_sts |= level ? b : 0;
    update(p);
    spin_unlock(&p->lock);
}

/* ---- Registers, byte by byte: software uses every width on them ---- */

static uint8_t byte_of(uint64_t v, unsigned n) { return v >> 8 * n; }
static uint64_t with_byte(uint64_t v, unsigned n, uint8_t b) { return (v & ~(0xffull << 8 * n)) | (uint64_t)b << 8 * n; }

static uint8_t pm_read(void *dev, unsigned off)
{
    struct pm *p = dev;
    switch (off) {
    case PM_PM1_STS ... PM_PM1_STS + 1:
        return byte_of(p->sts, off - PM_PM1_STS);
    case PM_PM1_EN ... PM_PM1_EN + 1:
        return byte_of(p->en, off - PM_PM1_EN);
    case PM_PM1_CNT ... PM_PM1_CNT + 1:
        return byte_of(p->cnt, off - PM_PM1_CNT);
    case PM_GPE0_STS ... PM_GPE0_STS + 7:
        return byte_of(p->gpe_sts, off - PM_GPE0_STS);
    case PM_GPE0_EN ... PM_GPE0_EN + 7:
        return byte_of(p->gpe_en, off - PM_GPE0_EN);
    default:
        return 0;
    }
}

static void sleep_request(struct pm *p, uint8_t high)
{
    if ((high << 8 & PM1_CNT_SLP_EN) && (p->cnt & PM1_CNT_SLP_TYP) >> PM1_CNT_SLP_TYP_SHIFT == PM_SLP_TYP_S5)
        signal_fire(&p->c.power, SIGNAL_POWEROFF);
}

static void pm_write(void *dev, unsigned off, uint8_t val)
{
    struct pm *p = dev;
    switch (off) {
    case PM_PM1_STS ... PM_PM1_STS + 1:
        p->sts &= ~(val << 8 * (off - PM_PM1_STS));
        break;
    case PM_PM1_EN ... PM_PM1_EN + 1:
        p->en = with_byte(p->en, off - PM_PM1_EN, val) & PM1_EN_BITS;
        break;
    case PM_PM1_CNT:            /* SCI_EN belongs to SMI_CMD, software preserves it (ACPI 6.4, "PM1 Control Registers") */
        p->cnt = (with_byte(p->cnt, 0, val) & PM1_CNT_BITS & ~PM1_CNT_SCI_EN) | (p->cnt & PM1_CNT_SCI_EN);
        break;
    case PM_PM1_CNT + 1:
        p->cnt = with_byte(p->cnt, 1, val) & PM1_CNT_BITS;
        sleep_request(p, val);
        break;
    case PM_GPE0_STS ... PM_GPE0_STS + 7:
        p->gpe_sts = (p->gpe_sts & ~((uint64_t)val << 8 * (off - PM_GPE0_STS))) | p->gpe_level;
        break;
    case PM_GPE0_EN ... PM_GPE0_EN + 7:
        p->gpe_en = with_byte(p->gpe_en, off - PM_GPE0_EN, val);
        break;
    }
}

int pm_io(void *pm, struct io *io)
{
    struct pm *p = pm;
    if (!io->write && (io->off & ~3ull) == PM_TIMER) {
        uint64_t t = ticks_now(p) & (2 * half_range(p) - 1);
        io->data = t >> 8 * (io->off & 3);
        return 0;
    }
    spin_lock(&p->lock);
    update(p);                  /* TMR_STS up to now */
    port8(p, io, pm_read, pm_write);
    if (io->write)
        update(p);
    spin_unlock(&p->lock);
    return 0;
}

static uint8_t smi_read(void *dev, unsigned reg)
{
    struct pm *p = dev;
    return reg ? p->smi_sts : p->smi_cmd;
}

static void smi_write(void *dev, unsigned reg, uint8_t val)
{
    struct pm *p = dev;
    if (reg) {
        p->smi_sts = val;
        return;
    }
    p->smi_cmd = val;
    if (val == PM_ACPI_ENABLE)
        p->cnt |= PM1_CNT_SCI_EN;
    else if (val == PM_ACPI_DISABLE)
        p->cnt &= ~PM1_CNT_SCI_EN;
}

int pm_smi_io(void *pm, struct io *io)
{
    struct pm *p = pm;
    spin_lock(&p->lock);
    port8(p, io, smi_read, smi_write);
    update(p);
    spin_unlock(&p->lock);
    return 0;
}

/* ---- Life cycle ---- */

static void pm_reset(void *dev, enum gdev_reset how)
{
    struct pm *p = dev;
    spin_lock(&p->lock);
    p->sts = p->en = p->smi_cmd = p->smi_sts = 0;
    p->gpe_en = 0;
    p->gpe_sts = p->gpe_level;
    p->cnt = p->c.acpi_mode ? PM1_CNT_SCI_EN : 0;
    p->carry = (ticks_now(p) / half_range(p) + 1) * half_range(p);
    update(p);
    spin_unlock(&p->lock);
}

static int pm_snap(void *dev, struct snap *s)
{
    struct pm *p = dev;
    spin_lock(&p->lock);
    if (!snap_loading(s))
        update(p);              /* TMR_STS up to now */
    snap_begin(s, "pm", 1);
    SNAP(s, p->sts);
    SNAP(s, p->en);
    SNAP(s, p->cnt);
    SNAP(s, p->gpe_sts);
    SNAP(s, p->gpe_en);
    SNAP(s, p->gpe_level);
    SNAP(s, p->carry);
    SNAP(s, p->smi_cmd);
    SNAP(s, p->smi_sts);
    SNAP(s, p->sci_level);
    int err = snap_end(s);
    if (snap_loading(s)) {
        p->sts &= PM1_STS_BITS;
        p->en &= PM1_EN_BITS;
        p->cnt &= PM1_CNT_BITS;
        p->carry -= p->carry % half_range(p);
        update(p);
    }
    spin_unlock(&p->lock);
    return err;
}

static void pm_destroy(void *dev)
{
    struct pm *p = dev;
    vtimer_destroy(&p->timer);
    kfree(p);
}

const struct gdev_ops pm_ops = { .name = "pm", .reset = pm_reset, .snap = pm_snap, .destroy = pm_destroy };

struct pm *pm_create(const struct pm_config *c)
{
    struct pm *p = kzalloc(sizeof *p);
    if (!p)
        return NULL;
    p->c = *c;
    vtimer_init(&p->timer, c->clock, carried, p);
    pm_reset(p, GDEV_POWER_ON);
    return p;
}
