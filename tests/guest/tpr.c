/* The task priority holds back interrupts of its own class and below, however it is written: local APIC register, CR8, x2APIC register. */
#include "lib/guest.h"

static void by_register(unsigned class) { apic_write(APIC_TPR, class << 4); }
static unsigned register_class(void) { return apic_read(APIC_TPR) >> 4; }

static void by_cr8(unsigned class)
{
#ifdef __x86_64__
    asm volatile("mov %0, %%cr8" :: "r"((ulong)class) : "memory");
#else
    asm volatile("lock; mov %0, %%cr0" :: "r"((ulong)class) : "memory");
#endif
}
static unsigned cr8_class(void)
{
    ulong v;
#ifdef __x86_64__
    asm volatile("mov %%cr8, %0" : "=r"(v));
#else
    asm volatile("lock; mov %%cr0, %0" : "=r"(v));
#endif
    return (unsigned)v;
}

static const struct way { const char *name; void (*set)(unsigned class); unsigned (*get)(void); } ways[] = {
    { "register", by_register, register_class }, { "cr8", by_cr8, cr8_class },
};

enum { LOW = 0x61, MID = 0x71, HIGH = 0x81, TIMER = 0xa1, MID_CLASS = MID >> 4 };

static void forget(void) { irq_count[LOW] = irq_count[MID] = irq_count[HIGH] = irq_count[TIMER] = 0; }

static void check(const struct way *w, const char *what, unsigned class, bool ok)
{
    char name[48], *p = name;
    for (const char *parts[] = { w->name, "-", what }, **s = parts; s < parts + 3; s++)
        for (const char *c = *s; *c; c++)
            *p++ = *c;
    *p = 0;
    report(name, ok, "class %u: counts %u %u %u, TPR class %u", class, irq_count[LOW], irq_count[MID], irq_count[HIGH], w->get());
}

/* One interrupt of class 7, pending before or after the priority is set, under priorities below, at and above its class. */
static void one(const struct way *w, unsigned class, bool pending_first)
{
    bool taken = class < MID_CLASS;
    forget();
    cli();
    w->set(0);
    if (pending_first)
        apic_ipi(apic_id(), 0x4000 | MID);
    w->set(class);
    sti();
    if (!pending_first)
        apic_ipi(apic_id(), 0x4000 | MID);
    delay_us(20);
    check(w, pending_first ? "raised-over-it" : "comes-under-it", class, irq_count[MID] == taken && w->get() == class);
    w->set(MID_CLASS - 1);              /* taken at once, not some exits later */
    asm volatile("nop");
    check(w, "lowered-under-it", class, irq_count[MID] == 1);
    w->set(0);
}

static void three(const struct way *w)
{
    forget();
    cli();
    w->set(MID_CLASS);
    apic_ipi(apic_id(), 0x4000 | LOW), apic_ipi(apic_id(), 0x4000 | MID), apic_ipi(apic_id(), 0x4000 | HIGH);
    sti();
    delay_us(20);
    check(w, "only-the-highest", MID_CLASS, !irq_count[LOW] && !irq_count[MID] && irq_count[HIGH] == 1);
    w->set(MID_CLASS - 1);
    asm volatile("nop");
    check(w, "then-the-middle", MID_CLASS - 1, !irq_count[LOW] && irq_count[MID] == 1);
    w->set(0);
    asm volatile("nop");
    check(w, "then-the-lowest", 0, irq_count[LOW] == 1 && irq_count[MID] == 1 && irq_count[HIGH] == 1);
}

/* A held-back interrupt does not end HLT; one above it does, and the first still waits. */
static void asleep(const struct way *w)
{
    forget();
    cli();
    w->set(MID_CLASS);
    apic_ipi(apic_id(), 0x4000 | MID);
    apic_write(APIC_LVTT, TIMER);
    apic_write(APIC_TDCR, 0xb);
    apic_write(APIC_TICR, 300000);
    while (!irq_count[TIMER])
        sti_hlt();
    check(w, "asleep", MID_CLASS, !irq_count[MID] && irq_count[TIMER] == 1);
    w->set(0);
    asm volatile("nop");
    check(w, "awake", 0, irq_count[MID] == 1);
}

static void many_writes(const struct way *w)
{
    unsigned bad = 0;
    forget();
    sti();
    for (unsigned i = 0; i < 2000; i++) {
        w->set(i % 16);
        bad += w->get() != i % 16;
        if (i % 100 == 0)
            apic_ipi(apic_id(), 0x4000 | MID);
    }
    w->set(0);
    asm volatile("nop");
    check(w, "many-writes", 0, !bad && irq_count[MID] == 20);
}

static void all(const struct way *w)
{
    for (unsigned class = MID_CLASS - 1; class <= MID_CLASS + 1; class++)
        one(w, class, false), one(w, class, true);
    three(w);
    asleep(w);
    many_writes(w);
}

int main(void)
{
    static const uint8_t vectors[] = { LOW, MID, HIGH, TIMER };
    bool have_cr8 = GUEST_BITS == 64 || (cpuid_reg(0x80000001, 0, 2) & BIT(4));
    pic_mask_all();
    apic_enable();
    for (unsigned i = 0; i < ARRAY_SIZE(vectors); i++)
        set_handler(vectors[i], count_irq);
    all(&ways[0]);
    if (have_cr8)
        all(&ways[1]);
    if (cpuid_reg(1, 0, 2) & BIT(21)) {
        print("x2APIC\n");
        apic_enable_x2();
        apic_write(APIC_SPIV, 0x1ff);
        all(&ways[0]);
        if (have_cr8)
            all(&ways[1]);
    }
    return 0;
}
