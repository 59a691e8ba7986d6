/*
 * Local APIC, IOAPIC, message-signalled interrupts.  Intel SDM vol. 3 "Advanced Programmable Interrupt Controller (APIC)"; Intel 82093AA datasheet (IOAPIC);
 * PCI Local Bus Specification 3.0 section 6.8 and SDM vol. 3 "Message Signalled Interrupts".
 */
#pragma once
#include "kernel/lib/base.h"

/* ---- Local APIC: byte offsets in the 4 KiB page; in x2APIC mode MSR 800h + offset / 16. ---- */
#define LAPIC_DEFAULT_BASE  0xfee00000ull
#define LAPIC_ID            0x020       /* xAPIC: ID in bits 31:24 */
#define LAPIC_VERSION       0x030       /* 7:0 version, 23:16 highest LVT entry, 24 EOI-broadcast suppression */
#define   LAPIC_VERSION_EOI_SUPPRESS BIT(24)
#define LAPIC_TPR           0x080
#define LAPIC_APR           0x090
#define LAPIC_PPR           0x0a0
#define LAPIC_EOI           0x0b0
#define LAPIC_RRD           0x0c0
#define LAPIC_LDR           0x0d0
#define LAPIC_DFR           0x0e0       /* xAPIC only */
#define LAPIC_SVR           0x0f0
#define   LAPIC_SVR_ENABLE  BIT(8)
#define   LAPIC_SVR_FOCUS_OFF BIT(9)
#define   LAPIC_SVR_EOI_SUPPRESS BIT(12)
#define LAPIC_ISR           0x100       /* 8 registers, 10h apart */
#define LAPIC_TMR           0x180
#define LAPIC_IRR           0x200
#define LAPIC_ESR           0x280
#define   LAPIC_ESR_SEND_ACCEPT  BIT(2)
#define   LAPIC_ESR_SEND_ILLEGAL BIT(5)
#define   LAPIC_ESR_RECV_ILLEGAL BIT(6)
#define   LAPIC_ESR_ILLEGAL_REG  BIT(7)
#define LAPIC_LVT_CMCI      0x2f0
#define LAPIC_ICR           0x300       /* x2APIC: one 64-bit register, destination in 63:32 */
#define LAPIC_ICR_HI        0x310       /* xAPIC: destination in 31:24 */
#define LAPIC_LVT_TIMER     0x320
#define   LVT_TIMER_ONESHOT (0u << 17)
#define   LVT_TIMER_PERIODIC (1u << 17)
#define   LVT_TIMER_DEADLINE (2u << 17)
#define   LVT_TIMER_MODE    BITS(18, 17)
#define LAPIC_LVT_THERMAL   0x330
#define LAPIC_LVT_PERF      0x340
#define LAPIC_LVT_LINT0     0x350
#define LAPIC_LVT_LINT1     0x360
#define LAPIC_LVT_ERROR     0x370
#define   LVT_VECTOR        BITS(7, 0)
#define   LVT_DELIVERY      BITS(10, 8)
#define   LVT_PENDING       BIT(12)
#define   LVT_ACTIVE_LOW    BIT(13)
#define   LVT_REMOTE_IRR    BIT(14)
#define   LVT_LEVEL         BIT(15)
#define   LVT_MASKED        BIT(16)
#define LAPIC_TIMER_INIT    0x380
#define LAPIC_TIMER_CURRENT 0x390
#define LAPIC_TIMER_DIVIDE  0x3e0       /* bits 3,1:0: 1011b = by 1, 0000b = by 2, ... 1010b = by 128 */
#define   TIMER_DIVIDE_1    0xb
#define   TIMER_DIVIDE_16   0x3
#define LAPIC_SELF_IPI      0x3f0       /* x2APIC only */

/* Delivery modes of ICR, LVT, IOAPIC and MSI data: bits 10:8. */
#define APIC_FIXED          (0u << 8)
#define APIC_LOWEST         (1u << 8)
#define APIC_SMI            (2u << 8)
#define APIC_NMI            (4u << 8)
#define APIC_INIT           (5u << 8)
#define APIC_STARTUP        (6u << 8)
#define APIC_EXTINT         (7u << 8)
#define APIC_DELIVERY       (7u << 8)
/* ICR. */
#define ICR_LOGICAL         BIT(11)
#define ICR_BUSY            BIT(12)     /* xAPIC: delivery status */
#define ICR_ASSERT          BIT(14)
#define ICR_LEVEL           BIT(15)
#define ICR_SELF            (1u << 18)
#define ICR_ALL             (2u << 18)
#define ICR_ALL_BUT_SELF    (3u << 18)
#define ICR_SHORTHAND       (3u << 18)

/* ---- IOAPIC: index and window register; indirect registers. ---- */
#define IOAPIC_DEFAULT_BASE 0xfec00000ull
#define IOAPIC_INDEX        0x00
#define IOAPIC_DATA         0x10
#define IOAPIC_EOI          0x40        /* version 20h and later */
#define IOAPIC_REG_ID       0x00        /* ID in 27:24 */
#define IOAPIC_REG_VERSION  0x01        /* 7:0 version, 23:16 number of the last entry */
#define IOAPIC_REG_ARB      0x02
#define IOAPIC_REG_REDIR    0x10        /* + 2n low, + 2n + 1 high */
/* Redirection entry, 64 bits. */
#define REDIR_VECTOR        BITS(7, 0)
#define REDIR_LOGICAL       BIT(11)
#define REDIR_PENDING       BIT(12)
#define REDIR_ACTIVE_LOW    BIT(13)
#define REDIR_REMOTE_IRR    BIT(14)
#define REDIR_LEVEL         BIT(15)
#define REDIR_MASKED        BIT(16)
#define REDIR_DEST_SHIFT    56

/* ---- MSI address and data. ---- */
#define MSI_ADDR_BASE       0xfee00000u
#define MSI_ADDR_MASK       0xfff00000u
#define MSI_ADDR_DEST_SHIFT 12
#define MSI_ADDR_DEST       BITS(19, 12)
#define MSI_ADDR_EXT_DEST_SHIFT 5       /* bits 11:5 = destination 14:8 where a hypervisor offers that */
#define MSI_ADDR_REDIRECT   BIT(3)
#define MSI_ADDR_LOGICAL    BIT(2)
#define MSI_DATA_VECTOR     BITS(7, 0)
#define MSI_DATA_DELIVERY   BITS(10, 8)
#define MSI_DATA_ASSERT     BIT(14)
#define MSI_DATA_LEVEL      BIT(15)
