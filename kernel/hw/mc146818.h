/* Real-time clock and CMOS memory.  Motorola MC146818A datasheet; ICH9 datasheet "RTC". */
#pragma once
#define RTC_INDEX       0x70    /* bit 7: NMI disable */
#define RTC_DATA        0x71
#define RTC_SECONDS     0x00
#define RTC_SECONDS_ALARM 0x01
#define RTC_MINUTES     0x02
#define RTC_MINUTES_ALARM 0x03
#define RTC_HOURS       0x04    /* 12-hour mode: bit 7 = PM */
#define RTC_HOURS_ALARM 0x05
#define RTC_WEEKDAY     0x06    /* 1 = Sunday */
#define RTC_DAY         0x07
#define RTC_MONTH       0x08
#define RTC_YEAR        0x09
#define RTC_A           0x0a
#define   RTC_A_UIP     0x80
#define   RTC_A_DV      0x70    /* 010: 32.768 kHz crystal, running */
#define   RTC_A_DV_32K  0x20
#define   RTC_A_RS      0x0f
#define RTC_B           0x0b
#define   RTC_B_DSE     0x01
#define   RTC_B_24H     0x02
#define   RTC_B_BINARY  0x04
#define   RTC_B_SQWE    0x08
#define   RTC_B_UIE     0x10
#define   RTC_B_AIE     0x20
#define   RTC_B_PIE     0x40
#define   RTC_B_SET     0x80
#define RTC_C           0x0c    /* read clears */
#define   RTC_C_UF      0x10
#define   RTC_C_AF      0x20
#define   RTC_C_PF      0x40
#define   RTC_C_IRQF    0x80
#define RTC_D           0x0d
#define   RTC_D_VRT     0x80
#define RTC_CENTURY     0x32    /* where the FADT says so; the PC's usual place */
