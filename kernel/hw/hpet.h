/* High Precision Event Timers.  IA-PC HPET Specification 1.0a, 2.3 "Register Definitions". */
#pragma once
#include "kernel/lib/base.h"
#define HPET_DEFAULT_BASE   0xfed00000ull
#define HPET_SIZE           0x400
#define HPET_ID             0x000       /* general capabilities; period in fs in 63:32 */
#define   HPET_ID_REV       BITS(7, 0)
#define   HPET_ID_TIMERS    BITS(12, 8) /* number of the last timer */
#define   HPET_ID_64BIT     BIT(13)
#define   HPET_ID_LEGACY    BIT(15)
#define   HPET_MAX_PERIOD   100000000u  /* fs: 10 MHz at least */
#define HPET_CONFIG         0x010
#define   HPET_CFG_ENABLE   BIT(0)
#define   HPET_CFG_LEGACY   BIT(1)
#define HPET_STATUS         0x020
#define HPET_COUNTER        0x0f0
#define HPET_TIMER(n)       (0x100 + 0x20 * (n))        /* configuration and capabilities */
#define   HPET_TN_LEVEL     BIT(1)
#define   HPET_TN_ENABLE    BIT(2)
#define   HPET_TN_PERIODIC  BIT(3)
#define   HPET_TN_PERIODIC_CAP BIT(4)
#define   HPET_TN_64BIT_CAP BIT(5)
#define   HPET_TN_VAL_SET   BIT(6)
#define   HPET_TN_32BIT     BIT(8)
#define   HPET_TN_ROUTE_SHIFT 9
#define   HPET_TN_ROUTE     BITS(13, 9)
#define   HPET_TN_FSB       BIT(14)
#define   HPET_TN_FSB_CAP   BIT(15)
#define   HPET_TN_ROUTE_CAP_SHIFT 32
#define HPET_TIMER_CMP(n)   (0x108 + 0x20 * (n))
#define HPET_TIMER_FSB(n)   (0x110 + 0x20 * (n))        /* value 31:0, address 63:32 */
