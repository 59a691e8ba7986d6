/* Scan codes of set 1 (what an i8042 with translation on delivers) to what a terminal sends: US layout, UTF-8, xterm's sequences.  H. */
#pragma once
#include "kernel/lib/base.h"

struct ps2_keys { bool shift_l, shift_r, ctrl_l, ctrl_r, alt, caps, num_off; uint8_t extended; };

/* Takes one scan code; returns how many bytes it wrote to out, 0 .. 8.  Zero-filled state is the start. */
size_t ps2_key(struct ps2_keys *, uint8_t code, char out[8]);
