/*
 * An endless delivery of #DB: a data breakpoint on the very stack that the handler's frame is pushed on.  A CPU without an intercept never comes back to the
 * host.  Any end is right as long as the host and the neighbours do not notice.
 */
#include "lib/guest.h"

static volatile unsigned delivered;
static void on_db(struct frame *f) { delivered++; }

int main(void)
{
    ulong sp;

    print("DBLOOP\n");
    set_handler(1, on_db);
    asm volatile("mov " PTR_SP ", %0" : "=r"(sp));
    sp = (sp - 64) & ~7ul;
    for (unsigned n = 0; n < 4; n++) {
        switch (n) {
        case 0: asm volatile("mov %0, %%dr0" :: "r"(sp)); break;
        case 1: asm volatile("mov %0, %%dr1" :: "r"(sp - 8)); break;
        case 2: asm volatile("mov %0, %%dr2" :: "r"(sp - 16)); break;
        default: asm volatile("mov %0, %%dr3" :: "r"(sp - 24));
        }
    }
    asm volatile("mov %0, %%dr7" :: "r"(0xddddul << 16 | 0x4aa));      /* four-byte writes, global */
    *(volatile uint32_t *)sp = 1;
    for (unsigned n = 0; n < 1000; n++)
        asm volatile("pushf; pop %0" : "=r"(sp));
    asm volatile("mov %0, %%dr7" :: "r"(0x400ul));
    report("came-back", true, " ");
    return 0;
}
