/* Where objdump means something else by "valid", the reasons one by one. */
/* 66, F2, F3, LOCK or REX before VEX, EVEX or XOP: #UD. */
static bool refused_before_vex(enum cpu_mode mode, const uint8_t *b)
{
    bool seen = false;

    for (unsigned k = 0; k < 14; k++) {
        if (b[k] == 0x66 || b[k] == 0xf2 || b[k] == 0xf3 || b[k] == 0xf0 || (mode == MODE_64 && (b[k] & 0xf0) == 0x40))
            seen = true;
        else if (b[k] != 0x67 && (b[k] & 0xfe) != 0x64 && (b[k] & 0xe7) != 0x26)
            return seen && (b[k] == 0xc4 || b[k] == 0xc5 || b[k] == 0x62 || b[k] == 0x8f);
    }
    return false;
}

static bool known_disagreement(enum cpu_mode mode, const uint8_t *b, const char *text, const struct insn *ours)
{
    static const char *const refused[] = {
        "lock",                 /* LOCK where the CPU refuses it: objdump only prints it */
        "%?", ",%cs",           /* segment registers 6 and 7; a load of CS */
        "ud0", "ud1", "ud2",    /* #UD by definition */
        "%tr",                  /* test registers of the 486 */
        "%cr1", "%cr5", "%cr6", "%cr7", "%cr9", "%db8", "%db9", "%db1",
        "montmul", "xcrypt", "xstore", "xsha",      /* VIA only */
    };

    const char *last = strrchr(text, ' ') ? strrchr(text, ' ') + 1 : text;

    if (!strncmp(last, "rex", 3))       /* a REX that is not right before the opcode: objdump prints it alone, the CPU ignores it */
        return true;
    if (!ours) {
        for (unsigned n = 0; n < ARRAY_SIZE(refused); n++)
            if (strstr(text, refused[n]))
                return true;
        return refused_before_vex(mode, b);
    }
    if (ours->opcode == 0x9b)   /* FWAIT is an instruction of its own; objdump joins it to the x87 one that follows */
        return true;
    if (ours->opcode == 0x0f01 && ours->pfx)                    /* VMMCALL with a prefix is VMGEXIT where SEV exists */
        return true;
    return ours->opcode == 0x0f09 && ours->pfx;     /* WBINVD ignores 66 and F2 */
}
