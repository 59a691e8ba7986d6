/* Spins with interrupts off for ever: must be stoppable, and must not slow its neighbours beyond its share. */
#include "lib/guest.h"

int main(void)
{
    print("SPINNING\n");
    cli();
    for (;;)
        asm volatile("");
}
