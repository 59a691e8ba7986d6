/*
 * A virtio block driver that breaks the rules: loops, lengths without end, addresses outside its RAM and of devices, rings on nothing.  The device must say
 * that it needs a reset or fail the request; it must stay inside this guest's RAM, and work as before after a reset.
 */
#include "lib/guest.h"

enum { QSIZE = 16, NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { S_ACK = 1, S_DRIVER = 2, S_DRIVER_OK = 4, S_FEATURES_OK = 8, S_NEEDS_RESET = 64 };
enum { T_IN = 0, T_OUT = 1, OK = 0, IOERR = 1, UNSUPP = 2, NOTHING = 0xee, BROKEN = 0x100, SILENT = 0x200 };
enum { PCI_COMMAND = 4, PCI_BAR0 = 0x10, PCI_CAPS = 0x34 };

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct avail { uint16_t flags, idx, ring[QSIZE], event; };
struct used { uint16_t flags, idx; struct { uint32_t id, len; } ring[QSIZE]; uint16_t event; };
struct header { uint32_t type, reserved; uint64_t sector; };

static ulong common, notify, device;
static volatile struct desc *desc, *table;
static volatile struct avail *avail;
static volatile struct used *used;
static volatile struct header *header;
static volatile uint8_t *status, *data;
static uint64_t sectors;

static ulong at(const volatile void *p) { return (ulong)p; }

/* ---- PCI and the transport ---- */

static uint32_t pci_read(unsigned dev, unsigned off)
{
    outl(0xcf8, 0x80000000 | dev << 11 | (off & ~3u));
    return inl(0xcfc) >> 8 * (off & 3);
}

static void pci_write(unsigned dev, unsigned off, uint32_t val)
{
    outl(0xcf8, 0x80000000 | dev << 11 | off);
    outl(0xcfc, val);
}

static bool find(void)
{
    for (unsigned dev = 0; dev < 32; dev++) {
        if (pci_read(dev, 0) != 0x10421af4)
            continue;
        ulong bar = pci_read(dev, PCI_BAR0) & ~15u;
        pci_write(dev, PCI_COMMAND, (pci_read(dev, PCI_COMMAND) & 0xffff) | 6);
        for (unsigned cap = pci_read(dev, PCI_CAPS) & 0xff; cap; cap = pci_read(dev, cap + 1) & 0xff) {
            unsigned type = pci_read(dev, cap + 3) & 0xff;
            ulong where = bar + pci_read(dev, cap + 8);
            if ((pci_read(dev, cap) & 0xff) != 9)
                continue;
            common = type == 1 ? where : common, notify = type == 2 ? where : notify, device = type == 4 ? where : device;
        }
        return common && notify && device;
    }
    return false;
}

static uint8_t dev_status(void) { return *(volatile uint8_t *)(common + 0x14); }
static void set_status(uint8_t s) { *(volatile uint8_t *)(common + 0x14) = s; }
static void put16(unsigned off, uint16_t v) { *(volatile uint16_t *)(common + off) = v; }
static void put64(unsigned off, uint64_t v)
{
    mmio_write(common + off, (uint32_t)v);
    mmio_write(common + off + 4, (uint32_t)(v >> 32));
}

static bool reset(void)
{
    set_status(0);
    for (unsigned n = 0; n < 200000; n++)
        if (!dev_status())
            return true;
    return false;
}

/* Reset, features, the one queue at the places given. */
static bool start_at(uint64_t d, uint64_t a, uint64_t u)
{
    if (!reset())
        return false;
    memset((void *)desc, 0, 4096);
    memset((void *)avail, 0, 4096);
    memset((void *)used, 0, 4096);
    set_status(S_ACK | S_DRIVER);
    mmio_write(common + 8, 0);
    mmio_write(common + 12, INDIRECT << 26);            /* VIRTIO_F_INDIRECT_DESC */
    mmio_write(common + 8, 1);
    mmio_write(common + 12, 1);                         /* VIRTIO_F_VERSION_1 */
    set_status(S_ACK | S_DRIVER | S_FEATURES_OK);
    put16(0x16, 0);
    put16(0x18, QSIZE);
    put64(0x20, d), put64(0x28, a), put64(0x30, u);
    put16(0x1c, 1);
    set_status(S_ACK | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK);
    return true;
}

static bool start(void) { return start_at(at(desc), at(avail), at(used)); }

static void set(volatile struct desc *d, unsigned i, uint64_t addr, uint32_t len, unsigned flags, unsigned next)
{
    d[i].addr = addr, d[i].len = len, d[i].flags = flags, d[i].next = next;
}

static void ring(unsigned head, unsigned count)
{
    for (unsigned n = 0; n < count; n++)
        avail->ring[(avail->idx + n) % QSIZE] = head;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    avail->idx += count;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    *(volatile uint16_t *)notify = 0;
}

/* What has become of it: a status byte, NEEDS_RESET, or nothing at all. */
static unsigned outcome(void)
{
    uint16_t before = avail->idx - 1;

    for (uint64_t t0 = rdtsc(), limit = tsc_hz(); rdtsc() - t0 < limit; cpu_relax()) {
        if (dev_status() & S_NEEDS_RESET)
            return BROKEN;
        if (used->idx != before)
            return *status;
    }
    return SILENT;
}

/* An honest request: header, 512 bytes, status. */
static void honest(unsigned type, uint64_t sector)
{
    header->type = type, header->reserved = 0, header->sector = sector;
    *status = NOTHING;
    set(desc, 0, at(header), sizeof *header, NEXT, 1);
    set(desc, 1, at(data), 512, NEXT | (type == T_IN ? WRITE : 0), 2);
    set(desc, 2, at(status), 1, WRITE, 0);
}

static unsigned request(unsigned type, uint64_t sector)
{
    honest(type, sector);
    ring(0, 1);
    return outcome();
}

/* Written, read back: 3 sectors with contents of their own. */
static bool works(void)
{
    bool ok = start();

    for (unsigned s = 0; s < 3 && ok; s++) {
        memset((void *)data, 0x30 + s, 512);
        ok = request(T_OUT, s) == OK;
    }
    for (unsigned s = 0; s < 3 && ok; s++) {
        memset((void *)data, 0, 512);
        ok = request(T_IN, s) == OK && data[0] == 0x30 + s && data[511] == 0x30 + s;
    }
    return ok;
}

/* ---- Misbehaviour ---- */

static void tell(const char *name, unsigned got, bool ok)
{
    static const char *const names[] = { "status", "needs reset", "nothing" };
    report(name, ok, "%s %x", names[got >> 8], got & 0xff);
    report("works-after-it", works(), "after %s", name);
}
#define BREAKS(name) do { unsigned got_ = outcome(); tell(name, got_, got_ == BROKEN); } while (0)
#define FAILS(name) do { unsigned got_ = outcome(); tell(name, got_, got_ == BROKEN || got_ == IOERR || got_ == UNSUPP); } while (0)

static void fresh(unsigned type)
{
    start();
    honest(type, 0);
}

static void chains(void)
{
    fresh(T_IN), set(desc, 1, at(data), 512, NEXT | WRITE, 1), ring(0, 1);
    BREAKS("loop-of-one");
    fresh(T_IN), set(desc, 2, at(status), 1, NEXT | WRITE, 1), ring(0, 1);
    BREAKS("loop-of-two");
    fresh(T_OUT), set(desc, 1, 0, 0, NEXT, 1), ring(0, 1);
    BREAKS("loop-of-nothing");
    fresh(T_IN), set(desc, 1, at(data), 512, NEXT | WRITE, 0xffff), ring(0, 1);
    BREAKS("next-out-of-range");
    fresh(T_IN), ring(0xfffe, 1);
    BREAKS("head-out-of-range");
    fresh(T_IN), ring(0, QSIZE + 1);
    BREAKS("more-than-the-ring-holds");
    fresh(T_IN), set(desc, 0, at(header), sizeof *header, NEXT | WRITE, 1), ring(0, 1);
    FAILS("header-to-be-written");
    fresh(T_OUT), set(desc, 0, at(header), 1, NEXT, 1), ring(0, 1);
    FAILS("header-of-one-byte");
    fresh(T_IN), set(desc, 2, at(status), 0, WRITE, 0), data[511] = NOTHING, ring(0, 1);
    unsigned got = outcome();
    tell("no-room-for-a-status", got, got == BROKEN || data[511] == IOERR);     /* the last byte that may be written is the status */
    fresh(T_OUT), set(desc, 1, at(data), 512, 0, 0), ring(0, 1);
    FAILS("nothing-to-be-written");
    fresh(T_IN), set(desc, 1, at(data), 511, NEXT | WRITE, 2), ring(0, 1);
    FAILS("odd-length");
}

static void addresses(void)
{
    static const struct { uint64_t addr; const char *what; } places[] = {
        { 0x400000000000ull, "nowhere" }, { 0xfffffffffffffe00ull, "the-end-of-all" }, { LAPIC, "lapic" }, { IOAPIC, "ioapic" }, { HPET, "hpet" },
        { 0xb0000000, "config-space" }, { 0xc0000000, "pci-hole" }, { 0xfffffe00, "below-4g" },
    };
    char name[40] = "data-at-";

    for (unsigned n = 0; n < 2 * ARRAY_SIZE(places); n++) {
        unsigned i = n / 2, len = 0;
        while (places[i].what[len])
            name[8 + len] = places[i].what[len], len++;
        name[8 + len] = 0;
        fresh(n & 1 ? T_OUT : T_IN);
        desc[1].addr = places[i].addr;
        ring(0, 1);
        FAILS(name);
    }
    fresh(T_IN), desc[1].addr = ram_top() - 256, ring(0, 1);
    FAILS("data-across-the-end-of-ram");
    fresh(T_IN), desc[1].addr = common, ring(0, 1);
    FAILS("data-at-the-device-itself");
    fresh(T_IN), desc[1].len = 0xfffffe00, ring(0, 1);
    FAILS("data-of-4-gib");
    fresh(T_IN), desc[1].addr = 0xffffffffffff0000ull, desc[1].len = 0x20000, ring(0, 1);
    FAILS("data-round-the-top");
    fresh(T_IN), desc[0].addr = 0x400000000000ull, ring(0, 1);
    FAILS("header-nowhere");
    fresh(T_IN), desc[2].addr = LAPIC + APIC_EOI, ring(0, 1);
    FAILS("status-at-lapic");
    fresh(T_OUT), desc[0].addr = HPET, ring(0, 1);
    FAILS("header-at-hpet");
}

static void indirect(void)
{
    for (unsigned kind = 0; kind < 7; kind++) {
        static const char *const names[] = { "indirect-loop", "indirect-in-indirect", "indirect-and-next", "indirect-odd-length", "indirect-of-4-gib",
                                             "indirect-nowhere", "indirect-at-hpet" };
        fresh(T_IN);
        for (unsigned i = 0; i < 3; i++)
            table[i] = desc[i];
        set(desc, 0, at(table), 48, INDIRECT, 0);
        switch (kind) {
        case 0: table[2].flags |= NEXT, table[2].next = 1; break;
        case 1: set(table, 1, at(table), 48, INDIRECT, 0); break;
        case 2: desc[0].flags |= NEXT, desc[0].next = 1; break;
        case 3: desc[0].len = 47; break;
        case 4: desc[0].len = 0xfffffff0; table[2].flags |= NEXT, table[2].next = 0xffff; break;
        case 5: desc[0].addr = 0x400000000000ull; break;
        case 6: desc[0].addr = HPET; break;
        }
        ring(0, 1);
        BREAKS(names[kind]);
    }
}

/* The device may take them only when it looks, so anything but a lost device is right; SILENT: it has never looked. */
static void rings(void)
{
    const struct { uint64_t d, a, u; const char *what; } at_places[] = {
        { 0x400000000000ull, at(avail), at(used), "descriptors-nowhere" }, { at(desc), 0x400000000000ull, at(used), "available-ring-nowhere" },
        { at(desc), at(avail), 0x400000000000ull, "used-ring-nowhere" }, { LAPIC, at(avail), at(used), "descriptors-at-lapic" },
        { at(desc), at(avail), LAPIC, "used-ring-at-lapic" }, { ram_top() - 128, at(avail), at(used), "descriptors-across-the-end-of-ram" },
        { at(desc) + 1, at(avail) + 1, at(used) + 1, "odd-rings" }, { at(desc), at(desc), at(desc), "all-rings-at-one-place" },
    };

    for (unsigned n = 0; n < ARRAY_SIZE(at_places); n++) {
        start_at(at_places[n].d, at_places[n].a, at_places[n].u);
        honest(T_IN, 0);
        ring(0, 1);
        *(volatile uint16_t *)(notify + 4) = 77;        /* queues that there are not */
        *(volatile uint16_t *)notify = 0xffff;
        tell(at_places[n].what, outcome(), true);
    }
}

static void disks_end(void)
{
    start();
    tell("sector-behind-the-end", 0, request(T_IN, sectors) == IOERR && request(T_OUT, sectors) == IOERR && request(T_IN, ~0ull) == IOERR &&
         request(T_OUT, ~0ull - 1) == IOERR);
    start();
    tell("unknown-request", 0, request(0x7777, 0) == UNSUPP);
    fresh(T_IN), desc[1].addr = at(desc), ring(0, 1);   /* the disk writes over the descriptors it was told by */
    outcome();
    tell("data-over-descriptors", 0, true);
    fresh(T_IN), desc[1].addr = at(used), ring(0, 1);
    outcome();
    tell("data-over-the-used-ring", 0, true);
}

/* Anything: rings of random bits, notified again and again while they change. */
static void storm(void)
{
    uint32_t x = 2463534242u;
    bool alive = true;

    for (unsigned n = 0; n < 300 && alive; n++) {
        alive = start();
        for (unsigned i = 0; i < QSIZE * 4; i++) {
            x ^= x << 13, x ^= x >> 17, x ^= x << 5;
            if (i % 4 == 3)
                ((volatile uint32_t *)desc)[i] = x & 0xf0007;
            else if (i % 4 == 1)
                ((volatile uint32_t *)desc)[i] = x & 0x70 ? 0 : x;
            else if (i % 4 == 0)                        /* most addresses in the table, the others behind this guest's RAM */
                ((volatile uint32_t *)desc)[i] = x & 0x300 ? at(table) + (x & 0xfff0) : x | 0x4000000;
            else
                ((volatile uint32_t *)desc)[i] = x & 0x1c0 ? x & 0x3fff : x;
        }
        honest(x & 0x10000 ? T_OUT : T_IN, x >> 4 & 7);
        desc[x % 3].flags ^= 1 << (x >> 8) % 3, desc[x % 3].next = x >> 12 & 31;
        for (unsigned i = 0; i < 8 && !(dev_status() & S_NEEDS_RESET); i++)
            ring((x >> i) % QSIZE, 1 + (x >> 20) % 4);
    }
    report("storm", alive && works(), "the device is lost");
}

int main(void)
{
    volatile uint32_t *guard;

    if (!find()) {
        report("virtio-disk", false, "no virtio disk found");
        return 0;
    }
    desc = alloc_pages(1), avail = alloc_pages(1), used = alloc_pages(1), header = alloc_pages(1);
    status = (uint8_t *)header + 512, data = alloc_pages(1);
    guard = alloc_pages(1);
    table = alloc_pages(24);                            /* and room for what the storm reads and writes */
    memset((void *)guard, 0x5a, 4096);
    sectors = mmio_read(device) | (uint64_t)mmio_read(device + 4) << 32;
    CHECK("has-sectors", sectors >= 8);
    CHECK("works", works());
    chains();
    addresses();
    indirect();
    rings();
    disks_end();
    for (unsigned n = 0; n < 1024; n++)
        if (guard[n] != 0x5a5a5a5a) {
            report("guard-page", false, "changed at %x", 4 * n);
            break;
        }
    storm();
    return 0;
}
