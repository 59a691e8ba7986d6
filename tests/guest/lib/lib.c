/* Output, traps, clocks, memory and paging of the tiny guests. */
#include "guest.h"

enum { COM1 = 0x3f8, EXIT_PORT = 0xf4 };
extern char trap_stubs[], stacks[];
extern uint32_t boot_magic, boot_info;
static unsigned failures, passes;

/* ---- Output ---- */
static void put(char c)
{
    for (unsigned n = 0; n < 100000 && !(inb(COM1 + 5) & 0x20); n++)
        ;
    outb(COM1, c);
}

static void put_number(unsigned long long v, unsigned base, unsigned width, char pad, bool negative)
{
    char buf[24];
    unsigned n = 0;

    do {
        unsigned digit;
        if (base == 16) {
            digit = v & 15;
            v >>= 4;
        } else {                        /* long division by 16-bit digits: 32-bit guests have no library for it */
            unsigned rest = 0;
            unsigned long long q = 0;
            for (int part = 3; part >= 0; part--) {
                rest = rest << 16 | (unsigned)(v >> (16 * part) & 0xffff);
                q |= (unsigned long long)(rest / base) << (16 * part);
                rest %= base;
            }
            digit = rest;
            v = q;
        }
        buf[n++] = "0123456789abcdef"[digit];
    } while (v);
    if (negative)
        buf[n++] = '-';
    for (; width > n; width--)
        put(pad);
    while (n)
        put(buf[--n]);
}

static void vprint(const char *fmt, va_list ap)
{
    for (; *fmt; fmt++) {
        unsigned width = 0, longs = 0;
        char pad = ' ';
        if (*fmt != '%') {
            if (*fmt == '\n')
                put('\r');
            put(*fmt);
            continue;
        }
        if (*++fmt == '0')
            pad = '0';
        for (; *fmt >= '0' && *fmt <= '9'; fmt++)
            width = width * 10 + *fmt - '0';
        for (; *fmt == 'l'; fmt++)
            longs++;
        switch (*fmt) {
        case 's':
            for (const char *s = va_arg(ap, const char *); *s; s++)
                put(*s);
            break;
        case 'c': put(va_arg(ap, int)); break;
        case 'd': {
            long long v = longs > 1 ? va_arg(ap, long long) : longs ? va_arg(ap, long) : va_arg(ap, int);
            put_number(v < 0 ? -v : v, 10, width, pad, v < 0);
            break;
        }
        case 'p': longs = 1; /* fall through */
        case 'u': case 'x':
            put_number(longs > 1 ? va_arg(ap, unsigned long long) : longs ? va_arg(ap, unsigned long) : va_arg(ap, unsigned), *fmt == 'u' ? 10 : 16, width, pad, false);
            break;
        default: put(*fmt);
        }
    }
}

void print(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vprint(fmt, ap);
    va_end(ap);
}

void report(const char *name, bool ok, const char *fmt, ...)
{
    va_list ap;

    if (ok) {
        passes++;
        print("PASS %s\n", name);
        return;
    }
    failures++;
    print("FAIL %s ", name);
    va_start(ap, fmt);
    vprint(fmt, ap);
    va_end(ap);
    print("\n");
}

void debug_exit(uint32_t code)
{
    cli();
    outl(EXIT_PORT, code);
    for (;;)
        asm volatile("cli; hlt");
}

void finish(void)
{
    print("DONE %u passed, %u failed\n", passes, failures);
    debug_exit(failures > 100 ? 100 : failures);
}

bool on_joist(void)
{
    uint32_t r[4];

    cpuid(0x40000000, 0, r);
    return (cpuid_reg(1, 0, 2) >> 31) && r[1] == 0x4b4d564b && r[2] == 0x564b4d56 && r[3] == 0x4d;
}

/* ---- Traps ---- */
struct trap_info TRAP = { .vector = -1 };
volatile ulong trap_resume;
volatile unsigned irq_count[256];
static trap_fn *handlers[256];
extern struct { uint16_t off0, sel; uint8_t ist, type; uint16_t off1;
#ifdef __x86_64__
    uint32_t off2, zero;
#endif
} __attribute__((packed)) idt[256];

void set_gate(unsigned vector, void *entry, unsigned dpl, unsigned ist)
{
    ulong e = (ulong)entry;

    idt[vector].off0 = e;
    idt[vector].off1 = e >> 16;
#ifdef __x86_64__
    idt[vector].off2 = e >> 32;
    idt[vector].sel = 0x18;
#else
    idt[vector].sel = 0x08;
#endif
    idt[vector].ist = ist;
    idt[vector].type = 0x8e | dpl << 5;
}

void set_handler(unsigned vector, trap_fn *fn) { handlers[vector] = fn; }

void count_only(struct frame *f) { irq_count[f->vector]++; }
void count_irq(struct frame *f)
{
    irq_count[f->vector]++;
    apic_write(APIC_EOI, 0);
}

void trap(struct frame *f);
void trap(struct frame *f)
{
    if (handlers[f->vector]) {
        handlers[f->vector](f);
        return;
    }
    if (f->vector < 32 && trap_resume) {
        TRAP.vector = f->vector;
        TRAP.error = f->error;
        TRAP.cr2 = read_cr2();
        TRAP.ip = f->ip;
        f->ip = trap_resume;
        return;
    }
    print("FAIL unexpected vector %lu error %lx ip %lx cr2 %lx flags %lx\n", f->vector, f->error, f->ip, read_cr2(), f->flags);
    debug_exit(99);
}

/* ---- Clocks ---- */
uint64_t mul_div(uint64_t v, uint32_t mul, uint64_t div)
{
    uint64_t q = 0, r = 0, hi = (v >> 32) * mul, lo = (v & 0xffffffff) * mul;

    hi += lo >> 32;
    for (int bit = 95; bit >= 0; bit--) {       /* schoolbook: 96 bits by 64 */
        uint64_t in = bit >= 32 ? hi >> (bit - 32) & 1 : lo >> bit & 1;
        r = r << 1 | in;
        q <<= 1;
        if (r >= div) {
            r -= div;
            q |= 1;
        }
    }
    return q;
}

/* PIT channel 2, gate and output at port 61h: 1193182 Hz, 11932 ticks = 10 ms.  Read so that being held up can only lengthen it: the shortest of five
 * counts, and of more until the two shortest agree, as on a busy host none of five may be right. */
static uint64_t tsc_by_pit(void)
{
    uint64_t shortest = ~0ull, second = ~0ull;

    for (unsigned n = 0; n < 60 && (n < 5 || second - shortest > shortest / 200); n++) {
        outb(0x61, (inb(0x61) & ~2) | 1);
        outb(0x43, 0xb0);
        outb(0x42, 11932 & 0xff);
        uint64_t t0 = rdtsc(), ticks;
        outb(0x42, 11932 >> 8);
        bool out;
        do {
            out = inb(0x61) & 0x20;
            ticks = rdtsc() - t0;
        } while (!out && ticks < 40000000000ull);
        if (ticks < shortest) {
            second = shortest;
            shortest = ticks;
        } else if (ticks < second) {
            second = ticks;
        }
    }
    return shortest * 100;
}

/* The hypervisor's word where there is one (leaf 40000010h): no busy host disturbs it. */
static uint64_t tsc_told(void)
{
    uint32_t r[4];
    cpuid(1, 0, r);
    if (!(r[2] >> 31))
        return 0;
    cpuid(0x40000000, 0, r);
    if (r[0] < 0x40000010)
        return 0;
    cpuid(0x40000010, 0, r);
    return r[0] * 1000ull;
}

uint64_t tsc_hz(void)
{
    static uint64_t hz;
    if (!hz)
        hz = tsc_told();
    return hz ? hz : (hz = tsc_by_pit());
}

static uint64_t us_to_tsc(uint64_t us) { return mul_div(tsc_hz(), us, 1000000); }

void delay_us(unsigned us)
{
    uint64_t t0 = rdtsc(), ticks = us_to_tsc(us);

    while (rdtsc() - t0 < ticks)
        cpu_relax();
}

bool wait_for(volatile unsigned *counter, unsigned at_least, unsigned ms)
{
    uint64_t t0 = rdtsc(), ticks = us_to_tsc(ms * 1000ull);

    while (*counter < at_least)
        if (rdtsc() - t0 > ticks)
            return *counter >= at_least;
        else
            cpu_relax();
    return true;
}

/* ---- Memory ---- */
void *memcpy(void *d, const void *s, size_t n) { void *r = d; asm volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) :: "memory"); return r; }
void *memset(void *d, int v, size_t n) { void *r = d; asm volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(v) : "memory"); return r; }
int memcmp(const void *a, const void *b, size_t n)
{
    const uint8_t *x = a, *y = b;

    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

uint64_t ram_top(void)
{
    const uint32_t *info = (const uint32_t *)(ulong)boot_info;

    return boot_magic == 0x2badb002 && (info[0] & 1) ? (uint64_t)info[2] * 1024 + 0x100000 : 0x4000000;
}

void *alloc_pages(unsigned n)
{
    static ulong next;
    ulong p = next ? next : ((ulong)end + 0xfffff) & ~0xffffful;        /* clear of modules that loaders put behind the image */

    next = p + n * 4096ul;
    return memset((void *)p, 0, n * 4096ul);
}

#ifdef __x86_64__
typedef uint64_t pte_t;
extern pte_t pml4[512], pds[4 * 512];
void paging_on(void) {}

static pte_t *leaf(ulong va)
{
    pte_t *pd = &pds[va >> 21];

    if (*pd & 0x80) {                   /* a large page: split it */
        pte_t *pt = alloc_pages(1), base = *pd & ~0xfffull;
        for (unsigned n = 0; n < 512; n++)
            pt[n] = base + n * 4096 + 3;
        *pd = (ulong)pt | 7;
    }
    return (pte_t *)(*pd & ~0xfffull) + (va >> 12 & 511);
}
#else
typedef uint32_t pte_t;
static pte_t *page_dir;

void paging_on(void)
{
    page_dir = alloc_pages(1);
    for (unsigned n = 0; n < 1024; n++)
        page_dir[n] = (uint32_t)n << 22 | 0x83;         /* 4 MiB pages */
    write_cr4(read_cr4() | 0x10);
    write_cr3((ulong)page_dir);
    write_cr0(read_cr0() | 0x80010000);
}

static pte_t *leaf(ulong va)
{
    pte_t *pd = &page_dir[va >> 22];

    if (*pd & 0x80) {
        pte_t *pt = alloc_pages(1), base = *pd & ~0xfffu;
        for (unsigned n = 0; n < 1024; n++)
            pt[n] = base + n * 4096 + 3;
        *pd = (ulong)pt | 7;
    }
    return (pte_t *)(*pd & ~0xfffu) + (va >> 12 & 1023);
}
#endif

void map_page(ulong va, uint64_t pa, unsigned flags)
{
    *leaf(va) = flags ? pa | flags : 0;
    asm volatile("invlpg (%0)" :: "r"(va) : "memory");
}

/* ---- Entry ---- */
void cpu_main(ulong number);
void ap_main(unsigned number);
void cpu_main(ulong number)
{
    if (number)
        ap_main(number);
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 3);
    outb(COM1 + 2, 7);
    for (unsigned n = 0; n < 256; n++)
        set_gate(n, trap_stubs + 16 * n, 0, 0);
    main();
    finish();
}
