/*
 * An endless delivery of #AC: alignment checks at CPL 3, a misaligned stack, and an #AC gate into CPL 3, so that pushing the frame faults again.  A CPU without
 * an intercept never comes back to the host.  32-bit only: 64-bit delivery aligns the stack.  Any end is right that neither host nor neighbours notice.
 */
#include "lib/guest.h"

#ifdef __x86_64__
int main(void)
{
    CHECK("not-in-64-bit-mode", true);
    return 0;
}
#else
/* A CPU without alignment checks runs into the HLT. */
static void no_checks(struct frame *f)
{
    report("came-back", true, " ");
    finish();
}

asm("user: pushl $0x40202; popf; movl 1(%esp), %eax; user_gate: hlt; jmp user");

int main(void)
{
    extern char user[], user_gate[];
    extern struct { uint16_t off0, sel; uint8_t ist, type; uint16_t off1; } idt[];
    static uint8_t stack[4096] __attribute__((aligned(16))), kernel_stack[4096] __attribute__((aligned(16)));
    static uint32_t tss[26];
    extern uint64_t gdt_tss[];

    tss[1] = (ulong)kernel_stack + sizeof kernel_stack;
    tss[2] = 0x10;
    gdt_tss[0] = 0x0000890000000067 | ((uint64_t)(ulong)tss & 0xffffff) << 16 | ((uint64_t)(ulong)tss >> 24) << 56;
    asm volatile("ltr %w0" :: "r"(0x50));
    print("ACLOOP\n");
    set_handler(13, no_checks);
    write_cr0(read_cr0() | 1 << 18);
    set_gate(17, user_gate, 3, 0);
    idt[17].sel = 0x23;
    asm volatile("pushl $0x2b; pushl %0; pushl $0x2; pushl $0x23; pushl %1; mov $0x2b, %%eax; mov %%eax, %%ds; iretl" :: "r"(stack + 4001), "r"(user) : "eax");
    return 0;
}
#endif
