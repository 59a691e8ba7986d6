/* Port I/O in all its forms: sizes, immediate and DX, strings with REP, direction, segments, address sizes and a page fault in the middle. */
#include "lib/guest.h"

enum { CF8 = 0xcf8, COM1 = 0x3f8 };
#ifdef __x86_64__
#define SI "rsi"
#define DI "rdi"
#else
#define SI "esi"
#define DI "edi"
#endif

static uint8_t buf[3 * 4096] __attribute__((aligned(4096)));

static void plain_forms(void)
{
    uint32_t v;

    outl(CF8, 0x80123450);
    EQUAL("outl-inl", inl(CF8), 0x80123450);
    outl(CF8, 0x80000000);
    uint32_t id = inl(0xcfc);
    EQUAL("inw", inw(0xcfc), id & 0xffff);
    EQUAL("inw-upper", inw(0xcfe), id >> 16);
    EQUAL("inb-1", inb(0xcfd), id >> 8 & 0xff);
    EQUAL("inb-3", inb(0xcff), id >> 24);
    outb(0x21, 0x5a);
    EQUAL("out-imm-in-imm", inb(0x21), 0x5a);
    asm volatile("mov $0xa5, %%al; mov $0x21, %%dx; outb %%al, %%dx; mov $0x11223344, %%eax; inb %%dx, %%al" : "=a"(v) :: "edx");
    EQUAL("in-al-keeps-the-rest", v, 0x112233a5);
    asm volatile("mov $0xcfc, %%edx; mov $0x11223344, %%eax; inw %%dx, %%ax" : "=a"(v) :: "edx");
    EQUAL("in-ax-keeps-the-rest", v, 0x11220000 | (id & 0xffff));
    outb(0x21, 0xff);
#ifdef __x86_64__
    ulong w;
    asm volatile("mov $-1, %%rax; mov $0xcfc, %%edx; inl %%dx, %%eax" : "=a"(w) :: "rdx");
    EQUAL("in-eax-zero-extends", w, id);
    asm volatile("mov $-1, %%rax; mov $0xcfc, %%edx; .byte 0x48, 0xed" : "=a"(w) :: "rdx");
    EQUAL("in-with-rex-w", w, id);
#endif
    outb(0x70, 0x60);
    outb(0x71, 0x77);
    outb(0x70, 0x61);
    outb(0x71, 0x88);
    outb(0x70, 0x60);
    EQUAL("cmos-60", inb(0x71), 0x77);
    outb(0x70, 0x61);
    EQUAL("cmos-61", inb(0x71), 0x88);
    EQUAL("unclaimed-byte", inb(0x2f1), 0xff);
    EQUAL("unclaimed-word", inw(0x2f0), 0xffff);
    EQUAL("unclaimed-dword", inl(0x2f0), 0xffffffff);
    outl(0x2f0, 0);
}

/* The UART in loopback is a device that remembers a sequence. */
static void loopback(bool on)
{
    while (!on ? false : !(inb(COM1 + 5) & 0x40))
        ;
    outb(COM1 + 4, on ? 0x10 : 0x03);
    outb(COM1 + 2, 7);
}

static void strings(void)
{
    ulong s, d, n;
    uint32_t v;
    uint8_t out[16], in[16];

    for (unsigned k = 0; k < 16; k++)
        out[k] = 0x30 + 7 * k;
    memcpy(buf + 4096 - 5, out, 16);
    loopback(true);
    s = (ulong)buf + 4096 - 5, n = 16;
    asm volatile("rep outsb" : "+S"(s), "+c"(n) : "d"(COM1) : "memory");
    d = (ulong)buf + 8192 - 9;
    bool moved = s == (ulong)buf + 4096 + 11 && !n;
    n = 16;
    asm volatile("rep insb" : "+D"(d), "+c"(n) : "d"(COM1) : "memory");
    moved = moved && d == (ulong)buf + 8192 + 7 && !n;
    memcpy(in, buf + 8192 - 9, 16);
    /* Downwards: the sequence comes in reverse order in memory. */
    s = (ulong)buf + 4096 + 10, n = 16;
    asm volatile("std; rep outsb; cld" : "+S"(s), "+c"(n) : "d"(COM1) : "memory");
    bool reversed = s == (ulong)buf + 4096 - 6;
    for (unsigned k = 0; k < 16; k++)
        reversed = reversed && inb(COM1) == out[15 - k];
    n = 0, s = 0x1000;                  /* nothing happens, not even a fault */
    asm volatile("rep outsb" : "+S"(s), "+c"(n) : "d"(COM1) : "memory");
    bool nothing = !(inb(COM1 + 5) & 1) && s == 0x1000;
    s = (ulong)out;
    asm volatile("outsb; outsb" : "+S"(s) : "d"(COM1) : "memory");
    bool single = inb(COM1) == out[0] && inb(COM1) == out[1] && s == (ulong)out + 2;
    loopback(false);
    CHECK("rep-outsb-insb-order", !memcmp(in, out, 16));
    CHECK("rep-registers", moved);
    CHECK("rep-outsb-downwards", reversed);
    CHECK("rep-count-zero", nothing);
    CHECK("outsb-single", single);

    for (unsigned k = 0; k < 300; k++)
        ((uint32_t *)(buf + 4096 - 600))[k] = 0x80000000 | k << 8;
    s = (ulong)buf + 4096 - 600, n = 300;
    asm volatile("rep outsl" : "+S"(s), "+c"(n) : "d"(CF8) : "memory");
    EQUAL("rep-outsl-last", inl(CF8), 0x80000000 | 299 << 8);
    memset(buf, 0, sizeof buf);
    d = (ulong)buf + 100, n = 1500;
    asm volatile("rep insl" : "+D"(d), "+c"(n) : "d"(CF8) : "memory");
    for (n = 0; n < 1500 && ((uint32_t *)(buf + 100))[n] == (0x80000000 | 299 << 8); n++)
        ;
    EQUAL("rep-insl-all", n, 1500);
    outl(CF8, 0x80000000);
    d = (ulong)buf + 1, n = 3;
    v = inw(0xcfe);
    asm volatile("rep insw" : "+D"(d), "+c"(n) : "d"(0xcfe) : "memory");
    CHECK("rep-insw-unaligned", !memcmp(buf + 1, &v, 2) && !memcmp(buf + 5, &v, 2));
}

/* OUTS through another segment; addresses of the other size. */
static void segments(void)
{
    ulong s;

    static uint32_t word = 0x80abcd00;

    s = (ulong)&word - 0x1000;
#ifdef __x86_64__
    wrmsr(0xc0000100, 0x1000);
    asm volatile("fs outsl" : "+S"(s) : "d"(CF8), "m"(word));
    wrmsr(0xc0000100, 0);
#else
    extern uint64_t gdt[];
    gdt[9] = 0x00cf93001000ffff;        /* base 1000h */
    asm volatile("mov $0x48, %%eax; mov %%eax, %%fs; .byte 0x64; outsl; mov $0x10, %%eax; mov %%eax, %%fs" : "+S"(s) : "d"(CF8), "m"(word) : "eax");
#endif
    EQUAL("outs-segment", inl(CF8), 0x80abcd00);
    *(volatile uint32_t *)0x9000 = 0x80765400;
    s = 0x9000;
#ifdef __x86_64__
    s |= 0x700000000;
    asm volatile("addr32 outsl" : "+S"(s) : "d"(CF8) : "memory");
    EQUAL("outs-address-size-register", s, 0x9004);
#else
    s |= 0x70000;
    asm volatile("addr16 outsl" : "+S"(s) : "d"(CF8) : "memory");
    EQUAL("outs-address-size-register", s, 0x79004);
#endif
    EQUAL("outs-address-size", inl(CF8), 0x80765400);
}

/* A page of the target is absent: the fault comes between elements, the handler maps it, the rest follows. */
static volatile unsigned faults;
static ulong fault_at;
static void map_it(struct frame *f)
{
    faults++;
    fault_at = read_cr2();
    map_page(fault_at & ~0xffful, fault_at & ~0xffful, 3);
}

static void fault_in_the_middle(void)
{
    ulong d = (ulong)buf + 4096 - 8, n = 8;

    paging_on();
    map_page((ulong)buf + 4096, 0, 0);
    set_handler(14, map_it);
    memset(buf, 0, 4096);
    outl(CF8, 0x80345600);
    asm volatile("rep insl" : "+D"(d), "+c"(n) : "d"(CF8) : "memory");
    set_handler(14, NULL);
    EQUAL("ins-faults-once", faults, 1);
    EQUAL("ins-fault-address", fault_at, (ulong)buf + 4096);
    CHECK("ins-goes-on", ((uint32_t *)(buf + 4096))[5] == 0x80345600 && !n && d == (ulong)buf + 4096 + 24);
}

int main(void)
{
    pic_mask_all();
    plain_forms();
    strings();
    segments();
    fault_in_the_middle();
    return 0;
}
