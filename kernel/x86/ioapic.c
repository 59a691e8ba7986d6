#include <errno.h>
#include "kernel/hw/apic.h"
#include "kernel/hw/i8259.h"
#include "kernel/lib/log.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/ioapic.h"
#include "kernel/x86/irq.h"
#include "kernel/x86/vmap.h"

struct ioapic { volatile uint8_t *regs; uint32_t gsi_base, lines; };

static struct { struct spinlock lock; struct ioapic chip[ACPI_MAX_IOAPICS]; unsigned n; } io;

static uint32_t rd(const struct ioapic *c, unsigned reg)
{
    mmio_write32(c->regs + IOAPIC_INDEX, reg);
    return mmio_read32(c->regs + IOAPIC_DATA);
}

static void wr(const struct ioapic *c, unsigned reg, uint32_t v)
{
    mmio_write32(c->regs + IOAPIC_INDEX, reg);
    mmio_write32(c->regs + IOAPIC_DATA, v);
}

static const struct ioapic *chip_of(uint32_t gsi)
{
    for (unsigned i = 0; i < io.n; i++)
        if (gsi >= io.chip[i].gsi_base && gsi - io.chip[i].gsi_base < io.chip[i].lines)
            return &io.chip[i];
    return NULL;
}

bool ioapic_has(uint32_t gsi) { return chip_of(gsi); }

void pic_disable(void)
{
    outb(I8259_MASTER, ICW1_INIT | ICW1_IC4);
    outb(I8259_SLAVE, ICW1_INIT | ICW1_IC4);
    outb(I8259_MASTER + 1, VEC_PIC);
    outb(I8259_SLAVE + 1, VEC_PIC + 8);
    outb(I8259_MASTER + 1, 1 << I8259_CASCADE);
    outb(I8259_SLAVE + 1, I8259_CASCADE);
    outb(I8259_MASTER + 1, ICW4_8086);
    outb(I8259_SLAVE + 1, ICW4_8086);
    outb(I8259_MASTER + 1, 0xff);
    outb(I8259_SLAVE + 1, 0xff);
}

void ioapic_init(const struct acpi_info *a)
{
    for (unsigned i = 0; i < a->ioapics; i++) {
        struct ioapic *c = &io.chip[io.n];
        c->gsi_base = a->ioapic[i].gsi_base;
        c->regs = mmio_map(a->ioapic[i].address, 0x50, PT_UC);
        uint32_t version = c->regs ? rd(c, IOAPIC_REG_VERSION) : 0xffffffff;
        if (version == 0xffffffff) {
            log_warn("apic", "the IOAPIC at %#x does not answer", (unsigned)a->ioapic[i].address);
            continue;
        }
        c->lines = (version >> 16 & 0xff) + 1;
        for (unsigned line = 0; line < c->lines; line++)
            wr(c, IOAPIC_REG_REDIR + 2 * line, REDIR_MASKED);
        log_info("apic", "IOAPIC %u at %#x: version %#x, GSI %u-%u", a->ioapic[i].id, (unsigned)a->ioapic[i].address, (unsigned)version & 0xff,
                 (unsigned)c->gsi_base, (unsigned)(c->gsi_base + c->lines - 1));
        io.n++;
    }
}

int ioapic_route(uint32_t gsi, unsigned vector, uint32_t apic_id, bool active_low, bool level)
{
    const struct ioapic *c = chip_of(gsi);
    if (!c)
        return -ENOENT;
    unsigned reg = IOAPIC_REG_REDIR + 2 * (gsi - c->gsi_base);
    unsigned long f = spin_lock_irqsave(&io.lock);
    wr(c, reg, REDIR_MASKED);
    wr(c, reg + 1, apic_id << (REDIR_DEST_SHIFT - 32));
    wr(c, reg, (uint32_t)(REDIR_MASKED | vector | (active_low ? REDIR_ACTIVE_LOW : 0) | (level ? REDIR_LEVEL : 0)));
    spin_unlock_irqrestore(&io.lock, f);
    return 0;
}

void ioapic_mask(uint32_t gsi, bool masked)
{
    const struct ioapic *c = chip_of(gsi);
    if (!c)
        return;
    unsigned reg = IOAPIC_REG_REDIR + 2 * (gsi - c->gsi_base);
    unsigned long f = spin_lock_irqsave(&io.lock);
    uint32_t v = rd(c, reg);
    wr(c, reg, (uint32_t)(masked ? v | REDIR_MASKED : v & ~REDIR_MASKED));
    if (masked)
        rd(c, reg);             /* posted write: after it the line is quiet */
    spin_unlock_irqrestore(&io.lock, f);
}
