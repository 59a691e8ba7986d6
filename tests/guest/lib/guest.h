/* What the tiny guests share.  Each prints PASS and FAIL lines on COM1 and ends through the debug-exit port with the number of failures. */
#pragma once
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define BIT(n) (1ull << (n))
#ifdef __x86_64__
#define PTR "q"
#define PTR_SI "rsi"
#define PTR_SP "%%rsp"
#define GUEST_BITS 64
#else
#define PTR "l"
#define PTR_SI "esi"
#define PTR_SP "%%esp"
#define GUEST_BITS 32
#endif
typedef unsigned long ulong;

/* ---- Output and the end. ---- */
void print(const char *fmt, ...) __attribute__((format(printf, 1, 2)));         /* %s %c %d %u %x %lx %llx %p, width with 0 */
void report(const char *name, bool ok, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
#define CHECK(name, cond) report(name, cond, "%s", #cond)
#define EQUAL(name, got, want) do { unsigned long long g_ = (got), w_ = (want); report(name, g_ == w_, "%llx instead of %llx", g_, w_); } while (0)
__attribute__((noreturn)) void finish(void);            /* code = failures so far, at most 100 */
__attribute__((noreturn)) void debug_exit(uint32_t code);
int main(void);
bool on_joist(void);                                   /* by the hypervisor signature; plain QEMU and real machines differ in details */

/* ---- Ports, MSRs, registers. ---- */
static inline uint8_t inb(uint16_t p) { uint8_t v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(p)); return v; }
static inline uint16_t inw(uint16_t p) { uint16_t v; asm volatile("inw %1, %0" : "=a"(v) : "Nd"(p)); return v; }
static inline uint32_t inl(uint16_t p) { uint32_t v; asm volatile("inl %1, %0" : "=a"(v) : "Nd"(p)); return v; }
static inline void outb(uint16_t p, uint8_t v) { asm volatile("outb %0, %1" :: "a"(v), "Nd"(p)); }
static inline void outw(uint16_t p, uint16_t v) { asm volatile("outw %0, %1" :: "a"(v), "Nd"(p)); }
static inline void outl(uint16_t p, uint32_t v) { asm volatile("outl %0, %1" :: "a"(v), "Nd"(p)); }
static inline uint64_t rdmsr(uint32_t n) { uint32_t a, d; asm volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(n)); return a | (uint64_t)d << 32; }
static inline void wrmsr(uint32_t n, uint64_t v) { asm volatile("wrmsr" :: "c"(n), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory"); }
static inline uint64_t rdtsc(void) { uint32_t a, d; asm volatile("rdtsc" : "=a"(a), "=d"(d) :: "memory"); return a | (uint64_t)d << 32; }
static inline void cpuid(uint32_t leaf, uint32_t sub, uint32_t r[4]) { asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub)); }
static inline uint32_t cpuid_reg(uint32_t leaf, uint32_t sub, unsigned n) { uint32_t r[4]; cpuid(leaf, sub, r); return r[n]; }
static inline ulong read_cr0(void) { ulong v; asm volatile("mov %%cr0, %0" : "=r"(v)); return v; }
static inline ulong read_cr2(void) { ulong v; asm volatile("mov %%cr2, %0" : "=r"(v)); return v; }
static inline ulong read_cr3(void) { ulong v; asm volatile("mov %%cr3, %0" : "=r"(v)); return v; }
static inline ulong read_cr4(void) { ulong v; asm volatile("mov %%cr4, %0" : "=r"(v)); return v; }
static inline void write_cr0(ulong v) { asm volatile("mov %0, %%cr0" :: "r"(v) : "memory"); }
static inline void write_cr3(ulong v) { asm volatile("mov %0, %%cr3" :: "r"(v) : "memory"); }
static inline void write_cr4(ulong v) { asm volatile("mov %0, %%cr4" :: "r"(v) : "memory"); }
static inline void cli(void) { asm volatile("cli" ::: "memory"); }
static inline void sti(void) { asm volatile("sti; nop" ::: "memory"); }
static inline void sti_hlt(void) { asm volatile("sti; hlt" ::: "memory"); }
static inline void cpu_relax(void) { asm volatile("pause" ::: "memory"); }
static inline uint32_t mmio_read(ulong a) { return *(volatile uint32_t *)a; }
static inline void mmio_write(ulong a, uint32_t v) { *(volatile uint32_t *)a = v; }

/* ---- Traps. ---- */
struct frame {
#ifdef __x86_64__
    ulong r15, r14, r13, r12, r11, r10, r9, r8, di, si, bp, bx, dx, cx, ax;
    ulong vector, error, ip, cs, flags, sp, ss;
#else
    ulong di, si, bp, bx, dx, cx, ax;
    ulong vector, error, ip, cs, flags;
#endif
};
typedef void trap_fn(struct frame *);
void set_handler(unsigned vector, trap_fn *);           /* NULL: unexpected, ends the guest with a FAIL line */
void set_gate(unsigned vector, void *entry, unsigned dpl, unsigned ist);        /* past trap(): own entry point */
extern volatile unsigned irq_count[256];
void count_irq(struct frame *);                         /* handler: counts, EOI to the LAPIC */
void count_only(struct frame *);                        /* handler: counts, no EOI */

/* Runs one instruction that may fault; TRAP.vector is -1 when it did not.  Use TRY("insn" : out : in : clobber) with named or numbered operands. */
struct trap_info { volatile int vector; volatile ulong error, cr2, ip; };
extern struct trap_info TRAP;
extern volatile ulong trap_resume;
#define TRY(insn, ...) do { \
    TRAP.vector = -1; \
    asm volatile("mov" PTR " $991f, trap_resume\n\t" insn "\n991:\tmov" PTR " $0, trap_resume" __VA_ARGS__); \
} while (0)

/* ---- Clocks. ---- */
uint64_t tsc_hz(void);                                  /* by PIT channel 2, measured once */
void delay_us(unsigned us);
bool wait_for(volatile unsigned *counter, unsigned at_least, unsigned ms);      /* interrupts as they are; false: time is up */
uint64_t mul_div(uint64_t v, uint32_t mul, uint64_t div);

/* ---- LAPIC. ---- */
enum { LAPIC = 0xfee00000, IOAPIC = 0xfec00000, HPET = 0xfed00000 };
enum { APIC_ID = 0x20, APIC_VERSION = 0x30, APIC_TPR = 0x80, APIC_PPR = 0xa0, APIC_EOI = 0xb0, APIC_LDR = 0xd0, APIC_DFR = 0xe0, APIC_SPIV = 0xf0, APIC_ISR = 0x100, APIC_IRR = 0x200,
    APIC_ESR = 0x280, APIC_ICR = 0x300, APIC_ICR2 = 0x310, APIC_LVTT = 0x320, APIC_LVT0 = 0x350, APIC_LVT1 = 0x360, APIC_LVTERR = 0x370, APIC_TICR = 0x380, APIC_TCCR = 0x390, APIC_TDCR = 0x3e0 };
uint32_t apic_read(unsigned reg);                       /* by whichever mode the LAPIC is in */
void apic_write(unsigned reg, uint32_t val);
void apic_enable(void);
void apic_enable_x2(void);
unsigned apic_id(void);
void apic_ipi(unsigned dest, uint32_t icr_low);
void pic_mask_all(void);
void pic_init(void);                                    /* vectors 20h and 28h, all masked */
uint32_t ioapic_read(unsigned reg);
void ioapic_write(unsigned reg, uint32_t val);
void ioapic_route(unsigned pin, uint32_t low, unsigned dest);

/* ---- Other CPUs. ---- */
enum { MAX_CPUS = 32 };
extern volatile unsigned cpus_online;
unsigned start_cpus(void);                              /* INIT-SIPI-SIPI to all but self; returns the number online, self included */
unsigned cpu_number(void);                              /* in order of arrival; boot CPU 0 */
void run_on(unsigned cpu, void (*fn)(void *), void *arg);       /* starts it there; one at a time per CPU */
void wait_cpu(unsigned cpu);

/* ---- Memory. ---- */
void *memcpy(void *, const void *, size_t);
void *memset(void *, int, size_t);
int memcmp(const void *, const void *, size_t);
uint64_t ram_top(void);                                 /* end of RAM below 4 GiB, from multiboot */
void *alloc_pages(unsigned n);                          /* zeroed, never freed */
/* 4 KiB page tables over the one-to-one map (32-bit guests turn paging on with it). */
void paging_on(void);
void map_page(ulong va, uint64_t pa, unsigned flags);   /* flags: PTE bits; 0 = not present */
extern char end[];
