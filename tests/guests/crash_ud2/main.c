/*
 * crash_ud2: an exception that the guest has no handler for crashes the domain, and the report names the reason.
 *
 * expect-exit: 3
 * expect-stderr: rip
 */
#include "guest.h"

void test(void)
{
    print("no trap table\n");
    asm volatile("ud2");
    finish("FAILURE");
}
