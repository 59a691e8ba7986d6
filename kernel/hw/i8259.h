/* Programmable interrupt controller pair as in a PC.  Intel 8259A datasheet; ELCR: Intel ICH9 datasheet "ELCR1, ELCR2". */
#pragma once
#define I8259_MASTER    0x20    /* A0 = 0; A0 = 1 is the next port */
#define I8259_SLAVE     0xa0
#define I8259_ELCR1     0x4d0   /* bit n: IRQ n is level triggered (0-2 fixed to edge) */
#define I8259_ELCR2     0x4d1   /* IRQ 8 + n (8 and 13 fixed) */
#define I8259_CASCADE   2
/* First word (A0 = 0, bit 4 set), then ICW2 (vector base), ICW3, ICW4 to A0 = 1. */
#define ICW1_INIT       0x10
#define   ICW1_IC4      0x01
#define   ICW1_SNGL     0x02
#define   ICW1_LTIM     0x08
#define ICW4_8086       0x01
#define   ICW4_AEOI     0x02
#define   ICW4_BUF_MASTER 0x04
#define   ICW4_BUF      0x08
#define   ICW4_SFNM     0x10
/* OCW2 (A0 = 0, bits 4:3 = 00): R, SL, EOI in 7:5, level in 2:0. */
#define OCW2_LEVEL      0x07
#define OCW2_EOI        0x20
#define OCW2_SL         0x40
#define OCW2_R          0x80
/* OCW3 (A0 = 0, bits 4:3 = 01). */
#define OCW3_SEL        0x08
#define   OCW3_RIS      0x01    /* with RR: ISR instead of IRR */
#define   OCW3_RR       0x02
#define   OCW3_POLL     0x04
#define   OCW3_SMM      0x20
#define   OCW3_ESMM     0x40
