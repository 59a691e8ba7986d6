/* The smallest guest. */
#include "lib/guest.h"

int main(void)
{
    print("hello from a %d-bit guest\n", GUEST_BITS);
    CHECK("alive", true);
    return 0;
}
