#include "tests/host/test.h"
#include <string.h>
#include "tests/host/port_host.h"
#include "tests/host/wires.h"
#include "guestdev/uart.h"
#include "kernel/hw/ns16550.h"

static struct vmclock vmc;
static struct uart *u;
static struct chan *chan;
static struct wire irq;

static void wr(unsigned reg, uint8_t v) { io_write(uart_io, u, reg, 1, v); }
static uint8_t rd(unsigned reg) { return io_read(uart_io, u, reg, 1); }
static void type(const char *s) { assert_int_equal(chan_write(chan, CHAN_USER, s, strlen(s)), strlen(s)); }
static void expect(const char *s)
{
    char buf[256];
    assert_int_equal(chan_read(chan, CHAN_USER, buf, sizeof buf), strlen(s));
    assert_memory_equal(buf, s, strlen(s));
}

static int setup(void **state)
{
    host_clock_manual(true);
    vmclock_init(&vmc);
    vmclock_start(&vmc);
    irq = (struct wire){ 0 };
    chan = chan_create(64);
    u = uart_create(&vmc, wire_line(&irq, 4), chan);
    wr(UART_MCR, MCR_OUT2 | MCR_RTS | MCR_DTR);
    rd(UART_MSR);
    return 0;
}
static int teardown(void **state)
{
    uart_ops.destroy(u);
    chan_destroy(chan);
    assert_true(list_empty(&vmc.timers));
    return 0;
}

static void registers(void **state)
{
    assert_int_equal(rd(UART_LSR), LSR_THRE | LSR_TEMT);
    assert_int_equal(rd(UART_MSR), MSR_CTS | MSR_DSR | MSR_DCD);
    assert_int_equal(rd(UART_IIR), IIR_NONE);
    wr(UART_SCR, 0x5a);
    assert_int_equal(rd(UART_SCR), 0x5a);
    wr(UART_IER, 0xff);
    assert_int_equal(rd(UART_IER), 0x0f);
    wr(UART_LCR, LCR_DLAB | LCR_8BITS);
    wr(UART_DLL, 1), wr(UART_DLM, 2);
    assert_int_equal(rd(UART_DLL) | rd(UART_DLM) << 8, 0x201);
    wr(UART_LCR, LCR_8BITS);
    assert_int_equal(rd(UART_IER), 0x0f);
    wr(UART_FCR, FCR_ENABLE);
    assert_int_equal(rd(UART_IIR) & 0xc0, 0xc0);        /* how software tells a 16550A */
    wr(UART_FCR, 0);
    assert_int_equal(rd(UART_IIR) & 0xc0, 0);
}

static void output(void **state)
{
    for (const char *s = "hello"; *s; s++) {
        assert_true(rd(UART_LSR) & LSR_THRE);
        wr(UART_DATA, *s);
    }
    expect("hello");
}

static void thre_interrupt(void **state)
{
    wr(UART_IER, IER_THRE);
    assert_true(irq.level);                             /* enabling it with THR empty */
    assert_int_equal(rd(UART_IIR), IIR_THRE);
    assert_false(irq.level);                            /* reading IIR clears it */
    assert_int_equal(rd(UART_IIR), IIR_NONE);
    wr(UART_DATA, 'x');
    assert_true(irq.level);
    wr(UART_MCR, 0);                                    /* OUT2 off: the line is disconnected */
    assert_false(irq.level);
    wr(UART_MCR, MCR_OUT2);
    assert_true(irq.level);
    wr(UART_IER, 0);
    assert_false(irq.level);
}

static void input_without_fifo(void **state)
{
    wr(UART_IER, IER_RX);
    type("ab");
    assert_true(irq.level);
    assert_int_equal(rd(UART_IIR), IIR_RX);
    assert_int_equal(rd(UART_LSR) & (LSR_DR | LSR_OE), LSR_DR);
    assert_int_equal(rd(UART_DATA), 'a');
    assert_true(irq.level);                             /* the second one came up: nothing was overrun */
    assert_int_equal(rd(UART_DATA), 'b');
    assert_false(irq.level);
    assert_int_equal(rd(UART_LSR) & LSR_DR, 0);
}

static void trigger_level_and_timeout(void **state)
{
    wr(UART_FCR, FCR_ENABLE | 0x80);                    /* 8 bytes */
    wr(UART_IER, IER_RX);
    type("1234567");
    assert_false(irq.level);
    assert_true(rd(UART_LSR) & LSR_DR);
    type("8");
    assert_int_equal(rd(UART_IIR), IIR_RX | IIR_FIFOS);
    assert_int_equal(rd(UART_DATA), '1');
    assert_int_equal(rd(UART_IIR), IIR_NONE | IIR_FIFOS);
    host_clock_advance(UART_TIMEOUT_NS - 1);
    assert_false(irq.level);
    host_clock_advance(1);
    assert_int_equal(rd(UART_IIR), IIR_TIMEOUT | IIR_FIFOS);
    assert_int_equal(rd(UART_DATA), '2');               /* a read ends the time-out and starts a new one */
    assert_false(irq.level);
    host_clock_advance(UART_TIMEOUT_NS);
    assert_true(irq.level);
    for (unsigned i = '3'; i <= '8'; i++)
        assert_int_equal(rd(UART_DATA), i);
    host_clock_advance(10 * UART_TIMEOUT_NS);
    assert_false(irq.level);
}

static void input_is_never_lost(void **state)
{
    wr(UART_FCR, FCR_ENABLE | 0xc0);
    wr(UART_IER, IER_RX);
    unsigned in = 0, got = 0;
    while (got < 5000) {
        uint8_t c = in;
        if (in < 5000)
            in += chan_write(chan, CHAN_USER, &c, 1);
        if (irq.level && (in % 7 == 0 || in == 5000))
            while (rd(UART_LSR) & LSR_DR)
                assert_int_equal(rd(UART_DATA), (uint8_t)got++);
        if (in == 5000)
            host_clock_advance(UART_TIMEOUT_NS);
    }
    assert_int_equal(rd(UART_LSR) & LSR_OE, 0);
}

static void output_waits_for_the_reader(void **state)
{
    wr(UART_FCR, FCR_ENABLE);
    wr(UART_IER, IER_THRE);
    char all[128], buf[256];
    for (unsigned i = 0; i < 64 + 16; i++)              /* channel and FIFO full */
        wr(UART_DATA, all[i] = 'A' + i % 26);
    assert_int_equal(rd(UART_LSR) & (LSR_THRE | LSR_TEMT), 0);
    assert_int_equal(rd(UART_IIR) & 0xf, IIR_NONE);
    host_clock_advance(UART_STALL_NS - 1);
    size_t n = chan_read(chan, CHAN_USER, buf, 10);
    assert_int_equal(rd(UART_LSR) & LSR_THRE, 0);       /* 6 still wait */
    host_clock_advance(UART_STALL_NS / 2);
    n += chan_read(chan, CHAN_USER, buf + n, sizeof buf - n);
    assert_int_equal(rd(UART_LSR) & LSR_THRE, LSR_THRE);
    assert_int_equal(rd(UART_IIR) & 0xf, IIR_THRE);
    n += chan_read(chan, CHAN_USER, buf + n, sizeof buf - n);
    assert_int_equal(n, 80);
    assert_memory_equal(buf, all, 80);
    assert_int_equal(uart_dropped(u), 0);
}

static void nobody_reads_nobody_stalls(void **state)
{
    for (unsigned i = 0; i < 65; i++)
        wr(UART_DATA, 'x');
    assert_int_equal(rd(UART_LSR) & LSR_THRE, 0);
    host_clock_advance(UART_STALL_NS);
    for (unsigned i = 0; i < 1000; i++) {
        assert_int_equal(rd(UART_LSR) & LSR_THRE, LSR_THRE);
        wr(UART_DATA, 'y');
    }
    assert_int_equal(uart_dropped(u), 1001);
    char buf[64];
    assert_int_equal(chan_read(chan, CHAN_USER, buf, 64), 64);
    wr(UART_DATA, 'z');
    expect("z");
}

static void loopback(void **state)
{
    wr(UART_FCR, FCR_ENABLE);
    wr(UART_MCR, MCR_LOOP | MCR_RTS | MCR_OUT2);
    assert_int_equal(rd(UART_MSR) & 0xf0, MSR_CTS | MSR_DCD);
    wr(UART_MCR, MCR_LOOP | MCR_DTR | MCR_OUT1);
    assert_int_equal(rd(UART_MSR), MSR_DSR | MSR_RI | 0x0b);
    wr(UART_MCR, MCR_LOOP);
    assert_int_equal(rd(UART_MSR), 0x06);               /* trailing edge of RI, DSR */
    type("outside");
    for (unsigned i = 0; i < 17; i++)
        wr(UART_DATA, i);
    assert_int_equal(rd(UART_LSR) & LSR_OE, LSR_OE);
    assert_int_equal(rd(UART_LSR) & LSR_OE, 0);
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(rd(UART_DATA), i);
    assert_int_equal(chan_readable(chan, CHAN_USER), 0);
    wr(UART_MCR, MCR_OUT2);
    assert_int_equal(rd(UART_DATA), 'o');               /* waited in the channel */
}

static void priorities(void **state)
{
    wr(UART_FCR, FCR_ENABLE);
    wr(UART_MCR, MCR_LOOP);
    for (unsigned i = 0; i < 17; i++)
        wr(UART_DATA, i);
    wr(UART_IER, 0x0f);
    assert_int_equal(rd(UART_IIR) & 0xf, IIR_LINE);
    rd(UART_LSR);
    assert_int_equal(rd(UART_IIR) & 0xf, IIR_RX);
    wr(UART_FCR, FCR_ENABLE | FCR_CLEAR_RX);
    assert_int_equal(rd(UART_IIR) & 0xf, IIR_THRE);
    assert_int_equal(rd(UART_IIR) & 0xf, IIR_MODEM);
    rd(UART_MSR);
    assert_int_equal(rd(UART_IIR) & 0xf, IIR_NONE);
}

/* The reader answers from inside its notification, as a terminal does with echo. */
static void echo(void *arg)
{
    char c;
    while (chan_read(chan, CHAN_USER, &c, 1))
        chan_write(chan, CHAN_USER, &c, 1);
}
static void a_reader_that_answers_at_once(void **state)
{
    wr(UART_FCR, FCR_ENABLE);
    wr(UART_IER, IER_RX);
    chan_set_notify(chan, CHAN_USER, echo, NULL);
    for (unsigned i = 0; i < 200; i++) {
        wr(UART_DATA, i);
        assert_int_equal(rd(UART_DATA), i);
    }
    chan_set_notify(chan, CHAN_USER, NULL, NULL);
}

static void no_channel(void **state)
{
    struct uart *n = uart_create(&vmc, wire_line(&irq, 3), NULL), *keep = u;
    u = n;
    wr(UART_MCR, MCR_OUT2);
    wr(UART_IER, IER_THRE);
    for (unsigned i = 0; i < 100; i++) {
        assert_true(rd(UART_LSR) & LSR_THRE);
        assert_int_equal(rd(UART_IIR), IIR_THRE);
        wr(UART_DATA, i);
    }
    u = keep;
    uart_ops.destroy(n);
}

static void snapshot(void **state)
{
    uint8_t a[1024], b[1024];
    struct snap s, r;
    wr(UART_FCR, FCR_ENABLE | 0x40), wr(UART_IER, 5);
    type("ab");
    for (unsigned i = 0; i < 70; i++)
        wr(UART_DATA, i);
    uart_ops.drain(u, clock_ns() + 10000000000ull);
    type("late");
    snap_init_save(&s, a, sizeof a);
    assert_int_equal(uart_ops.snap(u, &s), 0);
    uart_ops.reset(u, GDEV_RESET);
    uart_ops.drain(u, clock_ns() + 10000000000ull);
    snap_init_load(&r, a, s.pos);
    assert_int_equal(uart_ops.snap(u, &r), 0);
    snap_init_save(&r, b, sizeof b);
    assert_int_equal(uart_ops.snap(u, &r), 0);
    assert_memory_equal(a, b, s.pos);
    uart_ops.resume(u);
    static const char all[] = "ablate";
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(rd(UART_DATA), all[i]);
}

static void thousand(void **state)
{
    unsigned long before = port_alloc_count();
    for (unsigned i = 0; i < 1000; i++) {
        struct chan *c = chan_create(16);
        struct uart *x = uart_create(&vmc, (struct irqline){ 0 }, c);
        io_write(uart_io, x, 0, 1, 'x');
        uart_ops.destroy(x);
        chan_destroy(c);
    }
    assert_int_equal(port_alloc_count(), before);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(registers), T(output), T(thre_interrupt), T(input_without_fifo), T(trigger_level_and_timeout), T(input_is_never_lost), T(output_waits_for_the_reader),
        T(nobody_reads_nobody_stalls), T(loopback), T(priorities), T(a_reader_that_answers_at_once), T(no_channel), T(snapshot), T(thousand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
