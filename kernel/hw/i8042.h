/* Keyboard controller.  IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller"; keyboard commands: same, "Keyboards". */
#pragma once
#include "kernel/lib/base.h"

enum { I8042_DATA = 0x60, I8042_STATUS = 0x64 /* read */, I8042_COMMAND = 0x64 /* write */ };
#define I8042_STS_OBF       BIT(0)      /* a byte waits at 60h */
#define I8042_STS_IBF       BIT(1)
#define I8042_STS_SYS       BIT(2)
#define I8042_STS_CMD       BIT(3)
#define I8042_STS_UNLOCKED  BIT(4)
#define I8042_STS_AUX       BIT(5)      /* the byte is from the auxiliary device */
#define I8042_STS_TIMEOUT   BIT(6)
#define I8042_STS_PARITY    BIT(7)
enum {
    I8042_READ_RAM = 0x20, I8042_WRITE_RAM = 0x60, I8042_AUX_OFF = 0xa7, I8042_AUX_ON = 0xa8, I8042_AUX_TEST = 0xa9, I8042_SELF_TEST = 0xaa,
    I8042_KBD_TEST = 0xab, I8042_KBD_OFF = 0xad, I8042_KBD_ON = 0xae, I8042_READ_INPUT = 0xc0, I8042_READ_OUTPUT = 0xd0, I8042_WRITE_OUTPUT = 0xd1,
    I8042_WRITE_KBD_OBF = 0xd2, I8042_WRITE_AUX_OBF = 0xd3, I8042_WRITE_AUX = 0xd4, I8042_PULSE = 0xf0 /* low bits: lines to pulse low */,
};
#define I8042_CTR_KBD_IRQ   BIT(0)
#define I8042_CTR_AUX_IRQ   BIT(1)
#define I8042_CTR_SYS       BIT(2)
#define I8042_CTR_KBD_OFF   BIT(4)
#define I8042_CTR_AUX_OFF   BIT(5)
#define I8042_CTR_TRANSLATE BIT(6)
#define I8042_OUT_RESET     BIT(0)      /* low: resets the CPU */
#define I8042_OUT_A20       BIT(1)
#define I8042_OUT_KBD_OBF   BIT(4)
#define I8042_OUT_AUX_OBF   BIT(5)
enum { I8042_SELF_TEST_OK = 0x55, I8042_PORT_OK = 0, PS2_ACK = 0xfa, PS2_RESEND = 0xfe, PS2_BAT_OK = 0xaa };
enum { PS2_SET_LEDS = 0xed, PS2_ECHO = 0xee, PS2_SCAN_SET = 0xf0, PS2_ID = 0xf2, PS2_RATE = 0xf3, PS2_ENABLE = 0xf4, PS2_DISABLE = 0xf5, PS2_RESET = 0xff };
