/* Interrupt controllers and other CPUs. */
#include "guest.h"

static bool x2apic;

uint32_t apic_read(unsigned reg) { return x2apic ? (uint32_t)rdmsr(0x800 + reg / 16) : mmio_read(LAPIC + reg); }
void apic_write(unsigned reg, uint32_t val)
{
    if (x2apic)
        wrmsr(0x800 + reg / 16, val);
    else
        mmio_write(LAPIC + reg, val);
}

void apic_enable(void)
{
    wrmsr(0x1b, rdmsr(0x1b) | 0x800);
    apic_write(APIC_SPIV, 0x1ff);
    apic_write(APIC_TPR, 0);
}

void apic_enable_x2(void)
{
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    x2apic = true;
    apic_write(APIC_SPIV, 0x1ff);
}

unsigned apic_id(void) { return x2apic ? apic_read(APIC_ID) : apic_read(APIC_ID) >> 24; }

void apic_ipi(unsigned dest, uint32_t low)
{
    if (x2apic) {
        wrmsr(0x830, (uint64_t)dest << 32 | low);
        return;
    }
    apic_write(APIC_ICR2, dest << 24);
    apic_write(APIC_ICR, low);
    for (unsigned n = 0; n < 1000000 && (apic_read(APIC_ICR) & 0x1000); n++)
        ;
}

void pic_mask_all(void)
{
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
}

void pic_init(void)
{
    outb(0x20, 0x11), outb(0x21, 0x20), outb(0x21, 4), outb(0x21, 1);
    outb(0xa0, 0x11), outb(0xa1, 0x28), outb(0xa1, 2), outb(0xa1, 1);
    pic_mask_all();
}

uint32_t ioapic_read(unsigned reg)
{
    mmio_write(IOAPIC, reg);
    return mmio_read(IOAPIC + 0x10);
}

void ioapic_write(unsigned reg, uint32_t val)
{
    mmio_write(IOAPIC, reg);
    mmio_write(IOAPIC + 0x10, val);
}

void ioapic_route(unsigned pin, uint32_t low, unsigned dest)
{
    ioapic_write(0x10 + 2 * pin, 0x10000);
    ioapic_write(0x11 + 2 * pin, dest << 24);
    ioapic_write(0x10 + 2 * pin, low);
}

/* ---- Other CPUs: each waits for a function in its mailbox. ---- */
extern char trampoline[], trampoline_end[];
volatile unsigned cpus_online = 1;
static unsigned ids[MAX_CPUS];
static struct { void (*volatile fn)(void *); void *arg; } mailbox[MAX_CPUS];

unsigned cpu_number(void)
{
    unsigned id = apic_id();

    for (unsigned n = 1; n < MAX_CPUS; n++)
        if (ids[n] == id + 1)
            return n;
    return 0;
}

void ap_main(unsigned number);
void ap_main(unsigned number)
{
    if (x2apic)
        wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    apic_enable();
    ids[number] = apic_id() + 1;
    __atomic_add_fetch(&cpus_online, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        if (mailbox[number].fn) {
            mailbox[number].fn(mailbox[number].arg);
            mailbox[number].fn = NULL;
        }
        cpu_relax();
    }
}

unsigned start_cpus(void)
{
    uint64_t t0;
    unsigned before;

    memcpy((void *)0x8000, trampoline, trampoline_end - trampoline);
    apic_ipi(0, 0xc4500);               /* INIT, all but self */
    delay_us(10000);
    apic_ipi(0, 0xc4608);               /* SIPI, page 8 */
    delay_us(300);
    apic_ipi(0, 0xc4608);
    do {                                /* until nobody new has come for a while */
        before = cpus_online;
        for (t0 = rdtsc(); rdtsc() - t0 < tsc_hz() / 8; )
            cpu_relax();
    } while (cpus_online != before);
    return cpus_online;
}

void run_on(unsigned cpu, void (*fn)(void *), void *arg)
{
    mailbox[cpu].arg = arg;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    mailbox[cpu].fn = fn;
}

void wait_cpu(unsigned cpu)
{
    while (mailbox[cpu].fn)
        cpu_relax();
}
