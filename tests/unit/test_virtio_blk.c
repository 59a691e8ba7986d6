/* virtio-blk as a guest's driver sees it, over disks in memory: data, errors, order, suppression, resets and snapshots with requests in flight. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "guestdev/virtio_blk.h"
#include "tests/host/mem_blk.h"
#include "tests/host/port_host.h"
#include "tests/host/vguest.h"

enum { SLOT = 4, DISK = 1 << 20 };

struct bed { struct vguest *g; struct mem_blk *disk; struct virtio_blk *dev; struct vdrv d; gpa_t hdr, data, status; };

static struct bed make(enum mem_mode mode, unsigned nqueues)
{
    struct bed b = { .g = vguest_create(16 << 20, 2), .disk = mem_blk_create(DISK, DISK, mode, 7) };
    struct virtio_blk_config_args a = { .gmem = &b.g->gmem, .bus = pcihost_bus(b.g->host), .slot = SLOT, .nqueues = nqueues, .blk = &b.disk->blk, .serial = "disk-0001" };
    assert_int_equal(virtio_blk_create(&a, &b.dev), 0);
    vdrv_probe(&b.d, b.g, SLOT);
    b.hdr = vguest_alloc(b.g, 16 * 256, 16);
    b.data = vguest_alloc(b.g, 1 << 20, 4096);
    b.status = vguest_alloc(b.g, 256, 1);
    return b;
}

static void start(struct bed *b, uint64_t features)
{
    assert_true(vdrv_negotiate(&b->d, features | VIRTIO_F_VERSION_1));
    vdrv_setup_queue(&b->d, 0, 64);
    vdrv_enable_msix(&b->d);
    vdrv_ok(&b->d);
}

static void end(struct bed *b)
{
    virtio_blk_ops.destroy(b->dev);
    blk_close(&b->disk->blk);
    vguest_destroy(b->g);
}

/* Adds request i with data at b->data + i * 4096. */
static uint16_t request(struct bed *b, unsigned i, uint32_t type, uint64_t sector, uint32_t len, bool indirect)
{
    struct virtio_blk_hdr h = { .type = type, .sector = sector };
    bool in = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
    struct vbuf v[3] = { { b->hdr + 16 * i, 16, false }, { b->data + 4096 * i, len, in }, { b->status + i, 1, true } };
    uint8_t none = 0xee;
    gmem_write(&b->g->gmem, b->hdr + 16 * i, &h, 16);
    gmem_write(&b->g->gmem, b->status + i, &none, 1);
    if (!len)
        v[1] = v[2];
    return vdrv_add(&b->d, 0, v, len ? 3 : 2, indirect);
}

static uint8_t status(struct bed *b, unsigned i)
{
    uint8_t s;
    gmem_read(&b->g->gmem, b->status + i, &s, 1);
    return s;
}

static void expect(struct bed *b, uint16_t head, uint32_t len)
{
    uint32_t id, got;
    assert_true(vdrv_used(&b->d, 0, &id, &got));
    assert_int_equal(id, head);
    assert_int_equal(got, len);
}

static void fill(struct bed *b, unsigned i, uint8_t v, size_t len)
{
    uint8_t buf[4096];
    memset(buf, v, sizeof buf);
    gmem_write(&b->g->gmem, b->data + 4096 * i, buf, len);
}

static void read_write(void **state)
{
    struct bed b = make(MEM_INLINE, 1);
    start(&b, ~0ull & ~VIRTIO_F_EVENT_IDX);
    for (unsigned indirect = 0; indirect < 2; indirect++) {
        fill(&b, 0, 0x5a + indirect, 4096);
        uint16_t head = request(&b, 0, VIRTIO_BLK_T_OUT, 8, 4096, indirect);
        unsigned before = b.g->nmsi;
        vdrv_kick(&b.d, 0);
        expect(&b, head, 1);
        assert_int_equal(status(&b, 0), VIRTIO_BLK_S_OK);
        assert_int_equal(b.disk->data[4096], 0x5a + indirect);
        assert_int_equal(b.disk->data[8191], 0x5a + indirect);
        assert_int_equal(b.g->nmsi, before + 1);
        assert_int_equal(b.g->msi[before].data, 0x41);
        head = request(&b, 1, VIRTIO_BLK_T_IN, 8, 4096, indirect);
        vdrv_kick(&b.d, 0);
        expect(&b, head, 4097);
        uint8_t got[4096];
        gmem_read(&b.g->gmem, b.data + 4096, got, 4096);
        assert_int_equal(got[0], 0x5a + indirect);
        assert_int_equal(got[4095], 0x5a + indirect);
    }
    uint16_t head = request(&b, 2, VIRTIO_BLK_T_GET_ID, 0, 20, false);
    vdrv_kick(&b.d, 0);
    expect(&b, head, 21);
    char id[21] = "";
    gmem_read(&b.g->gmem, b.data + 2 * 4096, id, 20);
    assert_string_equal(id, "disk-0001");
    assert_int_equal(vg_read(b.g, b.d.device, 8), DISK / 512);
    end(&b);
}

static void errors(void **state)
{
    struct bed b = make(MEM_INLINE, 1);
    start(&b, ~0ull);
    static const struct { uint32_t type; uint64_t sector; uint32_t len; uint8_t want; } cases[] = {
        { VIRTIO_BLK_T_IN, DISK / 512, 512, VIRTIO_BLK_S_IOERR },               /* beyond the end */
        { VIRTIO_BLK_T_IN, DISK / 512 - 1, 1024, VIRTIO_BLK_S_IOERR },
        { VIRTIO_BLK_T_OUT, UINT64_MAX, 512, VIRTIO_BLK_S_IOERR },
        { VIRTIO_BLK_T_OUT, UINT64_MAX / 512, 4096, VIRTIO_BLK_S_IOERR },
        { VIRTIO_BLK_T_IN, 0, 511, VIRTIO_BLK_S_IOERR },                        /* not whole sectors */
        { VIRTIO_BLK_T_OUT, 0, 0, VIRTIO_BLK_S_OK },
        { 99, 0, 512, VIRTIO_BLK_S_UNSUPP },
        { VIRTIO_BLK_T_DISCARD, 0, 8, VIRTIO_BLK_S_UNSUPP },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        uint16_t head = request(&b, i, cases[i].type, cases[i].sector, cases[i].len, true);
        vdrv_kick(&b.d, 0);
        expect(&b, head, 1);
        assert_int_equal(status(&b, i), cases[i].want);
    }
    b.disk->fail_after = 0;
    uint16_t head = request(&b, 20, VIRTIO_BLK_T_IN, 0, 512, false);
    vdrv_kick(&b.d, 0);
    expect(&b, head, 1);
    assert_int_equal(status(&b, 20), VIRTIO_BLK_S_IOERR);
    assert_int_equal(vdrv_status(&b.d) & VIRTIO_S_NEEDS_RESET, 0);
    end(&b);
}

/* Chains that a driver must never make: the device asks for a reset and does not go on. */
static void broken_chains(void **state)
{
    struct bed b = make(MEM_INLINE, 1);
    for (unsigned kind = 0; kind < 9; kind++) {
        start(&b, kind == 8 ? ~(uint64_t)VIRTIO_F_INDIRECT_DESC : ~0ull);
        struct gmem *m = &b.g->gmem;
        struct vdrv_queue *q = &b.d.q[0];
        struct virtio_blk_hdr h = { .type = VIRTIO_BLK_T_IN };
        gmem_write(m, b.hdr, &h, 16);
        struct vbuf ok[3] = { { b.hdr, 16, false }, { b.data, 512, true }, { b.status, 1, true } };
        struct vbuf late_read[3] = { { b.hdr, 16, false }, { b.status, 1, true }, { b.data, 512, false } };
        struct vbuf no_status[1] = { { b.hdr, 16, false } };
        struct vbuf short_hdr[2] = { { b.hdr, 15, false }, { b.status, 1, true } };
        struct vbuf not_ram[3] = { { b.hdr, 16, false }, { 0xc0000000, 512, true }, { b.status, 1, true } };
        struct vring_desc loop = { b.data, 16, VRING_DESC_NEXT, 0 }, both = { b.data, 16, VRING_DESC_NEXT | VRING_DESC_INDIRECT, 1 };
        unsigned before = b.g->nmsi;
        switch (kind) {
        case 0: vdrv_add(&b.d, 0, late_read, 3, false); break;
        case 1: vdrv_add(&b.d, 0, no_status, 1, false); break;
        case 2: vdrv_add(&b.d, 0, short_hdr, 2, true); break;
        case 3: vdrv_add(&b.d, 0, not_ram, 3, false); break;
        case 4: vdrv_add(&b.d, 0, ok, 3, false); gmem_write(m, q->desc, &loop, 16); break;
        case 5: vdrv_add(&b.d, 0, ok, 3, false); gmem_store(m, q->avail + 4, 2, q->size); break;         /* head out of range */
        case 6: vdrv_add(&b.d, 0, ok, 3, false); gmem_store(m, q->avail + 2, 2, q->size + 1); break;     /* more than the ring holds */
        case 7: vdrv_add(&b.d, 0, ok, 3, false); gmem_write(m, q->desc, &both, 16); break;
        case 8: vdrv_add(&b.d, 0, ok, 3, true); break;          /* indirect without the feature */
        }
        vdrv_kick(&b.d, 0);
        assert_true(vdrv_status(&b.d) & VIRTIO_S_NEEDS_RESET);
        assert_true(b.g->nmsi > before);
        assert_int_equal(b.g->msi[before].data, 0x40);          /* a configuration change */
        unsigned reads = (unsigned)b.disk->count[BLK_READ];
        vdrv_kick(&b.d, 0);
        assert_int_equal(b.disk->count[BLK_READ], reads);
    }
    start(&b, ~0ull);                                           /* and comes back */
    uint16_t head = request(&b, 0, VIRTIO_BLK_T_IN, 0, 512, false);
    vdrv_kick(&b.d, 0);
    expect(&b, head, 513);
    end(&b);
}

static void event_idx(void **state)
{
    struct bed b = make(MEM_QUEUED, 1);
    start(&b, ~0ull);
    struct vdrv_queue *q = &b.d.q[0];
    for (unsigned i = 0; i < 8; i++)
        request(&b, i, VIRTIO_BLK_T_IN, i, 512, true);
    gmem_store(&b.g->gmem, q->avail + VRING_AVAIL_USED_EVENT(q->size), 2, 5);   /* wake me when 6 are done */
    vdrv_kick(&b.d, 0);
    uint64_t wish = 0;
    gmem_load(&b.g->gmem, q->used + VRING_USED_AVAIL_EVENT(q->size), 2, &wish);
    assert_int_equal(wish, 8);
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(b.g->nmsi, i >= 6);
        assert_true(mem_blk_step(b.disk));
    }
    assert_int_equal(b.g->nmsi, 1);
    end(&b);
}

/* More requests than contexts: the ring waits, nothing is lost, any order of completion. */
static void many(void **state)
{
    struct bed b = make(MEM_QUEUED, 1);
    assert_true(vdrv_negotiate(&b.d, ~0ull));
    vdrv_setup_queue(&b.d, 0, 256);
    vdrv_ok(&b.d);
    unsigned n = 200, done = 0;
    bool seen[256] = { false };
    for (unsigned i = 0; i < n; i++)
        request(&b, i, VIRTIO_BLK_T_IN, i, 512, true);
    vdrv_kick(&b.d, 0);
    while (done < n) {
        uint32_t id, len;
        if (!mem_blk_step(b.disk))
            thread_yield();
        while (vdrv_used(&b.d, 0, &id, &len)) {
            assert_true(id < 256 && !seen[id]);
            seen[id] = true;
            assert_int_equal(len, 513);
            done++;
        }
    }
    end(&b);
}

/* Writing 0 to the status waits for what is in flight: memory is the guest's own again only when the status reads 0. */
static void reset_in_flight(void **state)
{
    struct bed b = make(MEM_QUEUED, 1);
    start(&b, ~0ull);
    for (unsigned i = 0; i < 5; i++)
        request(&b, i, VIRTIO_BLK_T_IN, i, 512, true);
    vdrv_kick(&b.d, 0);
    struct vdrv old = b.d;
    vdrv_reset(&b.d);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_not_equal(vdrv_status(&b.d), 0);
        vg_write(b.g, b.d.common + offsetof(struct virtio_pci_common, device_status), 1, VIRTIO_S_ACKNOWLEDGE);
        assert_true(mem_blk_step(b.disk));
    }
    assert_int_equal(vdrv_status(&b.d), 0);
    vdrv_kick(&old, 0);
    assert_false(mem_blk_step(b.disk));
    start(&b, ~0ull);
    uint16_t head = request(&b, 0, VIRTIO_BLK_T_IN, 0, 512, false);
    vdrv_kick(&b.d, 0);
    assert_true(mem_blk_step(b.disk));
    expect(&b, head, 513);
    end(&b);
}

/* Without bus mastering the device neither reads rings nor interrupts; it catches up when the bit comes. */
static void bus_master_off(void **state)
{
    struct bed b = make(MEM_INLINE, 1);
    start(&b, ~0ull);
    vg_cfg_write(b.g, SLOT, PCI_COMMAND, 2, PCI_CMD_MEMORY);
    uint16_t head = request(&b, 0, VIRTIO_BLK_T_IN, 0, 512, false);
    uint32_t id, len;
    vdrv_kick(&b.d, 0);
    assert_false(vdrv_used(&b.d, 0, &id, &len));
    vg_cfg_write(b.g, SLOT, PCI_COMMAND, 2, PCI_CMD_MEMORY | PCI_CMD_MASTER);
    expect(&b, head, 513);
    end(&b);
}

/* A guest's memory in 4 KiB pieces on the host, and a request with more of them than a context's iov holds. */
static void scattered(void **state)
{
    struct bed b = make(MEM_INLINE, 1);
    start(&b, ~0ull);
    enum { SEGS = VIRTIO_BLK_SEGS, LEN = 5120 };        /* each crosses a page: twice as many pieces as segments */
    struct vbuf v[SEGS + 2];
    const gpa_t small = 1 << 30;        /* a range smaller than 2 MiB is backed by single pages, here in an odd order */
    assert_int_equal(gmem_add_range(&b.g->gmem, small, 1 << 20, false), 0);
    for (unsigned i = 0; i < 256; i++)
        gmem_zero(&b.g->gmem, small + (i * 37 & 255) * 4096, 1);
    struct virtio_blk_hdr h = { .type = VIRTIO_BLK_T_IN, .sector = 3 };
    gmem_write(&b.g->gmem, b.hdr, &h, 16);
    v[0] = (struct vbuf){ b.hdr, 16, false };
    for (unsigned i = 0; i < SEGS; i++)
        v[i + 1] = (struct vbuf){ small + 8192 * (SEGS - 1 - i) + 2048, LEN, true };
    v[SEGS + 1] = (struct vbuf){ b.status, 1, true };
    for (size_t i = 0; i < DISK; i++)
        b.disk->data[i] = (uint8_t)(i * 31 >> 7);
    uint16_t head = vdrv_add(&b.d, 0, v, SEGS + 2, true);
    vdrv_kick(&b.d, 0);
    uint32_t id, len;
    while (!vdrv_used(&b.d, 0, &id, &len))
        thread_yield();
    assert_int_equal(id, head);
    assert_int_equal(len, SEGS * LEN + 1);
    for (unsigned i = 0; i < SEGS; i++) {
        uint8_t got[LEN];
        gmem_read(&b.g->gmem, v[i + 1].gpa, got, LEN);
        assert_memory_equal(got, b.disk->data + 3 * 512 + i * LEN, LEN);
    }
    end(&b);
}

/* Save with requests in flight (a disk that does not answer), load into a new device: they are issued again. */
static void snapshot(void **state)
{
    static uint8_t buf[65536];
    struct bed b = make(MEM_QUEUED, 1);
    start(&b, ~0ull);
    for (unsigned i = 0; i < 3; i++)
        request(&b, i, VIRTIO_BLK_T_IN, i, 512, true);
    vdrv_kick(&b.d, 0);
    struct snap s;
    snap_init_save(&s, buf, sizeof buf);
    assert_int_equal(virtio_blk_ops.snap(b.dev, &s), 0);
    mem_blk_drain(b.disk);
    virtio_blk_ops.drain(b.dev, clock_ns() + 10000000000ull);
    struct virtio_blk *first = b.dev;
    virtio_blk_ops.destroy(first);
    /* The rings as they were when it was saved. */
    gmem_zero(&b.g->gmem, b.d.q[0].used, VRING_USED_BYTES(64));
    struct virtio_blk_config_args a = { .gmem = &b.g->gmem, .bus = pcihost_bus(b.g->host), .slot = SLOT, .nqueues = 1, .blk = &b.disk->blk, .serial = "" };
    assert_int_equal(virtio_blk_create(&a, &b.dev), 0);
    struct snap l;
    snap_init_load(&l, buf, s.pos);
    assert_int_equal(virtio_blk_ops.snap(b.dev, &l), 0);
    uint64_t reads = b.disk->count[BLK_READ];
    virtio_blk_ops.resume(b.dev);
    mem_blk_drain(b.disk);
    assert_int_equal(b.disk->count[BLK_READ], reads + 3);
    uint32_t id, len, n = 0;
    while (vdrv_used(&b.d, 0, &id, &len))
        n++;
    assert_int_equal(n, 3);
    for (size_t cut = 0; cut < s.pos; cut += 13) {      /* a damaged stream is an error, never a crash */
        snap_init_load(&l, buf, cut);
        assert_int_not_equal(virtio_blk_ops.snap(b.dev, &l), 0);
    }
    end(&b);
}

/* Two guest CPUs ring two queues against a disk that ends requests on a thread of its own; then everything is torn down at once. */
struct hammer { struct bed *b; unsigned q; };

static void hammer(void *arg)
{
    struct hammer *h = arg;
    struct io io = { .size = 2, .write = true, .data = h->q };
    for (unsigned i = 0; i < 3000; i++) {
        io.off = 0;
        bus_access(h->b->g->mem, h->q, h->b->d.q[h->q].notify, &io);
    }
}

static void threads(void **state)
{
    struct bed b = make(MEM_THREADED, 2);
    assert_true(vdrv_negotiate(&b.d, ~0ull));
    vdrv_setup_queue(&b.d, 0, 256);
    vdrv_setup_queue(&b.d, 1, 256);
    vdrv_ok(&b.d);
    for (unsigned q = 0; q < 2; q++)
        for (unsigned i = 0; i < 128; i++) {
            unsigned k = q * 128 + i;
            struct virtio_blk_hdr hd = { .type = VIRTIO_BLK_T_OUT, .sector = k };
            struct vbuf v[3] = { { b.hdr + 16 * k, 16, false }, { b.data + 512 * k, 512, false }, { b.status + k, 1, true } };
            gmem_write(&b.g->gmem, b.hdr + 16 * k, &hd, 16);
            vdrv_add(&b.d, q, v, 3, true);
        }
    struct hammer h[2] = { { &b, 0 }, { &b, 1 } };
    struct thread *t[2];
    for (unsigned i = 0; i < 2; i++)
        t[i] = thread_start("hammer", hammer, &h[i]);
    for (unsigned i = 0; i < 2; i++)
        thread_join(t[i]);
    unsigned done = 0;
    uint32_t id, len;
    while (done < 256) {
        for (unsigned q = 0; q < 2; q++)
            while (vdrv_used(&b.d, q, &id, &len))
                done++;
        thread_yield();
    }
    end(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(read_write), cmocka_unit_test(errors), cmocka_unit_test(broken_chains), cmocka_unit_test(event_idx), cmocka_unit_test(many),
        cmocka_unit_test(reset_in_flight), cmocka_unit_test(bus_master_off), cmocka_unit_test(scattered), cmocka_unit_test(snapshot), cmocka_unit_test(threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
