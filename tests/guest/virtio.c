/*
 * PCI and virtio by hand, as VIRTIO 1.2 and PCI 3.0 want them from a device: capabilities, BARs that move, command register, negotiation, queues with indirect
 * descriptors and event index, MSI-X with its masks and pending bits, INTx; then what a driver must not do, after each of which the device asks for a
 * reset, uses nothing and works again (dma.c does that to a disk).  Needs an entropy device and a disk of 1 MiB that may be overwritten.
 */
#include "lib/guest.h"

#define ECAM 0xb0000000ul
enum { COMMAND = 4, STATUS = 6, BAR0 = 0x10, CAPS = 0x34, INT_LINE = 0x3c };
enum { CMD_MEMORY = 2, CMD_MASTER = 4, CMD_INTX_OFF = 0x400, STS_INTX = 8, MSIX_ON = 0x8000, MSIX_MASK = 0x4000 };
enum { DEV_SELECT = 0, DEV_FEATURE = 4, DRV_SELECT = 8, DRV_FEATURE = 12, CONFIG_VECTOR = 16, NUM_QUEUES = 18, DEV_STATUS = 20, GENERATION = 21, Q_SELECT = 22, Q_SIZE = 24, Q_VECTOR = 26,
    Q_ENABLE = 28, Q_NOTIFY = 30, Q_DESC = 32, Q_DRIVER = 40, Q_DEVICE = 48 };
enum { ACK = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { F_INDIRECT = 1 << 28, F_EVENT = 1 << 29 };
enum { SIZE = 16, VECTOR = 0x60, CONFIG_IRQ = 0x61, INTX_IRQ = 0x62 };

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct avail { volatile uint16_t flags, idx, ring[SIZE], used_event; };
struct used { volatile uint16_t flags, idx; volatile struct { uint32_t id, len; } ring[SIZE]; volatile uint16_t avail_event; };

static struct dev {
    unsigned slot;
    ulong cfg, bar, common, notify, isr, device, msix, pba, window;     /* window: offset of the configuration access capability */
    unsigned multiplier, ctrl;                                          /* ctrl: offset of MSI-X control */
    struct desc *desc;
    struct avail *avail;
    struct used *used;
} rng, blk;
static uint8_t *buffer;                 /* a page */

/* ---- Access ---- */
static uint8_t get8(ulong a) { return *(volatile uint8_t *)a; }
static uint16_t get16(ulong a) { return *(volatile uint16_t *)a; }
static uint32_t get32(ulong a) { return *(volatile uint32_t *)a; }
static void put8(ulong a, uint8_t v) { *(volatile uint8_t *)a = v; }
static void put16(ulong a, uint16_t v) { *(volatile uint16_t *)a = v; }
static void put32(ulong a, uint32_t v) { *(volatile uint32_t *)a = v; }
static void put64(ulong a, uint64_t v) { put32(a, (uint32_t)v), put32(a + 4, (uint32_t)(v >> 32)); }
static unsigned status(const struct dev *d) { return get8(d->common + DEV_STATUS); }
static void command(const struct dev *d, unsigned v) { put16(d->cfg + COMMAND, v); }

/* ---- PCI ---- */
static void locate(struct dev *d)
{
    d->bar = get32(d->cfg + BAR0) & ~15ul;
    for (unsigned at = get8(d->cfg + CAPS); at; at = get8(d->cfg + at + 1)) {
        ulong where = d->bar + get32(d->cfg + at + 8);
        if (get8(d->cfg + at) == 0x11) {
            d->ctrl = at + 2;
            d->msix = d->bar + (get32(d->cfg + at + 4) & ~7ul);
            d->pba = d->bar + (get32(d->cfg + at + 8) & ~7ul);
        } else if (get8(d->cfg + at) == 9) {
            switch (get8(d->cfg + at + 3)) {
            case 1: d->common = where; break;
            case 2: d->notify = where; d->multiplier = get32(d->cfg + at + 16); break;
            case 3: d->isr = where; break;
            case 4: d->device = where; break;
            case 5: d->window = at; break;
            }
        }
    }
}

static bool find(struct dev *d, uint16_t id)
{
    for (d->slot = 0; d->slot < 32; d->slot++) {
        d->cfg = ECAM + (d->slot << 15);
        if (get32(d->cfg) != (0x1af4u | (uint32_t)id << 16))
            continue;
        locate(d);
        d->desc = alloc_pages(1), d->avail = alloc_pages(1), d->used = alloc_pages(1);
        return true;
    }
    return false;
}

static uint32_t cf8(unsigned slot, unsigned reg)
{
    outl(0xcf8, 0x80000000u | slot << 11 | reg);
    return inl(0xcfc);
}

static void config_space(struct dev *d)
{
    unsigned differ = 0;
    for (unsigned reg = 0; reg < 0x40; reg += 4)
        differ += cf8(d->slot, reg) != get32(d->cfg + reg);
    EQUAL("cf8-and-ecam-agree", differ, 0);
    CHECK("capability-list", get16(d->cfg + STATUS) & 0x10);
    CHECK("capabilities", d->common && d->notify && d->isr && d->msix && d->pba && d->window);
    EQUAL("bar-is-64-bit", get32(d->cfg + BAR0) & 15, 4);
    put32(d->cfg, 0x12345678);
    EQUAL("ids-read-only", get32(d->cfg) & 0xffff, 0x1af4);
    unsigned cmd = get16(d->cfg + COMMAND);
    command(d, 0xffff);
    EQUAL("command-reserved-bits", get16(d->cfg + COMMAND) & 0xf800, 0);
    command(d, cmd);
}

/* Sizing and moving, with decoding off as the specification wants it and with decoding on as some kernels do it. */
static void bars(struct dev *d)
{
    uint32_t old = get32(d->cfg + BAR0), size;
    command(d, 0);
    EQUAL("decoding-off", get32(d->common + NUM_QUEUES), 0xffffffff);
    put32(d->cfg + BAR0, ~0u);
    size = ~(get32(d->cfg + BAR0) & ~15u) + 1;
    CHECK("size-is-power-of-two", size >= 4096 && !(size & (size - 1)));
    put32(d->cfg + BAR0, old);
    command(d, CMD_MEMORY);
    put16(d->common + Q_SELECT, 77);
    EQUAL("there-again", get16(d->common + Q_SELECT), 77);
    for (unsigned n = 1; n <= 40; n++) {                /* hot */
        put32(d->cfg + BAR0, 0xe0000000 + n * size);
        if (n % 8 == 1) {
            ulong there = d->common - d->bar + 0xe0000000 + n * size;
            EQUAL("moved-with-its-state", get16(there + Q_SELECT), 77);
            EQUAL("left-its-place", get16(d->common + Q_SELECT), 0xffff);
        }
    }
    static const uint32_t nowhere[] = { 0, 0x100000, ECAM, LAPIC, IOAPIC, HPET, 0xffff8000 };
    for (unsigned n = 0; n < ARRAY_SIZE(nowhere); n++) {
        put32(d->cfg + BAR0, nowhere[n]);               /* what is there stays there */
        CHECK("others-undisturbed", get32(ECAM) != 0xffffffff && (apic_read(APIC_VERSION) & 0xff) - 0x10 < 0x10 && ioapic_read(0) != 0xffffffff);
    }
    put32(d->cfg + BAR0, old);
    EQUAL("back-again", get16(d->common + Q_SELECT), 77);
}

/* The window in configuration space reaches the structures though the BAR does not decode (4.1.4.9). */
static uint32_t window(struct dev *d, uint32_t off, uint32_t len, const uint32_t *val)
{
    put8(d->cfg + d->window + 4, 0);
    put32(d->cfg + d->window + 8, off);
    put32(d->cfg + d->window + 12, len);
    if (val)
        put32(d->cfg + d->window + 16, *val);
    return get32(d->cfg + d->window + 16);
}

static void configuration_window(struct dev *d)
{
    uint32_t off = (uint32_t)(d->common - d->bar), three = 3, zero = 0;
    command(d, 0);
    window(d, off + DEV_STATUS, 1, &three);
    EQUAL("window-reads", window(d, off + DEV_STATUS, 1, NULL) & 0xff, 3);
    window(d, off + DEV_SELECT, 4, &zero);
    EQUAL("window-reads-words", window(d, off + NUM_QUEUES, 2, NULL) & 0xffff, 1);
    window(d, off + DEV_STATUS, 3, &zero);              /* no such length */
    window(d, off + DEV_STATUS + 0x10000000, 1, &zero);
    EQUAL("window-is-strict", window(d, off + DEV_STATUS, 1, NULL) & 0xff, 3);
    window(d, off + DEV_STATUS, 1, &zero);
    command(d, CMD_MEMORY | CMD_MASTER);
    EQUAL("window-writes", status(d), 0);
}

/* ---- Driver ---- */
static bool negotiate(struct dev *d, uint32_t low, uint32_t high)
{
    put8(d->common + DEV_STATUS, 0);
    for (unsigned n = 0; n < 1000000 && status(d); n++)
        cpu_relax();
    put8(d->common + DEV_STATUS, ACK | DRIVER);
    put32(d->common + DRV_SELECT, 0);
    put32(d->common + DRV_FEATURE, low);
    put32(d->common + DRV_SELECT, 1);
    put32(d->common + DRV_FEATURE, high);
    put8(d->common + DEV_STATUS, ACK | DRIVER | FEATURES_OK);
    return status(d) & FEATURES_OK;
}

static void rings_at(struct dev *d, uint64_t desc, uint64_t avail, uint64_t used)
{
    put16(d->common + Q_SELECT, 0);
    put16(d->common + Q_SIZE, SIZE);
    put64(d->common + Q_DESC, desc);
    put64(d->common + Q_DRIVER, avail);
    put64(d->common + Q_DEVICE, used);
    put16(d->common + CONFIG_VECTOR, 0);
    put16(d->common + Q_VECTOR, 1);
    put16(d->common + Q_ENABLE, 1);
}

static void start(struct dev *d, uint32_t features)
{
    command(d, CMD_MEMORY | CMD_MASTER);
    memset(d->desc, 0, 4096), memset(d->avail, 0, 4096), memset(d->used, 0, 4096);
    if (!negotiate(d, features, 1))
        report("negotiation", false, "status %x", status(d));
    rings_at(d, (ulong)d->desc, (ulong)d->avail, (ulong)d->used);
    put8(d->common + DEV_STATUS, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
}

static void set_desc(struct desc *d, uint64_t addr, uint32_t len, unsigned flags, unsigned next)
{
    d->addr = addr, d->len = len, d->flags = (uint16_t)flags, d->next = (uint16_t)next;
}

static void ring(struct dev *d)
{
    put16(d->common + Q_SELECT, 0);
    put16(d->notify + d->multiplier * get16(d->common + Q_NOTIFY), 0);
}

static void offer(struct dev *d, unsigned head)
{
    d->avail->ring[d->avail->idx % SIZE] = (uint16_t)head;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    d->avail->idx++;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    ring(d);
}

static bool wait_used(struct dev *d, uint16_t idx)
{
    uint64_t t0 = rdtsc();
    while (d->used->idx != idx && rdtsc() - t0 < 2 * tsc_hz())
        cpu_relax();
    return d->used->idx == idx;
}

/* One buffer of entropy. */
static bool draw(struct dev *d, uint32_t len)
{
    uint16_t want = d->used->idx + 1;
    set_desc(&d->desc[0], (ulong)buffer, len, WRITE, 0);
    offer(d, 0);
    return wait_used(d, want);
}

static void negotiation(struct dev *d)
{
    put32(d->common + DEV_SELECT, 1);
    CHECK("version-1-offered", get32(d->common + DEV_FEATURE) & 1);
    put32(d->common + DEV_SELECT, 7);
    EQUAL("no-features-beyond", get32(d->common + DEV_FEATURE), 0);
    CHECK("legacy-driver-refused", !negotiate(d, 0, 0));
    CHECK("unknown-features-refused", !negotiate(d, 0x00800000, 1));
    CHECK("accepted", negotiate(d, 0, 1));
    EQUAL("queues", get16(d->common + NUM_QUEUES), 1);
    put16(d->common + Q_SELECT, 1);
    EQUAL("no-second-queue", get16(d->common + Q_SIZE), 0);
    put16(d->common + Q_SELECT, 0);
    CHECK("queue-size", get16(d->common + Q_SIZE) >= SIZE);
    EQUAL("queue-off", get16(d->common + Q_ENABLE), 0);
    put16(d->common + Q_VECTOR, 500);
    EQUAL("no-such-vector", get16(d->common + Q_VECTOR), 0xffff);
    put16(d->common + Q_VECTOR, 1);
    EQUAL("vector-kept", get16(d->common + Q_VECTOR), 1);
    put8(d->common + DEV_STATUS, 0);
    EQUAL("reset", status(d), 0);
    put16(d->common + Q_SELECT, 0);
    EQUAL("reset-vector", get16(d->common + Q_VECTOR), 0xffff);
}

/* ---- Interrupts ---- */
static void vectors(struct dev *d)
{
    for (unsigned n = 0; n < 2; n++) {
        put32(d->msix + 16 * n, LAPIC | apic_id() << 12);
        put32(d->msix + 16 * n + 4, 0);
        put32(d->msix + 16 * n + 8, n ? VECTOR : CONFIG_IRQ);
        put32(d->msix + 16 * n + 12, 0);
    }
}

static void msix(struct dev *d)
{
    put16(d->cfg + d->ctrl, MSIX_ON);
    vectors(d);
    start(d, 0);
    sti();
    CHECK("drawn", draw(d, 64));
    CHECK("msix", wait_for(&irq_count[VECTOR], 1, 1000));
    put32(d->msix + 16 + 12, 1);                        /* vector masked */
    CHECK("drawn-masked", draw(d, 64));
    delay_us(2000);
    EQUAL("masked", irq_count[VECTOR], 1);
    EQUAL("pending", get32(d->pba), 2);
    put32(d->msix + 16 + 12, 0);
    CHECK("unmasked", wait_for(&irq_count[VECTOR], 2, 1000));
    EQUAL("no-longer-pending", get32(d->pba), 0);
    put16(d->cfg + d->ctrl, MSIX_ON | MSIX_MASK);       /* function masked */
    CHECK("drawn-function-masked", draw(d, 64));
    delay_us(2000);
    EQUAL("function-masked", irq_count[VECTOR], 2);
    EQUAL("function-pending", get32(d->pba), 2);
    put16(d->cfg + d->ctrl, MSIX_ON);
    CHECK("function-unmasked", wait_for(&irq_count[VECTOR], 3, 1000));
    d->avail->flags = 1;                                /* no interrupts, please */
    CHECK("drawn-in-silence", draw(d, 64));
    delay_us(2000);
    EQUAL("silence", irq_count[VECTOR], 3);
    d->avail->flags = 0;
    EQUAL("isr-unused", get8(d->isr), 0);
    cli();
    put16(d->cfg + d->ctrl, 0);
}

static struct dev *intx_dev;
static volatile unsigned intx_isr;
static void on_intx(struct frame *f)
{
    intx_isr |= get8(intx_dev->isr);                    /* takes the level away */
    count_irq(f);
}

static void intx(struct dev *d)
{
    unsigned pin = 16 + ((d->slot + 0) & 7);            /* as the DSDT says */
    intx_dev = d;
    set_handler(INTX_IRQ, on_intx);
    ioapic_route(pin, 0xa000 | INTX_IRQ, apic_id());    /* level, active low */
    start(d, 0);
    command(d, CMD_MEMORY | CMD_MASTER | CMD_INTX_OFF);
    CHECK("drawn-intx-off", draw(d, 16));
    sti();
    delay_us(2000);
    EQUAL("intx-off", irq_count[INTX_IRQ], 0);
    CHECK("status-shows-it", get16(d->cfg + STATUS) & STS_INTX);
    command(d, CMD_MEMORY | CMD_MASTER);
    CHECK("intx", wait_for(&irq_count[INTX_IRQ], 1, 1000));
    EQUAL("isr", intx_isr, 1);
    delay_us(2000);
    EQUAL("once", irq_count[INTX_IRQ], 1);
    EQUAL("status-clear", get16(d->cfg + STATUS) & STS_INTX, 0);
    cli();
    ioapic_write(0x10 + 2 * pin, 0x10000);
}

/* ---- Queues ---- */
static void queue_rules(struct dev *d)
{
    start(d, 0);
    command(d, CMD_MEMORY);                             /* no bus mastering: no DMA, no end */
    set_desc(&d->desc[0], (ulong)buffer, 16, WRITE, 0);
    offer(d, 0);
    delay_us(2000);
    EQUAL("no-bus-master-no-dma", d->used->idx, 0);
    command(d, CMD_MEMORY | CMD_MASTER);
    CHECK("bus-master-on", wait_used(d, 1));
    EQUAL("used-id", d->used->ring[0].id, 0);
    CHECK("used-length", d->used->ring[0].len <= 16);
    memset(buffer, 0, 64);
    CHECK("drawn-48", draw(d, 48));
    unsigned zeros = 0;
    for (unsigned n = 0; n < 48; n++)
        zeros += !buffer[n];
    CHECK("entropy", zeros < 8);
    EQUAL("nothing-beyond", buffer[48] | buffer[49] | buffer[63], 0);
    start(d, F_INDIRECT);
    struct desc *table = (struct desc *)(buffer + 2048);
    set_desc(&table[0], (ulong)buffer, 5, WRITE | NEXT, 2);
    set_desc(&table[2], (ulong)buffer + 100, 7, WRITE, 0);
    set_desc(&d->desc[3], (ulong)table, 3 * sizeof *table, INDIRECT, 0);
    offer(d, 3);
    CHECK("indirect", wait_used(d, 1));
    EQUAL("indirect-id", d->used->ring[0].id, 3);
    CHECK("indirect-length", d->used->ring[0].len <= 12);
}

static void event_index(struct dev *d)
{
    start(d, F_EVENT);
    put16(d->cfg + d->ctrl, MSIX_ON);
    vectors(d);
    unsigned before = irq_count[VECTOR];
    sti();
    d->avail->used_event = 2;                           /* wake me at the third */
    CHECK("event-first", draw(d, 8) && draw(d, 8));
    delay_us(2000);
    EQUAL("event-not-yet", irq_count[VECTOR], before);
    CHECK("event-third", draw(d, 8));
    CHECK("event-now", wait_for(&irq_count[VECTOR], before + 1, 1000));
    EQUAL("avail-event", d->used->avail_event, 3);
    cli();
    put16(d->cfg + d->ctrl, 0);
}

/* 16-bit indexes, more buffers than that. */
static void wrap(struct dev *d)
{
    start(d, 0);
    for (unsigned n = 0; n < 70000; n++) {
        set_desc(&d->desc[0], (ulong)buffer, 1, WRITE, 0);
        d->avail->ring[d->avail->idx % SIZE] = 0;
        d->avail->idx++;
        if (n % SIZE == SIZE - 1) {
            ring(d);
            if (!wait_used(d, d->avail->idx))
                break;
        }
    }
    ring(d);
    CHECK("wrap", wait_used(d, (uint16_t)70000));
}

/* ---- Block device ---- */
struct request { uint32_t type, zero; uint64_t sector; };
static uint8_t last_status;

static uint32_t request(struct dev *d, uint32_t type, uint64_t sector, uint64_t data, uint32_t len, unsigned flags)
{
    struct request *r = (struct request *)(buffer + 3072);
    uint8_t *status_at = buffer + 3200;
    uint16_t want = d->used->idx + 1;
    *r = (struct request){ type, 0, sector };
    *status_at = 0xee;
    set_desc(&d->desc[0], (ulong)r, sizeof *r, NEXT, len ? 1 : 2);
    set_desc(&d->desc[1], data, len, NEXT | flags, 2);
    set_desc(&d->desc[2], (ulong)status_at, 1, WRITE, 0);
    offer(d, 0);
    wait_used(d, want);
    last_status = *(volatile uint8_t *)status_at;
    return last_status;
}

static void disk(struct dev *d)
{
    uint8_t *data = alloc_pages(8);
    uint32_t capacity = get32(d->device);
    EQUAL("capacity", capacity, 2048);
    uint8_t generation = get8(d->common + GENERATION);
    put32(d->device, 0);                                /* read-only */
    EQUAL("configuration-read-only", get32(d->device), 2048);
    EQUAL("generation", get8(d->common + GENERATION), generation);
    put32(d->common + DEV_SELECT, 0);
    start(d, get32(d->common + DEV_FEATURE) & 1 << 9);  /* FLUSH, if there is anything to flush */
    for (unsigned n = 0; n < 32768; n++)
        data[n] = (uint8_t)(n * 31 + (n >> 8));
    EQUAL("write", request(d, 1, 40, (ulong)data, 32768, 0), 0);
    EQUAL("flush", request(d, 4, 0, 0, 0, 0), 0);
    memset(data, 0, 32768);
    EQUAL("read", request(d, 0, 40, (ulong)data, 32768, WRITE), 0);
    EQUAL("read-length", d->used->ring[(d->used->idx - 1) % SIZE].len, 32769);
    unsigned wrong = 0;
    for (unsigned n = 0; n < 32768; n++)
        wrong += data[n] != (uint8_t)(n * 31 + (n >> 8));
    EQUAL("read-back", wrong, 0);
    EQUAL("identify", request(d, 8, 0, (ulong)data, 20, WRITE), 0);
    EQUAL("last-sector", request(d, 0, 2047, (ulong)data, 512, WRITE), 0);
    EQUAL("beyond-the-end", request(d, 0, 2048, (ulong)data, 512, WRITE), 1);
    EQUAL("across-the-end", request(d, 0, 2047, (ulong)data, 1024, WRITE), 1);
    EQUAL("sector-overflow", request(d, 0, ~0ull - 1, (ulong)data, 1024, WRITE), 1);
    EQUAL("unknown-request", request(d, 0x4711, 0, (ulong)data, 512, WRITE), 2);
    EQUAL("alive", status(d), ACK | DRIVER | FEATURES_OK | DRIVER_OK);
}

/* ---- What a driver must not do ---- */
typedef void bad_fn(struct dev *);
static void bad_loop(struct dev *d) { set_desc(&d->desc[0], (ulong)buffer, 16, NEXT, 1), set_desc(&d->desc[1], (ulong)buffer, 16, NEXT, 0), offer(d, 0); }
static void bad_self(struct dev *d) { set_desc(&d->desc[0], (ulong)buffer, 0, NEXT, 0), offer(d, 0); }
static void bad_next(struct dev *d) { set_desc(&d->desc[0], (ulong)buffer, 16, NEXT, SIZE), offer(d, 0); }
static void bad_head(struct dev *d) { offer(d, 0xfff0); }
static void bad_index(struct dev *d) { d->avail->idx += SIZE + 1, ring(d); }
static void bad_order(struct dev *d) { set_desc(&d->desc[0], (ulong)buffer, 16, WRITE | NEXT, 1), set_desc(&d->desc[1], (ulong)buffer, 16, 0, 0), offer(d, 0); }
static void bad_indirect(struct dev *d) { set_desc(&d->desc[0], (ulong)buffer, 16, INDIRECT, 0), offer(d, 0); }         /* not negotiated */
static void bad_length(struct dev *d) { set_desc(&d->desc[0], (ulong)buffer, 0xffffffff, WRITE | NEXT, 1), set_desc(&d->desc[1], (ulong)buffer, 16, WRITE, 0), offer(d, 0); }
static void bad_apic(struct dev *d) { set_desc(&d->desc[0], LAPIC, 4096, WRITE, 0), set_desc(&d->desc[1], 0, 0, 0, 0), offer(d, 0); }
static void bad_high(struct dev *d) { set_desc(&d->desc[0], 1ull << 51, 4096, WRITE, 0), offer(d, 0); }
static void bad_end(struct dev *d) { set_desc(&d->desc[0], ~0ull - 100, 4096, WRITE, 0), offer(d, 0); }
static void bad_vga(struct dev *d) { set_desc(&d->desc[0], 0xa0000, 64, WRITE, 0), offer(d, 0); }
static void bad_bar(struct dev *d) { set_desc(&d->desc[0], d->bar, 64, WRITE, 0), offer(d, 0); }

static void bad_nested(struct dev *d)
{
    struct desc *table = (struct desc *)(buffer + 2048);
    start(d, F_INDIRECT);
    set_desc(&table[0], (ulong)table, 16, INDIRECT, 0);
    set_desc(&d->desc[0], (ulong)table, 16, INDIRECT, 0);
    offer(d, 0);
}

static void bad_table(struct dev *d)
{
    start(d, F_INDIRECT);
    set_desc(&d->desc[0], (ulong)buffer, 17, INDIRECT, 0);
    offer(d, 0);
}

static void bad_table_address(struct dev *d)
{
    start(d, F_INDIRECT);
    set_desc(&d->desc[0], IOAPIC, 64, INDIRECT, 0);
    offer(d, 0);
}

static void bad_rings(struct dev *d)
{
    negotiate(d, 0, 1);
    rings_at(d, (ulong)d->desc, (ulong)d->avail, LAPIC);
    put8(d->common + DEV_STATUS, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
    ring(d);
}

static void bad_rings_high(struct dev *d)
{
    negotiate(d, 0, 1);
    rings_at(d, ~0ull & ~15ull, 0x10000000000ull, ~0ull & ~3ull);
    put8(d->common + DEV_STATUS, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
    ring(d);
}

static void bad_alignment(struct dev *d)
{
    negotiate(d, 0, 1);
    rings_at(d, (ulong)d->desc + 8, (ulong)d->avail, (ulong)d->used);
    put8(d->common + DEV_STATUS, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
}

static void bad_size(struct dev *d)
{
    negotiate(d, 0, 1);
    put16(d->common + Q_SELECT, 0);
    put16(d->common + Q_SIZE, 7);
}

static const struct { const char *name; bad_fn *fn; } bad[] = {
    { "loop", bad_loop }, { "empty-loop", bad_self }, { "next-outside", bad_next }, { "head-outside", bad_head }, { "index-jump", bad_index }, { "writable-first", bad_order },
    { "indirect-not-negotiated", bad_indirect }, { "length-overflow", bad_length }, { "dma-to-apic", bad_apic }, { "dma-beyond-width", bad_high }, { "dma-wraps", bad_end },
    { "dma-to-vga-hole", bad_vga }, { "dma-to-device", bad_bar }, { "indirect-in-indirect", bad_nested }, { "indirect-odd-length", bad_table },
    { "indirect-not-ram", bad_table_address }, { "rings-not-ram", bad_rings }, { "rings-wrap", bad_rings_high }, { "rings-not-aligned", bad_alignment }, { "queue-size", bad_size },
};

static void broken_rules(void)
{
    unsigned config_irqs = irq_count[CONFIG_IRQ];
    for (unsigned n = 0; n < ARRAY_SIZE(bad); n++) {
        put16(rng.cfg + rng.ctrl, MSIX_ON);
        vectors(&rng);
        start(&rng, 0);
        sti();
        bad[n].fn(&rng);
        for (unsigned k = 0; k < 1000 && !(status(&rng) & NEEDS_RESET); k++)
            delay_us(100);
        report(bad[n].name, status(&rng) & NEEDS_RESET, "status %x", status(&rng));
        offer(&rng, 0);                                 /* and nothing more is done */
        cli();
        EQUAL("nothing-used", rng.used->idx, 0);
        start(&rng, 0);
        report("works-again", draw(&rng, 32), "after %s", bad[n].name);
        put16(rng.cfg + rng.ctrl, 0);
    }
    CHECK("configuration-interrupts", irq_count[CONFIG_IRQ] > config_irqs);
    CHECK("apic-alive", (apic_read(APIC_VERSION) & 0xff) >= 0x10);
}

int main(void)
{
    pic_mask_all();
    apic_enable();
    set_handler(VECTOR, count_irq);
    set_handler(CONFIG_IRQ, count_irq);
    buffer = alloc_pages(1);
    CHECK("devices", find(&rng, 0x1044) && find(&blk, 0x1042));
    if (!rng.common || !blk.common)
        return 0;
    config_space(&rng);
    bars(&rng);
    configuration_window(&rng);
    negotiation(&rng);
    msix(&rng);
    intx(&rng);
    queue_rules(&rng);
    event_index(&rng);
    wrap(&rng);
    disk(&blk);
    broken_rules();
    return 0;
}
