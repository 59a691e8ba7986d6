/* A triple fault. */
#include "lib/guest.h"

int main(void)
{
    static const struct { uint16_t limit; uint64_t base; } __attribute__((packed)) none = { 0, 0 };

    print("TRIPLE\n");
    asm volatile("lidt %0; ud2" :: "m"(none));
    return 0;
}
