/*
 * PAE paging in protected mode: 64-bit entries, NX, physical addresses above 4 GiB, PDPTEs that take effect by a load of CR3, and what the hypervisor
 * walks and loads for the guest: device accesses from and to mapped pages, faults of strings, writes of CR0 and CR4 that exit, a task switch with a CR3.
 */
#include "lib/guest.h"

#ifdef __x86_64__
int main(void)
{
    CHECK("not-in-64-bit-mode", true);
    return 0;
}
#else

enum { P = 1, W = 2, A = 0x20, D = 0x40, PS = 0x80, PAGE = 4096, CR0_CD = 1 << 30, CR0_WP = 1 << 16, CR4_PAE = 0x20, CR4_PGE = 0x80 };
#define CR0_PG  0x80000000ul
#define NX      BIT(63)
#define WINDOW  0x50000000ul            /* 2 MiB of small pages */
#define CODE    (WINDOW + 16 * PAGE)
#define HOLE    (WINDOW + 32 * PAGE)    /* nothing there */

struct space {
    uint64_t *pdpt, *pd[4], *window;
};
static struct space one, two;

/* Four GiB one to one by 2 MiB pages, but for the window.  The PDPTEs are anywhere on 32 bytes, not on a page of their own. */
static void make_space(struct space *s, unsigned offset)
{
    s->pdpt = (uint64_t *)((ulong)alloc_pages(1) + offset);
    s->window = alloc_pages(1);
    for (unsigned i = 0; i < 4; i++) {
        s->pd[i] = alloc_pages(1);
        s->pdpt[i] = (ulong)s->pd[i] | P;
        for (unsigned n = 0; n < 512; n++)
            s->pd[i][n] = ((uint64_t)i << 30 | (uint64_t)n << 21) | PS | W | P;
    }
    s->pd[WINDOW >> 30][WINDOW >> 21 & 511] = (ulong)s->window | W | P;
}

static uint64_t *entry(ulong va) { return &one.window[va >> 12 & 511]; }

static void map(ulong va, uint64_t e)
{
    *entry(va) = e;
    asm volatile("invlpg (%0)" :: "r"(va) : "memory");
}

static volatile uint32_t *word(ulong va) { return (volatile uint32_t *)va; }

static void faults(const char *name, unsigned error, ulong cr2)
{
    report(name, TRAP.vector == 14 && TRAP.error == error && TRAP.cr2 == cr2, "vector %d error %lx cr2 %lx", TRAP.vector, TRAP.error, TRAP.cr2);
}

#define READ(va) TRY("movl (%0), %%eax", :: "r"(va) : "eax", "memory")
#define WRITE(va) TRY("movl %%eax, (%0)", :: "r"(va), "a"(1) : "memory")

static void turn_on(void)
{
    make_space(&one, 0x20);
    make_space(&two, 0xfe0);
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 1 << 11);
    write_cr4(read_cr4() | CR4_PAE | CR4_PGE);
    write_cr3((ulong)one.pdpt);
    write_cr0(read_cr0() | CR0_PG | CR0_WP);
    EQUAL("cr3", read_cr3(), (ulong)one.pdpt);
    EQUAL("mode", rdmsr(0xc0000080) & 0xd00, 0x800);     /* NXE, neither LME nor LMA */
}

static void entries(uint32_t *page)
{
    map(WINDOW, (ulong)page | W | P);
    *word(WINDOW + 8) = 0x11223344;
    EQUAL("small-page", page[2], 0x11223344);
    EQUAL("accessed-and-dirty", *entry(WINDOW) & (A | D), A | D);
    READ(HOLE + 0x234);
    faults("read-fault", 0, HOLE + 0x234);
    WRITE(HOLE + 0x238);
    faults("write-fault", 2, HOLE + 0x238);
    map(WINDOW, (ulong)page | P);
    READ(WINDOW);
    EQUAL("read-only-reads", TRAP.vector, -1);
    WRITE(WINDOW + 4);
    faults("read-only", 3, WINDOW + 4);
    map(WINDOW, (ulong)page | BIT(51) | W | P);
    READ(WINDOW);
    TRAP.error |= P;            /* which QEMU's CPU leaves out */
    faults("reserved-bit", 9, WINDOW);
    map(WINDOW, (ulong)page | NX | W | P);
    READ(WINDOW);
    EQUAL("nx-reads", TRAP.vector, -1);
    page[0] = 0x0b0f;           /* ud2 */
    TRY("jmp *%0", :: "r"(WINDOW) : "memory");
    faults("nx", 0x11, WINDOW);
    map(WINDOW, BIT(32) | (ulong)page | W | P);
    page[2] = 0x55667788;
    report("above-4g", *word(WINDOW + 8) != 0x55667788, "bits 35:32 of an address are lost");
    map(WINDOW, (ulong)page | W | P);
}

/* Each quarter of the address space goes and comes back by a load of CR3, except where this program, its stack and its devices are. */
static void quarters(void)
{
    for (unsigned i = 1; i < 3; i++) {
        ulong va = ((ulong)i << 30) + 0x345678;
        uint64_t e = one.pdpt[i];
        one.pdpt[i] = 0;
        write_cr3((ulong)one.pdpt);
        READ(va);
        faults("no-pdpte", 0, va);
        one.pdpt[i] = (ulong)two.pd[i] | P;
        write_cr3((ulong)one.pdpt);
        READ(va);
        EQUAL("other-pdpte", TRAP.vector, -1);
        one.pdpt[i] = e;
        write_cr3((ulong)one.pdpt);
    }
}

/* Intel CPUs look at all four when CR3 is loaded; AMD's under nested paging may leave it to the access. */
static void bad_pdpte(void)
{
    ulong cr3 = read_cr3();

    two.pdpt[2] |= BIT(5);
    if (cpuid_reg(0, 0, 1) == 0x756e6547) {
        TRY("movl %0, %%cr3", :: "r"(two.pdpt) : "memory");
        EQUAL("bad-pdpte", TRAP.vector, 13);
        EQUAL("bad-pdpte-keeps-cr3", read_cr3(), cr3);
    }
    two.pdpt[2] &= ~BIT(5);
}

static void address_spaces(uint32_t *page, uint32_t *other)
{
    unsigned wrong = 0;

    two.window[WINDOW >> 12 & 511] = (ulong)other | W | P;
    page[0] = other[0] = 0;
    for (unsigned n = 1; n <= 1000; n++) {
        write_cr3((ulong)(n & 1 ? two.pdpt : one.pdpt));
        ++*word(WINDOW);
        wrong += (n & 1 ? other : page)[0] != (n + 1) / 2;
    }
    EQUAL("cr3-loads", wrong, 0);
}

/* What the hypervisor reads and writes through the guest's tables: here the code of the access, and the memory side of strings. */
static void devices(uint32_t *page)
{
    static const uint8_t code[] = { 0x8b, 0x02, 0xc3 };         /* movl (%edx), %eax; ret */
    uint8_t *code_page = alloc_pages(1);
    uint32_t got;

    memcpy(code_page, code, sizeof code);
    map(CODE, (ulong)code_page | P);
    map(WINDOW + PAGE, LAPIC | W | P);
    map(WINDOW + 2 * PAGE, HPET | W | P);
    asm volatile("call *%1" : "=a"(got) : "r"(CODE), "d"(WINDOW + PAGE + APIC_VERSION) : "memory");
    EQUAL("lapic-by-mapped-code", got, mmio_read(LAPIC + APIC_VERSION));
    asm volatile("call *%1" : "=a"(got) : "r"(CODE), "d"(WINDOW + 2 * PAGE) : "memory");
    EQUAL("hpet-by-mapped-code", got, mmio_read(HPET));

    ulong s = WINDOW + 2 * PAGE, d = WINDOW + 16, c = 2;
    map(WINDOW, (ulong)page | W | P);
    asm volatile("rep movsl" : "+S"(s), "+D"(d), "+c"(c) :: "memory");
    report("string-from-device", page[4] == mmio_read(HPET) && page[5] == mmio_read(HPET + 4), "%x %x", page[4], page[5]);
    EQUAL("string-dirties", *entry(WINDOW) & (A | D), A | D);

    map(WINDOW + 3 * PAGE, (ulong)page | W | P);
    s = WINDOW + 2 * PAGE, d = HOLE - 4, c = 2;
    map(HOLE - PAGE, (ulong)page | W | P);
    TRY("rep movsl", : "+S"(s), "+D"(d), "+c"(c) :: "memory");
    faults("string-into-a-hole", 2, HOLE);
    report("string-stopped-there", c == 1 && d == HOLE && s == WINDOW + 2 * PAGE + 4, "ecx %lx edi %lx esi %lx", c, d, s);
    map(HOLE - PAGE, (ulong)page | P);
    s = WINDOW + 2 * PAGE, d = HOLE - 8;
    TRY("movsl", : "+S"(s), "+D"(d) :: "memory");
    faults("string-to-read-only", 3, HOLE - 8);
    s = HOLE, d = HPET;
    TRY("movsl", : "+S"(s), "+D"(d) :: "memory");
    faults("string-from-a-hole", 0, HOLE);
    map(HOLE - PAGE, 0);
}

/* Control registers: writes that exit load the PDPTEs anew, too; and out of PAE paging and in again. */
static void modes(uint32_t *page)
{
    ulong cr0 = read_cr0(), cr4 = read_cr4();

    map(WINDOW, (ulong)page | W | P);
    *word(WINDOW) = 0xabcd;
    write_cr0(cr0 | CR0_CD);
    EQUAL("cache-off", *word(WINDOW), 0xabcd);
    write_cr0(cr0 & ~CR0_WP);
    map(WINDOW, (ulong)page | P);
    WRITE(WINDOW);
    EQUAL("no-write-protect", TRAP.vector, -1);
    write_cr0(cr0);
    WRITE(WINDOW);
    faults("write-protect-again", 3, WINDOW);
    write_cr4(cr4 & ~CR4_PGE);
    EQUAL("no-global", *word(WINDOW), 1);
    write_cr4(cr4);
    TRY("movl %0, %%cr4", :: "r"(cr4 | 1u << 30) : "memory");
    EQUAL("cr4-reserved", TRAP.vector, 13);

    write_cr0(cr0 & ~CR0_PG);
    EQUAL("paging-off", *word((ulong)page), 1);
    one.pdpt[1] = 0;
    write_cr0(cr0);
    READ(WINDOW);
    faults("paging-on-loads-pdptes", 0, WINDOW);
    one.pdpt[1] = (ulong)one.pd[1] | P;
    write_cr0(cr0 & ~CR0_PG);
    write_cr4(cr4 & ~CR4_PAE);
    paging_on();
    map_page(WINDOW, (ulong)page, 3);
    EQUAL("32-bit-paging", *word(WINDOW), 1);
    map_page(WINDOW, 0, 0);
    READ(WINDOW);
    faults("32-bit-paging-fault", 0, WINDOW);
    write_cr0(cr0 & ~CR0_PG);
    write_cr4(cr4);
    write_cr3((ulong)one.pdpt);
    write_cr0(cr0);
    EQUAL("pae-again", *word(WINDOW), 1);
}

/* The new task has the other address space, and the old one comes back with its own. */
static struct { uint32_t link, stacks[6], cr3, eip, eflags, gpr[8], es, cs, ss, ds, fs, gs, ldt, trap; } tss_a, tss_b;
volatile uint32_t task_saw, task_cr3;
asm(".text; task: movl 0x50000000, %eax; movl %eax, task_saw; movl %cr3, %eax; movl %eax, task_cr3; iret; jmp task");

static void describe(uint64_t *gdt, unsigned sel, const void *tss)
{
    ulong a = (ulong)tss;

    gdt[sel / 8] = (sizeof tss_a - 1) | (uint64_t)(a & 0xffffff) << 16 | 0x89ull << 40 | (uint64_t)(a >> 24) << 56;
}

static void task_switch(uint32_t *page, uint32_t *other)
{
    enum { SEL_A = 0x80, SEL_B = 0x88 };
    static uint64_t table[32];
    static uint8_t stack[1024];
    struct { uint16_t limit; ulong base; } __attribute__((packed)) d;
    extern char task[];

    asm volatile("sgdt %0" : "=m"(d));
    memcpy(table, (void *)d.base, d.limit + 1);
    d.limit = sizeof table - 1, d.base = (ulong)table;
    asm volatile("lgdt %0" :: "m"(d));
    describe(table, SEL_A, &tss_a);
    describe(table, SEL_B, &tss_b);
    tss_a.cr3 = (ulong)one.pdpt, tss_b.cr3 = (ulong)two.pdpt;
    tss_b.eip = (ulong)task, tss_b.eflags = 2, tss_b.gpr[4] = (ulong)stack + sizeof stack;
    tss_b.cs = 0x08, tss_b.es = tss_b.ss = tss_b.ds = tss_b.fs = tss_b.gs = 0x10;
    asm volatile("ltr %w0" :: "r"(SEL_A));
    map(WINDOW, (ulong)page | W | P);
    page[0] = 0x1111, other[0] = 0x2222;
    asm volatile("lcall $0x88, $0" ::: "eax", "memory", "cc");
    EQUAL("task-cr3", task_cr3, (ulong)two.pdpt);
    EQUAL("task-address-space", task_saw, 0x2222);
    EQUAL("back-cr3", read_cr3(), (ulong)one.pdpt);
    EQUAL("back-address-space", *word(WINDOW), 0x1111);
}

int main(void)
{
    uint32_t *page, *other;

    pic_init();
    turn_on();
    page = alloc_pages(1), other = alloc_pages(1);
    entries(page);
    quarters();
    bad_pdpte();
    address_spaces(page, other);
    devices(page);
    modes(page);
    task_switch(page, other);
    return 0;
}
#endif
