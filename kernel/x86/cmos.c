/* Reading the CMOS clock. */
#include <string.h>
#include "kernel/hw/mc146818.h"
#include "kernel/x86/acpi.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/rtc.h"
#include "kernel/x86/time.h"
#include "kernel/x86/time_internal.h"

static uint8_t cmos(uint8_t reg)
{
    outb(RTC_INDEX, reg);
    return inb(RTC_DATA);
}

static void read_once(struct rtc_time *t)
{
    for (unsigned i = 0; i < 3000 && cmos(RTC_A) & RTC_A_UIP; i++)     /* an update takes 2 ms at most */
        delay_us(1);
    *t = (struct rtc_time){ cmos(RTC_SECONDS), cmos(RTC_MINUTES), cmos(RTC_HOURS), cmos(RTC_DAY), cmos(RTC_MONTH), cmos(RTC_YEAR),
                            acpi.century ? cmos(acpi.century) : 0, cmos(RTC_B) };
}

uint64_t rtc_read_utc_ns(void)
{
    struct rtc_time a, b;
    read_once(&a);
    for (unsigned i = 0; i < 5; i++) {          /* two equal readings: no update between the registers */
        b = a;
        read_once(&a);
        if (!memcmp(&a, &b, sizeof(a)))
            break;
    }
    return rtc_to_unix(&a) * 1000000000ull;
}
