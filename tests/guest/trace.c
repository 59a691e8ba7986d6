/*
 * What a guest sees, as a text: registers after emulated instructions, CPUID, MSRs, exceptions, the order of interrupts.  It judges nothing: tests/e2e/differential
 * runs it on both vendors' virtualization and compares.  Whatever is printed must therefore not depend on time.
 */
#include "lib/guest.h"
#include "lib/forms.h"

enum { PIC = 0x20, VA = 0x40000000, CMOS = 0x70 };
static const char *step_name = "step";
static void end_of_part(const char *name);

static const char *trap_name(void)
{
    static char text[40];
    static const char hex[] = "0123456789abcdef";
    char *p = text;

    if (TRAP.vector < 0)
        return "ok";
    *p++ = '#', *p++ = hex[TRAP.vector / 16], *p++ = hex[TRAP.vector % 16];
    if (TRAP.vector == 8 || (TRAP.vector >= 10 && TRAP.vector <= 14) || TRAP.vector == 17) {
        *p++ = '(';
        for (int n = 12; n >= 0; n -= 4)
            *p++ = hex[TRAP.error >> n & 15];
        *p++ = ')';
    }
    *p = 0;
    return text;
}

/* ---- CPUID ---- */

static void cpuid_line(uint32_t leaf, uint32_t sub)
{
    uint32_t r[4];

    cpuid(leaf, sub, r);
    print("cpuid %08x.%x eax=%08x ebx=%08x ecx=%08x edx=%08x\n", leaf, sub, r[0], r[1], r[2], r[3]);
}

static void cpuid_all(void)
{
    static const struct { uint32_t first, last; } range[] = { { 0, 0x20 }, { 0x40000000, 0x40000011 }, { 0x80000000, 0x80000022 }, { 0xc0000000, 0xc0000001 } };
    static const uint32_t with_subleaves[] = { 4, 7, 0xb, 0xd, 0xf, 0x10, 0x12, 0x14, 0x1f, 0x8000001d };

    for (unsigned k = 0; k < ARRAY_SIZE(range); k++)
        for (uint32_t leaf = range[k].first; leaf <= range[k].last; leaf++) {
            unsigned subs = 1;
            for (unsigned n = 0; n < ARRAY_SIZE(with_subleaves); n++)
                subs = leaf == with_subleaves[n] ? 9 : subs;
            for (unsigned sub = 0; sub < subs; sub++)
                cpuid_line(leaf, sub);
        }
    cpuid_line(1, 0xffffffff);
    cpuid_line(0xffffffff, 0);
}

/* ---- MSRs ---- */

static uint64_t read_msr(uint32_t msr)
{
    uint32_t a = 0, d = 0;

    TRY("rdmsr", : "+a"(a), "+d"(d) : "c"(msr));
    return a | (uint64_t)d << 32;
}

static void write_msr(uint32_t msr, uint64_t v) { TRY("wrmsr", :: "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory"); }

static void read_line(uint32_t msr)
{
    uint64_t v = read_msr(msr);

    if (TRAP.vector < 0)
        print("msr %08x read %llx\n", msr, (unsigned long long)v);
    else
        print("msr %08x read %s\n", msr, trap_name());
}

static void write_line(uint32_t msr, uint64_t v)
{
    uint64_t old = read_msr(msr);
    bool readable = TRAP.vector < 0;

    write_msr(msr, v);
    print("msr %08x write %llx %s", msr, (unsigned long long)v, trap_name());
    if (readable)
        print(" -> %llx", (unsigned long long)read_msr(msr));
    print("\n");
    if (readable)
        write_msr(msr, old);
}

/* Every MSR that the policy names, and neighbours that it does not. */
static void msrs(void)
{
    static const struct { uint32_t first, last; } range[] = {
        { 0, 1 }, { 0x11, 0x12 }, { 0x17, 0x17 }, { 0x1b, 0x1b }, { 0x2a, 0x2a }, { 0x34, 0x34 }, { 0x3a, 0x3b }, { 0x48, 0x49 }, { 0x79, 0x79 }, { 0x8b, 0x8c }, { 0xc1, 0xc2 },
        { 0xcd, 0xce }, { 0xe7, 0xe8 }, { 0xfe, 0xfe }, { 0x10a, 0x10b }, { 0x119, 0x11e }, { 0x122, 0x122 }, { 0x140, 0x140 }, { 0x174, 0x176 }, { 0x179, 0x17b }, { 0x186, 0x187 },
        { 0x198, 0x19c }, { 0x1a0, 0x1a2 }, { 0x1ad, 0x1ad }, { 0x1b0, 0x1b0 }, { 0x1d9, 0x1de }, { 0x1fc, 0x1fc }, { 0x200, 0x212 }, { 0x250, 0x250 }, { 0x258, 0x259 }, { 0x268, 0x26f },
        { 0x277, 0x277 }, { 0x280, 0x280 }, { 0x2ff, 0x2ff }, { 0x309, 0x30a }, { 0x345, 0x345 }, { 0x38d, 0x390 }, { 0x400, 0x404 }, { 0x480, 0x492 }, { 0x560, 0x561 }, { 0x570, 0x570 },
        { 0x600, 0x600 }, { 0x606, 0x606 }, { 0x611, 0x611 }, { 0x6a0, 0x6a2 }, { 0x6e0, 0x6e0 }, { 0x770, 0x770 }, { 0x7ff, 0x80f }, { 0x830, 0x83f }, { 0xd90, 0xd90 }, { 0xda0, 0xda0 },
        { 0x4b564cff, 0x4b564d07 }, { 0x40000000, 0x40000003 }, { 0xc0000080, 0xc0000084 }, { 0xc00000e7, 0xc00000e9 }, { 0xc0000100, 0xc0000104 }, { 0xc0000408, 0xc000040a },
        { 0xc0010000, 0xc0010007 }, { 0xc0010010, 0xc001001f }, { 0xc0010020, 0xc0010020 }, { 0xc0010044, 0xc0010046 }, { 0xc0010055, 0xc0010055 }, { 0xc0010058, 0xc001006b },
        { 0xc0010111, 0xc001011f }, { 0xc0010140, 0xc0010141 }, { 0xc0010200, 0xc001020c }, { 0xc0011002, 0xc0011005 }, { 0xc0011020, 0xc001102d }, { 0xc00110a2, 0xc00110a2 },
        { 0x12345678, 0x12345678 }, { 0xffffffff, 0xffffffff },
    };
    /* Written with 0, 1, all ones and what is given. */
    static const struct { uint32_t msr; uint64_t value; } written[] = {
        { 0x3a, 5 }, { 0x3b, 0x1000 }, { 0x48, 2 }, { 0x8b, 0 }, { 0x79, 0 }, { 0xfe, 0x508 }, { 0x10a, 1 }, { 0x140, 1 }, { 0x174, 0x10 }, { 0x175, 0x8000000000000000 }, { 0x176, 0xffffffff80000000 },
        { 0x179, 1 }, { 0x17a, 4 }, { 0x186, 0x530076 }, { 0x1a0, 0x850089 }, { 0x1d9, 2 }, { 0x1d9, 0x4001 }, { 0x200, 0xc0000006 }, { 0x201, 0xc0000800 }, { 0x201, 1ull << 50 }, { 0x210, 0 },
        { 0x250, 0x0606060606060606 }, { 0x250, 0x0606060606060602 }, { 0x268, 0x0500000000000000 }, { 0x277, 0x0001040600070406 }, { 0x277, 0x0800040600070406 }, { 0x2ff, 0xc06 }, { 0x2ff, 0xc07 },
        { 0x400, 3 }, { 0x404, 1 }, { 0x480, 0 }, { 0x802, 0 }, { 0x80b, 0 }, { 0xc0000080, 0x4000 }, { 0xc0000080, 0x1000 }, { 0xc0000080, 0x2000 }, { 0xc0000080, 0x8000 },
        { 0xc0000081, 0x23001000000000 }, { 0xc0000082, 0xffffffff81000000 }, { 0xc0000082, 0x800000000000 }, { 0xc0000084, 0x100000000 }, { 0xc0000084, 0x257fd5 }, { 0xc0000102, 0xffff888000000000 },
        { 0xc0000102, 0x4000000000000000 }, { 0xc0000103, 0x100000001 }, { 0xc0000103, 5 }, { 0xc0010015, 0x1000000 }, { 0xc0010117, 0x1000 }, { 0xc001001f, 0 }, { 0xc0011029, 2 }, { 0x12345678, 0 },
    };

    for (unsigned k = 0; k < ARRAY_SIZE(range); k++)
        for (uint32_t msr = range[k].first; msr - range[k].first <= range[k].last - range[k].first; msr++)
            read_line(msr);
    for (unsigned k = 0; k < ARRAY_SIZE(written); k++) {
        write_line(written[k].msr, written[k].value);
        if (written[k].msr == 0xc0000080 || (k && written[k - 1].msr == written[k].msr))
            continue;                   /* EFER with one bit alone would end paging */
        write_line(written[k].msr, 0);
        write_line(written[k].msr, 1);
        write_line(written[k].msr, ~0ull);
    }
    for (unsigned bit = 0; bit < 64; bit++)
        if (bit != 8 && bit != 10 && bit != 11)
            write_line(0xc0000080, read_msr(0xc0000080) | 1ull << bit);
}

/* ---- Control registers: which bits exist ---- */

static void control_registers(void)
{
    ulong cr0 = read_cr0(), cr4 = read_cr4(), v = 0;

    print("cr0 %lx cr4 %lx\n", cr0, cr4);
    for (unsigned bit = 0; bit < GUEST_BITS; bit++) {
        if (bit != 31 && bit != 29 && bit != 0) {       /* NW alone ends VMRUN in QEMU, which lets it pass */
            TRY("mov %0, %%cr0", :: "r"(cr0 ^ 1ul << bit) : "memory");
            print("cr0 bit %u %s", bit, trap_name());
            print(" %lx\n", read_cr0());
            write_cr0(cr0);
        }
        if (bit == 5 || bit == 12 || (GUEST_BITS == 32 && bit == 4))    /* PAE, LA57, PSE: not under these tables */
            continue;
        TRY("mov %0, %%cr4", :: "r"(cr4 ^ 1ul << bit) : "memory");
        print("cr4 bit %u %s", bit, trap_name());
        print(" %lx\n", read_cr4());
        write_cr4(cr4);
    }
    TRY("lmsw %w0", :: "r"(0x3b) : "memory");
    print("lmsw %s %lx\n", trap_name(), read_cr0());
    TRY("clts", ::: "memory");
    print("clts %s %lx\n", trap_name(), read_cr0());
    TRY("smsw %0", : "+r"(v) :: "memory");
    print("smsw %s %lx\n", trap_name(), v);
    write_cr0(cr0);
    for (unsigned n = 0; n < GUEST_BITS; n += n < 15 ? 1 : 8) {
        TRY("mov %0, %%dr7", :: "r"(n == 13 ? 0x400 : 1ul << n & ~0xfful) : "memory");
        asm volatile("mov %%dr7, %0" : "=r"(v));
        print("dr7 bit %u %s %lx\n", n, trap_name(), v);
        TRY("mov %0, %%dr6", :: "r"(1ul << n) : "memory");
        asm volatile("mov %%dr6, %0" : "=r"(v));
        print("dr6 bit %u %s %lx\n", n, trap_name(), v);
    }
    v = 0x400;
    asm volatile("mov %0, %%dr7; mov %1, %%dr6; mov %2, %%dr1; mov %%dr1, %0" : "+r"(v) : "r"(0xffff0ff0ul), "r"(0x12345678ul));
    print("dr1 %lx\n", v);
    v = 0x2400;
    TRY("mov %0, %%dr7; mov %%dr6, %0", : "+r"(v) :: "memory");
    print("general detect %s", trap_name());
    asm volatile("mov %%dr6, %0" : "=r"(v));
    print(" dr6 %lx", v);
    asm volatile("mov %%dr7, %0" : "=r"(v));
    print(" dr7 %lx\n", v);
    asm volatile("mov %0, %%dr6; mov %1, %%dr7" :: "r"(0xffff0ff0ul), "r"(0x400ul));
    if (!(cpuid_reg(1, 0, 2) >> 26 & 1))
        return;
    write_cr4(cr4 | 1 << 18);
    for (unsigned n = 0; n < 32; n++) {
        uint32_t lo = 1, hi = 0;
        TRY("xsetbv", :: "a"(1u | (n ? 1u << n : 0) | (n == 2 ? 2 : 0)), "d"(0), "c"(0));
        asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
        print("xcr0 bit %u %s %x:%x size %x\n", n, trap_name(), hi, lo, cpuid_reg(0xd, 0, 1));
        asm volatile("xsetbv" :: "a"(1), "d"(0), "c"(0));
    }
    TRY("xsetbv", :: "a"(1), "d"(0), "c"(1));
    print("xcr1 %s\n", trap_name());
    write_cr4(cr4);
    TRY("xsetbv", :: "a"(1), "d"(0), "c"(0));
    print("xsetbv without osxsave %s\n", trap_name());
}

/* ---- Instructions that this machine may or may not have ---- */

struct in { ulong a, b, c, d; };
#define INSN(text, ...) do { \
    struct in in_ = { __VA_ARGS__ }; \
    ulong si_ = 0; \
    TRY(text, : "+a"(in_.a), "+b"(in_.b), "+c"(in_.c), "+d"(in_.d), "+S"(si_) :: "memory", "cc"); \
    print("insn \"%s\" %s\n", text, trap_name()); \
} while (0)
#ifdef __x86_64__
#define BX "%%rbx"
#define SI "%%rsi"
#else
#define BX "%%ebx"
#define SI "%%esi"
#endif

static void instructions(void)
{
    static uint64_t mem[8] __attribute__((aligned(4096)));
    ulong m = (ulong)mem;

    INSN("vmcall"); INSN("vmmcall"); INSN("vmrun", .a = m); INSN("vmload", .a = m); INSN("vmsave", .a = m); INSN("stgi"); INSN("clgi"); INSN("invlpga"); INSN("skinit");
    INSN("vmxon (" BX ")", .b = m); INSN("vmxoff"); INSN("vmptrld (" BX ")", .b = m); INSN("vmptrst (" BX ")", .b = m); INSN("vmclear (" BX ")", .b = m);
    INSN("vmlaunch"); INSN("vmresume"); INSN("vmread " SI ", (" BX ")", .b = m); INSN("vmwrite (" BX "), " SI, .b = m); INSN("vmfunc");
    INSN("invept (" BX "), " SI, .b = m); INSN("invvpid (" BX "), " SI, .b = m);
    INSN("monitor", .a = m); INSN("mwait"); INSN("rdpmc"); INSN("rdpmc", .c = 0x40000000); INSN("getsec"); INSN("rsm");
    INSN("wbinvd"); INSN("invd"); INSN("invlpg (" BX ")", .b = m); INSN("pause");
    INSN("ud2"); INSN(".byte 0x0f, 0xff, 0xc0"); INSN(".byte 0x0f, 0xb9, 0xc0"); INSN("int3"); INSN("int $0x80");
    INSN("mov %%cr2, " SI); INSN("mov %%cr3, " SI); INSN(".byte 0x0f, 0x20, 0xce"); INSN(".byte 0x0f, 0x22, 0xee"); INSN("mov %%dr4, " SI);
    INSN("lldt %%bx"); INSN("sldt %%bx"); INSN("str %%bx"); INSN("ltr %%bx"); INSN("ltr %%bx", .b = 8); INSN("verr %%bx", .b = 0x10);
    INSN("mov %%ebx, %%ss"); INSN("mov %%ebx, %%ds", .b = 0x1f8); INSN("mov %%ebx, %%fs", .b = 0x2b);
    INSN("div %%ebx", .a = 1); INSN("movaps (" BX "), %%xmm0", .b = m + 4);
#ifdef __x86_64__
    INSN("mov " BX ", %%cr8", .b = 16); INSN("mov " BX ", %%cr8", .b = 3); INSN("mov " BX ", %%cr8"); INSN("swapgs; swapgs");
    INSN("mov (" BX "), %%eax", .b = 0x8000000000000000 | HPET); INSN(".byte 0xce"); INSN(".byte 0x62, 0xf1"); INSN("jmp *" BX, .b = 0x8000000000000000);
#else
    INSN("into"); INSN("mov $0x7fffffff, %%eax; add $1, %%eax; into"); INSN("bound %%eax, (" BX ")", .a = 5, .b = m);
#endif
}

/* ---- Emulated instructions: registers, flags and memory after each form ---- */

static uint64_t load64(ulong a) { return mmio_read(a) | (uint64_t)mmio_read(a + 4) << 32; }

static void forms_on(const char *name, ulong addr, unsigned sizes, unsigned nstarts)
{
    static const uint64_t starts[] = { 0x0102030480818283, 0x7fffffff80000000 };

    for (const struct form *f = __start_forms; f < __stop_forms; f++)
        for (unsigned k = 0; k < nstarts && (sizes >> f->size & 1); k++) {
            struct regs r = { 0x11223344, 0xa5a5f00f + k, 0x01020304, 0x55667788, 2 | (k ? CF : 0) };
            mmio_write(addr, starts[k]);
            if (sizes & 0x100)
                mmio_write(addr + 4, starts[k] >> 32);
            call_form(f->fn, &r, (void *)addr);
            print("form %s \"%s\" ax=%lx bx=%lx cx=%lx dx=%lx flags=%lx mem=%llx\n", name, (const char *)(ulong)f->name, r.ax, r.bx, r.cx, r.dx, r.flags & (f->flags | DF),
                  (unsigned long long)(sizes & 0x100 ? load64(addr) : mmio_read(addr)));
        }
}

static void forms(void)
{
    forms_on("hpet", HPET + 0x108, 1 << 4 | 1 << 8, 2);
    end_of_part("forms on the HPET");
    forms_on("lapic", LAPIC + APIC_LVTERR, 1 << 4, 1);
    ioapic_write(0x1a, 0x10000);
    forms_on("ioapic", IOAPIC + 0x10, 1 << 4, 1);
    ioapic_write(0x1a, 0x10000);
    mmio_write(HPET + 0x108, 0);
    outl(0xcf8, 0x80000060);
    ulong ecam = inl(0xcfc) & 0xf0000000;
    if (ecam)
        forms_on("pci", ecam + 0x3c, 1 << 1, 2);
}

/* One access at the end of a page: both sides, with what the second page is. */
static void crossing(const char *what, ulong pa, unsigned flags)
{
    static const uint8_t offsets[] = { 1, 2, 3 };
    ulong v;

    for (unsigned k = 0; k < ARRAY_SIZE(offsets); k++) {
        ulong at = VA + 4096 - offsets[k];
        map_page(VA, HPET, 3);
        map_page(VA + 4096, pa, flags);
        v = 0x5a5a5a5a;
        TRY("movl (%1), %k0", : "+r"(v) : "r"(at) : "memory");
        print("crossing %s -%u read %s %lx cr2 %lx", what, offsets[k], trap_name(), v, TRAP.vector == 14 ? TRAP.cr2 : 0);
        TRY("movl %k0, (%1)", :: "r"(0x01020304), "r"(at) : "memory");
        print(" write %s cr2 %lx", trap_name(), TRAP.vector == 14 ? TRAP.cr2 : 0);
        v = 0x11;
        TRY("lock xaddl %k0, (%1)", : "+r"(v) : "r"(at) : "memory", "cc");
        print(" xadd %s %lx", trap_name(), v);
        ulong s = at, d = VA + 4096 + 16, n = 2;
        TRY("rep movsl", : "+S"(s), "+D"(d), "+c"(n) :: "memory");
        print(" movs %s si=%lx di=%lx cx=%lx\n", trap_name(), s, d, n);
    }
}

static uint8_t page_bytes[3 * 4096] __attribute__((aligned(4096)));

static void crossings(void)
{
    ulong ram = (ulong)page_bytes;

    memset(page_bytes, 0x77, sizeof page_bytes);
    crossing("ram", ram, 3);
    crossing("nothing", 0xfea00000, 3);
    crossing("hole", 0, 0);
    write_cr0(read_cr0() | 0x10000);
    crossing("read-only", ram, 1);
    write_cr0(read_cr0() & ~0x10000ul);
    map_page(VA, ram, 3);
    map_page(VA + 4096, HPET, 3);
    ulong v = 0;
    TRY("movl (%1), %k0", : "+r"(v) : "r"((ulong)VA + 4094) : "memory");
    print("crossing into device read %s %lx\n", trap_name(), v);
    TRY("movl %k0, (%1)", :: "r"(0x01020304), "r"((ulong)VA + 4094) : "memory");
    print("crossing into device write %s %x %x\n", trap_name(), page_bytes[4094], page_bytes[4095]);
    /* Strings between RAM and a device, with a hole in the middle. */
    map_page(VA, HPET, 3);
    map_page(VA + 4096, ram, 3);
    map_page(VA + 8192, 0, 0);
    struct { const char *name; unsigned bytes; } sizes[] = { { "b", 1 }, { "w", 2 }, { "l", 4 } };
    for (unsigned k = 0; k < ARRAY_SIZE(sizes); k++) {
        ulong s = VA, d = VA + 8192 - 3 * sizes[k].bytes + (k ? 1 : 0), n = 8, fl = 0;
        if (k == 0)
            TRY("rep movsb", : "+S"(s), "+D"(d), "+c"(n) :: "memory");
        else if (k == 1)
            TRY("rep movsw", : "+S"(s), "+D"(d), "+c"(n) :: "memory");
        else
            TRY("rep movsl", : "+S"(s), "+D"(d), "+c"(n) :: "memory");
        print("movs%s to the hole %s cr2 %lx si=%lx di=%lx cx=%lx\n", sizes[k].name, trap_name(), TRAP.cr2, s, d, n);
        s = VA + 8192 - 5, d = VA + 0x108, n = 4;
        TRY("rep movsl", : "+S"(s), "+D"(d), "+c"(n) :: "memory");
        print("movs from the hole %s cr2 %lx si=%lx di=%lx cx=%lx\n", trap_name(), TRAP.cr2, s, d, n);
        d = VA + 8192 - 3, n = 8;
        TRY("rep insb", : "+D"(d), "+c"(n) : "d"(PIC + 1) : "memory");
        print("ins to the hole %s cr2 %lx di=%lx cx=%lx\n", trap_name(), TRAP.cr2, d, n);
        s = VA + 8192 - 6, n = 8;
        TRY("rep outsw", : "+S"(s), "+c"(n) : "d"(0x80) : "memory");
        print("outs from the hole %s cr2 %lx si=%lx cx=%lx\n", trap_name(), TRAP.cr2, s, n);
        s = VA + 0x100, d = VA, n = 9;
        TRY("repe cmpsb; pushf; pop %3", : "+S"(s), "+D"(d), "+c"(n), "=r"(fl) :: "memory", "cc");
        print("cmps %s si=%lx di=%lx cx=%lx flags=%lx\n", trap_name(), s, d, n, fl & ALL);
        d = VA, n = 20;
        TRY("repne scasb; pushf; pop %2", : "+D"(d), "+c"(n), "=r"(fl) : "a"(0x42) : "memory", "cc");
        print("scas %s di=%lx cx=%lx flags=%lx\n", trap_name(), d, n, fl & ALL);
        n = 0, s = VA, d = VA;
        TRY("rep movsb; rep stosb; rep lodsb", : "+S"(s), "+D"(d), "+c"(n) : "a"(0) : "memory");
        print("count 0 %s si=%lx di=%lx cx=%lx\n", trap_name(), s, d, n);
        s = VA + 0x10f, d = VA + 4096 + 0x4f, n = 16;
        TRY("std; rep movsb; cld", : "+S"(s), "+D"(d), "+c"(n) :: "memory");
        print("downwards %s si=%lx di=%lx cx=%lx", trap_name(), s, d, n);
        for (unsigned i = 0; i < 16; i++)
            print(" %02x", page_bytes[0x40 + i]);
        print("\n");
    }
    map_page(VA, VA, 3), map_page(VA + 4096, VA + 4096, 3), map_page(VA + 8192, VA + 8192, 3);
}

/* ---- Port I/O ---- */

#define PORT(text, start, port) do { ulong a_ = (start); TRY(text, : "+a"(a_) : "d"(port) : "memory"); print("port %x \"%s\" %s ax=%lx\n", port, text, trap_name(), a_); } while (0)

static void ports(void)
{
    static const uint16_t port[] = { 0x20, 0x21, 0x40, 0x43, 0x64, 0x70, 0x71, 0x80, 0x92, 0xa1, 0xb2, 0x2f0, 0x3f9, 0x3fb, 0x3fc, 0x3ff, 0x4d0, 0x4d1, 0xcf8, 0xcf9, 0xcfc, 0xcfe, 0xffff };

    outl(0xcf8, 0x80000000);
    outb(CMOS, 0x0d);
    outb(PIC + 1, 0xff), outb(0xa1, 0xff);
    for (unsigned k = 0; k < ARRAY_SIZE(port); k++) {
        if (port[k] != 0x40) {
            PORT("inb %%dx, %%al", 0x11223344, port[k]);
            PORT("inw %%dx, %%ax", 0x11223344, port[k]);
        }
        PORT(".byte 0x66; inb %%dx, %%al", 0x11223344, 0x21);
        PORT("inl %%dx, %%eax", -1ul, port[k] == 0x40 ? 0x80 : port[k]);
    }
    PORT("inb $0x21, %%al", 0x11223344, 0);
    PORT("inl $0x80, %%eax", 0x11223344, 0);
    PORT("outb %%al, $0x80; inb $0x80, %%al", 0x11223344, 0);
    PORT("outl %%eax, %%dx; inl %%dx, %%eax", 0x80000a50, 0xcf8);
    PORT("outw %%ax, %%dx; inl %%dx, %%eax", 0x1234, 0xcf8);
    outb(0x3f8 + 7, 0x5c);
    PORT("inb %%dx, %%al", 0, 0x3ff);
    for (unsigned r = 0; r < 0x40; r++) {
        outb(CMOS, r);
        if (r > 0xd || r == 0xa || r == 0xb)
            print("cmos %02x %02x\n", r, inb(CMOS + 1));
    }
    for (unsigned dev = 0; dev < 4; dev++)
        for (unsigned reg = 0; reg < 0x40; reg += 4) {
            outl(0xcf8, 0x80000000 | dev << 11 | reg);
            print("pci 00:%02x.0 %02x %08x\n", dev, reg, inl(0xcfc));
        }
}

/* ---- Device registers after reset ---- */

static void devices(void)
{
    static const uint16_t lapic[] = { 0x20, 0x30, 0x80, 0x90, 0xa0, 0xd0, 0xe0, 0xf0, 0x100, 0x170, 0x200, 0x270, 0x280, 0x300, 0x310, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3e0, 0x3f0, 0x400 };
    static const uint16_t hpet[] = { 0, 4, 0x10, 0x20, 0xf0, 0x100, 0x104, 0x108, 0x10c, 0x120, 0x140, 0x160, 0x3fc, 0x400 };

    for (unsigned k = 0; k < ARRAY_SIZE(lapic); k++)
        print("lapic %03x %08x\n", lapic[k], mmio_read(LAPIC + lapic[k]));
    for (unsigned k = 0; k < ARRAY_SIZE(hpet); k++)
        print("hpet %03x %08x\n", hpet[k], mmio_read(HPET + hpet[k]));
    for (unsigned k = 0; k < 0x42; k++)
        print("ioapic %02x %08x\n", k, ioapic_read(k));
    print("lapic narrow %x %x\n", *(volatile uint8_t *)(ulong)(LAPIC + 0x30), *(volatile uint16_t *)(ulong)(LAPIC + 0x32));
    print("hpet narrow %x %x\n", *(volatile uint8_t *)(ulong)HPET, *(volatile uint16_t *)(ulong)(HPET + 2));
}

/* ---- Interrupts: who comes when, and where ---- */

struct event { uint8_t vector, ppr, depth; ulong ip; };
static struct event events[64];
static volatile unsigned nevents, depth;
static uint8_t nest_at, reply_at, reply_with;       /* vectors: the handler of nest_at opens the door; that of reply_at sends reply_with */

static void on_event(struct frame *f)
{
    unsigned n = nevents;

    if (n < ARRAY_SIZE(events)) {
        nevents = n + 1;
        events[n] = (struct event){ f->vector, f->vector == 2 || f->vector == PIC ? 0 : apic_read(APIC_PPR), depth, f->ip };
    }
    depth++;
    if (reply_at == f->vector)
        apic_ipi(apic_id(), reply_with == 2 ? 0x4400u : 0x4000u | reply_with), reply_at = 0;
    if (nest_at == f->vector)
        sti(), cli();
    depth--;
    if (f->vector == PIC)
        outb(PIC, 0x20);
    else if (f->vector != 2)
        apic_write(APIC_EOI, 0);
}

static void settle(void)
{
    for (unsigned n = 0; n < 30; n++)
        inb(PIC + 1);
}

/* What came since the last call.  Where is the same program's addresses on both sides, printed only when it is no loop. */
static void came(const char *name, bool where)
{
    print("irq %s:", name);
    for (unsigned n = 0; n < nevents; n++) {
        print(" %x/%x", events[n].vector, events[n].ppr);
        if (events[n].depth)
            print("(%u)", events[n].depth);
        if (where)
            print("@%lx", events[n].ip);
    }
    uint32_t irr = 0, isr = 0;
    for (unsigned n = 0; n < 8; n++)
        irr |= apic_read(APIC_IRR + 16 * n) ? 1u << n : 0, isr |= apic_read(APIC_ISR + 16 * n) ? 1u << n : 0;
    print(" irr %x isr %x tpr %x ppr %x\n", irr, isr, apic_read(APIC_TPR), apic_read(APIC_PPR));
    nevents = depth = nest_at = reply_at = 0;
}

/* The clocks of devices run on their own: until what they raise has arrived. */
static void arrived(unsigned vector)
{
    for (unsigned n = 0; n < 1000000 && !(apic_read(APIC_IRR + 16 * (vector / 32)) >> (vector % 32) & 1); n++)
        ;
}

static void ipi(unsigned vector) { apic_ipi(0, 0x40000 | vector); }
static void self_nmi(void) { apic_ipi(apic_id(), 0x4400); }

/* With interrupts pending behind a closed door: which instruction is the last before they come. */
#define DOOR(text, ...) do { \
    cli(); ipi(0x45); settle(); \
    asm volatile(text "\n\tnop\n\tnop\n\tcli" :: __VA_ARGS__ : "eax", "ecx", "edx", "memory", "cc"); \
    print("door \"%s\" ", text); came("", true); \
} while (0)

static void doors(void)
{
    static volatile uint32_t word;

    word = 1;                           /* touched: the door is about what does not exit, too */
    DOOR("sti; nop", "b"(0));
    DOOR("sti; cpuid", "S"(0));
    DOOR("sti; inb $0x21, %%al", "b"(0));
    DOOR("sti; outb %%al, $0x80", "b"(0));
    DOOR("sti; movl (%0), %%eax", "b"((ulong)HPET));
    DOOR("sti; movl %%eax, (%0)", "b"((ulong)HPET + 0xf4));
    DOOR("sti; orl $0, (%0)", "b"((ulong)HPET + 0xf4));
    DOOR("sti; mov $0x1b, %%ecx; rdmsr", "b"(0));
    DOOR("mov $0x1b, %%ecx; sti; rdmsr", "b"(0));
    DOOR("mov $0x277, %%ecx; rdmsr; sti; wrmsr", "b"(0));
    DOOR("sti; hlt", "b"(0));
    DOOR("sti; pause", "b"(0));
    DOOR("sti; wbinvd", "b"(0));
    DOOR("sti; pushf; pop %%" PTR_SI, "b"(0));
    DOOR("sti; sti; nop", "b"(0));
    DOOR("push $0x202; popf; nop", "b"(0));
    DOOR("sti; mov %%ss, %%eax", "b"(0));
    DOOR("mov %%ss, %%eax; sti; nop; mov %%eax, %%ss; cpuid", "S"(0));
    DOOR("sti; movl %0, %%eax", "m"(word));
    print("door closed again ");
    cli(), ipi(0x45), settle();
    asm volatile("sti; cli; nop" ::: "memory");
    came("", true);
    asm volatile("sti; nop; cli" ::: "memory");
    came("opened", true);
    cli();
}

static void priorities(void)
{
    cli(), ipi(0x31), ipi(0x61), ipi(0x45), ipi(0x41), ipi(0x6f), ipi(0x61), settle(), sti(), settle(), cli(), came("highest first", false);
    cli(), ipi(0x31), ipi(0x45), nest_at = 0x31, reply_at = 0x31, reply_with = 0x61, settle(), sti(), settle(), cli(), came("nested by a higher one", false);
    cli(), ipi(0x61), nest_at = 0x61, reply_at = 0x61, reply_with = 0x31, settle(), sti(), settle(), cli(), came("not nested by a lower one", false);
    cli(), ipi(0x61), nest_at = 0x61, reply_at = 0x61, reply_with = 0x6f, settle(), sti(), settle(), cli(), came("not nested within a class", false);
    cli(), ipi(0x41), ipi(0x61), apic_write(APIC_TPR, 0x50), settle(), sti(), settle(), came("above the tpr", false);
    apic_write(APIC_TPR, 0x40), settle(), came("tpr at its class", false);
    apic_write(APIC_TPR, 0x3f), settle(), came("tpr below it", false);
    apic_write(APIC_TPR, 0xf0), ipi(0xf1), settle(), came("tpr f0", false);
    apic_write(APIC_TPR, 0), settle(), came("tpr 0", false);
#ifdef __x86_64__
    ulong cr8;
    asm volatile("mov %0, %%cr8" :: "r"(5ul));
    ipi(0x41), ipi(0x61), settle(), came("above cr8", false);
    asm volatile("mov %0, %%cr8" :: "r"(4ul));
    settle(), came("cr8 at its class", false);
    asm volatile("mov %0, %%cr8; mov %%cr8, %0" : "=&r"(cr8) : "0"(0ul));
    settle(), came("cr8 0", false);
#endif
    cli();
    reply_at = 0x45, reply_with = 0x45, ipi(0x45), sti(), settle(), cli(), came("itself again", false);
    apic_ipi(apic_id(), 0x4005), settle(), apic_write(APIC_ESR, 0), print("illegal vector: esr %x\n", apic_read(APIC_ESR));
    apic_write(APIC_ESR, 0), apic_write(APIC_ESR, 0), print("esr %x\n", apic_read(APIC_ESR));
}

static void nmis(void)
{
    self_nmi(), settle(), came("nmi with interrupts off", false);
    reply_at = 2, reply_with = 2, self_nmi(), settle(), came("nmi within nmi", false);
    reply_at = 2, reply_with = 0x45, nest_at = 2, self_nmi(), settle(), cli(), came("interrupt within nmi", false);
    ipi(0x45), settle(), reply_at = 0x45, reply_with = 2, sti(), settle(), cli(), came("nmi within interrupt", false);
}

/* PIC and PIT behind LINT0, the IOAPIC's pin 2, the LAPIC's timer. */
static void expire_pit(void)
{
    outb(0x43, 0x30), outb(0x40, 20), outb(0x40, 0);
    for (unsigned n = 0, out = 0; n < 1000000 && !out; n++) {
        outb(0x43, 0xe2);               /* read-back: status of channel 0 */
        out = inb(0x40) & 0x80;
    }
}

static void expire_pit_at_pic(void)
{
    expire_pit();
    for (unsigned n = 0; n < 1000000; n++) {
        outb(PIC, 0x0a);
        if (inb(PIC) & 1)
            break;
    }
}

static void expire_timer(void)
{
    apic_write(APIC_TDCR, 0xb), apic_write(APIC_LVTT, 0x51), apic_write(APIC_TICR, 100);
    arrived(0x51);
}

static void sources(void)
{
    cli(), apic_write(APIC_LVT0, 0x700), outb(PIC + 1, 0xfe), expire_pit_at_pic(), ipi(0x31), settle();
    outb(PIC, 0x0a);
    print("pic irr %x", inb(PIC));
    outb(PIC, 0x0b);
    print(" isr %x\n", inb(PIC));
    sti(), settle(), cli(), came("pic and ipi", false);
    outb(PIC + 1, 0xff), apic_write(APIC_TPR, 0xf0), outb(PIC + 1, 0xfe), expire_pit_at_pic(), sti(), settle(), cli(), came("pic past the tpr", false);
    apic_write(APIC_TPR, 0), outb(PIC + 1, 0xff), apic_write(APIC_LVT0, 0x10000);
    ioapic_route(2, 0x71, apic_id()), expire_pit(), arrived(0x71), expire_timer(), ipi(0x61), settle(), sti(), settle(), cli(), came("pit, timer, ipi", false);
    ioapic_route(2, 0x400, apic_id()), expire_pit();
    for (unsigned n = 0; n < 1000000 && !nevents; n++)
        cpu_relax();
    came("pit as nmi", false);
    ioapic_write(0x14, 0x10000);
    expire_timer(), apic_write(APIC_TICR, 100), delay_us(1000), sti(), settle(), cli(), came("timer twice", false);
    apic_write(APIC_LVTT, 0x10051), apic_write(APIC_TICR, 1), settle(), apic_write(APIC_LVTT, 0x51), sti(), settle(), cli(), came("timer masked", false);
    wrmsr(0x1b, rdmsr(0x1b)), apic_write(APIC_LVTT, 0x40051), wrmsr(0x6e0, 1), arrived(0x51), print("deadline %llx\n", (unsigned long long)rdmsr(0x6e0)), sti(), settle(), cli();
    came("deadline past", false);
    apic_write(APIC_LVTT, 0x10000);
    apic_write(APIC_SPIV, 0xff), ipi(0x45), settle(), print("software-disabled: lvtt %x\n", apic_read(APIC_LVTT)), apic_write(APIC_SPIV, 0x1ff), sti(), settle(), cli(), came("after disable", false);
}

/* A level that stays up: again after each end of interrupt. */
static unsigned levels;
static void on_level(struct frame *f)
{
    unsigned n = nevents;
    if (n < ARRAY_SIZE(events)) {
        events[n] = (struct event){ f->vector, apic_read(APIC_PPR), (uint8_t)((ioapic_read(0x10 + 2 * levels) >> 12) & 5), 0 };
        nevents = n + 1;
    }
    if (n == 2)
        mmio_write(HPET + 0x20, 1);     /* cleared the third time */
    apic_write(APIC_EOI, 0);
}

static void level(void)
{
    uint32_t routes = mmio_read(HPET + 0x104);

    for (levels = 3; levels < 24 && !(routes >> levels & 1); levels++)
        ;
    print("hpet pin %u\n", levels);
    if (levels == 24)
        return;
    set_handler(0x75, on_level);
    cli(), ioapic_route(levels, 0x8000 | 0x75, apic_id());
    mmio_write(HPET + 0x10, 1);
    mmio_write(HPET + 0x100, levels << 9 | 2 | 0x100);          /* enabled once the comparator lies ahead */
    mmio_write(HPET + 0x108, mmio_read(HPET + 0xf0) + 100000);
    mmio_write(HPET + 0x100, levels << 9 | 4 | 2 | 0x100);
    arrived(0x75);
    print("level status %x redirection %x\n", mmio_read(HPET + 0x20), ioapic_read(0x10 + 2 * levels));
    sti(), settle(), cli(), came("level", false);
    print("level status %x redirection %x\n", mmio_read(HPET + 0x20), ioapic_read(0x10 + 2 * levels));
    mmio_write(HPET + 0x100, 0), mmio_write(HPET + 0x10, 0), ioapic_write(0x10 + 2 * levels, 0x10000);
}

/* Wake-ups: what is behind HLT. */
static void halts(void)
{
    apic_write(APIC_TDCR, 0xb), apic_write(APIC_LVTT, 0x51);
    for (unsigned n = 0; n < 3; n++) {
        cli(), apic_write(APIC_TICR, 20000), sti_hlt(), cli();
        came("hlt, timer", true);
    }
    apic_write(APIC_LVTT, 0x10000);
    ioapic_route(2, 0x400, apic_id());
    outb(0x43, 0x34), outb(0x40, 0), outb(0x40, 0);             /* again and again: one may come before HLT on a busy host */
    asm volatile("cli; hlt; nop" ::: "memory");
    ioapic_write(0x14, 0x10000);
    outb(0x43, 0x30), outb(0x40, 0), outb(0x40, 0);
    nevents = nevents ? 1 : 0, events[0].ip = 0;
    came("hlt with interrupts off, nmi", false);
}

/* ---- Delivery to a stack that has never been touched: a nested fault in the middle of it ---- */
static ulong fresh;
#ifdef __x86_64__
#define ON_FRESH(text, ...) do { fresh += 0x1000; asm volatile("mov %%rsp, %%rsi; mov %0, %%rsp; " text "; nop; cli; mov %%rsi, %%rsp" :: "r"(fresh), ##__VA_ARGS__ : "rsi", "eax", "memory", "cc"); } while (0)
#else
#define ON_FRESH(text, ...) do { fresh += 0x1000; asm volatile("mov %%esp, %%esi; mov %0, %%esp; " text "; nop; cli; mov %%esi, %%esp" :: "r"(fresh), ##__VA_ARGS__ : "esi", "eax", "memory", "cc"); } while (0)
#endif
static void on_step_over(struct frame *f)
{
    on_event(f);
    f->ip += 2;                         /* UD2 */
}

static void fresh_stacks(void)
{
    fresh = 32 << 20;
    set_handler(0x46, on_event), set_handler(6, on_step_over);
    ON_FRESH("int $0x46");
    came("int n on a fresh stack", true);
    fresh += 4 << 20;
    ON_FRESH("ud2");
    came("fault on a fresh stack", true);
    fresh += 4 << 20;
    ON_FRESH("movl $0x4400, (%1)", "r"((ulong)LAPIC + APIC_ICR));
    settle();
    came("nmi on a fresh stack", false);
    fresh += 4 << 20;
    cli(), ipi(0x45), settle();
    ON_FRESH("sti; nop; nop");
    came("interrupt on a fresh stack", true);
    apic_write(APIC_EOI, 0);            /* where it was another one that came */
    set_handler(6, NULL);
}

/* ---- Single steps over instructions that exit ---- */
static void on_db(struct frame *f)
{
    ulong dr6;

    asm volatile("mov %%dr6, %0; mov %1, %%dr6" : "=&r"(dr6) : "r"(0xffff0ff0ul));
    print("%s %lx dr6 %lx%s\n", step_name, f->ip, dr6 & 0xe00f, f->flags & 0x10000 ? " rf" : "");
}

static void steps(void)
{
    ulong s = VA, d = (ulong)page_bytes, n = 3;

    set_handler(1, on_db);
    map_page(VA, HPET, 3);
    /* No PAUSE among them: QEMU's has no trap behind it. */
    asm volatile("push $0x102; popf; nop; cpuid; inb $0x21, %%al; movl 0xfed00000, %%eax; outb %%al, $0x80; mov $0x1b, %%ecx; rdmsr; wbinvd; mov %%cr0, %%" PTR_SI "; mov %%" PTR_SI ", %%cr0; push $2; popf"
                 ::: "eax", "ebx", "ecx", "edx", PTR_SI, "memory", "cc");
    asm volatile("push $0x102; popf; rep movsb; push $2; popf" : "+S"(s), "+D"(d), "+c"(n) :: "memory", "cc");
    step_name = "int1";
    TRY(".byte 0xf1; nop", ::: "memory");
    print("int1 %s\n", trap_name());
    map_page(VA, VA, 3);
    set_handler(1, NULL);
}

/* The console keeps 64 KiB: the reader says when it has the part. */
static void end_of_part(const char *name)
{
    print("end of part %s\n", name);
    while (on_joist() && !(inb(0x3fd) & 1))
        cpu_relax();
    inb(0x3f8);
}
#define PART(name) do { print("part " #name "\n"); name(); end_of_part(#name); } while (0)

int main(void)
{
    static const uint8_t vectors[] = { 2, PIC, 0x31, 0x41, 0x45, 0x51, 0x61, 0x6f, 0x71, 0xf1 };

    PART(devices);
    pic_init();
    PART(cpuid_all);
    PART(msrs);
    apic_enable();
    for (unsigned n = 0; n < ARRAY_SIZE(vectors); n++)
        set_handler(vectors[n], on_event);
    PART(ports);
    PART(forms);
    paging_on();
    PART(crossings);
    PART(control_registers);
    set_handler(0x80, count_only);
    PART(instructions);
    PART(steps);
    PART(doors);
    PART(priorities);
    PART(nmis);
    PART(sources);
    PART(level);
    PART(halts);
    PART(fresh_stacks);
    if (cpuid_reg(1, 0, 2) >> 21 & 1) {
        apic_enable_x2();
        for (uint32_t msr = 0x800; msr < 0x840; msr++)
            if (msr != 0x839)
                read_line(msr);
        PART(doors);
        PART(priorities);
        PART(nmis);
    }
    print("END\n");
    return 0;
}
