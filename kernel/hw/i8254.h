/* Programmable interval timer and port 61h.  Intel 8254 datasheet; ICH9 datasheet "NMI Status and Control". */
#pragma once
#define I8254_HZ        1193182u
#define I8254_COUNTER0  0x40    /* + n */
#define I8254_CONTROL   0x43
/* Control word: counter in 7:6 (3: read back), access in 5:4, mode in 3:1, BCD in 0. */
#define I8254_SEL_SHIFT 6
#define I8254_READBACK  0xc0
#define   I8254_RB_NO_COUNT  0x20   /* a set bit leaves the latch out */
#define   I8254_RB_NO_STATUS 0x10
#define I8254_RW_SHIFT  4
#define   I8254_RW_LATCH 0
#define   I8254_RW_LSB  1
#define   I8254_RW_MSB  2
#define   I8254_RW_BOTH 3
#define I8254_MODE_SHIFT 1
#define I8254_BCD       0x01
/* Status byte of the read-back command. */
#define I8254_STATUS_OUT  0x80
#define I8254_STATUS_NULL 0x40
/* Port 61h. */
#define PORT61          0x61
#define   PORT61_GATE2  0x01
#define   PORT61_SPEAKER 0x02
#define   PORT61_PCI_SERR_DISABLE 0x04
#define   PORT61_IOCHK_DISABLE 0x08
#define   PORT61_REFRESH 0x10   /* toggles */
#define   PORT61_OUT2   0x20
#define   PORT61_IOCHK  0x40
#define   PORT61_SERR   0x80
