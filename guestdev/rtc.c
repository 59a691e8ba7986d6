#include "guestdev/rtc.h"
#include "guestdev/port8.h"
#include "kernel/hw/mc146818.h"
#include "kernel/lib/port.h"

enum { TIME_REGS = 10 /* 00h .. 09h */, DONT_CARE = 0xc0, DAY = 86400, CMOS_SIZE = 256 };
#define NS 1000000000ull
#define UIP_NS 244000ull        /* MC146818A, "Update Cycle": UIP leads the update by 244 us */
#define FLAGS (RTC_C_UF | RTC_C_AF | RTC_C_PF)

struct rtc {
    struct spinlock lock;
    uint8_t index[2];
    uint8_t cmos[CMOS_SIZE];    /* registers 0 .. 9 and the century hold the time only while the clock is stopped */
    int64_t offset;             /* guest's time = host's UTC + offset, ns */
    uint64_t checked_s;         /* second up to which UF and AF are accounted, guest's time */
    uint64_t checked_32k;       /* VM time up to which PF is, in 32768ths of a second */
    bool irq_level;
    struct vmclock *clock;
    struct vtimer timer;
    struct irqline irq;
};

/* ---- Calendar ---- */

struct date { unsigned year, month, day, hour, min, sec, wday; };      /* month, day, wday from 1 (Sunday = 1) */

/* Proleptic Gregorian days since 1970-01-01; years are counted from March so that the leap day comes last. */
static int64_t days_from_date(int64_t y, unsigned m, unsigned d)
{
    y -= m <= 2;
    int64_t era = y / 400, yoe = y % 400, doy = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
    return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

static struct date date_from_seconds(uint64_t s)
{
    uint64_t days = s / DAY, z = days + 719468, era = z / 146097, doe = z % 146097;
    uint64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365, doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
    unsigned month = mp < 10 ? mp + 3 : mp - 9;
    return (struct date){
        .year = yoe + era * 400 + (month <= 2), .month = month, .day = doy - (153 * mp + 2) / 5 + 1,
        .hour = s % DAY / 3600, .min = s % 3600 / 60, .sec = s % 60, .wday = (days + 4) % 7 + 1,
    };
}

/* ---- Register forms ---- */

static uint8_t encode(const struct rtc *r, unsigned v) { return r->cmos[RTC_B] & RTC_B_BINARY ? v : v / 10 << 4 | v % 10; }
static unsigned decode(const struct rtc *r, uint8_t v) { return r->cmos[RTC_B] & RTC_B_BINARY ? v : (v >> 4) * 10 + (v & 15); }

static uint8_t encode_hour(const struct rtc *r, unsigned h)
{
    if (r->cmos[RTC_B] & RTC_B_24H)
        return encode(r, h);
    return encode(r, h % 12 ? h % 12 : 12) | (h >= 12 ? 0x80 : 0);
}

static unsigned decode_hour(const struct rtc *r, uint8_t v)
{
    if (r->cmos[RTC_B] & RTC_B_24H)
        return decode(r, v);
    return decode(r, v & 0x7f) % 12 + (v & 0x80 ? 12 : 0);
}

/* ---- The clock ---- */

static bool ticking(const struct rtc *r) { return !(r->cmos[RTC_B] & RTC_B_SET) && (r->cmos[RTC_A] & RTC_A_DV) <= RTC_A_DV_32K; }
static uint64_t guest_ns(const struct rtc *r) { return clock_utc_ns() + r->offset; }

static void put_time(struct rtc *r, uint64_t ns)
{
    struct date d = date_from_seconds(ns / NS);
    r->cmos[RTC_SECONDS] = encode(r, d.sec);
    r->cmos[RTC_MINUTES] = encode(r, d.min);
    r->cmos[RTC_HOURS] = encode_hour(r, d.hour);
    r->cmos[RTC_WEEKDAY] = d.wday;
    r->cmos[RTC_DAY] = encode(r, d.day);
    r->cmos[RTC_MONTH] = encode(r, d.month);
    r->cmos[RTC_YEAR] = encode(r, d.year % 100);
    r->cmos[RTC_CENTURY] = encode(r, d.year / 100 % 100);
}

/* What the guest left in the registers; out-of-range fields are brought into range, the result is a date after 1970. */
static uint64_t take_time(const struct rtc *r)
{
    unsigned year = decode(r, r->cmos[RTC_CENTURY]) * 100 + decode(r, r->cmos[RTC_YEAR]) % 100;
    unsigned month = (decode(r, r->cmos[RTC_MONTH]) + 11) % 12 + 1, day = MAX(decode(r, r->cmos[RTC_DAY]) % 32, 1u);
    int64_t days = days_from_date(MAX(year, 1970u), month, day);
    unsigned in_day = decode_hour(r, r->cmos[RTC_HOURS]) % 24 * 3600 + decode(r, r->cmos[RTC_MINUTES]) % 60 * 60 + decode(r, r->cmos[RTC_SECONDS]) % 60;
    return (days * DAY + in_day) * NS;
}

static void stop(struct rtc *r) { put_time(r, guest_ns(r)); }

/* The first update follows half a second after the divider starts (MC146818A, "Divider Control"); after SET alone the second begins at once. */
static void start(struct rtc *r, uint64_t first_ns)
{
    r->offset = (int64_t)(take_time(r) + NS - first_ns - clock_utc_ns());
    r->checked_s = guest_ns(r) / NS;
}

/* ---- Flags and the interrupt ---- */

static bool alarm_field(const struct rtc *r, uint8_t reg, unsigned now)
{
    uint8_t v = r->cmos[reg];
    return v >= DONT_CARE || (reg == RTC_HOURS_ALARM ? decode_hour(r, v) : decode(r, v)) == now;
}

static bool alarm_at(const struct rtc *r, uint64_t s)
{
    return alarm_field(r, RTC_SECONDS_ALARM, s % 60) && alarm_field(r, RTC_MINUTES_ALARM, s / 60 % 60) && alarm_field(r, RTC_HOURS_ALARM, s / 3600 % 24);
}

/* Did the alarm match in (from, to]?  A day's seconds at most: after that it repeats. */
static bool alarm_between(const struct rtc *r, uint64_t from, uint64_t to)
{
    for (uint64_t s = MAX(from + 1, to > DAY ? to - DAY + 1 : 0); s <= to; s++)
        if (alarm_at(r, s))
            return true;
    return false;
}

/* Period of the rate in register A, in 32768ths of a second; 0 off. */
static uint32_t period_32k(const struct rtc *r)
{
    unsigned rs = r->cmos[RTC_A] & RTC_A_RS;
    if (!rs || (r->cmos[RTC_A] & RTC_A_DV) > RTC_A_DV_32K)
        return 0;
    return 1u << (rs < 3 ? rs + 6 : rs - 1);
}

static uint64_t now_32k(struct rtc *r)
{
    uint64_t ns = vmclock_now(r->clock);
    return ns / NS * 32768 + ns % NS * 32768 / NS;
}
static uint64_t ns_of_32k(uint64_t t) { return t / 32768 * NS + (t % 32768 * NS + 32767) / 32768; }

/* Bring the flags up to now. */
static void account(struct rtc *r)
{
    uint64_t t = now_32k(r), period = period_32k(r);
    if (period && t / period != r->checked_32k / period)
        r->cmos[RTC_C] |= RTC_C_PF;
    r->checked_32k = t;
    if (!ticking(r))
        return;
    uint64_t s = guest_ns(r) / NS;
    if (s > r->checked_s) {
        r->cmos[RTC_C] |= RTC_C_UF;
        if (!(r->cmos[RTC_C] & RTC_C_AF) && alarm_between(r, r->checked_s, s))
            r->cmos[RTC_C] |= RTC_C_AF;
    }
    r->checked_s = s;           /* also when the host's clock was set back */
}

/* A timer is needed for what is enabled and has not interrupted yet: after that the guest must read register C first. */
static void arm(struct rtc *r)
{
    uint8_t b = r->cmos[RTC_B];
    uint64_t at = UINT64_MAX, now = vmclock_now(r->clock), period = period_32k(r);
    if ((b & (RTC_B_UIE | RTC_B_AIE)) && ticking(r))
        at = now + NS - guest_ns(r) % NS;
    if ((b & RTC_B_PIE) && period)
        at = MIN(at, ns_of_32k((now_32k(r) / period + 1) * period));
    if (at == UINT64_MAX || (r->cmos[RTC_C] & RTC_C_IRQF))
        vtimer_cancel(&r->timer);
    else
        vtimer_arm(&r->timer, at);
}

static void update(struct rtc *r)
{
    account(r);
    bool level = r->cmos[RTC_C] & r->cmos[RTC_B] & FLAGS;
    r->cmos[RTC_C] = (r->cmos[RTC_C] & FLAGS) | (level ? RTC_C_IRQF : 0);
    if (level != r->irq_level) {
        r->irq_level = level;
        irqline_set(&r->irq, level);
    }
    arm(r);
}
_Static_assert(RTC_C_UF == RTC_B_UIE && RTC_C_AF == RTC_B_AIE && RTC_C_PF == RTC_B_PIE, "flags and enables share their places");

static void tick(void *arg)
{
    struct rtc *r = arg;
    spin_lock(&r->lock);
    update(r);
    spin_unlock(&r->lock);
}

/* ---- Registers ---- */

static bool is_time(unsigned i) { return (i < TIME_REGS && i != RTC_SECONDS_ALARM && i != RTC_MINUTES_ALARM && i != RTC_HOURS_ALARM) || i == RTC_CENTURY; }

static uint8_t read_cmos(struct rtc *r, uint8_t i)
{
    uint8_t val;
    if (is_time(i) && ticking(r))
        put_time(r, guest_ns(r));
    switch (i) {
    case RTC_A:
        return (r->cmos[RTC_A] & ~RTC_A_UIP) | (ticking(r) && guest_ns(r) % NS >= NS - UIP_NS ? RTC_A_UIP : 0);
    case RTC_C:
        update(r);
        val = r->cmos[RTC_C];
        r->cmos[RTC_C] = 0;
        update(r);
        return val;
    case RTC_D:
        return RTC_D_VRT;
    default:
        return r->cmos[i];
    }
}

static void write_control(struct rtc *r, uint8_t i, uint8_t val)
{
    bool was = ticking(r);
    account(r);
    if (was)
        stop(r);                /* in the old register form */
    bool divider = i == RTC_A && (r->cmos[RTC_A] & RTC_A_DV) > RTC_A_DV_32K;
    bool reform = i == RTC_B && was && ((val ^ r->cmos[RTC_B]) & (RTC_B_BINARY | RTC_B_24H));
    r->cmos[i] = i == RTC_A ? val & ~RTC_A_UIP : val;
    if (i == RTC_B && (val & RTC_B_SET))
        r->cmos[RTC_B] &= ~RTC_B_UIE;   /* MC146818A, "SET": clears UIE */
    if (ticking(r) && !was)
        start(r, divider ? NS / 2 : NS);
    else if (reform && ticking(r))
        put_time(r, guest_ns(r));
    update(r);
}

static void write_cmos(struct rtc *r, uint8_t i, uint8_t val)
{
    if (i == RTC_A || i == RTC_B) {
        write_control(r, i, val);
    } else if (is_time(i) && ticking(r)) {
        uint64_t part = guest_ns(r) % NS;
        stop(r);
        r->cmos[i] = val;
        start(r, NS - part);
    } else if (i != RTC_C && i != RTC_D) {
        r->cmos[i] = val;
    }
}

static uint8_t rtc_read(void *dev, unsigned reg)
{
    struct rtc *r = dev;
    uint8_t val = 0xff;         /* the index registers are write-only */
    spin_lock(&r->lock);
    if (reg & 1)
        val = read_cmos(r, (reg & 2 ? 0x80 : 0) | r->index[reg >> 1 & 1]);
    spin_unlock(&r->lock);
    return val;
}

static void rtc_write(void *dev, unsigned reg, uint8_t val)
{
    struct rtc *r = dev;
    spin_lock(&r->lock);
    if (reg & 1)
        write_cmos(r, (reg & 2 ? 0x80 : 0) | r->index[reg >> 1 & 1], val);
    else
        r->index[reg >> 1 & 1] = val & 0x7f;    /* 70h bit 7 would mask NMI */
    spin_unlock(&r->lock);
}

int rtc_io(void *rtc, struct io *io) { return port8(rtc, io, rtc_read, rtc_write); }

void rtc_set_cmos(struct rtc *r, uint8_t index, uint8_t val)
{
    spin_lock(&r->lock);
    if (index > RTC_D && index != RTC_CENTURY)
        r->cmos[index] = val;
    spin_unlock(&r->lock);
}

/* Places and units that BIOSes agree on: KiB, and 64 KiB from 16 MiB up. */
void rtc_set_memory(struct rtc *r, uint64_t below_4g, uint64_t above_4g)
{
    uint64_t ext_k = below_4g > 1 << 20 ? (below_4g - (1 << 20)) >> 10 : 0, ext_64k = below_4g > 16 << 20 ? (below_4g - (16 << 20)) >> 16 : 0;
    ext_k = MIN(ext_k, 0xffffull);
    const struct { uint8_t index; uint64_t val; unsigned bytes; } fields[] = {
        { 0x15, 640, 2 }, { 0x17, ext_k, 2 }, { 0x30, ext_k, 2 }, { 0x34, ext_64k, 2 }, { 0x5b, above_4g >> 16, 3 },
    };
    for (unsigned f = 0; f < ARRAY_SIZE(fields); f++)
        for (unsigned i = 0; i < fields[f].bytes; i++)
            rtc_set_cmos(r, fields[f].index + i, fields[f].val >> 8 * i);
}

/* ---- Life cycle ---- */

/* RESET clears the interrupt enables and flags; time and memory live on the battery. */
static void rtc_reset(void *dev, enum gdev_reset how)
{
    struct rtc *r = dev;
    spin_lock(&r->lock);
    r->index[0] = r->index[1] = 0;
    if (how == GDEV_POWER_ON) {
        r->cmos[RTC_A] = RTC_A_DV_32K | 6;
        r->cmos[RTC_B] = RTC_B_24H;
        r->checked_s = guest_ns(r) / NS;
        r->checked_32k = now_32k(r);
    }
    r->cmos[RTC_B] &= ~(RTC_B_PIE | RTC_B_AIE | RTC_B_UIE | RTC_B_SQWE);
    r->cmos[RTC_C] = 0;
    update(r);
    r->cmos[RTC_C] = 0;
    spin_unlock(&r->lock);
}

static int rtc_snap(void *dev, struct snap *s)
{
    struct rtc *r = dev;
    spin_lock(&r->lock);
    if (!snap_loading(s)) {
        update(r);
        if (ticking(r))
            put_time(r, 0);     /* the time is the offset; what the registers were last read as is no state */
    }
    snap_begin(s, "rtc", 1);
    SNAP(s, r->index);
    SNAP(s, r->cmos);
    SNAP(s, r->offset);
    SNAP(s, r->checked_s);
    SNAP(s, r->checked_32k);
    SNAP(s, r->irq_level);
    int err = snap_end(s);
    if (snap_loading(s)) {
        r->index[0] &= 0x7f;
        r->index[1] &= 0x7f;
        update(r);
    }
    spin_unlock(&r->lock);
    return err;
}

static void rtc_destroy(void *dev)
{
    struct rtc *r = dev;
    vtimer_destroy(&r->timer);
    kfree(r);
}

const struct gdev_ops rtc_ops = { .name = "rtc", .reset = rtc_reset, .snap = rtc_snap, .destroy = rtc_destroy };

struct rtc *rtc_create(struct vmclock *clock, struct irqline irq8)
{
    struct rtc *r = kzalloc(sizeof *r);
    if (!r)
        return NULL;
    r->clock = clock;
    r->irq = irq8;
    vtimer_init(&r->timer, clock, tick, r);
    rtc_reset(r, GDEV_POWER_ON);
    return r;
}
