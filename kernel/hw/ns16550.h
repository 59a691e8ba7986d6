/* UART.  National Semiconductor PC16550D datasheet. */
#pragma once
#include "kernel/lib/base.h"

enum { UART_COM1 = 0x3f8, UART_COM2 = 0x2f8, UART_FIFO_SIZE = 16, UART_CLOCK_HZ = 115200 };
enum { UART_DATA = 0, UART_IER, UART_IIR, UART_FCR = 2, UART_LCR, UART_MCR, UART_LSR, UART_MSR, UART_SCR, UART_DLL = 0, UART_DLM = 1 /* DLAB */ };
#define IER_RX          BIT(0)
#define IER_THRE        BIT(1)
#define IER_LINE        BIT(2)
#define IER_MODEM       BIT(3)
#define IIR_NONE        0x01
#define IIR_MODEM       0x00
#define IIR_THRE        0x02
#define IIR_RX          0x04
#define IIR_LINE        0x06
#define IIR_TIMEOUT     0x0c
#define IIR_FIFOS       0xc0
#define FCR_ENABLE      BIT(0)
#define FCR_CLEAR_RX    BIT(1)
#define FCR_CLEAR_TX    BIT(2)
#define FCR_TRIGGER     BITS(7, 6)      /* 1, 4, 8, 14 bytes */
#define LCR_8BITS       0x03
#define LCR_DLAB        BIT(7)
#define MCR_DTR         BIT(0)
#define MCR_RTS         BIT(1)
#define MCR_OUT1        BIT(2)
#define MCR_OUT2        BIT(3)          /* on a PC: connects the interrupt line */
#define MCR_LOOP        BIT(4)
#define LSR_DR          BIT(0)
#define LSR_OE          BIT(1)
#define LSR_PE          BIT(2)
#define LSR_FE          BIT(3)
#define LSR_BI          BIT(4)
#define LSR_THRE        BIT(5)
#define LSR_TEMT        BIT(6)
#define MSR_DELTA       0x0f            /* DCTS DDSR TERI DDCD */
#define MSR_CTS         BIT(4)
#define MSR_DSR         BIT(5)
#define MSR_RI          BIT(6)
#define MSR_DCD         BIT(7)
