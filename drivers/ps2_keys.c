/* IBM PS/2 Hardware Interface Technical Reference, "Keyboards", scan code set 1; xterm "Control Sequences", "PC-Style Function Keys". */
#include "drivers/ps2_keys.h"

#include <string.h>

enum {
    CODE_CTRL = 0x1d, CODE_SHIFT_L = 0x2a, CODE_SHIFT_R = 0x36, CODE_ALT = 0x38, CODE_CAPS = 0x3a, CODE_NUM = 0x45, CODE_PAD_FIRST = 0x47, CODE_PAD_LAST = 0x53,
    CODE_RELEASE = 0x80, CODE_E0 = 0xe0, CODE_E1 = 0xe1,
};

static const char plain[0x3a] =
    "\0\0331234567890-=\177\tqwertyuiop[]\r\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
static const char shifted[0x3a] =
    "\0\033!@#$%^&*()_+\177\tQWERTYUIOP{}\r\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";

static const struct { uint8_t code; const char *text; } cursor_keys[] = {     /* 47h .. 53h, without NumLock, and after E0h */
    { 0x47, "\033[H" }, { 0x48, "\033[A" }, { 0x49, "\033[5~" }, { 0x4b, "\033[D" }, { 0x4d, "\033[C" }, { 0x4f, "\033[F" }, { 0x50, "\033[B" },
    { 0x51, "\033[6~" }, { 0x52, "\033[2~" }, { 0x53, "\033[3~" },
}, function_keys[] = {
    { 0x3b, "\033OP" }, { 0x3c, "\033OQ" }, { 0x3d, "\033OR" }, { 0x3e, "\033OS" }, { 0x3f, "\033[15~" }, { 0x40, "\033[17~" }, { 0x41, "\033[18~" },
    { 0x42, "\033[19~" }, { 0x43, "\033[20~" }, { 0x44, "\033[21~" }, { 0x57, "\033[23~" }, { 0x58, "\033[24~" },
};
static const char pad[] = "789-456+1230.";

static size_t give(char out[8], const char *text)
{
    size_t n = strlen(text);
    memcpy(out, text, n);
    return n;
}

/* Down and up alike; true: it was a modifier. */
static bool modifier(struct ps2_keys *k, uint8_t key, bool down, bool e0)
{
    switch (key) {
    case CODE_SHIFT_L:
        k->shift_l = e0 ? k->shift_l : down;    /* E0 2A is a make-believe shift around cursor keys */
        return true;
    case CODE_SHIFT_R:
        k->shift_r = e0 ? k->shift_r : down;
        return true;
    case CODE_CTRL:
        *(e0 ? &k->ctrl_r : &k->ctrl_l) = down;
        return true;
    case CODE_ALT:
        k->alt = down;
        return true;
    case CODE_CAPS:
        k->caps ^= down;
        return true;
    case CODE_NUM:
        k->num_off ^= down;
        return true;
    }
    return false;
}

static size_t character(const struct ps2_keys *k, char c, char out[8])
{
    size_t n = 0;
    if (k->ctrl_l || k->ctrl_r) {
        if (c == ' ' || (c >= '@' && c < 0x7f))
            c &= 0x1f;
        else if (c >= '2' && c <= '8')          /* as on a VT220: ^2 = NUL, ^3 .. ^7 = ESC .. US, ^8 = DEL */
            c = c == '2' ? 0 : c == '8' ? 0x7f : c - '3' + 0x1b;
        else if (c == '/' || c == '-')
            c = 0x1f;
    }
    if (k->alt)
        out[n++] = '\033';
    out[n++] = c;
    return n;
}

static size_t main_key(const struct ps2_keys *k, uint8_t key, char out[8])
{
    char c = plain[key];
    bool shift = k->shift_l || k->shift_r, letter = c >= 'a' && c <= 'z';
    if (!c)
        return 0;
    if (key == 0x0f && shift)
        return give(out, "\033[Z");
    return character(k, shift != (letter && k->caps) ? shifted[key] : c, out);
}

size_t ps2_key(struct ps2_keys *k, uint8_t code, char out[8])
{
    if (code == CODE_E0 || code == CODE_E1) {
        k->extended = code;
        return 0;
    }
    bool e0 = k->extended == CODE_E0, down = !(code & CODE_RELEASE);
    uint8_t key = code & ~CODE_RELEASE;
    if (k->extended == CODE_E1) {               /* Pause: E1 1D 45 E1 9D C5 */
        k->extended = key == CODE_CTRL ? CODE_E1 : 0;
        return 0;
    }
    k->extended = 0;
    if (modifier(k, key, down, e0) || !down)
        return 0;
    if (e0 && key == 0x1c)
        return character(k, '\r', out);
    if (e0 && key == 0x35)
        return character(k, '/', out);
    if (key >= CODE_PAD_FIRST && key <= CODE_PAD_LAST && !e0 && (!k->num_off || strchr("-+", pad[key - CODE_PAD_FIRST])))
        return character(k, pad[key - CODE_PAD_FIRST], out);
    for (unsigned i = 0; i < ARRAY_SIZE(cursor_keys); i++)
        if (cursor_keys[i].code == key)
            return give(out, cursor_keys[i].text);
    for (unsigned i = 0; i < ARRAY_SIZE(function_keys) && !e0; i++)
        if (function_keys[i].code == key)
            return give(out, function_keys[i].text);
    return e0 || key >= sizeof plain ? 0 : main_key(k, key, out);
}
