/* COM1 as the first console: polled output, 115200 8N1.  A port that is not there reads all ones and is left alone. */
#include "kernel/console/console.h"
#include "kernel/lib/log.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/early.h"

enum { COM1 = 0x3f8, DATA = 0, IER = 1, DLL = 0, DLM = 1, FCR = 2, LCR = 3, MCR = 4, LSR = 5, SCR = 7 };
enum { LCR_8N1 = 3, LCR_DLAB = 0x80, FCR_ON_CLEAR = 0x07, MCR_DTR_RTS_OUT2 = 0x0b, LSR_THRE = 0x20 };

static uint16_t base;

static bool present(uint16_t port)
{
    outb(port + SCR, 0x5a);
    if (inb(port + SCR) != 0x5a)
        return false;
    outb(port + SCR, 0xa5);
    return inb(port + SCR) == 0xa5 && inb(port + LSR) != 0xff;
}

/* At most about 10 ms per byte (a port read takes about 1 us): a UART that never gets ready loses the byte, not the machine. */
static void put(uint8_t c)
{
    for (unsigned i = 0; i < 10000 && !(inb(base + LSR) & LSR_THRE); i++)
        cpu_relax();
    outb(base + DATA, c);
}

static void write(struct console *con, const char *text, size_t len)
{
    for (size_t i = 0; base && i < len; i++)
        put((uint8_t)text[i]);
}

static struct console uart_console = { .info = { "serial", 80, 24 }, .write = write, .level = LOG_INFO };

void early_uart_init(void)
{
    if (!present(COM1))
        return;
    base = COM1;
    outb(base + IER, 0);
    outb(base + LCR, LCR_DLAB | LCR_8N1);
    outb(base + DLL, 1);
    outb(base + DLM, 0);
    outb(base + LCR, LCR_8N1);
    outb(base + FCR, FCR_ON_CLEAR);
    outb(base + MCR, MCR_DTR_RTS_OUT2);
    console_register(&uart_console);
}
