#include "kernel/x86/rtc.h"
#include "kernel/hw/mc146818.h"

static unsigned plain(uint8_t v, uint8_t reg_b) { return reg_b & RTC_B_BINARY ? v : (unsigned)(v >> 4) * 10 + (v & 15); }

/* Days since 1970-01-01 of a Gregorian date: years counted from March, so that leap days come last. */
static uint64_t days(unsigned y, unsigned m, unsigned d)
{
    y -= m <= 2;
    unsigned era = y / 400, yoe = y % 400, doy = (153 * (m > 2 ? m - 3 : m + 9) + 2) / 5 + d - 1;
    return (uint64_t)era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

uint64_t rtc_to_unix(const struct rtc_time *t)
{
    uint8_t b = t->reg_b;
    unsigned sec = plain(t->second, b), min = plain(t->minute, b), day = plain(t->day, b), month = plain(t->month, b), year = plain(t->year, b);
    unsigned hour = plain(b & RTC_B_24H ? t->hour : t->hour & 0x7f, b), century = plain(t->century, b);
    if (!(b & RTC_B_24H))
        hour = hour % 12 + (t->hour & 0x80 ? 12 : 0);
    if (sec > 59 || min > 59 || hour > 23 || day < 1 || day > 31 || month < 1 || month > 12 || year > 99)
        return 0;
    year += century >= 19 && century <= 30 ? century * 100 : year < 70 ? 2000 : 1900;
    return year < 1970 ? 0 : days(year, month, day) * 86400 + hour * 3600 + min * 60 + sec;
}
