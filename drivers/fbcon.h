/* The screen as a console: linear framebuffer of any common pixel format, or EGA text mode. */
#pragma once
#include "kernel/console/chan.h"

struct fbcon_mode {
    uint64_t base;              /* host physical */
    uint32_t width, height, pitch;      /* pixels, pixels, bytes per line; text: characters */
    uint8_t bpp, red_pos, red_len, green_pos, green_len, blue_pos, blue_len;
    bool text;                  /* EGA text mode */
};

/* Once, after memory: maps the framebuffer and becomes a console for log lines.  -ENOTSUP (logged): a mode that cannot be drawn in; -ENOMEM. */
int fbcon_init(const struct fbcon_mode *);
/* Thread context: the screen gets its byte channel and thread.  Keyboards write what is typed to the channel's CHAN_DEV side.  NULL: no screen, no memory. */
struct chan *fbcon_start(void);
/* selftest=screen: draws everything anew and says what it took. */
void fbcon_selftest(void);
